"""Finished jobs -> results.json: scores with intervals, comparisons, costs, and the single utterances of the report.

Nothing here trains or knows a model; everything comes from what the runs left behind, so that every number can be
recomputed from their predictions.jsonl. Rows are ranked together only if they answered the same samples under the same
protocol; anything else is an error, but for rows that adapted to the test samples without their labels, which stand
apart.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from zoo.benchmark.plan import Bench
from zoo.benchmark.run import Job
from zoo.benchmark.statistics import against
from zoo.configs import read_run_config
from zoo.data import EmotionData
from zoo.errors import one_line
from zoo.media import Media, Unreadable
from zoo.metrics import HEADLINE, Row, evaluate, mean_over_seeds
from zoo.module import provenance
from zoo.progress import reported
from zoo.runs import find_checkpoint, portable
from zoo.schema import Labels, Sample, Turn
from zoo.storage import read_json, read_jsonl
from zoo.weights import look_into

TRANSDUCTIVE = ", transductive"  # end of such a protocol, see zoo.data.Adaptation
CURVES = ("train/loss", "train/reward", "val/wf1", "val/reward")
POINTS = 200  # of a curve
FACE, ENVELOPE = 96, 120  # pixels of a face, points of a voice, in the report


NUMBER = (int, float)
TEST = {
    "split": (str,),
    "corpus": (str,),
    "eval_protocol": (str,),
    "model": (str,),
    "parameters": (int,),
    "trainable_parameters": (int,),
    "population": (dict,),
    "events": (dict,),
}
COST = {"seconds": NUMBER, "peak_mib": NUMBER, "interrupted": (int,)}  # of a fit.json and test.json
ROW = {"id": (str,), "dialogue": (str,), "label": (str,), "predicted": (str, type(None))}  # of a predictions.jsonl


def read_rows(path: Path, fields: Mapping[str, tuple[type, ...]] | None = None) -> list[dict[str, Any]]:
    """Rows of a finished job.

    Raises:
        ValueError: the file is damaged, or empty; names it and what to do.
    """
    rows = _result(path, read_jsonl)
    if not rows:
        raise _damaged(path, "it is empty")
    for number, row in enumerate(rows, 1):
        _typed(row, {"id": (str,)} if fields is None else fields, path, f"line {number}: ")
    return rows


def read_record(path: Path, fields: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """What a finished job said about itself; see `read_rows`."""
    record = _result(path, read_json)
    _typed(record, fields, path, "")
    return record


def _result(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except (ValueError, FileNotFoundError) as error:
        raise _damaged(path, "it is missing" if isinstance(error, FileNotFoundError) else str(error)) from error


def _typed(record: Any, fields: Mapping[str, tuple[type, ...]], path: Path, where: str) -> None:
    if not isinstance(record, dict):
        raise _damaged(path, f"{where}it holds a {type(record).__name__}, expected an object")
    for name, kinds in fields.items():
        value = record.get(name)
        if name not in record or not isinstance(value, kinds) or isinstance(value, bool):
            raise _damaged(path, f"{where}{name} is {value!r:.60}, expected {' or '.join(k.__name__ for k in kinds)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise _damaged(path, f"{where}{name} is {value}, expected a finite number")


def _damaged(path: Path, why: str) -> ValueError:
    parts = path.parts
    job = parts[parts.index("runs") + 1] if "runs" in parts[:-1] else None
    again = f"--redo [{job}]" if job else "--redo and the row's name"
    return ValueError(f"{path} is damaged ({why}); do the row again with {again}")


def results(bench: Bench, jobs: Sequence[Job], failed: Mapping[Path, str], out: Path, command: str) -> dict[str, Any]:
    """What a report says, JSON-ready.

    Args:
        failed: folder of a job -> reason, see `zoo.benchmark.run.run`.
        out: folder of the benchmark; paths are relative to it.

    Raises:
        ValueError: rows that may not be compared, naming them; or a matched view whose rows are not.
    """
    by_row: dict[str, list[Job]] = {}
    for job in jobs:
        if job.row.ranked and job.done:
            by_row.setdefault(job.name, []).append(job)
    if not by_row:
        raise ValueError(f"no row was finished, so there is nothing to report; see the log.txt files in {out / 'runs'}")
    records = {name: [read_record(j.results / "metrics.json", TEST) for j in done] for name, done in by_row.items()}
    runs = {name: [read_rows(j.results / "predictions.jsonl", ROW) for j in done] for name, done in by_row.items()}
    _comparable(runs, records)
    labels = _labels(bench.data)
    _known_labels(by_row, runs, labels)
    rows = [
        _row(bench, by_row[name], records[name], runs[name], labels, out)
        for name in reported(by_row, len(by_row), "report: scores", "rows", 5)
    ]
    groups = {g: [r for r in rows if r["group"] == g] for g in ("ranked", "transductive")}
    for group in groups.values():
        group.sort(key=lambda r: -r["scores"][bench.metric]["mean"])
    for row in rows:
        row["against_best"] = None
    if groups["ranked"]:
        best = groups["ranked"][0]["name"]
        differences = against({r["name"]: runs[r["name"]] for r in groups["ranked"]}, best, labels, bench.metric)
        for row in groups["ranked"]:
            row["against_best"] = differences.get(row["name"])
    first = next(iter(runs.values()))[0]
    origin = provenance() or {}
    return portable(
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
            "failed": [
                {
                    "row": job.name,
                    "seed": job.seed,
                    "reason": failed[job.home],
                    "log": job.log.relative_to(out).as_posix(),
                }
                for job in jobs
                if job.home in failed
            ],
            "matched": _matched([job for done in by_row.values() for job in done]),
            "notes": _notes(records),
        }
    )


def population(rows: Sequence[Row]) -> str:
    """A mark of the samples that were answered, with their labels and dialogues; in any order."""
    told = sorted((r["id"], r["dialogue"], r["label"]) for r in rows)
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _comparable(runs: Mapping[str, Sequence[Sequence[Row]]], said: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """ValueError naming two rows that were not tested on the same samples, split and protocol."""

    def facts(name: str, i: int) -> tuple[str, str, str]:
        own = said[name][i]
        return own["split"], own["eval_protocol"].removesuffix(TRANSDUCTIVE), population(runs[name][i])

    first = next(iter(runs))
    for name, own in runs.items():
        for i in range(len(own)):
            for what, a, b in zip(
                ("split", "eval_protocol", "test samples"), facts(name, i), facts(first, 0), strict=True
            ):
                if a != b:
                    raise ValueError(
                        f"rows {name} and {first} cannot be ranked together: their {what} differ ({a} of "
                        f"{len(own[i])} samples against {b} of {len(runs[first][0])}). Test them on the same corpus, "
                        "split and protocol, or put them into benchmarks of their own"
                    )


def _known_labels(
    jobs: Mapping[str, Sequence[Job]], runs: Mapping[str, Sequence[Sequence[Row]]], labels: Labels
) -> None:
    """ValueError for a file of answers whose words are no labels of the corpus, or that has a sample twice."""
    for name, row_runs in runs.items():
        for job, rows in zip(jobs[name], row_runs, strict=True):
            path = job.results / "predictions.jsonl"
            if len({row["id"] for row in rows}) < len(rows):
                raise _damaged(path, "a sample stands in it twice")
            words = {row["label"] for row in rows} | {row["predicted"] for row in rows} - {None}
            if unknown := sorted(words - set(labels.names)):
                raise _damaged(path, f"{', '.join(map(repr, unknown[:3]))} is no label of {labels.corpus}")


def _labels(data: EmotionData) -> Labels:
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
    said: Sequence[Mapping[str, Any]],
    runs: Sequence[Sequence[Row]],
    labels: Labels,
    out: Path,
) -> dict[str, Any]:
    row, evaluations = jobs[0].row, [evaluate(rows, labels, draws=1) for rows in runs]
    scores = {metric: mean_over_seeds(runs, labels, metric) for metric in (*HEADLINE, "unparsed")}
    transductive = said[0]["eval_protocol"].endswith(TRANSDUCTIVE)
    reads = said[0].get("reads")  # what the system itself says; null of one that does not, or of an older run
    return {
        "name": jobs[0].name,
        "what": row.what,
        "group": "transductive" if transductive else "ranked",
        "eval_protocol": said[0]["eval_protocol"],
        "size": row.size,
        "reads": reads,
        "model": said[0]["model"],
        "matched": row.matched,
        "source": {"checkpoint": row.checkpoint}
        if row.checkpoint
        else {"config": row.config, "options": row.options, "zero_shot": row.zero_shot},
        "seeds": [j.seed for j in jobs],
        "scores": scores,
        "per_class": {name: float(np.mean([e["per_class"][name] for e in evaluations])) for name in labels.names},
        "confusion": np.sum([e["confusion"] for e in evaluations], axis=0).tolist(),
        "cost": _costs(jobs, said),
        "reachable": _reachable(bench, reads, runs, scores["accuracy"]["mean"]),
        "curves": _curves(jobs[0]),
        "runs": [
            {"seed": j.seed, "predictions": (j.results / "predictions.jsonl").relative_to(out).as_posix()} for j in jobs
        ],
    }


def _costs(jobs: Sequence[Job], said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds of times, the largest of memory. Training counts every stage the row stands on, which is
    unknown where one of them is a checkpoint from elsewhere."""
    chains = [_chain(job) for job in jobs]
    trained = [c for chain in chains for c in chain or () if c is not None]
    known = all(chain is not None for chain in chains) and bool(trained)
    tests = [read_record(j.home / "test.json", COST) for j in jobs]

    def mean(key: str) -> float | None:
        values = [s[key] for s in said if s.get(key) is not None]
        return float(np.mean(values)) if values else None

    return {
        "parameters": said[0]["parameters"],
        "trainable_parameters": said[0]["trainable_parameters"],
        "train_seconds": sum(c["seconds"] for c in trained) / len(jobs) if known else None,
        "train_peak_mib": max(c["peak_mib"] for c in trained) if known else None,
        "test_seconds_per_sample": mean("seconds_per_sample"),
        "tokens_per_sample": mean("tokens_per_sample"),
        "test_peak_mib": max(t["peak_mib"] for t in tests),
        "interrupted": sum(c["interrupted"] for c in trained) if known else 0,
    }


