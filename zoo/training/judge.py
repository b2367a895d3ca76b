"""A language model that rates explanations, as EMER's published clue and label overlap were given by one."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateError
from lightning.pytorch.utilities import rank_zero_info

from zoo.backbones.llm_client import AbortRun, ChatModel, Endpoint, LocalText, QueryFailed
from zoo.metrics import CachedJudge, Unscored
from zoo.prompts import PromptTemplate, load_template

TEMPLATES = Path(__file__).parent / "templates"
NUMBER = re.compile(r"(?<![\w./-])(\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*10)?(?![\w/]|\.\d)")


class Rating:
    """One score from 0 to 10 by one model and its prompts; a `zoo.metrics.Judge`.

    Args:
        score: what is rated, the first part of `name`.
        model: who is asked.
        prompt: template file, or the name of one of ours; shows ``reference`` and ``candidate``.
        summary: the same of a prompt that shows ``text`` and by which the model sums up both texts first; None: they
            are rated as they are.
        max_failures: questions without an answer, after which no further one is asked.

    Attributes:
        name: ``SCORE/MODEL/HASH``, with the beginning of the sha256 of the prompts.
    """

    def __init__(self, score: str, model: ChatModel, prompt: str, summary: str | None, max_failures: int) -> None:
        files = [_prompt_file(name) for name in (prompt, summary) if name is not None]
        self.prompt, *self.summary = (load_template(str(file), TEMPLATES) for file in files)
        content = b"".join(file.read_bytes() for file in files)
        self.name = f"{score}/{model.name}/{hashlib.sha256(content).hexdigest()[:8]}"
        self.model, self.max_failures, self.failures = model, max_failures, 0

    def __call__(self, reference: str, answer: str) -> float:
        """Return the rating.

        Raises:
            Unscored: the model gave no answer, or none with one number from 0 to 10.
            AbortRun: too many questions had no answer, or none would have one.
        """
        for prompt in self.summary:
            reference, answer = (self._ask(prompt, text=text) for text in (reference, answer))
        return read_rating(self._ask(self.prompt, reference=reference, candidate=answer))

    def _ask(self, prompt: PromptTemplate, **texts: str) -> str:
        try:
            return self.model(prompt.render(**texts).strip())
        except TemplateError as error:
            raise AbortRun(f"the judge's prompt cannot be filled: {error}; it may use {', '.join(texts)}") from None
        except QueryFailed as error:
            self.failures += 1
            if self.failures > self.max_failures:
                raise AbortRun(
                    f"the judge {self.name} left {self.failures} questions unanswered (max_failures "
                    f"{self.max_failures}), the last: {error}. Its scores so far are kept, and the answers stand in "
                    "predictions.jsonl"
                ) from None
            raise Unscored(str(error)) from None


def _prompt_file(name: str) -> Path:
    """Return a prompt's file: the user's own, or ours of this name. FileNotFoundError without one."""
    path = Path(name) if Path(name).is_file() else TEMPLATES / f"{name}.txt"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in TEMPLATES.glob("judge_*.txt")))
        raise FileNotFoundError(f"no prompt {name!r} for the judge: give a file, or one of {names}")
    return path


def read_rating(text: str) -> float:
    """Return the one number of an answer, from 0 to 10; ``7``, ``7.5``, ``7/10`` and ``7 out of 10`` are one.

    Raises:
        Unscored: there is none or more than one, or it is larger.
    """
    numbers = NUMBER.findall(text)
    if len(numbers) != 1 or float(numbers[0]) > 10:
        raise Unscored(f"expected one number from 0 to 10, got {text[:80]!r}")
    return float(numbers[0])


@dataclass(frozen=True)
class ExplanationJudge:
    """A language model that rates clue and label overlap of written explanations.

    As in the authors' evaluation, which is EMER's: it is asked how much of the reference's clues an answer names; and
    it first sums up the emotions of both texts, then is asked how well those agree. At temperature 0, in our own words.

    Each score's name says the model and the prompt, so those of two judges are never the same metric. There is no other
    judge in its place: what it does not rate is counted as unscored, and left out of the mean. Nothing is sent unless
    `send_to` names an address.

    Args:
        model: its name at ``send_to``, one that means the same weights tomorrow (``gpt-3.5-turbo-0125``; a server that
            answers as another model is refused); or ``local:PATH``, a language model of this machine.
        send_to: address of an OpenAI-style API, e.g. ``http://localhost:8000/v1``.
        key_env: environment variable that holds the key; None: no key.
        cache: file of the scores there are; what stands in it is not asked again. It holds no text.
        clue_prompt, label_prompt: ours, or files of your own that show ``reference`` and ``candidate``.
        emotions_prompt: ours, or a file of your own that shows ``text``.
        max_tokens: of an answer.
        timeout: seconds one request may take.
        max_failures: questions without an answer after which the test stops.
    """

    model: str
    send_to: str | None = None
    key_env: str | None = None
    cache: Path = Path("runs/judge.jsonl")
    clue_prompt: str = "judge_clue_overlap"
    label_prompt: str = "judge_label_overlap"
    emotions_prompt: str = "judge_emotions"
    max_tokens: int = 64
    timeout: float = 120.0
    max_failures: int = 20

    def __post_init__(self) -> None:
        if self.model.startswith("local:") == (self.send_to is not None):
            raise ValueError(
                f"the judge {self.model} has {'an' if self.send_to else 'no'} address; expected send_to for a model "
                "behind an OpenAI-style API, e.g. http://localhost:8000/v1, and none for local:PATH"
            )

    def ratings(self) -> Sequence[CachedJudge]:
        """Return who gives the scores, ready to be asked, clue overlap first.

        Raises:
            ValueError: an address that is none, a key that is not there, a damaged cache, a prompt that is none.
        """
        if self.key_env is not None and not os.environ.get(self.key_env):
            raise ValueError(
                f"the judge's environment variable {self.key_env} is not set; expected the key in it. Set it, or leave "
                "key_env out"
            )
        model: ChatModel
        if self.send_to is None:
            model = LocalText(self.model.removeprefix("local:"), self.max_tokens)
        else:
            key = None if self.key_env is None else os.environ[self.key_env]
            model = Endpoint(
                self.send_to, self.model, key, timeout=self.timeout, max_tokens=self.max_tokens, pinned=True
            )
            if not model.local:
                rank_zero_info(
                    f"leaves this machine, to {model.host} ({model.name}): reference and answer of each sample"
                )
        ratings = (
            Rating("clue_overlap", model, self.clue_prompt, None, self.max_failures),
            Rating("label_overlap", model, self.label_prompt, self.emotions_prompt, self.max_failures),
        )
        return [CachedJudge(rating, self.cache) for rating in ratings]
