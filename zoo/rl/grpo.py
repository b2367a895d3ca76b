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


def advantages(rewards: Tensor, scale: Literal["std", "none"] = "std", eps: float = 1e-4) -> Tensor:
    """Rewards relative to their group: r - mean, over std + eps where scaled (Shao et al. 2024; without the scale:
    Liu et al. 2025).

    Args:
        rewards: (B, n); the standard deviation is the unbiased one, as in TRL.

    Returns:
        (B, n) float32; exactly 0 where all rewards of a group are equal, and for n = 1.
    """
    rewards = rewards.float()
    if rewards.shape[1] == 1:
        return torch.zeros_like(rewards)
    centred = rewards - rewards.mean(1, keepdim=True)
    if scale == "std":
        centred = centred / (rewards.std(1, keepdim=True) + eps)
    return centred.masked_fill(constant(rewards)[:, None], 0.0)  # a mean of equal numbers may be off by rounding


def constant(rewards: Tensor) -> Tensor:
    """(B,) bool: groups whose rewards are all equal; compared as numbers, because a std of 0 is rounding's choice."""
    return (rewards == rewards[:, :1]).all(1)


def divergence(logprobs: Tensor, reference: Tensor, kind: Estimator, old: Tensor | None = None) -> Tensor:
    """Estimate of KL(policy || reference) at each sampled token (Schulman 2020).

    ``k1`` is unbiased but signed; ``k3`` is positive, and as a loss has the expected gradient of the *forward* KL;
    ``k3_corrected`` multiplies it by the importance ratio to the sampler, whose gradient is that of the reverse KL
    (TRL's ``use_bias_correction_kl``); the ratio's value is 1 on policy, its gradient is not 0.

    Args:
        logprobs, reference: (...) log-probabilities of the same tokens.
        old: of the sampler; needed by ``k3_corrected``.
    """
    delta = reference - logprobs
    if kind == "k1":
        return -delta
    if kind == "k2":
        return delta.square() / 2
    k3 = delta.exp() - delta - 1
    return k3 if kind == "k3" else k3 * (logprobs - old).exp()


def token_weights(
    mask: Tensor, normalize: Normalize, longest: int, totals: tuple[float, float] | None = None
) -> Tensor:
    """Weight of each token in the loss of one optimiser step, so that any split into smaller passes gives one result.

    ``sequence``: mean over tokens, then over answers (GRPO as published; TRL ``grpo``). ``token``: mean over all tokens
    (``dapo``; ``bnpo``, where TRL does not accumulate). ``constant``: every answer's sum over `longest` (``dr_grpo``).
    ``sum``: every answer's sum, then their mean: A log pi(answer), as MERIT writes it.

    Args:
        mask: (B, n, T) bool of the whole step. An answer without tokens counts as an answer.
        totals: answers and tokens of all processes; those of `mask` if None.

    Returns:
        (B, n, T) float32; 0 where masked.
    """
    answers, tokens = totals or (float(mask.shape[0] * mask.shape[1]), float(mask.sum()))
    real = mask.float()
    if normalize == "token":
        return real / max(tokens, 1.0)
    if normalize == "sequence":
        return real / mask.sum(2, keepdim=True).clamp(min=1) / answers
    return real / (answers * longest if normalize == "constant" else answers)


