"""The report of a bench: ``report.html``, one file that a browser opens without a network, and ``report.md``.

Every number is formatted here, once: Python computes texts and positions, the templates put them into place, and the
page's script only sorts, filters and turns pages. A browser is told (Content-Security-Policy) to load nothing and to
run no script but that one; single utterances reach it as JSON and are shown as text, never as markup.

A sortable cell carries the unrounded value in ``data-v``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from zoo.benchmark.statistics import LEVEL

Row = Mapping[str, Any]
TEMPLATES = Path(__file__).with_name("templates")
PUBLISHED = Path(__file__).with_name("published_results.json")
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
DRAWN_POINTS = 240  # of a curve: more than the pixels it has


def write_report(results: Mapping[str, Any], folder: Path, utterances: Sequence[Mapping[str, Any]] = ()) -> None:
    """Writes ``report.html`` and ``report.md`` into a folder.

    Args:
        results: what the bench wrote to results.json: title, corpus, rows with scores in 0..1, failed runs, notes.
        folder: an existing folder.
        utterances: single utterances with what each system said, for the page that shows them side by side.

    Raises:
        ValueError: a score is not a finite number, a verdict or a group is unknown, a ranked row is not compared with
            the best, two rows have one name, the matched view names a row that is not there, or a face is not an
            embedded picture.
    """
    check(results, utterances)
    ranked = sort_rows(results, "ranked")
    transductive = sort_rows(results, "transductive")
    (folder / "report.html").write_text(page(results, ranked, transductive, utterances), encoding="utf-8")
    (folder / "report.md").write_text(markdown(results, ranked, transductive), encoding="utf-8")


def check(results: Mapping[str, Any], utterances: Sequence[Mapping[str, Any]]) -> None:
    """Refuses what would be drawn wrongly; see `write_report`."""
    names = Counter(row["name"] for row in results["rows"])
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"rows need names of their own, got {twice[0]!r} {names[twice[0]]} times")
    for row in results["rows"]:
        if row["group"] not in ("ranked", "transductive"):
            raise ValueError(f"row {row['name']!r}: group must be 'ranked' or 'transductive', got {row['group']!r}")
        for metric, score in row["scores"].items():
            numbers = [score["mean"], *score["ci95"], *score["values"]]
            if not all(isinstance(x, int | float) and math.isfinite(x) and 0 <= x <= 1 for x in numbers):
                raise ValueError(f"row {row['name']!r}: {metric} must be finite numbers in 0..1, got {score}")
        against = row["against_best"]
        if against is not None and against["verdict"] not in VERDICTS:
            raise ValueError(
                f"row {row['name']!r}: verdict must be one of {', '.join(VERDICTS)}, got {against['verdict']!r}"
            )
    metric = results["metric"]
    top = max((r["scores"][metric]["mean"] for r in results["rows"] if r["group"] == "ranked"), default=0.0)
    for row in results["rows"]:
        behind = row["group"] == "ranked" and row["scores"][metric]["mean"] < top
        if behind and row["against_best"] is None:
            raise ValueError(f"row {row['name']!r} is not compared with the best row, but is not the best itself")
    if results["matched"] and (missing := [name for name in results["matched"]["rows"] if name not in names]):
        raise ValueError(f"the matched view names {missing[0]!r}, which is not a row; rows are {', '.join(names)}")
    for one in utterances:
        if one["face"] is not None and not one["face"].startswith("data:image/"):
            raise ValueError(
                f"{one['id']}: a face must be an embedded picture, data:image/..., got {one['face'][:40]!r}"
            )


def sort_rows(results: Mapping[str, Any], group: str) -> list[Row]:
    """The rows of a group, best first; equal scores keep the order of the bench."""
    metric = results["metric"]
    return sorted((r for r in results["rows"] if r["group"] == group), key=lambda r: -r["scores"][metric]["mean"])


# ---- numbers as text
def percent(share: float) -> str:
    """0.6123 is ``61.2``."""
    return f"{100 * share:.1f}"


def signed(share: float) -> str:
    """-0.031 is ``−3.1``, with a real minus sign; 0.031 is ``+3.1``."""
    return f"{100 * share:+.1f}".replace("-", "−")


def pvalue(p: float) -> str:
    """Three decimals: 0.0123 is ``.012``, anything smaller than 0.001 is ``<.001``."""
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def amount(count: float | None) -> str:
    """2_310_000 is ``2.31 M``; None is a dash."""
    if count is None:
        return "–"
    for size, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(count) >= size * 0.9995:
            return f"{count / size:.3g}{name}"
    return f"{count:.3g}"


def seconds(duration: float | None) -> str:
    """0.0123 is ``12.3 ms``, 75 is ``1.2 min``; None is a dash."""
    if duration is None:
        return "–"
    for size, name in ((3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
        if duration >= size * 0.9995:
            return f"{duration / size:.3g} {name}"
    return f"{duration * 1e6:.3g} µs"


def memory(mebibytes: float | None) -> str:
    """MiB: 310.2 is ``310 MiB``, 2048 is ``2 GiB``; None is a dash."""
    if mebibytes is None:
        return "–"
    return f"{mebibytes / 1024:.3g} GiB" if mebibytes >= 1023.5 else f"{mebibytes:.3g} MiB"


VERDICTS = {"worse": "▼", "better": "▲", "no clear difference": "≈"}


# ---- the drawn axis of scores
class Axis(NamedTuple):
    """A stretch of scores with round ends.

    Attributes:
        low, high: its ends, in 0..1.
        ticks: round scores from low to high.
    """

    low: float
    high: float
    ticks: list[float]

    def at(self, score: float) -> float:
        """Where a score lies, in percent of the axis; two decimals."""
        return round(100 * (score - self.low) / (self.high - self.low), 2)


def score_axis(rows: Sequence[Row], metric: str) -> Axis:
    """The axis that holds every interval and every seed of all rows.

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


