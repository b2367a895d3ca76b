"""MER2024: Chinese film and series clips in six emotions, the SEMI and NOISE tracks (Lian et al. 2024)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

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
    strip_keys,
)
from zoo.data.text import clean_text, drop_repeats, find_file, one_of, read_table, whole_number
from zoo.schema import Labels, Split

ADVICE = (
    "These are the files of the MER2024 challenge (apply with the agreement at "
    "https://zeroqiaoba.github.io/MER2024-website); give the folder that holds label-disdim.csv, reference-semi.csv "
    "and reference-noise.csv as --data.root"
)
FOLDERS = {
    "train": ("video-labeled",),
    "semi": ("MER2024_semi", "video-unlabeled", "video-unlabeled-with-test2noise"),
    "noise": ("MER2024_noise", "video-unlabeled-with-test2noise"),  # in video-unlabeled these clips are still clean
    "unlabeled": ("video-unlabeled-with-test2noise", "video-unlabeled"),
}
OFFICIAL = {"semi": 1169, "noise": 1170}
SUBTITLES = "label-transcription.csv"


class MER2024(EmotionData):
    """MER2024 from the user's own copy of the challenge data.

    Expects in ``root``, with rows like (made up)::

        label-disdim.csv                        reference-semi.csv, reference-noise.csv
        name,discrete,valence                   name,discrete
        sample_00000001,happy,2.5               samplenew3_00000007,worried

    Labels are happy, sad, neutral, angry, surprise, worried. Clips ``{name}.mp4`` or ``.avi`` are optional:
    ``video-labeled`` for training, ``MER2024_semi`` and ``MER2024_noise``, or the challenge's own
    ``video-unlabeled`` (semi) and ``video-unlabeled-with-test2noise`` (both), for testing.

    Words are optional too: `subtitles`, or ``label-transcription.csv`` where ``root`` has it, with rows like
    ``sample_00000001,"...","The soup is cold again."`` below ``name,chinese,english``. It covers the labelled clips
    only; for the test clips give a speech recogniser's table of the same form. A clip without a row has no words:
    ``Turn.text`` is empty, and counted.

    The authors state 1,169 clips of the SEMI track and 1,170 of the NOISE track, which share none. There is no
    development split: a seeded share of the training clips is held out. ``--data.track unlabeled`` makes the
    challenge's pool of unlabelled clips the test split, every clip of the folder with label None: it can be predicted
    on, or adapted to, but not scored.

    Licence: academic research only, by signed agreement; neither clips nor labels may be passed on.

    Args:
        track: which test split; a protocol of its own.
        subtitles: tables of words; a later one fills what an earlier one lacks.
        subtitle_column: their column.
        dev_share: share of the training clips held out as development split.
        dev_seed: seed of that choice.
    """

    licence = "academic research only, by signed agreement"
    material = "clips of Chinese films and TV shows"
    labels = Labels("mer2024", ("happy", "sad", "neutral", "angry", "surprise", "worried"))
    encodings = ("gb18030",)  # what Excel on a Chinese Windows writes
    official: Mapping[str, int] = OFFICIAL

    def __init__(
        self,
        track: Literal["semi", "noise", "unlabeled"] = "semi",
        subtitles: list[Path] | None = None,
        subtitle_column: str = "english",
        dev_share: float = 0.1,
        dev_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        one_of("track", track, ("semi", "noise", "unlabeled"))
        self.track, self.subtitles, self.subtitle_column = track, subtitles, subtitle_column
        self.dev_share, self.dev_seed = check_share(dev_share), whole_number("dev_seed", dev_seed)
        self.protocol = f"mer2024_{track}"

    def read(self, split: Split) -> Reading:
        part = self.track if split == "test" else "train"
        if part == "unlabeled":
            return self._pool(split)
        notes: Counter[str] = Counter()
        path = find_file(
            self.root, ["label-disdim.csv" if part == "train" else f"reference-{part}.csv"], "MER2024", ADVICE
        )
        table, excluded = label_table(path, self.labels, notes, self.read_as)
        if part != "train" and (train := self.folder / "label-disdim.csv").is_file():
            check_apart(label_table(train, self.labels, Counter(), self.read_as)[0]["key"], table["key"], train, path)
        clips = find_clips(self.folder, FOLDERS[part], notes=notes)
        unused: dict[str, list[str]] = {}
        if (self.folder / FOLDERS[part][0]).is_dir():  # the others hold far more than this split
            unused["clips without a row, not used"] = sorted(clips.keys() - set(table["key"]))
            for what, members in unused.items():
                notes[what] = len(members)
        if part == "train":
            dev = draw_share(table["key"], self.dev_share, self.dev_seed)
            in_split = table["key"].isin(dev) == (split == "dev")
            notes["training clips held out for the other split (dev_share)"] = int((~in_split).sum())
            table = table[in_split]
        words = self._words(notes)
        samples = [
            single(self.labels, split, row.key, words.get(row.key, ""), row.label, clips.get(row.key))
            for row in table.itertuples()
        ]
        notes.update(modalities(samples))
        return Reading(samples, self.official.get(part), excluded, dict(notes), unused | clips_missing(samples))

    def _pool(self, split: Split) -> Reading:
        """Return every clip of the folder, without a label."""
        notes: Counter[str] = Counter()
        clips = find_clips(self.folder, FOLDERS["unlabeled"], notes=notes) if self.root is not None else {}
        if not clips:
            raise FileNotFoundError(
                f"MER2024: the folder {self.root} has no clips in {' or '.join(FOLDERS['unlabeled'])}, expected with "
                f"--data.track unlabeled. {ADVICE}"
            )
        words = self._words(notes)
        samples = [
            single(self.labels, split, key, words.get(key, ""), None, clip) for key, clip in sorted(clips.items())
        ]
        notes.update(modalities(samples))
        return Reading(samples, None, {}, dict(notes))

    def _words(self, notes: Counter[str]) -> dict[str, str]:
        file = self.folder / SUBTITLES
        paths = self.subtitles if self.subtitles is not None else [file] * file.is_file()
        return load_subtitles(paths, self.subtitle_column, notes, self.read_as)


def label_table(
    path: Path, labels: Labels, notes: Counter[str], encoding: str | Sequence[str] = ()
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Read key and label of a table with the columns name and discrete, and the rows that repeat an earlier one."""
    raw = read_table(path, ("name", "discrete"), encoding=encoding)
    notes.update(raw.attrs["notes"])
    keys = strip_keys(raw["name"], path)
    words = {name: name for name in labels.names}
    table = pd.DataFrame({"key": keys, "label": check_labels(raw["discrete"], keys, words, path)})
    notes["labels written in another case or padded"] = int((table["label"] != raw["discrete"]).sum())
    return drop_repeats(table, path)


def load_subtitles(
    paths: Sequence[Path], column: str, notes: Counter[str], encoding: str | Sequence[str] = ()
) -> dict[str, str]:
    """Name of a clip -> its words; empty cells have no entry."""
    words: dict[str, str] = {}
    for path in map(Path, paths):
        raw = read_table(path, ("name", column), encoding=encoding)
        notes.update(raw.attrs["notes"])
        table = pd.DataFrame({"key": strip_keys(raw["name"], path), "text": raw[column].map(clean_text)})
        table, repeats = drop_repeats(table, path)
        notes[f"{path.name}: rows repeated, left out"] += len(repeats)
        for row in table.itertuples():
            if row.text:
                words.setdefault(row.key, row.text)
    return words
