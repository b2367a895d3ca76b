"""Jobs of a benchmark: what is done stays done, what broke is said, what was killed goes on to the same end."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import yaml

from tests.benchmark.conftest import Made, bench, config
from tests.runs_helper import metrics, refused, rows, zoo
from zoo.benchmark.run import Commands, _complaint
from zoo.benchmark.server import server_context
from zoo.cli import main


def results_of(made: Made, row: str, seed: int = 0) -> Path:
    return made.out / "runs" / row / f"seed-{seed}" / "results"


def test_a_row_is_what_its_commands_would_give(made, tmp_path):
    """The same fit and test by hand give the same answers."""
    data = tmp_path / "data.yaml"
    data.write_text(yaml.safe_dump({"data": yaml.safe_load(made.file.read_text())["data"]}))
    plain = made.home / "plain.yaml"
    quiet = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
    zoo(
        "fit",
        f"--config={plain}",
        f"--config={data}",
        "--seed_everything=1",
        f"--trainer.default_root_dir={tmp_path}",
        *quiet,
    )
    run = tmp_path / "lightning_logs" / "version_0"
    zoo("test", f"--ckpt_path={run}", *quiet)
    assert rows(run) == rows(results_of(made, "plain", 1)) != rows(results_of(made, "plain", 0))


def test_rows_that_stand_on_others(made):
    plain, last = (rows(results_of(made, name)) for name in ("plain", "last"))
    assert [r["id"] for r in plain] == [r["id"] for r in last]
    log = (made.out / "runs" / "further" / "seed-0" / "log.txt").read_text()
    assert f"started from {made.out / 'runs' / 'plain' / 'seed-0'}" in log
    answers = rows(results_of(made, "answers"))
    assert answers and all("/dev/" in r["id"] for r in answers)
    assert metrics(results_of(made, "untrained"))["checkpoint"] is None
    only = made.out / "runs" / "only" / "seed-0"
    assert (only / "fit.json").is_file() and not (only / "results").exists()


def test_failures_are_told_and_stop_nothing_else(made):
    assert made.code == 1
    failed = json.loads((made.out / "results.json").read_text())["failed"]
    reasons = {f["row"]: f["reason"] for f in failed}
    assert set(reasons) == {"broken", "behind"}
    assert "lrr" in reasons["broken"] and reasons["behind"] == "needs row broken, which failed"
    assert "lrr" in json.loads((made.out / "runs" / "broken" / "seed-0" / "failed.json").read_text())["reason"]
    assert all((made.out / f["log"]).is_file() for f in failed if f["row"] == "broken")


def test_costs_are_written_down(made):
    found = {r["name"]: r["cost"] for r in json.loads((made.out / "results.json").read_text())["rows"]}
    fits = {
        name: json.loads((made.out / "runs" / name / "seed-0" / "fit.json").read_text())
        for name in ("plain", "further", "slower")
    }
    assert 0.1 < fits["plain"]["seconds"] < 300 and 100 < fits["plain"]["peak_mib"] < 20_000
    assert found["further"]["train_seconds"] == pytest.approx(
        fits["further"]["seconds"] + fits["plain"]["seconds"]
    )  # it stands on another training
    assert found["slower"]["train_seconds"] == pytest.approx(fits["slower"]["seconds"])
    assert found["untrained"]["train_seconds"] is None
    assert found["lora"]["trainable_parameters"] < found["lora"]["parameters"] / 2
    assert 5 < found["plain"]["tokens_per_sample"] < found["lora"]["tokens_per_sample"]  # which shows descriptions


def test_what_is_done_is_not_done_again(made, capfd):
    before = {p: p.stat().st_mtime_ns for p in (made.out / "runs").rglob("*.json*")}
    assert bench("--config", made.file, "--out", made.out) == 1  # broken is tried again
    assert "11 jobs, 9 done before" in capfd.readouterr().out
    after = {p: p.stat().st_mtime_ns for p in (made.out / "runs").rglob("*.json*")}
    changed = {
        p.relative_to(made.out / "runs").parts[0] for p in after.keys() | before.keys() if after.get(p) != before.get(p)
    }
    assert changed <= {"broken", "behind"}


def test_other_settings_in_the_same_folder_are_refused(made, tmp_path):
    said = yaml.safe_load(made.file.read_text())
    said["rows"] = {"slower": said["rows"]["slower"] | {"options": {"model.lr": 1e-5}}}
    file = tmp_path / "bench.yaml"
    file.write_text(yaml.safe_dump(said))
    message = refused("bench", "--config", file, "--out", made.out)
    assert "row slower with other settings (options differ)" in message and "--redo" in message


@pytest.mark.parametrize("flag", ["--report_only=true", "--write_jobs=jobs"])
def test_nothing_is_thrown_away_where_nothing_runs(made, flag):
    files = sorted(made.out.rglob("*"))
    message = refused("bench", f"--config={made.file}", f"--out={made.out}", "--redo=[plain]", flag)
    assert flag.partition("=")[0] in message and "give one of the two" in message
    assert sorted(made.out.rglob("*")) == files


def test_progress_is_no_complaint(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("zoo fit: of the command before\n")
    start = log.stat().st_size
    with log.open("a") as file:
        file.write("run folder: x\nepoch 0, step 7: train/loss 1.2, 3 s left\n")
    assert _complaint(log, start) == f"it printed no error; see {log}"
    with log.open("a") as file:
        file.write("zoo fit: the file x\nis damaged\n")
    assert _complaint(log, start) == "zoo fit: the file x is damaged"


def test_one_script_per_job(made, tmp_path):
    zoo("bench", "--config", made.file, "--out", made.out, "--write_jobs", tmp_path / "jobs")
    scripts = sorted((tmp_path / "jobs").glob("*.sh"))
    table = [line.split("\t") for line in (tmp_path / "jobs" / "jobs.tsv").read_text().splitlines()[1:]]
    assert len(scripts) == len(table) == 11
    after = {name.split("-", 1)[1]: needed for name, needed in table}
    assert re.fullmatch(r"\d+-plain-seed-0\.sh", after["further-seed-0.sh"]) and after["plain-seed-1.sh"] == ""
    (script,) = (s for s in scripts if "-plain-seed-1" in s.name)
    done = subprocess.run(["sh", "-n", script], check=False)
    assert done.returncode == 0
    text = script.read_text()
    assert "'--only=[plain]' --seed=1 --report=false" in text and "write_jobs" not in text
    assert str(Path.cwd()) not in text.replace(str(made.home), "")  # it is submitted from there


def children(process: int) -> list[int]:
    """Ids of the processes below a process."""
    below, level = [], [process]
    while level:
        level = [
            int(child)
            for parent in level
            for listing in Path(f"/proc/{parent}/task").glob("*/children")
            for child in listing.read_text().split()
        ]
        below += level
    return below


@dataclass
class Command:
    """A benchmark that runs in a process of its own, with all that it prints in a file."""

    process: BaseProcess
    log: Path

    def finish(self) -> tuple[int, str]:
        """Wait for its end; return its exit code, and what it printed."""
        self.process.join()
        return self.process.exitcode, self.log.read_text()


def run_command(args: list[str], log: str) -> None:
    """Run ``zoo ARGS`` with its output in a file."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    main(args)


