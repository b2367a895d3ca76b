"""EmoryNLP: seven emotions of the Feeling Wheel in multi-party dialogues of a TV show (Zahiri & Choi 2018)."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd

from zoo.data.base import EmotionData, Reading, dialogue_samples
from zoo.data.clips import check_labels, draw_share
from zoo.data.descriptions import load_descriptions
from zoo.data.meld import MELD
from zoo.data.text import (
    clean_text,
    count_repaired,
    drop_repeats,
    find_file,
    normalise,
    one_of,
    read_table,
    some,
    whole_number,
    whole_numbers,
)
from zoo.schema import Labels, Split, Turn

ADVICE = (
    "These are the CSVs of the folder data/emorynlp of https://github.com/declare-lab/MELD, made from the corpus of "
    "https://github.com/emorynlp/emotion-detection; give their folder as --data.root"
)
COLUMNS = ("Utterance", "Speaker", "Emotion", "Scene_ID", "Utterance_ID", "Season", "Episode")
PLACE = ["Season", "Episode", "Scene_ID", "Utterance_ID"]
OFFICIAL = {"train": (7551, 659), "dev": (954, 89), "test": (984, 79)}  # utterances, scenes
LEAK_WORDS = 5  # a shorter line is an everyday phrase, said in every show
HELD_OUT = 0.1  # of the training scenes, where the released dev split is scored


class EmoryNLP(EmotionData):
    """EmoryNLP from the user's own copy of the CSVs.

    Expects ``emorynlp_{train,dev,test}_final.csv`` in ``root``, with rows like (made up; the times are not read)::

        Utterance,Speaker,Emotion,Scene_ID,Utterance_ID,Season,Episode,Start_Time,End_Time
        "Well, we both took the muffin.","['Ada Byron', 'Dan Poe']",Peaceful,3,1,2,7,00:01:02.345,00:01:04.000

    That is utterance ``s2e7_sc3_utt1`` of the dialogue ``s2e7_sc3``, a scene, said by "Ada Byron and Dan Poe". No clips
    are released; descriptions of the user's own join by these keys.

    Counts: 7,551 / 954 / 984 utterances of 659 / 89 / 79 scenes in train, dev, test. A test file is needed only where
    the test split is asked for.

    MELD is cut from the same show: 314 of the 1,691 utterances of five words or more of MELD's test split stand in
    EmoryNLP's train and dev files word for word (`zoo prepare leaks`). What is scored on MELD must not be trained on
    them, see ``drop_leaks_to``.

    Licence: labels Apache-2.0 (emorynlp/emotion-detection), these CSVs GPL-3.0 (declare-lab/MELD); the lines are a TV
    show's. Nothing to apply for. The zoo ships neither.

    Args:
        descriptions: files with descriptions, or folders of them: ``{kind}_description_{split}.json``.
        protocol: which utterances are classified, all or the last one of each scene.
        split_source: the released files, or, for those who have no test file, ``dev_as_test``: the released dev split
            is scored as the test split, and a tenth of the training scenes (drawn with ``split_seed``) is the dev split
            by which checkpoints are chosen. Results say so in their protocol.
        split_seed: decides which tenth.
        drop_leaks_to: folder of MELD. Every scene is left out that holds an utterance of MELD's dev or test split of
            five words or more, equal without case and punctuation.
    """

    unpublished_options = ("descriptions", "drop_leaks_to")
    renamed_options: ClassVar[Mapping[str, str]] = {"captions": "descriptions", "splits_are": "split_source"}
    licence = "labels Apache-2.0, CSV files GPL-3.0"
    material = "English dialogue of a TV show, as text"
    labels = Labels("emorynlp", ("joyful", "mad", "peaceful", "neutral", "sad", "powerful", "scared"))
    encodings = ("cp1252",)

    def __init__(
        self,
        descriptions: list[Path] | None = None,
        protocol: Literal["all_utterances", "last_utterance"] = "all_utterances",
        split_source: Literal["released", "dev_as_test"] = "released",
        split_seed: int = 0,
        drop_leaks_to: Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        one_of("protocol", protocol, ("all_utterances", "last_utterance"))
        one_of("split_source", split_source, ("released", "dev_as_test"))
        self.description_files = descriptions
        self.last_only = protocol == "last_utterance"
        self.split_source = split_source
        self.split_seed = whole_number("split_seed", split_seed)
        self.drop_leaks_to = drop_leaks_to
        self.protocol = protocol if split_source == "released" else f"{protocol}_{split_source}"
        self._lines_of_meld: set[str] | None = None

    def splits(self) -> tuple[Split, ...]:
        """Return the splits, without test where only the other files are there."""
        test_is_missing = (
            self.split_source == "released"
            and self.root is not None
            and (self.root / "emorynlp_train_final.csv").is_file()
            and not (self.root / "emorynlp_test_final.csv").is_file()
        )
        return ("train", "dev") if test_is_missing else ("train", "dev", "test")

    def read(self, split: Split) -> Reading:
        resplit: dict[Split, Split] = {"train": "train", "dev": "train", "test": "dev"}
        file = resplit[split] if self._resplit else split
        path = find_file(self.root, [f"emorynlp_{file}_final.csv"], "EmoryNLP", ADVICE)
        notes: Counter[str] = Counter()
        table = self._table(path, notes)
        table, excluded = drop_repeats(table, path)
        if self._resplit and file == "train":
            dev = table["scene"].isin(draw_share(table["scene"].unique(), HELD_OUT, self.split_seed))
            table = table[dev if split == "dev" else ~dev]
            excluded = {key: why for key, why in excluded.items() if key.split("_utt")[0] in set(table["scene"])}

        descriptions: dict[str, dict[str, str]] = {}
        if self.description_files:
            descriptions, more = load_descriptions(self.description_files, file, table["key"], self.read_as)
            notes.update(more)

        if self.drop_leaks_to is not None:
            table = self._without_leaks(table, notes)
        empty = table["text"] == ""
        excluded |= dict.fromkeys(table["key"][empty], "empty utterance")
        table = table[~empty].sort_values(PLACE)
        where = f"{self.labels.corpus}/{file}"  # ids name the file: the released dev split stays dev
        samples = []
        for scene, rows in table.groupby("scene", sort=False):
            turns = [Turn(r.key, r.speaker, r.text, r.label, descriptions.get(r.key, {})) for r in rows.itertuples()]
            scene_samples = dialogue_samples(turns, where, f"{where}/{scene}", self.labels, self.last_only)
            notes["not the last of their scene, context only"] += len(turns) - len(scene_samples)
            samples += scene_samples
        official = None if self._resplit and file == "train" else OFFICIAL[file][self.last_only]
        return Reading(samples, official, excluded, dict(notes))

    @property
    def _resplit(self) -> bool:
        return self.split_source == "dev_as_test"

    def _table(self, path: Path, notes: Counter[str]) -> pd.DataFrame:
        """Read key, scene, the four numbers, speaker, text and label: checked and cleaned, rows as in the file."""
        raw = read_table(path, COLUMNS, encoding=self.read_as)
        notes.update(raw.attrs["notes"])
        table = whole_numbers(raw, PLACE, path)
        table["scene"] = [f"s{s}e{e}_sc{c}" for s, e, c in table[PLACE[:3]].itertuples(index=False)]
        table["key"] = table["scene"] + "_utt" + table["Utterance_ID"].astype(str)
        table["label"] = check_labels(raw["Emotion"], table["key"], {n: n for n in self.labels.names}, path)
        table["text"] = raw["Utterance"].map(clean_text)
        names = raw["Speaker"].map(_names)
        bad = raw["Speaker"][names.isna()]
        if len(bad):
            raise ValueError(
                f"{path}: Speaker is {some(f'{cell!r} in row {row}' for row, cell in bad.items())}; expected a list of "
                "names like ['Ada Byron']. Correct the cells, or use the released file"
            )
        table["speaker"] = names.map(" and ".join)
        notes["utterances of several speakers at once, in the file"] = int((names.map(len) > 1).sum())
        notes["texts with encoding leftovers, repaired"] = count_repaired(raw["Utterance"], table["text"])
        return table

    def _without_leaks(self, table: pd.DataFrame, notes: Counter[str]) -> pd.DataFrame:
        if self._lines_of_meld is None:
            meld = MELD(root=self.drop_leaks_to, encoding=self.encoding)
            try:
                texts = [s.target.text for split in ("dev", "test") for s in meld.samples(split)]
            except FileNotFoundError as error:
                raise FileNotFoundError(str(error).replace("--data.root", "--data.drop_leaks_to")) from None
            self._lines_of_meld = {normalise(text) for text in texts if len(text.split()) >= LEAK_WORDS}
        scenes = table["scene"][table["text"].map(normalise).isin(self._lines_of_meld)].unique()
        dropped = table["scene"].isin(scenes)
        notes["scenes left out, they hold lines of MELD's dev or test split"] = len(scenes)
        notes["utterances of those scenes"] = int(dropped.sum())
        return table[~dropped]


def _names(cell: str) -> tuple[str, ...] | None:
    """``['Ada Byron', 'Dan Poe']`` as a tuple; None for what is no such list."""
    try:
        names = ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        return None
    return tuple(clean_text(name) for name in names)
