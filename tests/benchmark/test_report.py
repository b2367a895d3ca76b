"""The report: its numbers are those of the results, it loads nothing, and no text can leave its place.

That it opens, sorts and filters in a browser is checked by tests/benchmarks/check_report.py.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.benchmark.made_up import BAD, hostile, made_up
from zoo.benchmark.report import write_report
from zoo.benchmark.report.content import COSTS, METRICS
from zoo.benchmark.report.drawing import DRAWN_POINTS, curve, overlap, scatter, score_axis
from zoo.benchmark.report.html import PUBLISHED
from zoo.benchmark.report.markdown import escape_cell, render_markdown
from zoo.benchmark.report.numbers import amount, memory, percent, pvalue, seconds, signed

VOID = {"meta", "img", "input", "br", "link", "hr", "source", "base", "col"}


class Page(HTMLParser):
    """What a browser would find in a page, as far as these tests ask.

    Attributes:
        tags: (name, attributes) of every element.
        texts: all text outside of scripts and styles, joined.
        scripts, styles: contents; (attributes, text) of the scripts.
        tables: by id, the body rows of each table: (row attributes, [(cell attributes, cell text)]).
        open: elements that were never closed.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.parts: list[str] = []
        self.scripts: list[tuple[dict, str]] = []
        self.styles: list[str] = []
        self.tables: dict[str, list] = {}
        self.open: list[str] = []
        self.table: str | None = None
        self.feed(text)
        self.close()
        self.texts = "".join(self.parts)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs), f"an attribute twice: {tag} {attrs}"
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((found, ""))
        elif tag == "style":
            self.styles.append("")
        elif tag == "table":
            self.table = found.get("id", f"table-{len(self.tags)}")
            self.tables[self.table] = []
        elif tag == "tr" and "tbody" in self.open:
            self.tables[self.table].append((found, []))
        elif tag in ("td", "th") and "tbody" in self.open:
            self.tables[self.table][-1][1].append([found, ""])

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else, line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.open and self.open[-1] == "style":
            self.styles[-1] += data
        else:
            self.parts.append(data)
            if "tbody" in self.open and {"td", "th"} & set(self.open):
                self.tables[self.table][-1][1][-1][1] += data


def write(tmp_path: Path, results: dict, utterances: list) -> tuple[Page, str]:
    write_report(results, tmp_path, utterances)
    return Page((tmp_path / "report.html").read_text("utf-8")), (tmp_path / "report.md").read_text("utf-8")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    results, utterances = made_up(n=300, dialogues=30, shown=20)
    return results, utterances, *write(tmp_path_factory.mktemp("plain"), results, utterances)


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    results, utterances = hostile()
    return results, utterances, *write(tmp_path_factory.mktemp("bad"), results, utterances)


def ordered(results: dict, group: str) -> list[dict]:
    rows = [r for r in results["rows"] if r["group"] == group]
    return sorted(rows, key=lambda r: r["scores"][results["metric"]]["mean"], reverse=True)


