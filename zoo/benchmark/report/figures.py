"""The figures of a paper: lines over a setting, bars of groups, bars of each label, laid out in pixels.

`zoo.benchmark.plan.Figure` says which rows stand where; the templates draw what is laid out here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.benchmark.plan import SERIES
from zoo.benchmark.report.content import Row
from zoo.benchmark.report.drawing import Axis, score_axis

WIDTH, HEIGHT = 720, 340  # pixels
LEFT, RIGHT, TOP, BOTTOM = 44, WIDTH - 14, 14, HEIGHT - 46  # of the plot
PLOT = {"left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
GAP = 0.28  # share of a group's width that stays empty


def lay_out(figure: Mapping[str, Any], rows: Mapping[str, Row], metric: str) -> dict[str, Any]:
    """Lay out a figure.

    Args:
        figure: fields of a `zoo.benchmark.plan.Figure`.
        rows: name -> row of the results; a row that is not there has no result and is listed under ``missing``.
        metric: that lines and bars show; bars of each label show its F1.

    Returns:
        title, kind, ``series`` (names of the colours, in order), ``marks`` (one for each value: series, x, y, width,
        height, top and bottom of its interval, text), ``paths`` of lines, ``groups`` (x, name), ticks of the scores,
        ``missing``.
    """
    missing = [name for names in figure["rows"].values() for name in names if name not in rows]
    page = {"title": figure["title"], "kind": figure["kind"], "axis": figure["axis"], "missing": missing}
    if figure["kind"] == "lines":
        return page | _lines(figure, rows, metric)
    if figure["kind"] == "labels":
        return page | _labels(figure, rows)
    return page | _bars(figure, rows, metric)


def _lines(figure: Mapping[str, Any], rows: Mapping[str, Row], metric: str) -> dict[str, Any]:
    """A line for each entry of ``rows``, through its rows at the places of ``x``."""
    present = [rows[name] for names in figure["rows"].values() for name in names if name in rows]
    axis = score_axis(present, metric)
    low, high = min(figure["x"]), max(figure["x"])

    def x_of(value: float) -> float:
        return round(LEFT + 30 + (RIGHT - LEFT - 60) * ((value - low) / (high - low) if high > low else 0.5), 1)

    marks, paths = [], []
    for series, names in enumerate(figure["rows"].values()):
        path: list[dict[str, Any]] = []
        for name, value in zip(names, figure["x"], strict=True):
            if name in rows:
                path.append(_mark(series, x_of(value), rows[name]["scores"][metric], rows[name]["what"], axis))
        marks += path
        paths.append("M" + "L".join(f"{mark['x']} {mark['y']}" for mark in path) if path else "")
    groups = [(x_of(value), f"{value:g}") for value in figure["x"]]
    return {"series": list(figure["rows"]), "marks": marks, "paths": paths, "groups": groups, "y_ticks": _ticks(axis)}


def _bars(figure: Mapping[str, Any], rows: Mapping[str, Row], metric: str) -> dict[str, Any]:
    """A group of bars for each entry of ``rows``; the bars of a group have the names of ``series``."""
    present = [rows[name] for names in figure["rows"].values() for name in names if name in rows]
    high = score_axis(present, metric).high
    axis = Axis(0.0, high, [tick / 10 for tick in range(math.floor(high * 10) + 1)])  # a bar's length is its score
    places, width = _places(len(figure["rows"]), len(figure["series"]))
    marks = [
        _mark(series, places[group][series], rows[name]["scores"][metric], rows[name]["what"], axis) | {"width": width}
        for group, names in enumerate(figure["rows"].values())
        for series, name in enumerate(names)
        if name in rows
    ]
    middles = [sum(group) / len(group) for group in places]
    groups = list(zip(middles, figure["rows"], strict=True))
    return {"series": figure["series"], "marks": marks, "paths": [], "groups": groups, "y_ticks": _ticks(axis)}


def _labels(figure: Mapping[str, Any], rows: Mapping[str, Row]) -> dict[str, Any]:
    """A group of bars for each label, a bar for each row: F1 of the label, the mean over seeds."""
    present = {name: rows[row] for name, (row,) in figure["rows"].items() if row in rows}
    labels = next(iter(present.values()))["per_class"] if present else {}
    axis = Axis(0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    places, width = _places(len(labels), len(figure["rows"]))
    order = list(figure["rows"])
    marks = []
    for group, label in enumerate(labels):
        for name, row in present.items():
            series, score = order.index(name), row["per_class"][label]
            what = f"{row['what']}, {label}"
            marks.append(_mark(series, places[group][series], {"mean": score}, what, axis) | {"width": width})
    groups = [(sum(group) / len(group), label) for group, label in zip(places, labels, strict=True)]
    return {"series": order, "marks": marks, "paths": [], "groups": groups, "y_ticks": _ticks(axis)}


def _places(groups: int, bars: int) -> tuple[list[list[float]], float]:
    """Return the middle of every bar, by group, and the width of a bar; pixels."""
    group_width = (RIGHT - LEFT) / max(1, groups)
    width = group_width * (1 - GAP) / max(1, bars)
    first = LEFT + group_width * GAP / 2 + width / 2
    return [[round(first + g * group_width + b * width, 1) for b in range(bars)] for g in range(groups)], round(
        width, 1
    )


def _mark(series: int, x: float, score: Mapping[str, Any], what: str, axis: Axis) -> dict[str, Any]:
    def y_of(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * axis.position(value) / 100, 1)

    ends = [y_of(end) for end in score.get("ci95", (score["mean"], score["mean"]))]
    y = y_of(score["mean"])
    return {
        "series": series % SERIES,
        "x": x,
        "y": y,
        "height": round(BOTTOM - y, 1),
        "top": min(ends),
        "bottom": max(ends),
        "what": what,
        "score": score["mean"],
        "ci95": score.get("ci95"),
    }


def _ticks(axis: Axis) -> Sequence[tuple[float, str]]:
    return [(round(BOTTOM - (BOTTOM - TOP) * axis.position(t) / 100, 1), f"{100 * t:.0f}") for t in axis.ticks]
