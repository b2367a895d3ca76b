"""Which published systems can answer here without a download, best first by the score that the index reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from zoo.backbones.gguf import SUFFIX as GGUF
from zoo.backbones.hub import FETCHED
from zoo.checkpoints.listing import INDEX, bases_to_pull, index

SENTENCES = ("goemotions", "weighted_f1")  # real sentences on which published systems are compared: corpus, metric
EXPRESSIONS = ("fer2013", "accuracy")  # real faces, the same
Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Installed:
    """The best system that is here, and what a better one needs.

    Attributes:
        name: its published name; None: none is here.
        measured: the score that the index reports of it: corpus, split, n, metric, value.
        commands: what to run for the best one of all; empty if it is here.
        best: name of that one; None if the index lists none.
    """

    name: str | None
    measured: Mapping[str, Any] | None
    commands: tuple[str, ...]
    best: str | None


def best_for_text() -> Installed:
    """Return the best published system that names the emotion of a sentence."""
    return _best(SENTENCES, "shipped", _lacking_of_system)


def best_for_faces() -> Installed:
    """Return the best published reader of facial expressions, whose one file `zoo checkpoints pull` puts here."""
    return _best(EXPRESSIONS, "url", _lacking_of_reader)


def _best(measured_on: tuple[str, str], source: str, lacking: Callable[[str, Entry], list[str]]) -> Installed:
    """Return the first entry that lacks nothing, by falling score."""
    if not INDEX.is_file():
        raise FileNotFoundError(
            f"{INDEX} is not there, which lists the published systems; install the zoo from its repository "
            "(pip install -e .), or give a system of your own with --ckpt_path"
        )
    scored = [
        (name, entry, {key: score.get(key) for key in ("corpus", "split", "n", "metric", "value")})
        for name, entry in index().items()
        for score in entry["reported"]
        if entry["source"] == source and (score["corpus"], score["metric"]) == measured_on
    ]
    scored.sort(key=lambda one: -one[2]["value"])
    commands: tuple[str, ...] = ()
    for place, (name, entry, score) in enumerate(scored):
        needs = lacking(name, entry)
        if not needs:
            return Installed(name, score, commands, scored[0][0])
        if place == 0:
            commands = tuple(needs)
    return Installed(None, None, commands, scored[0][0] if scored else None)


def _lacking_of_system(name: str, entry: Entry) -> list[str]:
    """List the commands that a shipped system still needs."""
    published = index()
    files = [file for base in entry.get("bases", ()) for file in published.get(base, {}).get("files", ())]
    package = any(file.endswith(GGUF) for file in files) and find_spec("gguf") is None
    return [f"zoo checkpoints pull {base}" for base in bases_to_pull(name)] + (
        ["pip install 'emotion-zoo[gguf]'"] if package else []
    )


def _lacking_of_reader(name: str, entry: Entry) -> list[str]:
    """List the commands that a reader of faces still needs."""
    here = all((FETCHED / name / file).is_file() for file in entry["files"])
    return ([] if here else [f"zoo checkpoints pull {name}"]) + (
        [] if find_spec("dlib") else ["pip install 'emotion-zoo[faces]'"]
    )
