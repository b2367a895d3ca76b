"""GoEmotions in its Ekman grouping: single sentences with MELD's seven classes (Demszky et al. 2020)."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import pandas as pd

from zoo.data.base import EmotionData, Reading
from zoo.data.meld import MELD
from zoo.data.text import clean_text, drop_repeats, find_file, one_of, read_table, read_text, some
from zoo.schema import Labels, Sample, Split, Turn

ADVICE = (
    "These are the data set's train/dev/test TSVs with the labels mapped to Ekman's groups (github.com/google-research/"
    "google-research, folder goemotions); give their folder as --data.root"
)
OFFICIAL = {"train": 43410, "dev": 5426, "test": 5427}


class GoEmotions(EmotionData):
    """GoEmotions, Ekman grouping: text to train small backbones on.

    Expects ``ekman_{train,dev,test}.tsv`` in ``root``, without header: text, label ids, comment id (row made up)::

        [NAME] you made my whole week!	3	abc1234

    and ``ekman_labels.txt``, one word per line, whose order the ids count in. Quotes in the text are ordinary
    characters and placeholders such as ``[NAME]`` stay. Every sentence is a dialogue of its own, without a speaker.

    Licence: Apache-2.0.

    Args:
        multi_label: what becomes of a sentence with several labels (9 % of them): left out, or its first label taken.
    """

    licence = "Apache-2.0"
    material = "single English sentences from Reddit"
    labels = Labels("goemotions", MELD.labels.names)  # MELD's order: one index means one emotion in both

    def __init__(self, multi_label: Literal["exclude", "first"] = "exclude", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        one_of("multi_label", multi_label, ("exclude", "first"))
        self.multi_label = multi_label

    def read(self, split: Split) -> Reading:
        path = find_file(self.root, [f"ekman_{split}.tsv"], "GoEmotions", ADVICE)
        words = self._words()
        raw = read_table(path, ("text", "ids", "comment"), sep="\t", header=False, encoding=self.read_as)
        ids = raw["ids"].map(lambda cell: cell.replace(" ", "").split(","))
        allowed = {str(i) for i in range(len(words))}
        bad = raw["ids"][~ids.map(allowed.issuperset)]
        if len(bad):
            raise ValueError(
                f"{path}: label ids {some(f'{cell!r} in row {row}' for row, cell in bad.items())}; expected numbers 0 "
                f"to {len(words) - 1} joined by commas ({', '.join(words)}). Correct the cells, or leave the rows out"
            )
        notes: Counter[str] = Counter(raw.attrs["notes"])
        table = pd.DataFrame(
            {
                "key": raw["comment"].str.strip(),
                "text": raw["text"].map(clean_text),
                "label": ids.map(lambda indices: words[int(indices[0])]),
                "several": ids.map(len) > 1,
            }
        )
        table, excluded = drop_repeats(table, path)
        excluded |= dict.fromkeys(table["key"][table["text"] == ""], "empty text")
        table = table[table["text"] != ""]
        several = int(table["several"].sum())
        if self.multi_label == "exclude":
            notes["sentences with several labels, left out"] = several
            table = table[~table["several"]]
        else:
            notes["sentences with several labels, first taken"] = several
        samples = []
        for row in table.itertuples():
            name = f"goemotions/{split}/{row.key}"
            samples.append(Sample(name, name, self.labels, Turn(row.key, "", row.text, row.label)))
        return Reading(samples, OFFICIAL[split], excluded, dict(notes))

    def _words(self) -> list[str]:
        path = find_file(self.root, ["ekman_labels.txt"], "GoEmotions", ADVICE)
        words = [word.strip().lower() for word in read_text(path, self.read_as)[0].split("\n") if word.strip()]
        if sorted(words) != sorted(self.labels.names):
            raise ValueError(
                f"{path} has the labels {', '.join(words) or 'none'}; expected {', '.join(sorted(self.labels.names))}, "
                "each once. Use the Ekman grouping's file"
            )
        return words
