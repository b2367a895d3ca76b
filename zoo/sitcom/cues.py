"""Cues that are numbers: what a face or a voice shows of an emotion, with an exact likelihood.

A cue model is a finite mixture: the label decides which emotion is *shown* (its own; none, a poker face or a flat
voice; or another one, a mask), the shown emotion is a direction in the space of the parameters, it is shown at one of a
few intensities, and normal noise is added. The density of the parameters given the label is therefore a finite sum of
normal densities; nothing is integrated numerically or estimated.

`faces` and `voices` draw what the parameters say. Everything else in a picture or a waveform (who speaks, light,
background, words per breath) does not depend on the label, so the posterior given the parameters is the best that any
classifier of the clip can do. Source: ours.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

LABELS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
DISGUISE = {  # true label -> labels that a misleading cue shows
    "neutral": ("joy", "surprise", "sadness", "anger"),
    "surprise": ("neutral", "joy", "anger"),
    "fear": ("neutral", "joy", "anger"),
    "sadness": ("neutral", "joy"),
    "joy": ("anger", "disgust", "sadness", "surprise"),
    "disgust": ("joy", "neutral"),
    "anger": ("joy", "surprise", "neutral"),
}

CueState = Literal["clear", "faint", "absent", "misleading"]


@dataclass(frozen=True)
class CueModel:
    """Odds of a few real-valued parameters given the label.

    Attributes:
        labels: label words, in index order.
        names: names of the D parameters; 0 is the rest position, about 1 the full expression.
        directions: label -> its D parameters at full intensity; those of ``neutral`` are 0.
        noise: standard deviation of each parameter, (D,).
        absent: how often a label other than neutral shows nothing, 0..1.
        misleading: how often another label is shown, 0..1; with ``absent`` at most 1.
        masks: label -> the labels it is masked as, equally likely.
        intensities: strengths at which a shown emotion is shown, equally likely; neutral has none.
        faint: intensities below this are called faint.
    """

    labels: tuple[str, ...]
    names: tuple[str, ...]
    directions: Mapping[str, Sequence[float]]
    noise: Sequence[float]
    absent: float
    misleading: float
    masks: Mapping[str, Sequence[str]]
    intensities: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    faint: float = 0.5

    def sample(self, rng: random.Random, label: str) -> tuple[CueState, str, tuple[float, ...]]:
        """Draw (state, label shown, the D parameters). Takes the same number of draws for every label."""
        state_draw, mask_draw, strength = rng.random(), rng.random(), rng.random()
        noise = [rng.gauss(0.0, 1.0) * sd for sd in self.noise]
        intensity = self.intensities[int(strength * len(self.intensities))]
        state: CueState = "faint" if intensity < self.faint else "clear"
        shown_label = label
        if state_draw < self.misleading:
            masks = self.masks[label]
            state, shown_label = "misleading", masks[int(mask_draw * len(masks))]
        elif label != "neutral" and state_draw < self.misleading + self.absent:
            state, shown_label = "absent", "neutral"
        elif label == "neutral":
            state = "clear"
        direction = self.directions[shown_label]
        return state, shown_label, tuple(intensity * d + e for d, e in zip(direction, noise, strict=True))

    def likelihood(self, values: Sequence[float]) -> np.ndarray:
        """Return p(values | label) up to one factor that is the same for all labels, (L,).

        At least one entry is positive.
        """
        centres = np.multiply.outer(np.array(self.intensities), self._directions)  # (I, L, D)
        log_p = -0.5 * (((np.asarray(values) - centres) / np.asarray(self.noise)) ** 2).sum(-1)  # (I, L)
        log_p -= log_p.max()
        return self.shown @ np.exp(log_p).mean(0)

    @cached_property
    def shown(self) -> np.ndarray:
        """Return P(label shown | label), (L, L); rows sum to 1."""
        odds = np.zeros((len(self.labels),) * 2)
        for i, label in enumerate(self.labels):
            for mask in self.masks[label]:
                odds[i, self.labels.index(mask)] += self.misleading / len(self.masks[label])
            absent = self.absent if label != "neutral" else 0.0
            odds[i, self.labels.index("neutral")] += absent
            odds[i, i] += 1 - self.misleading - absent
        return odds

    @cached_property
    def _directions(self) -> np.ndarray:
        return np.array([self.directions[label] for label in self.labels])

    def __post_init__(self) -> None:
        if min(self.absent, self.misleading) < 0 or self.absent + self.misleading > 1:
            got = f"{self.absent} and {self.misleading}"
            raise ValueError(f"absent and misleading are shares of together at most 1, got {got}")
        for label in self.labels:
            if len(self.directions[label]) != len(self.names) or label in self.masks[label]:
                raise ValueError(f"{label} needs {len(self.names)} parameters and no mask of its own")
        if len(self.noise) != len(self.names) or not all(math.isfinite(sd) and sd > 0 for sd in self.noise):
            raise ValueError(f"noise needs {len(self.names)} positive standard deviations, got {self.noise}")
