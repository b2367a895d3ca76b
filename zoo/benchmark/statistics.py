"""Is one system really better than another on the same samples?

Two tests, each with its own blind spot, both corrected for how many rows are compared (Holm):

- paired bootstrap over dialogues, of the ranking metric, means over training seeds
  (`zoo.metrics.paired_difference`): utterances of a dialogue may depend on each other;
- exact McNemar of right and wrong answers of one seed against one seed: needs no resampling, but takes utterances as
  independent (alone it gives 6 to 9 % false alarms where dialogues matter, tests/benchmarks/false_alarms.py) and sees
  accuracy alone. Of several seeds the one of the lower median score is taken, since pooling them would count every
  utterance several times.

A row is called worse or better than the best only if both corrected values are below `LEVEL`. None of it covers how
another training seed would do, nor that the best row was picked after looking; the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from zoo.metrics import Row, evaluate, paired_difference
from zoo.progress import reported
from zoo.schema import Labels

LEVEL = 0.03  # of both tests; keeps false alarms below 5 % where dialogues matter: tests/benchmarks/false_alarms.py
DRAWS = 4000


def median_run(runs: Sequence[Sequence[Row]], labels: Labels, metric: str) -> int:
    """Return the index of the run whose score is the (lower) median."""
    scores = [evaluate(rows, labels, draws=1)[metric] for rows in runs]
    return sorted(range(len(runs)), key=lambda i: (scores[i], i))[(len(runs) - 1) // 2]


def mcnemar_p(a: Sequence[Row], b: Sequence[Row]) -> float:
    """Return the exact two-sided p of two sets of answers to the same samples being right equally often.

    It is 1 if they are right on the same ones.
    """
    right = {row["id"]: row["predicted"] == row["label"] for row in b}
    table = [[0, 0], [0, 0]]
    for row in a:
        table[row["predicted"] == row["label"]][right[row["id"]]] += 1
    return min(1.0, float(mcnemar(table, exact=True).pvalue))


def against(
    runs: Mapping[str, Sequence[Sequence[Row]]], best: str, labels: Labels, metric: str, draws: int = DRAWS
) -> dict[str, dict[str, Any]]:
    """Every row against the best one.

    Args:
        runs: row -> predictions of each of its training seeds, all of the same samples.
        best: name of the best row.

    Returns:
        name (without the best) -> difference (row - best), ci95, p_bootstrap, p_mcnemar, both once more with Holm's
        correction over all rows, and verdict: ``worse``, ``better`` or ``no clear difference``.

    Raises:
        ValueError: the rows do not hold the same samples (see `zoo.metrics.paired_difference`).
    """
    middle = {name: median_run(row_runs, labels, metric) for name, row_runs in runs.items()}
    comparisons: dict[str, dict[str, Any]] = {}
    for name, row_runs in reported(runs.items(), len(runs), "report: against the best", "rows", 5):
        if name == best:
            continue
        pair = paired_difference(row_runs, runs[best], labels, metric, draws=draws)
        comparisons[name] = {
            "difference": pair["difference"],
            "ci95": pair["ci95"],
            "p_bootstrap": pair["p"],
            "p_mcnemar": mcnemar_p(row_runs[middle[name]], runs[best][middle[best]]),
        }
    if not comparisons:
        return comparisons
    for kind in ("p_bootstrap", "p_mcnemar"):
        corrected = multipletests([f[kind] for f in comparisons.values()], alpha=LEVEL, method="holm")[1]
        for one, p in zip(comparisons.values(), corrected, strict=True):
            one[f"{kind}_holm"] = float(p)
    for one in comparisons.values():
        sure = max(one["p_bootstrap_holm"], one["p_mcnemar_holm"]) < LEVEL
        one["verdict"] = ("worse" if one["difference"] < 0 else "better") if sure else "no clear difference"
    return comparisons