LETTER = 7.2  # width of a letter of a label, in pixels: rather too wide than too narrow
LINE = 14  # height of a label


def scatter(rows: Sequence[Row], metric: str, cost: str, axis: Axis, width: int, height: int) -> dict[str, Any]:
    """The picture of score against a cost, on a logarithmic axis.

    Args:
        rows: all rows; one without this cost, or with a cost of 0, cannot be drawn and is listed under ``left_out``.
        metric, cost: keys of ``scores`` and of ``cost``.
        axis: the scores to show.
        width, height: pixels.

    Returns:
        points, the path `front`, ticks of both axes as (pixel, text), the plot's corners, left_out as (row, cost).
    """
    left, right, top, bottom = 44, width - 14, 14, height - 42
    drawn = [r for r in rows if r["cost"][cost]]
    values = [math.log10(r["cost"][cost]) for r in drawn] or [0.0, 1.0]
    spread = max(values) - min(values)
    margin = max(0.06 * spread, 0.12, (0.8 - spread) / 2)  # 0.8: so that 1, 2, 5, 10 mark it twice
    low, high = min(values) - margin, max(values) + margin

    def across(value: float) -> float:
        return round(left + (right - left) * (math.log10(value) - low) / (high - low), 1)

    def down(score: float) -> float:
        return round(bottom - (bottom - top) * axis.at(score) / 100, 1)

    digits = (1,) if high - low > 2 else (1, 3) if high - low > 1 else (1, 2, 5)
    marks = [d * 10.0**k for k in range(math.floor(low), math.ceil(high)) for d in digits]
    text = seconds if cost == "test_seconds_per_sample" else amount
    spots = []
    for row in drawn:
        score = row["scores"][metric]
        ends = [down(x) for x in score["ci95"]]
        spots.append((row, across(row["cost"][cost]), down(score["mean"]), min(ends), max(ends)))
    front, height_reached = [], float(height)  # a staircase through the ranked rows that no cheaper one beats
    for row, x, y, _, _ in sorted(spots, key=lambda s: (s[1], s[2])):
        if row["group"] == "ranked" and y < height_reached:
            front.append(f"H{x} V{y}" if front else f"M{x} {y}")
            height_reached = y
    return {
        "front": " ".join(front),
        "width": width,
        "height": height,
        "left": left,
        "right": right,
        "top": top,
        "bottom": bottom,
        "x_ticks": [(across(m), text(m)) for m in marks if low <= math.log10(m) <= high],
        "y_ticks": [(down(t), f"{100 * t:.0f}") for t in axis.ticks],
        "points": label(spots, "what" if width > 600 else "name", (left, top, right, bottom)),
        "left_out": [(r, r["cost"][cost]) for r in rows if not r["cost"][cost]],
    }


