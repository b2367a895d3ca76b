"""The batches that collators make and systems read."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from zoo.backbones import Prefix
from zoo.backbones.row_tree import RowTree
from zoo.schema import Prediction, Problem, Sample
from zoo.training.feature_files import ClipFacts

IGNORE_INDEX = -100  # target id that carries no loss


class SampleBatch:
    """The samples of a batch.

    It is no tuple: Lightning moves and converts batches by rebuilding tuples and dataclasses, and leaves alone what it
    does not know.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = tuple(samples)

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]

    def ids(self) -> list[str]:
        """Return the ids of the samples."""
        return [s.id for s in self]


class Batch(TypedDict):
    """What every batch holds.

    Attributes:
        samples: the B samples.
        truncated: number of prompts that lost something to ``max_length``.
        problems: what of the batch could not be read, or not be shown whole; `zoo.data.batches` adds those of files.
    """

    samples: SampleBatch
    truncated: NotRequired[int]
    problems: NotRequired[Sequence[Problem]]


class PromptBatch(Batch):
    """Prompts of a language model, padded on the left; see `zoo.training.collator.PromptCollator`.

    Attributes:
        input_ids: (B, T) int64.
        mask: (B, T) bool, False on padding.
        target_ids: (B, T) int64, `IGNORE_INDEX` where there is no loss; in training only.
        answer: (B, T) bool, True on answer tokens; in training only.
        positions: (3, B, T) int64, where positions are not counted; see `zoo.backbones.LLM.encode`.
        tree: what the rows begin with in common, where that is used and worth it.
    """

    input_ids: Tensor
    mask: Tensor
    target_ids: NotRequired[Tensor]
    answer: NotRequired[Tensor]
    positions: NotRequired[Tensor]
    tree: NotRequired[RowTree]


class MultimodalBatch(PromptBatch):
    """Prompts with slots for the features of clips; see `zoo.training.multimodal.MultimodalCollator`.

    Attributes:
        slots: (B, T) int64: 1 at the positions of vision tokens, 2 at those of audio tokens, else 0.
        frame_keys: what identifies the clip of each of the M samples with vision, in order.
        frames_known: whether its features stood in a file.
        frame_features: those features, float32, one row per known clip; None if there are none.
        frames: (., F, 3, S, S) uint8 of the other clips; None if there are none.
        frame_facts: what must be kept beside the features of each of the M clips.
        wave_keys, waves_known, wave_features, wave_facts: the same of the K samples with sound.
        waves: (., N) float32 at 16 kHz, zeros after the end, of those whose features are not known; None without any.
        wave_lengths: (.,) int64.
        no_vision, no_audio, nothing, waves_cut: counts, see `MultimodalCollator`.
    """

    slots: Tensor
    frame_keys: tuple[tuple[Hashable, ...], ...]
    frames_known: tuple[bool, ...]
    frame_features: Tensor | None
    frames: Tensor | None
    frame_facts: tuple[ClipFacts, ...]
    wave_keys: tuple[tuple[Hashable, ...], ...]
    waves_known: tuple[bool, ...]
    wave_features: Tensor | None
    waves: Tensor | None
    wave_lengths: Tensor | None
    wave_facts: tuple[ClipFacts, ...]
    no_vision: int
    no_audio: int
    nothing: int
    waves_cut: int


def answer_in_groups(
    prefix: Prefix, samples: SampleBatch, method: Callable[[Sample], Callable[[Prefix, SampleBatch], list[Prediction]]]
) -> list[Prediction]:
    """Answer the samples of a batch by several methods, each for its group; return the answers in order.

    Args:
        method: sample -> what answers it, with all others that it answers.
    """
    groups: dict[Callable[[Prefix, SampleBatch], list[Prediction]], list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault(method(sample), []).append(i)
    if len(groups) == 1:
        return next(iter(groups))(prefix, samples)
    predictions: dict[int, Prediction] = {}
    for answer, rows in groups.items():
        part = prefix.rows(torch.tensor(rows, device=prefix.mask.device))
        predictions |= dict(zip(rows, answer(part, SampleBatch([samples[i] for i in rows])), strict=True))
    return [predictions[i] for i in range(len(samples))]
