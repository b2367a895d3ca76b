"""What corpora of single clips share: finding clips by name, checked labels, a seeded development split."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from zoo.data.text import some
from zoo.schema import Labels, Sample, Turn

log = logging.getLogger(__name__)

SOUND = (".wav", ".flac", ".ogg", ".mp3", ".m4a")
VIDEO = (".mp4", ".avi", ".mkv", ".mov", ".webm")


def files_below(folder: Path, unlisted: dict[Path, str]) -> list[Path]:
    """All files below a folder, sorted; hidden ones left out.

    Args:
        unlisted: gets the folders that could not be looked into, and why (no permission, a link to a folder, which
            might lead round in circles): what is in them would otherwise be missing without a word.
    """

    def refused(error: OSError) -> None:
        unlisted[Path(error.filename)] = f"cannot be read ({error.strerror})"

    paths: list[Path] = []
    for home, folders, names in os.walk(folder, onerror=refused):
        for name in folders:
            if os.path.islink(os.path.join(home, name)) and not name.startswith("."):
                unlisted[Path(home, name)] = "is a link to a folder, which is not followed; move the files here"
        paths += [Path(home, name) for name in names if not name.startswith(".")]
    return sorted(path for path in paths if path.is_file())


def find_clips(
    root: Path, folders: Sequence[str], suffixes: Collection[str] = VIDEO, notes: Counter[str] | None = None
) -> dict[str, Path]:
    """Map names without ending to files, over all files below the first of ``folders`` that exists in ``root``.

    ``{}`` if none exists. Hidden files and other endings are ignored.

    Args:
        notes: gets a note for each folder that could not be looked into; it is logged as a warning in any case.

    Raises:
        ValueError: two files of one name, e.g. ``a.mp4`` and ``a.avi``: which one is meant?
    """
    folder = next((root / name for name in folders if (root / name).is_dir()), None)
    clips: dict[str, Path] = {}
    unlisted: dict[Path, str] = {}
    files = files_below(folder, unlisted) if folder is not None else []
    for inner, why in unlisted.items():
        name = inner.relative_to(root) if inner.is_relative_to(root) else inner.name
        log.warning("the folder %s %s: its clips are missing", name, why)
        if notes is not None:
            notes[f"the folder {name} {why}: its clips are missing"] = 1
    for path in files:
        if path.suffix.lower() in suffixes:
            if folder is not None and path.stem in clips:
                raise ValueError(
                    f"{folder} holds both {clips[path.stem].relative_to(folder)} and {path.relative_to(folder)}; "
                    "expected one file per clip. Move one of them out of the folder"
                )
            clips[path.stem] = path
    return clips


def strip_keys(column: pd.Series, path: Path) -> pd.Series:
    """Return the names of clips, stripped; ValueError naming the rows of empty ones."""
    keys = column.str.strip()
    if (empty := keys == "").any():
        raise ValueError(
            f"{path}: the column {column.name} is empty in row {some(keys.index[empty])}; expected the name of a clip. "
            "Correct the cells, or leave the rows out"
        )
    return keys


def check_labels(column: pd.Series, keys: pd.Series, words: Mapping[str, str], path: Path) -> pd.Series:
    """Label words of the cells (in any case, padded or not); ValueError naming the rows of cells that are none.

    Args:
        column: the cells.
        keys: name of the clip of each row, for the message.
        words: cell -> label word.
    """
    labels = column.str.strip().str.lower().map(words)
    if (unknown := labels.isna()).any():
        got = some(f"{column[row]!r} in row {row} ({keys[row]})" for row in column.index[unknown])
        raise ValueError(
            f"{path}: unknown label {got}; expected one of {', '.join(words)}. Correct the cells, or leave the rows out"
        )
    return labels


def check_apart(keys: Iterable[str], others: Iterable[str], path: Path, other: Path) -> None:
    """Raise ValueError naming what stands in two splits."""
    if both := sorted(set(keys) & set(others)):
        raise ValueError(
            f"{len(both)} names stand both in {path} and in {other}: {some(both)}; what is trained on cannot be "
            "tested on. Use the released files, or leave the rows out of one"
        )


def draw_share(keys: Iterable[str], share: float, seed: int) -> set[str]:
    """Draw a share of the keys from their sorted list: the same whatever the order of the file.

    At least one is drawn unless the share is 0.
    """
    ordered = sorted(keys)
    n = max(1, round(share * len(ordered))) if share else 0
    return {ordered[i] for i in np.random.default_rng(seed).permutation(len(ordered))[:n]}


def check_share(share: float) -> float:
    if not 0 < share < 1:
        raise ValueError(f"dev_share is the share of training clips held out for validation, not {share}")
    return share


def single(
    labels: Labels, split: str, key: str, text: str, label: str | None, clip: Path | None, **more: Any
) -> Sample:
    """Return a clip that is a dialogue of its own.

    The file is its picture and, unless ``audio`` says otherwise, its sound.
    """
    name = f"{labels.corpus}/{split}/{key}"
    return Sample(name, name, labels, Turn(key, "", text, label, video=clip, **({"audio": clip} | more)))


def modalities(samples: Sequence[Sample]) -> dict[str, int]:
    """Count the samples that lack their clip, their text, or both: they stay in the population."""
    return {what: len(names) for what, names in lacking(samples).items()}


def lacking(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """Return the ids of the turns that lack their clip, their text, or both."""
    turns = [s.target for s in samples]
    return {
        "clips missing": [t.id for t in turns if t.video is None],
        "without words": [t.id for t in turns if not t.text],
        "neither clip nor words": [t.id for t in turns if t.video is None and not t.text],
    }


def clips_missing(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """Return the ids of turns without a clip, unless none has one: then no clips are there at all."""
    missing = lacking(samples)["clips missing"]
    return {"clips missing": missing} if len(missing) < len(samples) else {}
