"""MERIT: multimodal emotion recognition with reinforcement at test time (Zhang et al. 2025).

Frozen CLIP-ViT and HuBERT features go through a linear layer each into the input space of a frozen language model with
LoRA (Sec. 3.2), which is first fine-tuned on labelled data (Sec. 3.3 -> `Merit`). On unlabelled test data it then
answers each sample k times; the majority is taken for the truth, an answer is worth 1 / (1 + alpha W) by its emotional
distance to it (Sec. 3.4.1 -> `MeritTTRL.rewards`, `parts`), and the LoRA weights are trained on that by PPO or GRPO
(Sec. 3.4.2 -> `zoo.rl.grpo`). `MeritRLVR` is the table's other row: the same loop, rewarded for right labels.

There is no published code. Where the paper (P) is silent or cannot be meant as written, ours says so:
- Model sizes, tokens per clip, sampling of frames, prompts, LoRA, learning rates and steps: ours (P names "Qwen-32B",
  CLIP-ViT and HuBERT-base). One vision token per frame, 8 frames; 8 means over equal parts of the sound; vision, audio
  and text in this order. What a sample lacks has no position in its prompt, and is counted.
- W: P gives no numbers. ``plutchik``: angle over 180; labels that are not on the wheel lie between their neighbours,
  neutral in the centre at .5 from all. ``lm``, ``sentence``: cosine distances of label embeddings over the largest.
- P's alpha 0 is called binary, but makes every reward 1. ``alpha: null`` is binary: 1 for the winner, else 0.
- The vote: unreadable answers do not vote and are worth 0; of equal numbers the label seen first wins; if nobody votes,
  the sample gives no gradient. P says nothing; the code of TTRL (Zuo et al. 2025) lets unreadable answers win.
- ``ppo_reward`` is P's PPO to the letter: a ratio of whole answers and the reward in place of an advantage, so that
  every sampled answer is pushed up. ``ppo_advantage`` subtracts the group's mean. ``reinforce_group`` is P's GRPO to
  the letter (A log pi, neither ratio nor clip), ``grpo_clip`` the usual one, over one prompt (P: "e.g. per batch").
- P reports on the very samples it adapted to. Ours can (`zoo.data.Adaptation`, ``transductive``), says so in
  metrics.json, and can also report on others (``inductive``). The adapting loop sees no labels.
- P's Emotion-Consistency is defined nowhere. Ours are two measures, never to be set beside P's column:
  ``consistency_self`` of k answers, ``consistency_gold`` against the truth (`parts`).
- The guard that ends a collapsing adaptation, ``min_agreement``, ``vote_balance`` and ``neutral_distance`` are ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from zoo.backbones import LoRA, Prefix
from zoo.backbones.llm import Dtype
from zoo.media import MAX_SECONDS, Media
from zoo.models.merit.answers import CONSISTENCY_SCORES, Distance, LabelDistances, VotedAnswers, add_consistency
from zoo.models.merit.parts import (
    AdaptedCorpus,
    AnswerStatistics,
    Guard,
    majority,
    statistics_sums,
    vote_accuracy,
    vote_agreement,
    vote_reward,
)
from zoo.renaming import Renamed
from zoo.rl import Answer, Objective
from zoo.schema import Prediction
from zoo.training.batch import SampleBatch
from zoo.training.grpo import GRPOModule, RewardBatch
from zoo.training.module import EmotionModule
from zoo.training.multimodal import ProjectedEncoders
from zoo.training.sft import SupervisedFineTuning

FADING = 0.9  # of the vote counts so far, per step
LORA = LoRA(r=16, alpha=32.0, targets=r"model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj")
TEMPLATES = Path(__file__).parent / "templates"
CLIP_VARIABLES = {"vision": "", "audio": ""}  # of the templates
SCORES = (*EmotionModule.scores, *CONSISTENCY_SCORES)
RENAMED: dict[str, str | Renamed] = {"words": "show_text", "projection_scale": "embedding_scale"}


class Merit(SupervisedFineTuning):
    """Supervised start: LoRA and the projections are trained to name the emotion (Sec. 3.3).

    Args:
        vision: folder, published name, hub id or file of the image encoder (see `zoo.backbones.Vision`), or
            ``features:FOLDER`` of given ones (see `zoo.training.given_features`); None: the system sees nothing.
        audio: the same of the HuBERT (see `zoo.backbones.Audio`); None: it hears nothing.
        vision_dtype, audio_dtype: dtypes of their weights.
        vision_revision, audio_revision: hub revisions to pin.
        show_text: whether the utterance's words are shown; False leaves the clip alone.
        frames: vision tokens: frames per clip, evenly spaced.
        audio_tokens: parts of the waveform.
        max_seconds: a longer waveform is cut to its middle part, counted.
        embedding_scale: the projections' first outputs have this many times the deviation of the input embeddings of
            the language model (ours); None leaves PyTorch's initial weights.
        cache: folder of decoded clips (see `zoo.media.Media`); None decodes at every visit.
        timeout: seconds one clip may take to decode.
        max_clip_seconds: a longer clip or film is not read, and counted.
        feature_folder: keep the encoders' features here, each clip's once for all runs; None: of this run, in memory.
        standardise: give features of a ``features:FOLDER`` mean 0 and deviation 1 in every dimension, measured on 512
            training utterances before the first step and stored with the weights (ours).
        distance: W from ``plutchik``'s wheel, or from embeddings of the label words in the language model (``lm``) or a
            ``sentence`` encoder (`zoo.backbones.sentence`).
        neutral_distance: of neutral, the wheel's centre, to all other labels.
        angles: degrees of labels that the wheel lacks (null: the centre).
        votes: answers drawn per sample by ``decode: vote``.
        vote_temperature: of drawing them.
        lora: adapters on the frozen language model; None trains all of it (not the paper's).
        decode: ``score`` compares the log-probabilities of the label words, ``greedy`` writes and reads, ``vote`` takes
            the majority of `votes` drawn answers.
        max_new_tokens: for ``greedy`` and ``vote``.
    """

    renamed_options = RENAMED
    templates = TEMPLATES
    template_variables = CLIP_VARIABLES
    scores = SCORES

    def __init__(
        self,
        *,
        vision: str | None = None,
        audio: str | None = None,
        vision_dtype: Dtype = "float32",
        audio_dtype: Dtype = "float32",
        vision_revision: str | None = None,
        audio_revision: str | None = None,
        show_text: bool = True,
        frames: int = 8,
        audio_tokens: int = 8,
        max_seconds: float = 15.0,
        embedding_scale: float | None = None,
        cache: Path | None = None,
        timeout: float = 30.0,
        max_clip_seconds: float = MAX_SECONDS,
        feature_folder: Path | None = None,
        standardise: bool = False,
        distance: Distance = "plutchik",
        neutral_distance: float = 0.5,
        angles: dict[str, float | None] | None = None,
        votes: int = 5,
        vote_temperature: float = 1.0,
        lora: LoRA | None = LORA,
        decode: Literal["score", "greedy", "vote"] = "score",
        max_new_tokens: int = 8,
        **kwargs: Any,
    ) -> None:
        if decode not in ("score", "greedy", "vote"):
            raise ValueError(f"decode {decode} takes prompts of words only; decode by score, greedy or vote")
        super().__init__(lora=lora, decode="score", max_new_tokens=max_new_tokens, **kwargs)
        self.decode = decode
        media = Media(Path(cache) if cache else None, timeout=timeout, max_seconds=max_clip_seconds)
        vision_option, audio_option = (vision, vision_dtype, vision_revision), (audio, audio_dtype, audio_revision)
        numbers = show_text, frames, audio_tokens, max_seconds, embedding_scale
        self.own_encoders(
            ProjectedEncoders.of_paths(vision_option, audio_option, media, *numbers, feature_folder, standardise)
        )
        self.distances = LabelDistances(distance, neutral_distance, angles)
        self.voted_answers = VotedAnswers(votes, vote_temperature)

    def setup(self, stage: str) -> None:
        """Check that every label has a distance, beside what every prompted system checks."""
        super().setup(stage)
        self.distances.check(self)

    def answer(self, prefix: Prefix, samples: SampleBatch) -> list[Prediction]:
        """Return the answers to encoded prompts; see ``decode``."""
        if self.decode == "vote":
            return self.voted_answers.predict(self, prefix, samples)
        return super().answer(prefix, samples)

    def summary(self, rows: Sequence[Mapping[str, Any]], run: Path) -> dict[str, Any]:
        """Return what metrics.json says, with the consistency of the answers."""
        return add_consistency(super().summary(rows, run), rows, self, self.distances)


class MeritRLVR(GRPOModule):
    """Reinforcement with verifiable rewards on labelled data (the table's RLVR row).

    Only LoRA is trained; the reference is the model of ``start_from``. A validation asks how right the answers are, not
    which rewards they get. The options of input and votes are those of `Merit`.

    Args:
        vision: folder, published name, hub id or file of the image encoder (see `zoo.backbones.Vision`), or
            ``features:FOLDER`` of given ones (see `zoo.training.given_features`); None: the system sees nothing.
        audio: the same of the HuBERT (see `zoo.backbones.Audio`); None: it hears nothing.
        vision_dtype, audio_dtype: dtypes of their weights.
        vision_revision, audio_revision: hub revisions to pin.
        show_text: whether the utterance's words are shown; False leaves the clip alone.
        frames: vision tokens: frames per clip, evenly spaced.
        audio_tokens: parts of the waveform.
        max_seconds: a longer waveform is cut to its middle part, counted.
        embedding_scale: the projections' first outputs have this many times the deviation of the input embeddings of
            the language model (ours); None leaves PyTorch's initial weights.
        cache: folder of decoded clips (see `zoo.media.Media`); None decodes at every visit.
        timeout: seconds one clip may take to decode.
        max_clip_seconds: a longer clip or film is not read, and counted.
        feature_folder: keep the encoders' features here, each clip's once for all runs; None: of this run, in memory.
        standardise: give features of a ``features:FOLDER`` mean 0 and deviation 1 in every dimension, measured on 512
            training utterances before the first step and stored with the weights (ours).
        distance: W from ``plutchik``'s wheel, or from embeddings of the label words in the language model (``lm``) or a
            ``sentence`` encoder (`zoo.backbones.sentence`).
        neutral_distance: of neutral, the wheel's centre, to all other labels.
        angles: degrees of labels that the wheel lacks (null: the centre).
        votes: answers drawn per sample by ``decode: vote``.
        vote_temperature: of drawing them.
        lora: adapters; those of ``start_from`` if it has any, which then must be given alike.
        num_generations: answers drawn per sample (P: k = 5).
        max_new_tokens: of an answer.
        objective: see `zoo.rl.grpo.Objective`; P's GRPO to the letter by default.
        decode: of evaluation, as in `Merit`.
    """

    renamed_options = RENAMED
    templates = TEMPLATES
    template_variables = CLIP_VARIABLES
    scores = SCORES
    monitor = "val/wf1"
    validates = "labels"

    def __init__(
        self,
        *,
        vision: str | None = None,
        audio: str | None = None,
        vision_dtype: Dtype = "float32",
        audio_dtype: Dtype = "float32",
        vision_revision: str | None = None,
        audio_revision: str | None = None,
        show_text: bool = True,
        frames: int = 8,
        audio_tokens: int = 8,
        max_seconds: float = 15.0,
        embedding_scale: float | None = None,
        cache: Path | None = None,
        timeout: float = 30.0,
        max_clip_seconds: float = MAX_SECONDS,
        feature_folder: Path | None = None,
        standardise: bool = False,
        distance: Distance = "plutchik",
        neutral_distance: float = 0.5,
        angles: dict[str, float | None] | None = None,
        votes: int = 5,
        vote_temperature: float = 1.0,
        lora: LoRA | None = LORA,
        num_generations: int = 5,
        max_new_tokens: int = 8,
        objective: Objective = Objective("reinforce_group", "sum"),  # noqa: B008 - frozen
        decode: Literal["score", "greedy", "vote"] = "score",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            lora=lora, num_generations=num_generations, max_new_tokens=max_new_tokens, objective=objective, **kwargs
        )
        media = Media(Path(cache) if cache else None, timeout=timeout, max_seconds=max_clip_seconds)
        vision_option, audio_option = (vision, vision_dtype, vision_revision), (audio, audio_dtype, audio_revision)
        numbers = show_text, frames, audio_tokens, max_seconds, embedding_scale
        self.own_encoders(
            ProjectedEncoders.of_paths(vision_option, audio_option, media, *numbers, feature_folder, standardise)
        )
        self.distances = LabelDistances(distance, neutral_distance, angles)
        self.voted_answers = VotedAnswers(votes, vote_temperature)
        self.decode = decode
        if lora is None:
            raise ValueError("MeritRLVR trains only adapters; set --model.lora")
        self._check_rewards()

    def _check_rewards(self) -> None:
        if not self.reward_funcs:
            raise ValueError("MeritRLVR needs rewards: --model.reward_funcs+=zoo.rl.rewards.Correct")

    def build(self) -> None:
        """Make the model; its projections are not trained."""
        super().build()
        if self.encoders is not None:
            self.encoders.freeze_projections()

    def setup(self, stage: str) -> None:
        """Check distances, and warn of random projections, beside what every prompted system checks."""
        super().setup(stage)
        self.distances.check(self)
        if stage == "fit" and not self.start_from:
            rank_zero_warn("no --model.start_from: the projections are random and stay so; give the run of `Merit`")

    def answer(self, prefix: Prefix, samples: SampleBatch) -> list[Prediction]:
        """Return the answers to encoded prompts; see ``decode``."""
        if self.decode == "vote":
            return self.voted_answers.predict(self, prefix, samples)
        return super().answer(prefix, samples)

    def summary(self, rows: Sequence[Mapping[str, Any]], run: Path) -> dict[str, Any]:
        """Return what metrics.json says, with the consistency of the answers."""
        return add_consistency(super().summary(rows, run), rows, self, self.distances)


class MeritTTRL(MeritRLVR):
    """Reinforcement at test time by majority vote on unlabelled data (Sec. 3.4). Use `zoo.data.Adaptation`.

    Every validation check looks at the answers to the adaptation's own samples: `guard` decides without labels whether
    they still are what they should be. ``best.ckpt`` is chosen by `best_by` among the checks that passed.

    Args:
        alpha: sensitivity of the reward to distance (P: 1); null: binary.
        min_agreement: samples whose winner has a smaller share of the answers give no gradient (ours; 0: all do).
        vote_balance: a vote weighs (before / now)^balance: how often its label was answered before adaptation and is of
            late (ours; 0: one vote each).
        num_votes: answers that are drawn per sample and vote (Zuo et al. 2025: 64, of which they train 32); the first
            `num_generations` of them are trained. None: as many as are trained.
        guard: when to take back and end (ours); null: never.
        best_by: which check is best: the ``last`` one, or that with most ``information`` (sure and varied answers).
    """

    renamed_options = {"agreement": "min_agreement", "balance": "vote_balance", "keep": "best_by"}
    monitor = "val/keep"

    def __init__(
        self,
        *,
        alpha: float | None = 1.0,
        min_agreement: float = 0.0,
        vote_balance: float = 0.0,
        num_votes: int | None = None,
        guard: Guard | None = Guard(),  # noqa: B008 - frozen
        best_by: Literal["last", "information"] = "information",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (alpha is not None and not alpha > 0) or not 0 <= min_agreement <= 1 or not 0 <= vote_balance < math.inf:
            raise ValueError(
                "need alpha > 0 or null (binary; alpha 0 would make all answers worth the same), "
                f"0 <= min_agreement <= 1 and vote_balance >= 0; got {alpha}, {min_agreement}, {vote_balance}"
            )
        if num_votes is not None and num_votes < self.num_generations:
            raise ValueError(f"num_votes {num_votes} is below num_generations {self.num_generations}; raise it")
        self.num_votes = num_votes
        self.alpha, self.min_agreement, self.vote_balance = alpha, min_agreement, vote_balance
        self.guard, self.best_by = guard, best_by
        self.start: AnswerStatistics | None = None  # before adaptation
        self.last: AnswerStatistics | None = None  # at the last check that passed
        self.most_information = -math.inf  # at any check
        self.good_weights: dict[str, Tensor] = {}  # what is trained, at the last check that passed
        self.vote_shares: Tensor | None = None  # of late, how often each label was voted for

    def _check_rewards(self) -> None:
        if self.reward_funcs:
            raise ValueError("the vote is the reward at test time; rewards of your own belong to MeritRLVR")

    @property
    def answers_per_prompt(self) -> int:
        """How many answers are sampled, which all vote; the first ``num_generations`` of them are trained."""
        return self.num_votes or self.num_generations

    # ---- reward (Sec. 3.4.1)
    def rewards(self, groups: Sequence[Sequence[Answer]]) -> RewardBatch:
        """Return the rewards of the sampled answers by their distance to the majority of their group."""
        labels = groups[0][0].sample.labels
        votes = [[self.read_label(a.sample, a.text) for a in group] for group in groups]
        weights = self._vote_weights(votes, len(labels))
        winners = [majority(v, weights) for v in votes]
        distances = self.distances.matrix(labels, self)
        rewards = []
        for v, winner in zip(votes, winners, strict=True):
            unsure = sum(x == winner for x in v) < self.min_agreement * len(v)
            rewards.append([0.0] * len(v) if unsure else vote_reward(v, winner, distances, self.alpha))
        total = torch.tensor(rewards, dtype=torch.float32)
        metrics = vote_agreement(votes, winners) | {"used": float((total > 0).any(1).float().mean())}
        data = cast(AdaptedCorpus, self.data)  # see `setup`
        if data.labelled:  # for the log alone
            known = (data.truth(group[0].sample.id) for group in groups)
            truth = [index for index in known if index is not None]
            metrics |= vote_accuracy(votes, winners, truth)
        return RewardBatch(total, {"vote": total}, metrics)

    def _vote_weights(self, votes: Sequence[Sequence[int | None]], labels: int) -> list[float] | None:
        """Return the weight of a vote for each label; None if all weigh the same."""
        if not self.vote_balance or self.start is None:  # no start: a fast_dev_run
            return None
        before = torch.tensor(self.start.mean).clamp(min=1e-3)
        counts = torch.zeros(labels)
        for v in votes:
            for label in v:
                if label is not None:
                    counts[label] += 1
        counts = self.sum_over_processes(counts)
        shares = (counts / counts.sum().clamp(min=1)).clamp(min=1e-3)
        earlier = before if self.vote_shares is None else self.vote_shares
        self.vote_shares = FADING * earlier + (1 - FADING) * shares
        return (before / self.vote_shares).pow(self.vote_balance).tolist()

    # ---- the guard
    def setup(self, stage: str) -> None:
        """Check that the data is an adaptation of one corpus, beside what `GRPOModule` checks."""
        super().setup(stage)
        if stage != "fit":
            return
        if not hasattr(self.data, "truth"):
            corpus = type(self.data).__name__
            raise ValueError(
                f"adaptation takes its samples from zoo.data.Adaptation, which removes their labels; got "
                f"{corpus}. Wrap it: --data Adaptation --data.corpus {corpus}"
            )
        if len(self.data.label_sets) != 1:
            raise ValueError(f"adaptation takes one corpus at a time, got {', '.join(self.data.label_sets)}")
        if self.vote_balance and self.trainer.limit_val_batches == 0:
            raise ValueError(
                "vote_balance compares with the answers before adaptation: set --trainer.limit_val_batches"
            )
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by one of its connectors
            self.trainer.num_sanity_val_steps = float("inf")  # the check before adaptation, over all of it

    def on_train_start(self) -> None:
        """Keep a copy of the weights, beside what every system does."""
        super().on_train_start()
        if not self.good_weights:  # a resumed run has no check before its first step
            self._keep_weights()

    def on_validation_epoch_start(self) -> None:
        """Begin a new sum of statistics."""
        self.statistics_sums: Tensor | None = None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add the statistics of a batch; its labels are not looked at."""
        if self.keeps_step(batch):
            return
        predictions = self.scored_answers(self.encode(batch), batch["samples"])
        sums = statistics_sums(torch.tensor([list((p.scores or {}).values()) for p in predictions]))
        self.statistics_sums = sums if self.statistics_sums is None else self.statistics_sums + sums

    def on_validation_epoch_end(self) -> None:
        """Take the weights back and end, if the guard says so; else keep them."""
        sums = self.statistics_sums
        if sums is None:  # all samples are those of other processes
            (labels,) = self.data.label_sets.values()
            sums = statistics_sums(torch.zeros(0, len(labels)))
        now = AnswerStatistics.from_sums(self.sum_over_processes(sums))
        if self.trainer.state.fn != "fit":
            return
        self.start = self.start or now
        self.most_information = max(self.most_information, now.information)
        if self.trainer.sanity_checking:
            self._keep_weights()
            return
        violation = None
        if self.guard is not None:
            violation = self.guard.violation(now, self.start, self.most_information)
        self.log_dict(
            {
                "val/entropy": now.entropy,
                "val/confidence": now.confidence,
                "val/information": now.information,
                "val/top_share": max(now.shares),
                "val/drift": now.drift(self.start),
                "val/collapsed": float(violation is not None),
            }
        )
        if violation is not None:
            rank_zero_warn(
                f"adaptation ended at step {self.global_step}: {violation}. The weights of the last check "
                "that passed are taken back"
            )
            parameters = dict(self.named_parameters())
            with torch.no_grad():
                for name, value in self.good_weights.items():
                    parameters[name].copy_(value)
            self.trainer.should_stop = True
        else:
            self._keep_weights()
            self.last = now
        self.log("val/keep", self._quality(), prog_bar=True)

    def _quality(self) -> float:
        """Return the number whose largest value chooses best.ckpt."""
        checked = self.last or self.start
        return float(self.global_step) if self.best_by == "last" or checked is None else checked.information

    def _keep_weights(self) -> None:
        self.good_weights = {name: p.detach().clone() for name, p in self.named_parameters() if p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of the adaptation."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["adaptation"] = json.dumps(
            {
                "start": vars(self.start) if self.start is not None else None,
                "last": vars(self.last) if self.last is not None else None,
                "most": self.most_information,
                "drawn": self.vote_shares.tolist() if self.vote_shares is not None else None,
            }
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the state of the adaptation."""
        super().on_load_checkpoint(checkpoint)
        state = json.loads(checkpoint.get("adaptation", "{}"))
        for name in ("start", "last"):
            if state.get(name):
                fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in state[name].items()}
                setattr(self, name, AnswerStatistics(**fields))
        self.most_information = state.get("most", self.most_information)
        if state.get("drawn"):
            self.vote_shares = torch.tensor(state["drawn"])