@dataclass(frozen=True)
class Objective:
    """What a step maximises.

    Args:
        kind: ``grpo_clip``: min(r A, clip(r) A) per token. ``reinforce_group``: A log pi, neither ratio nor clip
            (MERIT's GRPO to the letter). ``ppo_reward``: min(r R, clip(r) R) with the ratio of whole answers and the
            reward itself (MERIT's PPO to the letter: it pushes every rewarded answer up). ``ppo_advantage``: the same
            with the advantage.
        normalize: see `token_weights`. For the two ``ppo`` kinds, ``sum`` takes the ratio of whole answers and
            ``sequence`` its geometric mean over tokens.
        clip_low, clip_high: the ratio is kept within [1 - clip_low, 1 + clip_high].
        dual_clip: with a negative advantage the term is at least this times it (Ye et al. 2020); None: unbounded.
        beta: weight of the divergence from the reference.
        kl: its estimator, see `divergence`.
        positive_only: answers below their group's mean give no gradient (ours).
    """

    kind: Kind = "grpo_clip"
    normalize: Normalize = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    beta: float = 0.0
    kl: Estimator = "k3"
    positive_only: bool = False

    def __post_init__(self) -> None:
        for name, known in (("kind", Kind), ("normalize", Normalize), ("kl", Estimator)):
            said = getattr(self, name)
            if said not in get_args(known):
                raise ValueError(f"unknown {name} {said!r}; expected one of {', '.join(get_args(known))}")
        if not (0 <= self.clip_low <= 1 and 0 <= self.clip_high < math.inf and 0 <= self.beta < math.inf):
            raise ValueError(
                f"need 0 <= clip_low <= 1, clip_high >= 0 and beta >= 0; got {self.clip_low}, {self.clip_high}, "
                f"{self.beta}"
            )
        if self.dual_clip is not None and not 1 < self.dual_clip < math.inf:
            raise ValueError(f"dual_clip bounds what clip leaves open, so it must be above 1; got {self.dual_clip}")
        if self.kind.startswith("ppo") and self.normalize not in ("sum", "sequence"):
            raise ValueError(
                f"{self.kind} has one ratio per answer: normalize must be sum or sequence, not {self.normalize}"
            )

    def signal(self, rewards: Tensor, scale: Literal["std", "none"] = "std") -> Tensor:
        """(B, n) rewards -> what multiplies each answer: its advantage, or the reward itself (``ppo_reward``)."""
        signal = rewards.float() if self.kind == "ppo_reward" else advantages(rewards, scale)
        return signal.clamp(min=0) if self.positive_only else signal

    @property
    def counted(self) -> tuple[str, ...]:
        """What `loss` counts beside the loss."""
        clips = () if self.kind == "reinforce_group" else ("clip_ratio/low", "clip_ratio/high")
        return (*clips, "kl") if self.beta else clips

    def idle(self, signal: Tensor) -> Tensor:
        """(B,) bool: groups that give no gradient at all, so that they need no pass. None does while beta > 0: the
        divergence still pulls."""
        return (signal == 0).all(1) & (self.beta == 0)

    def loss(
        self, logprobs: Tensor, old: Tensor, reference: Tensor | None, signal: Tensor, weights: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Loss of some groups of a step; those of all groups add up to the step's.

        Args:
            logprobs: (B, n, T) of the policy, with gradients.
            old: (B, n, T) of the sampler.
            reference: (B, n, T) of the reference; None if beta is 0.
            signal: (B, n), see `signal`.
            weights: (B, n, T), see `token_weights`.

        Returns:
            the loss, and sums over answer tokens, weighted as the loss is, of what `counted` names.
        """
        real = weights > 0
        log_ratio = torch.where(real, logprobs - old, 0.0)
        a = signal[..., None]
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
            term = torch.minimum(ratio * a, ratio.clamp(1 - self.clip_low, 1 + self.clip_high) * a)
            if self.dual_clip is not None:
                term = torch.where(a < 0, torch.maximum(term, self.dual_clip * a), term)
            gain = (per * term).sum()
            with torch.no_grad():
                sums["clip_ratio/low"] = (per * ((ratio < 1 - self.clip_low) & (a < 0))).sum()
                sums["clip_ratio/high"] = (per * ((ratio > 1 + self.clip_high) & (a > 0))).sum()
        if self.beta:
            if reference is None:
                raise ValueError("beta > 0 needs the reference's log-probabilities")
            kl = torch.where(real, divergence(logprobs, reference, self.kl, old), 0.0)
            gain = gain - self.beta * (weights * kl).sum()
            sums["kl"] = (weights * kl.detach()).sum()
        return -gain, sums
