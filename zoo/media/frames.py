"""Frames of clips and pictures: which one is shown when, upright, in RGB, resized.

Imported by the decoding process, which must start fast: no torch, and nothing of the zoo.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from PIL import Image, ImageOps, WebPImagePlugin  # noqa: F401  (the last registers WebP)

from zoo.media.container import (
    MAX_PIXELS,
    MAX_SECONDS,
    Unreadable,
    check_seconds,
    clip_start,
    cut_note,
    decode_stream,
    first_stream,
    missing_bytes,
    open_container,
    open_file,
    promised_seconds,
)

MAX_BYTES = 512 * 2**20  # of the frames one call returns
PICTURE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # and RIFF....WEBP

LONGEST = 200  # times longer than wide: no budget fits more


class PixelBudget(NamedTuple):
    """A size by area, at nearly the picture's own proportions, as Qwen2-VL's processors choose it.

    Args:
        factor: both sides become multiples of it.
        least, most: pixels; a side that would be shorter than ``factor`` becomes that long, which can exceed them.
    """

    factor: int
    least: int
    most: int

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) for a picture of this size."""
        h, w = (round(side / self.factor) * self.factor for side in (height, width))
        if h * w > self.most:
            shrink = math.sqrt(height * width / self.most)
            h, w = (max(self.factor, math.floor(side / shrink / self.factor) * self.factor) for side in (height, width))
        elif h * w < self.least:
            grow = math.sqrt(self.least / (height * width))
            h, w = (math.ceil(side * grow / self.factor) * self.factor for side in (height, width))
        return h, w

    def reduced(self, height: int, width: int) -> tuple[int, int]:
        """Return the size if it has at most half of the picture's pixels, else the picture's own.

        What gains little is left to whoever prepares the picture, and so is a size that would be reduced once more.
        """
        if max(height, width) > LONGEST * min(height, width):
            return height, width
        smaller = self.size(height, width)
        halved = 2 * math.prod(smaller) <= height * width and self.size(*smaller) == smaller
        return smaller if halved else (height, width)


Position = Literal["uniform", "ends", "middle"] | float | tuple[float, float]
Size = int | tuple[int, int] | PixelBudget | None


