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
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jsonargparse import ArgumentParser

from zoo.data import EmotionData
from zoo.data.text import drop_repeats, read_table, some
from zoo.media import MAX_SECONDS as MAX_CLIP_SECONDS
from zoo.media import Media, Unreadable
from zoo.media.clips import RATE, utterance_sound
from zoo.media.speech import LONGEST, MEASURES, PERCENTILES, Bins, NotSpeech, Values, fit_bins, measure
from zoo.prepare.answer_store import map_in_order
from zoo.prepare.captions import utterances
from zoo.schema import Turn
from zoo.storage import write_whole


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
        if seconds > LONGEST:
            left_out[key] = f"lasts {seconds:.2f} s; expected up to {LONGEST} s"
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
