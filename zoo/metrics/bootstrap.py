"""Evaluation of predictions with bootstrap intervals over dialogues."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from zoo.metrics.scores import HEADLINE, Row, check_metric, count_per_dialogue, count_runs, scores
from zoo.schema import Labels


def evaluate(rows: Sequence[Row], labels: Labels, *, draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Return everything a report says about one set of predictions, JSON-ready.

    Args:
        rows: predictions: ``id``, ``dialogue``, ``label`` (a word) and ``predicted`` (a word, or None = unparsed).
        labels: label set of the corpus.
        draws: bootstrap resamples.
        seed: of the resampling.

    Returns:
        n, dialogues, accuracy, weighted_f1, macro_f1, uar, unparsed; per_class {label: F1}, per_class_recall, support;
        confusion, C rows of C + 1 counts, the last one unparsed; ci95 {metric: [low, high]} of the first four metrics.
        A single dialogue gives intervals of no width.

    Raises:
        ValueError: no rows, a repeated id, a row without label, or a word that is not a label.
    """
    per_dialogue = count_per_dialogue(rows, labels)
    confusion = per_dialogue.sum(0)
    result = scores(confusion)
    drawn = bootstrap(per_dialogue[None], draws, seed)
    return {
        "n": int(confusion.sum()),
        "dialogues": len(per_dialogue),
        **{metric: float(result[metric]) for metric in (*HEADLINE, "unparsed")},
        "per_class": dict(zip(labels.names, result["f1"].tolist(), strict=True)),
        "per_class_recall": dict(zip(labels.names, result["recall"].tolist(), strict=True)),
        "support": dict(zip(labels.names, result["support"].astype(int).tolist(), strict=True)),
        "confusion": confusion.tolist(),
        "ci95": {metric: percentile_interval(drawn[metric][0]) for metric in HEADLINE},
    }


def paired_difference(
    runs_a: Sequence[Sequence[Row]],
    runs_b: Sequence[Sequence[Row]],
    labels: Labels,
    metric: str = "weighted_f1",
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure how much better a is than b on the same samples: every resample of dialogues is given to both.

    Args:
        runs_a, runs_b: predictions of two systems, a list per training seed (``[rows]`` for a single run); their means
            over seeds are compared.
        labels: label set of the corpus.
        metric: accuracy, weighted_f1, macro_f1, uar or unparsed.
        draws: bootstrap resamples.
        seed: of the resampling.

    Returns:
        difference (a - b), its ci95 [low, high], and p: two-sided, twice the share of resamples on the other side of 0
        (counted with one more, so it is never 0; 1 at most).

    Raises:
        ValueError: no runs, or they do not hold the same samples with the same labels, or what `evaluate` raises.
    """
    if not runs_a or not runs_b:
        raise ValueError("expected the predictions of at least one run of each system")
    counts, k = count_runs([*runs_a, *runs_b], labels), len(runs_a)
    values = scores(counts.sum(1))[check_metric(metric)]
    drawn = bootstrap(counts, draws, seed)[metric]
    difference = float(values[:k].mean() - values[k:].mean())
    resampled = drawn[:k].mean(0) - drawn[k:].mean(0)
    beyond = min((resampled <= 0).sum(), (resampled >= 0).sum())
    p = min(1.0, 2 * (int(beyond) + 1) / (draws + 1))
    return {"difference": difference, "ci95": percentile_interval(resampled), "p": p}


def mean_over_seeds(
    runs: Sequence[Sequence[Row]], labels: Labels, metric: str = "weighted_f1", draws: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Return the mean of a metric over runs that differ in their training seed only.

    Each draw resamples the dialogues once for all runs, so the interval is that of the mean over *these* runs: it
    covers the choice of dialogues, not the spread over training seeds (`values` shows that one).

    Args:
        runs: predictions of each run on the same samples.
        labels: label set of the corpus.
        metric: accuracy, weighted_f1, macro_f1, uar or unparsed.
        draws: bootstrap resamples.
        seed: of the resampling.

    Returns:
        mean, ci95 [low, high], and values, one per run.

    Raises:
        ValueError: no runs, or the runs do not hold the same samples, or what `evaluate` raises.
    """
    if not runs:
        raise ValueError("expected the predictions of at least one run, got none")
    counts = count_runs(runs, labels)
    values = scores(counts.sum(1))[check_metric(metric)]
    drawn = bootstrap(counts, draws, seed)[metric]
    return {"mean": float(values.mean()), "ci95": percentile_interval(drawn.mean(0)), "values": values.tolist()}


def resamples(dialogues: int, draws: int, seed: int, block: int = 1_000_000) -> Iterator[np.ndarray]:
    """Yield how often each dialogue was drawn, in blocks (B, D) that add up to (draws, D); ``block`` bounds B * D."""
    if draws < 1:
        raise ValueError(f"a bootstrap needs at least one draw, got {draws}")
    rng = np.random.default_rng(seed)
    size = max(1, block // dialogues)
    for start in range(0, draws, size):
        b = min(size, draws - start)
        drawn = rng.integers(dialogues, size=(b, dialogues)) + dialogues * np.arange(b)[:, None]
        yield np.bincount(drawn.ravel(), minlength=b * dialogues).reshape(b, dialogues)


def bootstrap(counts: np.ndarray, draws: int, seed: int) -> dict[str, np.ndarray]:
    """Return the metrics (S, draws) of resampled dialogues; all S systems get the same resamples.

    Not scipy.stats.bootstrap: it gathers every drawn dialogue; 5427 samples with 28 labels took minutes, not 1 s.
    """
    systems, dialogues, *matrix = counts.shape
    per_dialogue = counts.swapaxes(0, 1).reshape(dialogues, -1).astype(np.float64)
    blocks: list[dict[str, np.ndarray]] = []
    for times in resamples(dialogues, draws, seed):
        summed = (times @ per_dialogue).reshape(len(times), systems, *matrix)
        blocks.append({k: v for k, v in scores(summed).items() if v.ndim == 2})
    return {metric: np.concatenate([block[metric] for block in blocks]).T for metric in blocks[0]}


def percentile_interval(drawn: np.ndarray) -> list[float]:
    """Return the 95 % percentile interval [low, high] of drawn values."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return [float(low), float(high)]
