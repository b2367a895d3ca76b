"""What a file holds, in words: for `zoo data show`.

Imported by the decoding process, which must start fast: no torch, and nothing of the zoo.
"""

from __future__ import annotations

import os
from typing import Literal

from zoo.media.container import first_stream, open_container, open_file
from zoo.media.frames import PICTURE_MAGIC, check_pixels, read_picture, read_timeline
from zoo.media.sound import decode_waveform


def decode_facts(
    path: str | os.PathLike[str], part: Literal["video", "audio"], max_seconds: float, max_pixels: int
) -> str:
    """Describe the pictures or the sound of a file in words: ``2.00 s, 50 frames of 320x240, 25 per second``.

    Raises:
        Unreadable: there are none.
    """
    if part == "audio":
        sound, rate, note = decode_waveform(path, max_seconds)
        return f"{len(sound) / rate:.2f} s at {rate} Hz" + (f" ({note})" if note else "")
    with open_file(path) as fd:
        head = os.pread(fd, 16, 0)
        if head.startswith(PICTURE_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
            height, width, _ = read_picture(path, fd, max_pixels).shape
            return f"a picture of {width}x{height}"
        with open_container(fd) as container:
            stream = first_stream(path, container, "video")
            width, height = stream.codec_context.width, stream.codec_context.height
            check_pixels(path, width, height, max_pixels)
            times, step, _ = read_timeline(path, container, stream, max_seconds)
            seconds = float((times[-1] + step - times[0]) * stream.time_base)
    return f"{seconds:.2f} s, {len(times)} frames of {width}x{height}, {len(times) / seconds:.3g} per second"
