"""Reinforced: the GRPO loop as a LightningModule. A system says what is asked and what an answer is worth.

One optimiser step is one window of ``trainer.accumulate_grad_batches`` batches: all their prompts are answered in one
decoding batch, then every batch is one forward and backward pass, and the loss is that of the window whatever its
split. So `batch_size` is a matter of memory, and batch_size x accumulate_grad_batches x processes = prompts per step.

Lightning's own ``accumulate_grad_batches``, ``gradient_clip_val``, ``precision``, ``fast_dev_run``, callbacks and DDP
apply. Optimisation is manual and visible in `training_step`.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from zoo.backbones import LLM, LoRA
from zoo.backbones.llm import Dtype, Prefix
from zoo.module import Prompted, Rows
from zoo.prompts import parse_label, words
from zoo.rl import Answer, Objective, Reward, Rollout, accumulate, roll_out, token_weights
from zoo.rl.grpo import constant
from zoo.rl.rewards import Correct, check_reward, earned, reward_name
from zoo.runs import run_folder
from zoo.schema import Prediction, Sample

FIRST_STEPS = 5  # after which it is worth a warning that every answer earned the same


@dataclass(frozen=True)
class Gathered:
    """Rewards of a window.

    Attributes:
        total: (B, n) what the answers are worth.
        parts: name of a reward -> (B, n); NaN where a reward does not apply to an answer.
        extra: metrics of a system's own, e.g. its yes-rate.
    """

    total: Tensor
    parts: Mapping[str, Tensor]
    extra: Mapping[str, float]


class Reinforced(Prompted):
    """Base of the systems that learn from rewards.

    A system overrides `collator`, and where needed `encode`, `rewards` and `predict`.

    Args:
        llm: folder, published name or hub id of the language model.
        dtype: dtype of its weights.
        revision: hub revision to pin.
        attention: ``sdpa`` shares a prompt between its answers; ``eager`` computes it for each.
        gradient_checkpointing: recompute activations in the backward pass.
        lora: adapters on the frozen model; None trains all of it, which leaves no reference (beta must be 0).
        answers: sampled per prompt (G).
        max_new_tokens: of an answer.
        temperature: of sampling, and of the log-probabilities that are trained.
        objective: what is maximised.
        scale: whether advantages are divided by their group's standard deviation.
        iterations: optimiser steps per sampled window.
        drop_truncated: answers cut off at `max_new_tokens` do not enter the loss.
        rewards: functions or classes, each an `Answer` -> float, or None where it does not apply; an answer to which
            none applies is worth 0. See `zoo.rl.rewards`.
        reward_weights: one number per reward; None: all 1.
        table_every: optimiser steps between two entries of ``answers.jsonl`` in the run folder: the sampled answers of
            two prompts with their rewards. 0: none.
    """

    monitor = "val/reward"
    verbalizer: Mapping[str, str] | None = None  # label -> word the model says, where it differs

    def __init__(
        self,
        llm: str,
        dtype: Dtype = "float32",
        revision: str | None = None,
        attention: Literal["sdpa", "eager"] = "sdpa",
        gradient_checkpointing: bool = False,
        lora: LoRA | None = None,
        answers: int = 4,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        objective: Objective = Objective(),  # noqa: B008 - frozen
        scale: Literal["std", "none"] = "std",
        iterations: int = 1,
        drop_truncated: bool = False,
        rewards: list[Reward] | None = None,
        reward_weights: list[float] | None = None,
        table_every: int = 50,
        lr: float = 5e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(lr=lr, **kwargs)
        if answers < 1 or max_new_tokens < 1 or iterations < 1 or not 0 < temperature < math.inf:
            raise ValueError(
                f"need answers >= 1, max_new_tokens >= 1, iterations >= 1 and temperature > 0; got {answers}, "
                f"{max_new_tokens}, {iterations}, {temperature}"
            )
        self.llm_args = {
            "path": llm,
            "dtype": dtype,
            "revision": revision,
            "attention": attention,
            "gradient_checkpointing": gradient_checkpointing,
        }
        if objective.beta and lora is None:
            raise ValueError(
                f"objective.beta is {objective.beta}, but without lora there is no reference to stay close to; "
                "add lora, or set objective.beta to 0"
            )
        self.lora, self.n, self.max_new_tokens, self.temperature = lora, answers, max_new_tokens, temperature
        self.objective, self.scale, self.iterations, self.drop_truncated = objective, scale, iterations, drop_truncated
        self.functions = list(rewards or ())
        self.reward_weights = list(reward_weights) if reward_weights is not None else [1.0] * len(self.functions)
        if len(self.reward_weights) != len(self.functions):
            raise ValueError(f"{len(self.functions)} rewards, but {len(self.reward_weights)} reward_weights")
        if not all(math.isfinite(weight) for weight in self.reward_weights):
            raise ValueError(f"reward_weights are finite numbers, one per reward; got {self.reward_weights}")
        if table_every < 0:
            raise ValueError(f"table_every is a number of optimiser steps, or 0 for no table; got {table_every}")
        for reward in self.functions:
            check_reward(reward)
        self.table_every = table_every
        self.pending: list[dict[str, Any]] = []
        self._earned: set[float] | None = None  # by all answers of the first steps; None once two earned differently
        self._first_steps = 0

    # ---- parts
    def build(self) -> None:
        self.llm = LLM(**self.llm_args)

    def add_adapters(self) -> None:
        if self.lora is not None:
            self.llm.add_lora(self.lora)

    def after_start(self) -> None:
        if self.objective.beta and self.start_from is not None:
            self.llm.keep_reference()  # an earlier stage may have trained the same adapters

    def bases(self) -> dict[str, LLM]:
        return {"llm": self.llm}

    # ---- what a system may fill in
    def encode(self, batch: dict[str, Any]) -> Prefix:
        """The prompts of a batch; called anew for every forward pass."""
        return self.llm.encode(self.embedded(batch), batch["mask"], positions=batch.get("positions"))

    def embedded(self, batch: dict[str, Any]) -> Tensor:
        """(B, T, D) input embeddings of the prompts."""
        return self.llm.embed(batch["input_ids"])

    def rewards(self, groups: Sequence[Sequence[Answer]]) -> Gathered:
        """Rewards of the sampled answers, one group per prompt."""
        parts: dict[str, Tensor] = {}
        for f in self.functions:
            values = [[math.nan if (r := earned(f, a)) is None else r for a in group] for group in groups]
            parts[reward_name(f)] = torch.tensor(values)
        if len(parts) != len(self.functions):
            raise ValueError(f"two rewards have the same name: {[reward_name(f) for f in self.functions]}")
        total = torch.zeros(len(groups), len(groups[0]))
        for weight, values in zip(self.reward_weights, parts.values(), strict=True):
            total = total + weight * values.nan_to_num(0.0)  # finite or NaN, see `earned`
        if not torch.isfinite(total).all():
            raise ValueError(f"the weighted sum of the rewards {', '.join(parts)} is not finite; lower reward_weights")
        if parts and all(bool(values.isnan().all()) for values in parts.values()):
            rank_zero_warn(
                f"none of the rewards ({', '.join(parts)}) applies to any of the {total.numel()} answers of this step: "
                "they are worth 0, and nothing is learnt from them"
            )
        return Gathered(total, parts, {})

    def sample(self, window: Sequence[dict[str, Any]]) -> Rollout:
        """Answers to all prompts of a window."""
        with torch.no_grad():
            prompts = Prefix.join([self.encode(batch) for batch in window])
        return roll_out(
            self.llm,
            prompts,
            self.n,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            drop_truncated=self.drop_truncated,
        )

    # ---- the loop
    def setup(self, stage: str) -> None:
        super().setup(stage)
        self._check_words()
        if stage != "fit":
            return
        if not isinstance(self.trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise ValueError(
                f"reinforcement runs in one process or with --trainer.strategy ddp, not "
                f"{type(self.trainer.strategy).__name__}: the loss of a step is summed over processes by hand"
            )
        # Lightning refuses its own accumulation and clipping in manual optimisation, which this loop carries out; it
        # asks before this hook
        self.automatic_optimization = False
        self.pending.clear()

    def _check_words(self) -> None:
        """ValueError for a reward that reads other label words than the evaluation."""
        for labels in self.trainer.datamodule.label_sets.values():
            expected = words(labels, self.verbalizer)
            for reward in self.functions:
                if isinstance(reward, Correct) and reward.words and (other := words(labels, reward.words)) != expected:
                    raise ValueError(
                        f"the reward Correct expects the words {', '.join(other)}, but answers are evaluated by "
                        f"{', '.join(expected)}; give the words as --model.verbalizer, and none to the reward"
                    )

    def on_fit_start(self) -> None:
        self.llm.check_sharing()
        self._earned, self._first_steps = set(), 0

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        self.pending.append(batch)
        if len(self.pending) < self.trainer.accumulate_grad_batches and not self.trainer.is_last_batch:
            return None
        window, self.pending = self.pending, []

        rollout = self.sample(window)
        groups = self.read(window, rollout)
        gathered = self.rewards(groups)
        self.watch_rewards(groups, gathered)
        rewards = gathered.total.to(rollout.old)
        signal = self.objective.signal(rewards, self.scale)
        weights = token_weights(rollout.mask, self.objective.normalize, self.max_new_tokens, self.totals(rollout))

        for iteration in range(self.iterations):
            sums = self.update(window, rollout, signal, weights, on_policy=iteration == 0)
        self.report(rollout, gathered, sums)
        self.write_table(groups, gathered, signal)
        return sums["loss"]

    def update(
        self, window: Sequence[dict[str, Any]], rollout: Rollout, signal: Tensor, weights: Tensor, on_policy: bool
    ) -> Mapping[str, Tensor]:
        """One optimiser step. Returns the sums of `accumulate` over all processes."""
        optimizer = self.optimizers()
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.zero_grad(set_to_none=True)
        parts = [lambda batch=batch: self.encode(batch) for batch in window]
        # processes may skip different groups, so their numbers of passes differ: gradients are summed once, afterwards
        with self.trainer.strategy.block_backward_sync() if self.trainer.world_size > 1 else contextlib.nullcontext():
            sums = accumulate(
                self.llm,
                parts,
                rollout,
                signal,
                weights,
                self.objective,
                temperature=self.temperature,
                on_policy=on_policy,
                backward=self.manual_backward,
            )
        sums = dict(zip(sums, self._summed(torch.stack(list(sums.values()))), strict=True))
        self.check_finite(sums["loss"], {"samples": window[0]["samples"]})
        for p in trained:
            if p.grad is None:  # all of a window's groups were idle: the same step as with a gradient of zero
                p.grad = torch.zeros_like(p)
            if self.trainer.world_size > 1:
                torch.distributed.all_reduce(p.grad)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None:  # 16-mixed: a norm can be judged only after this
            scaler.unscale_(optimizer.optimizer)
        if self.trainer.gradient_clip_val:
            self.clip_gradients(
                optimizer,
                gradient_clip_val=self.trainer.gradient_clip_val,
                gradient_clip_algorithm=self.trainer.gradient_clip_algorithm or "norm",
            )
        optimizer.step()
        self.lr_schedulers().step()
        return sums

    def optimizer_steps(self) -> float:
        steps = super().optimizer_steps() * self.iterations
        return min(steps, self.trainer.max_steps) if self.trainer.max_steps > 0 else steps

    def totals(self, rollout: Rollout) -> tuple[float, float]:
        """Answers and tokens of the step in all processes."""
        answers, tokens = self._summed(
            torch.tensor([rollout.finished.numel(), int(rollout.mask.sum())], device=self.device, dtype=torch.float64)
        ).tolist()
        return answers, tokens

    def _summed(self, value: Tensor) -> Tensor:
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(value)
        return value

    def read(self, window: Sequence[dict[str, Any]], rollout: Rollout) -> list[list[Answer]]:
        """The sampled answers as text, one list per prompt. Cut-off answers are read as they are."""
        samples = [s for batch in window for s in batch["samples"]]
        real = self.lengths(rollout)
        label_words = {s.labels: words(s.labels, self.verbalizer) for s in samples}
        return [
            [
                Answer(
                    self.llm.tokenizer.decode(ids[: int(k)], skip_special_tokens=True),
                    int(k),
                    bool(f),
                    sample,
                    label_words[sample.labels],
                )
                for ids, k, f in zip(rollout.ids[i], real[i], rollout.finished[i], strict=True)
            ]
            for i, sample in enumerate(samples)
        ]

    def lengths(self, rollout: Rollout) -> Tensor:
        """(B, n) int64 tokens of each answer, those left out of the loss included."""
        return rollout.sampled.sum(2)

    def watch_rewards(self, groups: Sequence[Sequence[Answer]], gathered: Gathered) -> None:
        """Warns once, with two answers, if all answers of the first `FIRST_STEPS` steps of a run earned the same, so
        that nothing could be learnt."""
        if self._earned is None:
            return
        self._earned |= set(gathered.total.flatten().tolist())
        self._first_steps += 1
        if len(self._earned) > 1:
            self._earned = None
        elif self._first_steps == min(FIRST_STEPS, self.optimizer_steps() / self.iterations):
            (reward,) = self._earned
            self._earned = None
            rank_zero_warn(
                f"every answer of the first {self._first_steps} steps earned {reward:g}, so nothing was "
                f"learnt. {self.two_answers([a.text for group in groups for a in group])}"
            )

    # ---- evaluation
    def predict(self, batch: dict[str, Any]) -> list[Prediction]:
        """The greedy answer to each prompt, read as a label word, and its rewards (without those of a group)."""
        rollout = roll_out(self.llm, self.encode(batch), 1, max_new_tokens=self.max_new_tokens, temperature=0.0)
        answers = [group[0] for group in self.read([batch], rollout)]
        predictions = []
        for a in answers:
            said = {**self.worth(a), "tokens": a.tokens, "finished": a.finished}
            predictions.append(
                Prediction(
                    a.sample.id,
                    a.sample.dialogue,
                    a.sample.target.label,
                    self.read_answer(a.sample, a.text),
                    text=a.text,
                    details=said,
                )
            )
        return predictions

    def worth(self, answer: Answer) -> dict[str, Any]:
        """``reward``, the weighted sum, and ``rewards``, its parts (None where one does not apply), of one answer
        (without those of a group)."""
        rewards = {reward_name(f): earned(f, answer) for f in self.functions}
        return {
            "reward": sum(w * (r or 0.0) for w, r in zip(self.reward_weights, rewards.values(), strict=True)),
            "rewards": rewards,
        }

    def read_answer(self, sample: Sample, text: str) -> str | None:
        """Label word of an answer, or None if it is unreadable; as `Answer.named`, by which rewards go."""
        index = parse_label(text, words(sample.labels, self.verbalizer))
        return None if index is None else sample.labels.names[index]

    def on_validation_epoch_start(self) -> None:
        self.judged: list[float] = []

    def judge(self, samples: Rows, predictions: Sequence[Prediction]) -> None:
        super().judge(samples, predictions)
        self.judged += [p.details["reward"] for p in predictions]

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if not self.trainer.sanity_checking:
            total, n = self._summed(torch.tensor([sum(self.judged), len(self.judged)], device=self.device)).tolist()
            self.log("val/reward", total / max(n, 1), prog_bar=True)

    # ---- what is said about it
    def report(self, rollout: Rollout, gathered: Gathered, sums: Mapping[str, Tensor]) -> None:
        """Logs under TRL's names, with ``train/`` in front as its reporters write them.

        Entropy is the mean over every sampled token, also of answers that `drop_truncated` leaves out of the loss; a
        reward's mean is over the answers it applies to. What counts nothing in this step is not logged.
        """
        rewards, lengths, finished = gathered.total, self.lengths(rollout).float(), rollout.finished
        spread = rewards.std(1) if rewards.shape[1] > 1 else torch.zeros(len(rewards))
        means: dict[str, Tensor] = {
            "reward": rewards.mean(),
            "reward_std": spread.mean(),
            "frac_reward_zero_std": constant(rewards).float().mean(),
            "completions/mean_length": lengths.mean(),
            "completions/min_length": lengths.min(),
            "completions/max_length": lengths.max(),
            "completions/clipped_ratio": 1 - finished.float().mean(),
        }
        weighted: dict[str, tuple[Tensor, Tensor]] = {  # a sum and what it is divided by
            "entropy": (rollout.entropy[rollout.sampled].sum(), rollout.sampled.sum())
        }
        for name, values in gathered.parts.items():
            applies = values[~values.isnan()]
            weighted[f"rewards/{name}/mean"] = applies.sum(), torch.tensor(len(applies))
            if len(applies) > 1:
                weighted[f"rewards/{name}/std"] = applies.std(), torch.tensor(1)
            else:
                weighted[f"rewards/{name}/std"] = torch.tensor(0.0), torch.tensor(0)
        # per answer that is learnt from: the weights of `sums` divide by all answers, or by tokens learnt from
        learnt = torch.tensor(1.0) if self.objective.normalize == "token" else rollout.mask.any(2).float().mean()
        renamed = {"kl": "kl", "clip_ratio/low": "clip_ratio/low_mean", "clip_ratio/high": "clip_ratio/high_mean"}
        weighted |= {renamed[name]: (value, learnt) for name, value in sums.items() if name in renamed}
        means |= {name: torch.tensor(value) for name, value in gathered.extra.items()}
        means = {"loss": sums["loss"], **means}
        weighted = {name: (value, torch.tensor(1)) for name, value in means.items()} | weighted
        pairs = torch.stack([torch.stack([x.float().to(self.device) for x in pair]) for pair in weighted.values()])
        pairs = self._summed(pairs)
        means = {f"train/{name}": value / count for name, (value, count) in zip(weighted, pairs, strict=True) if count}
        for name, value in means.items():
            shown = name in ("train/loss", "train/reward")
            self.log(name, value, prog_bar=shown, logger=False, batch_size=len(rewards))
        # not through Lightning, which in manual optimisation writes the last step's numbers again for every batch
        if self.global_step % self.trainer.log_every_n_steps == 0 and self.trainer.is_global_zero:
            numbers = {name: float(value) for name, value in means.items()} | {"epoch": self.current_epoch}
            for logger in self.loggers:
                logger.log_metrics(numbers, step=self.global_step - 1)
                logger.save()  # on disk now, as Lightning does it: a killed run keeps its log

    def write_table(self, groups: Sequence[Sequence[Answer]], gathered: Gathered, signal: Tensor) -> None:
        step = self.global_step // self.iterations
        due = self.table_every and (step - 1) % self.table_every == 0
        if not due or not self.trainer.is_global_zero or self.trainer.fast_dev_run:
            return
        rows = [
            {
                "step": self.global_step,
                "id": a.sample.id,
                "answer": a.text,
                "tokens": a.tokens,
                "reward": round(float(gathered.total[i, j]), 6),
                "rewards": {name: _written(v[i, j]) for name, v in gathered.parts.items()},
                "signal": round(float(signal[i, j]), 6),
            }
            for i, group in enumerate(groups[:2])
            for j, a in enumerate(group)
        ]
        path = run_folder(self.trainer) / "answers.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        rank_zero_info(f"sampled answers of step {self.global_step}: {path}")


def _written(value: Tensor) -> float | None:
    """A reward for a file; None where it does not apply."""
    return None if value.isnan() else round(float(value), 6)
