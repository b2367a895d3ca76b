"""The two passes of a step: sample a group of answers for every prompt, then learn from them.

`roll_out` decodes the answers to all prompts of an optimiser step in one batch; `accumulate` runs the forward and
backward passes of one optimiser step, some prompts at a time. Between them lie rewards and advantages. The language
model (`zoo.backbones.LLM`) is used through its verbs only, in which a prompt is computed once for all its answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from zoo.rl.grpo import Objective


class Rollout(NamedTuple):
    """Answers to B prompts, n each, of up to T tokens."""

    ids: Tensor  # (B, n, T) int64, right-padded
    mask: Tensor  # (B, n, T) bool: True on the tokens that are learnt from, the end token included
    old: Tensor  # (B, n, T) float32: log-probabilities of the sampler; 0 where masked
    finished: Tensor  # (B, n) bool: False if cut off
    entropy: Tensor  # (B, n, T) float32, nats; of every sampled token
    drawn: Tensor | None = None  # (B, n, T) bool: True on every sampled token; None: `mask`, nothing was left out

    @property
    def sampled(self) -> Tensor:
        """(B, n, T) bool: every sampled token, those of answers that are left out of the loss included."""
        return self.mask if self.drawn is None else self.drawn

    def rows(self, index: Tensor) -> Rollout:
        """Some of the prompts, cut to the longest answer among them."""
        longest = max(1, int(self.mask[index].any(0).any(0).sum()))

        def part(values: Tensor | None) -> Tensor | None:
            if values is None:
                return None
            return values[index, :, :longest] if values.ndim == 3 else values[index]

        return Rollout(*map(part, self))


class Prompts(Protocol):
    """An encoded prompt batch: `zoo.backbones.llm.Prefix`."""

    embeddings: Tensor

    def rows(self, index: Tensor) -> Prompts: ...


class Policy(Protocol):
    """What is needed of a language model: `zoo.backbones.LLM`."""

    def sample(self, prefix: Any, n: int, **options: Any) -> Any: ...

    def logprobs(self, prefix: Any, answers: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor: ...

    def reference(self) -> Any: ...


@torch.no_grad()
def roll_out(
    llm: Policy,
    prompts: Prompts,
    n: int,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    drop_truncated: bool = False,
) -> Rollout:
    """n answers of each prompt, dropout off.

    Args:
        prompts: of the whole optimiser step: decoding is bound by reading the weights, so one batch costs little more
            than a quarter of it.
        drop_truncated: answers that were cut off are left out of the loss (their tokens, not their place in the
            group), as DAPO and TRL's ``mask_truncated_completions``.
    """
    drawn = llm.sample(prompts, n, max_new_tokens=max_new_tokens, temperature=temperature, generator=generator)
    mask = drawn.mask & drawn.finished[..., None] if drop_truncated else drawn.mask
    return Rollout(drawn.ids, mask, drawn.logprobs.masked_fill(~mask, 0.0), drawn.finished, drawn.entropy, drawn.mask)


def accumulate(
    llm: Policy,
    batches: Sequence[Callable[[], Prompts]],
    rollout: Rollout,
    signal: Tensor,
    weights: Tensor,
    objective: Objective,
    *,
    temperature: float = 1.0,
    on_policy: bool = True,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> Mapping[str, Tensor]:
    """Forward and backward passes of one optimiser step; gradients add up in the parameters.

    Groups without any gradient (see `Objective.idle`, or all their answers left out) cost nothing; their tokens still
    count in `weights`.

    Args:
        batches: for each pass, what encodes its prompts (anew, because a backward pass frees its graph), in the order
            of the rollout.
        rollout: of all prompts.
        signal: (B, n), see `Objective.signal`.
        weights: (B, n, T), see `token_weights`.
        on_policy: the first update after sampling: the sampler's log-probabilities are the policy's own, so they are
            taken from the same pass and the ratio is exactly 1. Else ``rollout.old`` is used.

    Returns:
        sums over the step: ``loss`` and what `Objective.loss` counts.

    Raises:
        ValueError: the batches do not hold as many prompts as the rollout.
    """
    idle, start = objective.idle(signal) | ~rollout.mask.flatten(1).any(1), 0
    sums = {name: signal.new_zeros(()) for name in ("loss", *objective.counted)}
    for encode in batches:
        prompts = encode()
        stop = start + len(prompts.embeddings)
        index = torch.arange(start, stop, device=idle.device)
        if stop > len(idle):
            raise ValueError(f"the batches hold more prompts than the {len(idle)} of the rollout")
        index, start = index[~idle[start:stop]], stop
        if not len(index):
            continue
        prompts, part = prompts.rows(index - (stop - len(prompts.embeddings))), rollout.rows(index)
        reference = None
        if objective.beta:
            with torch.no_grad(), llm.reference():
                reference = llm.logprobs(prompts, part.ids, part.mask, temperature)
        logprobs = llm.logprobs(prompts, part.ids, part.mask, temperature)
        old = logprobs.detach() if on_policy else part.old
        loss, counted = objective.loss(logprobs, old, reference, signal[index], weights[index, :, : part.mask.shape[2]])
        backward(loss)
        for name, value in {"loss": loss.detach(), **counted}.items():
            sums[name] = sums[name] + value
    if start != len(idle):
        raise ValueError(f"the batches hold {start} prompts, the rollout {len(idle)}")
    return sums
