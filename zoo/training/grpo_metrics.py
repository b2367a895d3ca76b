"""The numbers that a step of GRPO logs, under TRL's names, and what it cost under ``perf/``.

A number is a sum and how many things were summed, so that processes can add both; one with a count of 0 is not logged:
a sampler that cannot differ from the trained policy, say, has no mismatch.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from zoo.rl import Objective, Rollout
from zoo.rl.correction import mismatch
from zoo.rl.grpo import zero_variance_groups

RENAMED = {
    "kl": "kl",
    "clip_ratio/low": "clip_ratio/low_mean",
    "clip_ratio/high": "clip_ratio/high_mean",
    "cispo_clip_ratio": "cispo_clip_ratio",
}
PHASES = ("sampling", "rewards", "training")


class StepCost:
    """What a step costs: seconds of its phases, tokens that were sampled, memory.

    It enters neither checkpoints nor anything that is decided: two runs that are equal cost differently.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.sampled_tokens = 0  # those of groups that were dropped included
        self.dropped_groups = 0  # because all their answers earned the same

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds of a block, which ends with a wait for the device, to one of `PHASES`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begin

    def numbers(self, device: torch.device, processes: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return name -> (sum, count): means over the processes, but the tokens per second are those of all."""
        one = torch.tensor(1.0)
        numbers = {f"perf/{name}_seconds": (torch.tensor(value), one) for name, value in self.seconds.items()}
        tokens = torch.tensor(float(self.sampled_tokens * processes))
        numbers["perf/sampled_tokens_per_second"] = tokens, torch.tensor(self.seconds["sampling"])
        return numbers | {"perf/peak_memory_gib": (torch.tensor(peak_memory_gib(device)), one)}


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory that torch had in use on a card so far; on a CPU, the process's largest resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20  # bytes there, else KiB


def step_metrics(
    rollout: Rollout,
    total: Tensor,
    parts: Mapping[str, Tensor],
    extra: Mapping[str, float],
    sums: Mapping[str, Tensor],
    objective: Objective,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return name -> (sum, number of things summed).

    Entropy is the mean over every sampled token, also of answers that are left out of the loss as truncated; a reward's
    mean is over the answers it applies to.

    Args:
        total: (B, n) rewards.
        parts: name of a reward -> (B, n), NaN where it does not apply.
        extra: further means of a system's own.
        sums: of `zoo.rl.accumulate_gradients`.
    """
    one = torch.tensor(1)
    lengths = rollout.sampled.sum(2).float()
    deviation = total.std(1) if total.shape[1] > 1 else torch.zeros(len(total))
    means = {
        "loss": sums["loss"],
        "reward": total.mean(),
        "reward_std": deviation.mean(),
        "frac_reward_zero_std": zero_variance_groups(total).float().mean(),
        "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/clipped_ratio": 1 - rollout.finished.float().mean(),
        **{name: torch.tensor(value) for name, value in extra.items()},
    }
    numbers = {name: (value, one) for name, value in means.items()}
    known = rollout.sampled & ~rollout.entropy.isnan()  # an engine does not tell
    numbers["entropy"] = rollout.entropy[known].sum(), known.sum()
    if rollout.sampler_logprobs is not None:
        total_difference, largest, tokens = mismatch(rollout.old_logprobs, rollout.sampler_logprobs, rollout.loss_mask)
        numbers["sampling/sampling_logp_difference/mean"] = total_difference, tokens
        numbers["sampling/sampling_logp_difference/max"] = largest, one
    for name, values in parts.items():
        applies = values[~values.isnan()]
        numbers[f"rewards/{name}/mean"] = applies.sum(), torch.tensor(len(applies))
        spread = (applies.std(), one) if len(applies) > 1 else (torch.tensor(0.0), torch.tensor(0))
        numbers[f"rewards/{name}/std"] = spread
        numbers[f"rewards/{name}/abstained"] = values.isnan().float().mean(), one
    # per answer that is learnt from: the weights of `sums` divide by all answers, or by tokens learnt from
    learnt = torch.tensor(1.0)
    if objective.normalize != "token":
        learnt = rollout.loss_mask.any(2).float().mean()
    return numbers | {RENAMED[name]: (value, learnt) for name, value in sums.items() if name in RENAMED}
