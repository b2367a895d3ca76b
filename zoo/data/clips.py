"""What corpora of single clips share: finding clips by name, checked labels, a seeded development split."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from zoo.data.text import some
from zoo.schema import Labels, Sample, Turn

VIDEO = (".mp4", ".avi", ".mkv", ".mov", ".webm")


def find_clips(root: Path, folders: Sequence[str], suffixes: Collection[str] = VIDEO) -> dict[str, Path]:
    """Name without ending -> file, over all files below the first of ``folders`` that exists in ``root``; ``{}`` if
    none does. Hidden files and other endings are ignored.

    Raises:
        ValueError: two files of one name, e.g. ``a.mp4`` and ``a.avi``: which one is meant?
    """
    folder = next((root / name for name in folders if (root / name).is_dir()), None)
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")) if folder is not None else ():
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            if path.stem in found:
                raise ValueError(
                    f"{folder} holds both {found[path.stem].relative_to(folder)} and {path.relative_to(folder)}; "
                    "expected one file per clip. Move one of them out of the folder"
                )
            found[path.stem] = path
    return found


def checked_keys(column: pd.Series, path: Path) -> pd.Series:
    """The names of clips, stripped; ValueError naming the rows of empty ones."""
    keys = column.str.strip()
    if (empty := keys == "").any():
        raise ValueError(
            f"{path}: the column {column.name} is empty in row {some(keys.index[empty])}; expected the name of a clip. "
            "Correct the cells, or leave the rows out"
        )
    return keys


def checked_labels(column: pd.Series, keys: pd.Series, words: Mapping[str, str], path: Path) -> pd.Series:
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
    """Raises ValueError naming what stands in two splits."""
    if both := sorted(set(keys) & set(others)):
        raise ValueError(
            f"{len(both)} names stand both in {path} and in {other}: {some(both)}; what is trained on cannot be "
            "tested on. Use the released files, or leave the rows out of one"
        )


def held_out(keys: Iterable[str], share: float, seed: int) -> set[str]:
    """A share of the keys, drawn from their sorted list: the same whatever the order of the file. At least one unless
    the share is 0."""
    ordered = sorted(keys)
    n = max(1, round(share * len(ordered))) if share else 0
    return {ordered[i] for i in np.random.default_rng(seed).permutation(len(ordered))[:n]}


def checked_share(share: float) -> float:
    if not 0 < share < 1:
        raise ValueError(f"dev_share is the share of training clips held out for validation, not {share}")
    return share


def single(labels: Labels, split: str, key: str, text: str, label: str | None, clip: Path | None, **more) -> Sample:
    """A clip that is a dialogue of its own; the file is its picture and, unless ``audio`` says otherwise, its sound."""
    name = f"{labels.corpus}/{split}/{key}"
    return Sample(name, name, labels, Turn(key, "", text, label, video=clip, **({"audio": clip} | more)))


def modalities(samples: Sequence[Sample]) -> dict[str, int]:
    """How many of the samples lack their clip, their text, or both: they stay in the population."""
    clipless = [s.target.video is None for s in samples]
    wordless = [not s.target.text for s in samples]
    return {
        "clips missing": sum(clipless),
        "without words": sum(wordless),
        "neither clip nor words": sum(a and b for a, b in zip(clipless, wordless, strict=True)),
    }
