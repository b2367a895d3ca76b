"""Every number of a document stands in a results file, and documents that speak of the same thing say the same."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.benchmarks import meld_laptop
from tests.benchmarks.result_files import DECIMAL, MARK, Table, holds_results, load, markdown, tables, update, write
from tests.runs_helper import REPOSITORY
from zoo.benchmark.statistics import LEVEL
from zoo.checkpoints.listing import index
from zoo.checkpoints.loading import build_module
from zoo.data import MELD

CARDS = [*sorted(REPOSITORY.glob("zoo/models/*/README.md")), *sorted(REPOSITORY.glob("checkpoints/*/README.md"))]
DOCUMENTS = [REPOSITORY / "README.md", *sorted(REPOSITORY.glob("docs/*.md")), *CARDS]
FILES = sorted(REPOSITORY.glob("results/*.json"))
# tables with decimals that nobody measured: terms of a formula, licences
EXPLAINING = {("term", "option", "value"), ("corpus", "`--data`", "what it is", "licence")}
PROSE = r"```.*?```|`[^`]*`|^\|.*?$|^    .*?$|\]\([^)]*\)|<!--.*?-->"  # of a document, what is no sentence


def name(document: Path) -> str:
    return str(document.relative_to(REPOSITORY))


def numbers(text: str) -> list[str]:
    return [number.replace("−", "-").lstrip("+") for number in DECIMAL.findall(text)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_table_of_results_is_that_of_its_file(document):
    for table in tables(document.read_text(encoding="utf-8")):
        if tuple(table.header) in EXPLAINING:
            continue
        if table.mark is None:
            assert not holds_results(table), f"{name(document)} line {table.first + 1}: name the results file"
            continue
        stored = load(table.mark[0])[table.mark[1]]
        assert (table.header, table.rows) == (stored["header"], stored["rows"]), f"{name(document)} {table.mark}"


def test_every_stored_table_stands_in_one_document_and_says_how_it_was_measured():
    marks = [mark for d in DOCUMENTS for mark in MARK.findall(d.read_text(encoding="utf-8"))]
    stored = {(name(file), key): table for file in FILES for key, table in load(name(file)).items()}
    assert sorted(marks) == sorted(stored) and len(marks) > 40
    for place, table in stored.items():
        printed = table["source"] == "printed in the paper"
        assert printed or (table["date"] and table["command"] and table["split"]), place
        assert printed or table["n"] or "n" in " ".join(table["header"]) or place[0] == "results/grpo.json", place


def test_a_changed_number_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.benchmarks.result_files.ROOT", tmp_path)
    facts = {"command": "c", "n": 9, "split": "test", "seeds": [0]}
    write("results/own.json#one", ["row", "F1"], [["a", "61.2 [58.0, 64.1]"]], **facts)
    document = tmp_path / "README.md"
    written = markdown(load("results/own.json")["one"])
    document.write_text("\n".join(["<!-- results: results/own.json#one -->", *written]))
    assert tables(document.read_text())[0].rows == [["a", "61.2 [58.0, 64.1]"]]
    document.write_text(document.read_text().replace("61.2", "62.1"))
    (table,) = tables(document.read_text())
    assert holds_results(table) and table.rows != load("results/own.json")["one"]["rows"]
    update(document)
    assert "61.2" in document.read_text() and "62.1" not in document.read_text()


def test_the_stored_answers_are_whole_and_every_system_has_its_row():
    folder = REPOSITORY / "results" / "meld-laptop"
    runs = json.loads((folder / "runs.json").read_text())
    assert {f"{name}.csv" for name in runs} == {file.name for file in folder.glob("*.csv")}
    for name in runs:
        with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        assert len({line["sample"] for line in lines}) == len(lines) == 2610, name
        scores = [[float(line[label]) for label in MELD.labels.names] for line in lines]
        assert all(abs(sum(row) - 1) < 1e-4 and min(row) >= 0 for row in scores), name
    table = load("results/dialoguellm.json")["laptop"]
    row_of = {row[0]: row for row in table["rows"]}
    keys = {name.rpartition("-")[0] for name in runs}
    assert {meld_laptop.ROWS[key].name for key in keys} == set(row_of)
    column = table["header"].index("each seed")
    for key in keys:
        assert len(row_of[meld_laptop.ROWS[key].name][column].split()) == sum(n.rpartition("-")[0] == key for n in runs)


# ---- what is said twice
def as_printed(value: float, number: str) -> bool:
    """Whether a share is printed rightly, in percent, by a number with decimals."""
    decimals = len(number.partition(".")[2])
    return abs(100 * value - float(number)) <= 0.5 * 10**-decimals + 1e-9


def table_of_the_documents(mark: str) -> Table:
    """The one table of results/readme.json with this mark."""
    found = [t for d in DOCUMENTS for t in tables(d.read_text()) if t.mark == ("results/readme.json", mark)]
    (table,) = found
    return table


@pytest.mark.parametrize("entry", [n for n, e in index().items() if e["source"] == "shipped"])
def test_page_card_and_index_give_one_score(entry):
    published = table_of_the_documents("published")
    (row,) = (r for r in published.rows if f"checkpoints/{entry})" in r[0])
    card = "\n".join(
        " ".join(r) for t in tables((REPOSITORY / "checkpoints" / entry / "README.md").read_text()) for r in t.rows
    )
    reported = index()[entry]["reported"]
    values = [score["value"] for score in reported]
    for number in numbers(row[2]):
        assert any(as_printed(value, number) for value in values), (
            f"docs/checkpoints.md says {number}, the index {values}"
        )
    for value in values:
        on_card = numbers(card)
        missing = f"the card lacks {value}: {on_card}"
        assert any(as_printed(value, n) or as_printed(value / 100, n) for n in on_card), missing


def test_numbers_in_sentences_about_results_stand_in_the_tables():
    text = "\n".join((REPOSITORY / page).read_text(encoding="utf-8") for page in ("README.md", "docs/results.md"))
    stored = load("results/readme.json").values()
    held = {n for table in stored for row in table["rows"] for n in numbers(" ".join(row))}
    allowed = {"0.8"}  # share of descriptions kept on MELD, see below
    prose = re.sub(PROSE, " ", text, flags=re.DOTALL | re.MULTILINE)
    in_prose = [n for n in numbers(prose) if not re.search(rf"(?:Python |, to |-){re.escape(n)}", prose)]
    assert in_prose and not set(in_prose) - held - allowed, set(in_prose) - held - allowed


def test_the_level_of_significance_is_the_one_that_is_used():
    notebooks = {
        p.name: "".join("".join(c["source"]) for c in json.loads(p.read_text())["cells"])
        for p in (REPOSITORY / "notebooks").glob("*.ipynb")
    }
    levels = {
        where: re.findall(r"corrected values? (?:is|are|lies?) below (\d*\.\d+)", text)
        for where, text in {**notebooks, **{name(d): d.read_text() for d in DOCUMENTS}}.items()
    }
    assert levels["reading_the_report.ipynb"] and {float(x) for xs in levels.values() for x in xs} == {LEVEL}


# ---- what the rows of the benchmarks read
def merged(configs: list[Path], options: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The first config and the model options that later ones and flags put in place of its own."""
    changes: dict[str, Any] = {}

    def flat(tree: dict, before: str = "") -> None:
        for key, value in tree.items():
            changes[f"{before}{key}"] = value

    for config in configs[1:]:
        flat((yaml.safe_load(config.read_text()).get("model") or {}).get("init_args") or {})
    flat({k.removeprefix("model."): v for k, v in options.items() if k.startswith("model.")})
    return configs[0], changes


