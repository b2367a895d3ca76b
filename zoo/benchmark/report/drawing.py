"""The geometry of a report: axes, the picture of score against cost with its labels, curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from zoo.benchmark.report.content import Row
from zoo.benchmark.report.numbers import amount, seconds

DRAWN_POINTS = 240  # of a curve: more than the pixels it has


# ---- axes
class Axis(NamedTuple):
    """A stretch of scores with round ends.

    Attributes:
        low, high: its ends, in 0..1.
        ticks: round scores from low to high.
    """

    low: float
    high: float
    ticks: list[float]

    def position(self, score: float) -> float:
        """Return where a score lies, in percent of the axis; two decimals."""
        return round(100 * (score - self.low) / (self.high - self.low), 2)


def score_axis(rows: Sequence[Row], metric: str) -> Axis:
    """Choose the axis that holds every interval and every seed of all rows.

    Args:
        rows, metric: whose scores.
    """
    numbers = [x for r in rows for x in (*r["scores"][metric]["ci95"], *r["scores"][metric]["values"])] or [0.0, 1.0]
    high, low = max(numbers), min(numbers)
    step = next((s for s in (0.01, 0.02, 0.05, 0.1) if (high - low) / s <= 6), 0.2)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return Axis(first * step, last * step, [round(k * step, 4) for k in range(first, last + 1)])


# ---- score against cost
class Point(NamedTuple):
    """A row in the picture; pixels.

    Attributes:
        x, y: the point; top, bottom: the ends of its interval.
        text, label_x, label_y, anchor: the label; it starts, ends or has its middle at label_x, and stands on label_y.
        leader: the end of the line from the point to its label, or None where they are side by side.
    """

    row: Row
    x: float
    y: float
    top: float
    bottom: float
    text: str
    label_x: float
    label_y: float
    anchor: str
    leader: tuple[float, float] | None


LETTER_WIDTH = 7.2  # width of a letter of a label, in pixels: rather too wide than too narrow
LABEL_HEIGHT = 14  # height of a label


def scatter(rows: Sequence[Row], metric: str, cost: str, axis: Axis, width: int, height: int) -> dict[str, Any]:
    """Lay out the picture of score against a cost, on a logarithmic axis.

    Args:
        rows: all rows; one without this cost, or with a cost of 0, cannot be drawn and is listed under ``left_out``.
        metric, cost: keys of ``scores`` and of ``cost``.
        axis: the scores to show.
        width, height: pixels.

    Returns:
        points, the path `front`, ticks of both axes as (pixel, text), the plot's corners, left_out as (row, cost).
    """
    left, right, top, bottom = 44, width - 14, 14, height - 42
    drawable = [r for r in rows if r["cost"][cost]]
    low, high = _cost_range([math.log10(r["cost"][cost]) for r in drawable])

    def x_of(value: float) -> float:
        return round(left + (right - left) * (math.log10(value) - low) / (high - low), 1)

    def y_of(score: float) -> float:
        return round(bottom - (bottom - top) * axis.position(score) / 100, 1)

    text = seconds if cost == "test_seconds_per_sample" else amount
    spots = []
    for row in drawable:
        score = row["scores"][metric]
        ends = [y_of(x) for x in score["ci95"]]
        spots.append(Spot(row, x_of(row["cost"][cost]), y_of(score["mean"]), min(ends), max(ends)))
    return {
        "front": _front(spots, height),
        "width": width,
        "height": height,
        "left": left,
        "right": right,
        "top": top,
        "bottom": bottom,
        "x_ticks": [(x_of(mark), text(mark)) for mark in _cost_ticks(low, high)],
        "y_ticks": [(y_of(tick), f"{100 * tick:.0f}") for tick in axis.ticks],
        "points": place_labels(spots, "what" if width > 600 else "name", (left, top, right, bottom)),
        "left_out": [(r, r["cost"][cost]) for r in rows if not r["cost"][cost]],
    }


def _cost_range(logarithms: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the axis of costs, as logarithms to base 10, with a margin on both sides."""
    values = logarithms or [0.0, 1.0]
    spread = max(values) - min(values)
    margin = max(0.06 * spread, 0.12, (0.8 - spread) / 2)  # 0.8: so that 1, 2, 5, 10 mark it twice
    return min(values) - margin, max(values) + margin


def _cost_ticks(low: float, high: float) -> list[float]:
    """Return round costs between two logarithms."""
    digits = (1,) if high - low > 2 else (1, 3) if high - low > 1 else (1, 2, 5)
    marks = [digit * 10.0**k for k in range(math.floor(low), math.ceil(high)) for digit in digits]
    return [mark for mark in marks if low <= math.log10(mark) <= high]


def _front(spots: Sequence[Spot], height: int) -> str:
    """Return a staircase, as an SVG path, through the ranked rows that no cheaper one beats."""
    path: list[str] = []
    highest = float(height)
    for spot in sorted(spots, key=lambda s: (s.x, s.y)):
        if spot.row["group"] == "ranked" and spot.y < highest:
            path.append(f"H{spot.x} V{spot.y}" if path else f"M{spot.x} {spot.y}")
            highest = spot.y
    return " ".join(path)


