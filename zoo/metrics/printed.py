"""The scores of a test as text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def score_table(record: Mapping[str, Any]) -> str:
    """Return the scores of a ``metrics.json`` as lines of text: with intervals, and by class or by group.

    Of several corpora each has its protocol.
    """
    lines = []
    several = "corpora" in record
    for corpus, scores in record.get("corpora", {record["corpus"]: record}).items():
        official = None if several else record["population"]["n_official"]  # of all corpora together
        of_official = f" ({official} in the official split)" if official and official != scores["n"] else ""
        stated = scores.get("eval_protocol", "") if several else ""  # runs of an earlier release state one for all
        protocol = f", {stated.replace('_', ' ')}" if stated else ""
        lines.append(f"{corpus}: {scores['n']} {_units(scores)}{protocol}{of_official}")
        lines += _scores(scores)
    for event, count in {**record["population"]["notes"], **record["events"]}.items():
        lines.append(f"  {event}: {count}")
    return "\n".join(lines)


def _units(scores: Mapping[str, Any]) -> str:
    """Return what was scored: utterances, or a benchmark's questions about pictures."""
    if "benchmark" in scores:
        return f"questions about {scores['pictures']} pictures"
    return "utterances" + (f" of {scores['dialogues']} dialogues" if "dialogues" in scores else "")


def _scores(scores: Mapping[str, Any]) -> list[str]:
    lines = []
    intervals = scores.get("ci95", {})
    for name in dict.fromkeys(("weighted_f1", "accuracy", "macro_f1", "uar", "war", *intervals)):
        if name in scores:
            interval = intervals.get(name)
            between = f"  [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else ""
            lines.append(f"  {name.replace('_', ' '):<14} {scores[name]:.4f}{between}")
    if scores.get("unparsed"):
        unread = "answers that cannot be read" if "benchmark" in scores else "answers without a label"
        lines.append(f"  {'unreadable':<14} {scores['unparsed']:.4f}  ({unread}, counted as wrong)")
    for label, f1 in scores.get("per_class", {}).items():
        lines.append(
            f"    {label:<12} F1 {f1:.4f}  recall {scores['per_class_recall'][label]:.4f}  n {scores['support'][label]}"
        )
    for group, values in scores.get("by_group", {}).items():
        texts = (f"{name} {value:.4f}" for name, value in values.items() if name != "n")
        lines.append(f"    {group:<12} {'  '.join(texts)}  n {values['n']}")
    return lines
