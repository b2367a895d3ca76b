"""Calibration of scored answers: what a prompt says about the label words by itself is taken out of their scores.

A language model that was not trained for a task prefers some label words whatever it is asked about. Both ways estimate
that preference, a log-probability b(y) of each label y, from inputs without labels, and answer with

    argmax_y  log p(y | x) - b(y).

- ``content_free`` (contextual calibration; Zhao et al. 2021, *Calibrate before use*, section 5): b(y) is the
  log-probability behind the same prompt about a text that says nothing, the mean of p(y | x) over "N/A", "[MASK]" and
  "". Their W = diag(p_cf)^-1 divides probabilities, which is this difference of logarithms.
- ``batch`` (batch calibration; Zhou et al. 2023): b(y) is the mean of log p(y | x) over unlabelled texts of the task,
  here the whole validation split; of its labels, and of the test split, nothing is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.schema import Sample

CalibrationKind = Literal["none", "content_free", "batch"]
CONTENT_FREE = ("N/A", "[MASK]", "")  # Zhao et al. 2021, section 5: their ensemble of three


@dataclass(frozen=True)
class Preference:
    """What a prompt says about the labels of one corpus by itself.

    Attributes:
        logprobs: b(y) of each label, in the order of the corpus; one number added to all of them changes nothing.
        inputs: from how many inputs it was estimated.
    """

    logprobs: tuple[float, ...]
    inputs: int


def content_free_preference(scores: Tensor) -> Preference:
    """Return b(y) = log mean_i p(y | x_i) over texts without content.

    Args:
        scores: (M, L) log p(y | x_i).
    """
    return Preference(tuple((scores.double().logsumexp(0) - torch.tensor(len(scores)).log()).tolist()), len(scores))


def batch_preference(scores: Tensor) -> Preference:
    """Return b(y) = mean_i log p(y | x_i) over unlabelled texts.

    Args:
        scores: (M, L) log p(y | x_i).
    """
    return Preference(tuple(scores.double().mean(0).tolist()), len(scores))


def stored_preferences(calibration: Any, kind: CalibrationKind, path: object) -> dict[str, Preference]:
    """Return what a contract stores for this kind of calibration; nothing if it stores none, or another kind.

    Raises:
        ValueError: it is not what `to_store` returns.
    """
    try:
        labels = calibration["labels"] if calibration is not None and calibration["kind"] == kind else {}
        preferences = {
            str(c): Preference(tuple(map(float, p["logprobs"])), int(p["inputs"])) for c, p in labels.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} stores a calibration that cannot be read: {calibration!r:.200}") from error
    if not all(math.isfinite(x) for p in preferences.values() for x in p.logprobs):
        raise ValueError(f"{path} stores a calibration that is not finite: {calibration!r:.200}")
    return preferences


def to_store(preferences: Mapping[str, Preference], kind: CalibrationKind) -> dict[str, Any]:
    """Return preferences as plain values."""
    labels = {corpus: {"logprobs": list(p.logprobs), "inputs": p.inputs} for corpus, p in preferences.items()}
    return {"kind": kind, "labels": labels}


def without_content(sample: Sample) -> list[Sample]:
    """Return a sample once for each of `CONTENT_FREE`: nothing of it is left but its corpus and its name."""
    empty: dict[str, Any] = {"speaker": "", "label": None, "descriptions": {}, "video": None, "audio": None}
    bare = replace(sample, history=(), later=(), question=None, answer=None)
    return [replace(bare, target=replace(sample.target, text=text, **empty)) for text in CONTENT_FREE]


def without_label(sample: Sample) -> Sample:
    """Return a sample as somebody knows it who has not labelled it."""
    return replace(sample, target=replace(sample.target, label=None))


def by_corpus(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Return the samples of each corpus, in order."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.labels.corpus, []).append(sample)
    return groups
