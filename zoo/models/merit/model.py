"""MERIT: multimodal emotion recognition with reinforcement at test time (Zhang et al. 2025).

Frozen CLIP-ViT and HuBERT features go through a linear layer each into the input space of a frozen language model with
LoRA (Sec. 3.2), which is first fine-tuned on labelled data (Sec. 3.3 -> `Merit`). On unlabelled test data it then
answers each sample k times; the majority is taken for the truth, an answer is worth 1 / (1 + alpha W) by its emotional
distance to it (Sec. 3.4.1 -> `MeritTTRL.rewards`, `parts`), and the LoRA weights are trained on that by PPO or GRPO
(Sec. 3.4.2 -> `zoo.rl.grpo`). `MeritRLVR` is the table's other row: the same loop with rewards for right answers on
labelled data.

There is no published code. Where the paper (P) is silent or cannot be meant as written, ours says so:
- Model sizes, tokens per clip, sampling of frames, prompts, LoRA, learning rates and steps: ours (P names "Qwen-32B",
  CLIP-ViT and HuBERT-base). One vision token per frame, 8 frames; 8 means over equal parts of the sound; vision, audio
  and text in this order. What a sample lacks has no position in its prompt, and is counted.
- W: P gives no numbers. ``plutchik``: angle over 180; labels that are not on the wheel are placed between their
  neighbours, neutral in the centre at .5 from all. ``lm`` and ``sentence``: cosine distances of label embeddings over
  the largest of them.
- P's alpha 0 is called binary, but makes every reward 1. ``alpha: null`` is binary: 1 for the winner, else 0.
- The vote: unreadable answers do not vote and are worth 0; of equal numbers the label seen first wins; if nobody votes,
  the sample gives no gradient. P says nothing; the code of TTRL (Zuo et al. 2025) lets unreadable answers win.
- ``ppo_reward`` is P's PPO to the letter: a ratio of whole answers and the reward in place of an advantage, so that
  every sampled answer is pushed up. ``ppo_advantage`` subtracts the group's mean. ``reinforce_group`` is P's GRPO to
  the letter (A log pi, neither ratio nor clip), ``grpo_clip`` the usual one. Groups are those of one prompt (P: "e.g.
  per batch").
- P reports on the very samples it adapted to. Ours can (`zoo.data.Adaptation`, ``transductive``), says so in
  metrics.json, and can also report on samples that were not adapted to (``inductive``). The adapting loop sees no
  labels.
- P's Emotion-Consistency is defined nowhere. Ours are two measures, never to be set beside P's column:
  ``consistency_self`` of k answers, ``consistency_gold`` against the truth (`parts`).
- The guard that ends a collapsing adaptation, ``agreement``, ``balance`` and ``neutral_distance`` are ours.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import Template
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from zoo.backbones import LoRA
from zoo.backbones.sentence import embed_sentences
from zoo.models.merit.parts import (
    Guard,
    Seen,
    cosine_distances,
    gold_consistency,
    majority,
    plutchik,
    self_consistency,
    sums_of,
    truth_numbers,
    vote_numbers,
    vote_reward,
)
from zoo.module import (
    EmotionModule,
    PromptCollator,
    Prompted,
    Rows,
    Supervised,
    fitting_length,
    label_scores,
    note_control_tokens,
    prompt_reads,
)
from zoo.prompts import load_template, parse_label, words
from zoo.reinforced import Gathered, Reinforced
from zoo.rl import Answer, Objective
from zoo.schema import Labels, Prediction, Sample
from zoo.senses import Senses, SensesCollator

FADING = 0.9  # of what was drawn, per step
LORA = LoRA(r=16, alpha=32.0, targets=r"model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj")


class MeritModel(Senses):
    """What the stages share: input, distances between labels, and answers by vote.

    Args:
        distance: W from ``plutchik``'s wheel, or from embeddings of the label words in the language model (``lm``) or a
            ``sentence`` encoder (`zoo.backbones.sentence`).
        neutral_distance: of neutral, the wheel's centre, to all other labels.
        angles: degrees of labels that the wheel lacks (null: the centre).
        votes: answers drawn per sample by ``decode: vote``.
        vote_temperature: of drawing them.
    """

    templates = Path(__file__).parent / "templates"
    scores = (*EmotionModule.scores, "consistency_gold", "consistency_self", "pass@k", "majority_ratio")

    def __init__(
        self,
        distance: Literal["plutchik", "lm", "sentence"] = "plutchik",
        neutral_distance: float = 0.5,
        angles: dict[str, float | None] | None = None,
        votes: int = 5,
        vote_temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not neutral_distance >= 0 or votes < 2 or not vote_temperature > 0:
            raise ValueError(
                "need neutral_distance >= 0, votes >= 2 and vote_temperature > 0, got "
                f"{neutral_distance}, {votes} and {vote_temperature}"
            )
        if self.decode == "beam":
            raise ValueError("beam search takes prompts of words only; decode by score, greedy or vote")
        self.distance, self.neutral_distance, self.angles = distance, neutral_distance, angles
        self.votes, self.vote_temperature = votes, vote_temperature
        self.known: dict[Labels, Tensor] = {}

    decode: str
    verbalizer: Mapping[str, str] | None
    max_new_tokens: int

    template: Template
    window: int
    descriptions: tuple[str, ...]

    @property
    def reads(self) -> tuple[str, ...]:
        return self.with_senses(prompt_reads(self.template, self.window, self.descriptions, self.template_variables))

    # ---- labels
    @torch.no_grad()
    def w(self, labels: Labels) -> Tensor:
        """(C, C) distances between the labels of a corpus."""
        if labels not in self.known:
            if self.distance == "plutchik":
                self.known[labels] = plutchik(labels, self.neutral_distance, self.angles)
            elif self.distance == "sentence":
                self.known[labels] = cosine_distances(embed_sentences(words(labels, self.verbalizer)))
            else:
                own = [torch.tensor(ids, device=self.device) for ids in self.candidates(labels)]
                self.known[labels] = cosine_distances(torch.stack([self.llm.embed(x).mean(0) for x in own])).cpu()
        return self.known[labels]

    def candidates(self, labels: Labels) -> list[list[int]]:
        """Tokens of each label word as an answer."""
        return [self.answer_ids(word) for word in words(labels, self.verbalizer)]

    def read_index(self, sample: Sample, text: str) -> int | None:
        """Index of the label an answer names; None if it is unreadable."""
        return parse_label(text, words(sample.labels, self.verbalizer))

    def read_answer(self, sample: Sample, text: str) -> str | None:
        """Label word of an answer, or None if it is unreadable."""
        index = self.read_index(sample, text)
        return None if index is None else sample.labels.names[index]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.distance != "lm":
            for labels in self.trainer.datamodule.label_sets.values():
                self.w(labels)  # a label without a place: say so before any work

    # ---- answers
    @torch.no_grad()
    def predict(self, batch: dict[str, Any]) -> list[Prediction]:
        self.count(batch)
        if self.decode == "score":
            return label_scores(self.llm, self.encode(batch), batch["samples"], self.candidates)
        return self._by_vote(batch) if self.decode == "vote" else self._greedy(batch)

    def _greedy(self, batch: dict[str, Any]) -> list[Prediction]:
        said = self.llm.sample(self.encode(batch), 1, max_new_tokens=self.max_new_tokens, temperature=0.0)
        texts = [self._text(ids, mask) for ids, mask in zip(said.ids[:, 0], said.mask[:, 0], strict=True)]
        return [
            Prediction(s.id, s.dialogue, s.target.label, self.read_answer(s, text), text=text)
            for s, text in zip(batch["samples"], texts, strict=True)
        ]

    def _by_vote(self, batch: dict[str, Any]) -> list[Prediction]:
        """The majority of `votes` drawn answers; the draw depends on the run's seed and the batch."""
        samples: Rows = batch["samples"]
        seed = zlib.crc32("\n".join([str(self.trainer.datamodule.run_seed), *samples.ids()]).encode())
        generator = torch.Generator(self.device).manual_seed(seed)
        said = self.llm.sample(
            self.encode(batch),
            self.votes,
            max_new_tokens=self.max_new_tokens,
            temperature=self.vote_temperature,
            generator=generator,
        )
        predictions = []
        for i, s in enumerate(samples):
            texts = [self._text(ids, mask) for ids, mask in zip(said.ids[i], said.mask[i], strict=True)]
            votes = [self.read_index(s, text) for text in texts]
            winner, names = majority(votes), s.labels.names
            predictions.append(
                Prediction(
                    s.id,
                    s.dialogue,
                    s.target.label,
                    None if winner is None else names[winner],
                    details={"answers": [None if v is None else names[v] for v in votes]},
                )
            )
        return predictions

    def _text(self, ids: Tensor, mask: Tensor) -> str:
        return self.llm.tokenizer.decode(ids[mask], skip_special_tokens=True)

    # ---- scores
    def summary(self, rows: Sequence[Mapping[str, Any]], run: Path) -> dict[str, Any]:
        found = super().summary(rows, run)
        for corpus, labels in self.trainer.datamodule.label_sets.items():
            own = [r for r in rows if r["id"].startswith(f"{corpus}/") and r["label"] is not None]
            place = found["corpora"][corpus] if "corpora" in found else found
            if own:
                place.update(self._consistency(own, labels))
        return found

    def _consistency(self, rows: Sequence[Mapping[str, Any]], labels: Labels) -> dict[str, float]:
        w = self.w(labels)
        index = {name: i for i, name in enumerate(labels.names)} | {None: None}
        gold = [index[r["label"]] for r in rows]
        numbers = {"consistency_gold": gold_consistency([index[r["predicted"]] for r in rows], gold, w)}
        if not all("answers" in (r.get("details") or {}) for r in rows):
            return numbers
        groups = [[index[a] for a in r["details"]["answers"]] for r in rows]
        winners = [index[r["predicted"]] for r in rows]
        drawn = vote_numbers(groups, winners) | truth_numbers(groups, winners, gold)
        own = sum(self_consistency(g, w) for g in groups) / len(groups)
        return numbers | {
            "consistency_self": own,
            "votes": len(groups[0]),
            "pass@k": drawn["pass@k"],
            "majority_ratio": drawn["majority_ratio"],
        }


