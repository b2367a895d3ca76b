"""Frames and sound of an utterance: of its own file, or of its part of a longer film.

An utterance (`zoo.schema.Turn`) may be the seconds ``start`` to ``end`` of its file, and of a film of two people the
left or right half of the picture (``crop``).

The half is cut out of the full picture first and resized afterwards, so that what is left has the pixels that were
asked for, whatever the shape of the film is.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms.v2.functional import resize

from zoo.media.cache import Media
from zoo.media.container import Unreadable
from zoo.media.frames import PixelBudget, Position, Size
from zoo.schema import Turn

RATE = 16_000  # Hz
STILL = (".jpg", ".jpeg", ".png", ".webp", ".bmp", "")  # files of one picture, some without an ending


def utterance_key(turn: Turn, path: Path) -> tuple[Hashable, ...]:
    """Return the identity of what `utterance_frames` or `utterance_sound` read of a turn's video or audio file."""
    return str(path), turn.start, turn.end, turn.crop


def content_key(media: Media, turn: Turn, path: Path) -> tuple[Hashable, ...]:
    """Return the identity of `utterance_key` by the bytes of the file, wherever it lies: (sha256, start, end, crop).

    Raises:
        Unreadable: there is no such file.
    """
    try:
        return media.sha256_of(path), turn.start, turn.end, turn.crop
    except Unreadable as error:
        media.report(path, error.reason)
        raise


def utterance_frames(
    media: Media,
    turn: Turn,
    n: int,
    *,
    side: Size = None,
    square: bool = False,
    ends: bool = False,
    middle: float = 1.0,
    rows: tuple[float, float] = (0.0, 1.0),
) -> np.ndarray:
    """Read n frames, evenly spaced over an utterance: those at the centres of n equal parts of it.

    Args:
        media: decoder and cache.
        turn: the utterance; its ``video`` must be given.
        n: how many frames, at least 1.
        side: (height, width) in pixels, whatever the shape of the picture is; or the length of the shorter side with
            the aspect kept; or a budget of pixels, which reduces only what is not cropped; None: as in the file.
        ends: take those from the first frame to the last, of an utterance that is a whole file.
        square: cut each frame to the square in its middle; needs the shorter ``side``.
        middle: share of the utterance around its middle over which the frames are spread.
        rows: share of the height that is kept, from and to, where the picture is cropped to a speaker's half.

    Returns:
        uint8 (n, 3, H, W), RGB.

    Raises:
        Unreadable: the file gives no frame.
        ValueError: the turn has no video.
    """
    if turn.video is None:
        raise ValueError(f"{turn.id} has no clip; expected one, ask for its frames only where there is")
    spread = max(n, round(n / middle))  # parts of the whole utterance, of which the n in the middle are taken
    first = (spread - n) // 2
    decoded_size = side if turn.crop is None else None
    if turn.start is None or turn.end is None:
        position: Position = "ends" if ends else "uniform"
        frames = media.frames(turn.video, n=spread, position=position, size=decoded_size)[first : first + n]
        frames = _speaker_half(frames, turn, rows)
    else:
        begin, end = (turn.start + (turn.end - turn.start) * (part / spread) for part in (first, first + n))
        frames = _speaker_half(media.frames(turn.video, n=n, position=(begin, end), size=decoded_size), turn, rows)
    if turn.crop is not None and side is not None and not isinstance(side, PixelBudget):
        size = [side] if isinstance(side, int) else list(side)
        frames = resize(torch.from_numpy(np.ascontiguousarray(frames)), size, antialias=True).numpy()
    if not square:
        return frames
    top, left = ((length - side) // 2 for length in frames.shape[2:])
    return frames[:, :, top : top + side, left : left + side]


def _speaker_half(frames: np.ndarray, turn: Turn, rows: tuple[float, float]) -> np.ndarray:
    """Cut frames (T, 3, H, W) to the speaker's half and some of its rows, if the turn has one."""
    if turn.crop is None:
        return frames
    height, half = frames.shape[2], frames.shape[3] // 2
    frames = frames[:, :, int(rows[0] * height) : int(rows[1] * height)]
    return frames[..., :half] if turn.crop == "left" else frames[..., half:]


def utterance_sound(media: Media, turn: Turn) -> np.ndarray:
    """Read the sound of an utterance: its own file whole, or its seconds of the film.

    That is the file that shows it, too, or a film without a picture.

    Returns:
        float32 (N,) at 16 kHz, mono.

    Raises:
        Unreadable: the file gives no sound.
        ValueError: the turn has no audio.
    """
    if turn.audio is None:
        raise ValueError(f"{turn.id} has no sound; expected some, ask for it only where there is")
    sound = media.waveform(turn.audio, RATE)
    if turn.video in (None, turn.audio) and turn.start is not None and turn.end is not None:
        part = sound[round(turn.start * RATE) : round(turn.end * RATE)]
        if not len(part):
            reason = f"has {len(sound) / RATE:.2f} s of sound, so none from {turn.start:g} to {turn.end:g} s"
            media.report(turn.audio, reason)
            raise Unreadable(turn.audio, reason)
        return part
    return sound


def middle_of_sound(sound: np.ndarray, max_samples: int) -> tuple[np.ndarray, bool]:
    """Cut sound (N,) to its middle `max_samples`, and tell whether it was longer."""
    start = max(0, (len(sound) - max_samples) // 2)
    return sound[start : start + max_samples], len(sound) > max_samples
