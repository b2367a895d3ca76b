"""FARCER: fully auto-regressive multi-modal LLM for contextual emotion recognition (Nonaka & Valles 2024).

A frozen face ViT gives one vector per utterance (the CLS token of its last layer, before the final norm), a small
projection maps it into the input space of a frozen LLaMA-3 (Eq. 2-4), and there it stands before the words of its
utterance (Eq. 5); after the dialogue the LLM says the label (Eq. 6). Only the projection is trained, or with it LoRA on
the LLM's q, k and v. Section III-B -> `FARCER.encode`, Fig. 2 -> `collator.PromptWriter`, Eq. 7 ->
`FARCER.training_step`.

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
  ``standardise`` and ``embedding_scale`` of the image vector, and the controls ``faces: constant`` and ``another``.
- C cuts IEMOCAP's test texts to 10 turns (15 with past labels) but feeds images from the first; ``window`` cuts both.
- LoRA: C saves the projection by PEFT; ours is in the run's checkpoint as always. `weights` reads and writes C's files.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from zoo.backbones import Prefix, Vision
from zoo.backbones.divided import is_divided
from zoo.backbones.llm import Dtype
from zoo.media import MAX_SECONDS, Media
from zoo.media.cache import VERSION as MEDIA_VERSION
from zoo.models.farcer.collator import KEPT_ROWS, Faces, FarcerCollator, PictureReader, PromptWriter, image_batch
from zoo.models.farcer.parts import balanced_token_weights, draw_shots, make_projection, weighted_loss
from zoo.prompts import label_words
from zoo.renaming import Renamed
from zoo.schema import Prediction, Sample
from zoo.training.batch import SampleBatch
from zoo.training.checkpointing import Backbone
from zoo.training.evaluation import ordered_parts
from zoo.training.feature_cache import CLIPS_AT_ONCE, FeatureCache
from zoo.training.feature_files import FeatureFiles, known_and_new
from zoo.training.given_features import FeatureFolder, GivenFeatures, is_given, refuse_idle_options
from zoo.training.language_model import LanguageModelModule, score_labels

PROMPTS = 10  # few-shot prompts that training draws from (Sec. III-C)
STANDARDISING_IMAGES = 512  # of the training split, whose mean and deviation `standardise` takes


class FARCER(LanguageModelModule):
    """Faces as tokens in a frozen LLM.

    Args:
        vision: folder, published name or hub id of the image encoder; P: trpakov/vit-face-expression; or
            ``features:FOLDER`` of given features (see `zoo.training.given_features`), a vector each or the mean of a
            sequence. Not needed with ``faces: none``.
        vision_dtype: dtype of its weights; C: float32, and bfloat16 of the language model.
        vision_revision: hub revision to pin.
        layers: linear layers of the projection; P: 1 or 3.
        dropout: between these layers (P: .05).
        vision_tokens: ``cls`` (P) or ``all`` tokens of the last layer, each of which then takes a position.
        standardise: give the encoder's features mean 0 and deviation 1 in every dimension, measured on 512 training
            images before the first step and stored with the weights (ours).
        embedding_scale: multiply the projected vector by this many standard deviations of the input embeddings (ours);
            None leaves it as the projection gives it (P).
        faces: ``own`` (P), ``none`` (text only), or as a control a ``constant`` face or that of ``another`` speaker in
            another dialogue.
        image_placement: ``interleaved`` before each utterance (P), or all images as one ``block`` before the dialogue.
        template: ``chat`` (Fig. 2; writes Llama-3's special tokens itself, so `chat` is off), ``plain`` (for small
            models), or a file.
        window: earlier turns shown, with their images; None shows the whole dialogue (P).
        past_labels: show the true labels of earlier turns (P: "PL").
        train_shots: solved dialogues in each of the ten training prompts (P: 7).
        shots: solved dialogues in the prompt of validation and test (P: 3 or 7).
        shots_from: split they come from; P: dev on MELD, train on IEMOCAP.
        shot_window: earlier turns shown in a solved dialogue; None shows all (P).
        teacher_forcing: before each label token the loss reads the label itself; False: the model's own greedy tokens
            (P).
        label_weights: ``balanced`` weights of label tokens in the loss (P), or ``none``.
        decode: ``greedy`` (P; an answer that is not exactly a label word is unparsed), or ``score``, which compares the
            log-probabilities of the label words.
        max_new_tokens: for ``greedy`` (C: 5).
        cache: folder of decoded frames (see `zoo.media.Media`); None decodes at every visit.
        timeout: seconds one clip may take to decode.
        max_clip_seconds: a longer clip or film is not read, and counted.
        feature_folder: keep the encoder's features here, each clip's once for all runs; None: of this run, in memory.
    """

    renamed_options = {
        "scale": "embedding_scale",
        "rollout": Renamed("teacher_forcing", {"free": False, "teacher": True}),
    }
    templates = Path(__file__).parent / "templates"
    unreadable_events = ("samples without any readable picture",)
    example_options = ("shots", "train_shots")

    feature_mean: Tensor  # (W,) float32, of the features before the projection; where they are standardised
    feature_deviation: Tensor  # (W,) float32
    measured: Tensor  # () bool: whether the two are those of training images
    token_weight: Tensor  # (V,) float32

    def __init__(
        self,
        *,
        vision: str | None = None,
        vision_dtype: Dtype = "float32",
        vision_revision: str | None = None,
        layers: int = 1,
        dropout: float = 0.05,
        vision_tokens: Literal["cls", "all"] = "cls",
        standardise: bool = False,
        embedding_scale: float | None = None,
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
        max_length: int = 4096,
        teacher_forcing: bool = False,
        label_weights: Literal["balanced", "none"] = "balanced",
        decode: Literal["greedy", "score"] = "greedy",
        max_new_tokens: int = 5,
        cache: Path | None = None,
        timeout: float = 30.0,
        max_clip_seconds: float = MAX_SECONDS,
        feature_folder: Path | None = None,
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
            template=template,
            window=window,
            descriptions=None,
            max_length=max_length,
            max_new_tokens=max_new_tokens,
            chat=False if template == "chat" else chat,
            lr=lr,
            weight_decay=weight_decay,
            warmup=warmup,
            **kwargs,
        )
        if layers < 1 or min(shot_window or 0, train_shots, shots) < 0:
            raise ValueError(
                "need layers >= 1 and shot_window, train_shots, shots >= 0; got "
                f"{layers}, {shot_window}, {train_shots} and {shots}"
            )
        if not 0 <= dropout < 1 or (embedding_scale is not None and not embedding_scale > 0):
            raise ValueError(f"need 0 <= dropout < 1 and embedding_scale > 0 or null; got {dropout}, {embedding_scale}")
        if vision is None and faces != "none":
            raise ValueError(
                f"faces: {faces} needs an image encoder: give its folder with --model.vision, or set "
                "--model.faces none for a text-only model"
            )
        self.layers, self.dropout = layers, dropout
        self.vision_tokens, self.standardise, self.embedding_scale = vision_tokens, standardise, embedding_scale
        self.faces, self.image_placement, self.past_labels = faces, image_placement, past_labels
        self.train_shots, self.shots, self.shots_from, self.shot_window = train_shots, shots, shots_from, shot_window
        self.teacher_forcing, self.label_weights, self.decode = teacher_forcing, label_weights, decode
        self.media = Media(Path(cache) if cache else None, timeout=timeout, max_seconds=max_clip_seconds)
        self.given_features: FeatureFolder | None = None
        self.make_vision: Callable[[], Vision | GivenFeatures]
        if is_given(vision) and faces != "none":
            if vision_tokens == "all":
                raise ValueError("features in files stand for whole pictures: set --model.vision_tokens cls")
            self.given_features = FeatureFolder.of_option("vision", (vision, vision_dtype, vision_revision), self.media)
            refuse_idle_options(["vision"], False, feature_folder, encoded=1)
            self.make_vision = functools.partial(GivenFeatures, self.given_features, 1)
        else:
            path = cast(str, vision)  # needed only where faces are shown
            self.make_vision = functools.partial(Vision, path, dtype=vision_dtype, revision=vision_revision)
        self.image_features = FeatureCache()
        self.feature_folder = None if feature_folder is None else Path(feature_folder)
        self.feature_files: FeatureFiles | None = None
        self.static_prefixes: dict[bytes, Any] = {}  # fixed part of a prompt -> what the language model keeps of it
        self._evaluation_writer: PromptWriter | None = None

    # ---- parts
    def build(self) -> None:
        """Make the frozen language model, the frozen image encoder and the projection."""
        super().build()
        self.llm.requires_grad_(False)
        if self.faces == "none":
            return
        embeddings = cast(nn.Embedding, self.llm.causal_lm.get_input_embeddings())
        if self.embedding_scale is not None and not embeddings.weight.is_meta:  # else sizes alone are wanted
            self.embedding_deviation = float(embeddings.weight.std())
        self.vision = self.make_vision().freeze()
        if isinstance(self.vision, Vision) and self.vision_tokens == "cls" and not self.vision.has_cls:
            raise ValueError(f"{self.vision.path} has no CLS token; set --model.vision_tokens all")
        self.mp = make_projection(self.vision.width, self.llm.width, self.layers, self.dropout)
        if self.standardise:
            self.register_buffer("feature_mean", torch.zeros(self.vision.width))
            self.register_buffer("feature_deviation", torch.ones(self.vision.width))
            self.register_buffer("measured", torch.tensor(False))

    def backbones(self) -> Mapping[str, Backbone]:
        """Return the language model, and the image encoder if faces are shown."""
        return {"llm": self.llm} | ({"vision": self.vision} if self.faces != "none" else {})

    # ---- input processing
    @property
    def reads(self) -> tuple[str, ...]:
        """Words, turns and faces; a constant face, or another's, tells nothing of the sample."""
        turns = {"turns"} if self.window != 0 else set()
        return ordered_parts({"text"} | turns | ({"face"} if self.faces == "own" else set()))

    def on_new_data(self) -> None:
        """Forget the solved dialogues of an earlier run's training split."""
        super().on_new_data()
        self._evaluation_writer = None

    @property
    def evaluation_writer(self) -> PromptWriter:
        """What writes prompts in evaluation, and answers always."""
        if self._evaluation_writer is None:
            self._evaluation_writer = self.make_writer(training=False)
        return self._evaluation_writer

    def make_writer(self, training: bool) -> PromptWriter:
        """Return what writes prompts, in training or in evaluation."""
        count = self.train_shots if training else self.shots
        shots: dict[str, list[tuple[Sample, ...]]] = {}
        if count:
            pool = self.data.samples(self.shots_from)
            for corpus in self.data.label_sets:
                candidates = [s for s in pool if s.labels.corpus == corpus]
                seeds = range(PROMPTS) if training else (count,)
                shots[corpus] = [draw_shots(candidates, count, seed) for seed in seeds]
        return PromptWriter(
            tokenizer=self.llm.tokenizer,
            template=self.template,
            pictures=self.faces != "none",
            tokens_per_picture=cast(Vision, self.vision).tokens
            if self.faces != "none" and self.vision_tokens == "all"
            else 1,
            window=self.window,
            past_labels=self.past_labels,
            block=self.image_placement == "block",
            verbalizer=self.verbalizer,
            shot_window=self.shot_window,
            shots=shots,
            chat=self.uses_chat,
            system_prompt=self.system_prompt,
        )

    def picture_reader(self) -> PictureReader | None:
        """Return what reads the picture of an utterance; None if no faces are shown."""
        if self.faces == "none":
            return None
        vision = self.vision
        size = cast(int, vision.size) if isinstance(vision, Vision) else 0
        reader = PictureReader(self.media, size, self.faces, given_features=self.given_features)
        if self.faces != "own":
            train = ((sample.dialogue, sample.target) for sample in self.data.samples("train"))
            reader.pool = [turn for turn in train if reader.has(*turn)]
            if len({t.speaker for _, t in reader.pool}) < 2:
                raise ValueError(
                    f"faces: {self.faces} takes its faces from the training split, which shows fewer than two speakers"
                )
        if isinstance(vision, Vision) and self.feature_folder is not None:
            reader.files = self.feature_files = FeatureFiles(
                self.feature_folder,
                vision,
                {
                    "precision": str(self.trainer.precision),
                    "media": [MEDIA_VERSION, self.media.max_seconds, self.media.max_pixels],
                    "frame": "in the middle, squeezed",
                    "rows": KEPT_ROWS,
                    "tokens": self.vision_tokens,
                },
            )
        return reader

    def collator(self, training: bool) -> FarcerCollator:  # type: ignore[override]  # its prompts have another form
        """Return what writes samples as prompts with images, in training with their answers."""
        for labels in self.data.label_sets.values():
            longest = max(self.evaluation_writer.answers(labels), key=len)
            if self.decode == "greedy" and len(longest) > self.max_new_tokens:
                raise ValueError(
                    f"a label of {labels.corpus} has {len(longest)} tokens, so greedy answers of at most "
                    f"{self.max_new_tokens} could never name it; raise --model.max_new_tokens"
                )
        return FarcerCollator(
            writer=self.make_writer(training) if training else self.evaluation_writer,
            pictures=self.picture_reader(),
            pad_id=self.llm.pad_id,
            max_length=self.max_length,
            training=training,
        )

    def required_files(self, stage: str) -> Mapping[str, str]:
        """Return that clips are read, if faces are shown."""
        if self.given_features is not None:
            return {self.given_features.part: self.given_features.remedy()}
        return {} if self.faces == "none" else {"video": "set --model.faces none for a text-only model"}

    @property
    def feature_folders(self) -> Mapping[str, FeatureFolder]:
        """The folder of features that are given in place of pictures."""
        return {} if self.given_features is None else {"vision": self.given_features}

    def has_input(self, sample: Sample) -> bool:
        """Return whether a prompt says anything about its sample."""
        return bool(sample.target.text) or self.faces != "none"

    def check_split(self, samples: Sequence[Sample], split: str, stage: str) -> None:
        """Check that there is anything to show."""
        if not any(self.has_input(s) for s in samples):
            raise ValueError(
                f"no {split} sample of {type(self.data).__name__} has words, and --model.faces none shows nothing "
                "else: every prompt would be the same"
            )
        super().check_split(samples, split, stage)

    # ---- images (Eq. 2-4)
    def features(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the encoder's features of the images of a batch, (U, K, W) float32: K is 1 (CLS) or all tokens.

        The encoder is frozen, and the windows of a dialogue's utterances overlap: each image is encoded once per run.
        """
        known, new = known_and_new(batch["frame_features"], batch["frames_known"])

        def compute(part: list[int]) -> Tensor:
            pixels = batch["frames"][[new[i] for i in part]].clone()
            hidden = cast(Vision, self.vision).hidden(pixels, normed=False).float()
            features = hidden[:, :1] if self.vision_tokens == "cls" else hidden
            if self.feature_files is not None:
                self.feature_files.write_all(part, batch["keys"], batch["frame_facts"], features)
            return features

        return self.image_features.stacked(batch["keys"], compute, known)

    def project(self, features: Tensor) -> Tensor:
        """Return (..., D) vectors in the input space of the language model, of (..., W) features (Eq. 4)."""
        if self.standardise:
            features = (features - self.feature_mean) / self.feature_deviation
        vectors = self.mp(features.to(next(self.mp.parameters()).dtype))
        if self.embedding_scale is not None:
            vectors = vectors * (self.embedding_scale * self.embedding_deviation)
        return vectors

    @torch.no_grad()
    def measure_features(self) -> None:
        """Take mean and deviation of the features of some training images."""
        reader = self.picture_reader()
        turns = [(s.dialogue, s.target) for s in self.data.samples("train")]
        turns = [turns[i] for i in np.linspace(0, len(turns) - 1, min(STANDARDISING_IMAGES, len(turns))).astype(int)]
        if reader is None:
            raise RuntimeError("faces: none has no pictures to measure")
        pictured = [picture for dialogue, turn in turns if (picture := reader.choose(turn, dialogue)) is not None]
        clips = {reader.key(*x): clip for x in pictured if (clip := reader.read(*x, [])) is not None}
        if not clips:
            raise ValueError("no picture of the training split could be read; `zoo prepare media --root DIR` lists why")
        items = list(clips.values())
        parts = []
        for start in range(0, len(items), CLIPS_AT_ONCE):
            batch = image_batch(items[start : start + CLIPS_AT_ONCE])
            on_device = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            with self.trainer.precision_plugin.forward_context():  # as in a step, which takes what is computed here
                parts.append(self.features(on_device))
        features = torch.cat(parts).flatten(0, 1)
        self.feature_mean.copy_(features.mean(0))
        self.feature_deviation.copy_(features.std(0, unbiased=False).clamp(min=1e-3 * float(features.std())))
        self.measured.fill_(True)

    # ---- the input sequence (Eq. 5)
    def encode(self, batch: Any) -> Prefix:
        """Return the encoded prompts: fixed part, then text with one vector, or K, in each image slot."""
        embedded = self.llm.embed(batch["input_ids"])  # (B, P, D)
        if len(batch["image"]):
            vectors = self.project(self.features(batch))  # (U, K, D)
            in_slots = vectors[batch["image"]].flatten(0, 1).to(embedded.dtype)  # (M K, D)
            embedded = embedded.index_put((batch["image_at"],), in_slots)
        elif self.faces != "none" and is_divided(self.mp):  # which computes in every process together
            nothing = self.project(torch.zeros(1, self.vision.width, device=embedded.device))
            embedded = embedded + 0.0 * nothing.sum().to(embedded.dtype)
        fixed = batch["fixed"]
        if not len(fixed):
            return self.llm.encode(embedded, batch["mask"])
        key = fixed.cpu().numpy().tobytes()
        if key not in self.static_prefixes:
            if len(self.static_prefixes) > 4 * PROMPTS:  # more than any run needs at a time
                self.static_prefixes.clear()
            self.static_prefixes[key] = self.llm.cache_prefix(fixed)
        return self.llm.encode(embedded, batch["mask"], static_prefix=self.static_prefixes[key])

    # ---- training (Eq. 7)
    def on_fit_start(self) -> None:
        """Weigh label tokens, and measure the encoder's features if they are standardised."""
        self.report_separate_prompts(training=True)
        self.weigh_tokens(self.data.samples("train"))
        if self.faces != "none" and self.standardise and not self.measured:  # an earlier stage, or this run, has it
            self.measure_features()

    def weigh_tokens(self, samples: Sequence[Sample]) -> None:
        """Weigh each token of the vocabulary in the loss (Sec. III-C)."""
        weight = torch.ones(self.llm.causal_lm.config.vocab_size)
        if self.label_weights == "balanced":
            answers, end = [], 0
            for labels in self.data.label_sets.values():
                tokens, end = self.evaluation_writer.answers(labels), self.evaluation_writer.end_id(labels)
                answers += [[*tokens[s.label], end] for s in samples if s.labels == labels and s.label >= 0]
            for token, token_weight in balanced_token_weights(answers, end).items():
                weight[token] = token_weight
        self.register_buffer("token_weight", weight.to(self.device), persistent=False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch (Eq. 7)."""
        prefix = self.encode(batch)
        label, mask = batch["answer"][:, None], batch["answer_mask"][:, None]  # (B, 1, T)
        if not mask.any():
            raise ValueError(f"no sample of this batch has a label: {batch['samples'].ids()[:3]}")
        inputs = label if self.teacher_forcing else self.greedy_inputs(prefix, label)
        logprobs = self.llm.logprobs(prefix, inputs, mask, targets=label)[:, 0]  # (B, T)
        loss = weighted_loss(logprobs, self.token_weight[label[:, 0]], mask[:, 0])
        self.check_finite(loss, batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["samples"]))
        self.log("train/missing", float(batch["missing"]), reduce_fx="sum", on_step=False, on_epoch=True)
        return loss

    def greedy_inputs(self, prefix: Prefix, label: Tensor) -> Tensor:
        """Return what the model itself says, greedily, where the label stands: (B, 1, T).

        The last token is never read. After its end an answer goes on with its end token.
        """
        answers = self.llm.sample(prefix, 1, max_new_tokens=label.shape[2] - 1, temperature=0.0)
        self.finish_passes()
        length = answers.ids.shape[2]
        inputs = label.clone()
        inputs[..., :length] = answers.ids
        for t in range(1, label.shape[2]):
            previous = inputs[..., t - 1]
            inputs[..., t] = torch.where(answers.mask[..., t], inputs[..., t], previous) if t < length else previous
        return inputs

    # ---- answers (Eq. 8)
    @torch.no_grad()
    def predict(self, batch: Any) -> list[Prediction]:
        """Return the answers to a batch; see ``decode``."""
        self.events["images missing, nothing in their place"] += batch["missing"]
        if self.faces != "none":
            self.events["samples without any readable picture"] += batch["without_picture"]
        return self.answer(self.encode(batch), batch["samples"])

    def answer(self, prefix: Prefix, samples: SampleBatch) -> list[Prediction]:
        """Return the answers to encoded prompts; a written one must be exactly a label word (P)."""
        if self.decode == "score":
            return score_labels(self.llm, prefix, samples, self.evaluation_writer.answers)
        answers = self.llm.sample(prefix, 1, max_new_tokens=self.max_new_tokens, temperature=0.0)
        texts = []
        for sample, ids, mask in zip(samples, answers.ids[:, 0], answers.mask[:, 0], strict=True):
            tokens, end = ids[mask].tolist(), self.evaluation_writer.end_id(sample.labels)
            tokens = tokens[: tokens.index(end)] if end in tokens else tokens
            texts.append(self.llm.tokenizer.decode(tokens).strip())  # a stray control token is no label either
        return self.read_answers(samples, texts)

    def read_answer(self, sample: Sample, text: str) -> str | None:
        """Return the label whose word an answer is, to the letter; else None."""
        words = label_words(sample.labels, self.verbalizer)
        return dict(zip(words, sample.labels.names, strict=True)).get(text)
