"""The two passes of a step: sample a group of answers for every prompt, then learn from them.

`roll_out` decodes the answers to all prompts of an optimiser step in one batch; `accumulate_gradients` runs the forward
and backward passes of one optimiser step, some prompts at a time. Between them lie rewards and advantages. The language
model (`zoo.backbones.LLM`) is used through its verbs only, in which a prompt is computed once for all its answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from zoo.rl.grpo import Objective


class Rollout(NamedTuple):
    """Answers to B prompts, n each, of up to T tokens."""

    ids: Tensor  # (B, n, T) int64, right-padded
    loss_mask: Tensor  # (B, n, T) bool: True on the tokens that are learnt from, the end token included
    old_logprobs: Tensor  # (B, n, T) float32: of the sampler; 0 where masked
    finished: Tensor  # (B, n) bool: False if cut off
    entropy: Tensor  # (B, n, T) float32, nats; of every sampled token
    sampled_mask: Tensor | None = None  # (B, n, T) bool: True on every sampled token; None: as `loss_mask`
    # (B, n, T) float32: of an engine that sampled in place of the policy, whose own are `old_logprobs` then; else None
    sampler_logprobs: Tensor | None = None

    @property
    def sampled(self) -> Tensor:
        """(B, n, T) bool: every sampled token, those of answers that are left out of the loss included."""
        return self.loss_mask if self.sampled_mask is None else self.sampled_mask

    def first(self, n: int) -> Rollout:
        """Return the first n answers to every prompt."""
        parts: dict[str, Any] = {name: None if x is None else x[:, :n] for name, x in self._asdict().items()}
        return self._replace(**parts)

    def replaced(self, index: Tensor, other: Rollout) -> Rollout:
        """Return the rollout with the answers to some prompts (b,) int64 replaced by those of another, b prompts."""
        longest = max(self.ids.shape[2], other.ids.shape[2])

        def merged(old: Tensor, new: Tensor) -> Tensor:
            if old.ndim == 3:
                old, new = (torch.nn.functional.pad(x, (0, longest - x.shape[2])) for x in (old, new))
            return old.index_copy(0, index, new)

        mine, theirs = (x._replace(sampled_mask=x.sampled)._asdict() for x in (self, other))
        parts: dict[str, Any] = {n: None if x is None else merged(x, theirs[n]) for n, x in mine.items()}
        return self._replace(**parts)

    def rows(self, index: Tensor) -> Rollout:
        """Return some of the prompts, cut to the longest answer among them."""
        longest = max(1, int(self.loss_mask[index].any(0).any(0).sum()))

        def part(values: Tensor) -> Tensor:
            return values[index, :, :longest] if values.ndim == 3 else values[index]

        return Rollout(
            part(self.ids),
            part(self.loss_mask),
            part(self.old_logprobs),
            part(self.finished),
            part(self.entropy),
            None if self.sampled_mask is None else part(self.sampled_mask),
            None if self.sampler_logprobs is None else part(self.sampler_logprobs),
        )


class Prompts(Protocol):
    """An encoded prompt batch: `zoo.backbones.llm.Prefix`."""

    embeddings: Tensor

    def rows(self, index: Tensor) -> Self: ...


class Writer(Protocol):
    """What writes answers: `zoo.backbones.LLM`, or an engine."""

    def sample(self, *args: Any, **kwargs: Any) -> Any: ...


class Policy(Writer, Protocol):
    """What is needed of a language model: `zoo.backbones.LLM`."""

    def logprobs(self, prefix: Any, answers: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor: ...

    def logprobs_and_entropies(
        self, prefix: Any, answers: Tensor, mask: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]: ...

    def reference(self) -> Any: ...


@torch.no_grad()
def roll_out(
    llm: Writer,
    prompts: Prompts,
    n: int,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    mask_truncated: bool = False,
    **how: Any,
) -> Rollout:
    """Sample n answers of each prompt, with dropout off.

    Args:
        prompts: of the whole optimiser step: decoding is bound by reading the weights, so one batch costs little more
            than a quarter of it.
        mask_truncated: answers that were cut off are left out of the loss (their tokens, not their place in the
            group), as DAPO and TRL's ``mask_truncated_completions``.
        how: further options of the language model's ``sample``, which its log-probabilities do not depend on.
    """
    samples = llm.sample(prompts, n, max_new_tokens=max_new_tokens, temperature=temperature, generator=generator, **how)
    mask = samples.mask & samples.finished[..., None] if mask_truncated else samples.mask
    old_logprobs = samples.logprobs.masked_fill(~mask, 0.0)
    return Rollout(samples.ids, mask, old_logprobs, samples.finished, samples.entropy, samples.mask)


def accumulate_gradients(
    llm: Policy,
    encoders: Sequence[Callable[[], Prompts]],
    rollout: Rollout,
    advantages: Tensor,
    weights: Tensor,
    objective: Objective,
    *,
    temperature: float = 1.0,
    on_policy: bool = True,
    backward: Callable[[Tensor], None] = Tensor.backward,
    every_pass: bool = False,
    tokens: float | None = None,
) -> Mapping[str, Tensor]:
    """Run the forward and backward passes of one optimiser step; gradients add up in the parameters.

    Groups without any gradient (see `Objective.without_gradient`, or all their answers left out) cost nothing; their
    tokens still count in `weights`.

    Args:
        encoders: for each pass, what encodes its prompts (anew, because a backward pass frees its graph), in the order
            of the rollout.
        rollout: of all prompts.
        advantages: (B, n), see `Objective.advantages`.
        weights: (B, n, T), see `token_weights`.
        on_policy: the first update after sampling: the sampler's log-probabilities are the policy's own, so they are
            taken from the same pass and the ratio is exactly 1. Else ``rollout.old_logprobs`` is used.
        every_pass: compute groups without any gradient, too: where weights are divided, all processes make equally many
            passes.
        tokens: answer tokens of the step that are learnt from, in all processes, over which the entropy bonus is a
            mean; None: those of the rollout.

    Returns:
        sums over the step: ``loss`` and what `Objective.statistics` names.

    Raises:
        ValueError: the passes do not hold as many prompts as the rollout.
    """
    skipped = objective.without_gradient(advantages) | ~rollout.loss_mask.flatten(1).any(1)
    if every_pass:
        skipped = torch.zeros_like(skipped)
    sums = {name: advantages.new_zeros(()) for name in ("loss", *objective.statistics)}
    start = 0
    for encode in encoders:
        prompts = encode()
        stop = start + len(prompts.embeddings)
        if stop > len(skipped):
            raise ValueError(f"the batches hold more prompts than the {len(skipped)} of the rollout")
        index = torch.arange(start, stop, device=skipped.device)[~skipped[start:stop]]
        first, start = start, stop
        if not len(index):
            continue
        prompts, part = prompts.rows(index - first), rollout.rows(index)
        reference = None
        if objective.beta:
            with torch.no_grad(), llm.reference():
                reference = llm.logprobs(prompts, part.ids, part.loss_mask, temperature)
        bonus: Tensor | float = 0.0
        if objective.entropy_coef:
            logprobs, entropies = llm.logprobs_and_entropies(prompts, part.ids, part.loss_mask, temperature)
            learnt = float(rollout.loss_mask.sum()) if tokens is None else tokens
            bonus = objective.entropy_coef * entropies.sum() / max(learnt, 1.0)  # 0 where masked
        else:
            logprobs = llm.logprobs(prompts, part.ids, part.loss_mask, temperature)
        old_logprobs = logprobs.detach() if on_policy else part.old_logprobs
        part_weights = weights[index, :, : part.loss_mask.shape[2]]
        loss, statistics = objective.loss(logprobs, old_logprobs, reference, advantages[index], part_weights)
        loss = loss - bonus if objective.entropy_coef else loss
        backward(loss)
        for name, value in {"loss": loss.detach(), **statistics}.items():
            sums[name] = sums[name] + value
    if start != len(skipped):
        raise ValueError(f"the batches hold {start} prompts, the rollout {len(skipped)}")
    return sums
