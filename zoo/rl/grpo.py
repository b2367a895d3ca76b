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

Kind = Literal["grpo_clip", "reinforce_group", "ppo_reward", "ppo_advantage", "cispo"]
Level = Literal["token", "sequence"]
Normalize = Literal["sequence", "token", "constant", "sum"]
Estimator = Literal["k1", "k2", "k3", "k3_corrected"]
ScaleRewards = Literal["group", "batch", "none"]
Baseline = Literal["group", "leave_one_out"]
KL_STEP = 0.2  # bound of the relative error that an adaptive weight of the divergence follows (Ziegler et al. 2019)


def group_advantages(
    rewards: Tensor,
    scale_rewards: ScaleRewards = "group",
    eps: float = 1e-4,
    *,
    baseline: Baseline = "group",
    step_rewards: Tensor | None = None,
) -> Tensor:
    """Return rewards relative to their group: r - baseline, over std + eps where scaled.

    From Shao et al. 2024, whose baseline is the group's mean; without the scale, Liu et al. 2025; by the standard
    deviation of all rewards of the step (``batch``), Liu et al. 2025b, as TRL's ``scale_rewards: batch``.
    ``leave_one_out`` is RLOO (Ahmadian et al. 2024): the baseline of an answer is the mean of the *other* answers of
    its group, so that r_i - sum of r_j (j not i) / (n - 1) = n / (n - 1) (r_i - mean).

    Args:
        rewards: (B, n); the standard deviation is the unbiased one, as in TRL.
        step_rewards: all rewards of the step, of every process, for ``batch``; None: `rewards` are all.

    Returns:
        (B, n) float32; exactly 0 where all rewards of a group are equal, and for n = 1.
    """
    for name, value, known in (("scale_rewards", scale_rewards, ScaleRewards), ("baseline", baseline, Baseline)):
        if value not in get_args(known):
            raise ValueError(f"unknown {name} {value!r}; expected one of {', '.join(get_args(known))}")
    rewards = rewards.float()
    if rewards.shape[1] == 1:
        return torch.zeros_like(rewards)
    centred = rewards - rewards.mean(1, keepdim=True)
    if baseline == "leave_one_out":
        centred = centred * (rewards.shape[1] / (rewards.shape[1] - 1))
    if scale_rewards == "group":
        centred = centred / (rewards.std(1, keepdim=True) + eps)
    if scale_rewards == "batch":
        centred = centred / ((rewards if step_rewards is None else step_rewards.float()).std() + eps)
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
            with the advantage. ``cispo`` (MiniMax-M1 2025; TRL's ``loss_type: cispo``): sg(min(r, epsilon_high)) A
            log pi per token, sg without gradient: a bounded weight, but every token keeps its gradient.
        importance_sampling_level: ``token``, or ``sequence`` for GSPO (Zheng et al. 2025): r is one ratio per answer,
            exp of the mean of log pi - log pi_old over its tokens. GSPO as published is ``grpo_clip`` with it and
            `normalize` ``sequence``. The two ``ppo`` kinds have a ratio per answer by themselves.
        normalize: see `token_weights`. For the two ``ppo`` kinds, ``sum`` takes the ratio of whole answers and
            ``sequence`` its geometric mean over tokens.
        epsilon, epsilon_high: the ratio is kept within [1 - epsilon, 1 + epsilon_high]; ``cispo`` keeps it below
            epsilon_high itself, as TRL, of at least 1 (ScaleRL 2025: 5).
        dual_clip: with a negative advantage the term is at least this times it (Ye et al. 2020); None: unbounded.
        beta: weight of the divergence from the reference.
        kl: its estimator, see `kl_divergence`.
        target_kl: `beta` is where an adaptive weight begins, see `adapted_beta`; None: it stays.
        kl_horizon: number of answers after which an adaptive weight has moved by about its relative error.
        entropy_coef: weight of the entropy bonus: the mean over answer tokens of the entropy of the policy's whole
            distribution, H = - sum p log p in nats, is added to what is maximised, whatever `normalize` (as TRL;
            Williams and Peng 1991). It computes the vocabulary of every answer token a second time.
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
    importance_sampling_level: Level = "token"
    target_kl: float | None = None
    kl_horizon: int = 10_000
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        words = (("kind", Kind), ("normalize", Normalize), ("kl", Estimator), ("importance_sampling_level", Level))
        for name, known in words:
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
        self._check_additions()

    def _check_additions(self) -> None:
        """Refuse settings of what is off by default that make no sense."""
        if self.importance_sampling_level == "sequence" and self.kind not in ("grpo_clip", "cispo"):
            raise ValueError(
                f"importance_sampling_level sequence is of grpo_clip and cispo; {self.kind} has "
                f"{'no ratio' if self.kind == 'reinforce_group' else 'one ratio per answer anyway'}"
            )
        if self.kind == "cispo" and (self.epsilon_high < 1 or self.dual_clip is not None):
            raise ValueError(
                "cispo bounds the ratio itself, which is 1 for the sampler's own tokens, by epsilon_high: give one of "
                f"at least 1, such as 5, and no dual_clip; got {self.epsilon_high} and {self.dual_clip}"
            )
        if self.target_kl is not None and not (0 < self.target_kl < math.inf and self.beta > 0 and self.kl_horizon > 0):
            raise ValueError(
                "target_kl adapts beta: need target_kl > 0, kl_horizon > 0 and a beta above 0 to begin with; got "
                f"{self.target_kl}, {self.kl_horizon} and {self.beta}"
            )
        if not 0 <= self.entropy_coef < math.inf:
            raise ValueError(f"need entropy_coef >= 0; got {self.entropy_coef}")

    def advantages(
        self,
        rewards: Tensor,
        scale_rewards: ScaleRewards = "group",
        baseline: Baseline = "group",
        step_rewards: Tensor | None = None,
    ) -> Tensor:
        """Return what multiplies each answer, (B, n): its advantage, or for ``ppo_reward`` the reward itself.

        Args:
            rewards: (B, n).
            scale_rewards, baseline, step_rewards: see `group_advantages`.
        """
        if self.kind == "ppo_reward":
            values = rewards.float()
        else:
            values = group_advantages(rewards, scale_rewards, baseline=baseline, step_rewards=step_rewards)
        return values.clamp(min=0) if self.positive_only else values

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the sums that `loss` returns beside the loss."""
        clips: tuple[str, ...] = ("clip_ratio/low", "clip_ratio/high")
        if self.kind in ("reinforce_group", "cispo"):
            clips = ("cispo_clip_ratio",) if self.kind == "cispo" else ()
        return (*clips, "kl") if self.beta else clips

    def adapted_beta(self, beta: float, kl: float, answers: float) -> float:
        """Return the weight of the divergence after a step, if it is adaptive.

        beta (1 + e n / `kl_horizon`), where e is (kl - `target_kl`) / `target_kl`, kept within ``KL_STEP`` of 0, and n
        the answers of the step (Ziegler et al. 2019, Sec. 2.2; the adaptive controller of TRL and verl). Here kl is the
        mean per token that is logged; Ziegler's is the sum over an answer.
        """
        if self.target_kl is None:
            return beta
        error = max(-KL_STEP, min(KL_STEP, kl / self.target_kl - 1))
        return beta * (1 + error * answers / self.kl_horizon)

    def without_gradient(self, advantages: Tensor) -> Tensor:
        """Return (B,) bool: groups that give no gradient at all, so that they need no pass.

        None is without while beta or entropy_coef is above 0: the divergence or the entropy still pulls.
        """
        return (advantages == 0).all(1) & (self.beta == 0 and self.entropy_coef == 0)

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
        if self.importance_sampling_level == "sequence":
            log_ratio = log_ratio.sum(2, keepdim=True) / real.sum(2, keepdim=True).clamp(min=1)  # (B, n, 1)
        if self.kind == "reinforce_group":
            gain = (weights * a * torch.where(real, logprobs, 0.0)).sum()
        elif self.kind == "cispo":
            ratio = log_ratio.detach().exp()
            bounded = ratio.clamp(max=self.epsilon_high)
            gain = (weights * bounded * a * torch.where(real, logprobs, 0.0)).sum()
            sums["cispo_clip_ratio"] = (weights * ((ratio > self.epsilon_high) & (a > 0))).sum()
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
