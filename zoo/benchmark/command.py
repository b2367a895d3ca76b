"""The command ``zoo bench``."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]  # not in its __all__

from zoo.arguments import SentenceParser
from zoo.benchmark.grids import expand
from zoo.benchmark.plan import Bench, Miniature, Row
from zoo.benchmark.run import Job, Outcome, jobs, run
from zoo.benchmark.scripts import Request, Slurm, write_jobs
from zoo.configs import refuse_unreadable
from zoo.imports import take_imports, trust_words
from zoo.runs import configs_first
from zoo.storage import parse_yaml, read_yaml

LOADER = ("batch_size", "eval_batch_size", "num_workers")  # settings of a system's training, not of the corpus
EXIT_FAILED = 1


def parser() -> ArgumentParser:
    """Return the parser of ``zoo bench``."""
    command_line = SentenceParser(
        prog="zoo bench", description="Train, test and compare rows on one corpus; resumable.", allow_abbrev=False
    )
    command_line.add_argument("--config", action=ActionConfigFile, help="benchmark file; a flag beats it")
    command_line.add_class_arguments(Bench)
    command_line.add_argument(
        "--out",
        type=Path | None,
        default=None,
        help="results; runs/bench/NAME-OF-CONFIG if not given, with -small behind it for --small",
    )
    command_line.add_argument(
        "--jobs", type=int, default=1, help="rows that run at the same time, in processes of their own"
    )
    command_line.add_argument(
        "--only",
        type=list[str] | None,
        default=None,
        help="run these rows (and those they need); the report shows what is done",
    )
    command_line.add_argument("--seed", type=int | None, default=None, help="with --only: this training seed alone")
    command_line.add_argument("--redo", type=list[str] | None, default=None, help="forget what these rows have done")
    command_line.add_argument(
        "--report_only", type=bool, default=False, help="run nothing, write the report of what is done"
    )
    command_line.add_argument(
        "--small",
        type=bool,
        default=False,
        help="run the same rows as a miniature, with what the file's section miniature puts in place of corpus, "
        "backbones and steps",
    )
    command_line.add_argument(
        "--import",
        dest="imports",
        type=str | None,
        default=None,
        help="folder whose modules the config.yaml of a row's checkpoint may name",
    )
    command_line.add_argument("--report", type=bool, default=True, help="write the report at the end")
    command_line.add_argument(
        "--write_jobs",
        type=Path | None,
        default=None,
        help="run nothing; write a shell script per row and seed into this folder, for a scheduler",
    )
    command_line.add_argument(
        "--slurm",
        type=Slurm | None,
        default=None,
        help="with --write_jobs: scripts for sbatch, with requests and dependencies; {} leaves all to the cluster",
    )
    command_line.add_argument(
        "--launch",
        type=list[str] | None,
        default=None,
        help="words in front of each row's commands that start them in several processes: [srun]",
    )
    return command_line


def main(args: list[str], request: Callable[[Sequence[str]], Request]) -> None:
    """Run ``zoo bench``; leave with exit code 1 if a row failed.

    Args:
        request: what ``zoo fit`` with some arguments asks of a cluster.
    """
    args = configs_first(args)
    given_args, args = args, take_imports(args)
    bench, options, todo = _parse(args)
    _check_options(bench, options)
    if options.write_jobs is not None:
        write_jobs(todo, options.write_jobs, given_args, options.out, options.slurm, request)
        return
    for job in todo:
        if job.name in (options.redo or ()):
            shutil.rmtree(job.home, ignore_errors=True)
    outcome = Outcome() if options.report_only else _run(bench, todo, options)
    if options.report and (options.report_only or any(job.done and job.row.ranked for job in todo)):
        reasons = outcome.failed | {home: f"interrupted: {reason}" for home, reason in outcome.stopped.items()}
        _report(bench, todo, reasons, options.out, shlex.join(["zoo", "bench", *args]))
    _print_unfinished(todo, outcome)
    if outcome.failed or outcome.stopped:
        sys.exit(EXIT_FAILED)


def _parse(args: Sequence[str]) -> tuple[Bench, Namespace, list[Job]]:
    """Return the plan, the options (``out`` filled in) and all jobs."""
    refuse_unreadable(arg.removeprefix("--config=") for arg in args if arg.endswith((".yaml", ".yml")))
    trust_words(args, [arg.removeprefix("--config=") for arg in args])  # what is no file is passed over
    command_line = parser()
    config = command_line.parse_args(args)
    for file in config.config or ():
        _check_row_keys(Path(str(file)))
    config = expand(config, config.small)
    name = Path(str(config.config[0]) if config.config else "bench").stem + "-small" * config.small
    config.out = config.out or Path("runs/bench") / name
    files = command_line.dump(config, skip_unset=False, skip_validation=True)
    options = command_line.instantiate(config)
    bench = Bench(**{name: options[name] for name in Bench.__dataclass_fields__})
    bench.check()
    todo = jobs(bench, _data(bench, parse_yaml(files, "the benchmark")), config.out)
    options.out = config.out
    return bench, options, todo


def _check_options(bench: Bench, options: Namespace) -> None:
    """Raise ValueError for options that name no row, or contradict each other."""
    _check_row_names(bench, "only", options.only)
    _check_row_names(bench, "redo", options.redo)
    if options.jobs < 1:
        raise ValueError(f"--jobs {options.jobs}: expected at least one row at a time")
    if options.slurm is not None and options.write_jobs is None:
        raise ValueError("--slurm says how scripts are written; give --write_jobs FOLDER, too")
    if options.slurm is not None:
        options.slurm.check()
    for flag in ("report_only", "write_jobs"):
        if options.redo and options[flag]:
            raise ValueError(
                f"--redo throws results away to make them again, but --{flag} runs nothing; give one of the two"
            )


def _print_unfinished(todo: Sequence[Job], outcome: Outcome) -> None:
    """Say which jobs failed, and which were interrupted."""
    for ending, group in (("failed", outcome.failed), ("were interrupted", outcome.stopped)):
        if group:
            names = ", ".join(str(job) for job in todo if job.home in group)
            print(f"zoo bench: {len(group)} of {len(todo)} jobs {ending}: {names}", file=sys.stderr)


def _check_row_keys(file: Path) -> None:
    """Raise ValueError naming an unknown key of a row, which jsonargparse lets pass inside a dict."""
    content = read_yaml(file)
    rows = content.get("rows") if isinstance(content, dict) else None
    for name, row in (rows if isinstance(rows, dict) else {}).items():
        unknown = sorted(set(row if isinstance(row, dict) else ()) - set(Row.__dataclass_fields__))
        small = row.get("miniature") if isinstance(row, dict) else None
        unknown += sorted(set(small if isinstance(small, dict) else ()) - set(Miniature.__dataclass_fields__))
        if unknown:
            known = ", ".join(Row.__dataclass_fields__)
            raise ValueError(f"{file}: row {name} has the unknown keys {', '.join(unknown)}; expected some of {known}")
        if isinstance(row, dict) and "reads" in row:
            print(
                f"{file}: row {name}: `reads` is not used any more, since systems say themselves what they read; "
                "remove it",
                file=sys.stderr,
            )


def _data(bench: Bench, plan: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the complete data sections of every row's training and test, without what belongs to the system."""

    def without_loader(section: Mapping[str, Any]) -> dict[str, Any]:
        return {**section, "init_args": {k: v for k, v in section["init_args"].items() if k not in LOADER}}

    adapted = {"class_path": "zoo.data.Adaptation", "init_args": {"corpus": plan["data"], "protocol": "transductive"}}
    sections = {}
    for name, row in bench.rows.items():
        test = adapted if row.adapt else plan["data"]
        train = plan["rows"][name]["train_data"] if row.train_data is not None else test
        sections[name] = {"train": without_loader(train), "test": without_loader(test)}
    return sections


