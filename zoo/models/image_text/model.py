"""An image-text model of transformers that is asked about the frames of a clip, as it is or with LoRA.

Not a paper: the baseline beside which the papers print their own systems (Qwen2-VL, LLaVA, InternVL, ...), and the way
to fine-tune such a model on any corpus with clips or pictures. Every model that transformers lists under
AutoModelForImageTextToText is read with its own processor and chat format (`zoo.backbones.image_text`); code of a model
folder is never run.

The frames are pictures of one message, the oldest first, and the words follow. The label is the most probable of the
label words behind that question, or what the model writes.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import UndefinedError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from zoo.backbones import LoRA
from zoo.backbones.hub import Attention, Dtype
from zoo.backbones.image_text import ImageTextModel, Inputs
from zoo.media import MAX_SECONDS, Media
from zoo.models.image_text.collator import QuestionBatch, QuestionCollator
from zoo.prompts import label_words, load_template, parse_label
from zoo.schema import Labels, Prediction, Sample
from zoo.training.batch import SampleBatch
from zoo.training.checkpointing import Backbone
from zoo.training.evaluation import ordered_parts, score_predictions
from zoo.training.given_features import is_given
from zoo.training.module import EmotionModule
from zoo.training.prompting import parts_shown, report_control_tokens, require_descriptions

log = logging.getLogger(__name__)


class ImageText(EmotionModule):
    """An image-text model that answers with a label word, trained by cross-entropy on that word and the end token.

    ``zoo test --zero_shot=true`` asks it as it is. In training and evaluation samples are computed one by one: a batch
    is only what one step learns from, and its size never changes an answer.

    Args:
        vlm: folder, hub id or ``shape:tiny-qwen2.5-vl`` of the image-text model.
        dtype: dtype of its weights.
        revision: hub revision to pin.
        attention: ``sdpa``, ``eager`` or ``flash_attention_2``, which needs the package flash-attn.
        gradient_checkpointing: recompute activations in the backward pass.
        lora: adapters on the frozen model, whose ``targets`` are whole names of its layers, vision tower included; None
            trains all of it, or what `train` names.
        template: ``default``, which asks and names the labels, ``short``, or a file.
        window: earlier turns shown.
        descriptions: kinds of description shown, e.g. ``[video]``; the corpus must provide them.
        verbalizer: label -> word the model says, where it differs.
        show_text: whether the utterance's words are shown.
        frames: pictures of a clip, evenly spaced; of a picture there is one. 0: words alone.
        side: their shorter side in pixels; the model's processor makes its own size of it.
        decode: ``score`` compares the log-probabilities of the label words, ``greedy`` writes and reads.
        max_new_tokens: of written answers.
        max_length: longest question in tokens, pictures included; longer ones lose old turns, then words; counted.
        system_prompt: system message of the chat; None: what the chat format has by itself.
        cache: folder of decoded clips (see `zoo.media.Media`); None decodes at every visit.
        timeout: seconds one clip may take to decode.
        max_clip_seconds: a longer clip or film is not read, and counted.
    """

    answers_questions = True
    templates = Path(__file__).parent / "templates"
    template_variables: Mapping[str, Any] = {"pictures": 0, "question": ""}
    vlm: ImageTextModel

    def __init__(
        self,
        *,
        vlm: str,
        dtype: Dtype = "float32",
        revision: str | None = None,
        attention: Attention = "sdpa",
        gradient_checkpointing: bool = False,
        lora: LoRA | None = None,
        template: str = "default",
        window: int | None = 0,
        descriptions: list[str] | None = None,
        verbalizer: dict[str, str] | None = None,
        show_text: bool = True,
        frames: int = 4,
        side: int = 336,
        decode: Literal["score", "greedy"] = "score",
        max_new_tokens: int = 16,
        max_length: int = 4096,
        system_prompt: str | None = None,
        cache: Path | None = None,
        timeout: float = 30.0,
        max_clip_seconds: float = MAX_SECONDS,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (window or 0) < 0 or frames < 0 or min(side, max_new_tokens, max_length) < 1:
            raise ValueError(
                "need window and frames >= 0, side, max_new_tokens and max_length >= 1; got "
                f"{window}, {frames}, {side}, {max_new_tokens} and {max_length}"
            )
        if not (frames or show_text or descriptions):
            raise ValueError("frames is 0, show_text false and descriptions empty: nothing would be shown; give one")
        if is_given(vlm):
            raise ValueError(f"--model.vlm {vlm} names features; an image-text model reads pictures: give its folder")
        self.make_vlm = functools.partial(
            ImageTextModel,
            vlm,
            dtype=dtype,
            revision=revision,
            attention=attention,
            gradient_checkpointing=gradient_checkpointing,
        )
        self.lora, self.template = lora, load_template(template, self.templates)
        self.window, self.descriptions, self.verbalizer = window, tuple(descriptions or ()), verbalizer
        self.show_text, self.frames, self.side = show_text, frames, side
        self.decode, self.max_new_tokens, self.max_length = decode, max_new_tokens, max_length
        self.system_prompt = system_prompt
        self.media = Media(Path(cache) if cache else None, timeout, max_clip_seconds)

    # ---- parts
    def build(self) -> None:
        """Read the model."""
        self.vlm = self.make_vlm()

    def add_adapters(self) -> None:
        """Put the adapters on it."""
        if self.lora is not None:
            self.vlm.add_lora(self.lora)

    def backbones(self) -> Mapping[str, Backbone]:
        """Return the model: checkpoints leave out what of it never changes."""
        return {"vlm": self.vlm}

    def divisible_parts(self) -> list[tuple[nn.Module, Sequence[nn.Module]]]:
        """Refuse to divide the weights: processes would make different numbers of passes through them."""
        raise ValueError(
            "the weights of an image-text model are not divided over processes; use --trainer.strategy ddp"
        )

    # ---- input
    @property
    def reads(self) -> tuple[str, ...]:
        """What the question shows, and faces."""
        parts = set(parts_shown(self.template, self.window, self.descriptions, self.template_variables))
        return ordered_parts((parts - (set() if self.show_text else {"text"})) | ({"face"} if self.frames else set()))

    @property
    def unreadable_events(self) -> tuple[str, ...]:
        """What is counted where no clip could be read."""
        return ("samples without a readable clip",) if self.frames else ()

    def required_files(self, stage: str) -> Mapping[str, str]:
        """Return that clips or pictures are read."""
        return {"video": "ask about words alone: --model.frames 0"} if self.frames else {}

    def has_input(self, sample: Sample) -> bool:
        """Return whether a question says anything about its sample."""
        words = bool(self.show_text and sample.target.text)
        described = bool(set(self.descriptions) & set(sample.target.descriptions))
        return (
            words or described or sample.question is not None or bool(self.frames and sample.target.video is not None)
        )

    def collator(self, training: bool) -> QuestionCollator:
        """Return what writes samples as questions, in training with their answers."""
        return QuestionCollator(
            chat=self.vlm.chat,
            template=self.template,
            media=self.media,
            window=self.window,
            descriptions=self.descriptions,
            verbalizer=self.verbalizer,
            show_text=self.show_text,
            frames=self.frames,
            side=self.side,
            max_length=self.max_length,
            system_prompt=self.system_prompt,
            training=training,
        )

    def setup(self, stage: str) -> None:
        """Check template, label words and control tokens, beside what every system checks."""
        super().setup(stage)
        try:
            _ = self.reads  # renders the template
        except UndefinedError as error:
            raise ValueError(
                f"the prompt template uses a variable that is not known: {error}; there are labels, target, history, "
                "pictures and question"
            ) from error
        for labels in self.data.label_sets.values():
            label_words(labels, self.verbalizer)  # two labels with one word: say so before any work
        report_control_tokens(self.data, self.data.splits_of(stage)[0])

    def check_split(self, samples: Sequence[Sample], split: str, stage: str) -> None:
        """Check that questions differ, that what they ask can be answered, and that every description occurs."""
        super().check_split(samples, split, stage)
        free = next(
            (s.id for s in samples if s.answer is not None and (stage in ("fit", "validate") or s.history)), None
        )
        if free is not None:
            raise ValueError(
                f"{free} is a turn of a conversation or an answer to be learnt; ImageText learns label words, and "
                "writes answers to single questions in a test. Emotion-Qwen takes such samples, with a "
                "whole Qwen2.5-VL, too (--model.projector merger)"
            )
        if not any(self.has_input(s) for s in samples):
            raise ValueError(f"no {split} sample has anything that is shown, so every question is the same")
        require_descriptions(samples, self.descriptions, split)

    # ---- training
    def training_step(self, batch: QuestionBatch, batch_idx: int) -> Tensor:
        """Return the mean of -log p over the answer tokens of a batch."""
        losses = [
            cross_entropy(self.vlm.answer_logits(inputs, answer), answer, reduction="none")
            for inputs, answer in zip(batch["inputs"], batch["answers"], strict=True)
            if len(answer)
        ]
        loss = torch.cat(losses).mean() if losses else torch.zeros((), device=self.device)
        self.check_finite(loss, batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["samples"]))
        return loss

    # ---- answers
    def candidates(self, labels: Labels) -> list[list[int]]:
        """Return the tokens of each label word as an answer."""
        return [self.vlm.chat.answer_ids(word) for word in label_words(labels, self.verbalizer)]

    @torch.no_grad()
    def predict(self, batch: QuestionBatch) -> list[Prediction]:
        """Return the answers to a batch, and count what it lacked."""
        self.events["samples without a readable clip"] += batch["no_clip"]
        self.events["samples with nothing to go by"] += batch["nothing"]
        samples = batch["samples"]
        return [self._answer(s, inputs) for s, inputs in zip(samples, batch["inputs"], strict=True)]

    def _answer(self, sample: Sample, inputs: Inputs) -> Prediction:
        """Return the scored label, or the written answer where `decode` or the sample asks for one."""
        if self.decode == "score" and sample.answer is None:
            scores = self.vlm.score(inputs, self.candidates(sample.labels)).cpu().double().softmax(0).tolist()
            return score_predictions(SampleBatch([sample]), [scores])[0]
        return self._read(sample, self.vlm.write(inputs, self.max_new_tokens))

    def _read(self, sample: Sample, text: str) -> Prediction:
        """Return the prediction that a written answer is; an unreadable one names no label."""
        index = parse_label(text, label_words(sample.labels, self.verbalizer))
        return Prediction.of(sample, None if index is None else sample.labels.names[index], text=text)
