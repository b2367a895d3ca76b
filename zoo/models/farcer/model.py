"""FARCER: fully auto-regressive multi-modal LLM for contextual emotion recognition (Nonaka & Valles 2024).

A frozen face ViT gives one vector per utterance (the CLS token of its last layer, before the final norm), a small
projection maps it into the input space of a frozen LLaMA-3 (Eq. 2-4), and there it stands before the words of its
utterance (Eq. 5); after the dialogue the LLM says the label (Eq. 6). Only the projection is trained, or with it LoRA on
the LLM's q, k and v. Section III-B -> `FARCER.encode`, Fig. 2 -> `parts.Writer`, Eq. 7 -> `FARCER.training_step`.

Differs from the paper (P) and its published code (C):
- Prompt wording is ours after the structure of Fig. 2; special tokens, ``DIALOGUE:`` and ``EMOTION LABEL:`` (C; P
  prints ``LABEL:``) are theirs. Small models have ``templates/plain.txt``.
- Where an image is missing nothing stands in its place (C puts a padding vector at the left end), and it is counted.
- Training prompts: P and C draw one of ten 7-shot prompts per sample, the same in every epoch, with samples in order
  and one per step. Ours are drawn per batch and anew in every epoch, and samples are shuffled. A prompt that holds the
  sample's own dialogue is passed over. Validation uses the test prompt (C: the first training prompt); with
  ``shots_from: dev``, which is C's on MELD, solved dialogues are also validated on.
- Eq. 7 is the weighted mean over the tokens of one label; ours is the mean of it over a batch. Its weights cancel where
  a label is one token and the end token, except between these two: classes are hardly balanced by it.
- Free-running training (P: "multiple forward passes"): C runs one pass per label token; ours decodes all but the last
  token without gradient, then runs one pass: the same loss. After an end token that comes too early, C goes on with
  whatever follows it, ours repeats it.
- Optimisation per step, not per epoch: AdamW, weight decay .01, cosine without warm-up to zero (C: T_max of half the
  epochs, early stopping). Checkpoints by validation weighted F1, as P.
- ``decode: score`` and ``image_placement: block`` are ours, the second after what P argues against; so are
  ``standardise`` and ``scale`` of the image vector, and the controls ``faces: constant`` and ``another``.
- C cuts IEMOCAP's test texts to 10 turns (15 with past labels) but feeds images from the first; ``window`` cuts both.
- LoRA: C saves the projection by PEFT; ours is in the run's checkpoint as always. `weights` reads and writes C's files.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from zoo.backbones import LLM, LoRA, Prefix, Vision
from zoo.backbones.llm import Dtype
from zoo.media import MAX_SECONDS, Media
from zoo.models.farcer.parts import (
    Collator,
    Faces,
    Pictures,
    Writer,
    draw_shots,
    projection,
    token_weights,
    weighted_loss,
)
from zoo.module import LABEL_TOKENS, Prompted, fitting_length, label_scores, note_control_tokens, readable_parts
from zoo.prompts import load_template, words
from zoo.schema import Prediction, Sample
from zoo.senses import AT_ONCE, Remembered

PROMPTS = 10  # few-shot prompts that training draws from (Sec. III-C)
MEASURED = 512  # training images whose mean and deviation `standardise` takes


class FARCER(Prompted):
    """Faces as tokens in a frozen LLM.

    Args:
        llm: folder, published name or hub id of the language model; P: Meta-Llama-3-8B-Instruct.
        vision: the same of the image encoder; P: trpakov/vit-face-expression. Not needed with ``faces: none``.
        dtype, vision_dtype: dtypes of their weights; C: bfloat16 and float32.
        revision, vision_revision: hub revisions to pin.
        attention: attention implementation of the language model.
        gradient_checkpointing: recompute its activations in the backward pass.
        lora: adapters on the language model; P: rank 8, alpha 16, dropout .1 on q, k and v. None leaves it frozen.
        layers: linear layers of the projection; P: 1 or 3.
        dropout: between these layers (P: .05).
        vision_tokens: ``cls`` (P) or ``all`` tokens of the last layer, each of which then takes a position.
        standardise: give the encoder's features mean 0 and deviation 1 in every dimension, measured on 512 training
            images before the first step and stored with the weights (ours).
        scale: multiply the projected vector by this many standard deviations of the input embeddings (ours); None
            leaves it as the projection gives it (P).
        faces: ``own`` (P), ``none`` (text only), or as a control a ``constant`` face or that of ``another`` speaker in
            another dialogue.
        image_placement: ``interleaved`` before each utterance (P), or all images as one ``block`` before the dialogue.
        template: ``chat`` (Fig. 2; writes Llama-3's special tokens itself, so `chat` is off), ``plain`` (for small
            models), or a file.
        chat: write the prompt of another template as a chat, see `zoo.module.Prompted`.
        window: earlier turns shown, with their images; None shows the whole dialogue (P).
        past_labels: show the true labels of earlier turns (P: "PL").
        train_shots: solved dialogues in each of the ten training prompts (P: 7).
        shots: solved dialogues in the prompt of validation and test (P: 3 or 7).
        shots_from: split they come from; P: dev on MELD, train on IEMOCAP.
        shot_window: earlier turns shown in a solved dialogue; None shows all (P).
        verbalizer: label -> word the model says, where it differs.
        max_length: prompts longer than this many positions lose their oldest turns; counted.
        rollout: what the loss reads before each label token: the model's own greedy tokens (``free``, P), or the label
            itself (``teacher``).
        label_weights: ``balanced`` weights of label tokens in the loss (P), or ``none``.
        decode: ``greedy`` (P; an answer that is not exactly a label word is unparsed), or ``score``, which compares the
            log-probabilities of the label words.
        max_new_tokens: for ``greedy`` (C: 5).
        cache: folder of decoded frames (see `zoo.media.Media`); None decodes at every visit.
        timeout: seconds one clip may take to decode.
        max_clip_seconds: a longer clip or film is not read, and counted.
    """

    templates = Path(__file__).parent / "templates"
    example_options = ("shots", "train_shots")

    def __init__(
        self,
        llm: str,
        vision: str | None = None,
        dtype: Dtype = "float32",
        vision_dtype: Dtype = "float32",
        revision: str | None = None,
        vision_revision: str | None = None,
        attention: Literal["sdpa", "eager"] = "sdpa",
        gradient_checkpointing: bool = False,
        lora: LoRA | None = None,
        layers: int = 1,
        dropout: float = 0.05,
        vision_tokens: Literal["cls", "all"] = "cls",
        standardise: bool = False,
        scale: float | None = None,
        faces: Faces = "own",
        image_placement: Literal["interleaved", "block"] = "interleaved",
        template: str = "chat",
        chat: bool | None = None,
        window: int | None = None,
        past_labels: bool = False,
        train_shots: int = 7,
        shots: int = 7,
        shots_from: Literal["train", "dev"] = "train",
        shot_window: int | None = None,
        verbalizer: dict[str, str] | None = None,
        max_length: int = 4096,
        rollout: Literal["free", "teacher"] = "free",
        label_weights: Literal["balanced", "none"] = "balanced",
        decode: Literal["greedy", "score"] = "greedy",
        max_new_tokens: int = 5,
        cache: Path | None = None,
        timeout: float = 30.0,
        max_clip_seconds: float = MAX_SECONDS,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        warmup: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if template == "chat" and chat:
            raise ValueError(
                "template chat writes Llama-3's chat tokens itself; with --model.chat true choose another "
                "(--model.template plain, or a file)"
            )
        super().__init__(
            lr=lr, weight_decay=weight_decay, warmup=warmup, chat=False if template == "chat" else chat, **kwargs
        )
        if (
            min(layers, max_new_tokens) < 1
            or min(window or 0, shot_window or 0, train_shots, shots) < 0
            or max_length < 2
        ):
            raise ValueError(
                "need layers, max_new_tokens >= 1, window, shot_window, train_shots, shots >= 0 and max_length >= 2; "
                f"got {layers}, {max_new_tokens}, {window}, {shot_window}, {train_shots}, {shots}, {max_length}"
            )
        if not 0 <= dropout < 1 or (scale is not None and not scale > 0):
            raise ValueError(f"need 0 <= dropout < 1 and scale > 0 or null; got {dropout} and {scale}")
        if vision is None and faces != "none":
            raise ValueError(
                f"faces: {faces} needs an image encoder: give its folder with --model.vision, or set "
                "--model.faces none for a text-only model"
            )
        self.llm_args = {
            "path": llm,
            "dtype": dtype,
            "revision": revision,
            "attention": attention,
            "gradient_checkpointing": gradient_checkpointing,
        }
        self.vision_args = {"path": vision, "dtype": vision_dtype, "revision": vision_revision}
        self.lora, self.layers, self.dropout = lora, layers, dropout
        self.vision_tokens, self.standardise, self.scale = vision_tokens, standardise, scale
        self.faces, self.image_placement = faces, image_placement
        self.template = load_template(template, self.templates)
        self.window, self.past_labels, self.verbalizer, self.max_length = window, past_labels, verbalizer, max_length
        self.train_shots, self.shots, self.shots_from, self.shot_window = train_shots, shots, shots_from, shot_window
        self.rollout, self.label_weights = rollout, label_weights
        self.decode, self.max_new_tokens = decode, max_new_tokens
        self.media = Media(Path(cache) if cache else None, timeout=timeout, max_seconds=max_clip_seconds)
        self.remembered = Remembered()  # image -> its features
        self.kept: dict[bytes, Any] = {}  # fixed part of a prompt -> what the language model keeps of it

    @property
    def reads(self) -> tuple[str, ...]:
        """A constant face, or another's, tells nothing of the sample."""
        return readable_parts(
            {"text"} | ({"turns"} if self.window != 0 else set()) | ({"face"} if self.faces == "own" else set())
        )

    # ---- parts
    def build(self) -> None:
        self.llm = LLM(**self.llm_args).requires_grad_(False)
        self.max_length = fitting_length(self.llm, self.max_length, max(self.max_new_tokens, LABEL_TOKENS))
        if self.faces == "none":
            return
        self.vision = Vision(**self.vision_args).freeze()
        if self.vision_tokens == "cls" and not self.vision.has_cls:
            raise ValueError(f"{self.vision.path} has no CLS token; set --model.vision_tokens all")
        self.mp = projection(self.vision.width, self.llm.width, self.layers, self.dropout)
        if self.standardise:
            self.register_buffer("feature_mean", torch.zeros(self.vision.width))
            self.register_buffer("feature_deviation", torch.ones(self.vision.width))
            self.register_buffer("measured", torch.tensor(False))

    def add_adapters(self) -> None:
        if self.lora is not None:
            self.llm.add_lora(self.lora)

    def bases(self) -> dict[str, LLM | Vision]:
        return {"llm": self.llm} | ({"vision": self.vision} if self.faces != "none" else {})

    # ---- input processing
    def writer(self, training: bool) -> Writer:
        """How prompts are written, in training or in evaluation."""
        count = self.train_shots if training else self.shots
        shots: dict[str, list[tuple[Sample, ...]]] = {}
        if count:
            pool = self.trainer.datamodule.samples(self.shots_from)
            for corpus in self.trainer.datamodule.label_sets:
                own = [s for s in pool if s.labels.corpus == corpus]
                shots[corpus] = [draw_shots(own, count, seed) for seed in (range(PROMPTS) if training else (count,))]
        return Writer(
            self.llm.tokenizer,
            self.template,
            self.faces != "none",
            self.vision.tokens if self.faces != "none" and self.vision_tokens == "all" else 1,
            self.window,
            self.past_labels,
            self.image_placement == "block",
            self.verbalizer,
            self.shot_window,
            shots,
            self.chats,
            self.system,
        )

    def pictures(self) -> Pictures | None:
        if self.faces == "none":
            return None
        pool = []
        if self.faces != "own":
            pool = [(s.dialogue, s.target) for s in self.trainer.datamodule.samples("train") if s.target.video]
            if len({t.speaker for _, t in pool}) < 2:
                raise ValueError(
                    f"faces: {self.faces} takes its faces from the training split, which shows fewer than two speakers"
                )
        return Pictures(self.media, self.vision.size, self.faces, pool)

    def collator(self, training: bool) -> Collator:
        for labels in self.trainer.datamodule.label_sets.values():
            longest = max(self.write.answers(labels), key=len)
            if self.decode == "greedy" and len(longest) > self.max_new_tokens:
                raise ValueError(
                    f"a label of {labels.corpus} has {len(longest)} tokens, so greedy answers of at most "
                    f"{self.max_new_tokens} could never name it; raise --model.max_new_tokens"
                )
        writer = self.writer(training) if training else self.write
        return Collator(writer, self.pictures(), self.llm.pad_id, self.max_length, training)

    @functools.cached_property
    def write(self) -> Writer:
        """How prompts are written in evaluation, and answers always."""
        return self.writer(training=False)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = self.trainer.datamodule
        note_control_tokens(data, data.splits_of(stage)[0])

    unread_events = ("samples without any readable picture",)

    def needs(self, stage: str) -> Mapping[str, str]:
        return {} if self.faces == "none" else {"video": "set --model.faces none for a text-only model"}

    def require(self, samples: Sequence[Sample], split: str, stage: str) -> None:
        super().require(samples, split, stage)
        corpus = type(self.trainer.datamodule).__name__
        if self.faces == "none" and not any(s.target.text for s in samples):
            raise ValueError(
                f"no {split} sample of {corpus} has words, and --model.faces none shows nothing else: every prompt "
                "would be the same"
            )

    # ---- images (Eq. 2-4)
    def features(self, keys: tuple[str, ...], frames: Tensor) -> Tensor:
        """Encoder features of images, (U, K, W) float32: K is 1 (CLS) or all tokens. The encoder is frozen, and the
        windows of a dialogue's utterances overlap: each image is encoded once per run and then remembered."""

        def compute(part: list[int]) -> Tensor:
            hidden = self.vision.hidden(frames[part].clone(), normed=False).float()
            return hidden[:, :1] if self.vision_tokens == "cls" else hidden

        return self.remembered(keys, compute)

    def project(self, features: Tensor) -> Tensor:
        """(..., W) features -> (..., D) vectors in the input space of the language model (Eq. 4)."""
        if self.standardise:
            features = (features - self.feature_mean) / self.feature_deviation
        vectors = self.mp(features.to(self.mp[0].weight.dtype))
        if self.scale is not None:
            vectors = vectors * (self.scale * self.llm.causal_lm.get_input_embeddings().weight.std())
        return vectors

    @torch.no_grad()
    def measure(self) -> None:
        """Takes mean and deviation of the features of some training images."""
        pictures = self.pictures()
        turns = [(s.dialogue, s.target) for s in self.trainer.datamodule.samples("train")]
        turns = [turns[i] for i in np.linspace(0, len(turns) - 1, min(MEASURED, len(turns))).astype(int)]
        seen = [shown for dialogue, turn in turns if (shown := pictures.of(turn, dialogue)) is not None]
        read = {pictures.key(t): frame for t in seen if (frame := pictures.read(t)) is not None}
        if not read:
            raise ValueError("no picture of the training split could be read; `zoo prepare media --root DIR` lists why")
        parts = list(read.items())
        features = torch.cat(
            [
                self.features(
                    tuple(k for k, _ in part), torch.from_numpy(np.stack([f for _, f in part])).to(self.device)
                )
                for part in (parts[i : i + AT_ONCE] for i in range(0, len(parts), AT_ONCE))
            ]
        ).flatten(0, 1)
        self.feature_mean.copy_(features.mean(0))
        self.feature_deviation.copy_(features.std(0, unbiased=False).clamp(min=1e-3 * float(features.std())))
        self.measured.fill_(True)

    # ---- the input sequence (Eq. 5)
    def encode(self, batch: dict[str, Any]) -> Prefix:
        """[fixed part, then text with one vector, or K, in each image slot] of every prompt."""
        embedded = self.llm.embed(batch["input_ids"])  # (B, P, D)
        if len(batch["image"]):
            vectors = self.project(self.features(batch["keys"], batch["frames"]))  # (U, K, D)
            placed = vectors[batch["image"]].flatten(0, 1).to(embedded.dtype)  # (M K, D)
            embedded = embedded.index_put((batch["image_at"],), placed)
        fixed = batch["fixed"]
        if not len(fixed):
            return self.llm.encode(embedded, batch["mask"])
        key = fixed.cpu().numpy().tobytes()
        if key not in self.kept:
            if len(self.kept) > 4 * PROMPTS:  # more than any run needs at a time
                self.kept.clear()
            self.kept[key] = self.llm.cache_prefix(fixed)
        return self.llm.encode(embedded, batch["mask"], static_prefix=self.kept[key])

    # ---- training (Eq. 7)
    def on_fit_start(self) -> None:
        self.weigh(self.trainer.datamodule.samples("train"))
        if self.faces != "none" and self.standardise and not self.measured:  # an earlier stage, or this run, has it
            self.measure()

    def weigh(self, samples: Sequence[Sample]) -> None:
        """Weight of each token of the vocabulary in the loss (Sec. III-C)."""
        weight = torch.ones(self.llm.causal_lm.config.vocab_size)
        if self.label_weights == "balanced":
            answers, end = [], 0
            for labels in self.trainer.datamodule.label_sets.values():
                tokens, end = self.write.answers(labels), self.write.end_id(labels)
                answers += [[*tokens[s.label], end] for s in samples if s.labels == labels and s.label >= 0]
            for token, own in token_weights(answers, end).items():
                weight[token] = own
        self.register_buffer("token_weight", weight.to(self.device), persistent=False)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        prefix = self.encode(batch)
        label, mask = batch["answer"][:, None], batch["answer_mask"][:, None]  # (B, 1, T)
        if not mask.any():
            raise ValueError(f"no sample of this batch has a label: {batch['samples'].ids()[:3]}")
        read = self.own_answers(prefix, label) if self.rollout == "free" else label
        logp = self.llm.logprobs(prefix, read, mask, targets=label)[:, 0]  # (B, T)
        loss = weighted_loss(logp, self.token_weight[label[:, 0]], mask[:, 0])
        self.check_finite(loss, batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["samples"]))
        self.log("train/missing", float(batch["missing"]), reduce_fx="sum", on_step=False, on_epoch=True)
        return loss

    def own_answers(self, prefix: Prefix, label: Tensor) -> Tensor:
        """(B, 1, T): what the model itself says, greedily, where the label stands; the last token is never read."""
        read = label.clone()
        said = self.llm.sample(prefix, 1, max_new_tokens=label.shape[2] - 1, temperature=0.0)
        own = said.ids.shape[2]
        read[..., :own] = said.ids
        for t in range(1, own):  # after its end an answer goes on with its end token
            read[..., t] = torch.where(said.mask[..., t], said.ids[..., t], read[..., t - 1])
        for t in range(own, label.shape[2]):
            read[..., t] = read[..., t - 1]
        return read

    # ---- answers (Eq. 8)
    @torch.no_grad()
    def predict(self, batch: dict[str, Any]) -> list[Prediction]:
        self.counts["images missing, nothing in their place"] += batch["missing"]
        if self.faces != "none":
            self.counts["samples without any readable picture"] += batch["without_picture"]
        prefix = self.encode(batch)
        if self.decode == "score":
            return label_scores(self.llm, prefix, batch["samples"], self.write.answers)
        return self._by_greedy(batch, prefix)

    def _by_greedy(self, batch: dict[str, Any], prefix: Prefix) -> list[Prediction]:
        said = self.llm.sample(prefix, 1, max_new_tokens=self.max_new_tokens, temperature=0.0)
        predictions = []
        for sample, ids, mask in zip(batch["samples"], said.ids[:, 0].tolist(), said.mask[:, 0].tolist(), strict=True):
            own, end = [i for i, real in zip(ids, mask, strict=True) if real], self.write.end_id(sample.labels)
            own = own[: own.index(end)] if end in own else own
            text = self.llm.tokenizer.decode(own).strip()  # a stray control token is no label either
            named = dict(zip(words(sample.labels, self.verbalizer), sample.labels.names, strict=True))
            predictions.append(Prediction(sample.id, sample.dialogue, sample.target.label, named.get(text), text=text))
        return predictions
