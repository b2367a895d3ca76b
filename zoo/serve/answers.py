"""What the page asks: one clip or conversation, and one or two systems that answer it."""

from __future__ import annotations

import functools
import re
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zoo.checkpoints.listing import index
from zoo.data.table_rows import clean_utf8, clip_turn
from zoo.label.output import answer_row
from zoo.label.parts import PARTS, PartsLabeler
from zoo.label.requests import Request, read_samples, sample_of
from zoo.label.subtitles import read_subtitles
from zoo.label.system import System, silence_lightning
from zoo.label.used_inputs import UsedInputs
from zoo.label.utterances import read_utterances
from zoo.media import Media
from zoo.schema import Labels, Prediction, Sample, Turn

BY_PARTS = "parts"  # name of the answer that words, face and voice give one by one
MOST_UTTERANCES = 120  # of one question; more takes minutes, in which everybody else waits
MOST_CHARACTERS = 2000  # of one line
Row = dict[str, Any]


class Rejected(ValueError):
    """A question that cannot be answered, with what to do about it."""


@dataclass(frozen=True)
class Question:
    """What somebody asks.

    Attributes:
        systems: names of one or two systems.
        clip: the uploaded file; None: a conversation in words.
        subtitles: a file with its words and times.
        lines: (speaker, words) of each line of a conversation; of a clip, at most one.
        segments: whether the clip is cut where somebody speaks.
        parts: which of `PARTS` are used, where the parts answer.
    """

    systems: tuple[str, ...]
    clip: Path | None = None
    subtitles: Path | None = None
    lines: tuple[tuple[str, str], ...] = ()
    segments: bool = False
    parts: tuple[str, ...] = PARTS