def _check_row_names(bench: Bench, flag: str, names: Sequence[str] | None) -> None:
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
    chosen = [job for job in todo if job.name in wanted]
    if options.seed is not None:
        chosen = [job for job in chosen if job.seed == options.seed or job.name not in (options.only or ())]
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // options.jobs))
    ready = sum(job.done for job in chosen)
    print(f"{len(chosen)} jobs, {ready} done before, {options.jobs} at a time; results in {options.out}", flush=True)
    started = time.perf_counter()
    outcome = run(chosen, options.jobs, threads, lambda line: print(line, flush=True), options.launch or ())
    done = len(chosen) - len(outcome.failed) - len(outcome.stopped)
    print(f"{done} of {len(chosen)} jobs done, {time.perf_counter() - started:.0f} s", flush=True)
    return outcome


def _report(bench: Bench, todo: Sequence[Job], failed: Mapping[Path, str], out: Path, command: str) -> None:
    from zoo.benchmark.collect import results
    from zoo.benchmark.report import write_report
    from zoo.benchmark.utterances import utterances

    print("comparing the rows and writing the report", flush=True)
    content = results(bench, todo, failed, out, command)
    (out / "results.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_report(content, out, utterances(bench, todo, out / "media-cache"))
    missing = [str(job) for job in todo if job.row.ranked and not job.done]
    if missing:
        print(f"not in the report, not done: {', '.join(missing)}")
    print(f"report: {out / 'report.html'}")
