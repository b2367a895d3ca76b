"""Modality selection with GRPO for emotion recognition in conversations (Chen et al. 2025).

Stage 1, `ModalitySelector`: an LLM reads a conversation with the audio and video descriptions of its turns, thinks, and
decides whether the descriptions should be kept for the target utterance. No labels: GRPO rewards form, a decision and a
length. Stage 2, `classifier.SelectedClassifier`: an LLM with LoRA names the emotion from a prompt with or without
descriptions, as was decided. The decisions travel in a file, so the stages run apart:

    zoo fit --config configs/selector/meld.yaml                                     stage 1
    zoo predict --ckpt_path RUN1 --data.predict_splits [train,dev,test]             writes RUN1/decisions.jsonl
    zoo fit --config configs/selector/meld_classifier.yaml --model.selection RUN1   stage 2

Differs from the paper (P) and its published code (C), which disagree on every reward:
- Prompt wording is ours, after P's figures and C's structure; C's own text can be given as a template file.
- Rewards: P's three terms to the letter by default (`format`, `response`, `overlength`); C's as intended and C's
  literally are choices. C's length term rewards more than 1024 characters; its script cannot run as published.
- Lc and Lm of P's length term are unknown: 64 and 224 tokens, so that all three branches can be reached below 256 new
  tokens. P's equation is a bonus band; the penalty it cites (DAPO) is ``overlength: dapo``.
- `response` wants exactly one of the two phrases inside `<answer>`; P wants it anywhere in the response.
- The prompts of `zoo prepare captions` ask for what is seen and heard and forbid naming the feeling; the descriptions
  in P's Fig. 8 name it. A prompt of your own is an option there.
- P states neither beta, clip nor temperature: those are TRL's of that time (.04, .2, .9), as in C. C also had top-k 50,
  which samples from another distribution than the one that is trained; here sampling is plain.
- LoRA dropout .1 acts in the forward pass that is trained, not in sampling nor in the reference.
- An unreadable decision keeps the descriptions (`on_unparsable`), and is counted. Decisions are greedy; P does not say.
- Stage 2 scores the label words (`decode: score`); P and C generate greedily: ``decode: greedy``. C takes the nearest
  label by edit distance where none is found; here an unreadable answer is wrong. C chooses the epoch on the test split;
  here on dev.
- P's rewards never look at the emotion, so a policy that always answers the same is optimal for them. `downstream`
  (ours, off in P's configs) rewards what a decision does to the stage-2 classifier. `reasoning: none` (ours) decides by
  one of two phrases without thinking, and `exploration: forced` (ours) puts both decisions into every group.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from zoo.models.selector.parts import DISCARD, KEEP, TEMPLATES, Downstream, Format, Response, read_decision
from zoo.prompts import load_template
from zoo.rl import Answer, Rollout
from zoo.rl.rewards import Overlength
from zoo.schema import Prediction, Sample
from zoo.training.batch import SampleBatch
from zoo.training.grpo import GRPOModule, RewardBatch

log = logging.getLogger(__name__)


class ModalitySelector(GRPOModule):
    """Stage 1: keep or discard the descriptions.

    Args:
        template: ``selector`` (P's structure), ``decision`` (short, for `reasoning` none), or a file.
        chat: the prompt is a user's message behind P's system message, in the tokenizer's chat format; None: wherever
            it has one.
        window: earlier turns shown; P: 12 (10 to 15 best).
        descriptions: kinds shown; of earlier turns all but video (``decision``: of the target alone).
        reasoning: ``think``: the answer is sampled, thoughts first. ``none``: it is one of the two phrases.
        exploration: ``sampled``: groups are what the policy samples. ``forced``: half of each group keeps and half
            discards, so that both are seen for every prompt; each sampled thought stands before both. Needs
            ``reinforce_group``, because such answers have no ratio to a sampler.
        format: first term, see `Format`.
        response: second term, see `Response`.
        overlength: third term, see `Overlength`.
        desired, longest: Lc and Lm of the third term, in tokens.
        downstream: file of a classifier's comparisons, see `Downstream`; None: no such term.
        downstream_kind: ``log_probability`` and ``probability`` use labels, ``entropy`` does not.
        downstream_weight: its weight; the other terms have 1.
        system_template: system message for `chat`, a name or a file like `template`.
    """

    renamed_options = {"system": "system_template"}
    templates = TEMPLATES
    scores = ("keep_rate", "unparsed", "reward")
    predictions_file = "decisions.jsonl"
    unpublished_options = ("downstream",)

    def __init__(
        self,
        *,
        template: str = "selector",
        chat: bool | None = None,
        window: int = 12,
        reasoning: Literal["think", "none"] = "think",
        exploration: Literal["sampled", "forced"] = "sampled",
        format: Literal["paper", "code_intended", "code_literal", "none"] = "paper",
        response: Literal["paper", "code", "none"] = "paper",
        overlength: Literal["paper", "dapo", "code", "none"] = "paper",
        desired: int = 64,
        longest: int = 224,
        downstream: str | None = None,
        downstream_kind: Literal["log_probability", "probability", "entropy"] = "log_probability",
        downstream_weight: float = 1.0,
        system_template: str = "system",
        **kwargs: Any,
    ) -> None:
        super().__init__(template=template, chat=chat, window=window, verbalizer=None, system_prompt=None, **kwargs)
        if not math.isfinite(downstream_weight):
            raise ValueError(f"need a finite downstream_weight; got {downstream_weight}")
        self.system_prompt = load_template(system_template, self.templates).render()
        self.tagged, self.forced = reasoning == "think", exploration == "forced"
        self._check_exploration()
        terms: list[tuple[Any, float]] = []
        if format != "none" and self.tagged:
            terms.append((Format(format), 1.0))
        if response != "none":
            terms.append((Response(response, self.tagged), 1.0))
        if overlength != "none":
            terms.append((Overlength(overlength, desired, longest), 1.0))
        self.downstream: tuple[Any, ...] | None = (
            None if downstream is None else (downstream, downstream_kind, self.tagged)
        )
        self.downstream_weight = downstream_weight
        self.reward_funcs = [f for f, _ in terms] + self.reward_funcs
        self.reward_weights = [w for _, w in terms] + self.reward_weights
        if not self.reward_funcs and downstream is None:
            raise ValueError(
                "the selector has no reward: set format, response, overlength or downstream, or reward_funcs"
            )

    def _check_exploration(self) -> None:
        kind, n = self.objective.kind, self.num_generations
        if self.forced and (kind != "reinforce_group" or self.steps_per_window > 1 or n % 2):
            raise ValueError(
                "exploration forced puts both decisions into every group: it needs an even number of answers "
                f"(num_generations), objective.kind reinforce_group and 1 iteration of 1 mini-batch; got {n}, {kind} "
                f"and {self.steps_per_window}"
            )
        if self.forced and self.max_resample_times:
            raise ValueError("exploration forced gives the same answers again: set max_resample_times to 0")

    # ---- prompts
    def longest_answer(self) -> int:
        """Return for how many tokens of an answer a prompt must leave room."""
        return self.max_new_tokens if self.tagged else max(map(len, self.decision_ids)) + 1

    def setup(self, stage: str) -> None:
        """Add the downstream reward, beside what every system does that learns from rewards."""
        super().setup(stage)
        if self.downstream is not None:
            self._add_downstream(stage)

    def has_input(self, sample: Sample) -> bool:
        """Return True: the decision is about a conversation, of which the utterance may be silent."""
        return True

    def _add_downstream(self, stage: str) -> None:
        """Add the downstream reward if its file speaks of every sample.

        Training needs that; an evaluation does without, because what is predicted may have no labels, and the
        classifier's file may be gone.
        """
        try:
            term = Downstream(*(self.downstream or ()))
            for split in self.data.splits_of(stage):
                term.require(self.data.samples(split), split)
        except (FileNotFoundError, ValueError) as error:
            if stage == "fit":
                raise
            log.warning("the reward of this evaluation has no downstream term: %s", error)
        else:
            self.reward_funcs = [*self.reward_funcs, term]
            self.reward_weights = [*self.reward_weights, self.downstream_weight]
        self.downstream = None  # once, whatever hooks run

    @property
    def decision_ids(self) -> list[list[int]]:
        """Token ids of the two decisions, keep first."""
        return [self.answer_ids(phrase) for phrase in (KEEP, DISCARD)]

    # ---- stage 1
    def sample(self, window: Sequence[Any], answers: int | None = None, prompts: torch.Tensor | None = None) -> Rollout:
        """Return answers to the prompts of a window: sampled, or with both decisions in every group."""
        if not self.forced:
            return super().sample(window, answers, prompts)
        if not self.tagged:
            return self.both_decisions(window)
        return self.decide_both_ways(super().sample(window, self.num_generations // 2))

    def decide_both_ways(self, rollout: Rollout) -> Rollout:
        """Return two answers for each sampled one (P, n/2, T): its thoughts with keep, then the same with discard.

        So the two differ in reward by the decision alone. An answer that never came to <answer> stands there twice.
        """
        tokenizer = self.llm.tokenizer
        answers: list[list[int]] = []
        for ids, real in zip(rollout.ids.flatten(0, 1), rollout.sampled.flatten(0, 1), strict=True):
            thoughts, tag, _ = tokenizer.decode(ids[real], skip_special_tokens=True).partition("<answer>\n")
            for phrase in (KEEP, DISCARD):
                text = f"{thoughts}{tag}{phrase}\n</answer>"
                decided = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
                answers.append(decided if tag else ids[real].tolist())
        ids, real = self._padded(answers)
        shape = (len(rollout.ids), self.num_generations, ids.shape[1])
        zeros, sampled = torch.zeros(shape, device=ids.device), real.view(shape)
        counted, finished = (x.repeat_interleave(2, 1) for x in (rollout.loss_mask.any(2), rollout.finished))
        return rollout._replace(
            ids=ids.view(shape),
            loss_mask=sampled & counted[..., None],
            finished=finished,
            old_logprobs=zeros,
            entropy=zeros,
            sampled_mask=sampled,
            sampler_logprobs=None,  # these answers were not sampled
        )

    def both_decisions(self, window: Sequence[Any]) -> Rollout:
        """Return n/2 times keep and n/2 times discard for every prompt, as if they had been sampled."""
        prompts = sum(len(batch["samples"]) for batch in window)
        ids, real = self._padded([phrase + [self.llm.tokenizer.eos_token_id] for phrase in self.decision_ids])
        ids, real = (x.repeat(self.num_generations // 2, 1).expand(prompts, -1, -1) for x in (ids, real))
        zeros = torch.zeros(ids.shape, device=self.device)
        finished = torch.ones(ids.shape[:2], dtype=torch.bool, device=self.device)
        return Rollout(ids, real, zeros, finished, zeros)

    def _padded(self, answers: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids (N, T), padded on the right, and which of them are real."""
        ids = torch.full((len(answers), max(map(len, answers))), self.llm.pad_id, device=self.device)
        real = torch.zeros_like(ids, dtype=torch.bool)
        for row, mask, answer in zip(ids, real, answers, strict=True):
            row[: len(answer)], mask[: len(answer)] = torch.tensor(answer, device=ids.device), True
        return ids, real

    def rewards(self, groups: Sequence[Sequence[Answer]]) -> RewardBatch:
        """Return the rewards of the sampled answers, and how often they keep the descriptions."""
        batch = super().rewards(groups)
        decisions = [read_decision(a.text, self.tagged) for group in groups for a in group]
        readable = [d for d in decisions if d is not None]
        # both always: all processes must log the same names
        metrics = {
            "unparsed": decisions.count(None) / len(decisions),
            "yes_rate": sum(readable) / max(1, len(readable)),
        }
        return RewardBatch(batch.total, batch.parts, metrics)

    # ---- decisions
    def predict(self, batch: Any) -> list[Prediction]:
        """Return the decision about each sample, in ``details.decision``, with its reward."""
        samples = batch["samples"]
        if self.tagged:
            answers = super().predict(batch)
            return [
                self._decision(s, read_decision(p.text or "", True), p.text, p.details or {})
                for s, p in zip(samples, answers, strict=True)
            ]
        scores = self.llm.score(self.encode(batch), self.decision_ids).cpu().double()
        probabilities = torch.softmax(scores, 1)[:, 0].tolist()  # of keeping
        return [
            self._decision(s, p > 0.5, None, {"keep": round(p, 6)} | self._reward_of(s, p > 0.5))
            for s, p in zip(samples, probabilities, strict=True)
        ]

    @staticmethod
    def _decision(sample: Sample, keep: bool | None, text: str | None, details: Mapping[str, Any]) -> Prediction:
        word = {True: "keep", False: "discard", None: None}[keep]
        return Prediction.of(sample, None, text=text, details={"decision": word, **details})

    def _reward_of(self, sample: Sample, keep: bool) -> dict[str, Any]:
        """Return the reward of a decision made without words; nothing without reward functions."""
        phrase, ids = ((KEEP, DISCARD)[not keep], self.decision_ids[not keep])
        answer = Answer(phrase, len(ids) + 1, True, sample)
        return self.reward_details([answer])[0] if self.reward_funcs else {}

    def on_validation_epoch_start(self) -> None:
        """Begin a new list of decisions."""
        self.validation_decisions: list[tuple[float, float, float]] = []

    def update_validation_metrics(self, samples: SampleBatch, predictions: Sequence[Prediction]) -> None:
        """Note the decisions of a validation batch; there are no labels to compare with."""
        self.validation_decisions += [_decision_numbers(p.details or {}) for p in predictions]
        self.warn_if_unreadable(predictions)

    def is_readable(self, prediction: Prediction) -> bool:
        """Return whether an answer decides."""
        return (prediction.details or {})["decision"] is not None

    def on_validation_epoch_end(self) -> None:
        """Log how often descriptions are kept, how many answers are unreadable, and the mean reward."""
        if self.trainer.sanity_checking:
            return
        table = torch.tensor(self.validation_decisions, dtype=torch.float64).reshape(-1, 3)
        sums = self.sum_over_processes(torch.cat([table.sum(0), torch.tensor([len(table)]).to(table)]))
        for name, value in zip(("keep_rate", "unparsed", "reward"), (sums[:3] / sums[3]).tolist(), strict=True):
            if np.isfinite(value):
                self.log(f"val/{name}", value, prog_bar=True)

    def summary(self, rows: Sequence[Mapping[str, Any]], run: Path) -> dict[str, Any]:
        """Return what metrics.json says about the rows of decisions.jsonl."""
        keep_rate, unparsed, reward = np.mean([_decision_numbers(r["details"]) for r in rows], axis=0).tolist()
        summary = {"n": len(rows), "keep_rate": keep_rate, "unparsed": unparsed}
        return summary | ({"reward": reward} if np.isfinite(reward) else {})


def _decision_numbers(details: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return 1 or 0 for a kept description, 1 or 0 for an unreadable answer, and the reward (NaN without one)."""
    decision = details["decision"]
    return float(decision == "keep"), float(decision is None), float(details.get("reward", float("nan")))