def markdown_tables(text: str) -> dict[str, list[list[str]]]:
    """The rows of the first table under each heading, cells split where GitHub splits them."""
    tables = {}
    for part in re.split(r"^## ", text, flags=re.M)[1:]:
        lines = [line for line in part.splitlines() if line.startswith("|")]
        tables[part.splitlines()[0]] = [
            [c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[:1] + lines[2:]
        ]
    return tables


# ---- numbers
def test_every_score_and_interval_of_the_page(plain):
    results, _, page, _ = plain
    rows = {r["name"]: r for r in results["rows"]}
    seen = 0
    for name, group in (("ranked", "ranked"), ("transductive", "transductive"), ("matched", None)):
        expected = [r["name"] for r in (ordered(results, group) if group else ordered(results, "ranked"))]
        if not group:
            expected = [n for n in expected if n in results["matched"]["rows"]]
        assert [attrs["data-row"] for attrs, _ in page.tables[name]] == expected
        for place, (attrs, cells) in enumerate(page.tables[name], 1):
            scores = rows[attrs["data-row"]]["scores"]
            assert cells[0][1] == str(place)
            found = {c["data-metric"]: (c["data-v"], text.split()) for c, text in cells if "data-metric" in c}
            assert set(found) == set(METRICS) == set(scores)
            for metric, (value, text) in found.items():
                assert float(value) == scores[metric]["mean"]  # unrounded
                low, high = scores[metric]["ci95"]
                assert "".join(text) == f"{100 * scores[metric]['mean']:.1f}{100 * low:.1f}–{100 * high:.1f}"
                seen += 1
    assert seen == 5 * (11 + 1 + 4)


def test_drawn_intervals_and_seeds(plain):
    results, _, page, _ = plain
    metric = results["metric"]
    drawn = [
        a["aria-label"] for t, a in page.tags if t == "svg" and a.get("aria-label", "").startswith(tuple("0123456789"))
    ]
    expected = []
    for r in ordered(results, "ranked") + ordered(results, "transductive"):
        s = r["scores"][metric]
        low, high = s["ci95"]
        seeds = ", ".join(f"{100 * v:.1f}" for v in s["values"])
        expected.append(f"{100 * s['mean']:.1f}, interval {100 * low:.1f}–{100 * high:.1f}, seeds {seeds}")
    assert drawn[: len(expected)] == expected
    # the mean is drawn where it lies on the axis, between two ticks that are labelled
    axis = score_axis(results["rows"], metric)
    means = [float(a["x1"][:-1]) for t, a in page.tags if t == "line" and a.get("class") == "mean" and "%" in a["x1"]]
    for r, x in zip(ordered(results, "ranked"), means, strict=False):  # means of the other tables follow
        mean = r["scores"][metric]["mean"]
        assert 0 <= x == pytest.approx(100 * (mean - axis.low) / (axis.high - axis.low), abs=0.01)
    assert len(means) >= len(results["rows"])  # the lowest row among them


def test_differences_verdicts_and_costs(plain):
    results, _, page, _ = plain
    rows = {r["name"]: r for r in results["rows"]}
    verdicts = set()
    for attrs, cells in page.tables["ranked"]:
        r = rows[attrs["data-row"]]
        text = " ".join(next(t for c, t in cells if c.get("class") == "against").split())
        if r["against_best"] is None:
            assert text == "★ best" and attrs.get("class") == "first"
            continue
        test = r["against_best"]
        low, high = (f"{100 * x:+.1f}".replace("-", "−") for x in test["ci95"])
        assert text.startswith(f"{100 * test['difference']:+.1f} ({low} to {high})".replace("-", "−"))
        assert test["verdict"] in text
        verdicts.add(test["verdict"])
        last = [c["data-v"] for c, _ in cells[-4:]]
        share = str(r["reachable"]["share"]) if r["reachable"] else ""
        cost = [str(r["cost"][k]) for k in ("parameters", "train_seconds", "test_seconds_per_sample")]
        assert last == [share, *cost]
    assert verdicts == {"worse", "no clear difference"}


def test_markdown_has_the_same_numbers(plain):
    results, _, _, text = plain
    tables = markdown_tables(text)
    seen = 0
    for heading, group in (("Ranking", "ranked"), ("Transductive", "transductive"), ("Matched", None)):
        rows = ordered(results, group or "ranked")
        if not group:
            rows = [r for r in rows if r["name"] in results["matched"]["rows"]]
        header, *lines = tables[heading]
        assert len(lines) == len(rows)
        for place, (line, r) in enumerate(zip(lines, rows, strict=True), 1):
            assert len(line) == len(header)
            at = dict(zip(header, line, strict=True))
            s = r["scores"]["weighted_f1"]
            low, high = s["ci95"]
            assert at["#"] == str(place) and at["system"].startswith(r["what"])
            assert at["Weighted F1"] == f"{100 * s['mean']:.1f}"
            assert at["95 % interval"] == f"{100 * low:.1f}–{100 * high:.1f}"
            assert at["seeds"] == ", ".join(f"{100 * v:.1f}" for v in s["values"])
            for metric in ("accuracy", "macro_f1", "uar", "unparsed"):
                s = r["scores"][metric]
                low, high = s["ci95"]
                assert at[METRICS[metric]] == f"{100 * s['mean']:.1f} ({100 * low:.1f}–{100 * high:.1f})"
            if r["against_best"]:
                assert r["against_best"]["verdict"] in at["against the best"]
            seen += 1
    assert seen == 11 + 1 + 4


def test_transductive_rows_stand_apart(plain):
    results, _, page, text = plain
    assert [a["data-row"] for a, _ in page.tables["transductive"]] == ["merit-ttrl"]
    assert "merit-ttrl" not in [a["data-row"] for a, _ in page.tables["ranked"]]
    assert "adapted to the inputs of the test split" in page.texts and "adapted to the inputs of the test split" in text
    # it has the best score of all, and still nothing is called worse than it
    best = max(results["rows"], key=lambda r: r["scores"]["weighted_f1"]["mean"])
    assert best["name"] == "merit-ttrl" and best["against_best"] is None
    assert f"{ordered(results, 'ranked')[0]['what']} leads with" in " ".join(page.texts.split())


def test_failed_runs_are_said_first(plain):
    results, _, page, text = plain
    failed = results["failed"][0]
    for where in (page.texts, text.replace("\\", "")):
        assert "1 run failed" in where or "1 failed" in where
        assert failed["reason"] in where and failed["log"] in where
        assert where.index(failed["reason"]) < where.index("leads with" if where is page.texts else "## Ranking")
    results = copy.deepcopy(results) | {"failed": []}
    assert "failed" not in [a.get("id") for _, a in Page(html(results)).tags]


def html(results: dict, utterances: list = []) -> str:  # noqa: B006 (never written to)
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_report(results, Path(folder), utterances)
        return (Path(folder) / "report.html").read_text("utf-8")


def test_confusions_classes_and_provenance(plain):
    results, _, page, text = plain
    columns = len(results["labels"]) + 2
    matrices = [t for t in page.tables.values() if len(t[0][1]) == columns and "title" in t[0][1][1][0]]
    assert len(matrices) == len(results["rows"])
    for r, matrix in zip(ordered(results, "ranked") + ordered(results, "transductive"), matrices, strict=True):
        assert [[int(t) for _, t in cells[1:]] for _, cells in matrix] == r["confusion"]
    for r, (_, cells) in zip(ordered(results, "ranked"), page.tables["classes"], strict=False):  # more follow
        assert [t for _, t in cells[1:]] == [f"{100 * r['per_class'][name]:.1f}" for name in results["labels"]]
    for known in (
        "zoo bench --config configs/bench/made_up.yaml",
        "0123abc",
        "torch 2.11.0",
        "three seeds of every trained",
    ):
        assert known in page.texts and known in cell_undone(text)
    for r in results["rows"]:
        assert all(run["predictions"] in page.texts for run in r["runs"])
    assert "Holm" in page.texts and "Holm" in text and "bootstrap intervals over dialogues" in text


def cell_undone(text: str) -> str:
    """Markdown's escapes taken back."""
    text = re.sub(r"\\([\\`*_\[\]|~#])", r"\1", text)
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


# ---- nothing is loaded, nothing leaves its place
@pytest.mark.parametrize("which", ["plain", "bad"])
def test_the_page_needs_no_network(which, request):
    page = request.getfixturevalue(which)[2]
    assert not page.open  # every element is closed
    for tag, attrs in page.tags:
        assert tag not in ("link", "base", "iframe", "object", "embed", "img") or "src" not in attrs, (tag, attrs)
        assert not any(name.startswith("on") for name in attrs), (tag, attrs)
        for name in ("src", "href", "xlink:href", "action", "srcset", "poster", "data", "background"):
            assert attrs.get(name, "#").startswith("#"), (tag, attrs)
        assert "url(" not in attrs.get("style", "")
    ours = page.styles + [text for attrs, text in page.scripts if "type" not in attrs]
    assert len(page.styles) == 1 and len(ours) == 2
    assert not any(re.search(r"https?:|url\(|@import|//cdn|fetch\(|XMLHttpRequest|import\(", text) for text in ours)
    assert "innerHTML =" not in ours[1] and "document.write" not in ours[1]
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(ours[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_texts_cannot_become_markup(bad):
    results, utterances, page, text = bad
    good = Page(html(made_up(n=200, dialogues=20, seeds=2, shown=30)[0], utterances[:1]))
    assert {t for t, _ in page.tags} == {t for t, _ in good.tags}  # the same kinds of elements as without them
    assert sum(t == "img" for t, _ in page.tags) == 1 and len(page.scripts) == 2
    attrs, data = page.scripts[0]
    assert attrs == {"type": "application/json", "id": "data"}
    assert not re.search("[<>&\u2028\u2029]", data)
    assert [u["text"] for u in json.loads(data)["utterances"]] == [u["text"] for u in utterances] != []
    assert json.loads(data)["utterances"][0]["systems"] == utterances[0]["systems"]
    assert page.texts.count(BAD) > 40  # they are shown, to the letter
    assert next(a for t, a in page.tags if t == "option" and a["value"] == "wrong:5") and "49" not in results["title"]

    assert "<" not in re.sub(r"p &lt;|<\.001", "", text) and "\u2028" not in text
    assert all(len(row) == len(table[0]) for table in markdown_tables(text).values() for row in table)
    assert " ".join(BAD.split()) in cell_undone(text)


def test_languages_other_than_english_survive(bad):
    assert "你好" in bad[2].texts and "你好" in bad[3]
    assert json.loads(bad[2].scripts[0][1])["utterances"][0]["text"] == BAD


@pytest.mark.parametrize("text", ["a|b", "a\nb", "<b>", "`c`", "[x](y)", "*a* _b_", "a\\|b", "~~x~~", "# x", "&lt;"])
def test_cell(text):
    assert cell_undone(escape_cell(text)) == " ".join(text.split())
    assert not re.search(r"(?<!\\)[|`*_\[~]", escape_cell(text).replace("\\\\", "")) and "\n" not in escape_cell(text)


def test_size(tmp_path):
    results, utterances = made_up(shown=300)
    for one in utterances:
        one["face"] = "data:image/jpeg;base64," + "QUJD" * 1250  # 5 kB, more than a thumbnail takes
    write_report(results, tmp_path, utterances)
    assert 1_500_000 < (tmp_path / "report.html").stat().st_size < 3_000_000


def test_a_page_says_what_a_reader_could_misread(plain):
    """Few dialogues, some utterances of many, and curves of one point."""
    results, utterances = copy.deepcopy(plain[0]), made_up(shown=3)[1]
    assert "too narrow" not in html(results) and "too narrow" not in render_markdown(results, results["rows"], [])
    results |= {"dialogues": 2}
    results["rows"][0]["curves"] = {"train/loss": [[100, 0.5]]}
    page = Page(html(results, utterances))
    assert "The test split has 2 dialogues. Intervals and comparisons are drawn from whole dialogues" in page.texts
    assert "⚠ The test split has 2 dialogues" in render_markdown(results, results["rows"], [])
    assert f"The first 3 of {results['n']:,} utterances, in whole dialogues" in page.texts
    assert page.texts.count("one value, at step 100") == 1


def test_without_utterances_and_optional_parts(plain):
    results = copy.deepcopy(plain[0]) | {"matched": None, "git": None, "notes": [], "failed": []}
    del results["seeds_note"]
    results["rows"] = [r | {"reads": None, "reachable": None} for r in results["rows"] if r["group"] == "ranked"]
    for r in results["rows"]:
        r["cost"] = dict.fromkeys(r["cost"]) | {"interrupted": 0}
    page = Page(html(results))
    assert "No single utterances were stored" in page.texts and len(page.scripts) == 1
    assert "matched" not in page.tables and "transductive" not in page.tables
    assert "None" not in page.texts and "nan" not in page.texts
    assert page.texts.count("not measured") == len(COSTS) * len(results["rows"])


# ---- what is refused
@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda r, u: r["rows"][3]["scores"]["uar"].update(mean=math.nan), "text-llm.*uar must be finite"),
        (
            lambda r, u: r["rows"][3]["scores"]["uar"]["values"].append(61.2),
            "text-llm.*uar must be finite numbers in 0..1",
        ),
        (lambda r, u: r["rows"][3]["scores"]["uar"].update(ci95=[None, 0.5]), "text-llm.*uar must be finite"),
        (lambda r, u: r["rows"][0].update(name="farcer"), "names of their own, got 'farcer' 2 times"),
        (lambda r, u: r["rows"][0].update(group="other"), "'majority'.*got 'other'"),
        (lambda r, u: r["rows"][0]["against_best"].update(verdict="bad"), "one of worse.*got 'bad'"),
        (lambda r, u: next(x for x in r["rows"] if x["against_best"]).update(against_best=None), "is not compared"),
        (lambda r, u: r["matched"]["rows"].append("nobody"), "names 'nobody', which is not a row"),
        (lambda r, u: u[0].update(face="https://example.org/face.jpg"), "must be an embedded picture"),
    ],
)
def test_refused(plain, tmp_path, spoil, message):
    results, utterances = copy.deepcopy(plain[0]), copy.deepcopy(plain[1])
    spoil(results, utterances)
    with pytest.raises(ValueError, match=message):
        write_report(results, tmp_path, utterances)
    assert not list(tmp_path.iterdir())