# ---- labels of the points
Box = tuple[float, float, float, float]  # left, top, right, bottom


class Spot(NamedTuple):
    """Where a row stands in the picture; pixels, with the ends of its interval."""

    row: Row
    x: float
    y: float
    top: float
    bottom: float


class LabelPlace(NamedTuple):
    """A place for a label beside its point.

    Attributes:
        start: left end of the text; base: the line on which it stands.
        distance: how far away from the nearest places.
        side: 1: to the right of the point, -1: to the left, 0: above or below.
    """

    start: float
    base: float
    distance: int
    side: int

    def box(self, width: float) -> Box:
        return self.start, self.base - 11, self.start + width, self.base + 3


def place_labels(spots: Sequence[Spot], key: str, plot: Box) -> list[Point]:
    """Give every point the free place for its name (``what``, or the shorter ``name``) that is nearest."""
    points = [(s.x - 7, s.y - 7, s.x + 7, s.y + 7) for s in spots]
    whiskers = [(s.x - 2, s.top, s.x + 2, s.bottom) for s in spots]
    labels: list[Box] = []
    result = []
    for spot in sorted(spots, key=lambda s: s.y):
        name = spot.row[key]
        text = name if len(name) <= 28 else name[:27] + "…"
        width = sum(LETTER_WIDTH * (2 if ord(c) > 0x2E80 else 1) for c in text)

        def price(place: LabelPlace, width: float = width) -> float:
            box = place.box(width)
            covered = 3 * _covered(box, labels) + _covered(box, points)
            covered += 0.7 * _covered(box, whiskers)
            return covered + 4 * (width * LABEL_HEIGHT - overlap(box, plot)) + 0.5 * place.distance

        place = _cheapest(_label_places(spot.x, spot.y, width), price)
        box = place.box(width)
        labels.append(box)
        end = (round(min(max(spot.x, box[0]), box[2]), 1), round(box[1] if box[1] > spot.y else box[3], 1))
        x = box[0] if place.side > 0 else box[2] if place.side < 0 else spot.x
        anchor = {1: "start", -1: "end", 0: "middle"}[place.side]
        leader = end if place.distance else None
        result.append(Point(*spot, text, round(x, 1), round(place.base, 1), anchor, leader))
    return result


def _label_places(x: float, y: float, width: float) -> Iterator[LabelPlace]:
    """Yield the places for a label of a point, nearest first."""
    for distance in (0, 14, 28, 44, 62, 84):
        for side_x, side_y in ((1, 0), (-1, 0), (1, -1), (1, 1), (-1, -1), (-1, 1), (0, -1), (0, 1)):
            if distance and not side_y:
                continue  # further out only diagonally or straight up and down, where the leader can be seen
            start = x + 10 if side_x > 0 else x - 10 - width if side_x < 0 else x - width / 2
            yield LabelPlace(start, y + 4 + side_y * (12 + distance), distance, side_x)


def _cheapest(places: Iterable[LabelPlace], price: Callable[[LabelPlace], float]) -> LabelPlace:
    """Return the place of the least price; of prices that only rounding tells apart, the first."""
    best, *others = [(price(place), place) for place in places]
    for candidate in others:
        if candidate[0] < best[0] - 1e-6:
            best = candidate
    return best[1]


def _covered(box: Box, others: Sequence[Box]) -> float:
    return sum(overlap(box, other) for other in others)


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


# ---- curves
def curve(points: Sequence[Sequence[float]], width: int = 232, height: int = 84) -> dict[str, Any] | None:
    """Draw a logged number over the steps of a training, as an SVG path; None if no value is finite.

    At most `DRAWN_POINTS` are drawn, evenly chosen, first and last among them; the extremes given are those of all. A
    value that is not finite (None, as JSON writes it) breaks the line and is counted.
    """
    finite = [(step, value) for step, value in points if value is not None and math.isfinite(value)]
    if not finite:
        return None
    steps, values = [s for s, _ in finite], [v for _, v in finite]
    low, high, start, end = min(values), max(values), min(steps), max(steps)
    every = max(1, math.ceil(len(points) / DRAWN_POINTS))
    chosen = [*points[:-1:every], points[-1]]

    def position(step: float, value: float) -> str:
        x = width * (step - start) / (end - start) if end > start else width / 2
        y = height - height * (value - low) / (high - low) if high > low else height / 2
        return f"{x:.1f} {y:.1f}"

    path, pen = [], "M"
    for step, value in chosen:
        if value is None or not math.isfinite(value):
            pen = "M"
            continue
        path.append(pen + position(step, value))
        pen = "L"
    return {
        "path": " ".join(path),
        "width": width,
        "height": height,
        "dot": position(*finite[-1]).split(),
        "low": low,
        "high": high,
        "first": values[0],
        "last": values[-1],
        "start": start,
        "end": end,
        "points": len(points),
        "broken": len(points) - len(finite),
    }
