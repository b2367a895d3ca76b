"""What a benchmark file says: one corpus to test on, and rows that are trained (or loaded) and tested on it.

    title: The embedded sitcom
    data: {class_path: zoo.data.Synthetic, init_args: {root: runs/sitcom}}
    seeds: [0, 1, 2]
    rows:
      farcer: {what: FARCER, checkpoint: farcer-sitcom}
      words: {what: LoRA on words alone, config: [configs/causal_lm/sitcom.yaml], options: {model.lr: 1e-3}}

`Bench` and `Row` are read by jsonargparse, so a typing error is named and every value can be given as a flag.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zoo.data import Adaptation, EmotionData

Metric = Literal["weighted_f1", "accuracy", "macro_f1", "uar"]
PUBLISHED = Path(__file__).with_name("published_results.json")
REFERENCE = re.compile(r"\b(run|results):([A-Za-z0-9_.-]+)")


@dataclass(frozen=True)
class Figure:
    """A figure of the report, drawn from the scores of rows.

    Attributes:
        title: above it, e.g. ``Figure 3: earlier turns``.
        kind: ``lines``: a line for each entry of `rows`, through its rows at the places `x`; ``bars``: a group of bars
            for each entry, whose bars are named by `series`; ``labels``: a bar for each entry, of one row, in a group
            for each label: its F1.
        rows: name of a line, a group or a row -> names of rows, from grids as they are expanded.
        x: of ``lines``, the value of the setting at each row of a line.
        series: of ``bars``, the names of the bars of a group.
        axis: what the horizontal axis shows.
    """

    title: str
    kind: Literal["lines", "bars", "labels"]
    rows: dict[str, list[str]]
    x: list[float] = field(default_factory=list)
    series: list[str] = field(default_factory=list)
    axis: str = ""

    def problem(self, known: Collection[str]) -> str | None:
        """Return what is wrong with it; None if it can be drawn. ``known``: names of rows with scores."""
        expected = {"lines": len(self.x), "bars": len(self.series), "labels": 1}[self.kind]
        if not self.rows or not expected:
            return f"kind {self.kind} needs {NEEDED[self.kind]}"
        if not all(map(math.isfinite, self.x)):
            return f"x is {self.x}; expected finite numbers"
        names_shown = self.series if self.kind == "bars" else list(self.rows)
        if len(names_shown) > SERIES:
            return f"{len(names_shown)} colours are needed; at most {SERIES} can be told apart, so make two figures"
        for name, names in self.rows.items():
            if len(names) != expected:
                return f"{name} has {len(names)} rows; expected {expected}, as many as {WHAT_COUNTS[self.kind]}"
            if unknown := [row for row in names if row not in known]:
                return f"{name} names {unknown[0]}, which is no row with scores; there are {', '.join(known)}"
        return None


SERIES = 6  # colours of a figure that can be told apart
NEEDED = {"lines": "rows and x", "bars": "rows and series", "labels": "rows"}  # of a figure
WHAT_COUNTS = {"lines": "x has values", "bars": "series has names", "labels": "a bar has"}


@dataclass(frozen=True)
class Miniature:
    """What ``--small`` replaces, so that the same grid runs in minutes: see `zoo.benchmark.grids`.

    Attributes:
        data: of a benchmark, its corpus; of a row, what it is trained on.
        checkpoint: of a row, what it tests.
        options: set over those of the row, after its grid's.
        test_options: the same of the test.
        alone: of a row, whose system does not know the options that the benchmark's own miniature sets: only what this
            one replaces.
    """

    data: EmotionData | None = None
    checkpoint: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    test_options: dict[str, Any] = field(default_factory=dict)
    alone: bool = False


@dataclass(frozen=True)
class Row:
    """One line of the table.

    A row either has `config` (it is trained, then tested) or `checkpoint` (it is tested as it is); with `zero_shot` a
    config is tested without training. Values may name another row of the same seed: ``run:NAME`` is the run folder that
    NAME was trained in, ``results:NAME`` the folder with its predictions.jsonl or decisions.jsonl; NAME is done first.

    Attributes:
        what: as the report prints it.
        config: YAML files, read one after the other; their data section gives only batch sizes and workers.
        checkpoint: published name, run folder or file; or ``run:NAME``.
        zero_shot: test `config` without training.
        options: flags without the dashes, e.g. ``{model.lr: 1e-3}``, of training (of a row without training: of its
            test).
        test_options: flags of the test.
        adapt: train on the benchmark's test split without its labels (`zoo.data.Adaptation`, transductive). Such a row
            stands apart from the ranked ones.
        train_data: train on this, test on the benchmark's corpus.
        seeds: training seeds; None takes the benchmark's. A row that nothing is drawn for needs one.
        size: shown beside the name, e.g. ``small`` or ``7B``.
        use: checkpoint of a trained row that is tested.
        verb: ``predict`` writes what other rows need (a selector's decisions), ``fit`` only trains it for them; neither
            is ranked.
        hidden: trained and kept, but not in the table.
        matched: stands in the matched view, whose rows must have had the same language model, training data and steps.
        why: hidden row whose details say why this one answered as it did (a selector's thoughts).
        grid: axis -> name of a value -> options: the row stands for their product, see `zoo.benchmark.grids`.
        figures: drawn in the report, in this order.
        miniature: what ``--small`` replaces in this row, after what the benchmark's own replaces.
        published: what the row repeats, as ``PAPER: SYSTEM`` of published_results.json; the report's Papers page puts
            those numbers beside it.
        reads: of benchmark files written before a system said itself what it reads; not used.
    """

    what: str
    config: list[str] | None = None
    checkpoint: str | None = None
    zero_shot: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    test_options: dict[str, Any] = field(default_factory=dict)
    adapt: bool = False
    train_data: EmotionData | None = None
    seeds: list[int] | None = None
    size: str = "small"
    use: Literal["best", "last"] = "best"
    verb: Literal["test", "predict", "fit"] = "test"
    hidden: bool = False
    matched: bool = False
    why: str | None = None
    grid: dict[str, Any] | None = None
    miniature: Miniature | None = None
    published: str | None = None
    reads: list[str] | None = None

    @property
    def trains(self) -> bool:
        return self.config is not None and not self.zero_shot

    @property
    def ranked(self) -> bool:
        return self.verb == "test" and not self.hidden

    def values(self) -> Iterator[str]:
        """Return every value that may name another row."""
        yield from (str(v) for v in (self.checkpoint, *self.options.values(), *self.test_options.values()))
        yield from () if self.why is None else (f"results:{self.why}",)


@dataclass(frozen=True)
class Bench:
    """A benchmark.

    Attributes:
        title: of the report.
        data: the corpus that every row is tested on.
        rows: name -> row; names are letters, digits, ``_``, ``.`` and ``-``.
        seeds: training seeds of rows that name none of their own.
        metric: what rows are ranked by.
        utterances: at most so many single utterances are shown in the report, whole dialogues from the first on.
        show_texts: whether the report shows words, faces and descriptions of the corpus. Without, it can be passed on
            where the corpus cannot: ids and answers alone.
        miniature: what ``--small`` replaces in every row, see `zoo.benchmark.grids`.
    """

    title: str
    data: EmotionData
    rows: dict[str, Row]
    seeds: list[int] = field(default_factory=lambda: [0])
    metric: Metric = "weighted_f1"
    utterances: int = 200
    show_texts: bool = True
    figures: list[Figure] = field(default_factory=list)
    miniature: Miniature | None = None

    def seeds_of(self, name: str) -> list[int]:
        seeds = self.rows[name].seeds
        return self.seeds if seeds is None else seeds

    def needs(self, name: str) -> list[str]:
        """Return the names of the rows that must be done before this one."""
        row = self.rows[name]
        return list(dict.fromkeys(m[2] for value in row.values() for m in REFERENCE.finditer(value)))

    def order(self) -> list[str]:
        """Return every row after those it needs. ValueError naming the rows of a circle."""
        done: list[str] = []
        while len(done) < len(self.rows):
            ready = [n for n in self.rows if n not in done and all(m in done for m in self.needs(n))]
            if not ready:
                left = ", ".join(n for n in self.rows if n not in done)
                raise ValueError(f"rows need each other in a circle: {left}")
            done += ready
        return done

    def seed_of(self, name: str, needed: str, seed: int) -> int:
        """Return the seed of a needed row: the same, or its only one."""
        seeds = self.seeds_of(needed)
        if seed in seeds:
            return seed
        if len(seeds) == 1:
            return seeds[0]
        raise ValueError(
            f"row {name} with seed {seed} needs row {needed}, which has the seeds {seeds}; give both the same seeds"
        )

    def check(self) -> None:
        """Raise ValueError for a benchmark that could not be run to its end."""
        if not self.rows or not any(row.ranked for row in self.rows.values()):
            raise ValueError("the benchmark has no row to rank; give at least one under rows")
        if not self.seeds:
            raise ValueError("seeds is empty; give at least one training seed")
        for name, row in self.rows.items():
            self._check(name, row)
        scored = [name for name, row in self.rows.items() if row.ranked]
        for figure in self.figures:
            if problem := figure.problem(scored):
                raise ValueError(f"figure {figure.title!r:.80}: {problem}")
        self.order()
        for name in self.rows:
            for needed in self.needs(name):
                for seed in self.seeds_of(name):
                    self.seed_of(name, needed, seed)

    def _check(self, name: str, row: Row) -> None:
        """Raise ValueError for a row that could not be run to its end."""
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,200}", name) or not name.strip("."):
            raise ValueError(
                f"row name {name!r:.80}: expected at most 200 letters, digits, '_', '.' and '-', and not "
                "dots alone, since it names a folder"
            )
        problem = _source_problem(row) or _training_problem(row) or _option_problem(row) or _published_problem(row)
        for reference in (m for value in row.values() for m in REFERENCE.finditer(value)):
            problem = problem or self._reference_problem(reference)
        if problem:
            raise ValueError(f"row {name}: {problem}")

    def _reference_problem(self, reference: re.Match[str]) -> str | None:
        """Return what is wrong with ``run:ROW`` or ``results:ROW``."""
        text, kind, needed = reference[0], reference[1], reference[2]
        if needed not in self.rows:
            return f"{text} names no row; there are {', '.join(self.rows)}"
        if kind == "results" and self.rows[needed].verb == "fit":
            return (
                f"{text}: row {needed} is only trained (verb fit), so it has no results; run:{needed} is its run folder"
            )
        if kind == "run" and not self.rows[needed].trains:
            return (
                f"{text}: row {needed} is not trained, so it has no run folder; results:{needed} is the "
                "folder with its answers"
            )
        return None


def _source_problem(row: Row) -> str | None:
    """Return what is wrong with where a row comes from: its config or its checkpoint."""
    if (row.config is None) == (row.checkpoint is None):
        return (
            "expected either config (to train it) or checkpoint (to test it), got "
            f"{'both' if row.config else 'neither'}"
        )
    missing = [file for file in row.config or () if not Path(file).is_file()]
    return f"config {missing[0]} does not exist (looked for from {Path.cwd()})" if missing else None


def _training_problem(row: Row) -> str | None:
    """Return what is wrong with how a row is trained."""
    if row.verb == "fit" and not row.trains:
        return "verb fit only trains, and this row is not trained; give it a config"
    if row.zero_shot and row.config is None:
        return "zero_shot tests a config without training; a checkpoint needs no such word"
    if row.seeds is not None and (not row.seeds or len(set(row.seeds)) < len(row.seeds)):
        return f"seeds {row.seeds}: expected different ones, at least one"
    if (row.adapt or row.train_data is not None) and not row.trains:
        return "adapt and train_data say what a row is trained on, and this one is not trained"
    if row.train_data is not None and (row.adapt or isinstance(row.train_data, Adaptation)):
        return "a row that adapts is trained on the test split; write adapt: true, and no train_data"
    return None


def _option_problem(row: Row) -> str | None:
    """Return what is wrong with a row's options: those that the benchmark sets itself."""
    for key in (*row.options, *row.test_options):
        if re.match(r"data(\.class_path|$)|config$|ckpt_path$|trainer\.(default_root_dir|logger)$", key):
            return f"option {key} is the benchmark's own; use train_data, adapt, config or checkpoint"
    return None


def _published_problem(row: Row) -> str | None:
    """Return what is wrong with what a row says it repeats."""
    if row.published is None or published_columns(row.published):
        return None
    return f"published {row.published!r} is no system of {PUBLISHED.name}; expected PAPER: SYSTEM as printed there"


def published_columns(published: str) -> list[dict[str, Any]]:
    """Return the published numbers of a system, in the order they are printed in.

    Args:
        published: ``PAPER: SYSTEM``, e.g. ``farcer: Base FARCER - 3 shot``.

    Returns:
        ``table``, ``protocol``, ``name`` of the column, ``corpus``, ``n`` (None where it is not stated) and ``value``
        of each number; empty for what is not there.
    """
    paper, _, system = published.partition(": ")
    tables = json.loads(PUBLISHED.read_text(encoding="utf-8")).get(paper, {"tables": []})["tables"]
    return [
        {"table": table["name"], "protocol": table["protocol"], "value": value}
        | {"name": column["name"], "corpus": column["corpus"], "n": row.get("n", column["n"])}
        for table in tables
        for row in table["rows"]
        if row["system"] == system
        for column, value in zip(table["columns"], row["values"], strict=True)
        if value is not None
    ]


def flags(options: Mapping[str, Any]) -> list[str]:
    """Return options as the command line reads values: ``{model.lr: 1e-3}`` -> ``--model.lr=0.001``."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()]
