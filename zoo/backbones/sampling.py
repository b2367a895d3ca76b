"""Which tokens an answer is drawn of, and what ends it, beside the end token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from zoo.backbones.llm import LLM


@dataclass(frozen=True)
class Sampling:
    """Filters of the distribution that tokens are drawn from, in this order, each renormalised, and stop strings.

    Of a distribution p they keep the tokens v with p(v) >= the k-th largest p (`top_k`), then those with
    sum of p(w) over p(w) > p(v) below `top_p`, then those with p(v) >= `min_p` max p.

    They change what is drawn only: the log-probabilities and entropies of an answer stay those of the whole
    distribution. Nothing in the filters waits for the device; stop strings are looked for where finished answers are.

    Args:
        top_k: the k most probable tokens (Fan et al. 2018), and those that are as probable as the last of them; 0: all.
        top_p: the fewest most probable tokens that together have at least this probability (Holtzman et al. 2020).
        min_p: tokens of at least this share of the probability of the most probable one (Nguyen et al. 2024).
        stop_strings: an answer ends with the token that completes the first of them.
    """

    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1 or self.top_k < 0 or not 0 <= (self.min_p or 0.0) <= 1:
            raise ValueError(
                "need top_p above 0 and up to 1, top_k of at least 0 (0: all tokens) and min_p from 0 to 1; got "
                f"{self.top_p}, {self.top_k} and {self.min_p}"
            )
        if not all(self.stop_strings):
            raise ValueError(f"stop_strings are texts of at least one character; got {list(self.stop_strings)}")

    @property
    def filters(self) -> bool:
        """Whether tokens are drawn from another distribution than the whole one."""
        return self.top_p < 1 or self.top_k > 0 or bool(self.min_p)

    def probabilities(self, logp: Tensor) -> Tensor:
        """Return (N, V) probabilities to draw from, given log-probabilities; they need not sum to 1."""
        if self.top_k:
            least = logp.topk(min(self.top_k, logp.shape[1])).values[:, -1:]
            logp = logp.masked_fill(logp < least, -math.inf)
        if self.top_p < 1:
            ordered, index = torch.softmax(logp, 1).sort(1, descending=True)
            before = ordered.cumsum(1) - ordered  # of the more probable ones: 0 for the first, which is always kept
            outside = torch.zeros_like(ordered, dtype=torch.bool).scatter(1, index, before >= self.top_p)
            logp = logp.masked_fill(outside, -math.inf)
        p = logp.exp()
        return p.masked_fill(p < self.min_p * p.amax(1, keepdim=True), 0.0) if self.min_p else p

    def cut(self, llm: LLM, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mask (N, T) of answers without what stands behind their first stop string, and which have one.

        Args:
            ids: (N, T) tokens of answers so far.
            mask: (N, T) bool, True on their real tokens, which stand before all others.
        """
        ends = [self._end(llm, row[real].tolist()) for row, real in zip(ids.cpu(), mask.cpu(), strict=True)]
        lengths = torch.tensor([mask.shape[1] if end is None else end for end in ends])
        before_end = (torch.arange(mask.shape[1]) < lengths[:, None]).to(mask.device)
        return mask & before_end, torch.tensor([end is not None for end in ends]).to(mask.device)

    def _end(self, llm: LLM, ids: list[int]) -> int | None:
        """Return the number of tokens up to the one that completes a stop string; None if none does."""

        def stops(n: int) -> bool:
            text = llm.tokenizer.decode(ids[:n], skip_special_tokens=True)
            return any(stop in text for stop in self.stop_strings)

        if not stops(len(ids)):
            return None
        return next(n for n in range(1, len(ids) + 1) if stops(n))
