"""Modality selection with GRPO for emotion recognition in conversations (Chen et al. 2025).

Stage 1, `ModalitySelector`: an LLM reads a conversation with the audio and video descriptions of its turns, thinks, and
decides whether the descriptions should be kept for the target utterance. No labels: GRPO rewards form, a decision and a
length. Stage 2, `SelectedClassifier`: an LLM with LoRA names the emotion from a prompt with or without descriptions, as
was decided. The decisions travel in a file, so the stages run apart:

    zoo fit --config configs/selector/meld.yaml                                     stage 1
    zoo predict --ckpt_path RUN1 --data.predict_splits [train,dev,test]             writes RUN1/decisions.jsonl
    zoo fit --config configs/selector/meld_classifier.yaml --model.selection RUN1   stage 2

Differs from the paper (P) and its published code (C), which disagree on every reward:
- Prompt wording is ours, after P's figures and C's structure; C's own text can be given as a template file.
- Rewards: P's three terms to the letter by default (`format`, `response`, `overlength`); C's as intended and C's
  literally are choices. C's length term rewards more than 1024 characters; its script cannot run as published.
- Lc and Lm of P's length term are unknown: 64 and 224 tokens, so that all three branches can be reached below 256 new
  tokens. P's equation is a bonus band; the penalty it cites (DAPO) is ``overlength: dapo``.
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

import hashlib
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from zoo.models.selector.parts import (
    DISCARD,
    KEEP,
    Downstream,
    Format,
    Response,
    read_decision,
    read_decisions,
    read_rows,
)
from zoo.module import PromptCollator, Rows, Supervised, answer_ids, fitting_length, prompt_reads, require_descriptions
from zoo.prompts import load_template
from zoo.reinforced import Gathered, Reinforced
from zoo.rl import Answer, Rollout
from zoo.rl.rewards import Overlength
from zoo.schema import Prediction, Sample

log = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"


class ModalitySelector(Reinforced):
    """Stage 1: keep or discard the descriptions.

    Args:
        llm: folder, published name or hub id of the policy; P: Qwen2.5-7B-Instruct.
        template: ``selector`` (P's structure), ``decision`` (short, for `reasoning` none), or a file.
        chat: the prompt is a user's message behind P's system message, in the tokenizer's chat format; None: wherever
            it has one.
        window: earlier turns shown; P: 12 (10 to 15 best).
        descriptions: kinds shown; of earlier turns all but video (``decision``: of the target alone).
        max_length: longest prompt in tokens.
        reasoning: ``think``: the answer is sampled, thoughts first. ``none``: it is one of the two phrases.
        exploration: ``sampled``: groups are what the policy samples. ``forced``: half of each group keeps and half
            discards, so that both are seen for every prompt; behind sampled thoughts the decision is replaced. Needs
            ``reinforce_group``, because such answers have no ratio to a sampler.
        format: first term, see `Format`.
        response: second term, see `Response`.
        overlength: third term, see `Overlength`.
        desired, longest: Lc and Lm of the third term, in tokens.
        downstream: file of a classifier's comparisons, see `Downstream`; None: no such term.
        downstream_kind: ``log_probability`` and ``probability`` use labels, ``entropy`` does not.
        downstream_weight: its weight; the other terms have 1.
        system: system message for `chat`, a name or a file like `template`.
    """

    templates = TEMPLATES
    scores = ("keep_rate", "unparsed", "reward")
    rows_file = "decisions.jsonl"
    unpublished_options = ("downstream",)

    def __init__(
        self,
        llm: str,
        template: str = "selector",
        chat: bool | None = None,
        window: int = 12,
        descriptions: list[str] | None = None,
        max_length: int = 1024,
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
        system: str = "system",
        **kwargs: Any,
    ) -> None:
        super().__init__(llm, chat=chat, **kwargs)
        if window < 0 or max_length < 2 or not math.isfinite(downstream_weight):
            raise ValueError(
                "need window >= 0, max_length >= 2 and a finite downstream_weight; got "
                f"{window}, {max_length} and {downstream_weight}"
            )
        if exploration == "forced" and (self.objective.kind != "reinforce_group" or self.iterations > 1 or self.n % 2):
            raise ValueError(
                "exploration forced puts both decisions into every group: it needs an even number of answers, "
                f"objective.kind reinforce_group and 1 iteration; got {self.n}, {self.objective.kind} and "
                f"{self.iterations}"
            )
        self.template = load_template(template, self.templates)
        self.prompt = {
            "window": window,
            "kinds": tuple(descriptions or ()),
            "verbalizer": None,
            "max_length": max_length,
        }
        self.system = load_template(system, self.templates).render()
        self.tagged, self.forced = reasoning == "think", exploration == "forced"
        terms: list[tuple[Any, float]] = []
        if format != "none" and self.tagged:
            terms.append((Format(format), 1.0))
        if response != "none":
            terms.append((Response(response, self.tagged), 1.0))
        if overlength != "none":
            terms.append((Overlength(overlength, desired, longest), 1.0))
        self.downstream = None if downstream is None else (downstream, downstream_kind, self.tagged)
        self.downstream_weight = downstream_weight
        self.functions = [f for f, _ in terms] + self.functions
        self.reward_weights = [w for _, w in terms] + self.reward_weights
        if not self.functions and downstream is None:
            raise ValueError("the selector has no reward: set format, response, overlength or downstream, or rewards")

    # ---- prompts
    def build(self) -> None:
        super().build()
        answer = self.max_new_tokens if self.tagged else max(map(len, self.phrases)) + 1
        self.prompt["max_length"] = fitting_length(self.llm, self.prompt["max_length"], answer)

    @property
    def reads(self) -> tuple[str, ...]:
        return prompt_reads(self.template, self.prompt["window"], self.prompt["kinds"])

    def collator(self, training: bool) -> PromptCollator:
        return PromptCollator(
            self.llm.tokenizer,
            self.llm.pad_id,
            self.template,
            training=False,
            chat=self.chats,
            system=self.system,
            **self.prompt,
        )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.downstream is not None:
            self._add_downstream(stage)

    def require(self, samples: Sequence[Sample], split: str, stage: str) -> None:
        super().require(samples, split, stage)
        require_descriptions(samples, self.prompt["kinds"], split)

    def _add_downstream(self, stage: str) -> None:
        """Adds the term if its file speaks of every sample. Training needs that; an evaluation does without, because
        what is predicted may have no labels, and the classifier's file may be gone."""
        data = self.trainer.datamodule
        try:
            term = Downstream(*self.downstream)
            for split in data.splits_of(stage):
                term.require(data.samples(split), split)
        except (FileNotFoundError, ValueError) as error:
            if stage == "fit":
                raise
            log.warning("the reward of this evaluation has no downstream term: %s", error)
        else:
            self.functions = [*self.functions, term]
            self.reward_weights = [*self.reward_weights, self.downstream_weight]
        self.downstream = None  # once, whatever hooks run

    @property
    def phrases(self) -> list[list[int]]:
        """Token ids of the two decisions, keep first."""
        return [self.answer_ids(phrase) for phrase in (KEEP, DISCARD)]

    # ---- stage 1
    def sample(self, window: Sequence[dict[str, Any]]) -> Rollout:
        if not self.forced:
            return super().sample(window)
        return self.decided(super().sample(window)) if self.tagged else self.both_decisions(window)

    def decided(self, rollout: Rollout) -> Rollout:
        """Sampled thoughts, the decision behind them replaced: keep in even places of a group, discard in odd ones.
        An answer that never came to <answer> stays as it is."""
        tokenizer, answers = self.llm.tokenizer, []
        for ids, real in zip(rollout.ids.flatten(0, 1), rollout.sampled.flatten(0, 1), strict=True):
            thoughts, tag, _ = tokenizer.decode(ids[real], skip_special_tokens=True).partition("<answer>\n")
            text = f"{thoughts}{tag}{(KEEP, DISCARD)[len(answers) % 2]}\n</answer>"
            answers.append(
                [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
                if tag
                else ids[real].tolist()
            )
        shape = (*rollout.ids.shape[:2], max(map(len, answers)))
        ids = torch.full((len(answers), shape[2]), self.llm.pad_id, device=rollout.ids.device)
        real = torch.zeros_like(ids, dtype=torch.bool)
        for row, mask, answer in zip(ids, real, answers, strict=True):
            row[: len(answer)], mask[: len(answer)] = torch.tensor(answer, device=ids.device), True
        nothing, drawn = torch.zeros(shape, device=ids.device), real.view(shape)
        learnt = drawn & rollout.mask.any(2, keepdim=True)
        return rollout._replace(ids=ids.view(shape), mask=learnt, old=nothing, entropy=nothing, drawn=drawn)

    def both_decisions(self, window: Sequence[dict[str, Any]]) -> Rollout:
        """n/2 times keep and n/2 times discard for every prompt, as if they had been sampled."""
        b = sum(len(batch["samples"]) for batch in window)
        ids = [phrase + [self.llm.tokenizer.eos_token_id] for phrase in self.phrases]
        longest = max(map(len, ids))
        rows = torch.tensor([i + [self.llm.pad_id] * (longest - len(i)) for i in ids], device=self.device)
        real = torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i in ids], device=self.device).bool()
        rows, real = (x.repeat(self.n // 2, 1).expand(b, -1, -1) for x in (rows, real))
        nothing = torch.zeros(rows.shape, device=self.device)
        return Rollout(rows, real, nothing, torch.ones(rows.shape[:2], dtype=torch.bool, device=self.device), nothing)

    def rewards(self, groups: Sequence[Sequence[Answer]]) -> Gathered:
        gathered = super().rewards(groups)
        decisions = [read_decision(a.text, self.tagged) for group in groups for a in group]
        read = [d for d in decisions if d is not None]
        # both always: all processes must log the same names
        said = {"unparsed": decisions.count(None) / len(decisions), "yes_rate": sum(read) / max(1, len(read))}
        return Gathered(gathered.total, gathered.parts, said)

    # ---- decisions
    def predict(self, batch: dict[str, Any]) -> list[Prediction]:
        if self.tagged:
            made = super().predict(batch)
            said = [(read_decision(p.text, True), p.text, p.details) for p in made]
        else:
            scores = self.llm.score(self.encode(batch), self.phrases).double()
            keep = torch.softmax(scores, 1)[:, 0].tolist()
            said = [
                (p > 0.5, None, {"keep": round(p, 6)} | self._worth(s, p > 0.5))
                for s, p in zip(batch["samples"], keep, strict=True)
            ]
        words = {True: "keep", False: "discard", None: None}
        return [
            Prediction(s.id, s.dialogue, s.target.label, None, text=text, details={"decision": words[d], **details})
            for s, (d, text, details) in zip(batch["samples"], said, strict=True)
        ]

    def _worth(self, sample: Sample, keep: bool) -> dict[str, Any]:
        """Reward of a decision made without words; nothing if there is no reward to ask."""
        answer = Answer((KEEP, DISCARD)[not keep], len(self.phrases[not keep]) + 1, True, sample)
        return self.worth(answer) if self.functions else {}

    def on_validation_epoch_start(self) -> None:
        self.judged: list[tuple[float, float, float]] = []

    def judge(self, samples: Rows, predictions: Sequence[Prediction]) -> None:
        self.judged += [self._facts(p.details) for p in predictions]
        self.watch_answers(predictions)

    def readable(self, prediction: Prediction) -> bool:
        return prediction.details["decision"] is not None

    def _facts(self, details: Mapping[str, Any]) -> tuple[float, float, float]:
        """Kept, unparsed, reward."""
        decision = details["decision"]
        return float(decision == "keep"), float(decision is None), float(details.get("reward", float("nan")))

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        table = torch.tensor(self.judged, dtype=torch.float64, device=self.device).reshape(-1, 3)
        sums = self._summed(torch.cat([table.sum(0), torch.tensor([len(table)]).to(table)]))
        for name, value in zip(("keep_rate", "unparsed", "reward"), (sums[:3] / sums[3]).tolist(), strict=True):
            if np.isfinite(value):
                self.log(f"val/{name}", value, prog_bar=True)

    def summary(self, rows: Sequence[Mapping[str, Any]], run: Path) -> dict[str, Any]:
        kept, unparsed, reward = np.mean([self._facts(r["details"]) for r in rows], axis=0).tolist()
        found = {"n": len(rows), "keep_rate": kept, "unparsed": unparsed}
        return found | ({"reward": reward} if np.isfinite(reward) else {})


class SelectorStart(Supervised):
    """Before stage 1, for small models that cannot follow the prompt (ours): supervised answers in the selector's form,
    whose thoughts are the classifier's two answers and whose decision is drawn evenly, so that the policy begins with
    valid answers and no preference.

    Args:
        llm: folder, published name or hub id of the policy.
        comparisons: run folder of a `SelectedClassifier` that was run with ``compare``, or its predictions.jsonl.
        template, window, descriptions: as the selector will have them.
    """

    templates = TEMPLATES

    def __init__(
        self,
        llm: str,
        comparisons: str,
        template: str = "decision",
        window: int = 0,
        descriptions: list[str] | None = None,
        max_new_tokens: int = 96,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            llm,
            template=template,
            window=window,
            descriptions=descriptions,
            decode="greedy",
            max_new_tokens=max_new_tokens,
            **kwargs,
        )
        self.comparisons = {
            row["id"]: tuple(max(side, key=side.get) for side in (row["details"]["without"], row["details"]["with"]))
            for row in read_rows(comparisons, "predictions.jsonl")
        }

    def collator(self, training: bool) -> StartCollator:
        plain = super().collator(training)
        shared = {f.name: getattr(plain, f.name) for f in fields(plain) if f.init}
        return StartCollator(**shared, comparisons=self.comparisons)

    def read_answer(self, sample: Sample, text: str) -> str | None:
        """What the captions are thought to say, of an answer that also decides; else None."""
        said = re.search(r"captions: (\w+)", text)
        valid = Format("paper")(Answer(text, 0, True, sample)) and read_decision(text) is not None
        return said[1] if said and valid and said[1] in sample.labels.names else None


@dataclass
class StartCollator(PromptCollator):
    """Input processing of `SelectorStart`.

    Args:
        comparisons: sample id -> the classifier's answer without and with descriptions.
    """

    comparisons: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def target_ids(self, sample: Sample, rng: np.random.Generator) -> list[int]:
        bare, full = self.comparisons[sample.id]
        decision = (KEEP, DISCARD)[int(rng.integers(2))]
        text = f"<think>\nwords: {bare}, captions: {full}\n</think>\n<answer>\n{decision}\n</answer>"
        return answer_ids(self.tokenizer, text, self.chat) + [self.tokenizer.eos_token_id]


class SelectedClassifier(Supervised):
    """Stage 2: the emotion, from a prompt with or without descriptions.

    Args:
        llm: folder, published name or hub id; P: LLaMA-2-7B.
        template: ``classifier`` (P's structure), ``causal_lm/default`` (short, for small models), or a file.
        window: earlier turns shown; P: 12.
        descriptions: kinds shown where they are kept.
        selection: ``always``, ``never``, ``random`` (half, by sample), or a file ``decisions.jsonl`` or the run folder
            that holds one.
        on_unparsable: what an unreadable decision means.
        compare: predictions also hold the label distribution with and without descriptions (``details.with`` and
            ``details.without``), which `Downstream` reads.
    """

    templates = TEMPLATES

    def __init__(
        self,
        llm: str,
        template: str = "classifier",
        window: int = 12,
        descriptions: list[str] | None = None,
        selection: str = "always",
        on_unparsable: Literal["keep", "discard"] = "keep",
        compare: bool = False,
        lr: float = 5e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(llm, template=template, window=window, descriptions=descriptions, lr=lr, **kwargs)
        if compare and self.decode != "score":
            raise ValueError(f"compare needs the distribution over labels: decode must be score, not {self.decode}")
        self.selection, self.compare = selection, compare
        self.keep: Mapping[str, bool] | str = selection
        if selection not in ("always", "never", "random"):
            decided = read_decisions(selection)
            self.keep = {i: on_unparsable == "keep" if d is None else d for i, d in decided.items()}

    @property
    def reads(self) -> tuple[str, ...]:
        """Where a selector decides, the descriptions count as read, also if it discards them all: it has read them."""
        return tuple(part for part in super().reads if part != "descriptions" or self.selection != "never")

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if isinstance(self.keep, str):
            return
        data = self.trainer.datamodule
        for split in data.splits_of(stage):
            missing = [s.id for s in data.samples(split) if s.id not in self.keep]
            if missing:
                raise ValueError(
                    f"{self.selection} decides nothing about {len(missing)} of {len(data.samples(split))} {split} "
                    f"samples: {missing[:3]}. Write it with zoo predict --data.predict_splits [train,dev,test]"
                )

    def collator(self, training: bool) -> SelectedCollator:
        return self._collator(training, self.keep)

    def _collator(self, training: bool, keep: Mapping[str, bool] | str) -> SelectedCollator:
        plain = super().collator(training)
        return SelectedCollator(**{f.name: getattr(plain, f.name) for f in fields(plain) if f.init}, keep=keep)

    def predict(self, batch: dict[str, Any]) -> list[Prediction]:
        samples = batch["samples"]
        kept = self.collator(False).decisions(samples)
        details: list[dict[str, Any]] = [{"decision": "keep" if k else "discard"} for k in kept]
        if self.compare:
            sides = [self._predict_as(choice, samples) for choice in ("always", "never")]
            for said, full, bare in zip(details, *sides, strict=True):
                said |= {"with": full.scores, "without": bare.scores}
            made = [full if k else bare for k, full, bare in zip(kept, *sides, strict=True)]
        else:
            made = super().predict(batch)
        return [
            Prediction(p.id, p.dialogue, p.label, p.predicted, p.scores, p.text, said)
            for p, said in zip(made, details, strict=True)
        ]

    def _predict_as(self, selection: str, samples: Rows) -> list[Prediction]:
        batch = self._collator(False, selection)(samples, np.random.default_rng(0))  # evaluation draws nothing
        return super().predict({k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()})


@dataclass
class SelectedCollator(PromptCollator):
    """Input processing of stage 2: descriptions only where they are kept.

    Args:
        keep: sample id -> keep; or always, never, random.
    """

    keep: Mapping[str, bool] | str = "always"
    _bare: PromptCollator = field(init=False)

    def __post_init__(self) -> None:
        shared = {f.name: getattr(self, f.name) for f in fields(PromptCollator) if f.init}
        self._bare = PromptCollator(**shared | {"kinds": ()})

    def decisions(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> list[bool]:
        """Of each sample; random ones depend on the generator in training, on seed and sample in evaluation."""
        if self.keep == "random":
            if self.training and rng is not None:
                return (rng.random(len(samples)) < 0.5).tolist()
            return [hashlib.sha256(f"{self.examples_seed}/{s.id}".encode()).digest()[0] % 2 == 0 for s in samples]
        return [self.keep == "always" if isinstance(self.keep, str) else self.keep[s.id] for s in samples]

    def prompt_ids(self, sample: Sample, rng: np.random.Generator) -> tuple[list[int], bool]:
        (kept,) = self.decisions([sample], rng)
        return super().prompt_ids(sample, rng) if kept else self._bare.prompt_ids(sample, rng)