def long_bench(made: Made, folder: Path) -> tuple[Path, Path]:
    """Write a benchmark of one row that trains long enough to be interrupted; return its file and its job's folder."""
    content = {
        "title": "t",
        "data": yaml.safe_load(made.file.read_text())["data"],
        "rows": {
            "long": {
                "what": "long",
                "config": [config(made.home, "long", dropout=0.1)],
                "options": {"save_last_every": 3, "trainer.max_epochs": 25},
            }
        },
    }
    file = folder / "bench.yaml"
    file.write_text(yaml.safe_dump(content))
    return file, folder / "out" / "runs" / "long" / "seed-0"


def start_in_training(file: Path, home: Path) -> Command:
    """Start a benchmark; return when its job is in the middle of the training.

    It is forked off the server of this process, which has imported everything: to start Python would take longer than
    all the rest. `undisturbed` is what the command line gives.
    """
    log = file.with_name("printed.txt")
    args = ["bench", "--config", str(file), "--out", str(file.with_name("out"))]
    process = multiprocessing.get_context("forkserver").Process(target=run_command, args=(args, str(log)))
    process.start()
    last = home / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
    while not last.is_file():
        assert process.is_alive(), log.read_text()
        time.sleep(0.01)
    time.sleep(0.3)
    return Command(process, log)