def label(spots: Sequence[tuple[Row, float, float, float, float]], key: str, plot: tuple[float, ...]) -> list[Point]:
    """Gives every point the free place for its name (``what``, or the shorter ``name``) that is nearest.

    Boxes are (left, top, right, bottom).
    """
    points = [(x - 7, y - 7, x + 7, y + 7) for _, x, y, _, _ in spots]
    whiskers = [(x - 2, top, x + 2, bottom) for _, x, _, top, bottom in spots]
    taken: list[tuple[float, ...]] = []
    result = []
    for row, x, y, top, bottom in sorted(spots, key=lambda s: s[2]):
        text = row[key] if len(row[key]) <= 28 else row[key][:27] + "…"
        wide = sum(LETTER * (2 if ord(c) > 0x2E80 else 1) for c in text)
        best: tuple[float, float, float, float, int] | None = None
        for away in (0, 14, 28, 44, 62, 84):
            for side_x, side_y in ((1, 0), (-1, 0), (1, -1), (1, 1), (-1, -1), (-1, 1), (0, -1), (0, 1)):
                if away and not side_y:
                    continue  # further out only diagonally or straight up and down, where the leader can be seen
                start = x + 10 if side_x > 0 else x - 10 - wide if side_x < 0 else x - wide / 2
                base = y + 4 + side_y * (12 + away)
                box = (start, base - 11, start + wide, base + 3)
                cover = 3 * sum(overlap(box, other) for other in taken) + sum(overlap(box, o) for o in points)
                cover += 0.7 * sum(overlap(box, other) for other in whiskers)
                inside = overlap(box, plot)
                price = cover + 4 * (wide * LINE - inside) + 0.5 * away
                if best is None or price < best[0] - 1e-6:
                    best = (price, start, base, away, side_x)
        assert best is not None  # there are always places to try
        _, start, base, away, side_x = best
        taken.append((start, base - 11, start + wide, base + 3))
        end = (round(min(max(x, start), start + wide), 1), round(base - 11 if base - 11 > y else base + 3, 1))
        at = start if side_x > 0 else start + wide if side_x < 0 else x
        anchor = {1: "start", -1: "end", 0: "middle"}[side_x]
        leader = end if away else None
        result.append(Point(row, x, y, top, bottom, text, round(at, 1), round(base, 1), anchor, leader))
    return result


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


