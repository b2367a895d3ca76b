"""Truncated importance sampling between the program that sampled answers and the one that learns from them.

Both have the same weights, yet their kernels round otherwise, so answers are drawn from a slightly other distribution
than the one whose gradient is taken.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Correction = Literal["none", "truncate", "mask"]


def correction_weights(
    trainer: Tensor, sampler: Tensor, mask: Tensor, kind: Correction, threshold: float, per_answer: bool = False
) -> Tensor:
    """Return what the weight of each token in the loss is multiplied by.

    With r = exp(log p_trainer - log p_sampler) of a token, or of a whole answer (the sum over its tokens):
    ``truncate``: min(r, C) (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training";
    TRL's ``token_truncate`` and ``sequence_truncate``); ``mask``: r where r <= C, else 0 (Ling Team 2025, "Every step
    evolves"; TRL's ``token_mask`` and ``sequence_mask``); ``none``: 1. All that the loss averages is weighted, the
    divergence from a reference too, because all of it is a mean over sampled tokens; in TRL the divergence is not.

    Args:
        trainer, sampler: (B, n, T) log-probabilities of the sampled tokens, at the temperature of sampling.
        mask: (B, n, T) bool of the tokens that are learnt from.
        threshold: C, above 0.
        per_answer: one ratio per answer: for objectives that have one.

    Returns:
        (B, n, T) float32, without gradient; 0 where masked.
    """
    if kind not in get_args(Correction):
        raise ValueError(f"unknown sampler_correction {kind!r}; expected one of {', '.join(get_args(Correction))}")
    if not 0 < threshold < math.inf:
        raise ValueError(f"sampler_threshold is a finite number above 0, got {threshold}")
    real = mask.float()
    if kind == "none":
        return real
    log_ratio = torch.where(mask, trainer.detach() - sampler, 0.0).float()
    if per_answer:
        log_ratio = log_ratio.sum(2, keepdim=True)
    ratio = log_ratio.exp()
    if kind == "truncate":
        return ratio.clamp(max=threshold) * real
    return torch.where(ratio <= threshold, ratio, 0.0) * real


def mismatch(trainer: Tensor, sampler: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum and the largest of |log p_trainer - log p_sampler| over tokens, in nats, and their number."""
    differences = (trainer.detach() - sampler).abs()[mask]
    largest = differences.max() if len(differences) else differences.new_zeros(())
    return differences.sum(), largest, mask.sum()