STOPS = {  # name -> signal, and who gets it: the benchmark, the job's own process, or all of them as from a scheduler
    "kill": (signal.SIGKILL, "benchmark", -signal.SIGKILL),
    "terminate": (signal.SIGTERM, "benchmark", 143),
    "ctrl-c": (signal.SIGINT, "benchmark", 130),
    "terminate all": (signal.SIGTERM, "all", 143),
    "terminate the job": (signal.SIGTERM, "job", 1),
}


@pytest.fixture(scope="module")
def undisturbed(made, tmp_path_factory) -> list[dict]:
    """Answers of the row of `long_bench` without interruption."""
    folder = tmp_path_factory.mktemp("undisturbed")
    file, home = long_bench(made, folder)
    command = [sys.executable, "-m", "zoo", "bench", "--config", file, "--out", folder / "out", "--report=false"]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return rows(home / "results")


@pytest.mark.parametrize("name", STOPS)
def test_stopped_in_the_middle_of_a_training_it_ends_as_an_undisturbed_one(name, made, undisturbed, tmp_path):
    number, receiver, code = STOPS[name]
    file, home = long_bench(made, tmp_path)
    command = start_in_training(file, home)
    every = [command.process.pid, *children(command.process.pid)]
    for pid in {"benchmark": every[:1], "job": every[-1:], "all": every}[receiver]:
        os.kill(pid, number)
    exit_code, printed = command.finish()
    assert exit_code == code, printed
    assert not (home / "fit.json").exists() and not (home / "failed.json").exists()
    log = (home / "log.txt").read_text()
    if receiver != "job" and number != signal.SIGKILL:
        assert "zoo bench: interrupted; what is done is kept" in printed
    if number != signal.SIGKILL:
        assert "interrupted at step" in log and "go on with: zoo fit" in log
    if receiver == "job":  # the benchmark goes on, and ranks nothing that is half trained
        assert "long seed 0: interrupted" in printed and "1 of 1 jobs were interrupted" in printed
        assert not (tmp_path / "out" / "report.html").exists()
    assert bench("--config", file, "--out", tmp_path / "out", "--report=false") == 0
    assert "--ckpt_path=" in (home / "log.txt").read_text()  # it went on
    assert json.loads((home / "fit.json").read_text())["interrupted"] == 1
    assert rows(home / "results") == undisturbed
    assert undisturbed != rows(results_of(made, "plain"))


def test_an_exit_code_that_two_threads_want_to_read_is_not_lost(monkeypatch):
    """Starting a process reads the exit codes of those that have ended; what is read twice looks like a failure."""
    real, reading, calls = forkserver.read_signed, threading.Event(), []

    def slow_once(fd):
        calls.append(fd)
        if len(calls) == 2:  # the first number that a process sends is its own
            reading.set()
            time.sleep(1)
        return real(fd)

    monkeypatch.setattr(forkserver, "read_signed", slow_once)
    commands, codes = Commands(), []
    context = server_context()
    first = threading.Thread(target=lambda: codes.append(commands.run(context.Process(target=os.getpid))))
    first.start()
    assert reading.wait(120)
    codes.append(commands.run(context.Process(target=os.getpid)))
    first.join(60)
    assert codes == [0, 0]