@dataclass
class Answers:
    """The systems that can be asked. One question at a time: they share processors and memory.

    Args:
        checkpoints: runs or published names, beside what comes with the zoo.
        max_seconds: a longer film is refused.
    """

    checkpoints: Sequence[str] = ()
    max_seconds: float = 600.0
    _systems: dict[str, System] = field(default_factory=dict)
    _one: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        silence_lightning()
        for name in self.checkpoints:
            self._systems[name] = System(name)  # which says now what is missing

    @functools.cached_property
    def choices(self) -> list[dict[str, str]]:
        """Return the systems by name, with what each is."""
        choices = [{"name": BY_PARTS, "what": "words, face and voice, each by itself, by what is installed here"}]
        choices += [{"name": name, "what": self._systems[name].describe_training()} for name in self.checkpoints]
        shipped = {
            name: entry["what"]
            for name, entry in index().items()
            if entry["source"] == "shipped" and not entry.get("bases") and self._names_emotions(name)
        }
        return choices + [{"name": n, "what": what} for n, what in shipped.items() if n not in self.checkpoints]

    @functools.cached_property
    def _labeler(self) -> PartsLabeler:
        return PartsLabeler(max_seconds=self.max_seconds)

    def load(self) -> None:
        """Load what the parts need, so that the first question takes no longer than the next."""
        self._labeler.load()

    def __call__(self, question: Question, gone: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """Answer a question.

        Args:
            gone: whether nobody waits for the answer any more, or the server ends; asked after every utterance.

        Returns:
            ready for JSON: ``utterances`` (id, start, end, speaker, text), and for each system ``name`` and ``rows``,
            one for each utterance, of `zoo label`'s form, those of the parts with ``description``; and ``left_out``,
            what of the subtitles could not be read.

        Raises:
            Rejected: naming what is wrong with the question, or with a system; or nobody waits any more.
        """
        known = {choice["name"] for choice in self.choices}
        if unknown := [name for name in question.systems if name not in known]:
            raise Rejected(f"unknown system {unknown[0]!r}; expected one of {', '.join(sorted(known))}")
        if not 1 <= len(question.systems) <= 2:
            raise Rejected(f"{len(question.systems)} systems were asked; expected one or two")
        with self._one:
            samples: list[Sample] = []
            systems: list[Row] = []
            for name in question.systems:
                _check_waits(gone)
                try:
                    labels = self._labels(name)
                    # which utterances there are depends on no system, so a film is cut once
                    samples = [_with_labels(s, labels) for s in samples] or self._samples(question, labels)
                    if name == BY_PARTS:
                        rows = self._by_parts(samples, question.parts, gone)
                    else:
                        rows = self._by_system(name, samples, gone)
                except Rejected:
                    raise
                except (ValueError, OSError) as error:  # what is missing, in words for users: weights, a folder
                    raise Rejected(f"{name}: {error}") from None
                systems.append({"name": name, "rows": rows})
            left_out = [] if question.subtitles is None else list(read_subtitles(question.subtitles).problems)
            utterances = [_utterance(sample) for sample in samples]
            return {"utterances": utterances, "systems": systems, "left_out": left_out}

    # ---- the samples
    def _labels(self, name: str) -> Labels:
        if name == BY_PARTS:
            return self._labeler.labels
        system = self._system(name)
        return system.labels(next(iter(system.corpus.label_sets)))

    def _samples(self, question: Question, labels: Labels) -> list[Sample]:
        """Return the utterances of a question. Rejected if there are none, or too many."""
        try:
            cut = question.segments or question.subtitles is not None
            if question.clip is None and not cut:
                samples = _conversation(question.lines, labels)
            elif len(question.lines) > 1:
                raise ValueError(f"a clip goes with one line, got {len(question.lines)}; give their times as subtitles")
            else:
                speaker, text = question.lines[0] if question.lines else ("", "")
                request = Request(
                    question.clip, text=text, speaker=speaker, segments=question.segments, subtitles=question.subtitles
                )
                media = Media(max_seconds=self.max_seconds)
                samples = read_utterances(request, labels, media) if cut else read_samples(request, labels)
        except (ValueError, OSError) as error:  # also Unreadable: their messages are for users
            file = question.clip or question.subtitles
            folder = f"{file.parent}/" if file is not None else "\0"
            raise Rejected(_for_the_page(str(error).replace(folder, ""))) from None
        if len(samples) > MOST_UTTERANCES:
            raise Rejected(
                f"that is {len(samples)} utterances; this page answers {MOST_UTTERANCES} at once. Cut the film, or "
                "give it to `zoo label --segments --out FILE`"
            )
        return samples

    # ---- the systems
    def _system(self, name: str) -> System:
        if name not in self._systems:
            self._systems[name] = System(name)
        return self._systems[name]

    def _names_emotions(self, name: str) -> bool:
        """Whether a published name can be asked: its config.yaml names a corpus with labels."""
        try:
            self._system(name).labels()
        except (ValueError, OSError, KeyError):
            return False
        return True

    def _by_parts(self, samples: Sequence[Sample], parts: tuple[str, ...], gone: Callable[[], bool]) -> list[Row]:
        rows = []
        for sample in samples:
            _check_waits(gone)
            answer = self._labeler(_with_parts(sample, parts))
            row = answer.row | {"parts": {p: what for p, what in answer.row["parts"].items() if p in parts}}
            description = None if answer.description is None else answer.description.row()
            error = {"error": answer.error} if answer.error else {}
            rows.append(_for_the_page(row | error) | {"description": description})
        return rows

    def _by_system(self, name: str, samples: Sequence[Sample], gone: Callable[[], bool]) -> list[Row]:
        rows: dict[str, Row] = {}

        def note(sample: Sample, p: Prediction, inputs: UsedInputs, seconds: float) -> None:
            _check_waits(gone)
            rows[sample.id] = answer_row(p, inputs, seconds)

        with tempfile.TemporaryDirectory() as folder:
            failed = self._system(name).answer(samples, Path(folder), note)
        errors = {id: {"label": None, "error": why} for id, why in failed.items()}
        return [rows.get(sample.id) or errors[sample.id] for sample in samples]


def _check_waits(gone: Callable[[], bool]) -> None:
    """Rejected if nobody waits for an answer: those of others come first."""
    if gone():
        raise Rejected("nobody waits for the answer any more, or the server ends")


def _for_the_page(value: Any) -> Any:
    """Return what the command line says with the page's words for its options."""
    if isinstance(value, dict):
        return {key: inner if key == "said" else _for_the_page(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_for_the_page(inner) for inner in value]
    if not isinstance(value, str):
        return value
    words = {"--segments": "the cut into utterances", "--subtitles": "subtitles", "--text": "what is said"}
    without_hints = re.sub(
        r"(, or (?:say which encoding it is in|raise the limit))? \(--[^)]*\)(: --encoding [\w-]+)?", "", value
    )
    return re.sub("|".join(words), lambda match: words[match[0]], without_hints)


def _with_parts(sample: Sample, parts: tuple[str, ...]) -> Sample:
    """Return a sample without the parts that are switched off."""
    turn = sample.target
    reduced = replace(
        turn,
        text=turn.text if "text" in parts else "",
        video=turn.video if "face" in parts else None,
        audio=turn.audio if "voice" in parts else None,
    )
    return replace(sample, target=reduced)


def _conversation(lines: Sequence[tuple[str, str]], labels: Labels) -> list[Sample]:
    """Return the lines of a conversation, each with those before it."""
    if not lines:
        raise ValueError("there is nothing to label: give a clip, or lines of a conversation")
    turns: list[Turn] = []
    for number, (speaker, text) in enumerate(lines, 1):
        if len(text) > MOST_CHARACTERS or len(speaker) > MOST_CHARACTERS:
            raise ValueError(f"line {number} has {len(text)} characters; expected at most {MOST_CHARACTERS}")
        name = f"line {number}"
        turns.append(clip_turn(name, None, speaker=clean_utf8(speaker, name), text=clean_utf8(text, name)))
    return [sample_of(turn, "conversation", labels, turns[:i]) for i, turn in enumerate(turns)]


def _with_labels(sample: Sample, labels: Labels) -> Sample:
    """Return the same utterance, to be answered with other labels."""
    return sample_of(sample.target, sample.dialogue.rpartition("/")[2], labels, sample.history)


def _utterance(sample: Sample) -> Row:
    turn = sample.target
    return {"id": turn.id, "start": turn.start, "end": turn.end, "speaker": turn.speaker, "text": turn.text}
