"""Features in files (`zoo.training.given_features`) as the input of a unimodal system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from zoo.media import Media
from zoo.schema import Problem, Sample
from zoo.training.batch import SampleBatch
from zoo.training.given_features import FeatureFolder


@dataclass
class FeatureCollator:
    """Turn samples into vectors that somebody else has computed of their clips.

    ``features`` (B, W) float32, the mean of a sequence (zeros where there are none), ``present`` (B,) bool, ``label``
    (B,) int64 (-1 = unlabelled), ``samples``, ``problems``, and ``cut`` (int), which is 0: no waveform is read.
    """

    folder: FeatureFolder

    @property
    def media(self) -> Media:
        """What reads the clips, where features are found by their bytes."""
        return self.folder.media

    def length(self, sample: Sample) -> int:
        """Return 0: all samples are alike."""
        return 0

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> dict[str, Any]:
        """Return the batch of some samples."""
        problems: list[Problem] = []
        blank = torch.zeros(self.folder.shape[1])
        read = [self.folder.read(s.dialogue, s.target, 1, problems) for s in samples]
        rows = [None if clip is None else clip.features for clip in read]
        return {
            "samples": SampleBatch(samples),
            "features": torch.stack([blank if row is None else row[0] for row in rows]),
            "present": torch.tensor([row is not None for row in rows]),
            "label": torch.tensor([s.label for s in samples]),
            "problems": problems,
            "cut": 0,
        }
