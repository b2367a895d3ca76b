"""``zoo bench --config configs/bench/sitcom.yaml``: rows side by side on one corpus, and a report to trust.

`plan` is what a benchmark file may say, `run` does the jobs and can be killed at any time, `collect` reads what they
left behind, `statistics` compares, `report` writes report.html and report.md. No module here knows a system: a row is a
config or a checkpoint, and everything is done by the commands a user would give.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from zoo.arguments import SentenceParser
from zoo.benchmark.plan import Bench, Row
from zoo.benchmark.run import Job, Outcome, jobs, run
from zoo.configs import refuse_unreadable
from zoo.imports import take_imports, trust_words
from zoo.runs import configs_first
from zoo.storage import parse_yaml, read_yaml

LOADER = ("batch_size", "eval_batch_size", "num_workers")  # settings of a system's training, not of the corpus
EXIT_FAILED = 1


def parser() -> ArgumentParser:
    made = SentenceParser(
        prog="zoo bench", description="Train, test and compare rows on one corpus; resumable.", allow_abbrev=False
    )
    made.add_argument("--config", action=ActionConfigFile, help="benchmark file; a flag beats it")
    made.add_class_arguments(Bench)
    made.add_argument("--out", type=Path | None, default=None, help="results; runs/bench/NAME-OF-CONFIG if not given")
    made.add_argument("--jobs", type=int, default=1, help="rows that run at the same time, in processes of their own")
    made.add_argument(
        "--only",
        type=list[str] | None,
        default=None,
        help="run these rows (and those they need); the report shows what is done",
    )
    made.add_argument("--seed", type=int | None, default=None, help="with --only: this training seed alone")
    made.add_argument("--redo", type=list[str] | None, default=None, help="forget what these rows have done")
    made.add_argument("--report_only", type=bool, default=False, help="run nothing, write the report of what is done")
    made.add_argument(
        "--import",
        dest="imports",
        type=str | None,
        default=None,
        help="folder whose modules the config.yaml of a row's checkpoint may name",
    )
    made.add_argument("--report", type=bool, default=True, help="write the report at the end")
    made.add_argument(
        "--write_jobs",
        type=Path | None,
        default=None,
        help="run nothing; write a shell script per row and seed into this folder, for a scheduler",
    )
    return made


def main(args: list[str]) -> None:
    """``zoo bench``. Leaves with exit code 1 if a row failed."""
    args = configs_first(args)
    asked, args = args, take_imports(args)
    refuse_unreadable(arg.removeprefix("--config=") for arg in args if arg.endswith((".yaml", ".yml")))
    trust_words(args, [arg.removeprefix("--config=") for arg in args])  # what is no file is passed over
    made = parser()
    config = made.parse_args(args)
    for file in config.config or ():
        _no_typos(Path(str(file)))
    config.out = config.out or Path("runs/bench") / Path(str(config.config[0]) if config.config else "bench").stem
    files = made.dump(config, skip_unset=False, skip_validation=True)
    options = made.instantiate(config)
    bench = Bench(**{name: options[name] for name in Bench.__dataclass_fields__})
    bench.check()
    todo = jobs(bench, _data(bench, parse_yaml(files, "the benchmark")), config.out)
    _known(bench, "only", options.only)
    _known(bench, "redo", options.redo)
    if options.jobs < 1:
        raise ValueError(f"--jobs {options.jobs}: expected at least one row at a time")
    for flag in ("report_only", "write_jobs"):
        if options.redo and options[flag]:
            raise ValueError(
                f"--redo throws results away to make them again, but --{flag} runs nothing; give one of the two"
            )
    if options.write_jobs is not None:
        _write_jobs(todo, options.write_jobs, asked, config.out)
        return
    for job in todo:
        if job.name in (options.redo or ()):
            shutil.rmtree(job.home, ignore_errors=True)
    outcome = Outcome() if options.report_only else _run(bench, todo, options)
    if options.report and (options.report_only or any(job.done and job.row.ranked for job in todo)):
        reasons = outcome.failed | {home: f"interrupted: {why}" for home, why in outcome.stopped.items()}
        _report(bench, todo, reasons, config.out, shlex.join(["zoo", "bench", *args]))
    for ended, group in (("failed", outcome.failed), ("were interrupted", outcome.stopped)):
        if group:
            names = ", ".join(str(job) for job in todo if job.home in group)
            print(f"zoo bench: {len(group)} of {len(todo)} jobs {ended}: {names}", file=sys.stderr)
    if outcome.failed or outcome.stopped:
        sys.exit(EXIT_FAILED)


def _no_typos(file: Path) -> None:
    """ValueError naming an unknown key of a row, which jsonargparse lets pass inside a dict."""
    content = read_yaml(file)
    rows = content.get("rows") if isinstance(content, dict) else None
    for name, row in (rows if isinstance(rows, dict) else {}).items():
        unknown = sorted(set(row if isinstance(row, dict) else ()) - set(Row.__dataclass_fields__))
        if unknown:
            known = ", ".join(Row.__dataclass_fields__)
            raise ValueError(f"{file}: row {name} has the unknown keys {', '.join(unknown)}; expected some of {known}")
        if isinstance(row, dict) and "reads" in row:
            print(
                f"{file}: row {name}: `reads` is not used any more, since systems say themselves what they read; "
                "remove it",
                file=sys.stderr,
            )


def _data(bench: Bench, said: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Row -> the complete data sections of its training and its test, without what belongs to the system (`LOADER`)."""

    def section(own: Mapping[str, Any]) -> dict[str, Any]:
        return {**own, "init_args": {k: v for k, v in own["init_args"].items() if k not in LOADER}}

    adapted = {"class_path": "zoo.data.Adaptation", "init_args": {"corpus": said["data"], "protocol": "transductive"}}
    found = {}
    for name, row in bench.rows.items():
        test = adapted if row.adapt else said["data"]
        train = said["rows"][name]["train_data"] if row.train_data is not None else test
        found[name] = {"train": section(train), "test": section(test)}
    return found


