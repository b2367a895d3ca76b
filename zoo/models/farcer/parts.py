"""FARCER's projection, the loss of Eq. 7, and the draw of solved dialogues."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from zoo.schema import Sample


# -------------------------------------------------------------------------------------------------- projection and loss
def make_projection(width: int, to: int, layers: int, dropout: float) -> nn.Sequential:
    """Return a projection (..., width) -> (..., to).

    One linear layer, or before it ``layers`` - 1 of [linear, GELU, dropout] that keep the width; weights then lie at
    0, 3, 6, as in the authors' files.
    """
    inner = [part for _ in range(layers - 1) for part in (nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout))]
    return nn.Sequential(*inner, nn.Linear(width, to))


def balanced_token_weights(answers: Sequence[Sequence[int]], end: int) -> dict[int, float]:
    """Return the weights of answer tokens: N / (K count) over all N tokens of the training answers.

    K of them are different (scikit-learn's "balanced"). The end token weighs half a point more (C).
    """
    counts = Counter(token for answer in answers for token in answer)
    total = sum(counts.values())
    weights = {token: total / (len(counts) * n) for token, n in counts.items()}
    weights[end] += 0.5
    return weights


def weighted_loss(logprobs: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """Return Eq. 7 of each answer, then their mean (P: one answer per step). Rows without tokens do not count.

    Args:
        logprobs: (B, T) log-probability of each label token.
        weight: (B, T) its weight.
        mask: (B, T) whether it is one.
    """
    weight = weight * mask
    total = weight.sum(1)
    labelled = total > 0
    return -((logprobs * weight).sum(1)[labelled] / total[labelled]).mean()


# ----------------------------------------------------------------------------------------------------- solved dialogues
def draw_shots(pool: Sequence[Sample], count: int, seed: int) -> tuple[Sample, ...]:
    """Draw ``count`` solved dialogues in random order, each of another label as long as there are labels.

    A dialogue is taken whole, up to its last labelled utterance; a label that ends none comes from inside one.

    Raises:
        ValueError: the pool has no labelled dialogue, or fewer than ``count``.
    """
    last = {s.dialogue: s for s in pool if s.target.label is not None}  # later ones replace earlier ones
    if len(last) < count:
        raise ValueError(
            f"{count} solved dialogues are wanted, but only {len(last)} labelled ones are there; lower "
            "--model.shots and --model.train_shots, or take them from another split (--model.shots_from)"
        )
    by_label: dict[int, list[Sample]] = {}
    for s in last.values():
        by_label.setdefault(s.label, []).append(s)
    ending = set(by_label)
    for s in pool:
        if s.target.label is not None and s.label not in ending:
            by_label.setdefault(s.label, []).append(s)
    rng = np.random.default_rng(seed)
    chosen: list[Sample] = []
    used: set[str] = set()
    while len(chosen) < count:
        for label in rng.permutation(sorted(by_label)):
            free = [s for s in by_label[label] if s.dialogue not in used]
            if free and len(chosen) < count:
                chosen.append(free[int(rng.integers(len(free)))])
                used.add(chosen[-1].dialogue)
    return tuple(chosen[i] for i in rng.permutation(count))