# ---- the papers' tables
SUMS = {"farcer": 15858.96, "grpo_selector": 2908.2, "merit": 1684.385, "emotion_qwen": 26748.17, "dialoguellm": 284.41}


def test_published_results_are_whole():
    papers = json.loads(PUBLISHED.read_text("utf-8"))
    assert set(papers) == {"farcer", "grpo_selector", "merit", "emotion_qwen", "dialoguellm"}
    tables = [(p, t) for p in papers.values() for t in p["tables"]]
    assert sum(v is not None for _, t in tables for r in t["rows"] for v in r["values"]) == 594
    for name, total in SUMS.items():  # of the numbers as first copied from the papers: a changed digit shows
        values = [v for t in papers[name]["tables"] for r in t["rows"] for v in r["values"] if v is not None]
        assert math.fsum(values) == pytest.approx(total, abs=1e-3), name
    for paper, table in tables:
        assert all(len(r["values"]) == len(table["columns"]) for r in table["rows"]), table["name"]
        assert any(r["own"] for r in table["rows"]) and paper["package"].startswith("zoo.models.")
        assert (PUBLISHED.parents[1] / "models" / paper["package"].split(".")[-1]).is_dir()
        assert all("n" in c and "corpus" in c for c in table["columns"])


def test_published_accuracies_fit_their_n():
    """An accuracy is a whole number of right answers: FARCER's are k/280 and k/225 (its Table I says 224)."""
    fits: dict[tuple, list[bool]] = {}
    for table in json.loads(PUBLISHED.read_text("utf-8"))["farcer"]["tables"]:
        at = [c["name"] for c in table["columns"]].index("accuracy")
        corpus, n = table["columns"][at]["corpus"], table["columns"][at]["n"]
        for r in table["rows"]:
            if "n" not in r:
                for m in (n, 224):
                    k = round(r["values"][at] * m / 100)
                    fits.setdefault((corpus, m), []).append(abs(100 * k / m - r["values"][at]) < 0.0051)
    assert all(fits["MELD", 280]) and all(fits["IEMOCAP", 225]) and not all(fits["IEMOCAP", 224])
    assert len(fits["MELD", 280]) == len(fits["IEMOCAP", 225]) == 16


