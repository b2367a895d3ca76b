"""RewardedModule: sampled answers that earn rewards, and an evaluation that looks at rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from zoo.backbones import Sampling
from zoo.prompts import label_words
from zoo.rl import Answer, BatchReward, Reward, Rollout, roll_out
from zoo.rl.rewards import Correct, check_reward, evaluate_reward, reward_name
from zoo.schema import Prediction
from zoo.training.batch import SampleBatch
from zoo.training.language_model import LanguageModelModule


def evaluate_rewards(reward: BatchReward | Reward, answers: Sequence[Answer]) -> list[float | None]:
    """Return what a reward gives each answer; see `evaluate_reward` and `BatchReward.evaluate`."""
    if isinstance(reward, BatchReward):
        return reward.evaluate(answers)
    return [evaluate_reward(reward, answer) for answer in answers]


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

    def first(self, n: int) -> RewardBatch:
        """Return the rewards of the first n answers of every group."""
        return RewardBatch(self.total[:, :n], {name: part[:, :n] for name, part in self.parts.items()}, self.metrics)


class RewardedModule(LanguageModelModule):
    """A language model whose answers earn rewards.

    Args:
        temperature: of sampling, and of the log-probabilities that are trained.
        top_p: answers are drawn from the fewest most probable tokens that together have at least this probability. The
            log-probabilities that are trained stay those of the whole distribution at `temperature`, as in TRL, also
            with the next two (`zoo.backbones.Sampling`).
        top_k: from the k most probable tokens; 0: from all. Equations and sources: `zoo.backbones.Sampling`.
        min_p: from tokens of at least this share of the probability of the most probable one.
        stop_strings: an answer ends with the first of them that it writes, and counts as finished.
        reward_funcs: functions or classes, each an `Answer` -> float, or None where it does not apply; an answer to
            which none applies has reward 0. One that sees all answers of a window is a `zoo.rl.BatchReward`. See
            `zoo.rl.rewards`.
        reward_weights: one number per reward; None: all 1.
    """

    monitor = "val/reward"
    validates: Literal["rewards", "labels"] = "rewards"  # what a validation and a test look at

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float | None = None,
        stop_strings: list[str] | None = None,
        reward_funcs: list[BatchReward | Reward] | None = None,
        reward_weights: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 < temperature < math.inf:
            raise ValueError(f"need temperature > 0; got {temperature}")
        self.temperature = temperature
        self.sampling = Sampling(top_p, top_k, min_p, tuple(stop_strings or ()))
        self.reward_funcs = list(reward_funcs or ())
        self.reward_weights = list(reward_weights) if reward_weights is not None else [1.0] * len(self.reward_funcs)
        if len(self.reward_weights) != len(self.reward_funcs):
            raise ValueError(f"{len(self.reward_funcs)} rewards, but {len(self.reward_weights)} reward_weights")
        if not all(math.isfinite(weight) for weight in self.reward_weights):
            raise ValueError(f"reward_weights are finite numbers, one per reward; got {self.reward_weights}")
        for reward in self.reward_funcs:
            check_reward(reward)

    def longest_answer(self) -> int:
        """Return for how many tokens of an answer a prompt must leave room."""
        return self.max_new_tokens

    def why_separate(self, training: bool) -> str | None:
        """Return why every prompt is computed by itself: in training it is shared by its own answers alone."""
        alone = "its answers share the prompt that they stand behind, and prompts share nothing" if training else None
        return super().why_separate(training) or alone

    def setup(self, stage: str) -> None:
        """Check that rewards and evaluation read the same words, beside what every prompted system checks."""
        super().setup(stage)
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

    # ---- what a system may fill in
    def rewards(self, groups: Sequence[Sequence[Answer]]) -> RewardBatch:
        """Return the rewards of the sampled answers, one group per prompt."""
        shape = len(groups), len(groups[0])
        answers = [answer for group in groups for answer in group]
        parts: dict[str, Tensor] = {}
        for f in self.reward_funcs:
            values = [math.nan if r is None else r for r in evaluate_rewards(f, answers)]
            parts[reward_name(f)] = torch.tensor(values, dtype=torch.float32).view(shape)
        if len(parts) != len(self.reward_funcs):
            raise ValueError(f"two rewards have the same name: {[reward_name(f) for f in self.reward_funcs]}")
        total = torch.zeros(shape, dtype=torch.float32)
        for weight, part in zip(self.reward_weights, parts.values(), strict=True):
            total = total + weight * part.nan_to_num(0.0)  # finite or NaN, see `evaluate_rewards`
        if not torch.isfinite(total).all():
            raise ValueError(f"the weighted sum of the rewards {', '.join(parts)} is not finite; lower reward_weights")
        if parts and all(bool(part.isnan().all()) for part in parts.values()):
            rank_zero_warn(
                f"none of the rewards ({', '.join(parts)}) applies to any of the {total.numel()} answers of this step: "
                "they have reward 0, and nothing is learnt from them"
            )
        return RewardBatch(total, parts, {})

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

    # ---- evaluation
    def predict(self, batch: Any) -> list[Prediction]:
        """Return the greedy answer to each prompt, read as a label, with its rewards (without those of a group)."""
        if self.validates == "labels":
            return super().predict(batch)
        rollout = roll_out(
            self.writer,
            self.encode(batch),
            1,
            max_new_tokens=self.max_new_tokens,
            temperature=0.0,
            sampling=self.sampling,
        )
        answers = [answer for (answer,) in self.decode_answers([batch], rollout)]
        return [
            Prediction.of(
                answer.sample,
                self.read_answer(answer.sample, answer.text),
                text=answer.text,
                details={**details, "tokens": answer.tokens, "finished": answer.finished},
            )
            for answer, details in zip(answers, self.reward_details(answers), strict=True)
        ]

    def reward_details(self, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        """Return for each answer ``reward``, the weighted sum, and ``rewards``, its parts (None where none applies)."""
        columns = {reward_name(f): evaluate_rewards(f, answers) for f in self.reward_funcs}
        rows = [{name: column[i] for name, column in columns.items()} for i in range(len(answers))]
        weights = self.reward_weights
        totals = [sum(w * (r or 0.0) for w, r in zip(weights, row.values(), strict=True)) for row in rows]
        return [{"reward": total, "rewards": row} for total, row in zip(totals, rows, strict=True)]

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