def _chain(job: Job) -> list[dict[str, Any]] | None:
    """Costs of this job's training and of every one it stands on; None if some of it was trained elsewhere."""
    if job.row.checkpoint is not None and not job.of:
        return None
    records = [read_record(job.home / "fit.json", COST)] if job.row.trains else []
    for needed in job.of.values():
        earlier = _chain(needed)
        if earlier is None:
            return None
        records += earlier
    return records


def _reachable(
    bench: Bench, reads: Sequence[str] | None, runs: Sequence[Sequence[Row]], accuracy: float
) -> dict[str, float] | None:
    """The best accuracy that anything which reads the same could have on these utterances, if the corpus knows it."""
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
        raise _damaged(path, one_line(error)) from error
    found = {}
    for name in CURVES:
        if name in table and "step" in table:
            own = table[["step", name]].dropna()
            kept = own.iloc[np.unique(np.linspace(0, len(own) - 1, min(POINTS, len(own))).astype(int))]
            found[name] = [[int(step), round(float(value), 6)] for step, value in kept.to_numpy()]
    return found


def _matched(jobs: Sequence[Job]) -> dict[str, Any] | None:
    """What was equal in all rows of the matched view.

    Raises:
        ValueError: something was not.
    """
    chosen = [job for job in jobs if job.row.matched]
    if not chosen:
        return None
    facts = {str(job): _training(job) for job in chosen}
    (first, expected), *others = facts.items()
    for name, own in others:
        for what, value in own.items():
            if value != expected[what]:
                raise ValueError(
                    f"rows {name} and {first} stand in the matched view, but their {what} differ: {value} against "
                    f"{expected[what]}; make them equal, or leave out matched"
                )
    shown = {k: v for k, v in expected.items() if k != "llm's weights"}
    return {"rows": list(dict.fromkeys(job.name for job in chosen)), **shown}


