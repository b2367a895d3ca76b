"""The figures of a benchmark: what is refused, and that every drawn place is the score it stands for."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.benchmark.made_up import made_up
from tests.benchmark.test_grids import DATA, plan
from tests.runs_helper import refused
from zoo.benchmark.plan import Figure
from zoo.benchmark.report import write_report
from zoo.benchmark.report.figures import BOTTOM, TOP, lay_out

LINES = {"title": "t", "kind": "lines", "x": [0, 5], "rows": {"one": ["tfidf", "vit"]}, "series": [], "axis": "turns"}
BARS = {"title": "t", "kind": "bars", "x": [], "rows": {"A": ["tfidf", "vit"], "B": ["gone", "merit"]}, "axis": ""}
LABELS = {"title": "t", "kind": "labels", "x": [], "rows": {"A": ["tfidf"], "B": ["merit"]}, "series": [], "axis": ""}
BARS["series"] = ["left", "right"]


@pytest.fixture(scope="module")
def results() -> dict:
    return made_up()[0]


@pytest.fixture(scope="module")
def rows(results) -> dict:
    return {row["name"]: row for row in results["rows"]}


def score_at(page: dict, y: float) -> float:
    """The score that a height stands for, by two ticks of the axis."""
    (y0, low), (y1, high) = page["y_ticks"][0], page["y_ticks"][-1]
    return (float(low) + (y - y0) / (y1 - y0) * (float(high) - float(low))) / 100


def test_lines_go_through_their_rows(rows):
    page = lay_out(LINES, rows, "weighted_f1")
    first, second = page["marks"]
    for mark, name in ((first, "tfidf"), (second, "vit")):
        score = rows[name]["scores"]["weighted_f1"]
        assert score_at(page, mark["y"]) == pytest.approx(score["mean"], abs=2e-3)
        assert score_at(page, mark["bottom"]) == pytest.approx(score["ci95"][0], abs=2e-3)
        assert score_at(page, mark["top"]) == pytest.approx(score["ci95"][1], abs=2e-3)
    assert first["x"] < second["x"] and page["groups"] == [(first["x"], "0"), (second["x"], "5")]
    assert page["paths"] == [f"M{first['x']} {first['y']}L{second['x']} {second['y']}"]


def test_a_bar_is_as_long_as_its_score_and_a_missing_row_is_named(rows):
    page = lay_out(BARS, rows, "weighted_f1")
    assert page["missing"] == ["gone"] and [mark["series"] for mark in page["marks"]] == [0, 1, 1]
    assert page["y_ticks"][0] == (BOTTOM, "0")
    means = [rows[name]["scores"]["weighted_f1"]["mean"] for name in ("tfidf", "vit", "merit")]
    lengths = [mark["height"] for mark in page["marks"]]
    assert [a / lengths[0] for a in lengths] == pytest.approx([m / means[0] for m in means], rel=5e-3)
    assert page["marks"][0]["x"] < page["marks"][1]["x"] < page["marks"][2]["x"]


def test_bars_of_labels_are_f1_of_each(rows):
    page = lay_out(LABELS, rows, "accuracy")
    labels = rows["tfidf"]["per_class"]
    assert [name for _, name in page["groups"]] == list(labels)
    assert len(page["marks"]) == 2 * len(labels)
    for mark, (label, share) in zip(page["marks"][::2], labels.items(), strict=True):
        assert mark["height"] == pytest.approx((BOTTOM - TOP) * share, abs=0.1) and label in mark["what"]


def test_the_report_draws_them(results, tmp_path):
    write_report({**results, "figures": [LINES, BARS, LABELS]}, tmp_path)
    page = (tmp_path / "report.html").read_text()
    (section,) = re.findall(r'<section id="figures".*?</section>', page, re.DOTALL)
    assert section.count("<figure") == 3 and "Without a result: gone." in section
    assert section.count("<circle") == 2
    write_report(results, tmp_path)
    assert '<section id="figures"' not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"x": []}, "kind lines needs rows and x"),
        ({"rows": {}}, "kind lines needs rows and x"),
        ({"x": [1]}, "one has 2 rows; expected 1, as many as x has values"),
        ({"kind": "labels"}, "one has 2 rows; expected 1, as many as a bar has"),
        ({"kind": "bars", "series": ["a"]}, "one has 2 rows; expected 1, as many as series has names"),
        ({"x": [0, float("nan")]}, "x is [0, nan]; expected finite numbers"),
        ({"rows": {str(k): ["tfidf", "vit"] for k in range(7)}}, "7 colours are needed; at most 6 can be told apart"),
        ({"kind": "bars", "series": list("abcdefg")}, "7 colours are needed"),
        ({"rows": {"one": ["tfidf", "nobody"]}}, "one names nobody, which is no row with scores; there are tfidf, vit"),
    ],
)
def test_what_cannot_be_drawn(change, told):
    assert told in (Figure(**{**LINES, **change}).problem(["tfidf", "vit"]) or "")
    assert Figure(**LINES).problem(["tfidf", "vit"]) is None


def test_a_benchmark_with_a_wrong_figure_is_refused_before_it_runs(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("model: {class_path: zoo.models.causal_lm.CausalLM}\n")
    rows = {"r": {"what": "r", "config": [str(config)], "grid": {"turns": {"none": {}, "two": {}}}}}
    figure = {"title": "Turns", "kind": "lines", "x": [0, 2], "rows": {"all": ["r.none", "r.two"]}}
    file = tmp_path / "bench.yaml"
    file.write_text(yaml.safe_dump({"title": "t", "data": DATA, "rows": rows, "figures": [figure]}))
    assert plan("--config", file)[0].figures == [Figure(**figure)]
    figure["rows"]["all"][1] = "r.three"
    file.write_text(yaml.safe_dump({"title": "t", "data": DATA, "rows": rows, "figures": [figure]}))
    assert "figure 'Turns': all names r.three" in refused("bench", "--config", file)
