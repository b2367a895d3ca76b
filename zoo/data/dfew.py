"""DFEW: faces of film clips in seven emotions, in five folds (Jiang et al. 2020)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from zoo.data.base import EmotionData, Reading
from zoo.data.clips import (
    check_apart,
    check_labels,
    check_share,
    clips_missing,
    draw_share,
    find_clips,
    modalities,
    single,
)
from zoo.data.text import drop_repeats, find_file, read_table, some, whole_number
from zoo.schema import Labels, Split

ADVICE = (
    "These are the files of DFEW as unpacked (folders EmoLabel_DataSplit and Clip; apply for it at "
    "https://dfew-dataset.github.io); give the folder that holds both as --data.root"
)
LIST = "EmoLabel_DataSplit/{}(single-labeled)/set_{}.csv"
FOLDERS = ("Clip/clip_224x224_avi", "Clip/original", "videos")
FRAMES = ("Clip/clip_224x224", "Clip/clip_224x224_16f")
OFFICIAL = {1: 2341}  # test clips of the folds whose list could be counted


class DFEW(EmotionData):
    """DFEW's single-labelled clips, one of its five folds. There are no words: ``Turn.text`` is empty.

    Expects ``EmoLabel_DataSplit/train(single-labeled)/set_{fold}.csv`` and ``.../test(single-labeled)/set_{fold}.csv``
    in ``root``, with rows like (made up)::

        video_name,label
        12,3

    Labels count 1 happy, 2 sad, 3 neutral, 4 angry, 5 surprise, 6 disgust, 7 fear. The clip is the file of this
    number, with or without leading zeros (``00012.avi``, ``12.mp4``), in the first of ``Clip/clip_224x224_avi``
    (faces, no sound), ``Clip/original`` and ``videos`` that exists, at any depth. Folders of single frames
    (``Clip/clip_224x224/00012/*.jpg``, ``clip_224x224_16f``) are not read: where only they exist this is counted, and
    ``ffmpeg -framerate 25 -pattern_type glob -i '00012/*.jpg' 00012.mp4`` makes a clip of one.

    The authors state 16,372 clips, 11,697 of them with a single label; the test list of fold 1 has 2,341. There is no
    development split: a seeded share of the training clips is held out. The test split is the fold's, untouched.

    Scores: WAR is `accuracy` and UAR is `uar` (see `zoo.metrics.war_uar`), over the seven classes. The field reports
    their means over the five folds: one run per fold.

    Licence: research only, by signed agreement of an academic institution; clips are cut from films.

    Args:
        fold: 1 to 5; results of different folds are different protocols.
        dev_share: share of the training clips held out as development split.
        dev_seed: seed of that choice.
    """

    licence = "research only, by signed agreement of an academic institution"
    material = "faces in clips of films, without words"
    labels = Labels("dfew", ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear"))

    def __init__(self, fold: int = 1, dev_share: float = 0.1, dev_seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if fold not in range(1, 6):
            raise ValueError(f"DFEW has the folds 1 to 5, got {fold}")
        self.fold, self.dev_share, self.dev_seed = fold, check_share(dev_share), whole_number("dev_seed", dev_seed)
        self.protocol = f"fold_{fold}_of_5"

    def read(self, split: Split) -> Reading:
        part, other = ("test", "train") if split == "test" else ("train", "test")
        notes: Counter[str] = Counter()
        table, excluded = self._table(self._path(part), notes)
        listed = set(table["key"])
        if (self.folder / LIST.format(other, self.fold)).is_file():  # who only tests needs no training list
            more, _ = self._table(self._path(other), Counter())
            check_apart(table["key"], more["key"], self._path(part), self._path(other))
            listed |= set(more["key"])
        if part == "train":
            dev = draw_share(table["key"], self.dev_share, self.dev_seed)
            in_split = table["key"].isin(dev) == (split == "dev")
            notes["training clips held out for the other split (dev_share)"] = int((~in_split).sum())
            table = table[in_split]
        names: dict[str, list[str]] = {}
        clips = self._clips(notes, listed, names)
        samples = [
            single(self.labels, split, f"{int(row.key):05d}", "", row.label, clips.get(row.key))
            for row in table.itertuples()
        ]
        notes["clips missing"] = modalities(samples)["clips missing"]
        return Reading(
            samples,
            OFFICIAL.get(self.fold) if split == "test" else None,
            excluded,
            dict(notes),
            names | clips_missing(samples),
        )

    def _path(self, part: str) -> Path:
        return find_file(self.root, [LIST.format(part, self.fold)], "DFEW", ADVICE)

    def _table(self, path: Path, notes: Counter[str]) -> tuple[pd.DataFrame, dict[str, str]]:
        """Return key (number without zeros) and label, and the rows that repeat an earlier one."""
        raw = read_table(path, ("video_name", "label"), encoding=self.read_as)
        notes.update(raw.attrs["notes"])
        numbers = raw["video_name"].str.strip()
        if (bad := ~numbers.str.fullmatch(r"[0-9]+")).any():
            got = some(f"{raw.video_name[row]!r} in row {row}" for row in raw.index[bad])
            raise ValueError(
                f"{path}: video_name is {got}; expected the clip's number, like 12 or 00012. Use the released file"
            )
        keys = numbers.astype(int).astype(str)
        digits = {str(i): name for i, name in enumerate(self.labels.names, 1)}
        table = pd.DataFrame({"key": keys, "label": check_labels(raw["label"], keys, digits, path)})
        return drop_repeats(table, path)

    def _clips(self, notes: Counter[str], used: set[str], listed: dict[str, list[str]]) -> dict[str, Path]:
        """Map the number without zeros to the clip."""
        files = find_clips(self.folder, FOLDERS, notes=notes)
        clips: dict[str, Path] = {}
        for name, path in files.items():
            if not (name.isascii() and name.isdigit()):
                listed.setdefault("clips whose name is no number, not used", []).append(name)
            elif (key := str(int(name))) in clips:
                raise ValueError(f"both {clips[key]} and {path} are clip {key}; expected one. Move one of them away")
            else:
                clips[key] = path
        listed["clips in no list of this fold, not used"] = sorted(clips.keys() - used)
        for what, members in listed.items():
            notes[what] = len(members)
        if not files and any((self.folder / name).is_dir() for name in FRAMES):
            notes["only folders of frames, which are not read: make clips of them, see zoo.data.DFEW"] = 1
        return clips