def _known(bench: Bench, flag: str, names: Sequence[str] | None) -> None:
    for name in names or ():
        if name not in bench.rows:
            raise ValueError(f"--{flag}: there is no row {name}; there are {', '.join(bench.rows)}")


def _run(bench: Bench, todo: Sequence[Job], options: Namespace) -> Outcome:
    wanted: set[str] = set()
    queue = list(options.only or bench.rows)
    while queue:
        name = queue.pop()
        if name not in wanted:
            wanted.add(name)
            queue += bench.needs(name)
    own = [job for job in todo if job.name in wanted]
    if options.seed is not None:
        own = [job for job in own if job.seed == options.seed or job.name not in (options.only or ())]
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // options.jobs))
    ready = sum(job.done for job in own)
    print(f"{len(own)} jobs, {ready} done before, {options.jobs} at a time; results in {options.out}", flush=True)
    started = time.perf_counter()
    outcome = run(own, options.jobs, threads, lambda line: print(line, flush=True))
    done = len(own) - len(outcome.failed) - len(outcome.stopped)
    print(f"{done} of {len(own)} jobs done, {time.perf_counter() - started:.0f} s", flush=True)
    return outcome


def _report(bench: Bench, todo: Sequence[Job], failed: Mapping[Path, str], out: Path, command: str) -> None:
    from zoo.benchmark.collect import results, utterances
    from zoo.benchmark.report import write_report

    print("comparing the rows and writing the report", flush=True)
    found = results(bench, todo, failed, out, command)
    (out / "results.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_report(found, out, utterances(bench, todo, out / "media-cache"))
    missing = [str(job) for job in todo if job.row.ranked and not job.done]
    if missing:
        print(f"not in the report, not done: {', '.join(missing)}")
    print(f"report: {out / 'report.html'}")


def _write_jobs(todo: Sequence[Job], folder: Path, args: Sequence[str], out: Path) -> None:
    """One script per job, numbered so that each comes after those it needs; ``jobs.tsv`` says which."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = [a for a in args if not a.startswith(("--write_jobs", "--out"))]
    for flag in ("--write_jobs", "--out"):  # in two words
        if flag in args:
            kept.remove(args[list(args).index(flag) + 1])
    names = {job.home: f"{i:03d}-{job.name}-seed-{job.seed}" for i, job in enumerate(todo)}
    lines = ["script\tafter"]
    for job in todo:
        own = [f"--only=[{job.name}]", f"--seed={job.seed}", "--report=false"]
        command = ["zoo", "bench", *kept, f"--out={out}", *own]
        script = folder / f"{names[job.home]}.sh"
        # schedulers start a job where it was submitted, but for PBS, which names that folder
        script.write_text(f'#!/bin/sh\ncd "${{PBS_O_WORKDIR:-.}}" || exit 1\nexec {shlex.join(command)}\n')
        script.chmod(0o755)
        lines.append(f"{script.name}\t{' '.join(names[j.home] + '.sh' for j in job.of.values())}")
    (folder / "jobs.tsv").write_text("\n".join(lines) + "\n")
    report = shlex.join(["zoo", "bench", *kept, f"--out={out}", "--report_only=true"])
    print(
        f"wrote {len(todo)} scripts into {folder}; submit them from the folder that you are in, jobs.tsv says which "
        f"need which. When all are done:\n{report}"
    )


__all__ = ["Bench", "main", "parser"]
