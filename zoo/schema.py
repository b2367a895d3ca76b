"""The types that every part of the zoo shares: Labels, Turn, Sample, Prediction, and what a corpus and a collator are.

Plain Python: no tensors, no third-party imports. A Sample holds text, paths and descriptions, never pixels, so any
paper runs on any corpus that has the modalities it needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypedDict, overload

if TYPE_CHECKING:
    import numpy as np

Split = Literal["train", "dev", "test"]

UNPARSED = -1  # label index of an answer that names no label, or names several


@dataclass(frozen=True)
class Labels:
    """The label set of one corpus, in a fixed order.

    Attributes:
        corpus: short name of the corpus, e.g. ``meld``; results of different corpora are never mixed.
        names: label words in index order, lower case.

    Raises:
        ValueError: if a name is repeated, empty, or not lower case.
    """

    corpus: str
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names) or not all(n and n == n.lower().strip() for n in self.names):
            raise ValueError(f"labels of {self.corpus} must be distinct, lower-case words, got {self.names}")

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Index of an exact label word; ValueError naming the allowed words otherwise."""
        try:
            return self.names.index(name)
        except ValueError:
            raise ValueError(
                f"unknown label {name!r} for {self.corpus}; expected one of {', '.join(self.names)}"
            ) from None


@dataclass(frozen=True)
class Turn:
    """One utterance of a dialogue.

    Attributes:
        id: key of the utterance inside its split, e.g. ``dia0_utt3``.
        speaker: name as the corpus gives it; ``""`` if it has none.
        text: what was said, cleaned to UTF-8; empty only where nobody speaks or nobody wrote it down (pictures,
            faces, clips without subtitles).
        label: true label word, or None if unlabelled.
        descriptions: named texts about this utterance, e.g. ``{"audio": "a loud voice", "video": "she frowns"}``; a
            kind that is missing for this utterance has no key.
        video, audio: path of the clip, or None. Nothing is decoded here.
        start, end: seconds inside ``video`` (without one, inside ``audio``) between which this is said, where that file
            holds more than the utterance (a whole dialogue); None: all of the file.
        crop: half of the picture the speaker is in, columns [0, W // 2) or [W // 2, W), where the file shows two
            people; None: all of the picture.
    """

    id: str
    speaker: str
    text: str
    label: str | None = None
    descriptions: Mapping[str, str] = field(default_factory=dict)
    video: Path | None = None
    audio: Path | None = None
    start: float | None = None
    end: float | None = None
    crop: Literal["left", "right"] | None = None

    @property
    def frame_at(self) -> float | Literal["middle"]:
        """Where half of the utterance is over, for `zoo.media`: ``frames(turn.video, position=turn.frame_at)``."""
        return "middle" if self.start is None or self.end is None else (self.start + self.end) / 2


@dataclass(frozen=True)
class Sample:
    """One utterance to classify, with what was said before it, and after it.

    Attributes:
        id: unique over corpora and splits: ``{corpus}/{split}/{turn id}``.
        dialogue: ``{corpus}/{split}/{dialogue id}``; the unit of bootstrap intervals and of leak-free splitting.
        labels: label set of the corpus.
        target: the utterance itself.
        history: all earlier turns of the dialogue, oldest first; a paper takes the window it wants.
        question: what is asked about the target; None: which emotion it expresses. The label is then the right choice.
        answer: what is to be written, where that is not the label word, e.g. an explanation; None: the label word.
        learn_history: what the assistant says in ``history`` is learnt, too, beside ``answer``.
        later: all turns of the dialogue after the target, oldest first, where the corpus knows them. Whoever labels an
            utterance when it is said does not have them; a system that shows them says so in its `reads`.
    """

    id: str
    dialogue: str
    labels: Labels
    target: Turn
    history: tuple[Turn, ...] = ()
    question: str | None = None
    answer: str | None = None
    learn_history: bool = False
    later: tuple[Turn, ...] = ()

    @property
    def label(self) -> int:
        """Index of the true label; ``UNPARSED`` (-1) when the target is unlabelled."""
        return UNPARSED if self.target.label is None else self.labels.index(self.target.label)

    def context(self, window: int | None) -> tuple[Turn, ...]:
        """Return the last ``window`` turns before the target, oldest first; all of them for None."""
        return self.history if window is None else self.history[max(0, len(self.history) - window) :]


