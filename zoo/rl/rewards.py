"""Rewards: an answer -> a number. A function of one argument is a reward; classes are for those with settings.

    def polite(answer):                       # in my_rewards.py
        return float("please" in answer.text)

    --model.rewards+=my_rewards.polite
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from zoo.schema import Sample


@dataclass(frozen=True)
class Answer:
    """A sampled answer as a reward sees it.

    Attributes:
        text: decoded, without special tokens.
        tokens: number of tokens, the end token included.
        finished: False if it was cut off at ``max_new_tokens``.
        sample: what was asked about. A reward that reads ``sample.target.label`` is supervised.
    """

    text: str
    tokens: int
    finished: bool
    sample: Sample


Reward = Callable[[Answer], float]


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
    """1 for an answer that names the right label and no other, else 0; also 0 where the right one is not known, so that
    such a prompt has no advantage. Supervised.

    Args:
        words: label -> word the answer is to use, where it differs.
    """

    words: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, answer: Answer) -> float:
        said = answer.text.lower()
        names = answer.sample.labels.names
        patterns = {name: rf"(?<!\w){re.escape(self.words.get(name, name).lower())}(?!\w)" for name in names}
        named = [name for name in names if re.search(patterns[name], said)]
        return float(named == [answer.sample.target.label])
