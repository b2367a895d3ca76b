"""Finished jobs -> results.json: scores with intervals, comparisons and costs.

Nothing here trains or knows a model; everything comes from what the runs left behind, so that every number can be
recomputed from their predictions.jsonl. Rows are ranked together only if they answered the same samples under the same
protocol; anything else is an error, but for rows that adapted to the test samples without their labels, which stand
apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from zoo.benchmark.plan import Bench
from zoo.benchmark.records import COST, ROW, TEST, damaged_file, read_record, read_rows
from zoo.benchmark.run import Job
from zoo.benchmark.statistics import against
from zoo.configs import read_run_config
from zoo.data import EmotionData
from zoo.errors import one_line
from zoo.metrics import HEADLINE, Row, evaluate, mean_over_seeds
from zoo.progress import reported
from zoo.runs import find_checkpoint, portable
from zoo.schema import Labels
from zoo.training.provenance import provenance
from zoo.weights import look_into

TRANSDUCTIVE = ", transductive"  # end of such a protocol, see zoo.data.Adaptation
CURVES = ("train/loss", "train/reward", "val/wf1", "val/reward")
POINTS = 200  # of a curve


def results(bench: Bench, jobs: Sequence[Job], failed: Mapping[Path, str], out: Path, command: str) -> dict[str, Any]:
    """Return what a report says, JSON-ready.

    Args:
        bench: the plan.
        jobs: all of them.
        failed: folder of a job -> reason, see `zoo.benchmark.run.run`.
        out: folder of the benchmark; paths are relative to it.
        command: that was given.

    Raises:
        ValueError: rows that may not be compared, naming them; or a matched view whose rows are not.
    """
    by_row = _finished(jobs)
    if not by_row:
        raise ValueError(f"no row was finished, so there is nothing to report; see the log.txt files in {out / 'runs'}")
    records = {name: [read_record(j.results / "metrics.json", TEST) for j in done] for name, done in by_row.items()}
    runs = {name: [read_rows(j.results / "predictions.jsonl", ROW) for j in done] for name, done in by_row.items()}
    check_comparable(runs, records)
    labels = _single_label_set(bench.data)
    _check_labels(by_row, runs, labels)
    rows = [
        _row(bench, by_row[name], records[name], runs[name], labels, out)
        for name in reported(by_row, len(by_row), "report: scores", "rows", 5)
    ]
    groups = {g: _best_first(rows, g, bench.metric) for g in ("ranked", "transductive")}
    _compare_with_best(rows, groups["ranked"], runs, labels, bench.metric)
    first = next(iter(runs.values()))[0]
    origin = provenance() or {}
    results: dict[str, Any] = portable(
        {
            "title": bench.title,
            "corpus": labels.corpus,
            "labels": list(labels.names),
            "metric": bench.metric,
            "split": "test",
            "eval_protocol": bench.data.protocol,
            "n": len(first),
            "dialogues": len({r["dialogue"] for r in first}),
            "population": population(first),
            "command": command,
            "git": origin.get("git"),
            "versions": origin.get("versions"),
            "data": next(iter(jobs)).data["test"],
            "rows": groups["ranked"] + groups["transductive"],
            "failed": _failures(jobs, failed, out),
            "matched": _matched([job for done in by_row.values() for job in done]),
            "notes": _notes(records),
            "figures": [asdict(figure) for figure in bench.figures],
        }
    )
    return results


def _finished(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """Return the ranked rows with their finished jobs."""
    by_row: dict[str, list[Job]] = {}
    for job in jobs:
        if job.row.ranked and job.done:
            by_row.setdefault(job.name, []).append(job)
    return by_row


def _best_first(rows: Sequence[dict[str, Any]], group: str, metric: str) -> list[dict[str, Any]]:
    return sorted((row for row in rows if row["group"] == group), key=lambda row: -row["scores"][metric]["mean"])


def _compare_with_best(
    rows: Sequence[dict[str, Any]],
    ranked: Sequence[dict[str, Any]],
    runs: Mapping[str, Sequence[Sequence[Row]]],
    labels: Labels,
    metric: str,
) -> None:
    """Set ``against_best`` of every row: the comparison of a ranked row with the best one, else None."""
    differences = {}
    if ranked:
        differences = against({row["name"]: runs[row["name"]] for row in ranked}, ranked[0]["name"], labels, metric)
    for row in rows:
        row["against_best"] = differences.get(row["name"])


def _failures(jobs: Sequence[Job], failed: Mapping[Path, str], out: Path) -> list[dict[str, Any]]:
    """Return the jobs that failed, with reasons and the place of their logs."""
    return [
        {"row": job.name, "seed": job.seed, "reason": failed[job.home], "log": job.log.relative_to(out).as_posix()}
        for job in jobs
        if job.home in failed
    ]


def population(rows: Sequence[Row]) -> str:
    """Return a digest of the samples that were answered, with their labels and dialogues, in any order."""
    answered = sorted((r["id"], r["dialogue"], r["label"]) for r in rows)
    return hashlib.sha256(json.dumps(answered).encode()).hexdigest()[:16]


def check_comparable(
    runs: Mapping[str, Sequence[Sequence[Row]]], records: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Raise ValueError naming two systems that were not tested on the same samples, split and protocol."""

    def facts(name: str, i: int) -> tuple[str, str, str]:
        record = records[name][i]
        return record["split"], record["eval_protocol"].removesuffix(TRANSDUCTIVE), population(runs[name][i])

    first = next(iter(runs))
    for name, row_runs in runs.items():
        for i in range(len(row_runs)):
            for what, a, b in zip(
                ("split", "eval_protocol", "test samples"), facts(name, i), facts(first, 0), strict=True
            ):
                if a != b:
                    raise ValueError(
                        f"{name} and {first} cannot be ranked together: their {what} differ ({a} of "
                        f"{len(row_runs[i])} samples against {b} of {len(runs[first][0])}). Test them on the same "
                        "corpus, split and protocol, or look at each alone"
                    )


