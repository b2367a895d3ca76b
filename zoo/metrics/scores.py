"""Scores of one confusion matrix, and the counting of predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from zoo.schema import UNPARSED, Labels

HEADLINE = ("accuracy", "weighted_f1", "macro_f1", "uar")
Row = Mapping[str, Any]  # a row of predictions.jsonl, see zoo.schema.Prediction


def scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the metrics of one confusion matrix, or of a stack of them.

    Args:
        confusion: counts (..., C, C + 1), last column = unparsed; at least one sample in each matrix.

    Returns:
        accuracy, weighted_f1, macro_f1, uar, unparsed of shape (...) and f1, recall, support of shape (..., C).
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    right = np.diagonal(confusion, axis1=-2, axis2=-1)  # (..., C); the unparsed column is off the diagonal
    support = confusion.sum(-1)  # (..., C)
    answered = confusion[..., :-1].sum(-2)  # (..., C)
    n = support.sum(-1)
    occurs = support + answered > 0
    f1 = np.divide(2 * right, support + answered, out=np.zeros_like(right), where=occurs)
    recall = np.divide(right, support, out=np.zeros_like(right), where=support > 0)
    return {
        "accuracy": right.sum(-1) / n,
        "weighted_f1": (f1 * support).sum(-1) / n,
        "macro_f1": f1.sum(-1) / occurs.sum(-1),  # F1 is 0 where the class does not occur
        "uar": recall.sum(-1) / (support > 0).sum(-1),
        "unparsed": confusion[..., -1].sum(-1) / n,
        "f1": f1,
        "recall": recall,
        "support": support,
    }


class EmotionMetrics(MulticlassConfusionMatrix):
    """The metrics of one corpus over an epoch; being a torchmetrics metric, it sums over processes before it computes.

    Args:
        labels: label set of the corpus.
    """

    def __init__(self, labels: Labels) -> None:
        super().__init__(num_classes=len(labels) + 1, validate_args=False)  # + 1: unparsed; checked in update instead
        self.labels = labels

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            predicted: (B,) integer label indices, -1 = unparsed.
            target: (B,) integer label indices.

        Raises:
            ValueError: shapes differ, not integers, or an index out of range.
        """
        classes = len(self.labels)
        if predicted.shape != target.shape or predicted.ndim != 1:
            shapes = f"{tuple(predicted.shape)} and {tuple(target.shape)}"
            raise ValueError(f"expected predicted and target of one shape (B,), got {shapes}")
        for name, values, lowest in (("predicted", predicted, UNPARSED), ("target", target, 0)):
            if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
                raise ValueError(f"{name} must hold integer label indices, got {values.dtype}")
            wrong = values[(values < lowest) | (values >= classes)]
            if len(wrong):
                expected = f"{lowest}..{classes - 1} for {self.labels.corpus}"
                raise ValueError(f"{name} must lie in {expected}, got {wrong[0].item()}")
        if len(target):
            super().update(torch.where(predicted == UNPARSED, classes, predicted), target)

    def compute(self) -> dict[str, float]:  # type: ignore[override]  # more than the matrix that is counted
        """Return accuracy, weighted_f1, macro_f1, uar, unparsed, and f1/<label>, recall/<label> for every label.

        Raises:
            ValueError: nothing was counted.
        """
        confusion = super().compute()[:-1].cpu().numpy()  # (C, C + 1): no sample has the truth "unparsed"
        if not confusion.any():
            raise ValueError("no metrics without samples: compute() was called before any update()")
        result = scores(confusion)
        per_class = {
            f"{metric}/{name}": float(value)
            for metric in ("f1", "recall")
            for name, value in zip(self.labels.names, result[metric], strict=True)
        }
        return {metric: float(result[metric]) for metric in (*HEADLINE, "unparsed")} | per_class


def war_uar(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Return WAR and UAR, as corpora of faces (DFEW) report them, from what `evaluate` returned.

    Both are over the classes of the truth. A published UAR of exactly half the WAR is the recall of "right or wrong"
    with "wrong" as a class that never occurs, and no UAR.
    """
    return {"war": evaluation["accuracy"], "uar": evaluation["uar"]}


# ---- counting
def count_per_dialogue(rows: Sequence[Row], labels: Labels) -> np.ndarray:
    """Count (D, C, C + 1) per dialogue, dialogues sorted by name, so that the order of rows never matters."""
    if not rows:
        raise ValueError("no metrics without samples: expected at least one prediction row, got none")
    unlabelled = [row["id"] for row in rows if row.get("label") is None]
    if unlabelled:
        raise ValueError(f"{len(unlabelled)} of {len(rows)} rows have no label to score against: first {unlabelled[0]}")
    repeated = len(rows) - len({row["id"] for row in rows})
    if repeated:
        raise ValueError(f"{repeated} of {len(rows)} rows repeat the id of another row; expected one row per sample")
    truth = {name: i for i, name in enumerate(labels.names)}
    answer = truth | {None: len(labels)}
    dialogue = {name: i for i, name in enumerate(sorted({row["dialogue"] for row in rows}))}
    counts = np.zeros((len(dialogue), len(labels), len(labels) + 1), dtype=np.int64)
    for row in rows:
        for word, indices in ((row["label"], truth), (row["predicted"], answer)):
            if word not in indices:
                raise ValueError(
                    f"row {row['id']} holds {word!r}, which is no label of {labels.corpus}; "
                    f"expected one of {', '.join(labels.names)}, or null for an unreadable answer"
                )
        counts[dialogue[row["dialogue"]], truth[row["label"]], answer[row["predicted"]]] += 1
    return counts


def count_runs(runs: Sequence[Sequence[Row]], labels: Labels) -> np.ndarray:
    """Count (S, D, C, C + 1) for S sets of predictions, which must be of the same samples."""
    first = {row["id"]: row for row in runs[0]}
    for number, rows in enumerate(runs[1:], start=2):
        ids = {row["id"] for row in rows}
        if ids != first.keys():
            raise ValueError(
                f"predictions 1 and {number} are not of the same samples: {len(first.keys() - ids)} ids only in 1, "
                f"{len(ids - first.keys())} only in {number}"
            )
        for key in ("label", "dialogue"):
            differ = [row["id"] for row in rows if row[key] != first[row["id"]][key]]
            if differ:
                which = f"{len(differ)} of {len(rows)} samples, first {differ[0]}"
                raise ValueError(f"predictions 1 and {number} differ in the {key} of {which}")
    return np.stack([count_per_dialogue(rows, labels) for rows in runs])


def check_metric(metric: str) -> str:
    """Return the name of a metric. ValueError for an unknown one."""
    if metric not in (*HEADLINE, "unparsed"):
        raise ValueError(f"unknown metric {metric!r}; expected one of {', '.join((*HEADLINE, 'unparsed'))}")
    return metric