def test_published_artefact_of_emotion_qwen():
    """The UAR that is half the WAR: the rows that the notes name, and no other."""
    halves = {}
    for table in json.loads(PUBLISHED.read_text("utf-8"))["emotion_qwen"]["tables"]:
        names = [c["name"] for c in table["columns"]]
        if "UAR" in names:
            pairs = [(r["values"][names.index("WAR")], r["values"][names.index("UAR")]) for r in table["rows"]]
            halves[table["name"]] = [w is not None and abs(u - w / 2) < 0.0051 for w, u in pairs]
    assert halves["Table 3, emotion tasks"] == [True, False, False] + [True] * 6
    assert halves["Table 6 (face capture on and off)"] == [False, True]
    assert halves["Table 7 (compressor)"] == [True] * 3
    assert halves["Table 5"] == [False, False, True, False, False] and not any(halves["Table 8 (tuning strategy)"])


def test_papers_beside_ours(plain):
    results, _, page, _ = plain
    papers = json.loads(PUBLISHED.read_text("utf-8"))
    published = [rows for name, rows in page.tables.items() if name.startswith("table-")]
    values = [c["data-v"] for rows in published for _, cells in rows for c, _ in cells[1:] if "data-v" in c]
    expected = [
        "" if v is None else str(v)
        for p in papers.values()
        for t in p["tables"]
        for r in t["rows"]
        for v in r["values"]
    ]
    assert values == expected  # all of them, in order
    shown = [t for rows in published for _, cells in rows for c, t in cells[1:] if c.get("data-v")]
    assert [float(t) for t in shown] == [float(v) for v in expected if v]
    ours = [cells for rows in published for _, cells in rows if any("not comparable" in t for _, t in cells)]
    names = ["farcer", "selector", "merit", "merit-ttrl", "emotion-qwen", "dialoguellm"]
    by_name = {next(n for n in sorted(names, key=len, reverse=True) if n in cells[0][1]): cells for cells in ours}
    assert set(by_name) == set(names) and len(ours) == len(names)
    farcer = next(r for r in results["rows"] if r["name"] == "farcer")
    assert by_name["farcer"][1][1] == "small, 3.15 M parameters, other data: not comparable"
    assert f"{100 * farcer['scores']['accuracy']['mean']:.1f}" in by_name["farcer"][3][1]


