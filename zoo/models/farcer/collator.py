"""From samples to FARCER's batches: prompts with image slots, the images, and the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.media import Media
from zoo.models.farcer.pictures import PictureReader
from zoo.models.farcer.writer import SLOT, PromptWriter
from zoo.schema import Sample, Turn
from zoo.training.batch import SampleBatch


class WrittenPrompt(NamedTuple):
    """A prompt as token ids.

    Attributes:
        fixed: ids of the part that other prompts share.
        variable: ids of the sample's own part; None at the positions of images.
        images: keys of the images in it, in order.
        missing: number of pictures that should be there and are not.
        truncated: whether earlier turns were left out.
    """

    fixed: list[int]
    variable: list[int | None]
    images: list[str]
    missing: int
    truncated: bool


@dataclass(kw_only=True)
class FarcerCollator:
    """Turn samples into a batch of

    - ``fixed`` (S,) int64: the beginning shared by all prompts; empty if they differ in it, then it is part of each;
    - ``input_ids`` (B, P) int64, ``mask`` (B, P) bool, left-padded: the rest of each prompt;
    - ``image_at`` (B, P) bool: positions of image vectors, and ``image`` (M,) int64: which image each slot shows, in
      the order of the positions (``tokens_per_picture`` positions per entry);
    - ``frames`` (U, 3, S, S) uint8 and ``keys``: the different images and what identifies them;
    - ``missing``: pictures that should be there and are not (no clip, or unreadable): no slot stands in their place;
    - ``without_picture``: samples whose prompt shows none;
    - ``truncated``: prompts that lost turns to ``max_length``;
    - in training ``answer`` (B, T) int64 and ``answer_mask`` (B, T) bool: label tokens and end token, right-padded;
    - ``samples``.
    """

    writer: PromptWriter
    pictures: PictureReader | None
    pad_id: int
    max_length: int
    training: bool

    @property
    def media(self) -> Media | None:
        """What reads the clips; None if no faces are shown."""
        return None if self.pictures is None else self.pictures.media

    def length(self, sample: Sample) -> int:
        """Return the number of characters that vary between samples; only the order matters."""
        return sum(len(t.text) for t in (*sample.context(self.writer.window), sample.target))

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> dict[str, Any]:
        """Return the batch of some samples."""
        drawn = int(rng.integers(1 << 30)) if self.training else 0
        frames: dict[str, np.ndarray | None] = {}
        prompts = [self._write(sample, self._prompt_number(sample, drawn), frames) for sample in samples]
        number: dict[str, int] = {}  # of each image that is used, by its key
        image = [number.setdefault(key, len(number)) for prompt in prompts for key in prompt.images]
        shared = all(prompt.fixed == prompts[0].fixed for prompt in prompts)
        rows = [prompt.variable if shared else [*prompt.fixed, *prompt.variable] for prompt in prompts]
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self.pad_id)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        image_at = torch.zeros_like(mask)
        for i, row in enumerate(rows):
            start = length - len(row)
            ids[i, start:] = torch.tensor([self.pad_id if x is None else x for x in row])
            image_at[i, start:] = torch.tensor([x is None for x in row])
            mask[i, start:] = True
        batch = {
            "samples": SampleBatch(samples),
            "fixed": torch.tensor(prompts[0].fixed if shared else [], dtype=torch.int64),
            "input_ids": ids,
            "mask": mask,
            "image_at": image_at,
            "image": torch.tensor(image, dtype=torch.int64),
            "keys": tuple(number),
            "frames": torch.from_numpy(np.stack([frames[key] for key in number])) if number else None,
            "missing": sum(prompt.missing for prompt in prompts),
            "without_picture": sum(not prompt.images for prompt in prompts),
            "truncated": sum(prompt.truncated for prompt in prompts),
        }
        return batch | (self._answers(samples) if self.training else {})

    def _prompt_number(self, sample: Sample, drawn: int) -> int:
        """Return the prompt's number: the batch's, or the next one without a dialogue of the sample.

        A solved example from the same dialogue would tell its label.

        Raises:
            ValueError: the sample's dialogue is in all of them.
        """
        prompts = self.writer.shots.get(sample.labels.corpus, ())
        if not self.training or not prompts:
            return 0
        for i in range(len(prompts)):
            number = (drawn + i) % len(prompts)
            if all(shot.dialogue != sample.dialogue for shot in prompts[number]):
                return number
        raise ValueError(
            f"the dialogue of {sample.id} is a solved example in each of the {len(prompts)} prompts; take "
            "them from another split (--model.shots_from dev), or give more dialogues"
        )

    def _write(self, sample: Sample, number: int, frames: dict[str, np.ndarray | None]) -> WrittenPrompt:
        """Write the prompt of a sample, and read the images that are not among ``frames`` yet.

        Raises:
            ValueError: the prompt is too long even without earlier turns.
        """
        window, truncated = self.writer.window, False
        while True:
            turns = (*sample.context(window), sample.target)
            keys = [self._read_picture(turn, sample.dialogue, frames) for turn in turns]
            slots = [SLOT if key else "" for key in keys]
            fixed, variable = self.writer.encode(sample, slots, window, number)
            if len(fixed) + len(variable) <= self.max_length:
                images = [key for key in keys if key]
                missing = len(keys) - len(images) if self.pictures else 0
                return WrittenPrompt(fixed, variable, images, missing, truncated)
            if len(turns) == 1:
                raise ValueError(
                    f"the prompt of {sample.id} has {len(fixed)} + {len(variable)} tokens without any earlier turn, "
                    f"more than --model.max_length {self.max_length}; raise it as far as the model's positions go, or "
                    "show fewer or shorter solved dialogues (--model.shots, --model.train_shots, --model.shot_window)"
                )
            window, truncated = len(turns) - 2, True

    def _read_picture(self, turn: Turn, dialogue: str, frames: dict[str, np.ndarray | None]) -> str | None:
        """Return the key of the picture of a turn, which is read once per batch; None if there is none."""
        chosen = None if self.pictures is None else self.pictures.choose(turn, dialogue)
        if self.pictures is None or chosen is None:
            return None
        key = self.pictures.key(chosen)
        if key not in frames:
            frames[key] = self.pictures.read(chosen)
        return None if frames[key] is None else key

    def _answers(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        answers = []
        for s in samples:
            labelled = s.target.label is not None
            answers.append([*self.writer.answers(s.labels)[s.label], self.writer.end_id(s.labels)] if labelled else [])
        length = max(map(len, answers))
        ids, mask = torch.full((len(samples), length), self.pad_id), torch.zeros(len(samples), length, dtype=torch.bool)
        for i, answer in enumerate(answers):
            ids[i, : len(answer)] = torch.tensor(answer, dtype=torch.int64)
            mask[i, : len(answer)] = True
        return {"answer": ids, "answer_mask": mask}