def read_frames(
    path: str | os.PathLike[str],
    n: int | None = None,
    position: Position = "uniform",
    size: Size = None,
    *,
    max_seconds: float = MAX_SECONDS,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decode frames of a clip or a picture in this process, without a time limit.

    Args:
        n: how many frames, spread over the clip: those shown at the centres of n equal parts. A clip with fewer frames
            than n repeats them. None: every frame; one that cannot be decoded is replaced by the one before it.
        position: "uniform" as above; "ends": the n frames whose numbers go from the first to the last in equal steps,
            rounded; "middle": the one frame shown at half time; a time in seconds: the one frame
            shown then (the first before the clip starts, the last after it ends); or two times: the n frames are
            spread over that part of the clip.
        size: (height, width), or the length of the shorter side with the aspect kept; None: as in the file. With a
            budget of pixels only frames of more than `MAX_BYTES` are reduced; `zoo.media.Media` reduces the others.
        max_seconds: a longer clip is refused.
        max_pixels: a larger picture is refused before it is decoded.

    Returns:
        uint8 (T, 3, H, W), RGB; T is 1 for "middle" or a time.

    Raises:
        Unreadable: the file gives no frame, or more than the limits allow.
        ValueError: n, position or size make no sense.
    """
    n, position, size = normalize_request(n, position, size)
    return decode_frames(path, n, position, size, max_seconds, max_pixels)[0]


def normalize_request(n: int | None, position: Position, size: Size) -> tuple[int | None, Position, Size]:
    """Check a request and return its one spelling, so that equal requests share a cache entry.

    Raises:
        ValueError: n, position or size make no sense.
    """
    if n is not None and (isinstance(n, bool) or int(n) != n or n < 1):
        raise ValueError(f"n is the number of frames, 1 or more, or None for all; got {n!r}")
    if position == "middle":
        n, position = 1, "uniform"  # the centre of one part
    if isinstance(position, tuple):
        start, end = position
        if not (math.isfinite(end) and 0 <= start < end) or n is None:
            raise ValueError(f"a part of a clip needs n, and two times in seconds, 0 <= from < to; got {n}, {position}")
        position = float(start), float(end)
    elif position == "ends":
        if n is None:
            raise ValueError("position='ends' needs n, the number of frames from the first to the last; got None")
    elif position != "uniform":
        if isinstance(position, str | bool) or not (math.isfinite(position) and position >= 0):
            raise ValueError(
                f"position is 'uniform', 'ends', 'middle' or a time in seconds, 0 or more; got {position!r}"
            )
        if n not in (None, 1):
            raise ValueError(f"position={position!r} is one frame, but n={n}; leave n out")
        n, position = 1, float(position)
    return (None if n is None else int(n)), position, _normalize_size(size)


def _normalize_size(size: Size) -> Size:
    """Return a size in whole pixels. ValueError if it is none."""
    if size is None:
        return None
    if isinstance(size, PixelBudget):
        if not 0 < size.least <= size.most or size.factor < 1 or size.factor**2 > size.most:
            raise ValueError(
                f"a budget is a factor, and pixels from least to most with room for its square; got {size}"
            )
        return size
    sides = (size,) if isinstance(size, int) else tuple(size)
    if not (len(sides) <= 2 and all(int(side) == side and side >= 1 for side in sides)):
        raise ValueError(f"size is (height, width) or the shorter side, in pixels; got {size!r}")
    return int(size) if isinstance(size, int) else (int(sides[0]), int(sides[1]))


class _TimesOutOfOrder(Exception):
    """Raised where time stamps do not rise with the frames.

    AVI files store none, and those that FFmpeg makes up for B-frames are wrong.
    """


def decode_frames(
    path: str | os.PathLike[str], n: int | None, position: Position, size: Size, max_seconds: float, max_pixels: int
) -> tuple[np.ndarray, str | None]:
    """Decode as `read_frames`, and describe what is wrong with a file that could be read; None for nothing."""
    with open_file(path) as fd:
        head = os.pread(fd, 16, 0)
        if head.startswith(PICTURE_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
            picture = _resize(path, read_picture(path, fd, max_pixels), size, Fraction(1), count=n or 1)
            return np.repeat(_channels_first(picture)[None], n or 1, axis=0), None

        with open_container(fd) as container:
            stream = first_stream(path, container, "video")
            check_pixels(path, stream.codec_context.width, stream.codec_context.height, max_pixels)
            times, step, torn = read_timeline(path, container, stream, max_seconds)
            targets = _times_wanted(n, position, times, step, clip_start(container), stream.time_base)
            decoded = float((times[-1] + step * (not torn) - times[0]) * stream.time_base)
            torn = torn or missing_bytes(fd) > 0
            frame = float(step * stream.time_base)
            note = cut_note(decoded, promised_seconds(container, stream), torn, max(2 * frame, 0.05), "video")

        for by_order in (False, True):
            lost = [0]
            with open_container(fd) as container:
                stream = first_stream(path, container, "video")
                # against a size that grows half-way; FFmpeg counts padded lines, so it gets room
                stream.codec_context.options = {"max_pixels": str(2 * max_pixels + 2**16)}
                try:
                    frames = _decode_shown(path, container, stream, times, step, targets, size, by_order, lost)
                except _TimesOutOfOrder:
                    continue
            break
        if frames is None:
            raise Unreadable(path, "has a video stream of which no frame decodes; replace or convert it")
        return frames, note or (f"damaged: {lost[0]} of {len(times)} frames" if lost[0] else None)


def _times_wanted(
    n: int | None, position: Position, times: list[int], step: int, begin: Fraction, tick: Fraction
) -> list[float]:
    """Return the times, in ticks, at which frames are wanted.

    Args:
        times: when each frame is shown, in ticks.
        step: ticks of a frame.
        begin: where the clip starts, in seconds.
        tick: in seconds.
    """
    if position == "ends":
        return [float(times[i]) for i in np.linspace(0, len(times) - 1, n or 1).round().astype(int)]
    if position != "uniform":  # + half a tick: a frame's own time, rounded, means that frame
        return [float((begin + Fraction(t)) / tick) + 0.5 for t in _seconds_of(position, n or 1)]
    if n is None:
        return [float(t) for t in times]
    span = times[-1] + step - times[0]
    return [times[0] + (i + 0.5) / n * span for i in range(n)]


def _seconds_of(position: Position, n: int) -> list[float]:
    """Return the one time of a position, or those at the centres of the n equal parts of a part of the clip."""
    if not isinstance(position, tuple | list):
        return [float(position)]
    start, end = position  # a list after its way to the decoding process
    return [start + (end - start) * ((i + 0.5) / n) for i in range(n)]


def check_pixels(path: str | os.PathLike[str], width: int, height: int, max_pixels: int) -> None:
    """Raise Unreadable for a picture larger than the limit."""
    if width * height > max_pixels:
        raise Unreadable(
            path,
            f"has pictures of {width}x{height}, over the limit of {max_pixels / 1e6:.1f} million pixels; scale it down",
        )


def read_timeline(
    path: str | os.PathLike[str], container: av.container.InputContainer, stream: Any, max_seconds: float
) -> tuple[list[int], int, bool]:
    """Read when each frame is shown, from packets and without decoding.

    The header's duration and frame count are not trusted.

    Returns:
        presentation times of all frames, rising, in ticks of the stream's time base; how many ticks the last one is
        shown; and whether the file ends inside a frame.
    """
    torn = False
    times: list[int | None] = []
    durations: dict[int | None, int] = {}
    tick = float(stream.time_base)
    with contextlib.suppress(av.FFmpegError):  # what was read so far is used
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                times.append(packet.pts)
                durations[packet.pts] = packet.duration or 0
                torn = packet.is_corrupt
                if len(times) > 1 and packet.pts is not None and times[0] is not None:
                    check_seconds(path, (packet.pts - times[0]) * tick, max_seconds)
    if not times:
        raise Unreadable(path, "has a video stream without frames; replace or convert it")
    rate = stream.average_rate or stream.guessed_rate or 25
    step = max(round(1 / (rate * stream.time_base)), 1)
    rising = sorted(time for time in times if time is not None)
    if len(rising) < len(times):  # bare streams carry no times
        rising = [i * step for i in range(len(times))]
        check_seconds(path, rising[-1] * tick, max_seconds)
    return rising, durations.get(rising[-1]) or step, torn


def _decode_shown(
    path: str | os.PathLike[str],
    container: av.container.InputContainer,
    stream: Any,
    times: list[int],
    step: int,
    targets: list[float],
    size: Size,
    by_order: bool,
    lost: list[int],
) -> np.ndarray | None:
    """Decode the frames shown at the targets: of each the last frame that starts at or before it.

    Args:
        times: presentation times of all frames, rising, in ticks.
        step: ticks between two frames.
        targets: rising times, in ticks.
        by_order: the k-th frame belongs to the k-th time, whatever its own time stamp says.
        lost: lost[0] counts packets that do not decode.

    Returns:
        uint8 (len(targets), 3, H, W); None if no frame decodes.
    """
    convert = av.video.reformatter.VideoReformatter()
    out: np.ndarray | None = None
    filled = 0

    def fill(until: int, frame: av.VideoFrame) -> None:
        nonlocal out, filled
        if until == filled:
            return
        picture = convert.reformat(frame, format="rgb24").to_ndarray()
        picture, ratio = _turn_upright(picture, frame, stream.sample_aspect_ratio)
        like = size if out is None else out.shape[2:]  # a size that changes half-way: as the first
        picture = _resize(path, picture, like, ratio, count=len(targets))
        if out is None:
            out = np.empty((len(targets), 3, *picture.shape[:2]), np.uint8)
        out[filled:until] = _channels_first(picture)
        filled = until

    current, now = None, 0
    for k, frame in enumerate(decode_stream(container, stream, lost)):
        if by_order:
            starts = times[k] if k < len(times) else times[-1] + (k - len(times) + 1) * step
        else:
            starts = frame.pts
            if starts is None or (current is not None and starts <= now):
                raise _TimesOutOfOrder
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


def _turn_upright(picture: np.ndarray, frame: av.VideoFrame, pixel: Fraction | None) -> tuple[np.ndarray, Fraction]:
    """Turn and mirror a picture (H, W, 3) as the display matrix says, in right angles.

    Returns:
        the picture, and width / height of its pixels.
    """
    pixel = pixel if pixel and Fraction(1, 10) < pixel < 10 else Fraction(1)  # beyond: a broken header
    matrix = frame.side_data.get(SideData.DISPLAYMATRIX)  # type: ignore[call-overload]  # its stub wants a str
    if matrix is None:
        return picture, pixel
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))  # x' = a x + c y, y' = b x + d y
    if abs(b) > abs(a):
        picture, pixel, across, down = picture.swapaxes(0, 1), 1 / pixel, c, b
    else:
        across, down = a, d
    return picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1], pixel


def read_picture(path: str | os.PathLike[str], fd: int, max_pixels: int) -> np.ndarray:
    """Read a picture file as uint8 (H, W, 3)."""
    os.lseek(fd, 0, os.SEEK_SET)
    with open(os.dup(fd), "rb") as file, Image.open(file, formats=("JPEG", "PNG", "WEBP")) as picture:
        check_pixels(path, picture.width, picture.height, max_pixels)
        image = ImageOps.exif_transpose(picture)
        if image.mode.startswith("I"):  # 16-bit grey: convert would clip it to white
            image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
        return np.asarray(image.convert("RGB"))


def _resize(path: str | os.PathLike[str], picture: np.ndarray, size: Size, pixel: Fraction, count: int) -> np.ndarray:
    """Resize a picture (H, W, 3) as asked for. Unreadable if `count` such pictures were too many bytes."""
    height, width = picture.shape[0], max(round(picture.shape[1] * pixel), 1)
    if isinstance(size, int):  # as torchvision's Resize
        short = min(height, width)
        height, width = height * size // short, width * size // short
    elif size is not None and len(size) == 3:  # a budget, as it comes out of JSON
        if count * 3 * height * width > MAX_BYTES:
            height, width = PixelBudget(*size).reduced(height, width)
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


def _channels_first(picture: np.ndarray) -> np.ndarray:
    """Turn (H, W, 3) into (3, H, W)."""
    return picture.transpose(2, 0, 1)
