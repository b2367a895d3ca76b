"""answers.jsonl: what a run of GRPO sampled, with the rewards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from zoo.rl import Answer
from zoo.runs import run_folder

if TYPE_CHECKING:
    from zoo.training.grpo import GRPOModule, RewardBatch


def log_completions(
    module: GRPOModule, groups: Sequence[Sequence[Answer]], rewards: RewardBatch, advantages: Tensor
) -> None:
    """Append the answers to two prompts of a step to answers.jsonl in the run folder, if an entry is due."""
    trainer, every = module.trainer, module.log_completions_steps
    window = -(-module.global_step // module.steps_per_window)
    if not every or (window - 1) % every or not trainer.is_global_zero:
        return
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by one of its connectors
        return
    rows = [
        {
            "step": module.global_step,
            "id": answer.sample.id,
            "answer": answer.text,
            "tokens": answer.tokens,
            "reward": round(float(rewards.total[i, j]), 6),
            "rewards": {name: _rounded(values[i, j]) for name, values in rewards.parts.items()},
            "advantage": round(float(advantages[i, j]), 6),
        }
        for i, group in enumerate(groups[:2])
        for j, answer in enumerate(group)
    ]
    path = run_folder(trainer) / "answers.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    rank_zero_info(f"sampled answers of step {module.global_step}: {path}")


def _rounded(value: Tensor) -> float | None:
    """Return a reward for a file; None where it does not apply."""
    return None if value.isnan() else round(float(value), 6)
