"""From samples to the inputs of an image-text model: the frames of the clip as pictures, then the words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.backbones.image_text import Inputs, PictureChat
from zoo.media import Media, Unreadable
from zoo.media.clips import STILL, utterance_frames
from zoo.media.frames import LONGEST
from zoo.prompts import PromptTemplate, escape, label_words, render
from zoo.schema import Sample, Turn
from zoo.training.batch import Batch, SampleBatch


class QuestionBatch(Batch):
    """Questions about pictures, one by one and without padding.

    Attributes:
        inputs: what the model takes of each of the B samples.
        answers: tokens (T,) int64 of each sample's label and the end token, none without a label; in training only.
        no_clip: samples whose clip or picture is missing or unreadable.
        nothing: those of them whose question shows no words or descriptions either.
    """

    inputs: list[Inputs]
    answers: list[Tensor]
    no_clip: int
    nothing: int


@dataclass(kw_only=True)
class QuestionCollator:
    """Write samples as questions about the frames of their clips: a `QuestionBatch`.

    Templates see, beside what `zoo.prompts.render` gives, ``pictures``: how many stand before the words, and
    ``question``: what the sample asks; empty: the emotion.

    Args:
        chat: the model's processor and chat format.
        media: reads the clips.
        window: earlier turns shown; None: all of them.
        descriptions: kinds of description shown.
        verbalizer: label -> word the model says, where it differs.
        show_text: whether the utterance's words are shown.
        frames: pictures of a clip, evenly spaced; 0: none are shown.
        side: their shorter side in pixels.
        max_length: a longer question loses old turns, then the beginning of its words; counted as ``truncated``.
        system_prompt: system message of the chat; None: what the chat format has by itself.
        training: batches hold the answers, too.
    """

    chat: PictureChat
    template: PromptTemplate
    media: Media = field(default_factory=Media)
    window: int | None = 0
    descriptions: tuple[str, ...] = ()
    verbalizer: Mapping[str, str] | None = None
    show_text: bool = True
    frames: int = 4
    side: int = 336
    max_length: int = 4096
    system_prompt: str | None = None
    training: bool = False

    def length(self, sample: Sample) -> int:
        """Return the number of characters that vary between samples; only the order matters."""
        turns = (*sample.context(self.window), sample.target)
        return sum(len(t.text) + sum(len(t.descriptions.get(k, "")) for k in self.descriptions) for t in turns)

    # ---- one sample
    def pictures(self, turn: Turn) -> list[Tensor]:
        """Return the frames of an utterance, uint8 (3, H, W) each; none where there is nothing to be read."""
        if turn.video is None or not self.frames:
            return []
        n = 1 if turn.video.suffix.lower() in STILL else self.frames
        try:
            frames = utterance_frames(self.media, turn, n, side=self.side)
        except Unreadable:  # `media` has listed it
            return []
        height, width = frames.shape[2:]
        if max(height, width) > LONGEST * min(height, width):  # processors refuse it, which would end the run
            self.media.report(turn.video, f"over {LONGEST} times longer than wide; crop it")
            return []
        return list(torch.from_numpy(np.ascontiguousarray(frames)))

    def question(self, sample: Sample, window: int | None, pictures: int) -> str:
        """Return the question about a sample in the model's chat format."""
        text = render(
            self.template,
            sample,
            window=window,
            descriptions=self.descriptions,
            words=label_words(sample.labels, self.verbalizer),
            verbalizer=self.verbalizer,
            variables={"pictures": pictures, "question": escape(sample.question or "")},  # type: ignore[dict-item]  # a number, which a template may compare
        )
        return self.chat.text(text, pictures, self.system_prompt)

    def write(self, sample: Sample, pictures: Sequence[Tensor]) -> tuple[Inputs, bool]:
        """Return the inputs of a sample, and whether anything had to be left out.

        Raises:
            ValueError: the pictures and the question without any words are too long already.
        """
        if not self.show_text:
            sample = replace(sample, target=replace(sample.target, text=""))
        turns = len(sample.history)
        window = turns if self.window is None else min(self.window, turns)
        shortened = False
        while True:
            inputs = self.chat.inputs(self.question(sample, window, len(pictures)), pictures)
            excess = inputs["input_ids"].shape[1] - self.max_length
            if excess <= 0:
                return inputs, shortened
            words = sample.target.text
            if window:
                window -= 1
            elif words:  # a token is a character at least, mostly: what is still too long loses more
                sample = replace(sample, target=replace(sample.target, text=words[excess:].lstrip()))
            else:
                raise ValueError(
                    f"the question about {sample.id} has {excess + self.max_length} tokens without any words, more "
                    f"than --model.max_length {self.max_length}; raise it, or show fewer or smaller pictures "
                    "(--model.frames, --model.side)"
                )
            shortened = True

    def answer(self, sample: Sample) -> Tensor:
        """Return the tokens to be learnt: label word and end token; none without a label."""
        if sample.target.label is None:
            return torch.zeros(0, dtype=torch.int64)
        word = label_words(sample.labels, self.verbalizer)[sample.label]
        return torch.tensor([*self.chat.answer_ids(word), self.chat.tokenizer.eos_token_id])

    # ---- batches
    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> dict[str, Any]:
        """Return the batch of some samples."""
        pictures = [self.pictures(s.target) for s in samples]
        written = [self.write(s, frames) for s, frames in zip(samples, pictures, strict=True)]
        empty = [not frames and not self._says_anything(s) for s, frames in zip(samples, pictures, strict=True)]
        batch = QuestionBatch(
            samples=SampleBatch(samples),
            inputs=[inputs for inputs, _ in written],
            answers=[self.answer(s) for s in samples] if self.training else [],
            no_clip=sum(not frames for frames in pictures) if self.frames else 0,
            nothing=sum(empty),
            truncated=sum(shortened for _, shortened in written),
        )
        return dict(batch)

    def _says_anything(self, sample: Sample) -> bool:
        """Return whether a question shows words or descriptions of its sample."""
        return bool(sample.question or self.show_text and sample.target.text) or any(
            kind in sample.target.descriptions for kind in self.descriptions
        )
