"""Group-relative policy optimisation (Shao et al. 2024) and its relatives, as functions of log-probabilities.

Shapes: B prompts, n answers of each, up to T tokens. Every objective here is maximised; `Objective.loss` returns the
negative.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["grpo_clip", "reinforce_group", "ppo_reward", "ppo_advantage"]
Normalize = Literal["sequence", "token", "constant", "sum"]
Estimator = Literal["k1", "k2", "k3", "k3_corrected"]
ScaleRewards = Literal["group", "none"]


def group_advantages(rewards: Tensor, scale_rewards: ScaleRewards = "group", eps: float = 1e-4) -> Tensor:
    """Return rewards relative to their group: r - mean, over std + eps where scaled.

    From Shao et al. 2024; without the scale, Liu et al. 2025.

    Args:
        rewards: (B, n); the standard deviation is the unbiased one, as in TRL.

    Returns:
        (B, n) float32; exactly 0 where all rewards of a group are equal, and for n = 1.
    """
    if scale_rewards not in get_args(ScaleRewards):
        raise ValueError(
            f"unknown scale_rewards {scale_rewards!r}; expected one of {', '.join(get_args(ScaleRewards))}"
        )
    rewards = rewards.float()
    if rewards.shape[1] == 1:
        return torch.zeros_like(rewards)
    centred = rewards - rewards.mean(1, keepdim=True)
    if scale_rewards == "group":
        centred = centred / (rewards.std(1, keepdim=True) + eps)
    return centred.masked_fill(
        zero_variance_groups(rewards)[:, None], 0.0
    )  # a mean of equal numbers may be off by rounding


def zero_variance_groups(rewards: Tensor) -> Tensor:
    """Return (B,) bool: the groups whose rewards are all equal.

    Compared exactly: the standard deviation of equal floats is not reliably 0.
    """
    return (rewards == rewards[:, :1]).all(1)


def kl_divergence(logprobs: Tensor, reference: Tensor, kind: Estimator, old_logprobs: Tensor | None = None) -> Tensor:
    """Estimate KL(policy || reference) at each sampled token (Schulman 2020).

    ``k1`` is unbiased but signed; ``k3`` is positive, and as a loss has the expected gradient of the *forward* KL;
    ``k3_corrected`` multiplies it by the importance ratio to the sampler, whose gradient is that of the reverse KL
    (TRL's ``use_bias_correction_kl``); the ratio's value is 1 on policy, its gradient is not 0.

    Args:
        logprobs, reference: (...) log-probabilities of the same tokens.
        old_logprobs: of the sampler; needed by ``k3_corrected``.
    """
    delta = reference - logprobs
    if kind == "k1":
        return -delta
    if kind == "k2":
        return delta.square() / 2
    k3 = delta.exp() - delta - 1
    if kind == "k3":
        return k3
    if old_logprobs is None:
        raise ValueError("k3_corrected needs the sampler's log-probabilities; give old_logprobs")
    return k3 * (logprobs - old_logprobs).exp()


def token_weights(
    loss_mask: Tensor, normalize: Normalize, max_tokens: int, totals: tuple[float, float] | None = None
) -> Tensor:
    """Return the weight of each token in the loss of one optimiser step.

    Any split of the step into smaller passes gives the same result. ``sequence``: mean over tokens, then over answers
    (GRPO as published; TRL ``grpo``). ``token``: mean over all tokens (``dapo``; ``bnpo``, where TRL does not
    accumulate). ``constant``: every answer's sum over `max_tokens` (``dr_grpo``). ``sum``: every answer's sum, then
    their mean: A log pi(answer), as MERIT writes it.

    Args:
        loss_mask: (B, n, T) bool of the whole step. An answer without tokens counts as an answer.
        max_tokens: longest answer that could have been sampled.
        totals: answers and tokens of all processes; those of `loss_mask` if None.

    Returns:
        (B, n, T) float32; 0 where masked.
    """
    answers, tokens = totals or (float(loss_mask.shape[0] * loss_mask.shape[1]), float(loss_mask.sum()))
    real = loss_mask.float()
    if normalize == "token":
        return real / max(tokens, 1.0)
    if normalize == "sequence":
        return real / loss_mask.sum(2, keepdim=True).clamp(min=1) / answers
    return real / (answers * max_tokens if normalize == "constant" else answers)


@dataclass(frozen=True)
class Objective:
    """The objective that a step maximises.

    Args:
        kind: ``grpo_clip``: min(r A, clip(r) A) per token. ``reinforce_group``: A log pi, neither ratio nor clip
            (MERIT's GRPO to the letter). ``ppo_reward``: min(r R, clip(r) R) with the ratio of whole answers and the
            reward itself (MERIT's PPO to the letter: it pushes every rewarded answer up). ``ppo_advantage``: the same
            with the advantage.
        normalize: see `token_weights`. For the two ``ppo`` kinds, ``sum`` takes the ratio of whole answers and
            ``sequence`` its geometric mean over tokens.
        epsilon, epsilon_high: the ratio is kept within [1 - epsilon, 1 + epsilon_high].
        dual_clip: with a negative advantage the term is at least this times it (Ye et al. 2020); None: unbounded.
        beta: weight of the divergence from the reference.
        kl: its estimator, see `kl_divergence`.
        positive_only: answers below their group's mean give no gradient (ours).
    """

    kind: Kind = "grpo_clip"
    normalize: Normalize = "token"
    epsilon: float = 0.2
    epsilon_high: float = 0.2
    dual_clip: float | None = None
    beta: float = 0.0
    kl: Estimator = "k3"
    positive_only: bool = False

    def __post_init__(self) -> None:
        for name, known in (("kind", Kind), ("normalize", Normalize), ("kl", Estimator)):
            value = getattr(self, name)
            if value not in get_args(known):
                raise ValueError(f"unknown {name} {value!r}; expected one of {', '.join(get_args(known))}")
        if not (0 <= self.epsilon <= 1 and 0 <= self.epsilon_high < math.inf and 0 <= self.beta < math.inf):
            raise ValueError(
                f"need 0 <= epsilon <= 1, epsilon_high >= 0 and beta >= 0; got {self.epsilon}, {self.epsilon_high}, "
                f"{self.beta}"
            )
        if self.dual_clip is not None and not 1 < self.dual_clip < math.inf:
            raise ValueError(f"dual_clip bounds what clip leaves open, so it must be above 1; got {self.dual_clip}")
        if self.kind.startswith("ppo") and self.normalize not in ("sum", "sequence"):
            raise ValueError(
                f"{self.kind} has one ratio per answer: normalize must be sum or sequence, not {self.normalize}"
            )

    def advantages(self, rewards: Tensor, scale_rewards: ScaleRewards = "group") -> Tensor:
        """Return what multiplies each answer, (B, n): its advantage, or for ``ppo_reward`` the reward itself.

        Args:
            rewards: (B, n).
            scale_rewards: see `group_advantages`.
        """
        values = rewards.float() if self.kind == "ppo_reward" else group_advantages(rewards, scale_rewards)
        return values.clamp(min=0) if self.positive_only else values

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the sums that `loss` returns beside the loss."""
        clips = () if self.kind == "reinforce_group" else ("clip_ratio/low", "clip_ratio/high")
        return (*clips, "kl") if self.beta else clips

    def without_gradient(self, advantages: Tensor) -> Tensor:
        """Return (B,) bool: groups that give no gradient at all, so that they need no pass.

        None is without while beta > 0: the divergence still pulls.
        """
        return (advantages == 0).all(1) & (self.beta == 0)

    def loss(
        self, logprobs: Tensor, old_logprobs: Tensor, reference: Tensor | None, advantages: Tensor, weights: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss of some groups of a step; those of all groups add up to the step's.

        Args:
            logprobs: (B, n, T) of the policy, with gradients.
            old_logprobs: (B, n, T) of the sampler.
            reference: (B, n, T) of the reference; None if beta is 0.
            advantages: (B, n), see `advantages`.
            weights: (B, n, T), see `token_weights`.

        Returns:
            the loss, and sums over answer tokens, weighted as the loss is, of what `statistics` names.
        """
        real = weights > 0
        log_ratio = torch.where(real, logprobs - old_logprobs, 0.0)
        a = advantages[..., None]
        sums: dict[str, Tensor] = {}
        if self.kind == "reinforce_group":
            gain = (weights * a * torch.where(real, logprobs, 0.0)).sum()
        else:
            whole = self.kind.startswith("ppo")
            if whole:  # one ratio per answer; its weight is that of its tokens together
                length = real.sum(2, keepdim=True).clamp(min=1) if self.normalize == "sequence" else 1
                log_ratio = log_ratio.sum(2, keepdim=True) / length
            per = weights.sum(2, keepdim=True) if self.normalize == "sequence" else weights.amax(2, keepdim=True)
            per = per if whole else weights
            ratio = log_ratio.exp()
            term = torch.minimum(ratio * a, ratio.clamp(1 - self.epsilon, 1 + self.epsilon_high) * a)
            if self.dual_clip is not None:
                term = torch.where(a < 0, torch.maximum(term, self.dual_clip * a), term)
            gain = (per * term).sum()
            with torch.no_grad():
                sums["clip_ratio/low"] = (per * ((ratio < 1 - self.epsilon) & (a < 0))).sum()
                sums["clip_ratio/high"] = (per * ((ratio > 1 + self.epsilon_high) & (a > 0))).sum()
        if self.beta:
            if reference is None:
                raise ValueError("beta > 0 needs the reference's log-probabilities")
            kl = torch.where(real, kl_divergence(logprobs, reference, self.kl, old_logprobs), 0.0)
            gain = gain - self.beta * (weights * kl).sum()
            sums["kl"] = (weights * kl.detach()).sum()
        return -gain, sums
