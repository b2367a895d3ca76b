"""The sitcom asked about other things than the emotion, in another form, or under another name.

`SyntheticQuestions`: what is in the picture, which has nothing to do with the emotion: does a system that learns
emotions still see it? `SyntheticReasons`: explanations to be written. `NamedSynthetic`: two domains side by side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from zoo.data.base import EmotionData, Reading
from zoo.data.synthetic import Synthetic
from zoo.schema import Labels, Sample, Split
from zoo.sitcom.cues import LABELS
from zoo.sitcom.questions import scene_questions
from zoo.sitcom.script import generate
from zoo.sitcom.truth import rationale

KINDS = ("people", "wall", "object", "side")  # in the order in which `scene_questions` asks
EXPLAIN = "Explain which emotion is expressed, and what shows it."


def _choices() -> dict[str, tuple[str, ...]]:
    """Return the choices of each kind of question, the same in every scene."""
    place = generate(0, 1)[0].place
    return {kind: tuple(q["choices"]) for kind, q in zip(KINDS, scene_questions(place), strict=True)}


class NamedSynthetic(Synthetic):
    """`Synthetic` under a corpus name of its own, so that two of them can be joined, or adapted to apart.

    Args:
        name: of the corpus, e.g. ``studio`` and ``wild``.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.labels = Labels(_check_name(name), LABELS)

    def read(self, split: Split) -> Reading:
        reading = super().read(split)
        reading.samples = [_with_corpus_name(s, self.labels) for s in reading.samples]
        return reading


class SyntheticReasons(NamedSynthetic):
    """The sitcom's utterances with a reference explanation as the answer to be written.

    It tells which cue says what, and the label (`zoo.sitcom.truth.rationale`). The label is there too; no prompt shows
    the answer.

    Args:
        name: of the corpus.
    """

    def __init__(self, name: str = "reasons", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def read(self, split: Split) -> Reading:
        reading = super().read(split)
        reasons = {u.id: rationale(u) for dialogue in self.dialogues(split) for u in dialogue.utterances}
        reading.samples = [replace(s, question=EXPLAIN, answer=reasons[s.target.id]) for s in reading.samples]
        return reading


class SyntheticQuestions(EmotionData):
    """General questions about the sitcom's pictures, with choices.

    How many other people there are, the colour of the wall, the object behind the speaker, and the side it is on.

    Every kind of question is a corpus of its own with its choices as labels, so scores are per kind and their plain
    mean stands for all. A sample shows the clip of an utterance and none of its words.

    Expects in ``root`` what ``zoo prepare synthetic --out DIR`` wrote, ``questions.jsonl`` among it::

        {"id": "synthetic/train/dia0_utt0", "question": "Which colour is the wall?", "answer": "red",
         "choices": ["red", "yellow", "green", "blue", "purple", "white"]}

    (on one line). Source and licence: ours.

    Args:
        kinds: which of people, wall, object and side; None: all.
        name: put before the kinds, for two domains in one run: ``wild`` gives ``wild_people`` and so on.
        per: ask about every ``utterance``, or about the first one of each ``dialogue`` (the scene is the same).
        scene_in_words: the scene is described in words and the clip left out: from this a small language model learns
            what the questions mean before it sees anything, as a large one knows already.
    """

    licence = "Apache-2.0"
    material = "generated: English questions about drawn pictures"
    renamed_options: ClassVar[Mapping[str, str]] = {"told": "scene_in_words"}

    def __init__(
        self,
        kinds: list[Literal["people", "wall", "object", "side"]] | None = None,
        name: str = "",
        per: Literal["utterance", "dialogue"] = "utterance",
        scene_in_words: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        unknown = sorted(set(kinds or ()) - set(KINDS))
        if unknown or kinds == [] or len(set(kinds or ())) != len(kinds or ()):
            raise ValueError(f"kinds are some of {', '.join(KINDS)}, each once; got {kinds}")
        if self.root is None:
            raise ValueError("the questions are about pictures: give --data.root, a folder of zoo prepare synthetic")
        begin = f"{_check_name(name)}_" if name else ""
        choices = _choices()
        self.kinds = {kind: Labels(begin + kind, choices[kind]) for kind in kinds or KINDS}
        self.per, self.scene_in_words = per, scene_in_words
        self.sitcom, self.limit = Synthetic(root=self.root, limit=self.limit), None  # of scenes, not of kinds

    @property
    def label_sets(self) -> dict[str, Labels]:
        return {labels.corpus: labels for labels in self.kinds.values()}

    def read(self, split: Split) -> Reading:
        asked = self._read_questions(self.folder / "questions.jsonl")
        reading = self.sitcom.reading(split)
        samples, dialogues = [], set()
        for s in reading.samples:
            if self.per == "dialogue" and s.dialogue in dialogues:
                continue
            dialogues.add(s.dialogue)
            rows = asked.get(s.id)
            if rows is None:
                raise ValueError(
                    f"{self.folder / 'questions.jsonl'} asks nothing about {s.id}; write the corpus again "
                    "with zoo prepare synthetic"
                )
            for kind, labels in self.kinds.items():
                question, answer = rows[kind]
                turn = replace(s.target, text="", label=answer, descriptions={}, audio=None)
                if self.scene_in_words:
                    turn = replace(turn, text=_describe_scene(rows), speaker="", video=None)
                samples.append(
                    replace(_with_corpus_name(replace(s, history=(), target=turn), labels), question=question)
                )
        return Reading(samples, excluded=dict(reading.excluded), notes=dict(reading.notes))

    def _read_questions(self, path: Path) -> dict[str, dict[str, tuple[str, str]]]:
        """Read the questions: sample id -> kind -> question and answer."""
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; write the corpus again with zoo prepare synthetic")
        kind_of_choices = {choices: kind for kind, choices in _choices().items()}
        questions: dict[str, dict[str, tuple[str, str]]] = {}
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    kind = kind_of_choices[tuple(row["choices"])]
                    if row["answer"] not in row["choices"]:
                        raise KeyError(row["answer"])
                    questions.setdefault(row["id"], {})[kind] = (str(row["question"]), row["answer"])
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"{path} line {number} is no question of the sitcom ({type(error).__name__}: {error}); "
                        "expected id, question, answer and choices. Write the corpus again with zoo prepare synthetic"
                    ) from None
        return questions


def _describe_scene(rows: dict[str, tuple[str, str]]) -> str:
    """Describe a scene in words."""
    facts = {kind: answer for kind, (_, answer) in rows.items()}
    return (
        f"The wall is {facts['wall']}. The {facts['object']} is behind the speaker, on the {facts['side']} side. Other "
        f"people in the picture: {facts['people']}."
    )


def _with_corpus_name(sample: Sample, labels: Labels) -> Sample:
    """Return the sample under another corpus name."""
    id_, dialogue = (f"{labels.corpus}/{name.partition('/')[2]}" for name in (sample.id, sample.dialogue))
    return replace(sample, id=id_, dialogue=dialogue, labels=labels)


def _check_name(name: str) -> str:
    """Return the name of a corpus. ValueError for one that is none."""
    if not name or not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"a corpus name is made of letters, digits, _ and -, got {name!r}")
    return name


__all__: Sequence[str] = ["NamedSynthetic", "SyntheticQuestions", "SyntheticReasons"]
