"""What a report says: names of its columns, its standing sentences, and what it refuses to draw."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.benchmark.statistics import LEVEL

Row = Mapping[str, Any]
METRICS = {
    "accuracy": "Accuracy",
    "weighted_f1": "Weighted F1",
    "macro_f1": "Macro F1",
    "uar": "UAR",
    "unparsed": "Unparsed",
}
COSTS = {
    "test_seconds_per_sample": "seconds per utterance",
    "parameters": "parameters",
    "trainable_parameters": "trainable parameters",
    "tokens_per_sample": "tokens per utterance",
}
FEW = 30  # dialogues; with fewer a percentile interval over dialogues is known to be too narrow
VERDICTS = {"worse": "▼", "better": "▲", "no clear difference": "≈"}
TRANSDUCTIVE = (
    "These systems adapted to the inputs of the test split, without its labels, before they were scored. The others "
    "had not seen them, so the two kinds are not ranked together."
)
EXPLAINED = (
    "Scores are the mean over seeds, in percent. Intervals are 95 % bootstrap intervals over dialogues with the "
    "weights fixed: they say how far another draw of dialogues could move the score, not another training.",
    "A system is called worse (or better) than the best only if the paired bootstrap and McNemar's test both lie below "
    f"{LEVEL} after Holm's correction over all comparisons. The best was picked after looking, and none of it says how "
    "another training seed would do.",
    "Curves are those of a row's first seed.",
    "An answer that names no label is wrong and counted as unparsed. The reachable is the best accuracy that any "
    "classifier can have with what the system reads.",
)


def check_results(results: Mapping[str, Any], utterances: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what would be drawn wrongly; see `write_report`."""
    names = Counter(row["name"] for row in results["rows"])
    if repeated := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"rows need names of their own, got {repeated[0]!r} {names[repeated[0]]} times")
    for row in results["rows"]:
        _check_row(row)
    _check_comparisons(results["rows"], results["metric"])
    if results["matched"] and (missing := [name for name in results["matched"]["rows"] if name not in names]):
        raise ValueError(f"the matched view names {missing[0]!r}, which is not a row; rows are {', '.join(names)}")
    for one in utterances:
        if one["face"] is not None and not one["face"].startswith("data:image/"):
            raise ValueError(
                f"{one['id']}: a face must be an embedded picture, data:image/..., got {one['face'][:40]!r}"
            )


def _check_row(row: Row) -> None:
    """Refuse an unknown group or verdict, and a score that is no finite number in 0..1."""
    if row["group"] not in ("ranked", "transductive"):
        raise ValueError(f"row {row['name']!r}: group must be 'ranked' or 'transductive', got {row['group']!r}")
    for metric, score in row["scores"].items():
        numbers = [score["mean"], *score["ci95"], *score["values"]]
        if not all(isinstance(x, int | float) and math.isfinite(x) and 0 <= x <= 1 for x in numbers):
            raise ValueError(f"row {row['name']!r}: {metric} must be finite numbers in 0..1, got {score}")
    comparison = row["against_best"]
    if comparison is not None and comparison["verdict"] not in VERDICTS:
        raise ValueError(
            f"row {row['name']!r}: verdict must be one of {', '.join(VERDICTS)}, got {comparison['verdict']!r}"
        )


def _check_comparisons(rows: Sequence[Row], metric: str) -> None:
    """Refuse a ranked row behind the best one that is not compared with it."""
    best = max((r["scores"][metric]["mean"] for r in rows if r["group"] == "ranked"), default=0.0)
    for row in rows:
        behind = row["group"] == "ranked" and row["scores"][metric]["mean"] < best
        if behind and row["against_best"] is None:
            raise ValueError(f"row {row['name']!r} is not compared with the best row, but is not the best itself")


def sort_rows(results: Mapping[str, Any], group: str) -> list[Row]:
    """Return the rows of a group, best first; equal scores keep the order of the bench."""
    metric = results["metric"]
    return sorted((r for r in results["rows"] if r["group"] == group), key=lambda r: -r["scores"][metric]["mean"])


def few_dialogues(results: Mapping[str, Any]) -> str | None:
    """Return a warning where intervals rest on fewer than `FEW` dialogues, from which the bootstrap has to choose."""
    if (count := results["dialogues"]) >= FEW:
        return None
    return (
        f"The test split has {count} {'dialogue' if count == 1 else 'dialogues'}. Intervals and comparisons are drawn "
        f"from whole dialogues; with fewer than {FEW} they are too narrow, so do not take them for 95 %."
    )
