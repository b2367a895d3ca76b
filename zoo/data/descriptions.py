"""Descriptions of utterances (captions, measured speech, stage directions), joined to a corpus by key."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from zoo.data.text import clean_text, drop_repeats, read_table, read_text, some
from zoo.media.speech import LONGEST

JSON_NAME = re.compile(r"([a-z0-9_]+)_description(?:_(train|dev|test))?\.json")
SPEECH_NAME = "meld_audio_features.csv"
STAGE_NAME = "meld_stage_directions.jsonl"
EXPECTED = (
    f"{{kind}}_description_{{train,dev,test}}.json (kind: audio, video or another lower-case word), "
    f"{{kind}}_description.json where the keys of all splits differ, {SPEECH_NAME}, "
    f"{STAGE_NAME}, or a folder that holds such files"
)
JSON_EXAMPLE = '{"dia0_utt0": "a calm voice"}'
STAGE_EXAMPLE = '{"split": "train", "id": "dia0_utt0", "scene": "[Scene: a hall]", "before": ["(knocks)"], "after": []}'
MAX_UNKNOWN = 0.01  # a larger share of unknown keys means the file belongs to another corpus


def load_descriptions(
    paths: Sequence[Path], split: str, keys: Collection[str], encoding: str | Sequence[str] = ()
) -> tuple[dict[str, dict[str, str]], dict[str, int]]:
    """Descriptions of one split.

    Kinds: the first word of a JSON file's name; ``speech`` from the measured-speech CSV; ``stage`` (the utterance's own
    notes) and ``scene`` (the scene heading, given again with every line of the scene) from the stage directions.

    Args:
        paths: files, or folders of which every recognised file is taken. JSON files of other splits are skipped.
        split: train, dev or test.
        keys: all keys of the split in the corpus, e.g. ``dia0_utt0``.
        encoding: of the files, see `zoo.data.text.read_text`.

    Returns:
        key -> {kind: text} and the counted facts. A missing or empty description has no entry.
    """
    notes: Counter[str] = Counter()
    by_key: dict[str, dict[str, str]] = defaultdict(dict)
    sources: dict[str, Path | None] = {}  # kind -> its file for this split
    keys = set(keys)
    for path in _files(paths):
        file_split, kinds = _recognise(path)
        for kind in kinds:
            sources.setdefault(kind, None)
        if file_split not in (None, split):
            continue
        for kind in kinds:
            if sources[kind] is not None:
                raise ValueError(
                    f"both {sources[kind]} and {path} give {kind!r} descriptions; expected one file. Leave one out"
                )
            sources[kind] = path
        read = {SPEECH_NAME: _read_speech, STAGE_NAME: _read_stage}.get(path.name, _read_json)
        table, repeats = drop_repeats(read(path, split, notes, encoding), path)
        notes[f"{path.name}: rows repeated, left out"] += len(repeats)
        unknown = [key for key in table["key"] if key not in keys]
        of_all_splits = file_split is None and JSON_NAME.fullmatch(path.name) is not None
        if len(unknown) > (len(table) - 1 if of_all_splits else MAX_UNKNOWN * len(table)):
            raise ValueError(
                f"{path}: {len(unknown)} of {len(table)} keys are not in the corpus' {split} split ({some(unknown)}); "
                f"expected keys like {some(sorted(keys), 2)}. Give the file made for this corpus and split"
            )
        what = "of other splits or unknown" if of_all_splits else "not in the corpus"
        notes[f"{path.name}: keys {what}, left out"] += len(unknown)
        for key, *texts in table[["key", *kinds]].itertuples(index=False):
            if key in keys:
                by_key[key] |= {kind: text for kind, raw in zip(kinds, texts, strict=True) if (text := clean_text(raw))}
    for kind in sources:
        notes[f"{kind} descriptions missing"] = sum(kind not in by_key.get(key, {}) for key in keys)
    return dict(by_key), dict(notes)


def _files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            named = (SPEECH_NAME, STAGE_NAME)
            inside = [p for p in sorted(path.iterdir()) if p.name in named or JSON_NAME.fullmatch(p.name)]
            if not inside:
                raise FileNotFoundError(f"the descriptions folder {path} has no description file; expected {EXPECTED}")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(
                f"the descriptions file {path} does not exist; expected {EXPECTED}. Correct --data.descriptions"
            )
    return list(dict.fromkeys(path.absolute() for path in files))


def _recognise(path: Path) -> tuple[str | None, tuple[str, ...]]:
    """Return the one split a file is for (None: it names the split in every row) and the kinds it gives."""
    if path.name == SPEECH_NAME:
        return None, ("speech",)
    if path.name == STAGE_NAME:
        return None, ("stage", "scene")
    if match := JSON_NAME.fullmatch(path.name):
        return match[2], (match[1],)
    raise ValueError(
        f"the descriptions file {path} has a name that says neither kind nor split; expected {EXPECTED}. Rename it"
    )


def _read_json(path: Path, split: str, notes: Counter[str], encoding: str | Sequence[str]) -> pd.DataFrame:
    """Read one object, as ``JSON_EXAMPLE``."""
    text, more = read_text(path, encoding)
    notes.update(more)
    try:  # pairs, not a dict: that would keep the last of two equal keys without a word
        pairs = json.loads(text, object_pairs_hook=tuple)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}; expected {JSON_EXAMPLE}. Write it again") from None
    if not isinstance(pairs, tuple):
        raise ValueError(f"{path} holds a {type(pairs).__name__}; expected one object, {JSON_EXAMPLE}. Write it again")
    for key, value in pairs:
        if not isinstance(value, str):
            raise ValueError(
                f"{path}: the value of {key} is {value!r}; expected a text. Leave the key out if there is none"
            )
    match = JSON_NAME.fullmatch(path.name)
    kind = match[1] if match else path.stem
    return pd.DataFrame(list(pairs), columns=["key", kind], dtype=str)


def _read_speech(path: Path, split: str, notes: Counter[str], encoding: str | Sequence[str]) -> pd.DataFrame:
    """``train,dia0_utt0,5.69,...,"high volume, low pitch"``; descriptions measured on a mis-cut clip are emptied."""
    table = read_table(path, ("split", "id", "duration", "description"), encoding=encoding)
    notes.update(table.attrs["notes"])
    _check_splits(table["split"], path)
    table = table[table["split"] == split]
    seconds = pd.to_numeric(table["duration"], errors="coerce")
    if seconds.isna().any():
        row = seconds.isna().idxmax()
        raise ValueError(
            f"{path} row {row} ({table.id[row]}): duration is {table.duration[row]!r}; expected seconds like 3.5. "
            "Correct the cell"
        )
    broken = seconds > LONGEST
    notes[f"speech descriptions of a clip over {LONGEST} s, left out"] += int(broken.sum())
    return pd.DataFrame({"key": table["id"], "speech": table["description"].mask(broken, "")})


def _read_stage(path: Path, split: str, notes: Counter[str], encoding: str | Sequence[str]) -> pd.DataFrame:
    """Read lines as ``STAGE_EXAMPLE``; scene may be null."""
    text, more = read_text(path, encoding)
    notes.update(more)
    rows, splits = {}, {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not (isinstance(row["before"], list) and isinstance(row["after"], list)):
                raise TypeError("before and after are not lists")
            splits[number] = row["split"]
            stage = " ".join(row["before"] + row["after"])
            rows[number] = {"key": row["id"], "stage": stage, "scene": row["scene"] or ""}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} line {number} cannot be read ({type(error).__name__}: {error}); expected {STAGE_EXAMPLE}. "
                "Correct the line"
            ) from None
    _check_splits(pd.Series(splits, dtype=str), path)
    split_rows = {number: row for number, row in rows.items() if splits[number] == split}
    return pd.DataFrame(list(split_rows.values()), index=list(split_rows), columns=["key", "stage", "scene"], dtype=str)


def _check_splits(splits: pd.Series, path: Path) -> None:
    bad = splits[~splits.isin(("train", "dev", "test"))]
    if len(bad):
        raise ValueError(
            f"{path} row {bad.index[0]}: split is {bad.iloc[0]!r}; expected train, dev or test. Correct the cell"
        )
