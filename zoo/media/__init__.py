"""Decode media files: frames (T, 3, H, W) uint8 and waveforms (N,) float32. The only decoder of the zoo.

    frames = read_frames("clip.mp4", n=8, size=(224, 224))   # 8 frames spread over the clip
    sound = read_waveform("clip.mp4")                        # 16 kHz, mono

`Media` does the same for whole corpora: it decodes each file once (arrays are kept on disk under the hash of the
file's bytes), gives up on a file after a time limit, and remembers what could not be read. `zoo.media.clips` reads the
frames and the sound of an utterance.

What comes out depends on the bytes of a file, not on its name:

- Frames are RGB as a player shows them: rotation and mirroring of the display matrix or of EXIF and non-square pixels
  are applied, resizing is antialiased bicubic. An alpha channel is dropped, colours without a stated matrix are read as
  BT.601. A JPEG, PNG or WebP is a clip of one frame. Cover art of music is no video.
- Which frame is shown when is decided by presentation time and by decoding from the start, never by seeking.
- Sound is the mean of all channels. Time 0 is the same for frames and sound: sound that starts late begins with
  zeros. Gaps inside a sound stream are closed up. Values beyond [-1, 1] (hot recordings, overshoot) are clipped;
  NaN, infinite or unscaled samples are refused.
- A damaged file gives what decodes of it, if that is at least one frame or sample; `Media.damaged` lists such files.
  One that was cut off (its headers promise more bytes, frames or samples than there are) says after how many seconds.
"""

from zoo.media.cache import Media
from zoo.media.container import MAX_PIXELS, MAX_SECONDS, Unreadable
from zoo.media.frames import read_frames
from zoo.media.scan import Scan, scan
from zoo.media.sound import read_waveform

__all__ = ["MAX_PIXELS", "MAX_SECONDS", "Media", "Scan", "Unreadable", "read_frames", "read_waveform", "scan"]
