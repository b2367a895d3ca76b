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
from zoo.prompts import load_template

TEMPLATES = Path(__file__).parent / "templates"
SCORES = ("clue_overlap", "label_overlap")
NUMBER = re.compile(r"(?<![\w./-])(\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*10)?(?![\w/]|\.\d)")


class Rating:
    """One score from 0 to 10 by one model and one prompt; a `zoo.metrics.Judge`.

    Args:
        score: what is rated, the first part of `name`.
        model: who is asked.
        prompt: template file, or the name of one of ours; shows ``reference`` and ``candidate``.
        max_failures: questions without an answer, after which no further one is asked.

    Attributes:
        name: ``SCORE/MODEL/HASH``, with the beginning of the sha256 of the prompt.
    """

    def __init__(self, score: str, model: ChatModel, prompt: str, max_failures: int) -> None:
        self.template = load_template(prompt, TEMPLATES)
        path = Path(prompt) if Path(prompt).is_file() else TEMPLATES / f"{prompt}.txt"
        self.name = f"{score}/{model.name}/{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
        self.model, self.max_failures, self.failures = model, max_failures, 0

    def __call__(self, reference: str, answer: str) -> float:
        """Return the rating.

        Raises:
            Unscored: the model gave no answer, or none with one number from 0 to 10.
            AbortRun: too many questions had no answer, or none would have one.
        """
        try:
            text = self.model(self.template.render(reference=reference, candidate=answer).strip())
        except TemplateError as error:
            raise AbortRun(f"the judge's prompt cannot be filled: {error}; it may use reference, candidate") from None
        except QueryFailed as error:
            self.failures += 1
            if self.failures > self.max_failures:
                raise AbortRun(
                    f"the judge {self.name} left {self.failures} questions unanswered (max_failures "
                    f"{self.max_failures}), the last: {error}. Its scores so far are kept, and the answers stand in "
                    "predictions.jsonl"
                ) from None
            raise Unscored(str(error)) from None
        return read_rating(text)


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
    """A language model that rates clue and label overlap of written explanations from 0 to 10.

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
        prompts = zip(SCORES, (self.clue_prompt, self.label_prompt), strict=True)
        return [CachedJudge(Rating(score, model, prompt, self.max_failures), self.cache) for score, prompt in prompts]
