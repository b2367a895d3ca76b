"""How an utterance sounds: loudness, pitch and pace of its waveform, in words by thresholds of a training split.

values = measure(wave)                                  # {"loudness": 68.9, "pitch": 187.0, ...}
bins = fit_bins([(speaker, values), ...], least=30)     # thresholds at the percentiles of training utterances
bins.sentence(speaker, values)                          # "loud voice, even; high pitch, very lively; slow pace"
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import median_filter
from scipy.signal import find_peaks

from zoo.media.clips import RATE

PERCENTILES = (10, 25, 75, 90)
# measure -> its column in a table, and its five words, least first
MEASURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "loudness": ("avg_intensity", ("very quiet", "quiet", "normally loud", "loud", "very loud")),
    "loudness variation": ("intensity_variation", ("very even", "even", "normally even", "uneven", "very uneven")),
    "pitch": ("avg_pitch", ("very low", "low", "medium", "high", "very high")),
    "pitch variation": ("pitch_std", ("very flat", "flat", "normally lively", "lively", "very lively")),
    "rate": ("articulation_rate", ("very slow", "slow", "medium", "fast", "very fast")),
}
FRAME, HOP = 640, 160  # samples: 40 ms every 10 ms at 16 kHz, three periods of the lowest pitch
LOWEST, HIGHEST = 75.0, 500.0  # Hz
VOICED = 0.5  # least periodicity of a voiced frame, 1 = exactly periodic
OCTAVE = 0.02  # periodicity that a candidate gains per octave, so that of two alike the higher pitch is taken
REFERENCE = 2e-5  # level of 0 dB, as Praat counts it
SILENT = 34.0  # dB: an amplitude of a thousandth of full scale
ACTIVE = 25.0  # dB below the loudest frame: what is quieter is a pause
DIP = 2.0  # dB between two syllables
SHORTEST = 0.1  # seconds
LONGEST = 60  # seconds; a longer "utterance" is a mis-cut clip, and what is measured on it describes something else
Values = dict[str, float]  # measure -> value; without what could not be measured


class NotSpeech(ValueError):
    """A waveform on which nothing can be measured; the text says why."""


# -------------------------------------------------------------------------------------------------------- measurements
def measure(wave: np.ndarray) -> Values:
    """Measure one utterance.

    - loudness: dB of the mean power of the frames that are not pauses;
    - loudness variation: standard deviation of their levels, dB;
    - pitch and pitch variation: mean and standard deviation over voiced frames, Hz; absent where nothing is voiced;
    - rate: syllables per second: peaks of the level in voiced frames, `DIP` dB above what lies between.

    Args:
        wave: (N,) float32 at 16 kHz in [-1, 1].

    Raises:
        NotSpeech: too short, too long, or silent.
    """
    seconds = len(wave) / RATE
    if not SHORTEST <= seconds <= LONGEST:
        raise NotSpeech(f"lasts {seconds:.2f} s; expected {SHORTEST} to {LONGEST} s")
    frames = np.lib.stride_tricks.sliding_window_view(wave.astype(np.float64), FRAME)[::HOP]  # (T, FRAME)
    frames = frames - frames.mean(1, keepdims=True)
    power = (frames**2).mean(1)
    level = 10 * np.log10(np.maximum(power, 1e-12) / REFERENCE**2)  # (T,)
    if level.max() < SILENT:
        raise NotSpeech(f"is silent: {level.max():.0f} dB at its loudest, expected {SILENT:.0f} dB or more")
    active = level > max(level.max() - ACTIVE, SILENT)
    values = {
        "loudness": float(10 * np.log10(power[active].mean() / REFERENCE**2)),
        "loudness variation": float(level[active].std()),
    }
    hertz = np.where(active, pitch(frames), 0.0)
    voiced = hertz > 0
    if voiced.sum() < 3:
        return values
    values |= {"pitch": float(hertz[voiced].mean()), "pitch variation": float(hertz[voiced].std())}
    smooth = np.convolve(np.pad(level, 2, mode="edge"), np.full(5, 0.2), "valid")  # over 50 ms
    edged = np.concatenate([[level.min() - DIP], smooth, [level.min() - DIP]])  # a syllable may stand at the very end
    peaks = find_peaks(edged, prominence=DIP)[0] - 1
    return values | {"rate": float(voiced[peaks].sum() / seconds)}


def pitch(frames: np.ndarray) -> np.ndarray:
    """Return the pitch of each frame (T, FRAME) in Hz, 0 where it is not voiced.

    The lag of the largest autocorrelation of the windowed frame over that of the window (Boersma 1993), between
    `LOWEST` and `HIGHEST`; then a median over five frames, against jumps of an octave.
    """
    window = np.hanning(FRAME)
    size = 2 * FRAME
    window_auto = np.fft.irfft(np.abs(np.fft.rfft(window, size)) ** 2)
    first, last = int(RATE / HIGHEST), int(RATE / LOWEST) + 1
    spectrum = np.abs(np.fft.rfft(frames * window, size)) ** 2
    auto = np.fft.irfft(spectrum)[:, : last + 2] / window_auto[: last + 2]
    auto = auto / np.maximum(auto[:, :1], 1e-12)  # (T, lags)
    middle = auto[:, first - 1 : last + 2]
    lags = np.arange(first, last + 1)
    peak = (middle[:, 1:-1] >= middle[:, :-2]) & (middle[:, 1:-1] > middle[:, 2:])
    score = np.where(peak, middle[:, 1:-1] - OCTAVE * np.log2(lags / first), -1.0)
    best = score.argmax(1)
    rows = np.arange(len(frames))
    left, top, right = (middle[rows, best + i] for i in range(3))
    bend = left - 2 * top + right
    shift = np.where(bend < 0, 0.5 * (left - right) / np.where(bend < 0, bend, -1.0), 0.0)  # of a parabola's vertex
    voiced = (score[rows, best] > -1) & (top > VOICED)
    hertz = np.where(voiced, RATE / (lags[best] + shift), 0.0)
    return np.where(voiced, median_filter(hertz, 5, mode="nearest"), 0.0)


# ----------------------------------------------------------------------------------------------------------------- bins
@dataclass(frozen=True)
class Bins:
    """Thresholds of the training split.

    Attributes:
        overall: measure -> its four thresholds over all utterances.
        speakers: speaker -> the same over their own, for those measures of which they have enough.
        n: measure -> training utterances behind ``overall``.
        spoken: speaker -> measure -> training utterances behind theirs.
    """

    overall: Mapping[str, tuple[float, ...]]
    speakers: Mapping[str, Mapping[str, tuple[float, ...]]]
    n: Mapping[str, int]
    spoken: Mapping[str, Mapping[str, int]]

    def level(self, speaker: str, name: str, value: float) -> int:
        """Return which of the five parts a value falls into, 0 (least) to 4; on a threshold it is in the middle."""
        a, b, c, d = self.speakers.get(speaker, {}).get(name, self.overall[name])
        return int(value >= a) + int(value >= b) + int(value > c) + int(value > d)

    def word(self, speaker: str, name: str, value: float) -> str:
        """Return one of five words, see `level`."""
        return MEASURES[name][1][self.level(speaker, name, value)]

    def sentence(self, speaker: str, values: Values) -> str:
        """Return a description: ``loud voice, even; high pitch, very lively; slow``, without what was not measured."""
        words = {name: self.word(speaker, name, v) for name, v in values.items() if name in self.overall}
        parts = [
            ", ".join(f"{words[name]}{noun}" for name, noun in pair if name in words)
            for pair in (
                (("loudness", " voice"), ("loudness variation", "")),
                (("pitch", " pitch"), ("pitch variation", "")),
                (("rate", " pace"),),
            )
        ]
        return "; ".join(part for part in parts if part)


def fit_bins(measured: Sequence[tuple[str, Values]], least: int) -> Bins:
    """Compute thresholds from (speaker, values) of the training utterances.

    Args:
        least: a speaker with fewer values of a measure is binned by the thresholds of all.

    Raises:
        ValueError: no training utterance was measured.
    """
    if not measured:
        raise ValueError(
            "no training utterance could be measured, so there are no thresholds; are the clips of the "
            "training split, or its rows of the table, there?"
        )
    everyone: dict[str, list[float]] = defaultdict(list)
    by_speaker: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for speaker, values in measured:
        for name, value in values.items():
            everyone[name].append(value)
            if speaker:
                by_speaker[speaker][name].append(value)

    def thresholds(values: list[float]) -> tuple[float, ...]:
        return tuple(np.percentile(values, PERCENTILES).tolist())

    enough = {
        speaker: sufficient
        for speaker, measures in sorted(by_speaker.items())
        if (sufficient := {name: v for name, v in measures.items() if len(v) >= least})
    }
    return Bins(
        overall={name: thresholds(v) for name, v in everyone.items()},
        speakers={s: {name: thresholds(v) for name, v in measures.items()} for s, measures in enough.items()},
        n={name: len(v) for name, v in everyone.items()},
        spoken={s: {name: len(v) for name, v in measures.items()} for s, measures in enough.items()},
    )
