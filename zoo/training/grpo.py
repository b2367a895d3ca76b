"""GRPOModule: the GRPO loop as a LightningModule. A system provides the prompts and the rewards.

One optimiser step is one window of ``trainer.accumulate_grad_batches`` batches: all their prompts are answered in one
decoding batch, then every batch is one forward and backward pass, and the loss is that of the window whatever its
split. So `batch_size` is a matter of memory, and batch_size x accumulate_grad_batches x processes = prompts per step.

Lightning's own ``accumulate_grad_batches``, ``gradient_clip_val``, ``precision``, ``fast_dev_run``, callbacks, DDP
and FSDP2 apply. Optimisation is manual and visible in `training_step`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from zoo.backbones import Prefix
from zoo.renaming import Renamed
from zoo.rl import Answer, Objective, Rollout, accumulate_gradients, roll_out, token_weights
from zoo.rl.correction import Correction
from zoo.rl.grpo import Baseline, ScaleRewards, zero_variance_groups
from zoo.training.batch import PromptBatch
from zoo.training.completions import log_completions
from zoo.training.engine_rollouts import EngineRollouts
from zoo.training.grpo_metrics import StepCost, step_metrics
from zoo.training.rewarded import RewardBatch, RewardedModule

__all__ = ["GRPOModule", "RewardBatch"]

FIRST_STEPS = 5  # after which it is worth a warning that all answers had the same reward


class GRPOModule(RewardedModule):
    """Base of the systems that learn from rewards.

    A system gives `reward_funcs`, or overrides `rewards`; and where needed `collator`, `embed` and `predict`.

    Args:
        num_generations: answers sampled per prompt (G).
        objective: what is maximised.
        scale_rewards: ``group`` divides advantages by their group's standard deviation, ``batch`` by that of all
            rewards of the step, ``none`` by nothing; see `zoo.rl.grpo.group_advantages`.
        baseline: what an advantage is relative to: the mean of its ``group``, or of the other answers in it
            (``leave_one_out``, RLOO).
        sync_ref_model: let the reference follow the trained adapters; it needs ``objective.beta`` and ``lora``.
        ref_model_mixup_alpha: share of the trained adapters in the reference when it follows: reference = alpha trained
            + (1 - alpha) reference, tensor by tensor (TR-DPO, Gorbatovski et al. 2024; of adapters, A and B each).
        ref_model_sync_steps: optimiser steps after which it does so.
        num_iterations: how often a sampled window is learnt from.
        num_mini_batches: optimiser steps that a window is divided into each time: it takes
            ``trainer.accumulate_grad_batches`` / `num_mini_batches` batches to a step, whose loss is that of their
            answers alone: step m of M maximises the mean over the m-th part of the window, not over all of it.
            Advantages are those of the window. The first step of all is on policy; the others compare
            with the sampler (Schulman et al. 2017). TRL's ``steps_per_generation`` over its gradient accumulation.
        max_resample_times: dynamic sampling (DAPO, Yu et al. 2025, eq. 11: 0 < right answers < n): how often, at most,
            prompts whose answers all earned the same, so that they teach nothing, are answered again. Rewards are then
            computed anew for the whole window. What still has no variance stays, as without this option; 0: off.
        mask_truncated_completions: answers cut off at `max_new_tokens` do not enter the loss.
        log_completions_steps: optimiser steps between two entries of ``answers.jsonl`` in the run folder: the sampled
            answers of two prompts with their rewards. 0: none.
        sampler_correction: how the loss allows for answers that an engine sampled (`sampler`) with slightly other
            probabilities: ``truncate`` or ``mask``, see `zoo.rl.correction`; ``none``: not.
        sampler_threshold: largest ratio of the two.
    """

    renamed_options = {
        "answers": "num_generations",
        "scale": Renamed("scale_rewards", {"std": "group"}),
        "iterations": "num_iterations",
        "drop_truncated": "mask_truncated_completions",
        "rewards": "reward_funcs",
        "table_every": "log_completions_steps",
        "objective.clip_low": "objective.epsilon",
        "objective.clip_high": "objective.epsilon_high",
    }

    def __init__(
        self,
        *,
        max_new_tokens: int = 256,
        num_generations: int = 4,
        objective: Objective = Objective(),  # noqa: B008 - frozen
        scale_rewards: ScaleRewards = "group",
        baseline: Baseline = "group",
        sync_ref_model: bool = False,
        ref_model_mixup_alpha: float = 0.6,
        ref_model_sync_steps: int = 512,
        num_iterations: int = 1,
        num_mini_batches: int = 1,
        max_resample_times: int = 0,
        mask_truncated_completions: bool = False,
        log_completions_steps: int = 50,
        sampler_correction: Correction = "truncate",
        sampler_threshold: float = 2.0,
        lr: float = 5e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(max_new_tokens=max_new_tokens, lr=lr, **kwargs)
        if min(num_generations, num_iterations, num_mini_batches) < 1 or max_resample_times < 0:
            raise ValueError(
                "need num_generations >= 1, num_iterations >= 1, num_mini_batches >= 1 and max_resample_times >= 0; "
                f"got {num_generations}, {num_iterations}, {num_mini_batches} and {max_resample_times}"
            )
        if max_resample_times and num_generations == 1:
            raise ValueError("one answer per prompt never has variance: max_resample_times needs num_generations >= 2")
        if objective.beta and self.lora is None:
            raise ValueError(
                f"objective.beta is {objective.beta}, but without lora there is no reference to stay close to; "
                "add lora, or set objective.beta to 0"
            )
        self.num_generations, self.objective = num_generations, objective
        if sync_ref_model and not objective.beta:
            raise ValueError("sync_ref_model moves the reference, which objective.beta 0 does not look at; raise beta")
        if not 0 <= ref_model_mixup_alpha <= 1 or ref_model_sync_steps < 1:
            raise ValueError(
                "need ref_model_mixup_alpha from 0 to 1 and ref_model_sync_steps of at least 1; got "
                f"{ref_model_mixup_alpha} and {ref_model_sync_steps}"
            )
        self.scale_rewards, self.baseline, self.num_iterations = scale_rewards, baseline, num_iterations
        self.num_mini_batches, self.max_resample_times = num_mini_batches, max_resample_times
        self.sync_ref_model, self.ref_model_mixup_alpha = sync_ref_model, ref_model_mixup_alpha
        self.ref_model_sync_steps = ref_model_sync_steps
        self.beta = objective.beta  # of now: it changes with `objective.target_kl`
        self.grad_norm = math.nan  # of the last optimiser step, before clipping
        self.mask_truncated_completions = mask_truncated_completions
        if log_completions_steps < 0:
            raise ValueError(
                f"log_completions_steps is a number of optimiser steps, or 0 for no table; got {log_completions_steps}"
            )
        self.log_completions_steps = log_completions_steps
        self.engine_rollouts = EngineRollouts(self, sampler_correction, sampler_threshold)
        self.window_batches: list[Any] = []  # of the optimiser step that is being collected
        self._first_rewards: set[float] | None = None  # different rewards of the first steps; None once there are two
        self._steps_watched = 0

    # ---- parts
    def on_model_complete(self) -> None:
        """Keep the weights of ``start_from`` as the reference: an earlier stage may have trained the same adapters.

        A reference that moves has weights of its own in any case.
        """
        if self.objective.beta and (self.start_from is not None or self.sync_ref_model):
            self.llm.keep_reference()

    @property
    def answers_per_prompt(self) -> int:
        """How many answers are sampled and rewarded per prompt; the first ``num_generations`` of them are trained."""
        return self.num_generations

    def sample(self, window: Sequence[Any], answers: int | None = None, prompts: Tensor | None = None) -> Rollout:
        """Return sampled answers to the prompts of a window.

        Args:
            answers: to each prompt; None: `answers_per_prompt`.
            prompts: (b,) int64, which ones; None: all.
        """
        if self.sampler.kind != "own":
            return self.engine_rollouts.sample(window, answers or self.answers_per_prompt, prompts)
        with torch.no_grad():
            encoded = Prefix.join([self.encode(batch) for batch in window])
        return roll_out(
            self.llm,
            encoded if prompts is None else encoded.rows(prompts),
            answers or self.answers_per_prompt,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            mask_truncated=self.mask_truncated_completions,
            sampling=self.sampling,
        )

    def asks_engine(self, stage: str) -> bool:
        """Return whether a stage has answers written that an engine could write."""
        return stage == "fit" or self.validates == "rewards" or super().asks_engine(stage)

    # ---- the loop
    def setup(self, stage: str) -> None:
        """Check the strategy, beside what every system checks that earns rewards."""
        super().setup(stage)
        if stage != "fit":
            return
        if not isinstance(self.trainer.strategy, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy):
            raise ValueError(
                f"reinforcement runs in one process, with --trainer.strategy ddp or with weights divided by FSDP2 "
                f"(configs/trainer/fsdp2.yaml), not with {type(self.trainer.strategy).__name__}: the loss of a step is "
                "summed over processes by hand"
            )
        if self.num_mini_batches > 1 and self.trainer.accumulate_grad_batches % self.num_mini_batches:
            raise ValueError(
                f"a window of {self.trainer.accumulate_grad_batches} batches (--trainer.accumulate_grad_batches) "
                f"cannot be divided into {self.num_mini_batches} equal parts (--model.num_mini_batches); change one"
            )
        # Lightning refuses its own accumulation and clipping in manual optimisation, which this loop carries out; it
        # asks before this hook
        self.automatic_optimization = False
        self.window_batches.clear()

    def on_fit_start(self) -> None:
        """Check that the model can share a prompt between its answers, and watch the first rewards."""
        super().on_fit_start()
        self.llm.check_sharing()
        self._first_rewards, self._steps_watched = set(), 0

    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor | None:
        """Collect a window of batches, then take its optimiser steps; return the loss of the last one."""
        self.window_batches.append(batch)
        if len(self.window_batches) < self.trainer.accumulate_grad_batches and not self.trainer.is_last_batch:
            return None
        window, self.window_batches = self.window_batches, []

        cost, steps_before = StepCost(), self.global_step
        rollout, groups, rewards = self.sample_and_reward(window, cost)
        self.warn_if_rewards_equal(groups, rewards)
        with cost.phase("training"):
            advantages = self.advantages(rewards.total.to(rollout.old_logprobs))
            learning_rate = self.learning_rate
            parts = list(self.mini_batches(window, rollout, advantages))
            for iteration in range(self.num_iterations):
                steps = [self.update(*part, on_policy=iteration == number == 0) for number, part in enumerate(parts)]
            sums = {name: torch.stack([step[name] for step in steps]).mean() for name in steps[0]}
        means = self.average_over_processes(
            {f"train/{name}": pair for name, pair in self.step_numbers(window, rollout, rewards, sums, cost).items()}
            | cost.numbers(self.device, self.trainer.world_size)
        )
        self.adapt_beta(means, rollout)
        self.log_step(means | {"train/learning_rate": learning_rate, "train/grad_norm": self.grad_norm}, steps_before)
        log_completions(self, groups, rewards, advantages)
        return sums["loss"]

    def sample_and_reward(
        self, window: Sequence[Any], cost: StepCost
    ) -> tuple[Rollout, list[list[Answer]], RewardBatch]:
        """Sample the answers of a window and reward them; see ``max_resample_times``.

        All processes go the same number of rounds, so that rewards may compare with those of other processes.
        """
        n = self.num_generations
        with cost.phase("sampling"):
            rollout = self.sample(window)
            self.finish_passes()
            cost.sampled_tokens += int(rollout.sampled.sum())
        for remaining in reversed(range(self.max_resample_times + 1)):
            with cost.phase("rewards"):
                groups = self.decode_answers(window, rollout)
                rewards = self.rewards(groups)
            if not remaining:
                break
            equal = zero_variance_groups(rewards.total[:, :n]).nonzero()[:, 0].to(rollout.ids.device)
            if not self.sum_over_processes(torch.tensor(float(len(equal)))):
                break
            with cost.phase("sampling"):
                if len(equal):
                    again = self.sample(window, prompts=equal)
                    rollout = rollout.replaced(equal, again)
                    cost.sampled_tokens += int(again.sampled.sum())
                    cost.dropped_groups += len(equal)
                self.finish_passes()
        return rollout.first(n), [group[:n] for group in groups], rewards.first(n)

    def mini_batches(
        self, window: Sequence[Any], rollout: Rollout, advantages: Tensor
    ) -> Iterator[tuple[Sequence[Any], Rollout, Tensor]]:
        """Yield batches, answers and advantages of each optimiser step of a window."""
        if self.num_mini_batches == 1:
            yield window, rollout, advantages
            return
        start, size = 0, self.batches_per_step
        for first in range(0, len(window), size):
            batches = window[first : first + size]
            stop = start + sum(len(batch["samples"]) for batch in batches)
            index = torch.arange(start, stop, device=rollout.ids.device)
            yield batches, rollout.rows(index), advantages[start:stop]
            start = stop

    @property
    def batches_per_step(self) -> int:
        """How many batches an optimiser step learns from."""
        return self.trainer.accumulate_grad_batches // self.num_mini_batches

    def advantages(self, rewards: Tensor) -> Tensor:
        """Return what multiplies each answer, (B, n); see `Objective.advantages`."""
        of_step = None
        if self.scale_rewards == "batch":
            of_step = torch.cat(self.gather_objects(rewards.cpu())).to(rewards)
        return self.objective.advantages(rewards, self.scale_rewards, self.baseline, of_step)

    def update(
        self, window: Sequence[Any], rollout: Rollout, advantages: Tensor, on_policy: bool
    ) -> Mapping[str, Tensor]:
        """Take one optimiser step; return the sums of `accumulate_gradients` over all processes."""
        answers, tokens = self.count_answers_and_tokens(rollout)
        weights = token_weights(rollout.loss_mask, self.objective.normalize, self.max_new_tokens, (answers, tokens))
        weights = self.engine_rollouts.corrected(weights, rollout)
        optimizer = cast(LightningOptimizer, self.optimizers())  # there is one
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.zero_grad(set_to_none=True)
        encoders = [lambda batch=batch: self.encode(batch) for batch in window]
        # processes may skip different groups, so their numbers of passes differ: gradients are summed once, afterwards
        strategy, several = self.trainer.strategy, self.trainer.world_size > 1
        divided = isinstance(strategy, ModelParallelStrategy)  # sums gradients in every pass, and divides by processes
        ddp = strategy.block_backward_sync() if several and isinstance(strategy, DDPStrategy) else None
        with ddp or contextlib.nullcontext():
            sums = accumulate_gradients(
                self.llm,
                encoders,
                rollout,
                advantages,
                weights,
                replace(self.objective, beta=self.beta),
                temperature=self.temperature,
                on_policy=on_policy,
                backward=lambda loss: self.manual_backward(loss * (self.trainer.world_size if divided else 1)),
                every_pass=divided,
                tokens=tokens,
            )
        sums = dict(zip(sums, self.sum_over_processes(torch.stack(list(sums.values()))), strict=True))
        self.check_finite(sums["loss"], {"samples": window[0]["samples"]})
        for p in trained:
            if p.grad is None:  # no group of the window had a gradient: the same step as with a gradient of zero
                p.grad = torch.zeros_like(p)
            if not divided:
                self.sum_over_processes(p.grad)
        optimizer.step()
        cast(LambdaLR, self.lr_schedulers()).step()  # there is one
        if self.sync_ref_model and self.global_step % self.ref_model_sync_steps == 0:
            self.llm.mix_into_reference(self.ref_model_mixup_alpha)
        return sums

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next optimiser step."""
        rate: float = cast(LightningOptimizer, self.optimizers()).param_groups[0]["lr"]
        return rate

    def adapt_beta(self, means: Mapping[str, float], rollout: Rollout) -> None:
        """Let the weight of the divergence follow ``objective.target_kl``, by numbers that all processes share."""
        if self.objective.target_kl is not None and "train/kl" in means:
            answers, _ = self.count_answers_and_tokens(rollout)
            self.beta = self.objective.adapted_beta(self.beta, means["train/kl"], answers)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the weight of the divergence, if it changes; let go of an engine's answers that no resumed run needs."""
        super().on_save_checkpoint(checkpoint)
        self.engine_rollouts.forget_before_checkpoint(self.global_step)
        if self.objective.target_kl is not None:
            checkpoint["beta"] = self.beta

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the weight of the divergence, if it changes."""
        super().on_load_checkpoint(checkpoint)
        if self.objective.target_kl is not None:
            self.beta = checkpoint.get("beta", self.beta)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure and clip the gradients; in 16-mixed Lightning has divided them by its scale just before."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.grad_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        if self.trainer.gradient_clip_val:
            self.clip_gradients(
                optimizer,
                gradient_clip_val=self.trainer.gradient_clip_val,
                gradient_clip_algorithm=self.trainer.gradient_clip_algorithm or "norm",
            )

    def optimizer_steps(self) -> float:
        """Return how many steps the run will take; infinite if nothing ends it."""
        steps, epochs = super().optimizer_steps() * self.num_iterations, self.trainer.max_epochs
        if self.num_mini_batches > 1 and epochs is not None and epochs > 0:  # the last window of an epoch may be short
            steps = math.ceil(self.trainer.num_training_batches / self.batches_per_step) * epochs * self.num_iterations
        return min(steps, self.trainer.max_steps) if self.trainer.max_steps > 0 else steps

    @property
    def steps_per_window(self) -> int:
        """How many optimiser steps a whole window takes."""
        return self.num_iterations * self.num_mini_batches

    def count_answers_and_tokens(self, rollout: Rollout) -> tuple[float, float]:
        """Return the numbers of answers and of learnt tokens of the step in all processes."""
        counts = [rollout.finished.numel(), int(rollout.loss_mask.sum())]
        answers, tokens = self.sum_over_processes(torch.tensor(counts, dtype=torch.float64)).tolist()
        return answers, tokens

    def warn_if_rewards_equal(self, groups: Sequence[Sequence[Answer]], rewards: RewardBatch) -> None:
        """Warn once, with two answers, if all answers of the first `FIRST_STEPS` steps of a run have one reward."""
        if self._first_rewards is None:
            return
        self._first_rewards |= set(rewards.total.flatten().tolist())
        self._steps_watched += 1
        if len(self._first_rewards) > 1:
            self._first_rewards = None
        elif self._steps_watched == min(FIRST_STEPS, math.ceil(self.optimizer_steps() / self.steps_per_window)):
            (reward,) = self._first_rewards
            self._first_rewards = None
            rank_zero_warn(
                f"every answer of the first {self._steps_watched} steps earned {reward:g}, so nothing was "
                f"learnt. {self.describe_answers([a.text for group in groups for a in group])}"
            )

    # ---- logging
    def step_numbers(
        self, window: Sequence[Any], rollout: Rollout, rewards: RewardBatch, sums: Mapping[str, Tensor], cost: StepCost
    ) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Return the numbers of a step of this process, see `zoo.training.grpo_metrics`."""
        numbers = step_metrics(rollout, rewards.total, rewards.parts, rewards.metrics, sums, self.objective)
        truncated = sum(batch.get("truncated", 0) for batch in window)
        numbers["prompts/clipped_ratio"] = torch.tensor(float(truncated)), torch.tensor(float(len(rewards.total)))
        if self.max_resample_times:  # of all processes together
            dropped = float(cost.dropped_groups * self.trainer.world_size)
            numbers["dynamic_sampling/dropped_groups"] = torch.tensor(dropped), torch.tensor(1.0)
        if self.objective.target_kl is not None:
            numbers["beta"] = torch.tensor(self.beta), torch.tensor(1.0)
        return numbers

    def average_over_processes(self, numbers: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Return name -> sum over count of all processes, which name the same numbers; without those that count 0."""
        pairs = torch.stack([torch.stack([x.float().to(self.device) for x in pair]) for pair in numbers.values()])
        sums = self.sum_over_processes(pairs).tolist()
        return {name: total / n for name, (total, n) in zip(numbers, sums, strict=True) if n}

    def log_step(self, means: Mapping[str, float], steps_before: int) -> None:
        """Log the numbers of a window.

        Args:
            means: name -> number.
            steps_before: optimiser steps of the run before the window's.
        """
        for name, value in means.items():
            if name.startswith("train/"):
                on_bar = name in ("train/loss", "train/reward")
                self.log(name, value, prog_bar=on_bar, logger=False, batch_size=1)
        # not through Lightning, which in manual optimisation writes the last step's numbers again for every batch
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by one of its connectors
        if self.global_step // every > steps_before // every and self.trainer.is_global_zero:
            values = dict(means) | {"epoch": self.current_epoch}
            for logger in self.loggers:
                logger.log_metrics(values, step=self.global_step - 1)
                logger.save()  # on disk now, as Lightning does it: a killed run keeps its log
