"""Where in a sound somebody speaks, and how loud it is, found by simple rules and without a model.

    voice_activity(waveform, 16_000)     # [(0.21, 1.34), (1.78, 2.6)], in seconds

Ours, and simple on purpose: music with a melody counts as voice, a whisper does not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_dilation, maximum_filter1d

from zoo.media.clips import RATE
from zoo.media.sound import resample
from zoo.media.speech import ACTIVE, FRAME, HOP, REFERENCE, SILENT, pitch

AROUND = 5.0  # seconds on both sides of a frame within which the loudest one says what is quiet there
REACH = 0.15  # seconds around a voiced frame: consonants without voice belong to the speech beside them
GAP = 0.2  # seconds: a shorter gap is a closed mouth, as before a "t", and no pause
SHORTEST = 0.1  # seconds: a shorter sound is no speech
BLOCK = 2000  # frames whose pitch is computed at once, which bounds the memory

Span = tuple[float, float]  # from, to; seconds


class Loudness(NamedTuple):
    """The curve of a sound's loudness.

    Attributes:
        times: (T,) seconds: the middle of each frame of 40 ms, every 10 ms.
        decibels: (T,) level of the frame; the faintest there is has -26 dB (digital silence), a full-scale sine 91 dB.
    """

    times: np.ndarray
    decibels: np.ndarray


def loudness_curve(waveform: np.ndarray, rate: int) -> Loudness:
    """Measure how loud a sound (N,) in [-1, 1] is, every 10 ms; empty for one of under 40 ms.

    Raises:
        ValueError: no waveform in one channel, or no rate.
    """
    frames = _frames(waveform, rate)
    return Loudness((np.arange(len(frames)) * HOP + FRAME / 2) / RATE, _levels(frames))


def voice_activity(waveform: np.ndarray, rate: int) -> list[Span]:
    """Find where in a sound somebody speaks.

    A frame of 40 ms is speech if it is loud enough, over 34 dB and at most 25 dB below the loudest within five seconds,
    and lies within .15 s of a frame with a pitch. Gaps of under .2 s are closed; what then lasts under .1 s is left
    out.

    Args:
        waveform: (N,) in [-1, 1].
        rate: samples per second.

    Returns:
        (from, to) in seconds, rising, exact to about .02 s; empty where nobody speaks.

    Raises:
        ValueError: no waveform in one channel, or no rate.
    """
    frames = _frames(waveform, rate)
    if not len(frames):
        return []
    levels = _levels(frames)
    per_second = RATE / HOP
    nearby = maximum_filter1d(levels, 2 * round(AROUND * per_second) + 1)
    loud = levels > np.maximum(nearby - ACTIVE, SILENT)
    voiced = np.concatenate([_voiced(frames[i : i + BLOCK]) for i in range(0, len(frames), BLOCK)]) & loud
    reached = binary_dilation(voiced, iterations=round(REACH * per_second))
    spans: list[Span] = []
    for start, end in _runs(loud & reached):
        # from the middle of the first frame to that of the last: a frame counts as soon as a part of it is loud
        span = (start * HOP + FRAME / 2) / RATE, ((end - 1) * HOP + FRAME / 2) / RATE
        if spans and span[0] - spans[-1][1] < GAP:
            spans[-1] = spans[-1][0], span[1]
        else:
            spans.append(span)
    return [(start, end) for start, end in spans if end - start >= SHORTEST]


def pauses_between(speech: list[Span]) -> list[Span]:
    """Return what lies between the spans of speech; the silence before the first and after the last is no pause."""
    return [(end, start) for (_, end), (start, _) in zip(speech, speech[1:], strict=False)]


def _frames(waveform: np.ndarray, rate: int) -> np.ndarray:
    """Cut a sound into frames (T, FRAME) at 16 kHz, as views of it."""
    if not isinstance(waveform, np.ndarray) or waveform.ndim != 1:
        got = waveform.shape if isinstance(waveform, np.ndarray) else type(waveform).__name__
        raise ValueError(f"expected a waveform (N,) of one channel, got {got}; take the mean of its channels")
    if rate < 1:
        raise ValueError(f"rate is samples per second, 1 or more; got {rate}")
    sound = waveform.astype(np.float32, copy=False)
    if rate != RATE:
        sound = resample(sound, rate, RATE)
    if len(sound) < FRAME:
        return np.empty((0, FRAME), np.float32)
    return np.lib.stride_tricks.sliding_window_view(sound, FRAME)[::HOP]


def _levels(frames: np.ndarray) -> np.ndarray:
    """Return the level of each frame without its mean, dB (T,)."""
    power = np.concatenate(
        [frames[i : i + BLOCK].astype(np.float64).var(1) for i in range(0, len(frames), BLOCK)] or [np.empty(0)]
    )
    levels: np.ndarray = 10 * np.log10(np.maximum(power, 1e-12) / REFERENCE**2)
    return levels


def _voiced(frames: np.ndarray) -> np.ndarray:
    """Tell which frames (T, FRAME) have a pitch."""
    centred = frames.astype(np.float64)
    hertz: np.ndarray = pitch(centred - centred.mean(1, keepdims=True))
    return hertz > 0


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """Return (first, last + 1) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
