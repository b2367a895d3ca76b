"""A face of a frame, what every analyzer of faces answers, and the frames that it is given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")  # DeepFace's and FER2013's
SYNONYMS = {"anger": "angry", "joy": "happy", "happiness": "happy", "sadness": "sad"}
SLACK = 0.01  # probabilities that went through percentages or a text file do not sum to 1 exactly

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Face:
    """One face of one frame.

    Attributes:
        box: (left, top, right, bottom) in pixels; right and bottom are the first column and row outside.
        probabilities: of each of the seven `EMOTIONS`, 0 to 1, together 1.

    Raises:
        ValueError: a box without area, or other probabilities.
    """

    box: Box
    probabilities: Mapping[str, float]

    def __post_init__(self) -> None:
        left, top, right, bottom = self.box
        if not (left < right and top < bottom):
            raise ValueError(f"expected a box (left, top, right, bottom) with an area, got {tuple(self.box)}")
        if set(self.probabilities) != set(EMOTIONS):
            raise ValueError(f"expected probabilities of {', '.join(EMOTIONS)}; got {', '.join(self.probabilities)}")
        values = list(self.probabilities.values())
        if not (all(0 <= p <= 1 + SLACK for p in values) and abs(sum(values) - 1) <= SLACK):
            raise ValueError(f"expected probabilities from 0 to 1 that sum to 1, got {values}")

    @property
    def emotion(self) -> str:
        """The most probable expression; the first in the order of `EMOTIONS` if several are."""
        return max(EMOTIONS, key=self.probabilities.__getitem__)

    @property
    def confidence(self) -> float:
        """Its probability."""
        return self.probabilities[self.emotion]


class FaceAnalyzer(Protocol):
    """An analyzer that finds faces and reads their expressions."""

    def analyse(
        self, frames: Tensor, clip: str | None = None, numbers: Sequence[int] | None = None
    ) -> list[list[Face]]:
        """Return the faces of every frame, boxes clipped to the picture; an empty list for a frame without any.

        Args:
            frames: uint8 (F, 3, H, W), RGB.
            clip: name of the clip, for analyzers that look findings up.
            numbers: the F frames' numbers in that clip; 0 to F - 1 if not given.
        """
        ...


def check_frames(frames: Tensor) -> Tensor:
    """Return the same frames. ValueError unless they are uint8 (F, 3, H, W), none of these 0."""
    if (
        not isinstance(frames, Tensor)
        or frames.dtype != torch.uint8
        or frames.ndim != 4
        or frames.shape[1] != 3
        or 0 in frames.shape
    ):
        got = f"{frames.dtype} {tuple(frames.shape)}" if isinstance(frames, Tensor) else type(frames).__name__
        raise ValueError(f"expected frames as a tensor, uint8 (F, 3, H, W) in RGB; got {got}")
    return frames


def clip_box(box: Sequence[float], height: int, width: int) -> Box | None:
    """Return the pixels a box touches, clipped to the picture; None if it lies outside."""
    left, top = (max(0, math.floor(v)) for v in box[:2])
    right, bottom = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
    return (left, top, right, bottom) if left < right and top < bottom else None