class Merit(MeritModel, Supervised):
    """Supervised start: LoRA and the projections are trained to name the emotion (Sec. 3.3).

    Args:
        lora: adapters on the frozen language model; None trains all of it (not the paper's).
        decode: ``score`` compares the log-probabilities of the label words, ``greedy`` writes and reads, ``vote`` takes
            the majority of `votes` drawn answers.
        max_new_tokens: for ``greedy`` and ``vote``.
    """

    def __init__(
        self,
        lora: LoRA | None = LORA,
        decode: Literal["score", "greedy", "vote"] = "score",
        max_new_tokens: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(lora=lora, decode=decode, max_new_tokens=max_new_tokens, **kwargs)

    def shows(self, sample: Sample) -> bool:
        return Senses.shows(self, sample) or bool(set(self.descriptions) & set(sample.target.descriptions))

    def collator(self, training: bool) -> SensesCollator:
        return SensesCollator(**vars_of(super().collator(training)) | self.senses())


class MeritRLVR(MeritModel, Reinforced):
    """Reinforcement with verifiable rewards on labelled data (the table's RLVR row). Only LoRA is trained; the
    reference is the model of ``start_from``.

    Args:
        llm: folder, published name or hub id of the language model.
        lora: adapters; those of ``start_from`` if it has any, which then must be given alike.
        template: ``default``, ``plain`` (for small models), or a file.
        window: earlier turns shown.
        descriptions: kinds of description shown.
        verbalizer: label -> word the model says, where it differs.
        max_length: longest prompt in tokens; longer ones lose old turns, then their beginning; counted.
        answers: drawn per sample (P: k = 5).
        max_new_tokens: of an answer.
        objective: see `zoo.rl.grpo.Objective`; P's GRPO to the letter by default.
        decode: of evaluation, as in `Merit`.
    """

    monitor = "val/wf1"

    def __init__(
        self,
        llm: str,
        lora: LoRA | None = LORA,
        template: str = "default",
        window: int = 0,
        descriptions: list[str] | None = None,
        verbalizer: dict[str, str] | None = None,
        max_length: int = 1024,
        answers: int = 5,
        max_new_tokens: int = 8,
        objective: Objective = Objective("reinforce_group", "sum"),  # noqa: B008 - frozen
        decode: Literal["score", "greedy", "vote"] = "score",
        **kwargs: Any,
    ) -> None:
        self.decode = decode
        super().__init__(
            llm=llm, lora=lora, answers=answers, max_new_tokens=max_new_tokens, objective=objective, **kwargs
        )
        if lora is None:
            raise ValueError("MERIT reinforces adapters on a frozen model: give --model.lora")
        if type(self).rewards is Reinforced.rewards and not self.functions:
            raise ValueError("MeritRLVR needs rewards: --model.rewards+=zoo.rl.rewards.Correct")
        if window < 0 or max_length < 2:
            raise ValueError(f"need window >= 0 and max_length >= 2; got {window} and {max_length}")
        self.template, self.verbalizer = load_template(template, self.templates), verbalizer
        self.max_length, self.window, self.descriptions = max_length, window, tuple(descriptions or ())

    def build(self) -> None:
        super().build()
        self.max_length = fitting_length(self.llm, self.max_length, self.max_new_tokens)
        for name in ("vision_projection", "audio_projection"):
            if hasattr(self, name):
                getattr(self, name).requires_grad_(False)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and not self.start_from:
            rank_zero_warn("no --model.start_from: the projections are random and stay so; give the run of `Merit`")
        note_control_tokens(self.trainer.datamodule, self.trainer.datamodule.splits_of(stage)[0])

    def collator(self, training: bool) -> SensesCollator:
        return SensesCollator(
            self.llm.tokenizer,
            self.llm.pad_id,
            self.template,
            self.window,
            self.descriptions,
            self.verbalizer,
            self.max_length,
            training=False,
            chat=self.chats,
            system=self.system,
            **self.senses(),
        )

    # validation asks how right the answers are, not what they are worth
    def judge(self, samples: Rows, predictions: Sequence[Prediction]) -> None:
        Prompted.judge(self, samples, predictions)

    def on_validation_epoch_end(self) -> None:
        EmotionModule.on_validation_epoch_end(self)


class MeritTTRL(MeritRLVR):
    """Reinforcement at test time by majority vote on unlabelled data (Sec. 3.4). Use `zoo.data.Adaptation`.

    Every validation check looks at the answers to the adaptation's own samples: `guard` decides without labels whether
    they still are what they should be. ``best.ckpt`` is chosen by `keep` among the checks that passed.

    Args:
        alpha: sensitivity of the reward to distance (P: 1); null: binary.
        agreement: samples whose winner has a smaller share of the answers give no gradient (ours; 0: all do).
        balance: a vote weighs (before / now)^balance: how often its label was answered before adaptation and is of late
            (ours; 0: one vote each).
        guard: when to take back and end (ours); null: never.
        keep: which check is best: the ``last`` one, or that with most ``information`` (sure and varied answers).
    """

    monitor = "val/keep"

    def __init__(
        self,
        alpha: float | None = 1.0,
        agreement: float = 0.0,
        balance: float = 0.0,
        guard: Guard | None = Guard(),  # noqa: B008 - frozen
        keep: Literal["last", "information"] = "information",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.functions:
            raise ValueError("the vote is the reward at test time; rewards of your own belong to MeritRLVR")
        if (alpha is not None and not alpha > 0) or not 0 <= agreement <= 1 or not 0 <= balance < math.inf:
            raise ValueError(
                "need alpha > 0 or null (binary; alpha 0 would make all answers worth the same), "
                f"0 <= agreement <= 1 and balance >= 0; got {alpha}, {agreement}, {balance}"
            )
        self.alpha, self.agreement, self.balance, self.guard, self.keep = alpha, agreement, balance, guard, keep
        self.start: Seen | None = None  # before adaptation
        self.last: Seen | None = None  # at the last check that passed
        self.most = -math.inf  # information at any check
        self.good: dict[str, Tensor] = {}  # what is trained, at the last check that passed
        self.drawn: Tensor | None = None  # how often each label was

    # ---- reward (Sec. 3.4.1)
    def rewards(self, groups: Sequence[Sequence[Answer]]) -> Gathered:
        labels = groups[0][0].sample.labels
        votes = [[self.read_index(a.sample, a.text) for a in group] for group in groups]
        weights = self._weights(votes, len(labels))
        winners = [majority(v, weights) for v in votes]
        w, worth = self.w(labels), []
        for v, winner in zip(votes, winners, strict=True):
            unsure = sum(x == winner for x in v) < self.agreement * len(v)
            worth.append([0.0] * len(v) if unsure else vote_reward(v, winner, w, self.alpha))
        total = torch.tensor(worth)
        numbers = vote_numbers(votes, winners) | {"used": float((total > 0).any(1).float().mean())}
        if self.trainer.datamodule.labelled:  # for the log alone
            truth = [self.trainer.datamodule.truth(group[0].sample.id) for group in groups]
            numbers |= truth_numbers(votes, winners, truth)
        return Gathered(total, {"vote": total}, numbers)

    def _weights(self, votes: Sequence[Sequence[int | None]], labels: int) -> list[float] | None:
        """What a vote for each label weighs."""
        if not self.balance or self.start is None:  # no start: a fast_dev_run
            return None
        before = torch.tensor(self.start.mean).clamp(min=1e-3)
        count = torch.zeros(labels)
        for v in votes:
            for label in v:
                if label is not None:
                    count[label] += 1
        count = self._summed(count.to(self.device)).cpu()
        if self.drawn is None:
            self.drawn = before
        self.drawn = FADING * self.drawn + (1 - FADING) * (count / count.sum().clamp(min=1)).clamp(min=1e-3)
        return (before / self.drawn).pow(self.balance).tolist()

    # ---- the guard
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage != "fit":
            return
        data = self.trainer.datamodule
        if not hasattr(data, "truth"):
            own = type(data).__name__
            raise ValueError(
                f"adaptation takes its samples from zoo.data.Adaptation, which removes their labels; got "
                f"{own}. Wrap it: --data Adaptation --data.corpus {own}"
            )
        if len(data.label_sets) != 1:
            raise ValueError(f"adaptation takes one corpus at a time, got {', '.join(data.label_sets)}")
        if self.balance and self.trainer.limit_val_batches == 0:
            raise ValueError("balance compares with the answers before adaptation: set --trainer.limit_val_batches")
        if not self.trainer.fast_dev_run:
            self.trainer.num_sanity_val_steps = float("inf")  # the check before adaptation, over all of it

    def on_train_start(self) -> None:
        if not self.good:  # a resumed run has no check before its first step
            self._remember()

    def on_validation_epoch_start(self) -> None:
        self.sums: Tensor | None = None

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        said = label_scores(self.llm, self.encode(batch), batch["samples"], self.candidates)
        sums = sums_of(torch.tensor([list(p.scores.values()) for p in said]))
        self.sums = sums if self.sums is None else self.sums + sums

    def on_validation_epoch_end(self) -> None:
        now = Seen.of(self._summed(self.sums.to(self.device)).cpu())
        if self.trainer.state.fn != "fit":
            return
        self.start = self.start or now
        self.most = max(self.most, now.information)
        if self.trainer.sanity_checking:
            self._remember()
            return
        broken = self.guard.broken(now, self.start, self.most) if self.guard is not None else None
        self.log_dict(
            {
                "val/entropy": now.entropy,
                "val/confidence": now.confidence,
                "val/information": now.information,
                "val/top_share": max(now.shares),
                "val/drift": now.drift(self.start),
                "val/collapsed": float(broken is not None),
            }
        )
        if broken is not None:
            rank_zero_warn(
                f"adaptation ended at step {self.global_step}: {broken}. The weights of the last check "
                "that passed are taken back"
            )
            own = dict(self.named_parameters())
            with torch.no_grad():
                for name, value in self.good.items():
                    own[name].copy_(value)
            self.trainer.should_stop = True
        else:
            self._remember()
            self.last = now
        self.log("val/keep", self._kept(), prog_bar=True)

    def _kept(self) -> float:
        now = self.last or self.start
        return float(self.global_step) if self.keep == "last" else now.information

    def _remember(self) -> None:
        self.good = {name: p.detach().clone() for name, p in self.named_parameters() if p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["adaptation"] = json.dumps(
            {
                "start": vars(self.start) if self.start is not None else None,
                "last": vars(self.last) if self.last is not None else None,
                "most": self.most,
                "drawn": self.drawn.tolist() if self.drawn is not None else None,
            }
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        kept = json.loads(checkpoint.get("adaptation", "{}"))
        for name in ("start", "last"):
            if kept.get(name):
                seen = {k: tuple(v) if isinstance(v, list) else v for k, v in kept[name].items()}
                setattr(self, name, Seen(**seen))
        self.most = kept.get("most", self.most)
        if kept.get("drawn"):
            self.drawn = torch.tensor(kept["drawn"])


def vars_of(collator: PromptCollator) -> dict[str, Any]:
    """The arguments a collator was made with."""
    return {name: value for name, value in vars(collator).items() if not name.startswith("_")}