@dataclass(frozen=True)
class ScoredQuestion:
    """How the answer to a question of a benchmark is scored, by a rule of the benchmark's own (`zoo.metrics.general`).

    Attributes:
        benchmark: whose rule: ``mme``, ``mmbench``, ``pope``, ``scienceqa``, ``seedbench``, ``textvqa`` or ``vqav2``.
        gold: the right answer: ``yes`` or ``no``, the letter of an option, or what each annotator wrote.
        group: category, dimension or subset that is scored by itself.
        together: questions of one name count as right together: a picture's pair, the rotations of a question.
        options: texts of the options, in the order of their letters; none where the answer is free.
    """

    benchmark: str
    gold: tuple[str, ...]
    group: str
    together: str
    options: tuple[str, ...] = ()


class LazySamples(Sequence[Sample], ABC):
    """Samples of which only arrays are in memory; each is made when it is asked for.

    Whoever derives from it has seen to it that their ids differ: nobody makes all of them to look.
    """

    @abstractmethod
    def make(self, number: int) -> Sample:
        """Return a sample; ``number`` is from 0 to below ``len``."""

    @abstractmethod
    def lengths(self) -> np.ndarray:
        """Return how long each sample is beside the others, (N,) in any unit."""

    @abstractmethod
    def dialogue_numbers(self) -> np.ndarray:
        """Return the number of each sample's dialogue, (N,) int64, in the order in which they come."""

    @abstractmethod
    def select(self, numbers: Sequence[int] | np.ndarray) -> Self:
        """Return some of the samples, in this order."""

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"no sample {index} of {len(self)}")
        return self.make(int(number))


@dataclass(frozen=True)
class Prediction:
    """What a system said about one sample: one row of ``predictions.jsonl``.

    Attributes:
        predicted: a label word, or None if the answer was unreadable.
        scores: probability per label word, when the system scores labels.
        text: the raw answer, when the system generates one.
        details: whatever else a paper reports per sample (e.g. a selector's decision).
    """

    id: str
    dialogue: str
    label: str | None
    predicted: str | None
    scores: Mapping[str, float] | None = None
    text: str | None = None
    details: Mapping[str, object] | None = None

    @classmethod
    def of(
        cls,
        sample: Sample,
        predicted: str | None,
        scores: Mapping[str, float] | None = None,
        text: str | None = None,
        details: Mapping[str, object] | None = None,
    ) -> Prediction:
        """Return the prediction for a sample."""
        return cls(sample.id, sample.dialogue, sample.target.label, predicted, scores, text, details)

    def row(self) -> dict[str, object]:
        """Return a JSON-ready dict without optional fields that are None; ``predicted`` and ``label`` always stay."""
        optional = {"scores": self.scores, "text": self.text, "details": self.details}
        row: dict[str, object] = {
            "id": self.id,
            "dialogue": self.dialogue,
            "label": self.label,
            "predicted": self.predicted,
        }
        return row | {k: v for k, v in optional.items() if v is not None}


Stage = Literal["fit", "validate", "test", "predict"]


class Problem(TypedDict):
    """What was wrong with the data of a batch: a file that could not be read, or a sample that is not shown whole.

    Attributes:
        problem: ``unreadable``, ``damaged`` (what decodes was used), or another kind in a few words.
        name: path of the file, or id of the sample.
        reason: what was wrong and what to do, in one line.
        samples: ids of the samples of the batch that it is about.
    """

    problem: str
    name: str
    reason: str
    samples: list[str]


class Collator(Protocol):
    """What makes a batch of samples. It is picklable, because loader processes get a copy."""

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> Any:
        """Return the batch, a dict with at least ``samples``. Everything random in it is drawn from ``rng``."""

    def length(self, sample: Sample) -> int:
        """Return how long a sample is beside others, in any unit; samples of like length share a batch."""


class CorpusView(Protocol):
    """What a system may know of its data: `zoo.data.EmotionData`, or a stand-in in a test."""

    is_ad_hoc: bool
    max_unreadable: float
    eval_batch_size: int

    @property
    def protocol(self) -> str: ...

    @property
    def label_sets(self) -> Mapping[str, Labels]: ...

    @property
    def protocols(self) -> Mapping[str, str]: ...

    @property
    def run_seed(self) -> int: ...

    def samples(self, split: Split) -> Sequence[Sample]: ...

    def splits(self) -> Sequence[Split]: ...

    def splits_of(self, stage: str) -> Sequence[Split]: ...

    def to_predict(self) -> Sequence[Sample]: ...

    def population(self, split: Split) -> dict[str, Any]: ...

    def scored_questions(self, split: Split) -> Mapping[str, ScoredQuestion]: ...

    def rows_without_file(self, split: Split) -> Mapping[str, str]: ...

    def add_note(self, split: Split, what: str, count: int) -> None: ...
