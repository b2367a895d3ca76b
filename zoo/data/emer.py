"""EMER: clips with a written explanation of the emotion, for open-vocabulary answers (Lian et al. 2023)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, Literal

import pandas as pd

from zoo.data.base import EmotionData, Reading
from zoo.data.clips import check_labels, clips_missing, find_clips, modalities, single, strip_keys
from zoo.data.mer2024 import MER2024, SUBTITLES, label_table, load_subtitles
from zoo.data.text import clean_text, drop_repeats, find_file, one_of, read_table
from zoo.schema import Labels, Split

ADVICE = (
    "These are the files of EMER (https://github.com/zeroQiaoba/AffectGPT, folder EMER); give their folder as "
    "--data.root. The clips are MER2023's, by its agreement"
)
FILES = {"v1": "gt-eng.csv", "v2": "final-EMER-reason.csv"}
FOLDERS = ("video", "video-labeled", "video-unlabeled")
OFFICIAL = {"v1": 100, "v2": 332}
QUESTION = (
    "Which emotions does the person in the video show? Explain by which signs one can tell: the face, movements, the "
    "surroundings, the voice and what is said."
)


class EMER(EmotionData):
    """EMER's reference explanations, in English; a test split only.

    Expects in ``root`` (v1 may also lie in ``dataset-v1``, v2 in ``dataset-v2``), with rows like (made up)::

        gt-eng.csv                                          final-EMER-reason.csv
        names,emotions,subtitles,reasons                    name,chinese,english
        sample_00000001,angry,"Not again!","He shouts ..."  sample_00000001,"...","In the video, a man ..."

    Optional: clips ``{name}.mp4`` or ``.avi`` in ``video``, ``video-labeled`` or ``video-unlabeled``, and for v2 the
    challenge's ``label-disdim.csv`` and ``label-transcription.csv`` (see `MER2024`), which hold the words and the one
    emotion word of its clips; without them v2 knows those of the clips it shares with ``gt-eng.csv``, if that is there
    (39 clips). The other clips have label None: they cannot be scored by ``zoo test`` on their labels, only, with
    ``--data.task explain``, on their explanations.

    An explanation is a reference answer, so no prompt may show it: it is not among a turn's descriptions but in
    `reasons`, and with ``explain`` in ``Sample.answer``. Scores of other free answers::

        data = EMER(root=ROOT)
        rows = [json.loads(line) for line in open("predictions.jsonl")]    # of `zoo predict`, with their "text"
        zoo.metrics.reason_overlap(rows, data.reasons())                  # clue and label overlap by exact words

    The authors state 100 clips (v1, short explanations, no neutral clips) and 332 (v2). Their own scores are given by
    a language model as judge, see `zoo.training.judge.ExplanationJudge`.

    Licence: none stated for the annotations; the clips are MER2023's, academic research only by signed agreement.

    Args:
        version: v1 or v2 of the explanations; protocols of their own.
        task: ``label``: the emotion word is asked for. ``explain``: an explanation is (`QUESTION`, in our words), of
            every clip; it is compared with the reference, and no label is scored. A protocol of its own.
    """

    licence = "none stated for the annotations; clips academic research only, by signed agreement (MER2023)"
    material = "clips of Chinese films and TV shows"
    labels = Labels("emer", MER2024.labels.names)
    encodings = MER2024.encodings

    def __init__(
        self, version: Literal["v1", "v2"] = "v2", task: Literal["label", "explain"] = "label", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        one_of("version", version, ("v1", "v2"))
        one_of("task", task, ("label", "explain"))
        self.version, self.explains = version, task == "explain"
        self.protocol = f"emer_{version}" + "_explanations" * self.explains
        self._reasons: dict[str, str] = {}

    def splits(self) -> tuple[Split, ...]:
        return ("test",)

    def reasons(self) -> dict[str, str]:
        """Sample id -> reference explanation."""
        return {s.id: self._reasons[s.id] for s in self.samples("test")}

    def read(self, split: Split) -> Reading:
        if split != "test":
            raise ValueError(
                f"EMER has a test split only, not {split}: train on another corpus (e.g. MER2024), then `zoo test "
                "--ckpt_path RUN --data EMER --data.root DIR`"
            )
        notes: Counter[str] = Counter()
        table, excluded = self._gt(notes) if self.version == "v1" else self._final(notes)
        empty = table["reason"] == ""
        excluded |= dict.fromkeys(table["key"][empty], "empty explanation")
        table = table[~empty]
        clips = find_clips(self.folder, FOLDERS, notes=notes)
        samples = []
        for row in table.itertuples():
            label = None if self.explains else row.label or None
            sample = single(self.labels, split, row.key, row.text, label, clips.get(row.key))
            if self.explains:
                sample = replace(sample, question=QUESTION, answer=row.reason)
            samples.append(sample)
            self._reasons[sample.id] = row.reason
        notes.update(modalities(samples))
        if not self.explains:
            notes["without an emotion word"] = sum(s.target.label is None for s in samples)
        return Reading(samples, OFFICIAL[self.version], excluded, dict(notes), clips_missing(samples))

    def _gt(self, notes: Counter[str]) -> tuple[pd.DataFrame, dict[str, str]]:
        """Read key, text, label and reason of gt-eng.csv."""
        path = find_file(self.root, ["gt-eng.csv", "dataset-v1/gt-eng.csv"], "EMER", ADVICE)
        raw = read_table(path, ("names", "emotions", "subtitles", "reasons"), encoding=self.read_as)
        notes.update(raw.attrs["notes"])
        keys = strip_keys(raw["names"], path)
        words = {name: name for name in self.labels.names}
        table = pd.DataFrame(
            {
                "key": keys,
                "text": raw["subtitles"].map(clean_text),
                "label": check_labels(raw["emotions"], keys, words, path),
                "reason": raw["reasons"].map(clean_text),
            }
        )
        return drop_repeats(table, path)

    def _final(self, notes: Counter[str]) -> tuple[pd.DataFrame, dict[str, str]]:
        """Read key, text, label ("" if unknown) and reason of final-EMER-reason.csv."""
        path = find_file(self.root, ["final-EMER-reason.csv", "dataset-v2/final-EMER-reason.csv"], "EMER", ADVICE)
        raw = read_table(path, ("name", "english"), encoding=self.read_as)
        notes.update(raw.attrs["notes"])
        table = pd.DataFrame({"key": strip_keys(raw["name"], path), "reason": raw["english"].map(clean_text)})
        table, excluded = drop_repeats(table, path)
        words: dict[str, str] = {}
        labels: dict[str, str] = {}
        if (file := self.folder / "label-disdim.csv").is_file():
            labels |= label_table(file, self.labels, notes, self.read_as)[0].set_index("key")["label"].to_dict()
        if (file := self.folder / SUBTITLES).is_file():
            words |= load_subtitles([file], "english", notes, self.read_as)
        if any((self.folder / folder / FILES["v1"]).is_file() for folder in ("", "dataset-v1")):
            gt = self._gt(notes)[0].set_index("key")  # later and corrected: it wins
            labels |= gt["label"].to_dict()
            words |= gt["text"][gt["text"] != ""].to_dict()
        table["label"] = [labels.get(key, "") for key in table["key"]]
        table["text"] = [words.get(key, "") for key in table["key"]]
        return table, excluded
