"""Running the rows of a benchmark: every (row, seed) is a job with a folder of its own, whose done parts stay done.

    OUT/runs/NAME/seed-S/
      spec.json              what the job is; a folder of another job is refused
      data.yaml test.yaml    the corpus of training and of the test, read after the row's configs
      lightning_logs/version_0   the training run, resumed where a killed one stopped
      fit.json  test.json    written when training and test were done: seconds, peak memory
      results/               metrics.json, predictions.jsonl (or decisions.jsonl)
      log.txt  failed.json   everything that was printed; why it failed, if it did
      .lock  .running        held by the benchmark, and by the command, that is at work on the job

Jobs are processes forked off a server that has imported everything once. They end with the benchmark, also if it is
killed, and hold a lock on their folder while they live, so two benchmarks (or a job script of a cluster) never work on
one job at the same time. A signal to the benchmark is passed on to them: they save what they have done, and the same
command goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

import yaml

from zoo import interrupts
from zoo.benchmark.child import RUNNING, run_command
from zoo.benchmark.plan import REFERENCE, Bench, Row, flags
from zoo.benchmark.server import server_context
from zoo.imports import import_flags
from zoo.runs import find_checkpoint
from zoo.storage import InUse, locked, read_json, sha256_of

PACKAGE = Path(__file__).parents[1]
QUIET = {"trainer.enable_progress_bar": False, "trainer.enable_model_summary": False}
INTERRUPTED = [128 + number for number in interrupts.SIGNALS]  # exit codes of a command that was asked to stop
RESULTS = {"test": "predictions.jsonl", "predict": "*.jsonl"}


class Failed(RuntimeError):
    """A command of a job ended with an exit code other than 0."""


class Stopped(RuntimeError):
    """A command of a job was asked to stop, by a signal to it or to the benchmark; it goes on when started again."""


class Commands:
    """The processes that run at present, for whoever has to stop them. Safe to use from several threads.

    Args:
        launch: words in front of a command, which start it in several processes (``srun``); none: it runs in one, and
            Lightning starts others.
    """

    def __init__(self, launch: Sequence[str] = ()) -> None:
        self.launch = tuple(launch)
        self._lock = threading.Lock()
        self._processes: set[multiprocessing.process.BaseProcess] = set()
        self._signal: signal.Signals | None = None

    def run(self, process: multiprocessing.process.BaseProcess) -> int:
        """Start a process and wait for its exit code; `Stopped` if all were stopped already."""
        with self._lock:
            if self._signal is not None:
                raise Stopped("the benchmark was asked to stop")
            process.start()
            self._processes.add(process)
        connection.wait([process.sentinel])  # reads nothing, so it needs no lock
        with self._lock:
            # the exit code can be read once, and the start of another process reads those of all that have ended
            process.join()
            self._processes.discard(process)
        assert process.exitcode is not None
        return process.exitcode

    def stop(self, number: signal.Signals) -> None:
        """Send a signal to all processes, and let no other start."""
        with self._lock:
            self._signal = number
            for pid in (process.pid for process in self._processes if process.pid is not None):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)


@dataclass(frozen=True)
class Job:
    """One row with one seed.

    Attributes:
        home: its folder.
        data: the corpus of training and of the test as a config says them, complete but for `zoo.benchmark.LOADER`.
        needed: name of a row that must be finished before -> its job.
    """

    name: str
    seed: int
    row: Row
    home: Path
    data: Mapping[str, Mapping[str, Any]]
    needed: Mapping[str, Job]

    def __str__(self) -> str:
        return f"{self.name} seed {self.seed}"

    @property
    def log(self) -> Path:
        return self.home / "log.txt"

    @property
    def run(self) -> Path:
        return self.home / "lightning_logs" / "version_0"

    @property
    def results(self) -> Path:
        return self.home / "results"

    @property
    def done(self) -> bool:
        return (self.home / ("fit.json" if self.row.verb == "fit" else "test.json")).is_file()

    def filled(self, value: Any) -> Any:
        """Return a value with ``run:NAME`` and ``results:NAME`` replaced by folders."""
        if not isinstance(value, str):
            return value
        return REFERENCE.sub(
            lambda m: str(self.needed[m[2]].run if m[1] == "run" else self.needed[m[2]].results), value
        )

    def options(self, kind: Mapping[str, Any]) -> list[str]:
        return flags({key: self.filled(value) for key, value in kind.items()})

    def fit_arguments(self, data: Path) -> list[str]:
        """Return the arguments of ``zoo fit`` that begin the training.

        Args:
            data: a config with the corpus of the training.
        """
        return [
            *(f"--config={file}" for file in self.row.config or ()),
            f"--config={data}",
            f"--seed_everything={self.seed}",
            f"--trainer.default_root_dir={self.home}",
            *flags(QUIET),
            *self.options(self.row.options),
        ]

    def spec(self) -> dict[str, Any]:
        """Return what the job is, in files and words that do not depend on where it runs."""
        row = self.row
        spec: dict[str, Any] = {
            "seed": self.seed,
            "verb": row.verb,
            "use": row.use,
            "options": row.options,
            "test_options": row.test_options,
            "test_data": self.data["test"],
            "needs": {name: job.spec() for name, job in sorted(self.needed.items())},
        }
        if row.config is not None:
            spec["config"] = {str(file): sha256_of(Path(file)) for file in row.config}
            spec["zero_shot"] = row.zero_shot
        elif not REFERENCE.search(str(row.checkpoint)):
            spec["checkpoint"] = sha256_of(find_checkpoint(str(row.checkpoint)))
        else:
            spec["checkpoint"] = row.checkpoint
        if row.trains:
            spec["train_data"] = self.data["train"]
        return spec


def jobs(bench: Bench, data: Mapping[str, Mapping[str, Mapping[str, Any]]], out: Path) -> list[Job]:
    """Return every job, each after those it needs.

    Args:
        data: row -> ``train`` and ``test`` -> data section, see `Job.data`.
    """
    made: dict[tuple[str, int], Job] = {}
    for name in bench.order():
        for seed in bench.seeds_of(name):
            needed = {n: made[n, bench.seed_of(name, n, seed)] for n in bench.needs(name)}
            made[name, seed] = Job(
                name, seed, bench.rows[name], out / "runs" / name / f"seed-{seed}", data[name], needed
            )
    return list(made.values())


# ---------------------------------------------------------------------------------------------------------- one job
def work(job: Job, commands: Commands, threads: int, code: str, say: Callable[[str], None]) -> None:
    """Do what is left of a job.

    Args:
        commands: where its processes are noted.
        threads: of each command.
        code: `source` when the benchmark started.

    Raises:
        ValueError: its folder holds another job.
        Failed: a command failed; ``failed.json`` says why.
        Stopped: a command was asked to stop.
    """
    job.home.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(locked(job.home / ".lock", str(job)))
        except InUse:
            say(f"{job}: another process has it, waiting")
            lock.enter_context(locked(job.home / ".lock", str(job), wait=True))
        with locked(job.home / RUNNING, str(job), wait=True):  # the command of a benchmark killed just now has ended
            _same_job(job)
        if job.done:
            return
        (job.home / "failed.json").unlink(missing_ok=True)
        try:
            if job.row.trains and not (job.home / "fit.json").is_file():
                _fit(job, commands, threads, code)
                say(f"{job}: trained in {_cost(job.home / 'fit.json')['seconds']:.0f} s")
            if job.row.verb != "fit":
                _test(job, commands, threads, code)
        except Failed as error:
            (job.home / "failed.json").write_text(json.dumps({"reason": str(error)}))
            raise
        if job.row.verb != "fit":
            say(f"{job}: {_result(job)}")


def _same_job(job: Job) -> None:
    path, spec = job.home / "spec.json", json.loads(json.dumps(job.spec()))
    if not path.is_file():
        path.write_text(json.dumps(spec, indent=1))
        return
    before = read_json(path)
    if not isinstance(before, dict):
        raise ValueError(f"{path} is damaged; run the row anew with --redo [{job.name}]")
    differs = [k for k in sorted(before.keys() | spec.keys()) if before.get(k) != spec.get(k)]
    if differs:
        raise ValueError(
            f"{job.home} holds row {job.name} with other settings ({', '.join(differs)} differ); run it anew with "
            f"--redo [{job.name}], or give another --out"
        )


def _fit(job: Job, commands: Commands, threads: int, code: str) -> None:
    resumed = (job.run / "checkpoints" / "last.ckpt").is_file()
    if resumed:  # exact: losses and weights are those of an undisturbed run
        args = [f"--ckpt_path={job.run}"]
    else:
        shutil.rmtree(job.home / "lightning_logs", ignore_errors=True)
        (job.home / "data.yaml").write_text(yaml.safe_dump({"data": job.data["train"]}, sort_keys=False))
        args = job.fit_arguments(job.home / "data.yaml")
    _command(job, commands, "fit", args, job.home / "fit.json", threads, code)


def _test(job: Job, commands: Commands, threads: int, code: str) -> None:
    row = job.row
    shutil.rmtree(job.results, ignore_errors=True)
    (job.home / "test.yaml").write_text(yaml.safe_dump({"data": job.data["test"]}, sort_keys=False))
    if row.trains:
        args = [f"--ckpt_path={find_checkpoint(job.run, row.use)}"]
    elif row.config is not None:
        args = [*(f"--config={file}" for file in row.config), "--zero_shot=true"]
    else:
        path = Path(job.filled(row.checkpoint))
        where = find_checkpoint(path, row.use) if REFERENCE.search(str(row.checkpoint)) else row.checkpoint
        args = [f"--ckpt_path={where}"]
    args += [
        f"--config={job.home / 'test.yaml'}",
        f"--seed_everything={job.seed}",
        "--trainer.logger=false",
        f"--trainer.default_root_dir={job.results}",
        *flags(QUIET),
        *([] if row.trains else job.options(row.options)),
        *job.options(row.test_options),
    ]
    _command(job, commands, row.verb, args, job.home / "test.json", threads, code)
    if not list(job.results.glob(RESULTS[row.verb])):
        raise Failed(f"zoo {row.verb} wrote no {RESULTS[row.verb]} into {job.results}; see {job.log}")


def _command(job: Job, commands: Commands, verb: str, args: list[str], cost: Path, threads: int, code: str) -> None:
    """Run ``zoo VERB ARGS`` in a process of its own; ``cost`` is written when it is done."""
    args = [*args, *import_flags()]  # a server that was started before does not know them
    if source() != code:  # rows of two versions are no comparison, and half-loaded code fails in odd ways
        raise Failed("the files of the zoo were changed while the benchmark ran; give the command again")
    note = cost.with_suffix(".partial.json")
    before = _cost(note) | {"interrupted": _cost(note).get("interrupted", 0) + 1} if note.is_file() else {}
    start = job.log.stat().st_size if job.log.is_file() else 0
    context = server_context()
    words = (commands.launch, verb, args)
    process = context.Process(target=run_command, args=(*words, os.getcwd(), str(job.log), str(note), before, threads))
    exit_code = commands.run(process)
    if exit_code in INTERRUPTED:
        raise Stopped(f"zoo {verb} was interrupted")
    if exit_code:
        ended = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
        raise Failed(f"zoo {verb} ended with {ended}: {_complaint(job.log, start)}")
    note.replace(cost)


def _complaint(log: Path, start: int) -> str:
    """Return what a command printed from its error message on.

    A command that was killed has none, and how far it was is no complaint.
    """
    lines = log.read_bytes()[start:].decode(errors="replace").strip().splitlines() if log.is_file() else []
    begins = [i for i, line in enumerate(lines) if re.match(r"zoo \w+: |error: |\w+(Error|Exception)\b", line)]
    if not begins:
        return f"it printed no error; see {log}"
    complaint = " ".join(" ".join(lines[begins[-1] :]).split())
    return complaint[:400] + " ..." if len(complaint) > 400 else complaint


def source() -> str:
    """Return a digest of the zoo's own code, which must stay as it is while a benchmark runs."""
    files = sorted(PACKAGE.rglob("*.py"))
    return hashlib.sha256(repr([(str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in files]).encode()).hexdigest()


def _result(job: Job) -> str:
    """Return one line about a finished job."""
    seconds = _cost(job.home / "test.json")["seconds"]
    if job.row.verb == "predict":
        return f"answered in {seconds:.0f} s"
    scores = read_json(job.results / "metrics.json")
    return f"accuracy {scores['accuracy']:.3f}, weighted F1 {scores['weighted_f1']:.3f} (tested in {seconds:.0f} s)"


# ---------------------------------------------------------------------------------------------------------- all jobs
@dataclass
class Outcome:
    """What became of the jobs that were not done.

    Attributes:
        failed: folder -> reason of those that failed, or that need one that did.
        stopped: the same of those that were interrupted, or that need one that was.
    """

    failed: dict[Path, str] = field(default_factory=dict)
    stopped: dict[Path, str] = field(default_factory=dict)


def run(
    todo: list[Job], parallel: int, threads: int, say: Callable[[str], None] = print, launch: Sequence[str] = ()
) -> Outcome:
    """Do all jobs, several at a time. A failed or interrupted job stops no other.

    A signal is passed on to the commands that run, which save what they have done; the same signal again kills them.

    Args:
        launch: see `Commands`.

    Raises:
        KeyboardInterrupt: after a signal, once all commands have ended.
    """
    outcome, commands, code = Outcome(), Commands(launch), source()
    with ThreadPoolExecutor(parallel) as pool:
        try:
            _work_off(todo, parallel, outcome, lambda job: pool.submit(work, job, commands, threads, code, say), say)
        except KeyboardInterrupt:
            asked = interrupts.requested() or signal.SIGINT
            say(f"stopping: the running jobs save what they have done; {asked.name} again kills them")
            commands.stop(asked)
            try:
                pool.shutdown(wait=True, cancel_futures=True)
            except KeyboardInterrupt:
                commands.stop(signal.SIGKILL)
            raise
    return outcome


def _work_off(
    todo: list[Job], parallel: int, outcome: Outcome, submit: Callable[[Job], Future[Any]], say: Callable[[str], None]
) -> None:
    """Submit each job once those it needs are done, and note how it ended."""
    waiting = list(todo)
    running: dict[Future[Any], Job] = {}
    done: set[Path] = set()
    while waiting or running:
        for job in list(waiting):
            ended = next(
                (
                    (name, group)
                    for name, needed in job.needed.items()
                    for group in (outcome.failed, outcome.stopped)
                    if needed.home in group
                ),
                None,
            )
            if ended is not None:
                name, group = ended
                waiting.remove(job)
                what = "failed" if group is outcome.failed else "was interrupted"
                group[job.home] = f"needs row {name}, which {what}"
                say(f"{job}: not run, {group[job.home]}")
            elif all(needed.home in done for needed in job.needed.values()) and len(running) < parallel:
                waiting.remove(job)
                running[submit(job)] = job
        if not running:
            continue
        for future in wait(running, return_when=FIRST_COMPLETED)[0]:
            job = running.pop(future)
            try:
                future.result()
            except Failed as error:
                outcome.failed[job.home] = str(error)
                say(f"{job}: FAILED, {error} (see {job.log})")
            except Stopped as error:
                outcome.stopped[job.home] = str(error)
                say(f"{job}: interrupted; the same command goes on where it stopped")
            else:
                done.add(job.home)


def _cost(path: Path) -> dict[str, float]:
    cost = read_json(path)
    if not isinstance(cost, dict) or not isinstance(cost.get("seconds"), int | float):
        raise ValueError(f"{path} is damaged (it names no seconds); remove it, and the part is done again")
    return cost