@pytest.mark.parametrize("bench", ["sitcom", "meld"])
def test_the_page_of_results_says_what_each_row_reads(bench):
    rows = yaml.safe_load((REPOSITORY / "configs" / "bench" / f"{bench}.yaml").read_text())["rows"]
    reads = {}
    for row in rows.values():
        if row.get("hidden") or row.get("verb", "test") != "test":
            continue
        trained, options = row, {**row.get("options", {}), **row.get("test_options", {})}
        while str(trained.get("checkpoint")).startswith("run:"):
            trained = rows[trained["checkpoint"].removeprefix("run:")]
            options = trained.get("options", {}) | options
        if trained.get("checkpoint"):
            config, changes = merged([REPOSITORY / "checkpoints" / trained["checkpoint"] / "config.yaml"], options)
        else:
            config, changes = merged([REPOSITORY / c for c in trained["config"]], options)
        foreign = {k: v for k, v in changes.items() if str(v).startswith("run:")}  # runs that are not here
        changes = {
            k: None if k in foreign else "always" if k == "selection" and v != "never" else v
            for k, v in changes.items()
        }
        reads[row["what"]] = ", ".join(build_module(config, changes).reads) or "nothing"
    table = table_of_the_documents(bench)
    column = table.header.index("reads")
    assert {r[0]: r[column] for r in table.rows} == reads
