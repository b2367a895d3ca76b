"""``zoo compare RUN RUN ...``: tested runs side by side in the terminal, each against the first.

The numbers are those of ``zoo bench``: paired bootstrap over dialogues and McNemar's test, corrected for the number of
runs (`zoo.benchmark.statistics`). Runs that answered other samples, or the same under another protocol, are refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from zoo.benchmark.collect import check_comparable
from zoo.benchmark.records import ROW, TEST, read_record, read_rows
from zoo.benchmark.report.numbers import percent, pvalue, signed
from zoo.benchmark.statistics import LEVEL, against
from zoo.configs import read_run_config
from zoo.metrics import HEADLINE, evaluate
from zoo.runs import newest_config
from zoo.schema import Labels

STATED = {name: TEST[name] for name in ("split", "corpus", "eval_protocol", "model")}  # in a metrics.json
SAME = ("trainer.default_root_dir", "trainer.logger", "ckpt_path")  # where a run wrote, not what it did


def main(args: list[str]) -> None:
    """Run ``zoo compare``.

    Raises:
        FileNotFoundError: a run has not been tested.
        ValueError: fewer than two runs, or runs that cannot be compared.
    """
    parser = argparse.ArgumentParser("zoo compare", description="Tested runs side by side, each against the first.")
    where = "run folder after zoo test, or the results folder of a row of zoo bench"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=where)
    metrics = (*HEADLINE, "unparsed")
    parser.add_argument("--metric", default=metrics[1], choices=metrics, help=f"of the comparison ({metrics[1]})")
    options = parser.parse_args(args)
    width = None if Console().is_terminal else 160
    # names of runs and regular expressions among the options may look like markup
    console = Console(soft_wrap=False, markup=False, emoji=False, width=width)
    for part in compare(options.runs, options.metric):
        console.print(part)


def compare(runs: Sequence[Path], metric: str = "weighted_f1") -> Iterator[Table | str]:
    """Yield what is printed about tested runs, the first of which the others are compared with.

    Args:
        runs: folders with metrics.json and predictions.jsonl.
        metric: accuracy, weighted_f1, macro_f1, uar or unparsed.

    Raises:
        FileNotFoundError: a run has not been tested.
        ValueError: fewer than two runs, one that stands there twice, runs of several label sets, or runs that did not
            answer the same samples of the same split under the same protocol.
    """
    if len(runs) < 2 or len({run.resolve() for run in runs}) < len(runs):
        raise ValueError(f"got {', '.join(map(str, runs))}; expected two or more runs, each once: zoo compare RUN RUN")
    names = [str(run) for run in runs]
    records = {name: _tested(run) for name, run in zip(names, runs, strict=True)}
    answers = {name: [read_rows(run / "predictions.jsonl", ROW)] for name, run in zip(names, runs, strict=True)}
    check_comparable(answers, {name: [record] for name, record in records.items()})
    first = records[names[0]]
    labels = Labels(first["corpus"], tuple(first["support"]))
    evaluations = {name: evaluate(rows, labels) for name, (rows,) in answers.items()}
    comparisons = against(answers, names[0], labels, metric)

    where = f"{first['corpus']} {first['split']}, {first['eval_protocol']}"
    scored = evaluations[names[0]]
    yield f"{where}: n = {scored['n']} utterances of {scored['dialogues']} dialogues"
    yield _ranking(names, records, evaluations, comparisons, metric)
    yield f"better, worse: both p, corrected for the number of runs, are below {LEVEL}"
    yield _per_label(names, evaluations)
    yield from _differing_options(dict(zip(names, runs, strict=True)))


def _tested(run: Path) -> dict[str, Any]:
    """Return the metrics.json of a run."""
    if not (run / "predictions.jsonl").is_file() or not (run / "metrics.json").is_file():
        raise FileNotFoundError(
            f"{run} holds no metrics.json and predictions.jsonl; test it first: zoo test --ckpt_path {run}"
        )
    record = read_record(run / "metrics.json", STATED)
    if not isinstance(record.get("support"), Mapping):
        raise ValueError(f"{run / 'metrics.json'} holds no scores of one set of labels; test each of its corpora alone")
    return record


def _ranking(
    names: Sequence[str],
    records: Mapping[str, Mapping[str, Any]],
    evaluations: Mapping[str, Mapping[str, Any]],
    comparisons: Mapping[str, Mapping[str, Any]],
    metric: str,
) -> Table:
    columns = dict.fromkeys((metric, "weighted_f1", "macro_f1", "accuracy"))
    columns.pop("unparsed", None)  # a rate without an interval
    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("system")
    for name in columns:
        table.add_column(f"{name} [95 %]", justify="right")
    table.add_column(f"{metric} against the first [95 %]", justify="right")
    for heading in ("p bootstrap", "p McNemar", ""):
        table.add_column(heading)
    for name in names:
        one = evaluations[name]
        cells = [f"{percent(one[m])} [{percent(one['ci95'][m][0])}, {percent(one['ci95'][m][1])}]" for m in columns]
        pair = comparisons.get(name)
        if pair is None:
            versus = ["", "", "", "the first"]
        else:
            interval = f"{signed(pair['difference'])} [{signed(pair['ci95'][0])}, {signed(pair['ci95'][1])}]"
            versus = [interval, pvalue(pair["p_bootstrap_holm"]), pvalue(pair["p_mcnemar_holm"]), pair["verdict"]]
        table.add_row(name, records[name]["model"].rpartition(".")[2], *cells, *versus)
    return table


def _per_label(names: Sequence[str], evaluations: Mapping[str, Mapping[str, Any]]) -> Table:
    first = evaluations[names[0]]
    table = Table(box=None, pad_edge=False)
    table.add_column("F1 of")
    table.add_column("n", justify="right")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for label, count in first["support"].items():
        table.add_row(label, str(count), *(percent(evaluations[name]["per_class"][label]) for name in names))
    return table


def _differing_options(runs: Mapping[str, Path]) -> Iterator[Table | str]:
    """Yield a table of the options in which the runs' configs differ, or a sentence where there is none."""
    configs = {name: _config(run) for name, run in runs.items()}
    without = [name for name, file in configs.items() if not file.is_file()]
    if without:
        yield f"options are not compared: {', '.join(without)} holds no config.yaml"
        return
    flat = {name: dict(_flat(read_run_config(file))) for name, file in configs.items()}
    keys = dict.fromkeys(key for options in flat.values() for key in options)
    table = Table(box=None, pad_edge=False)
    table.add_column("option", overflow="fold")
    for name in runs:
        table.add_column(name, overflow="fold")
    for key in keys:
        values = [options.get(key, "-") for options in flat.values()]
        if not key.startswith(SAME) and any(value != values[0] for value in values):
            table.add_row(key, *map(str, values))
    yield table if table.row_count else "their configs are the same"


def _config(run: Path) -> Path:
    """Return the config that a run was trained with; of one that was tested without training, that of the test."""
    trained = newest_config(run)
    return trained if trained.is_file() else run / "config.test.yaml"


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted name and value of every option; init_args is left out of names, as on the command line."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            inner_key = key if name == "init_args" else f"{key}.{name}".lstrip(".")
            yield from _flat(inner, inner_key)
    else:
        yield key, value
