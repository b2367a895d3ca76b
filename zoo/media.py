"""Paths -> arrays: frames (T, 3, H, W) uint8 and waveforms (N,) float32. The only decoder of the zoo.

    frames = read_frames("clip.mp4", n=8, size=(224, 224))   # 8 frames spread over the clip
    sound = read_waveform("clip.mp4")                        # 16 kHz, mono

`Media` does the same for whole corpora: it decodes each file once (arrays are kept on disk under the hash of the
file's bytes), gives up on a file after a time limit, and remembers what could not be read.

What comes out, whatever the file is called (its bytes decide, not its name):

- Frames are RGB as a player shows them: rotation and mirroring of the display matrix or of EXIF and non-square pixels
  are applied, resizing is antialiased bicubic. An alpha channel is dropped, colours without a stated matrix are read as
  BT.601. A JPEG, PNG or WebP is a clip of one frame. Cover art of music is no video.
- Which frame is shown when is decided by presentation time and by decoding from the start, never by seeking.
- Sound is the mean of all channels. Time 0 is the same for frames and sound: sound that starts late begins with
  zeros. Gaps inside a sound stream are closed up. Values beyond [-1, 1] (hot recordings, overshoot) are clipped;
  NaN, infinite or unscaled samples are refused.
- A damaged file gives what decodes of it, if that is at least one frame or sample; `Media.damaged` lists such files.
  One that was cut off (its headers promise more bytes, frames or samples than there are) says after how many seconds.

This file is also the program of the decoding process (`serve`), which must start fast: no torch at the top, and nothing
of the zoo.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import json
import math
import os
import queue
import re
import resource
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import soundfile
from av.sidedata.sidedata import Type as SideData
from PIL import Image, ImageOps, WebPImagePlugin  # noqa: F401  (the last registers WebP)

VERSION = 2  # of what comes out: raise it whenever a change here changes an array or what is said of it, and every
# cache is made again
MAX_SECONDS = 600.0
MAX_PIXELS = 4096 * 4096  # of one picture, before resizing
MAX_BYTES = 512 * 2**20  # of the frames one call returns
MAX_MEMORY = 4 * 2**30  # address space the decoding process may add to what it starts with
MAX_PEAK = 10.0  # +20 dB over full scale: beyond, a float file holds integers, not sound in [-1, 1]
RATES = range(1_000, 200_000)  # Hz: real sound; what lies outside would blow up in resampling
AWKWARD = 1_000_000  # taps of torchaudio's kernel: 44.1 -> 16 kHz needs 0.1 million, 44.101 -> 16 kHz 700 million
STILL = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"pnot")  # an MP4 or MOV begins with one
STREAMED = 0x7FFF_FF00  # bytes: lengths from here on mean that the writer did not know
SOUND = (b"RF64", b"fLaC", b"OggS")  # and RIFF....WAVE: read by libsndfile, the rest by FFmpeg
CHILD = [sys.executable, "-P", __file__]  # -P: the folder zoo/ must not become a place to import from

At = Literal["uniform", "middle"] | float
Size = int | tuple[int, int] | None


class Unreadable(ValueError):
    """A file that gives no frames or no sound.

    Raised inside a DataLoader worker it arrives in the main process as Unreadable too, but torch rebuilds it from its
    text alone: `path` and `reason` are then not apart.

    Attributes:
        path: as it was given.
        reason: one line: what is wrong and what to do.
    """

    def __init__(self, path: str | os.PathLike, reason: str = "") -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.reason else str(self.path)


# What libraries raise over bytes that are not what they should be. Anything else is a mistake in our own code.
PARSER_ERRORS = (
    av.FFmpegError,
    soundfile.SoundFileError,
    Image.DecompressionBombError,
    OSError,
    EOFError,
    ValueError,
    SyntaxError,  # Pillow: broken PNG
    struct.error,
    MemoryError,
)


# ---- reading in this process


def read_frames(
    path: str | os.PathLike,
    n: int | None = None,
    at: At = "uniform",
    size: Size = None,
    *,
    max_seconds: float = MAX_SECONDS,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Frames of a clip or a picture, decoded in this process without a time limit.

    Args:
        n: how many frames, spread over the clip: those shown at the centres of n equal parts. A clip with fewer frames
            than n repeats them. None: every frame; one that cannot be decoded is replaced by the one before it.
        at: "uniform" as above; "middle": the one frame shown at half time; or a time in seconds: the one frame shown
            then (the first before the clip starts, the last after it ends).
        size: (height, width), or the length of the shorter side with the aspect kept; None: as in the file.
        max_seconds: a longer clip is refused.
        max_pixels: a larger picture is refused before it is decoded.

    Returns:
        uint8 (T, 3, H, W), RGB; T is 1 for "middle" or a time.

    Raises:
        Unreadable: nothing to be had from this file, or more than the limits allow.
        ValueError: n, at or size make no sense.
    """
    n, at, size = _checked(n, at, size)
    return _frames(path, n, at, size, max_seconds, max_pixels)[0]


