"""From samples to prompt text (`zoo.answers` reads the way back). No tensors here.

A prompt is a Jinja template (sandboxed: a template file cannot reach Python). It sees

    labels    list of label words, in the words the model is to use
    target    the utterance: .speaker .text .descriptions (dict kind -> text, only the kinds asked for)
    history   the window of earlier turns, oldest first, each with the same three
    later     the window of later turns, in the same form; empty unless a system shows them
    examples  solved examples: each with .target, .history, .label

and ends where the answer begins; white space at its end is dropped, the answer follows as `` word``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jinja2
from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from zoo.answers import label_words, parse_label
from zoo.schema import Sample, Turn
from zoo.templates import BadTemplate, bounded

__all__ = [
    "Example",
    "TurnView",
    "count_control_tokens",
    "escape",
    "label_words",
    "load_template",
    "parse_label",
    "render",
    "turn_view",
]

# Control tokens of the chat formats in use. Found in data they would be read as structure: they are written apart and
# counted.
CONTROL = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|\[/?INST\]|\[PAD\]|<</?SYS>>"
    r"|</?(?:s|pad|unk|bos|eos|image|video|audio|img|think|answer|tool_call|start_of_turn|end_of_turn)>",
    re.IGNORECASE,
)
RAISED = {kind.__name__: kind for kind in (jinja2.UndefinedError, SecurityError, OverflowError, TypeError)}
PACKAGE = Path(__file__).resolve().parent  # whose own templates are known


@dataclass(frozen=True)
class TurnView:
    """A turn as templates see it."""

    speaker: str
    text: str
    descriptions: Mapping[str, str]


@dataclass(frozen=True)
class Example:
    """A solved example as templates see it."""

    target: TurnView
    history: tuple[TurnView, ...]
    label: str


class PromptTemplate(Protocol):
    """What a prompt is rendered with: a template of Jinja, or one that is rendered within limits."""

    def render(self, **variables: object) -> str:
        """Return the text."""


def escape(text: str) -> str:
    """Write control tokens apart (``<|eot_id|>`` -> ``< |eot_id| >``), so that a tokenizer reads them as plain text."""
    return CONTROL.sub(lambda m: f"{m[0][0]} {m[0][1:-1]} {m[0][-1]}", text)


def count_control_tokens(samples: Sequence[Sample]) -> int:
    """Count the samples whose utterance holds a control token (see `escape`)."""
    return sum(bool(CONTROL.search(s.target.text)) for s in samples)


@functools.cache
def load_template(name: str, folder: Path) -> PromptTemplate:
    """Load a template by path, by name from ``folder`` (the paper's ``templates/``), or another paper's as PAPER/NAME.

    Raises:
        FileNotFoundError: neither a file nor a name in ``folder``; lists the names.
        ValueError: not a valid template.
    """
    paper, _, short_name = name.rpartition("/")
    candidates = (Path(name), folder / f"{name}.txt", folder.parents[1] / paper / "templates" / f"{short_name}.txt")
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        names = ", ".join(sorted(p.stem for p in folder.glob("*.txt")))
        raise FileNotFoundError(f"no prompt template {name!r}: give a file, or one of {names}")
    try:
        text = path.read_text(encoding="utf-8")
        if path.resolve().is_relative_to(PACKAGE):
            return _compiled(text)
        bounded(_checked, text)  # compiling already computes what is constant
        return _Foreign(path, text)
    except (TemplateError, UnicodeDecodeError, BadTemplate) as error:
        raise ValueError(f"prompt template {path}: {error}") from error


@functools.cache
def _compiled(text: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    return environment.from_string(text)


def _checked(text: str) -> str:
    _compiled(text)
    return ""


def _rendered(text: str, variables: Mapping[str, object]) -> str:
    return _compiled(text).render(**variables)


class _Foreign:
    """A template that does not come with the zoo, rendered within the limits of `zoo.templates`."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text

    def render(self, **variables: object) -> str:
        """Return the text; a `TemplateError`, as Jinja raises it, for a template that fails or does not end."""
        try:
            return bounded(_rendered, self.text, variables)
        except BadTemplate as error:
            name, _, message = str(error).partition(": ")
            if name in RAISED:
                raise RAISED[name](f"prompt template {self.path}: {message}") from None
            raise TemplateError(f"prompt template {self.path}: {error}") from None


def turn_view(turn: Turn, descriptions: Collection[str]) -> TurnView:
    """Return a turn as templates see it, with these kinds of description."""
    described = {kind: escape(text) for kind, text in turn.descriptions.items() if kind in descriptions}
    return TurnView(escape(turn.speaker), escape(turn.text), described)


def render(
    template: PromptTemplate,
    sample: Sample,
    *,
    window: int | None,
    later_window: int = 0,
    descriptions: Collection[str] = (),
    words: Sequence[str],
    examples: Sequence[Sample] = (),
    verbalizer: Mapping[str, str] | None = None,
    variables: Mapping[str, str] | None = None,
) -> str:
    """Return the prompt text of one sample.

    Args:
        window: number of earlier turns to show, of the sample and of each example; None shows all.
        later_window: number of later turns to show, of the sample alone.
        descriptions: kinds of description to show.
        words: label words (see `label_words`).
        examples: solved examples, in order; each must be labelled.
        verbalizer: label -> word of the examples, where it differs.
        variables: further variables of the template.

    Raises:
        ValueError: an example is unlabelled.
    """
    unlabelled = [e.id for e in examples if e.label < 0]
    if unlabelled:
        raise ValueError(f"a solved example needs its label; {unlabelled} have none")

    def history(s: Sample) -> tuple[TurnView, ...]:
        return tuple(turn_view(t, descriptions) for t in s.context(window))

    solved = [
        Example(turn_view(e.target, descriptions), history(e), label_words(e.labels, verbalizer)[e.label])
        for e in examples
    ]
    return template.render(
        labels=list(words),
        target=turn_view(sample.target, descriptions),
        history=history(sample),
        later=[turn_view(t, descriptions) for t in sample.later[:later_window]],
        examples=solved,
        **(variables or {}),
    ).rstrip()
