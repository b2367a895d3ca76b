"""MERIT's distances between emotions, votes and rewards, and what is watched where labels are unknown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from zoo.rl import Answer
from zoo.schema import Labels

# Degrees on Plutchik's wheel (2001); what it lacks is placed between its neighbours (ours). None: the centre.
WHEEL: dict[str, float | None] = {
    "joy": 0.0,
    "trust": 45.0,
    "fear": 90.0,
    "surprise": 135.0,
    "sadness": 180.0,
    "disgust": 225.0,
    "anger": 270.0,
    "anticipation": 315.0,
    "happy": 0.0,
    "happiness": 0.0,
    "amusement": 0.0,
    "joyful": 0.0,
    "content": 0.0,
    "contentment": 0.0,
    "awe": 112.5,
    "scared": 90.0,
    "fearful": 90.0,
    "worried": 90.0,
    "sad": 180.0,
    "mad": 270.0,
    "angry": 270.0,
    "frustrated": 247.5,
    "frustration": 247.5,
    "excited": 337.5,
    "excitement": 337.5,
    "powerful": 337.5,
    "peaceful": 22.5,
    "surprised": 135.0,
    "disgusted": 225.0,
    "neutral": None,
}


class AdaptedCorpus(Protocol):
    """What an adaptation knows of its corpus beyond `CorpusView`: `zoo.data.Adaptation`."""

    @property
    def labelled(self) -> bool: ...

    def truth(self, sample_id: str) -> int | None: ...


# ------------------------------------------------------------------------------------------------------------ distances
def plutchik(labels: Labels, neutral: float = 0.5, angles: Mapping[str, float | None] | None = None) -> Tensor:
    """Return W from Plutchik's wheel: angle between two emotions over 180 degrees.

    Args:
        neutral: distance of the centre to everything on the wheel.
        angles: degrees (None: the centre) of labels that `WHEEL` lacks or has elsewhere.

    Returns:
        (C, C) float32 in [0, 1], symmetric, zero diagonal.

    Raises:
        ValueError: a label without a place.
    """
    degrees = WHEEL | dict(angles or {})
    missing = [name for name in labels.names if name not in degrees]
    if missing:
        raise ValueError(
            f"Plutchik's wheel has no place for {', '.join(missing)} of {labels.corpus}; give degrees (joy 0, fear 90, "
            f"sadness 180, anger 270; null: the centre) with --model.angles '{{{missing[0]}: ...}}', or take "
            "--model.distance lm"
        )
    w = torch.zeros(len(labels), len(labels))
    for i, a in enumerate(labels.names):
        for j, b in enumerate(labels.names):
            if i == j:
                continue
            one, other = degrees[a], degrees[b]
            if (one is None) != (other is None):
                w[i, j] = neutral
            elif one is not None and other is not None:
                turn = abs(one - other) % 360
                w[i, j] = min(turn, 360 - turn) / 180
    return w


def cosine_distances(vectors: Tensor) -> Tensor:
    """Return W from label embeddings (C, D): 1 - cosine, at least 0, over its largest. (C, C) float32.

    Raises:
        ValueError: all labels have the same embedding.
    """
    unit = torch.nn.functional.normalize(vectors.float(), dim=1)
    w = (1 - unit @ unit.T).clamp(min=0)
    w = (w + w.T) / 2
    w.fill_diagonal_(0.0)
    if not float(w.max()) > 1e-6:
        raise ValueError("all labels have the same embedding: no distances; take --model.distance plutchik")
    return w / w.max()


# ---------------------------------------------------------------------------------------------------- votes and rewards
def majority(votes: Sequence[int | None], weights: Sequence[float] | None = None) -> int | None:
    """Return the label with the most votes, of several the first one; None if there are no votes.

    Unreadable answers (None) do not vote.

    Args:
        weights: of each label; None: all 1.
    """
    count: dict[int, float] = {}
    for vote in votes:
        if vote is not None:
            count[vote] = count.get(vote, 0.0) + (1.0 if weights is None else weights[vote])
    best = max(count.values(), default=0.0)
    return next((label for label, n in count.items() if isclose(n, best)), None)  # a dict keeps the order of arrival


def vote_reward(votes: Sequence[int | None], winner: int | None, w: Tensor, alpha: float | None) -> list[float]:
    """Return R = 1 / (1 + alpha W[vote, winner]) of each answer (Sec. 3.4.1).

    With alpha None it is 1 for the winner and else 0. Unreadable answers get 0, and so do all if there were no votes.
    """
    if winner is None:
        return [0.0] * len(votes)
    if alpha is None:
        return [float(v == winner) for v in votes]
    return [0.0 if v is None else 1.0 / (1.0 + alpha * float(w[v, winner])) for v in votes]


# ---------------------------------------------------------------------------------------------------------- consistency
def self_consistency(votes: Sequence[int | None], w: Tensor) -> float:
    """Return 1 - mean distance between two of the answers, W over its largest.

    That is one minus the unbiased estimate of Rao's quadratic entropy (1982). An unreadable answer is at distance 1
    from every other. Needs two answers.
    """
    scaled = w / w.max()
    n = len(votes)
    pairs = [
        1.0 if (a is None or b is None) else float(scaled[a, b])
        for i, a in enumerate(votes)
        for j, b in enumerate(votes)
        if i != j
    ]
    return 1 - sum(pairs) / (n * (n - 1))


def gold_consistency(predicted: Sequence[int | None], gold: Sequence[int], w: Tensor) -> float:
    """Return 1 - mean distance between answer and truth, W over its largest.

    That is the part of Cohen's weighted kappa (1968) that is not corrected for chance. An unreadable answer is at
    distance 1.
    """
    scaled = w / w.max()
    return 1 - float(np.mean([1.0 if p is None else float(scaled[p, g]) for p, g in zip(predicted, gold, strict=True)]))


# ------------------------------------------------------------------------------------------------- what needs no labels
@dataclass(frozen=True)
class AnswerStatistics:
    """Statistics of a model's answers to unlabelled samples.

    Attributes:
        entropy: mean of each answer distribution's, in nats.
        confidence: mean of its largest probability.
        shares: (C,) of the samples each label is given to.
        mean: (C,) mean probability of each label.
        information: entropy of the mean distribution minus `entropy`, in nats: high if answers are sure and varied.
    """

    entropy: float
    confidence: float
    shares: tuple[float, ...]
    mean: tuple[float, ...]
    information: float

    @classmethod
    def from_sums(cls, sums: Tensor) -> AnswerStatistics:
        """Return the statistics whose `statistics_sums` over all samples these are."""
        n, entropy, confidence = sums[:3].tolist()
        shares, mean = (sums[3:] / n).chunk(2)
        spread = float(-(mean * mean.clamp(min=1e-12).log()).sum())
        return cls(entropy / n, confidence / n, tuple(shares.tolist()), tuple(mean.tolist()), spread - entropy / n)

    def drift(self, start: AnswerStatistics) -> float:
        """Return the total variation distance between the shares of labels here and at the start, in [0, 1]."""
        return sum(abs(a - b) for a, b in zip(self.shares, start.shares, strict=True)) / 2


def statistics_sums(p: Tensor) -> Tensor:
    """Return the sums that `AnswerStatistics` is made of, (3 + 2C,); those of parts of the samples add up.

    n, sums of entropy and confidence, times each label was the answer, sum of distributions.

    Args:
        p: (N, C) answer distributions.
    """
    p = p.double()
    entropy = -(p * p.clamp(min=1e-12).log()).sum(1)
    answers = torch.nn.functional.one_hot(p.argmax(1), p.shape[1]).sum(0).double()
    n = torch.tensor([len(p)], dtype=torch.float64)
    return torch.cat([n, entropy.sum()[None], p.amax(1).sum()[None], answers, p.sum(0)])


@dataclass(frozen=True)
class Guard:
    """Limits beyond which an adaptation without labels counts as collapsed (ours).

    It is then taken back to the last check within them, and ends. A model that names few labels moves their shares;
    one that is sure of everything loses entropy; one that does both loses information.

    Args:
        drift: largest total variation distance between the shares of labels now and before adaptation.
        entropy: least mean entropy of an answer, as a share of that before adaptation.
        information: largest fall of `AnswerStatistics.information` below its maximum so far, in nats.
    """

    drift: float = 0.1
    entropy: float = 0.65
    information: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.drift <= 1 or not 0 <= self.entropy < 1 or self.information < 0:
            raise ValueError(
                "need 0 < drift <= 1, 0 <= entropy < 1 and information >= 0, got "
                f"{self.drift}, {self.entropy} and {self.information}"
            )

    def violation(self, now: AnswerStatistics, start: AnswerStatistics, most_information: float) -> str | None:
        """Return which limit is exceeded, in words; None if none is.

        Args:
            most_information: the largest of any check so far.
        """
        drift, left = now.drift(start), now.entropy / max(start.entropy, 1e-9)
        fall = most_information - now.information
        if drift > self.drift:
            return f"the shares of the labels moved by {drift:.2f}, more than {self.drift:g}"
        if left < self.entropy:
            return f"the answers' entropy fell to {left:.2f} of its start, below {self.entropy:g}"
        if fall > self.information:
            return f"the answers' information fell {fall:.3f} nats below its maximum, more than {self.information:g}"
        return None


def vote_agreement(groups: Sequence[Sequence[int | None]], winners: Sequence[int | None]) -> dict[str, float]:
    """Return how far answers agree.

    ``majority_ratio`` (votes for the winner over all answers), ``unparsed``, and ``top_share``: how often the most
    frequent winner wins.
    """
    ratio = [sum(v == w for v in g) / len(g) if w is not None else 0.0 for g, w in zip(groups, winners, strict=True)]
    wins = Counter(w for w in winners if w is not None)
    return {
        "majority_ratio": float(np.mean(ratio)),
        "unparsed": float(np.mean([v is None for g in groups for v in g])),
        "top_share": max(wins.values(), default=0) / len(winners),
    }


def vote_accuracy(
    groups: Sequence[Sequence[int | None]], winners: Sequence[int | None], truth: Sequence[int]
) -> dict[str, float]:
    """Return what takes labels to know.

    ``label_accuracy`` (the vote is right), ``reward_accuracy`` (an answer is rewarded in full exactly if it is right)
    and ``pass@k`` (some answer is right).
    """
    known = zip(groups, winners, truth, strict=True)
    rewarded = [(v is not None and v == w) == (v == t) for g, w, t in known for v in g]
    return {
        "label_accuracy": float(np.mean([w == t for w, t in zip(winners, truth, strict=True)])),
        "reward_accuracy": float(np.mean(rewarded)),
        "pass@k": float(np.mean([t in g for g, t in zip(groups, truth, strict=True)])),
    }


@dataclass(frozen=True)
class LabelOnly:
    """A reward for form: 1 for an answer that ended in time and is a label word and nothing else, else 0.

    Args:
        words: label -> word the answer is to use, where it differs.
    """

    words: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, answer: Answer) -> float:
        words = {self.words.get(name, name).lower() for name in answer.sample.labels.names}
        return float(answer.finished and answer.text.strip().lower() in words)