def _check_labels(
    jobs: Mapping[str, Sequence[Job]], runs: Mapping[str, Sequence[Sequence[Row]]], labels: Labels
) -> None:
    """Raise ValueError for a file of answers whose words are no labels of the corpus, or that has a sample twice."""
    for name, row_runs in runs.items():
        for job, rows in zip(jobs[name], row_runs, strict=True):
            path = job.results / "predictions.jsonl"
            if len({row["id"] for row in rows}) < len(rows):
                raise damaged_file(path, "a sample stands in it twice")
            words = {row["label"] for row in rows} | {row["predicted"] for row in rows} - {None}
            if unknown := sorted(words - set(labels.names)):
                raise damaged_file(path, f"{', '.join(map(repr, unknown[:3]))} is no label of {labels.corpus}")


def _single_label_set(data: EmotionData) -> Labels:
    sets = list(data.label_sets.values())
    if len(sets) != 1:
        raise ValueError(
            f"a benchmark ranks on one label set, but its data has those of {', '.join(data.label_sets)}; "
            "make one benchmark for each"
        )
    return sets[0]


def _row(
    bench: Bench,
    jobs: Sequence[Job],
    records: Sequence[Mapping[str, Any]],
    runs: Sequence[Sequence[Row]],
    labels: Labels,
    out: Path,
) -> dict[str, Any]:
    row, evaluations = jobs[0].row, [evaluate(rows, labels, draws=1) for rows in runs]
    scores = {metric: mean_over_seeds(runs, labels, metric) for metric in (*HEADLINE, "unparsed")}
    transductive = records[0]["eval_protocol"].endswith(TRANSDUCTIVE)
    reads = records[0].get("reads")  # what the system itself says; null of one that does not, or of an older run
    return {
        "name": jobs[0].name,
        "what": row.what,
        "group": "transductive" if transductive else "ranked",
        "eval_protocol": records[0]["eval_protocol"],
        "size": row.size,
        "published": row.published,
        "reads": reads,
        "model": records[0]["model"],
        "matched": row.matched,
        "source": {"checkpoint": row.checkpoint}
        if row.checkpoint
        else {"config": row.config, "options": row.options, "zero_shot": row.zero_shot},
        "seeds": [j.seed for j in jobs],
        "scores": scores,
        "per_class": {name: float(np.mean([e["per_class"][name] for e in evaluations])) for name in labels.names},
        "confusion": np.sum([e["confusion"] for e in evaluations], axis=0).tolist(),
        "cost": _costs(jobs, records),
        "reachable": _reachable(bench, reads, runs, scores["accuracy"]["mean"]),
        "curves": _curves(jobs[0]),
        "runs": [
            {"seed": j.seed, "predictions": (j.results / "predictions.jsonl").relative_to(out).as_posix()} for j in jobs
        ],
    }