# ---- pieces
@pytest.mark.parametrize(
    "function, value, text",
    [
        (percent, 0.6123, "61.2"),
        (percent, 1.0, "100.0"),
        (signed, -0.0312, "−3.1"),
        (signed, 0.0312, "+3.1"),
        (pvalue, 0.0123, ".012"),
        (pvalue, 0.0009, "<.001"),
        (pvalue, 1.0, "1.000"),
        (pvalue, 0.0499, ".050"),
        (amount, None, "–"),
        (amount, 0, "0"),
        (amount, 999, "999"),
        (amount, 2_310_000, "2.31 M"),
        (amount, 7e9, "7 B"),
        (amount, 999_900, "1 M"),
        (amount, 148.24, "148"),
        (seconds, None, "–"),
        (seconds, 0.0123, "12.3 ms"),
        (seconds, 75, "1.25 min"),
        (seconds, 7200, "2 h"),
        (seconds, 3e-6, "3 µs"),
        (seconds, 59.99, "1 min"),
        (memory, None, "–"),
        (memory, 310.2, "310 MiB"),
        (memory, 2048, "2 GiB"),
        (memory, 1023.7, "1 GiB"),
    ],
)
def test_numbers_as_text(function, value, text):
    assert function(value) == text


def test_axis_holds_everything_or_the_best(plain):
    rows = plain[0]["rows"]
    axis = score_axis(rows, "weighted_f1")
    numbers = [x for r in rows for x in (*r["scores"]["weighted_f1"]["ci95"], *r["scores"]["weighted_f1"]["values"])]
    assert axis.low <= min(numbers) and max(numbers) <= axis.high
    assert axis.position(axis.low) == 0 and axis.position(axis.high) == 100
    assert axis.ticks[0] == pytest.approx(axis.low) and axis.ticks[-1] == pytest.approx(axis.high)
    one = score_axis([{"scores": {"uar": {"ci95": [0.5, 0.5], "values": [0.5]}}}], "uar")
    assert one.high > one.low


