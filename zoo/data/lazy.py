"""What the order of an epoch needs to know of all samples: of lazy ones without making them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zoo.schema import Collator, LazySamples, Sample


def lengths(samples: Sequence[Sample], collator: Collator) -> np.ndarray:
    """Return how long each sample is, (N,); by the collator, or as the data knows it of samples that are not made."""
    if isinstance(samples, LazySamples):
        return samples.lengths()
    return np.array([collator.length(s) for s in samples])


def dialogue_numbers(samples: Sequence[Sample]) -> np.ndarray:
    """Return the number of each sample's dialogue, (N,) int64, in the order in which dialogues come."""
    if isinstance(samples, LazySamples):
        return samples.dialogue_numbers()
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(s.dialogue, len(numbers)) for s in samples], dtype=np.int64)


def select(samples: Sequence[Sample], numbers: np.ndarray) -> Sequence[Sample]:
    """Return some of the samples, in this order; lazy ones stay so."""
    return samples.select(numbers) if isinstance(samples, LazySamples) else [samples[i] for i in numbers]
