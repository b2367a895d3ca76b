"""The words of the synthetic sitcom, read from ``phrases.toml``; how phrases are written is said at its top."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Topic:
    """What people talk about.

    Attributes:
        things: noun phrases that fit after "I can't stop thinking about".
        statements: remarks that carry no emotion by themselves and also work as an echo question.
        questions: the same, as questions.
    """

    things: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Wording:
    """The words of one domain.

    Attributes:
        openers: label -> interjections with their own mark; ``any`` fits every label.
        cues: label -> phrases that carry the emotion, most used first.
        leading, trailing: label -> sentences, before or after the line, that give away irony, teasing or a brave face.
        hedges: words before a statement that say nothing about the emotion.
        topics: topic -> its phrases.
        voice, face: label or ``vague`` -> (adjectives after "sounds"/"looks", details), most used first.
        audio, video: caption templates with ``{subject}``, ``{word}`` and ``{detail}``.
        sure, unsure: how a caption names the person; an unsure one is a warning that the caption is wrong.
    """

    openers: Mapping[str, tuple[str, ...]]
    cues: Mapping[str, tuple[str, ...]]
    leading: Mapping[str, tuple[str, ...]]
    trailing: Mapping[str, tuple[str, ...]]
    hedges: tuple[str, ...]
    topics: Mapping[str, Topic]
    voice: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    face: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    audio: tuple[str, ...]
    video: tuple[str, ...]
    sure: tuple[str, ...]
    unsure: tuple[str, ...]


def phrase_list(phrases: Sequence[str]) -> tuple[str, ...]:
    """Return the phrases as a tuple; raise ValueError if one is empty or there twice."""
    if not all(phrases) or len(set(phrases)) != len(phrases):
        raise ValueError(f"empty or repeated phrase in the list that starts with {phrases[0]!r}")
    return tuple(phrases)


def load_wordings(path: Path) -> dict[str, Wording]:
    """Read the words of every domain from a TOML file: domain -> its words."""
    return {domain: _wording(tables) for domain, tables in tomllib.loads(path.read_text(encoding="utf-8")).items()}


def _wording(tables: Mapping[str, Any]) -> Wording:
    def flat(name: str) -> tuple[str, ...]:
        return phrase_list(tables[name])

    def by_label(name: str) -> dict[str, tuple[str, ...]]:
        return {label: phrase_list(phrases) for label, phrases in tables[name].items()}

    def captions(name: str) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        banks = tables[name].items()
        return {label: (phrase_list(lists["words"]), phrase_list(lists["details"])) for label, lists in banks}

    return Wording(
        openers=by_label("openers"),
        cues=by_label("cues"),
        leading=by_label("leading"),
        trailing=by_label("trailing"),
        hedges=flat("hedges"),
        topics={
            topic: Topic(*(phrase_list(lists[kind]) for kind in ("things", "statements", "questions")))
            for topic, lists in tables["topics"].items()
        },
        voice=captions("voice"),
        face=captions("face"),
        audio=flat("audio"),
        video=flat("video"),
        sure=flat("sure"),
        unsure=flat("unsure"),
    )


_DOMAINS = load_wordings(Path(__file__).with_name("phrases.toml"))
# reworded: the words of `wild` over the pictures and sounds of `studio`
WORDINGS: Mapping[str, Wording] = {**_DOMAINS, "reworded": _DOMAINS["wild"]}