def read_waveform(path: str | os.PathLike, rate: int = 16_000, *, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """Sound of a clip or an audio file, decoded in this process without a time limit.

    Returns:
        float32 (N,) in [-1, 1], mono, at `rate` Hz.

    Raises:
        Unreadable: no sound to be had from this file, or more than max_seconds of it.
    """
    sound, original, _ = _waveform(path, max_seconds)
    return _resample(sound, original, rate)


def _checked(n: int | None, at: At, size: Size) -> tuple[int | None, At, Size]:
    """The request in its one spelling, so that equal requests share a cache entry."""
    if n is not None and (isinstance(n, bool) or int(n) != n or n < 1):
        raise ValueError(f"n is the number of frames, 1 or more, or None for all; got {n!r}")
    if at == "middle":
        n, at = 1, "uniform"  # the centre of one part
    if at != "uniform":
        if isinstance(at, str | bool) or not (math.isfinite(at) and at >= 0):
            raise ValueError(f"at is 'uniform', 'middle' or a time in seconds, 0 or more; got {at!r}")
        if n not in (None, 1):
            raise ValueError(f"at={at!r} is one frame, but n={n}; leave n out")
        n, at = 1, float(at)
    if size is not None:
        sides = (size,) if isinstance(size, int) else tuple(size)
        if not (len(sides) <= 2 and all(int(s) == s and s >= 1 for s in sides)):
            raise ValueError(f"size is (height, width) or the shorter side, in pixels; got {size!r}")
        size = int(size) if isinstance(size, int) else (int(sides[0]), int(sides[1]))
    return (None if n is None else int(n)), at, size


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[int]:
    """File descriptor of a regular, non-empty file; whatever goes wrong with its bytes leaves as Unreadable."""
    try:
        # O_NONBLOCK: opening a pipe nobody writes to would wait for ever
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Unreadable(path, "no such file; check the folder given as root") from None
    except (OSError, ValueError) as e:
        raise Unreadable(path, f"cannot be opened ({e.strerror if isinstance(e, OSError) else e})") from None
    try:
        about = os.fstat(fd)
        if stat.S_ISDIR(about.st_mode):
            raise Unreadable(path, "is a folder; give a file")
        if not stat.S_ISREG(about.st_mode):
            raise Unreadable(path, "is a pipe or a device; give a file")
        if about.st_size == 0:
            raise Unreadable(path, "is empty (0 bytes); copy or download it again")
        yield fd
    except Unreadable:
        raise
    except MemoryError:
        raise Unreadable(path, "needs too much memory to decode; make it smaller or shorter") from None
    except PARSER_ERRORS as e:
        if os.pread(fd, 8, 0)[4:] == b"ftyp" and isinstance(e, av.error.InvalidDataError):
            reason = "is an MP4 without its index (moov), cut off while it was written; copy or download it again"
        else:
            what = e.strerror if isinstance(e, OSError | av.FFmpegError) and e.strerror else str(e)
            reason = f"is broken, or no video, sound or picture ({' '.join(what.split())[:200]}); replace or convert it"
        raise Unreadable(path, reason) from e
    finally:
        os.close(fd)


@contextlib.contextmanager
def _container(fd: int) -> Iterator[av.container.InputContainer]:
    # By descriptor, not by name: a name may look like a URL or a list, and its suffix would sway the guess of the
    # format. The whitelist keeps playlists from opening further files or addresses.
    os.lseek(fd, 0, os.SEEK_SET)
    with av.open("fd:", options={"fd": str(fd), "protocol_whitelist": "fd"}, metadata_errors="replace") as container:
        yield container


def _stream(path: str | os.PathLike, container: av.container.InputContainer, kind: Literal["video", "audio"]):
    """First stream of the kind, set up to decode in one thread (clips are small, and workers share the cores)."""
    streams = [s for s in getattr(container.streams, kind) if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        have = ", ".join(s.type for s in container.streams) or "none"
        raise Unreadable(path, f"has no {kind} stream (streams: {have}); leave its {kind} out or replace it")
    if streams[0].codec_context is None:
        raise Unreadable(path, f"has {kind} in a format that this PyAV cannot decode; convert it to H.264 and AAC")
    streams[0].codec_context.thread_count = 1
    return streams[0]


def _decoded(container: av.container.InputContainer, stream: Any, lost: list[int]) -> Iterator[Any]:
    """Frames of a stream in presentation order. lost[0] counts packets that do not decode."""
    packets = container.demux(stream)
    while True:
        try:
            frames = next(packets).decode()
        except StopIteration:  # also after an error of the reader itself: what was read so far is used
            return
        except MemoryError:
            raise
        except av.FFmpegError as e:
            lost[0] += not isinstance(e, av.error.EOFError)
            continue
        for frame in frames:
            lost[0] += frame.is_corrupt
            yield frame


def _zero(container: av.container.InputContainer) -> Fraction:
    """Time stamp, in seconds, that is time 0 of the clip. What lies before zero is the coder's lead-in."""
    return max(Fraction(container.start_time or 0, av.time_base), Fraction(0))


# ---- frames


class _Disorder(Exception):
    """Time stamps do not rise with the frames: AVI files store none, and those made up for B-frames are wrong."""


def _frames(
    path: str | os.PathLike, n: int | None, at: At, size: Size, max_seconds: float, max_pixels: int
) -> tuple[np.ndarray, str | None]:
    """As read_frames, and what is wrong with the file although it could be read."""
    with _opened(path) as fd:
        head = os.pread(fd, 16, 0)
        if head.startswith(STILL) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
            picture = _fit(path, _still(path, fd, max_pixels), size, 1, count=n or 1)
            return np.repeat(_planes(picture)[None], n or 1, axis=0), None

        with _container(fd) as container:
            stream = _stream(path, container, "video")
            _check_pixels(path, stream.codec_context.width, stream.codec_context.height, max_pixels)
            times, step, torn = _timeline(path, container, stream, max_seconds)
            if at != "uniform":  # + half a tick: a frame's own time, rounded, means that frame
                targets = [float((_zero(container) + Fraction(at)) / stream.time_base) + 0.5]
            elif n is None:
                targets = [float(t) for t in times]
            else:
                span = times[-1] + step - times[0]
                targets = [times[0] + (i + 0.5) / n * span for i in range(n)]
            decoded = float((times[-1] + step * (not torn) - times[0]) * stream.time_base)
            torn = torn or _bytes_missing(fd) > 0
            frame = float(step * stream.time_base)
            note = _cut(decoded, _promised(container, stream), torn, max(2 * frame, 0.05), "video")

        for by_order in (False, True):
            lost = [0]
            with _container(fd) as container:
                stream = _stream(path, container, "video")
                # against a size that grows half-way; FFmpeg counts padded lines, so it gets room
                stream.codec_context.options = {"max_pixels": str(2 * max_pixels + 2**16)}
                try:
                    frames = _shown(path, container, stream, times, step, targets, size, by_order, lost)
                except _Disorder:
                    continue
            break
        if frames is None:
            raise Unreadable(path, "has a video stream of which no frame decodes; replace or convert it")
        return frames, note or (f"damaged: {lost[0]} of {len(times)} frames" if lost[0] else None)


def _check_pixels(path: str | os.PathLike, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise Unreadable(
            path,
            f"has pictures of {width}x{height}, over the limit of {max_pixels / 1e6:.1f} million pixels; scale it down",
        )


def _timeline(
    path: str | os.PathLike, container: av.container.InputContainer, stream: Any, max_seconds: float
) -> tuple[list[int], int, bool]:
    """Presentation times of all frames, rising, how long the last one is shown, and whether the file ends inside a
    frame; read from packets, not decoded.

    Times are in ticks of the stream's time base. The header's duration and frame count are not trusted.
    """
    torn = False
    times: list[int | None] = []
    shown: dict[int | None, int] = {}
    tick = float(stream.time_base)
    with contextlib.suppress(av.FFmpegError):  # what was read so far is used
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                times.append(packet.pts)
                shown[packet.pts] = packet.duration or 0
                torn = packet.is_corrupt
                if len(times) > 1 and packet.pts is not None and times[0] is not None:
                    _check_seconds(path, (packet.pts - times[0]) * tick, max_seconds)
    if not times:
        raise Unreadable(path, "has a video stream without frames; replace or convert it")
    rate = stream.average_rate or stream.guessed_rate or 25
    step = max(round(1 / (rate * stream.time_base)), 1)
    if None in times:  # bare streams carry no times
        times = [i * step for i in range(len(times))]
        _check_seconds(path, times[-1] * tick, max_seconds)
    times = sorted(times)
    return times, shown.get(times[-1]) or step, torn


def _promised(container: av.container.InputContainer, stream: Any) -> float:
    """Seconds that the headers promise of a stream; 0 if they say nothing."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    clock = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))  # Matroska's
    if clock:
        return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])
    # of the longest stream: it says nothing about a shorter one
    return container.duration / av.time_base if container.duration and len(container.streams) == 1 else 0.0


def _cut(decoded: float, promised: float, torn: bool, tolerance: float, what: str) -> str | None:
    """What is wrong with a file that was cut off; None for a whole one.

    Args:
        decoded: seconds that could be decoded.
        promised: seconds that its headers promise; 0 if they say nothing.
        torn: the file ends before its own end: then whatever is missing counts. Else headers may be slightly wrong.
        tolerance: seconds.
    """
    if torn and not promised:
        return f"cut short: cut off after {decoded:.2f} s of {what}"
    least = promised - tolerance if torn else 0.9 * promised - 0.2
    if decoded < least:
        return f"cut short: cut off after {decoded:.2f} of {promised:.2f} s of {what}"
    return None


def _bytes_missing(fd: int) -> int:
    """How many bytes the headers of the container promise behind the end of the file. 0 also where a format does not
    say; 1 for an Ogg stream without its last page."""
    size, head = os.fstat(fd).st_size, os.pread(fd, 64, 0)
    end = 0
    if head[4:8] in BOXES:
        while end + 8 <= size:
            box = os.pread(fd, 16, end)
            length = int.from_bytes(box[:4], "big")
            length = int.from_bytes(box[8:], "big") if length == 1 else length
            if length < 8 or not box[4:8].isascii():  # 0: up to the end of the file
                return 0
            end += length
    elif head[:4] == b"RIFF":
        while (chunk := os.pread(fd, 8, end))[:4] == b"RIFF":
            length = int.from_bytes(chunk[4:], "little")
            if not 0 < length < STREAMED:  # written to a pipe
                return 0
            end += 8 + length
    elif head[:4] == b"\x1aE\xdf\xa3":
        header, offset = _ebml_number(head, 4)
        segment = os.pread(fd, 12, offset + header)
        if segment[:4] != b"\x18S\x80g":
            return 0
        length, start = _ebml_number(segment, 4)
        if length == 2 ** (7 * (start - 4)) - 1:  # unknown
            return 0
        end = offset + header + start + length
    elif head[:4] == b"OggS":
        tail = os.pread(fd, 2**16 + 2**9, max(0, size - 2**16 - 2**9))
        last = tail[tail.rfind(b"OggS") :]
        return int(len(last) < 27 or not last[5] & 4)
    return max(0, end - size - 1)  # a chunk of an odd length is padded


def _ebml_number(data: bytes, offset: int) -> tuple[int, int]:
    """A length of Matroska's, and where it ends."""
    width = 9 - data[offset].bit_length() if len(data) > offset and data[offset] else 8
    return int.from_bytes(data[offset : offset + width], "big") & (2 ** (7 * width) - 1), offset + width


def _wav_seconds(fd: int) -> float:
    """Seconds that the header of a WAV file promises; 0 where it does not say."""
    rate = length64 = 0
    offset = 12
    while len(chunk := os.pread(fd, 24, offset)) >= 8:
        length = int.from_bytes(chunk[4:8], "little")
        if chunk[:4] == b"ds64":
            length64 = int.from_bytes(chunk[16:24], "little")
        elif chunk[:4] == b"fmt ":
            rate = int.from_bytes(chunk[16:20], "little")  # bytes per second
        elif chunk[:4] == b"data":
            length = length64 or length
            return length / rate if rate and (length64 or 0 < length < STREAMED) else 0.0
        offset += 8 + length + length % 2
    return 0.0


def _check_seconds(path: str | os.PathLike, seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise Unreadable(
            path,
            f"is longer than {max_seconds:g} s; cut it into clips, or raise the limit "
            "(--model.max_clip_seconds; of zoo prepare: --max_clip_seconds)",
        )


def _shown(
    path: str | os.PathLike,
    container: av.container.InputContainer,
    stream: Any,
    times: list[int],
    step: int,
    targets: list[float],  # rising
    size: Size,
    by_order: bool,  # the k-th frame belongs to the k-th time, whatever its own time stamp says
    lost: list[int],
) -> np.ndarray | None:
    """The frames shown at the targets, (len(targets), 3, H, W): of each the last frame that starts at or before it."""
    convert = av.video.reformatter.VideoReformatter()
    out: np.ndarray | None = None
    filled = 0

    def fill(until: int, frame: av.VideoFrame) -> None:
        nonlocal out, filled
        if until == filled:
            return
        picture = convert.reformat(frame, format="rgb24").to_ndarray()
        picture, ratio = _upright(picture, frame, stream.sample_aspect_ratio)
        like = size if out is None else out.shape[2:]  # a size that changes half-way: as the first
        picture = _fit(path, picture, like, ratio, count=len(targets))
        if out is None:
            out = np.empty((len(targets), 3, *picture.shape[:2]), np.uint8)
        out[filled:until] = _planes(picture)
        filled = until

    current, now = None, 0
    for k, frame in enumerate(_decoded(container, stream, lost)):
        if by_order:
            starts = times[k] if k < len(times) else times[-1] + (k - len(times) + 1) * step
        else:
            starts = frame.pts
            if starts is None or (current is not None and starts <= now):
                raise _Disorder
        due = filled
        while due < len(targets) and targets[due] < starts:
            due += 1
        fill(due, current if current is not None else frame)
        if filled == len(targets):
            return out
        current, now = frame, starts
    if current is not None:
        fill(len(targets), current)
    return out


def _upright(picture: np.ndarray, frame: av.VideoFrame, pixel: Fraction | None) -> tuple[np.ndarray, Fraction]:
    """(H, W, 3) turned and mirrored as the display matrix says, in right angles; and width / height of its pixels."""
    pixel = pixel if pixel and Fraction(1, 10) < pixel < 10 else Fraction(1)  # beyond: a broken header
    matrix = frame.side_data.get(SideData.DISPLAYMATRIX)
    if matrix is None:
        return picture, pixel
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))  # x' = a x + c y, y' = b x + d y
    if abs(b) > abs(a):
        picture, pixel, across, down = picture.swapaxes(0, 1), 1 / pixel, c, b
    else:
        across, down = a, d
    return picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1], pixel


def _still(path: str | os.PathLike, fd: int, max_pixels: int) -> np.ndarray:
    """A picture file, uint8 (H, W, 3)."""
    os.lseek(fd, 0, os.SEEK_SET)
    with open(os.dup(fd), "rb") as file, Image.open(file, formats=("JPEG", "PNG", "WEBP")) as image:
        _check_pixels(path, image.width, image.height, max_pixels)
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16-bit grey: convert would clip it to white
            image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
        return np.asarray(image.convert("RGB"))


def _fit(path: str | os.PathLike, picture: np.ndarray, size: Size, pixel: Fraction, count: int) -> np.ndarray:
    """(H, W, 3) resized to what was asked for; refused if `count` such pictures were too many bytes."""
    height, width = picture.shape[0], max(round(picture.shape[1] * pixel), 1)
    if isinstance(size, int):  # as torchvision's Resize
        short = min(height, width)
        height, width = height * size // short, width * size // short
    elif size is not None:
        height, width = size
    if count * 3 * height * width > MAX_BYTES:
        raise Unreadable(
            path,
            f"{count} frames of {width}x{height} are more than {MAX_BYTES >> 20} MB; take fewer frames, or scale the "
            "clip down",
        )
    if (height, width) == picture.shape[:2]:
        return picture
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def _planes(picture: np.ndarray) -> np.ndarray:
    return picture.transpose(2, 0, 1)  # (H, W, 3) -> (3, H, W)


# ---- sound


def _waveform(path: str | os.PathLike, max_seconds: float) -> tuple[np.ndarray, int, str | None]:
    """float32 (N,) at the file's own rate, that rate in Hz, and what is wrong although the file could be read."""
    with _opened(path) as fd:
        head = os.pread(fd, 12, 0)
        parts: list[np.ndarray] = []
        if head.startswith(SOUND) or (head[:4] == b"RIFF" and head[8:] == b"WAVE"):
            with contextlib.suppress(soundfile.LibsndfileError):  # a codec it does not know: FFmpeg may
                parts, rate, note = _by_soundfile(path, fd, max_seconds)
        if not parts:
            parts, rate, note = _by_ffmpeg(path, fd, max_seconds)
        if not sum(map(len, parts)):
            raise Unreadable(path, "has no audio samples; leave its audio out or replace it")
        sound = np.concatenate(parts)
        bad = len(sound) - np.count_nonzero(np.isfinite(sound))
        if bad:
            raise Unreadable(path, f"holds {bad} of {len(sound)} samples that are NaN or infinite; export it again")
        peak = float(np.abs(sound).max())
        if peak > MAX_PEAK:
            raise Unreadable(path, f"has samples up to {peak:g}, expected [-1, 1]; scale it and export it again")
        return np.clip(sound, -1, 1), rate, note


def _check_rate(path: str | os.PathLike, rate: int) -> None:
    if rate not in RATES:
        raise Unreadable(path, f"has a sampling rate of {rate} Hz, expected {RATES.start} to {RATES.stop}; convert it")


def _by_soundfile(path: str | os.PathLike, fd: int, max_seconds: float) -> tuple[list[np.ndarray], int, str | None]:
    os.lseek(fd, 0, os.SEEK_SET)
    parts: list[np.ndarray] = []
    with soundfile.SoundFile(fd, closefd=False) as file:
        _check_rate(path, file.samplerate)
        read = 0
        while len(block := file.read(65536, dtype="float32", always_2d=True)):  # (n, channels)
            read += len(block)
            _check_seconds(path, read / file.samplerate, max_seconds)
            parts.append(block.mean(axis=1))
        promised = _wav_seconds(fd) if file.format in ("WAV", "WAVEX", "RF64") else file.frames / file.samplerate
        short = read / file.samplerate < promised - 1e-3 or _bytes_missing(fd) > 0 and file.format == "OGG"
        return parts, file.samplerate, _cut(read / file.samplerate, promised, short, 1e-3, "sound")


def _by_ffmpeg(path: str | os.PathLike, fd: int, max_seconds: float) -> tuple[list[np.ndarray], int, str | None]:
    parts: list[np.ndarray] = []
    lost, read, rate = [0], 0, 0
    with _container(fd) as container:
        stream = _stream(path, container, "audio")
        for frame in _decoded(container, stream, lost):
            if not parts:
                rate = frame.sample_rate
                _check_rate(path, rate)
                late = 0 if frame.pts is None else round((frame.pts * frame.time_base - _zero(container)) * rate)
                _check_seconds(path, late / rate, max_seconds)
                parts.append(np.zeros(max(late, 0), np.float32))
                skip = max(-late, 0)
            if frame.sample_rate != rate:
                raise Unreadable(path, f"changes its sampling rate from {rate} to {frame.sample_rate} Hz; convert it")
            samples = _mono(frame)[skip:]
            skip = max(skip - frame.samples, 0)
            read += len(samples)
            _check_seconds(path, read / rate, max_seconds)
            parts.append(samples)
        promised = _promised(container, stream)
    if not read:
        return [], rate, None
    note = _cut(read / rate, promised, _bytes_missing(fd) > 0, 0.05 + 2048 / rate, "sound")
    if note is not None:
        return parts, rate, note
    return parts, rate, f"damaged: {lost[0]} packets of audio" if lost[0] else None


def _mono(frame: av.AudioFrame) -> np.ndarray:
    """float32 (N,) of one frame, full scale = 1."""
    samples = frame.to_ndarray()  # (channels, N), or (1, N * channels) when packed
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples / np.float64(2 ** (8 * samples.dtype.itemsize - 1))
    return (samples[0] if len(samples) == 1 else samples.mean(axis=0)).astype(np.float32, copy=False)


def _resample(sound: np.ndarray, original: int, rate: int) -> np.ndarray:
    """float32 (N,) from one sampling rate in Hz to another."""
    if original == rate:
        return sound
    common = math.gcd(original, rate)
    if (original // common) * (rate // common) <= AWKWARD:
        import torch

        sound = _resampler(original, rate)(torch.from_numpy(sound)).numpy()
    else:  # torchaudio's kernel would fill the memory
        from scipy.signal import resample_poly

        sound = resample_poly(sound.astype(np.float64), rate // common, original // common).astype(np.float32)
    return np.clip(sound, -1, 1)


@functools.lru_cache(maxsize=8)
def _resampler(original: int, rate: int) -> Any:
    """torchaudio's, kept because its kernel takes longer to make than to use."""
    import torchaudio

    return torchaudio.transforms.Resample(original, rate)


# ---- reading in a process that can be killed


def serve() -> None:
    """The decoding process: answers requests on stdin until it closes, each within its time limit.

    Request: length (4 bytes), JSON. Answer: length (4 bytes), JSON, the bytes of the array.
    The kernel ends this process when the time is over, so that neither a decoder that never returns nor the death of
    the parent leaves it behind.
    """
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with contextlib.suppress(ValueError, OSError):  # not everywhere; then only the limits on pixels and seconds hold
        most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MAX_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a parent may have ignored or blocked it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    answers.write(b"ready")
    answers.flush()
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # libraries that print would break the protocol or the user's progress bar
        os.dup2(quiet, stream)
    while len(size := requests.read(4)) == 4:
        request = json.loads(requests.read(*struct.unpack("<I", size)))
        signal.setitimer(signal.ITIMER_REAL, request.pop("timeout"))
        array = np.empty(0, np.uint8)
        try:
            if request.pop("kind") == "frames":
                array, note = _frames(**request)
                answer = {"note": note}
            else:
                array, rate, note = _waveform(**request)
                answer = {"note": note, "rate": rate}
        except Unreadable as e:
            answer = {"unreadable": e.reason}
        except Exception:  # a mistake in this file: shown by the parent, not taken for a bad file
            answer = {"mistake": traceback.format_exc()}
        signal.setitimer(signal.ITIMER_REAL, 0)
        answer |= {"dtype": array.dtype.str, "shape": array.shape}
        text = json.dumps(answer).encode()
        answers.write(struct.pack("<I", len(text)) + text)
        answers.write(np.ascontiguousarray(array))
        answers.flush()
    os._exit(0)


class _Decoder:
    """This side of one decoding process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.idle = False  # no answer is on its way: after an interrupt the next one read would be of the wrong file
        self.process = subprocess.Popen(
            CHILD,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},  # numpy reserves memory per thread
            start_new_session=True,  # Ctrl-C is for us; the child ends when its stdin closes
        )
        with contextlib.suppress(AttributeError, OSError):  # Linux: fewer switches between the two
            fcntl.fcntl(self.process.stdout, fcntl.F_SETPIPE_SZ, 2**20)
        # runs when this object goes, and at the end of a main process and of a DataLoader worker, where atexit does not
        self.close = Finalize(self, _close, [self.process], exitpriority=0)
        _decoders.add(self)
        if bytes(self._read(5) or b"") != b"ready":
            raise RuntimeError(f"the decoding process did not start: {CHILD}, exit code {self.process.wait()}")
        self.idle = True

    def usable(self) -> bool:
        return self.pid == os.getpid() and self.idle and self.process.poll() is None

    def decode(self, path: str | os.PathLike, timeout: float, **request: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """The array of _frames or _waveform, and what comes with it.

        Raises:
            Unreadable: as those, or the time limit passed, or the file crashed the decoder.
            ProcessLookupError: the process was killed from outside, which says nothing about the file.
        """
        text = json.dumps(request | {"path": os.path.abspath(os.fsdecode(path)), "timeout": timeout}).encode()
        message = struct.pack("<I", len(text)) + text
        self.idle = False
        try:
            while message:
                message = message[self.process.stdin.write(message) :]
            size = self._read(4)
            text = size and self._read(*struct.unpack("<I", size))
        except BrokenPipeError:
            text = None
        if not text:
            self.close()
            code = self.process.returncode
            if message or code in (-signal.SIGKILL, -signal.SIGTERM):
                raise ProcessLookupError(f"{path}: the decoding process was killed (is the memory full?); try again")
            if code == -signal.SIGALRM:
                raise Unreadable(
                    path,
                    f"took longer than {timeout:g} s to decode; convert it, or raise the limit "
                    "(--model.timeout; of zoo prepare: --clip_timeout)",
                )
            raise Unreadable(path, f"crashed the decoder (exit code {code}); replace or convert it")
        answer = json.loads(bytes(text))
        array = np.empty(answer.pop("shape"), np.dtype(answer.pop("dtype")))
        if array.size and self._read(array.nbytes, memoryview(array).cast("B")) is None:
            raise ProcessLookupError(f"{path}: the decoding process was killed while it answered; try again")
        self.idle = True
        if "unreadable" in answer:
            raise Unreadable(path, answer["unreadable"])
        if "mistake" in answer:
            raise RuntimeError(f"{path}: a mistake in zoo.media, not in the file:\n{answer['mistake']}")
        return array, answer

    def _read(self, n: int, into: memoryview | None = None) -> memoryview | None:
        """Exactly n bytes; None if the process ended before."""
        into = memoryview(bytearray(n)) if into is None else into
        got = 0
        while got < n:
            more = self.process.stdout.readinto(into[got:])
            if not more:
                return None
            got += more
        return into


def _close(process: subprocess.Popen) -> None:
    process.stdin.close()
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def _forget() -> None:
    """In a forked process: the parent's decoders are not ours; holding their pipes would keep them alive."""
    for decoder in list(_decoders):
        decoder.process.stdin.close()
        decoder.process.stdout.close()
        decoder.process.returncode = 0  # not our child: nothing to wait for
    _decoders.clear()


_decoders: weakref.WeakSet[_Decoder] = weakref.WeakSet()
_local = threading.local()  # one decoder per process and thread, started when first needed
os.register_at_fork(after_in_child=_forget)


def _decoder() -> _Decoder:
    decoder = getattr(_local, "decoder", None)
    if decoder is None or not decoder.usable():
        if decoder is not None and decoder.pid == os.getpid():
            decoder.process.kill()
            decoder.close()
        decoder = _local.decoder = _Decoder()
    return decoder


# ---- decoding once


class Media:
    """Frames and waveforms of a corpus, each file decoded once, in a helper process with a time limit.

    May be pickled, forked and used from several threads; each process and thread has its own helper.

    In `cache` lie:

    - `{sha256[:2]}/{sha256}-v{VERSION}-{request}.npy`: one array each (with a checksum behind it), readable by
      `np.load`. Files with equal bytes share it; a damaged entry is made again. May be deleted at any time.
    - `paths/`: which file (size, time, inode) had which hash, so that files are not read again in every epoch.
    - `problems.jsonl`: what could not be read, or not whole. A file that stands here as unreadable is not tried again
      with the same request, limits and PyAV; a repaired file has another hash and is. Delete the line, or the file, to
      have it tried again, e.g. when the time limit passed on a busy machine. Files are named as they were given if
      that was relative, else by their last name: no path of this machine gets in.

    Args:
        cache: folder for the arrays; None: nothing is kept but the memory of unreadable files.
        timeout: seconds one file may take to decode.
        max_seconds: a longer clip is refused.
        max_pixels: a larger picture is refused.
    """

    def __init__(
        self,
        cache: Path | None = None,
        timeout: float = 30.0,
        max_seconds: float = MAX_SECONDS,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        for name, value in (("timeout", timeout), ("max_seconds", max_seconds), ("max_pixels", max_pixels)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is a number over 0, got {value!r}")
        self.cache = None if cache is None else Path(cache)
        self.timeout, self.max_seconds, self.max_pixels = timeout, max_seconds, max_pixels
        self._limits = f"v{VERSION} PyAV {av.__version__} {timeout:g} s, {max_seconds:g} s, {max_pixels} px"
        self._hashes: dict[str, tuple[str, str]] = {}  # absolute path -> what the file looked like, sha256
        self._problems: dict[tuple[str | None, ...], dict[str, Any]] = {}
        self._looked: tuple[int, ...] = ()  # size, time and inode of problems.jsonl when it was last read
        self._seen = 0, 0  # its bytes that are in _problems: how many, and their checksum
        self._met: list[dict[str, Any]] = []  # rows of what was asked for since `met` was last called

    def frames(
        self, path: str | os.PathLike, n: int | None = None, at: At = "uniform", size: Size = None
    ) -> np.ndarray:
        """As read_frames: uint8 (T, 3, H, W)."""
        n, at, size = _checked(n, at, size)
        spelled = "x".join(map(str, size)) if isinstance(size, tuple) else size or "full"
        request = f"frames-{n or 'all'}-{at}-{spelled}"
        limits = {"max_seconds": self.max_seconds, "max_pixels": self.max_pixels}
        return self._get(path, request, None, kind="frames", n=n, at=at, size=size, **limits)

    def waveform(self, path: str | os.PathLike, rate: int = 16_000) -> np.ndarray:
        """As read_waveform: float32 (N,)."""
        return self._get(path, f"waveform-{rate}", rate, kind="waveform", max_seconds=self.max_seconds)

    @property
    def unreadable(self) -> list[dict[str, Any]]:
        """Rows {file, sha256, request, problem, reason, limits} of files that gave nothing.

        With a cache these are of all processes that used it with these limits; missing files (no hash) of this
        process alone. A file repaired since then keeps its row, under its old hash.
        """
        return self._rows("unreadable")

    @property
    def damaged(self) -> list[dict[str, Any]]:
        """Rows as above of files of which only a part could be read; the part is used."""
        return self._rows("damaged")

    def met(self) -> list[dict[str, str]]:
        """Rows {file, problem, reason} of what was asked for since the last call and could not be read, or not whole,
        each once; also where the array came from the cache. In a loader's worker: of that worker."""
        rows = {tuple(row[key] for key in ("file", "problem", "reason")): None for row in self._met}
        self._met = []
        return [dict(zip(("file", "problem", "reason"), row, strict=True)) for row in rows]

    def _get(self, path: str | os.PathLike, request: str, rate: int | None, **how: Any) -> np.ndarray:
        try:
            sha256 = self._sha256(path)
        except Unreadable as e:
            self._note(path, None, request, "unreadable", e.reason)
            raise
        entry = self.cache and self.cache / sha256[:2] / f"{sha256}-v{VERSION}-{request}.npy"
        array = _load(entry) if entry else None
        self._read_problems()
        if array is not None:
            if known := self._problems.get((sha256, request, "damaged", self._limits)):
                self._met.append(known | {"file": _portable(path)})
            return array
        if known := self._problems.get((sha256, request, "unreadable", self._limits)):
            self._met.append(known | {"file": _portable(path)})
            raise Unreadable(path, known["reason"])
        try:
            try:
                array, answer = _decoder().decode(path, self.timeout, **how)
            except ProcessLookupError:  # perhaps long ago, and not over this file
                array, answer = _decoder().decode(path, self.timeout, **how)
        except Unreadable as e:
            self._note(path, sha256, request, "unreadable", e.reason)
            raise
        if answer["note"]:
            self._note(path, sha256, request, "damaged", answer["note"])
        if rate is not None:
            array = _resample(array, answer["rate"], rate)
        if entry:
            _save(entry, array)
        return array

    def _sha256(self, path: str | os.PathLike) -> str:
        """Hash of the file's bytes, from memory or from the cache while size, time and inode stay the same."""
        absolute = os.path.abspath(path)
        with _opened(path) as fd:
            about = os.fstat(fd)
            looks = f"{about.st_size} {about.st_mtime_ns} {about.st_ino}"
            before, sha256 = self._hashes.get(absolute, ("", ""))
            if looks == before:
                return sha256
            # the name of the memo is itself a hash: no path of this machine gets into the cache
            name = hashlib.sha256(os.fsencode(absolute)).hexdigest()
            memo = self.cache and self.cache / "paths" / name[:2] / name
            with contextlib.suppress(OSError, ValueError):
                if memo:
                    before, sha256 = memo.read_text(encoding="ascii").rsplit(" ", 1)
            if looks != before or len(sha256) != 64:
                with open(fd, "rb", closefd=False) as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                if abs(time.time_ns() - about.st_mtime_ns) < 2e9:
                    return sha256  # still being written, perhaps: a change within the clock's tick would go unseen
                if memo:
                    with contextlib.suppress(OSError):  # a cache one may only read: only slower
                        _write(memo, [f"{looks} {sha256}".encode()])
            self._hashes[absolute] = (looks, sha256)
            return sha256

    def _note(self, path: str | os.PathLike, sha256: str | None, request: str, problem: str, reason: str) -> None:
        row = {"file": _portable(path), "sha256": sha256, "request": request, "problem": problem, "reason": reason}
        row["limits"] = self._limits
        self._met.append(row)
        if self.cache is None or sha256 is None:
            self._problems[self._key(row)] = row
        else:
            self.cache.mkdir(parents=True, exist_ok=True)
            line = json.dumps(row).encode() + b"\n"
            fd = os.open(self.cache / "problems.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(fd, line)  # in one piece: other processes append too
            finally:
                os.close(fd)

    @staticmethod
    def _key(row: Mapping[str, Any]) -> tuple[str | None, ...]:
        first = row["sha256"] or row["file"]
        return first, row["request"], row["problem"], row["limits"]

    def _read_problems(self) -> None:
        """Takes in what this and other processes have added to problems.jsonl, and the user taken out."""
        if self.cache is None:
            return
        try:
            with open(self.cache / "problems.jsonl", "rb") as file:
                about = os.fstat(file.fileno())
                if (about.st_size, about.st_mtime_ns, about.st_ino) == self._looked:
                    return
                text = file.read()
            self._looked = (about.st_size, about.st_mtime_ns, about.st_ino)
        except FileNotFoundError:
            text = b""
        seen, checksum = self._seen
        if len(text) < seen or zlib.crc32(text[:seen]) != checksum:  # not only added to: start over
            self._problems = {k: row for k, row in self._problems.items() if row["sha256"] is None}
            seen = 0
        until = text.rfind(b"\n") + 1  # another process may be in the middle of a line
        for line in text[seen:until].splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a torn line: that file is tried again
                row = json.loads(line)
                self._problems[self._key(row)] = row
        self._seen = until, zlib.crc32(text[:until])

    def _rows(self, problem: str) -> list[dict[str, Any]]:
        self._read_problems()
        wanted = (problem, self._limits)
        return [dict(row) for row in list(self._problems.values()) if (row["problem"], row["limits"]) == wanted]


def _portable(path: str | os.PathLike) -> str:
    """A path as it may stand in a file that travels."""
    name = os.fsdecode(path)
    return os.path.basename(name) if os.path.isabs(name) or ".." in Path(name).parts else name


def _save(entry: Path, array: np.ndarray) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    data = memoryview(np.ascontiguousarray(array)).cast("B") if array.size else b""
    checksum = zlib.crc32(data, zlib.crc32(header.getvalue()))
    _write(entry, [header.getvalue(), data, struct.pack("<I", checksum)])


def _load(entry: Path) -> np.ndarray | None:
    """A writable array; None if there is no entry or it is not what was written."""
    try:
        with open(entry, "rb") as file:
            text = bytearray(os.fstat(file.fileno()).st_size)
            if file.readinto(text) != len(text) or len(text) < 16:
                return None
    except FileNotFoundError:
        return None
    view = memoryview(text)
    if struct.unpack("<I", view[-4:])[0] != zlib.crc32(view[:-4]):
        return None
    start = 10 + struct.unpack("<H", view[8:10])[0]
    shape, _, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(text[8:start]))
    return np.frombuffer(text, dtype, count=math.prod(shape), offset=start).reshape(shape)


def _write(path: Path, parts: list[Any]) -> None:
    """All or nothing, whoever else writes the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with open(fd, "wb") as file:
            file.writelines(parts)
        os.chmod(temporary, 0o644)  # mkstemp makes it private; a cache may be shared
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


# ---- many files


@dataclass(frozen=True)
class Scan:
    """What `scan` found.

    Attributes:
        files: how many were looked at.
        arrays: how many arrays are there now, decoded or found in the cache.
        unreadable: one per file and request that failed, with the path as given and the reason.
        damaged: paths of which only a part could be read -> what is wrong.
        seconds: how long it took.
    """

    files: int
    arrays: int
    unreadable: tuple[Unreadable, ...]
    damaged: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def scan(
    paths: Iterable[str | os.PathLike],
    media: Media,
    workers: int = 2,
    frames: Mapping[str, Any] | None = None,
    waveform: Mapping[str, Any] | None = None,
    report: Callable[[int], object] = int,
) -> Scan:
    """Decodes many files into the cache of `media`, `workers` at a time, each in its own decoding process.

    Args:
        frames: arguments of `Media.frames`, e.g. {"n": 8, "size": 224}; None: no frames.
        waveform: arguments of `Media.waveform`, e.g. {}; None: no sound.
        report: called after each file with the number of files that are done, from any thread.

    Raises:
        ValueError: neither frames nor waveform is wanted.
    """
    if frames is None and waveform is None:
        raise ValueError("scan decodes nothing: give frames={...}, waveform={...} or both")
    if frames is not None:
        _checked(**{"n": None, "at": "uniform", "size": None} | dict(frames))
    start = time.perf_counter()
    paths = list(paths)
    calls = [(media.frames, frames)] if frames is not None else []
    calls += [(media.waveform, waveform)] if waveform is not None else []

    waiting: queue.SimpleQueue[tuple[int, str | os.PathLike]] = queue.SimpleQueue()
    for item in enumerate(paths):
        waiting.put(item)
    found: list[tuple[str | None, list[Unreadable]]] = [(None, [])] * len(paths)

    def work() -> None:
        try:
            while True:
                i, path = waiting.get_nowait()
                sha256, failed = None, []
                for call, arguments in calls:
                    try:
                        call(path, **arguments)
                    except Unreadable as e:
                        failed.append(e)
                with contextlib.suppress(Unreadable):
                    sha256 = media._sha256(path)
                found[i] = sha256, failed
                report(len(paths) - waiting.qsize())
        except queue.Empty:
            return
        finally:
            if decoder := getattr(_local, "decoder", None):
                decoder.close()

    with ThreadPoolExecutor(workers) as pool:
        try:
            for done in [pool.submit(work) for _ in range(workers)]:
                done.result()
        except BaseException:  # Ctrl-C, or a mistake: do not go through all the other files first
            with contextlib.suppress(queue.Empty):
                while True:
                    waiting.get_nowait()
            raise
    unreadable = tuple(e for _, failed in found for e in failed)
    reasons = {row["sha256"]: row["reason"] for row in media.damaged}
    damaged = {os.fspath(p): reasons[sha] for p, (sha, _) in zip(paths, found, strict=True) if sha in reasons}
    arrays = len(paths) * len(calls) - len(unreadable)
    return Scan(len(paths), arrays, unreadable, damaged, time.perf_counter() - start)


if __name__ == "__main__":
    serve()
