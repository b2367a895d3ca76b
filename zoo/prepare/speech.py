"""``zoo prepare speech``: how every utterance sounds, in words, measured on its waveform; no model is asked.

    zoo prepare speech --data MELD --data.root DIR --out OUT
    zoo fit ... --data.descriptions '[OUT]' --model.descriptions '[speech]'

Measured (`measure`) are loudness and how much it varies, pitch and how much it varies, and the rate of syllables. Each
becomes one of five words by thresholds at the 10th, 25th, 75th and 90th percentile of the *training* split: of the
speaker's own utterances there, where these are enough, else of all. The idea is that of SpeechCueLLM (Wu et al. 2024),
the measurement and the words are ours.

In OUT lie ``speech_description_{split}.json``; ``speech_bins.json`` with the thresholds, the counts, and every
utterance that has no description, with the reason; and ``speech_features.csv``, the measurements. Such a table can be
given instead of clips (``--features``), where clips may not be had.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jsonargparse import ArgumentParser
from scipy.ndimage import median_filter
from scipy.signal import find_peaks

from zoo.data import EmotionData
from zoo.data.descriptions import MAX_SECONDS
from zoo.data.text import drop_repeats, read_table, some
from zoo.media import MAX_SECONDS as MAX_CLIP_SECONDS
from zoo.media import Media, Unreadable
from zoo.media.clips import RATE, utterance_sound
from zoo.prepare.answer_store import map_in_order
from zoo.prepare.captions import utterances
from zoo.schema import Turn
from zoo.storage import write_whole

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
    if not SHORTEST <= seconds <= MAX_SECONDS:
        raise NotSpeech(f"lasts {seconds:.2f} s; expected {SHORTEST} to {MAX_SECONDS} s")
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

    def word(self, speaker: str, name: str, value: float) -> str:
        """Return one of five words; a value on a threshold belongs to the middle."""
        a, b, c, d = self.speakers.get(speaker, {}).get(name, self.overall[name])
        return MEASURES[name][1][int(value >= a) + int(value >= b) + int(value > c) + int(value > d)]

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


# ------------------------------------------------------------------------------------------------ where values are from
def from_clips(
    turns: Sequence[Turn], media: Media, workers: int = 1
) -> tuple[dict[str, Values], dict[str, str], dict[str, float]]:
    """Measure the clips of utterances.

    Returns:
        key -> values; key -> why there are none; key -> seconds.
    """

    def measure_turn(turn: Turn) -> tuple[Values | str, float]:
        if turn.audio is None:
            return "no clip", 0.0
        try:
            wave = utterance_sound(media, turn)
            return measure(wave), len(wave) / RATE
        except Unreadable as error:
            return error.reason, 0.0
        except NotSpeech as error:
            return str(error), 0.0

    measured, left_out, seconds = {}, {}, {}
    for turn, (outcome, duration) in zip(turns, map_in_order(measure_turn, turns, workers, "measured"), strict=True):
        if isinstance(outcome, str):
            left_out[turn.id] = outcome
        else:
            measured[turn.id], seconds[turn.id] = outcome, duration
    return measured, left_out, seconds


def from_table(
    table: pd.DataFrame, split: str, turns: Sequence[Turn], path: Path
) -> tuple[dict[str, Values], dict[str, str]]:
    """Read the values of one split in a table of measurements; an empty cell, or nan, was not measured.

    Returns:
        key -> values; key -> why there are none.

    Raises:
        ValueError: a cell that is no number, a key twice, or keys of another corpus.
    """
    rows = table[table["split"] == split].rename(columns={"id": "key"})
    rows, _ = drop_repeats(rows, path)
    keys = {turn.id for turn in turns}
    unknown = [key for key in rows["key"] if key not in keys]
    if len(unknown) > 0.01 * len(rows):
        raise ValueError(
            f"{path}: {len(unknown)} of {len(rows)} keys are not in the corpus' {split} split ({some(unknown)}); "
            f"expected keys like {some(sorted(keys), 2)}. Give the table made for this corpus"
        )
    numbers = {}
    for column in ("duration", *(column for column, _ in MEASURES.values())):
        cells = rows[column].str.strip().replace({"": "nan", "--undefined--": "nan"})
        numbers[column] = pd.to_numeric(cells, errors="coerce")
        if (bad := numbers[column].isna() & (cells.str.lower() != "nan")).any():
            raise ValueError(
                f"{path} row {bad.idxmax()}: {column} is {rows[column][bad.idxmax()]!r}; expected a number "
                "like 68.9, or nothing. Correct the cell"
            )
    measured, left_out = {}, dict.fromkeys(sorted(keys - set(rows["key"])), f"no row in {path.name}")
    for row in rows.index[rows["key"].isin(keys)]:
        key, seconds = rows["key"][row], numbers["duration"][row]
        values = {
            name: float(numbers[column][row])
            for name, (column, _) in MEASURES.items()
            if math.isfinite(numbers[column][row])
        }
        if "pitch" not in values:  # some tables say 0 then
            values.pop("pitch variation", None)
        if seconds > MAX_SECONDS:
            left_out[key] = f"lasts {seconds:.2f} s; expected up to {MAX_SECONDS} s"
        elif not values:
            left_out[key] = f"nothing measured in {path.name}"
        else:
            measured[key] = values
    return measured, left_out


# ---------------------------------------------------------------------------------------------------------- the command
def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "zoo prepare speech",
        usage="zoo prepare speech --data NAME --data.root DIR --out DIR [options]",
        description="Descriptions of voices from their measured loudness, pitch and pace, in the files that "
        "--data.descriptions reads. Thresholds come from the training split alone.",
    )
    add = parser.add_argument
    parser.add_subclass_arguments(EmotionData, "data", required=True, help="a corpus, as of `zoo fit`")
    add("--out", type=Path, required=True, help="folder of the descriptions, the thresholds and the measurements")
    add(
        "--features",
        type=Path,
        help="a table of measurements instead of clips: CSV with the columns split, id, duration, "
        + ", ".join(column for column, _ in MEASURES.values()),
    )
    add("--least", type=int, default=30, help="training utterances a speaker needs for thresholds of their own")
    add("--cache", type=Path, help="folder of the decoded clips; none if not given")
    add("--timeout", "--clip_timeout", type=float, default=30.0, help="seconds one clip may take to decode")
    add("--max_clip_seconds", type=float, default=MAX_CLIP_SECONDS, help="a longer clip is left out, and listed")
    add("--workers", type=int, default=1, help="clips at once")
    return parser


def main(args: list[str]) -> None:
    """Run ``zoo prepare speech``."""
    parser = _parser()
    options = parser.parse_args(args)
    for name in ("least", "workers"):
        if options[name] < 1:
            raise ValueError(f"--{name} is 1 or more, got {options[name]}")
    data = parser.instantiate(options).data
    if "train" not in data.splits():
        raise ValueError(f"{type(data).__name__} has no training split; thresholds are fitted there and nowhere else")
    turns = {split: utterances(data.samples(split)) for split in data.splits()}
    table = None
    if options.features is not None:
        columns = ("split", "id", "duration", *(column for column, _ in MEASURES.values()))
        table = read_table(options.features, columns)
    media = Media(options.cache, options.timeout, options.max_clip_seconds)
    measured: dict[str, dict[str, Values]] = {}
    left_out: dict[str, dict[str, str]] = {}
    rows: list[dict[str, Any]] = []
    for split, split_turns in turns.items():
        if table is not None:
            measured[split], left_out[split] = from_table(table, split, split_turns, options.features)
            continue
        measured[split], left_out[split], seconds = from_clips(split_turns, media, options.workers)
        rows += [
            {"split": split, "id": key, "duration": f"{seconds[key]:.4f}"}
            | {column: f"{values[name]:.4f}" if name in values else "" for name, (column, _) in MEASURES.items()}
            for key, values in measured[split].items()
        ]
    write(options.out, turns, measured, left_out, options.least, rows)


def write(
    out: Path,
    turns: Mapping[str, Sequence[Turn]],
    measured: Mapping[str, Mapping[str, Values]],
    left_out: Mapping[str, Mapping[str, str]],
    least: int,
    rows: Sequence[Mapping[str, Any]] = (),
) -> Bins:
    """Fit the thresholds on the training split, write the files and print what is in them.

    Args:
        turns, measured, left_out: of every split.
        rows: of ``speech_features.csv``; not written without any.
    """
    speakers = {split: {turn.id: turn.speaker.strip() for turn in split_turns} for split, split_turns in turns.items()}
    bins = fit_bins([(speakers["train"][key], values) for key, values in measured["train"].items()], least)
    out.mkdir(parents=True, exist_ok=True)
    counts = {}
    for split, split_values in measured.items():
        texts = {key: bins.sentence(speakers[split][key], values) for key, values in split_values.items()}
        path = out / f"speech_description_{split}.json"
        write_whole(path, json.dumps(texts, ensure_ascii=False, indent=0) + "\n")
        lacking = Counter(
            f"without {name}" for values in split_values.values() for name in MEASURES if name not in values
        )
        counts[split] = {
            "utterances": len(turns[split]),
            "used": len(split_values),
            "left out": len(left_out[split]),
            **lacking,
        }
        print(f"{path}: {', '.join(f'{n} {what}' for what, n in counts[split].items())}")
    record = {
        "fitted on": "train",
        "percentiles": PERCENTILES,
        "least utterances of a speaker": least,
        "words": {name: words for name, (_, words) in MEASURES.items()},
        "all": {name: {"n": bins.n[name], "thresholds": t} for name, t in bins.overall.items()},
        "speakers": {
            speaker: {name: {"n": bins.spoken[speaker][name], "thresholds": t} for name, t in measures.items()}
            for speaker, measures in bins.speakers.items()
        },
        "counts": counts,
        "left out": left_out,
    }
    write_whole(out / "speech_bins.json", json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    if rows:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(out / "speech_features.csv", text.getvalue())
    if missing := Counter(reason for reasons_by_key in left_out.values() for reason in reasons_by_key.values()):
        reasons = "; ".join(f"{n} {reason}" for reason, n in missing.most_common(5))
        print(f"left out, each named in {out / 'speech_bins.json'}: {reasons}")
    return bins
