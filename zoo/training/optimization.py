"""Learning-rate schedules and class weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
from torch import Tensor

Schedule = Literal["cosine", "linear", "constant"]


def parameter_groups(parameters: Iterable[Tensor], weight_decay: float) -> list[dict[str, object]]:
    """Return the optimizer's groups of parameters: matrices decay, vectors do not."""
    trained = list(parameters)
    groups: list[dict[str, object]] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def learning_rate_factor(kind: Schedule, warmup: float, total: float) -> Callable[[int], float]:
    """Return the function from a step to the factor on the peak learning rate: a linear rise, then down to 0.

    It is a function, not an object: a scheduler would store an object's fields in the checkpoint, and a resumed run
    would get back the length of the run before.

    Args:
        kind: what follows the rise; ``constant`` stays at 1.
        warmup: steps of the rise.
        total: steps of the run; the factor is 0 at the last one.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup if warmup >= 1 else 1.0
        if kind == "constant":
            return 1.0
        done = min(1.0, (step - warmup) / max(1.0, total - warmup))
        return 1 - done if kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))

    return factor


def class_weights(labels: Sequence[int], classes: int, power: float) -> list[float]:
    """Return n^-power for every class of n samples, scaled so that the mean over samples is 1.

    Args:
        labels: label index of each sample; negative ones do not count.
        classes: number of classes; one that never occurs gets the largest weight.
        power: 0 gives equal weights, 1 balances the classes fully.
    """
    counts = np.bincount([x for x in labels if x >= 0], minlength=classes).astype(float)
    weights = np.maximum(counts, 1.0) ** -power
    return [float(weight) for weight in weights * counts.sum() / (weights * counts).sum()]
