"""Rewards: an answer -> a number. A function of one argument is a reward; classes are for those with settings.

    def polite(answer):                       # in my_rewards.py
        return float("please" in answer.text)

    --model.reward_funcs+=my_rewards.polite

A reward returns one finite number, or None: it then does not apply to this answer, and neither its mean nor the sum of
the answer counts it. An answer to which no reward applies is worth 0. A reward that sees all answers of a window, or
asks somebody else, is a `zoo.rl.batch_rewards.BatchReward`.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import numbers
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from zoo.answers import label_words, parse_label
from zoo.schema import Sample


@dataclass(frozen=True)
class Answer:
    """A sampled answer as a reward sees it.

    Attributes:
        text: decoded, without special tokens.
        tokens: number of tokens, the end token included.
        finished: False if it was cut off at ``max_new_tokens``.
        sample: what was asked about. A reward that reads ``sample.target.label`` is supervised.
        words: the word that the system was to say for each label, in index order; None: the label words themselves.
    """

    text: str
    tokens: int
    finished: bool
    sample: Sample
    words: tuple[str, ...] | None = None

    @property
    def label(self) -> str | None:
        """The label that the evaluation reads in this answer, or None if it is unreadable."""
        names = self.sample.labels.names
        index = parse_label(self.text, names if self.words is None else self.words)
        return None if index is None else names[index]

    @property
    def named(self) -> str | None:
        """Return `label`; the old name is read in this release only."""
        warnings.warn("Answer.named is now Answer.label", FutureWarning, stacklevel=2)
        return self.label


Reward = Callable[[Answer], float | None]


class FailedReward(RuntimeError):
    """A reward of the user's raised an error, which is the cause of this one."""


def reward_name(reward: object) -> str:
    """Return the name under which a reward is logged: the function's or the class's."""
    return getattr(reward, "__name__", type(reward).__name__).lower()


def check_reward(reward: object) -> None:
    """Check that a reward can be called with one argument; ValueError if not."""
    if not callable(reward):
        raise ValueError(f"the reward {reward!r} is no function; expected one of an Answer, see zoo.rl.rewards")
    if inspect.iscoroutinefunction(reward):
        raise ValueError(
            f"reward {reward_name(reward)} is asynchronous, so it sees all answers of a window: write it as the "
            "__call__ of a class derived from zoo.rl.BatchReward"
        )
    try:
        signature = inspect.signature(reward)
    except (ValueError, TypeError):
        return  # of some built-in functions nobody knows it
    try:
        signature.bind(None)
    except TypeError:
        raise ValueError(f"reward {reward_name(reward)} takes {signature}; expected one argument, the Answer") from None


def evaluate_reward(reward: Reward, answer: Answer) -> float | None:
    """Return what a reward gives an answer; None where it does not apply.

    Raises:
        ValueError: it returned something else than one finite number or None; names the reward and the sample.
        FailedReward: it raised an error, which is the cause.
    """
    with _named(reward, answer):
        value = reward(replace(answer))  # a copy: what one reward does to it is not the next one's business
    return checked_number(reward, value, answer)


def checked_number(reward: object, value: Any, answer: Answer) -> float | None:
    """Return what a reward gave an answer as a float, or None. ValueError for anything else than one finite number."""
    if value is None:
        return None
    number = _number(value)
    if number is None:
        problem = f"returned {str(value)[:80]!r} ({type(value).__name__})"
    elif not math.isfinite(torch.tensor(number).item()):  # also what float32, the type of the sums, cannot hold
        problem = f"gave a number that is not finite: {number}"
    else:
        return number
    raise ValueError(
        f"reward {reward_name(reward)} {problem} for the sample {_id(answer)}; expected one finite number, or None "
        "where it does not apply"
    )


def _number(value: Any) -> float | None:
    """Return a number as float; a tensor or array of one element counts. None for everything else."""
    if isinstance(value, torch.Tensor) or hasattr(value, "__array__"):
        if math.prod(getattr(value, "shape", ())) != 1:
            return None
        value = value.item()
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else None


@contextlib.contextmanager
def _named(reward: Reward, answer: Answer) -> Iterator[None]:
    try:
        yield
    except SystemExit as error:
        raise ValueError(
            f"reward {reward_name(reward)} ended the program (exit code {error.code}) at the sample {_id(answer)}; "
            "expected one finite number, or None where it does not apply"
        ) from error
    except Exception as error:  # whatever a user's own code may raise: it is his error, with his traceback
        raise FailedReward(
            f"reward {reward_name(reward)} raised {type(error).__name__}: {error}, for the sample {_id(answer)} with "
            f"the answer {answer.text[:200]!r}"
        ) from error


def _id(answer: Answer) -> str:
    return answer.sample.id if answer.sample is not None else "(none)"


@dataclass(frozen=True)
class Overlength:
    """A reward for length, in tokens.

    Args:
        kind: ``paper``: equation of the selector paper to the letter, 0 up to `desired` tokens, then
            (longest - n) / (longest - desired) falling to 0 at `longest`, then -1 (a bonus band: it jumps to 1 just
            above `desired`). ``dapo`` (Yu et al. 2025, the term that paper cites): 0 up to longest - desired, then
            falling to -1 at `longest`; `desired` is the width of the falling part. ``code``: 1 for more than 1024
            characters, as the authors' script. ``none``: 0.
        desired: Lc.
        longest: Lm, above `desired`.
    """

    kind: Literal["paper", "dapo", "code", "none"] = "paper"
    desired: int = 64
    longest: int = 224

    def __post_init__(self) -> None:
        if self.kind not in ("paper", "dapo", "code", "none"):
            raise ValueError(f"unknown kind {self.kind!r}; expected paper, dapo, code or none")
        if not 0 < self.desired < self.longest:
            raise ValueError(f"need 0 < desired < longest, got {self.desired} and {self.longest}")

    def __call__(self, answer: Answer) -> float:
        n, width = answer.tokens, self.longest - self.desired
        if self.kind == "none":
            return 0.0
        if self.kind == "code":
            return float(len(answer.text) > 1024)
        if n > self.longest:
            return -1.0
        if self.kind == "paper":
            return (self.longest - n) / width if n > self.desired else 0.0
        return (width - n) / self.desired if n > width else 0.0


@dataclass(frozen=True)
class Correct:
    """1 for an answer in which the evaluation reads the right label, else 0. Supervised.

    It is 0 also where the right label is not known, so that such a prompt has no advantage.

    ``anger`` earns 1 for a sample labelled anger; ``not anger`` and ``anger or joy`` earn 0.

    Args:
        words: label -> word the answer is to use, where it differs and the system has no verbalizer. A system refuses
            words that are not those of its own verbalizer, by which its answers are evaluated.
    """

    words: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, answer: Answer) -> float:
        if self.words:
            answer = replace(answer, words=label_words(answer.sample.labels, self.words))
        return float(answer.label is not None and answer.label == answer.sample.target.label)
