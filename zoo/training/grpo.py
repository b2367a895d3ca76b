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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from zoo.backbones import Prefix
from zoo.prompts import label_words
from zoo.renaming import Renamed
from zoo.rl import Answer, Objective, Reward, Rollout, accumulate_gradients, roll_out, token_weights
from zoo.rl.correction import Correction
from zoo.rl.grpo import ScaleRewards
from zoo.rl.rewards import Correct, check_reward, evaluate_reward, reward_name
from zoo.schema import Prediction
from zoo.training.batch import PromptBatch, SampleBatch
from zoo.training.completions import log_completions
from zoo.training.engine_rollouts import EngineRollouts
from zoo.training.grpo_metrics import step_metrics
from zoo.training.language_model import LanguageModelModule

FIRST_STEPS = 5  # after which it is worth a warning that all answers had the same reward


@dataclass(frozen=True)
class RewardBatch:
    """Rewards of the answers of a window.

    Attributes:
        total: (B, n) weighted sum of the rewards.
        parts: name of a reward -> (B, n); NaN where a reward does not apply to an answer.
        metrics: further numbers of a system that are logged, e.g. its yes-rate.
    """

    total: Tensor
    parts: Mapping[str, Tensor]
    metrics: Mapping[str, float]


class GRPOModule(LanguageModelModule):
    """Base of the systems that learn from rewards.

    A system gives `reward_funcs`, or overrides `rewards`; and where needed `collator`, `embed` and `predict`.

    Args:
        num_generations: answers sampled per prompt (G).
        temperature: of sampling, and of the log-probabilities that are trained.
        objective: what is maximised.
        scale_rewards: ``group`` divides advantages by their group's standard deviation.
        num_iterations: optimiser steps per sampled window.
        mask_truncated_completions: answers cut off at `max_new_tokens` do not enter the loss.
        reward_funcs: functions or classes, each an `Answer` -> float, or None where it does not apply; an answer to
            which none applies has reward 0. See `zoo.rl.rewards`.
        reward_weights: one number per reward; None: all 1.
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
    monitor = "val/reward"
    validates: Literal["rewards", "labels"] = "rewards"  # what a validation and a test look at

    def __init__(
        self,
        *,
        max_new_tokens: int = 256,
        num_generations: int = 4,
        temperature: float = 1.0,
        objective: Objective = Objective(),  # noqa: B008 - frozen
        scale_rewards: ScaleRewards = "group",
        num_iterations: int = 1,
        mask_truncated_completions: bool = False,
        reward_funcs: list[Reward] | None = None,
        reward_weights: list[float] | None = None,
        log_completions_steps: int = 50,
        sampler_correction: Correction = "truncate",
        sampler_threshold: float = 2.0,
        lr: float = 5e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(max_new_tokens=max_new_tokens, lr=lr, **kwargs)
        if num_generations < 1 or num_iterations < 1 or not 0 < temperature < math.inf:
            raise ValueError(
                "need num_generations >= 1, num_iterations >= 1 and temperature > 0; got "
                f"{num_generations}, {num_iterations}, {temperature}"
            )
        if objective.beta and self.lora is None:
            raise ValueError(
                f"objective.beta is {objective.beta}, but without lora there is no reference to stay close to; "
                "add lora, or set objective.beta to 0"
            )
        self.num_generations, self.temperature, self.objective = num_generations, temperature, objective
        self.scale_rewards, self.num_iterations = scale_rewards, num_iterations
        self.mask_truncated_completions = mask_truncated_completions
        self.reward_funcs = list(reward_funcs or ())
        self.reward_weights = list(reward_weights) if reward_weights is not None else [1.0] * len(self.reward_funcs)
        if len(self.reward_weights) != len(self.reward_funcs):
            raise ValueError(f"{len(self.reward_funcs)} rewards, but {len(self.reward_weights)} reward_weights")
        if not all(math.isfinite(weight) for weight in self.reward_weights):
            raise ValueError(f"reward_weights are finite numbers, one per reward; got {self.reward_weights}")
        if log_completions_steps < 0:
            raise ValueError(
                f"log_completions_steps is a number of optimiser steps, or 0 for no table; got {log_completions_steps}"
            )
        for reward in self.reward_funcs:
            check_reward(reward)
        self.log_completions_steps = log_completions_steps
        self.engine_rollouts = EngineRollouts(self, sampler_correction, sampler_threshold)
        self.window_batches: list[Any] = []  # of the optimiser step that is being collected
        self._first_rewards: set[float] | None = None  # different rewards of the first steps; None once there are two
        self._steps_watched = 0

    # ---- parts
    def longest_answer(self) -> int:
        """Return for how many tokens of an answer a prompt must leave room."""
        return self.max_new_tokens

    def on_model_complete(self) -> None:
        """Keep the weights of ``start_from`` as the reference: an earlier stage may have trained the same adapters."""
        if self.objective.beta and self.start_from is not None:
            self.llm.keep_reference()

    # ---- what a system may fill in
    def rewards(self, groups: Sequence[Sequence[Answer]]) -> RewardBatch:
        """Return the rewards of the sampled answers, one group per prompt."""
        parts: dict[str, Tensor] = {}
        for f in self.reward_funcs:
            values = [[math.nan if (r := evaluate_reward(f, a)) is None else r for a in group] for group in groups]
            parts[reward_name(f)] = torch.tensor(values, dtype=torch.float32)
        if len(parts) != len(self.reward_funcs):
            raise ValueError(f"two rewards have the same name: {[reward_name(f) for f in self.reward_funcs]}")
        total = torch.zeros(len(groups), len(groups[0]), dtype=torch.float32)
        for weight, part in zip(self.reward_weights, parts.values(), strict=True):
            total = total + weight * part.nan_to_num(0.0)  # finite or NaN, see `evaluate_reward`
        if not torch.isfinite(total).all():
            raise ValueError(f"the weighted sum of the rewards {', '.join(parts)} is not finite; lower reward_weights")
        if parts and all(bool(part.isnan().all()) for part in parts.values()):
            rank_zero_warn(
                f"none of the rewards ({', '.join(parts)}) applies to any of the {total.numel()} answers of this step: "
                "they have reward 0, and nothing is learnt from them"
            )
        return RewardBatch(total, parts, {})

    def sample(self, window: Sequence[Any], answers: int | None = None) -> Rollout:
        """Return sampled answers to all prompts of a window; to each ``num_generations``, unless a number is given."""
        if self.sampler.kind != "own":
            return self.engine_rollouts.sample(window, answers or self.num_generations)
        with torch.no_grad():
            prompts = Prefix.join([self.encode(batch) for batch in window])
        return roll_out(
            self.llm,
            prompts,
            answers or self.num_generations,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            mask_truncated=self.mask_truncated_completions,
        )

    def asks_engine(self, stage: str) -> bool:
        """Return whether a stage has answers written that an engine could write."""
        return stage == "fit" or self.validates == "rewards" or super().asks_engine(stage)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let go of an engine's answers that no resumed run needs any more."""
        super().on_save_checkpoint(checkpoint)
        self.engine_rollouts.forget_before_checkpoint(self.global_step)

    # ---- the loop
    def setup(self, stage: str) -> None:
        """Check rewards and strategy, beside what every prompted system checks."""
        super().setup(stage)
        self._check_label_words()
        if stage != "fit":
            return
        if not isinstance(self.trainer.strategy, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy):
            raise ValueError(
                f"reinforcement runs in one process, with --trainer.strategy ddp or with weights divided by FSDP2 "
                f"(configs/trainer/fsdp2.yaml), not with {type(self.trainer.strategy).__name__}: the loss of a step is "
                "summed over processes by hand"
            )
        # Lightning refuses its own accumulation and clipping in manual optimisation, which this loop carries out; it
        # asks before this hook
        self.automatic_optimization = False
        self.window_batches.clear()

    def _check_label_words(self) -> None:
        """Refuse a reward that reads other label words than the evaluation."""
        for labels in self.data.label_sets.values():
            expected = label_words(labels, self.verbalizer)
            for reward in self.reward_funcs:
                if not isinstance(reward, Correct) or not reward.words:
                    continue
                if (other := label_words(labels, reward.words)) != expected:
                    raise ValueError(
                        f"the reward Correct expects the words {', '.join(other)}, but answers are evaluated by "
                        f"{', '.join(expected)}; give the words as --model.verbalizer, and none to the reward"
                    )

    def on_fit_start(self) -> None:
        """Check that the model can share a prompt between its answers, and watch the first rewards."""
        self.llm.check_sharing()
        self._first_rewards, self._steps_watched = set(), 0

    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor | None:
        """Collect a window of batches, then take its optimiser steps; return the loss of the last one."""
        self.window_batches.append(batch)
        if len(self.window_batches) < self.trainer.accumulate_grad_batches and not self.trainer.is_last_batch:
            return None
        window, self.window_batches = self.window_batches, []

        rollout = self.sample(window)
        self.finish_passes()
        groups = self.decode_answers(window, rollout)
        rewards = self.rewards(groups)
        self.warn_if_rewards_equal(groups, rewards)
        advantages = self.objective.advantages(rewards.total.to(rollout.old_logprobs), self.scale_rewards)
        totals = self.count_answers_and_tokens(rollout)
        weights = token_weights(rollout.loss_mask, self.objective.normalize, self.max_new_tokens, totals)
        weights = self.engine_rollouts.corrected(weights, rollout)

        for iteration in range(self.num_iterations):
            sums = self.update(window, rollout, advantages, weights, on_policy=iteration == 0)
        self.log_step(rollout, rewards, sums)
        log_completions(self, groups, rewards, advantages)
        return sums["loss"]

    def update(
        self, window: Sequence[Any], rollout: Rollout, advantages: Tensor, weights: Tensor, on_policy: bool
    ) -> Mapping[str, Tensor]:
        """Take one optimiser step; return the sums of `accumulate_gradients` over all processes."""
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
                self.objective,
                temperature=self.temperature,
                on_policy=on_policy,
                backward=lambda loss: self.manual_backward(loss * (self.trainer.world_size if divided else 1)),
                every_pass=divided,
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
        return sums

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients; in 16-mixed Lightning has divided them by its scale just before."""
        if self.trainer.gradient_clip_val:
            self.clip_gradients(
                optimizer,
                gradient_clip_val=self.trainer.gradient_clip_val,
                gradient_clip_algorithm=self.trainer.gradient_clip_algorithm or "norm",
            )

    def optimizer_steps(self) -> float:
        """Return how many steps the run will take; infinite if nothing ends it."""
        steps = super().optimizer_steps() * self.num_iterations
        return min(steps, self.trainer.max_steps) if self.trainer.max_steps > 0 else steps

    def count_answers_and_tokens(self, rollout: Rollout) -> tuple[float, float]:
        """Return the numbers of answers and of learnt tokens of the step in all processes."""
        counts = [rollout.finished.numel(), int(rollout.loss_mask.sum())]
        answers, tokens = self.sum_over_processes(torch.tensor(counts, dtype=torch.float64)).tolist()
        return answers, tokens

    def decode_answers(self, window: Sequence[Any], rollout: Rollout) -> list[list[Answer]]:
        """Return the sampled answers as text, one list per prompt; cut-off answers as they are."""
        samples = [s for batch in window for s in batch["samples"]]
        lengths = rollout.sampled.sum(2)
        words = {s.labels: label_words(s.labels, self.verbalizer) for s in samples}
        return [
            [
                Answer(
                    self.llm.tokenizer.decode(ids[: int(length)], skip_special_tokens=True),
                    int(length),
                    bool(finished),
                    sample,
                    words[sample.labels],
                )
                for ids, length, finished in zip(rollout.ids[i], lengths[i], rollout.finished[i], strict=True)
            ]
            for i, sample in enumerate(samples)
        ]

    def warn_if_rewards_equal(self, groups: Sequence[Sequence[Answer]], rewards: RewardBatch) -> None:
        """Warn once, with two answers, if all answers of the first `FIRST_STEPS` steps of a run have one reward."""
        if self._first_rewards is None:
            return
        self._first_rewards |= set(rewards.total.flatten().tolist())
        self._steps_watched += 1
        if len(self._first_rewards) > 1:
            self._first_rewards = None
        elif self._steps_watched == min(FIRST_STEPS, self.optimizer_steps() / self.num_iterations):
            (reward,) = self._first_rewards
            self._first_rewards = None
            rank_zero_warn(
                f"every answer of the first {self._steps_watched} steps earned {reward:g}, so nothing was "
                f"learnt. {self.describe_answers([a.text for group in groups for a in group])}"
            )

    # ---- evaluation
    def predict(self, batch: Any) -> list[Prediction]:
        """Return the greedy answer to each prompt, read as a label, with its rewards (without those of a group)."""
        if self.validates == "labels":
            return super().predict(batch)
        rollout = roll_out(self.writer, self.encode(batch), 1, max_new_tokens=self.max_new_tokens, temperature=0.0)
        return [
            Prediction.of(
                answer.sample,
                self.read_answer(answer.sample, answer.text),
                text=answer.text,
                details={**self.reward_details(answer), "tokens": answer.tokens, "finished": answer.finished},
            )
            for (answer,) in self.decode_answers([batch], rollout)
        ]

    def reward_details(self, answer: Answer) -> dict[str, Any]:
        """Return ``reward``, the weighted sum, and ``rewards``, its parts (None where one does not apply)."""
        parts = {reward_name(f): evaluate_reward(f, answer) for f in self.reward_funcs}
        total = sum(w * (r or 0.0) for w, r in zip(self.reward_weights, parts.values(), strict=True))
        return {"reward": total, "rewards": parts}

    def on_validation_epoch_start(self) -> None:
        """Begin a new list of rewards."""
        self.validation_rewards: list[float] = []

    def update_validation_metrics(self, samples: SampleBatch, predictions: Sequence[Prediction]) -> None:
        """Add the predictions of a validation batch to the metrics, and their rewards to the mean reward."""
        super().update_validation_metrics(samples, predictions)
        if self.validates == "rewards":
            self.validation_rewards += [float((p.details or {})["reward"]) for p in predictions]  # type: ignore[arg-type]  # a number

    def on_validation_epoch_end(self) -> None:
        """Log the scores and the mean reward."""
        super().on_validation_epoch_end()
        if self.validates == "rewards" and not self.trainer.sanity_checking:
            sums = torch.tensor([sum(self.validation_rewards), len(self.validation_rewards)], device=self.device)
            total, n = self.sum_over_processes(sums).tolist()
            self.log("val/reward", total / max(n, 1), prog_bar=True)

    # ---- logging
    def log_step(self, rollout: Rollout, rewards: RewardBatch, sums: Mapping[str, Tensor]) -> None:
        """Log the numbers of a step (see `zoo.training.grpo_metrics`) as means over all processes."""
        numbers = step_metrics(rollout, rewards.total, rewards.parts, rewards.metrics, sums, self.objective)
        pairs = torch.stack([torch.stack([x.float().to(self.device) for x in pair]) for pair in numbers.values()])
        pairs = self.sum_over_processes(pairs)
        means = {f"train/{name}": total / n for name, (total, n) in zip(numbers, pairs, strict=True) if n}
        for name, value in means.items():
            on_bar = name in ("train/loss", "train/reward")
            self.log(name, value, prog_bar=on_bar, logger=False, batch_size=len(rewards.total))
        # not through Lightning, which in manual optimisation writes the last step's numbers again for every batch
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by one of its connectors
        if self.global_step % every == 0 and self.trainer.is_global_zero:
            values = {name: float(value) for name, value in means.items()} | {"epoch": self.current_epoch}
            for logger in self.loggers:
                logger.log_metrics(values, step=self.global_step - 1)
                logger.save()  # on disk now, as Lightning does it: a killed run keeps its log