def _costs(jobs: Sequence[Job], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the means over seeds of times, and the largest of memory.

    Training counts every stage the row stands on, which is unknown where one of them is a checkpoint from elsewhere.
    """
    chains = [_chain(job) for job in jobs]
    trained = [c for chain in chains for c in chain or () if c is not None]
    known = all(chain is not None for chain in chains) and bool(trained)
    tests = [read_record(j.home / "test.json", COST) for j in jobs]

    def mean(key: str) -> float | None:
        values = [s[key] for s in records if s.get(key) is not None]
        return float(np.mean(values)) if values else None

    return {
        "parameters": records[0]["parameters"],
        "trainable_parameters": records[0]["trainable_parameters"],
        "train_seconds": sum(c["seconds"] for c in trained) / len(jobs) if known else None,
        "train_peak_mib": max(c["peak_mib"] for c in trained) if known else None,
        "test_seconds_per_sample": mean("seconds_per_sample"),
        "tokens_per_sample": mean("tokens_per_sample"),
        "test_peak_mib": max(t["peak_mib"] for t in tests),
        "interrupted": sum(c["interrupted"] for c in trained) if known else 0,
    }


def _chain(job: Job) -> list[dict[str, Any]] | None:
    """Return the costs of this job's training and of every one it stands on; None if one was trained elsewhere."""
    if job.row.checkpoint is not None and not job.needed:
        return None
    records = [read_record(job.home / "fit.json", COST)] if job.row.trains else []
    for needed in job.needed.values():
        earlier = _chain(needed)
        if earlier is None:
            return None
        records += earlier
    return records


def _reachable(
    bench: Bench, reads: Sequence[str] | None, runs: Sequence[Sequence[Row]], accuracy: float
) -> dict[str, float] | None:
    """Return the best accuracy of anything that reads the same on these utterances, if the corpus knows it."""
    best = bench.data.reachable("test", reads) if reads else None
    if best is None:
        return None
    right = [best[r["id"]] == r["label"] for r in runs[0]]
    ceiling = float(np.mean(right))
    return {"accuracy": ceiling, "share": accuracy / ceiling}


def _curves(job: Job) -> dict[str, list[list[float]]]:
    path = job.run / "metrics.csv"
    if not path.is_file():
        return {}
    try:
        table = pd.read_csv(path)
        for name in {"step", *CURVES} & set(table):
            table[name] = pd.to_numeric(table[name])
    except (ValueError, TypeError) as error:  # pandas' own errors are ValueErrors
        raise damaged_file(path, one_line(error)) from error
    curves = {}
    for name in CURVES:
        if name in table and "step" in table:
            logged = table[["step", name]].dropna()
            chosen = np.unique(np.linspace(0, len(logged) - 1, min(POINTS, len(logged))).astype(int))
            curves[name] = [[int(step), round(float(value), 6)] for step, value in logged.iloc[chosen].to_numpy()]
    return curves


def _matched(jobs: Sequence[Job]) -> dict[str, Any] | None:
    """Return what was equal in all rows of the matched view.

    Raises:
        ValueError: something was not.
    """
    chosen = [job for job in jobs if job.row.matched]
    if not chosen:
        return None
    facts = {str(job): _training(job) for job in chosen}
    (first, expected), *others = facts.items()
    for name, training in others:
        for what, value in training.items():
            if value != expected[what]:
                raise ValueError(
                    f"rows {name} and {first} stand in the matched view, but their {what} differ: {value} against "
                    f"{expected[what]}; make them equal, or leave out matched"
                )
    public = {k: v for k, v in expected.items() if k != "llm's weights"}
    return {"rows": list(dict.fromkeys(job.name for job in chosen)), **public}


def _training(job: Job) -> dict[str, Any]:
    """Return what the matched view holds equal, read off the checkpoint and the log, not off the intention."""
    if not job.row.trains or job.needed:
        raise ValueError(
            f"row {job.name} stands in the matched view, but was not trained in one go here; expected a "
            "row with config that needs no other row"
        )
    # without the values of the tensors, which takes no time
    checkpoint = look_into(find_checkpoint(job.run, "last"))
    config = read_run_config(job.run / "config.yaml", data=True)
    llm = checkpoint.contract["bases"].get("llm")
    if llm is None:
        raise ValueError(f"row {job.name} stands in the matched view, but has no language model of known weights")
    data = job.data["train"]
    options = ", ".join(f"{k} {v}" for k, v in data.get("init_args", {}).items() if v is not None)
    return {
        "llm": llm["path"],
        "llm's weights": llm["fingerprint"],
        "steps": checkpoint.global_step,
        "batch_size": _number(config["data"]["init_args"], "batch_size", job)
        * _number(config.get("trainer") or {}, "accumulate_grad_batches", job),
        "data": f"{data['class_path'].rpartition('.')[2]} ({options})",
    }


def _number(section: Mapping[str, Any], key: str, job: Job) -> int:
    value = section.get(key)
    if not isinstance(value, int):
        raise damaged_file(job.run / "config.yaml", f"{key} is {value!r:.60}, expected a whole number")
    return value


def _notes(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """List counted events of tests, e.g. prompts that were cut: a reader should know."""
    notes = []
    for name, row_records in records.items():
        events: dict[str, int] = {}
        for record in row_records:
            for what, n in record.get("events", {}).items():
                events[what] = max(events.get(what, 0), n)
        notes += [f"{name}: {n} {what}" for what, n in events.items()]
    left_out = next(iter(records.values()))[0]["population"]
    if left_out["excluded"]:
        notes.append(f"{len(left_out['excluded'])} utterances of the split are left out, with reasons in metrics.json")
    return notes