def _training(job: Job) -> dict[str, Any]:
    """What the matched view holds equal, read off the checkpoint and the log, not off the intention."""
    if not job.row.trains or job.of:
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
    given = ", ".join(f"{k} {v}" for k, v in data.get("init_args", {}).items() if v is not None)
    return {
        "llm": llm["path"],
        "llm's weights": llm["fingerprint"],
        "steps": checkpoint.global_step,
        "batch_size": _number(config["data"]["init_args"], "batch_size", job)
        * _number(config.get("trainer") or {}, "accumulate_grad_batches", job),
        "data": f"{data['class_path'].rpartition('.')[2]} ({given})",
    }


def _number(section: Mapping[str, Any], key: str, job: Job) -> int:
    value = section.get(key)
    if not isinstance(value, int):
        raise _damaged(job.run / "config.yaml", f"{key} is {value!r:.60}, expected a whole number")
    return value


def _notes(said: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Counted events of tests, e.g. prompts that were cut: a reader should know."""
    notes = []
    for name, own in said.items():
        events: dict[str, int] = {}
        for one in own:
            for what, n in one.get("events", {}).items():
                events[what] = max(events.get(what, 0), n)
        notes += [f"{name}: {n} {what}" for what, n in events.items()]
    left_out = next(iter(said.values()))[0]["population"]
    if left_out["excluded"]:
        notes.append(f"{len(left_out['excluded'])} utterances of the split are left out, with reasons in metrics.json")
    return notes


# ------------------------------------------------------------------------------------------------ single utterances
def utterances(bench: Bench, jobs: Sequence[Job], cache: Path) -> list[dict[str, Any]]:
    """The first dialogues of the test split as the report shows them: face, voice, words, and what every row said.

    Args:
        cache: where decoded pictures and sounds are kept.
    """
    ranked = [job for job in jobs if job.row.ranked and job.done]
    firsts = {job.name: job for job in reversed(ranked)}  # the first seed of each row
    said = {name: {r["id"]: r for r in read_rows(job.results / "predictions.jsonl")} for name, job in firsts.items()}
    reasons = {name: _reasons(job) for name, job in firsts.items()}
    media = Media(cache)
    shown = []
    for sample in _first_dialogues(bench.data.samples("test"), bench.utterances):
        systems = {
            name: _answer(rows[sample.id], reasons[name].get(sample.id))
            for name, rows in said.items()
            if sample.id in rows
        }
        base = {"id": sample.id, "dialogue": sample.dialogue, "label": sample.target.label, "systems": systems}
        turn = sample.target
        if bench.show_texts:
            base |= {
                "speaker": turn.speaker,
                "text": turn.text,
                "descriptions": dict(turn.descriptions),
                "history": [[t.speaker, t.text] for t in sample.history[-3:]],
                "face": _face(media, turn),
                "voice": _voice(media, turn),
            }
        else:
            base |= {"speaker": "", "text": "", "descriptions": {}, "history": [], "face": None, "voice": None}
        shown.append(base)
    return shown


def _first_dialogues(samples: Sequence[Sample], most: int) -> list[Sample]:
    kept: list[Sample] = []
    for dialogue in dict.fromkeys(s.dialogue for s in samples):
        own = [s for s in samples if s.dialogue == dialogue]
        if kept and len(kept) + len(own) > most:
            break
        kept += own
    return kept[:most]


def _answer(row: Mapping[str, Any], reason: Mapping[str, Any] | None) -> dict[str, Any]:
    details = row.get("details") or {}
    scores = row.get("scores") or {}
    why = None
    if reason is not None:
        why = reason.get("text") or ", ".join(
            f"{k} {v}" for k, v in (reason.get("details") or {}).items() if k != "decision"
        )
    return {
        "predicted": row["predicted"],
        "score": scores.get(row["predicted"]),
        "said": row.get("text"),
        "why": why,
        "decision": details.get("decision"),
    }


def _reasons(job: Job) -> dict[str, dict[str, Any]]:
    """What the hidden row that `Row.why` names wrote about each sample."""
    if job.row.why is None:
        return {}
    folder = job.of[job.row.why].results
    return {r["id"]: r for path in sorted(folder.glob("*.jsonl")) for r in read_rows(path)}


def _face(media: Media, turn: Turn) -> str | None:
    """The frame in the middle of an utterance, as a small JPEG."""
    if turn.video is None:
        return None
    try:
        frame = media.frames(turn.video, n=1, position=turn.frame_at)[0]
    except Unreadable:
        return None
    picture = Image.fromarray(frame.transpose(1, 2, 0))
    picture.thumbnail((2 * FACE, FACE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _voice(media: Media, turn: Turn) -> list[float] | None:
    """Loudness over time, 0..1, of the loudest point."""
    path = turn.audio or turn.video
    if path is None:
        return None
    try:
        wave = media.waveform(path)
    except Unreadable:
        return None
    if turn.start is not None and turn.end is not None:
        wave = wave[round(turn.start * 16_000) : round(turn.end * 16_000)]
    parts = np.array_split(np.abs(wave), min(ENVELOPE, max(1, len(wave))))
    loud = np.array([part.max(initial=0.0) for part in parts])
    return (loud / max(loud.max(), 1e-6)).round(3).tolist()