@pytest.mark.parametrize("width", [1080, 360])
@pytest.mark.parametrize("cost", list(COSTS))
def test_scatter(plain, cost, width):
    rows = plain[0]["rows"]
    picture = scatter(rows, "weighted_f1", cost, score_axis(rows, "weighted_f1"), width, 440)
    assert len(picture["points"]) + len(picture["left_out"]) == len(rows)
    assert all(not value for _, value in picture["left_out"])
    by_cost = sorted(picture["points"], key=lambda p: p.x)
    assert [p.row["cost"][cost] for p in by_cost] == sorted(p.row["cost"][cost] for p in picture["points"])
    by_score = sorted(picture["points"], key=lambda p: -p.y)
    means = [p.row["scores"]["weighted_f1"]["mean"] for p in by_score]
    assert means == pytest.approx(sorted(means), abs=0.002)  # a tenth of a pixel
    boxes = []
    for p in picture["points"]:
        assert (
            picture["left"] <= p.x <= picture["right"]
            and picture["top"] <= p.top <= p.y <= p.bottom <= picture["bottom"]
        )
        wide = 6 * len(p.text)
        left = {"start": p.label_x, "end": p.label_x - wide, "middle": p.label_x - wide / 2}[p.anchor]
        boxes.append((left, p.label_y - 10, left + wide, p.label_y + 2))
    assert sum(overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i]) < 120  # square pixels
    assert len(picture["x_ticks"]) >= 2
    steps = [float(y) for y in re.findall(r"V([\d.]+)", picture["front"])]
    assert steps == sorted(steps, reverse=True)  # every step of the front goes up


def test_curve():
    points = [[k, 2.0 - k / 1000] for k in range(1000)]
    drawn = curve(points)
    assert drawn["path"].count("M") == 1 and 200 <= len(re.findall("[ML]", drawn["path"])) <= DRAWN_POINTS + 1
    assert (drawn["first"], drawn["last"], drawn["low"], drawn["high"]) == (
        2.0,
        pytest.approx(1.001),
        pytest.approx(1.001),
        2.0,
    )
    assert drawn["path"].startswith("M0.0 0.0") and drawn["path"].endswith("L232.0 84.0") and not drawn["broken"]
    gap = curve([[0, 1.0], [1, None], [2, float("nan")], [3, 0.0]])
    assert gap["path"].count("M") == 2 and gap["broken"] == 2 and gap["points"] == 4
    assert curve([[0, None]]) is None and curve([]) is None
    flat = curve([[5, 0.3]])
    assert flat["path"] == "M116.0 42.0"