# ---- curves
def curve(points: Sequence[Sequence[float]], width: int = 232, height: int = 84) -> dict[str, Any] | None:
    """A logged number over the steps of a training, as an SVG path; None if no value is finite.

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


# ---- the page
def page(
    results: Mapping[str, Any],
    ranked: Sequence[Row],
    transductive: Sequence[Row],
    utterances: Sequence[Mapping[str, Any]],
) -> str:
    """report.html."""
    rows = [*ranked, *transductive]
    metric = results["metric"]
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    papers = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "signed": signed,
        "pvalue": pvalue,
        "amount": amount,
        "seconds": seconds,
        "memory": memory,
    }
    matched = results["matched"]
    return environment.get_template("report.html").render(
        results=results,
        ranked=ranked,
        transductive=transductive,
        matched=[r for r in rows if r["name"] in matched["rows"]] if matched else [],
        rows=rows,
        metric=metric,
        metrics=METRICS,
        verdicts=VERDICTS,
        axis=score_axis(rows, metric),
        few_dialogues=few_dialogues(results),
        costs=COSTS,
        pictures={
            cost: [
                scatter(rows, metric, cost, score_axis(rows, metric), width, height)
                for width, height in ((1080, 460), (360, 420))
            ]
            for cost in COSTS
        },
        curves={r["name"]: {key: curve(points) for key, points in r["curves"].items()} for r in rows},
        support=support(rows, results["labels"]),
        papers=[
            paper
            | {
                "ours": [r for r in rows if (r.get("model") or "").startswith(paper["package"] + ".")],
                "corpora": {c["corpus"].lower() for t in paper["tables"] for c in t["columns"]},
                "tables": [t | {"decimals": decimals(t)} for t in paper["tables"]],
            }
            for paper in papers.values()
        ],
        data=embedded(results, rows, utterances),
        count=len(utterances),
        data_text=json.dumps(results["data"], indent=2, ensure_ascii=False, default=str),
        transductive_text=TRANSDUCTIVE,
        explained=EXPLAINED,
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),  # ours, not data
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def decimals(published: Mapping[str, Any]) -> list[int]:
    """How many decimals each column of a published table has."""
    columns = zip(*(row["values"] for row in published["rows"]), strict=True)
    return [max(len(str(value).partition(".")[2]) for value in column if value is not None) for column in columns]


def support(rows: Sequence[Row], labels: Sequence[str]) -> dict[str, int]:
    """How many test utterances have each label: a row's confusion matrix, which is summed over seeds, tells it."""
    first = rows[0] if rows else None
    seeds = len(first["seeds"]) if first else 1
    return {name: sum(first["confusion"][i]) // seeds if first else 0 for i, name in enumerate(labels)}


def embedded(results: Mapping[str, Any], rows: Sequence[Row], utterances: Sequence[Mapping[str, Any]]) -> Markup:
    """The utterances as JSON that cannot end its script element: ASCII, with ``<``, ``>`` and ``&`` escaped."""
    shown = [
        one | {"voice": None if one["voice"] is None else [round(v, 2) for v in one["voice"]]} for one in utterances
    ]
    data = {
        "labels": list(results["labels"]),
        "systems": [{"name": r["name"], "what": r["what"]} for r in rows],
        "utterances": shown,
    }
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


# ---- the Markdown
def markdown(results: Mapping[str, Any], ranked: Sequence[Row], transductive: Sequence[Row]) -> str:
    """report.md: the tables and how they were measured."""
    metric = results["metric"]
    parts = [f"# {cell(results['title'])}", cell(sentence(results))]
    if warning := few_dialogues(results):
        parts.append(f"⚠ {warning}")
    if results["failed"]:
        parts += [
            f"## ⚠ {len(results['failed'])} failed",
            "These runs are in no table.",
            table(
                ["row", "seed", "reason", "log"],
                [[f["row"], f["seed"], f["reason"], f["log"]] for f in results["failed"]],
            ),
        ]
    parts += ["## Ranking", ranking(ranked, metric)]
    if transductive:
        parts += ["## Transductive", TRANSDUCTIVE, ranking(transductive, metric)]
    if matched := results["matched"]:
        chosen = [r for r in (*ranked, *transductive) if r["name"] in matched["rows"]]
        held = (
            f"Held equal: language model {matched['llm']}, data {matched['data']}, {matched['steps']} steps of batch "
            f"{matched['batch_size']}."
        )
        parts += ["## Matched", cell(held), ranking(chosen, metric)]
    facts: list[list[Any]] = [
        ["command", results["command"]],
        ["commit", results["git"] or "not known"],
        ["corpus, split", f"{results['corpus']}, {results['split']}"],
        ["protocol", results["eval_protocol"]],
        ["utterances, dialogues", f"{results['n']:,}, {results['dialogues']:,}"],
        ["labels", ", ".join(results["labels"])],
        ["data", json.dumps(results["data"], ensure_ascii=False, default=str)],
        ["versions", ", ".join(f"{name} {version}" for name, version in results["versions"].items())],
    ]
    if "seeds_note" in results:
        facts.append(["seeds", results["seeds_note"]])
    parts += ["## How it was measured", table(["what", ""], facts), *EXPLAINED]
    parts += ["\n".join(f"- {cell(note)}" for note in results["notes"])] if results["notes"] else []
    return "\n\n".join(parts) + "\n"


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


def few_dialogues(results: Mapping[str, Any]) -> str | None:
    """A warning where intervals rest on fewer than `FEW` dialogues, between which alone the bootstrap can choose."""
    if (count := results["dialogues"]) >= FEW:
        return None
    return (
        f"The test split has {count} {'dialogue' if count == 1 else 'dialogues'}. Intervals and comparisons are drawn "
        f"from whole dialogues; with fewer than {FEW} they are too narrow, so do not take them for 95 %."
    )


def sentence(results: Mapping[str, Any]) -> str:
    """What was measured, in one line."""
    return (
        f"{len(results['rows'])} rows on {results['corpus']}, {results['split']} split: {results['n']:,} utterances "
        f"of {results['dialogues']:,} dialogues, {results['eval_protocol'].replace('_', ' ')}."
    )


def ranking(rows: Sequence[Row], metric: str) -> str:
    """A table of rows; the headline score first, with its interval and every seed."""
    others = [m for m in METRICS if m != metric]
    header = [
        "#",
        "system",
        "reads",
        METRICS[metric],
        "95 % interval",
        "seeds",
        "against the best",
        *(METRICS[m] for m in others),
        "of the reachable",
        "parameters (trained)",
        "training",
        "test per utterance",
    ]
    lines = []
    for place, row in enumerate(rows, 1):
        score, cost = row["scores"][metric], row["cost"]
        lines.append(
            [
                place,
                f"{row['what']} ({row['name']}, {row['size']})",
                "not known" if row["reads"] is None else ", ".join(row["reads"]) or "nothing",
                percent(score["mean"]),
                interval(score),
                ", ".join(map(percent, score["values"])),
                against(row),
                *(f"{percent(row['scores'][m]['mean'])} ({interval(row['scores'][m])})" for m in others),
                percent(row["reachable"]["share"]) if row["reachable"] else "–",
                f"{amount(cost['parameters'])} ({amount(cost['trainable_parameters'])})",
                f"{seconds(cost['train_seconds'])}, {memory(cost['train_peak_mib'])}",
                f"{seconds(cost['test_seconds_per_sample'])}, {memory(cost['test_peak_mib'])}, "
                f"{amount(cost['tokens_per_sample'])} tokens",
            ]
        )
    return table(header, lines) if lines else "No rows."


def interval(score: Mapping[str, Any]) -> str:
    """``58.9–63.4``."""
    return "–".join(map(percent, score["ci95"]))


def against(row: Row) -> str:
    """``−3.1 (−5.0 to −1.2): worse, p <.001 and .002``, or what stands there without a comparison."""
    if (test := row["against_best"]) is None:
        return "the best" if row["group"] == "ranked" else "not compared"
    low, high = map(signed, test["ci95"])
    ps = f"{pvalue(test['p_bootstrap_holm'])} and {pvalue(test['p_mcnemar_holm'])}"
    return f"{signed(test['difference'])} ({low} to {high}): {test['verdict']}, p {ps}"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; every cell is escaped."""
    lines = [header, ["---"] * len(header), *([cell(str(value)) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(text: str) -> str:
    """A text as one line of Markdown in which nothing is markup: no HTML, no link, no emphasis, no new column."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join("\\" + c if c in "\\`*_[]|~#" else c for c in text)
