"""Scripts for Slurm: what they ask for, in which order they run, and that a stopped row goes on to the same end.

Slurm is played by the test: ``sbatch`` and ``scontrol`` write down what they are asked, the test runs the scripts with
the variables of a batch script, and ``srun`` starts the tasks with those of a step and passes SIGUSR1 on, as it does.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.plugins.environments import SLURMEnvironment

from tests.benchmark.conftest import Made, config
from tests.runs_helper import refused, rows, zoo
from zoo.benchmark.scripts import STOPPED
from zoo.lightning_cli import _notice_batch_scripts
from zoo.memory.request import devices

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs"
SRUN = """
import os, signal, subprocess, sys
tasks = []
signal.signal(signal.SIGUSR1, lambda number, frame: [task.send_signal(number) for task in tasks])
for i in range(int(os.environ["SLURM_NTASKS"])):
    own = {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "SLURM_STEP_ID": "0"}
    tasks.append(subprocess.Popen(sys.argv[1:], env=os.environ | own))
sys.exit(max(task.wait() for task in tasks))
"""
RECORD = """
import json, os, sys
with open(os.environ["QUEUE"], "a") as file:
    file.write(json.dumps(sys.argv) + "\\n")
print(sum(1 for _ in open(os.environ["QUEUE"])) + 100, end=";cluster\\n")
"""


def directives(script: Path) -> dict[str, str]:
    """What a script asks of Slurm."""
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script.read_text(), re.M)
    assert len(lines) == script.read_text().count("#SBATCH")
    return dict(lines)


def written(folder: Path, content: dict, *options: str) -> dict[str, Path]:
    """The scripts of a benchmark: name without its number -> file."""
    file = folder / "bench.yaml"
    file.write_text(yaml.safe_dump({"title": "t"} | content))
    zoo("bench", f"--config={file}", f"--out={folder / 'out'}", f"--write_jobs={folder / 'jobs'}", *options)
    return {re.sub(r"^\d+-", "", path.stem): path for path in (folder / "jobs").glob("*.sh")}


PAPER = {
    "data": {"class_path": "zoo.data.Synthetic", "init_args": {"train_dialogues": 2, "test_dialogues": 2}},
    "rows": {
        "lora": {"what": "l", "config": [str(CONFIGS / "dialoguellm" / "meld.yaml")]},
        "divided": {
            "what": "d",
            "config": [str(CONFIGS / "dialoguellm" / "meld.yaml"), str(CONFIGS / "trainer" / "fsdp2.yaml")],
            "options": {"trainer.num_nodes": 2, "trainer.strategy.data_parallel_size": 16},
        },
        "tested": {"what": "t", "checkpoint": "run:divided"},
        "shipped": {"what": "s", "checkpoint": "tiny-llama-sitcom"},
    },
}


def test_a_script_asks_for_what_the_row_needs(tmp_path):
    asked = ("--slurm.gpus={24: rtx4090, 80: a100}", "--slurm.time=12:00:00", "--slurm.memory=64G")
    scripts = written(tmp_path, PAPER, *asked, "--slurm.directives=[--partition=gpu, --account=me]")
    lora = directives(scripts["lora-seed-0"])
    assert (lora["nodes"], lora["ntasks-per-node"], lora["gpus-per-node"]) == ("1", "1", "a100:1")
    assert (lora["time"], lora["mem"], lora["partition"], lora["account"]) == ("12:00:00", "64G", "gpu", "me")
    assert lora["signal"] == "B:USR1@120" and "requeue" in lora
    assert "# zoo memory: expected peak 29.0 GiB on each GPU" in scripts["lora-seed-0"].read_text()
    for name in ("divided", "tested"):  # a test has the processes of the run
        divided = directives(scripts[f"{name}-seed-0"])
        assert (divided["nodes"], divided["ntasks-per-node"], divided["gpus-per-node"]) == ("2", "8", "rtx4090:8")
        assert "'--launch=[srun]'" in scripts[f"{name}-seed-0"].read_text()
    assert "launch" not in scripts["lora-seed-0"].read_text()
    assert directives(scripts["shipped-seed-0"])["gpus-per-node"] == "1"
    assert "gpus-per-node" not in directives(scripts["report"]) and directives(scripts["report"])["partition"] == "gpu"
    for script in scripts.values():
        assert subprocess.run(["sh", "-n", script], check=False).returncode == 0
        assert "slurm" not in script.read_text().replace(str(tmp_path), "")


def test_a_row_that_fits_on_no_card_is_refused(tmp_path):
    file = tmp_path / "bench.yaml"
    file.write_text(yaml.safe_dump({"title": "t"} | PAPER))
    command = ("bench", f"--config={file}", f"--out={tmp_path / 'out'}", "--slurm.gpus={24: rtx4090}")
    message = refused(*command, f"--write_jobs={tmp_path / 'jobs'}")
    assert "row lora: expected peak 29.0 GiB on each GPU, which is too much for all of slurm.gpus (24 GB)" in message
    assert "give --write_jobs FOLDER" in refused(*command)


@pytest.mark.parametrize(
    "option, message",
    [
        ("--slurm.time=12 hours", "--slurm.time is '12 hours', expected one word"),
        ("--slurm.memory=", "--slurm.memory is '', expected one word"),
        ("--slurm.gpus={24: rtx 4090}", "--slurm.gpus 24 is 'rtx 4090', expected one word"),
        ("--slurm.warning=-5", "--slurm.warning -5: expected seconds before the end of a job, 1 or more"),
        ("--slurm.directives=[partition=gpu]", "--slurm.directives has 'partition=gpu', expected options such as"),
    ],
)
def test_what_sbatch_would_not_take_is_refused(tmp_path, option, message):
    file = tmp_path / "bench.yaml"
    file.write_text(yaml.safe_dump({"title": "t"} | PAPER))
    jobs = tmp_path / "jobs"
    assert message in refused("bench", f"--config={file}", f"--out={tmp_path / 'out'}", f"--write_jobs={jobs}", option)
    assert not jobs.exists()


@pytest.mark.parametrize("value, count", [("auto", 1), (-1, 1), (4, 4), ("4", 4), ([0, 2], 2), ("0,2,3", 3), (None, 1)])
def test_devices_of_a_machine(value, count):
    assert devices(value) == count


def test_lightning_starts_the_processes_of_a_batch_script_without_srun(monkeypatch):
    for name, value in {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "row"}.items():
        monkeypatch.setenv(name, value)
    assert SLURMEnvironment.detect()
    with monkeypatch.context() as step:
        step.setenv("SLURM_STEP_ID", "0")
        _notice_batch_scripts()
        assert SLURMEnvironment.detect()
    _notice_batch_scripts()
    assert not SLURMEnvironment.detect()


# ---- the scripts run
class Cluster:
    """A cluster of one machine, which runs what was submitted when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.queue, programs = folder / "queue.jsonl", folder / "bin"
        programs.mkdir()
        for name, text in {"srun": SRUN, "sbatch": RECORD, "scontrol": RECORD}.items():
            (programs / name).write_text(f"#!{sys.executable}{text}")
            (programs / name).chmod(0o755)
        path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = os.environ | {"PATH": path, "QUEUE": str(self.queue), "PYTHONPATH": str(REPOSITORY)}
        self.environment["OMP_NUM_THREADS"] = "1"

    def asked(self) -> list[list[str]]:
        """Commands that were given to Slurm, without the folders of their programs."""
        lines = [json.loads(line) for line in self.queue.read_text().splitlines()]
        return [[Path(words[0]).name, *words[1:]] for words in lines]

    def start(self, script: Path) -> subprocess.Popen[bytes]:
        """Start a script as its batch step."""
        of_job = directives(script)
        tasks = of_job.get("ntasks-per-node", "1")
        number = str(1000 + os.getpid() % 9000)  # Lightning's port follows from it
        own = {"SLURM_JOB_ID": number, "SLURM_JOB_NAME": of_job["job-name"], "SLURM_NODELIST": "127.0.0.1"}
        own |= {"SLURM_NNODES": "1", "SLURM_NTASKS": tasks, "SLURM_NTASKS_PER_NODE": tasks}
        own |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
        with script.with_suffix(".out").open("ab") as out:
            return subprocess.Popen([script], env=self.environment | own, stdout=out, stderr=out)


def pair(made: Made) -> dict:
    """A row in two processes, long enough to be stopped, and a row that starts from it."""
    options = {"save_last_every": 3, "trainer.max_epochs": 12, "trainer.devices": 2}
    long = config(made.home, "pair", dropout=0.1)
    return {
        "data": yaml.safe_load(made.file.read_text())["data"],
        "rows": {
            "pair": {"what": "two processes", "config": [long], "options": options},
            "behind": {"what": "starts from it", "config": [long], "options": {"model.start_from": "run:pair"}},
        },
    }


def test_a_row_that_is_stopped_before_its_time_is_over_goes_on_to_the_same_end(made, tmp_path):
    cluster = Cluster(tmp_path)
    scripts = written(tmp_path, pair(made), "--slurm={}")
    assert "gpus-per-node" not in directives(scripts["pair-seed-0"])
    subprocess.run([scripts["submit"]], check=True, env=cluster.environment)
    submitted = cluster.asked()
    assert [Path(words[-1]).name for words in submitted] == ["000-pair-seed-0.sh", "001-behind-seed-0.sh", "report.sh"]
    assert not any("--dependency" in word for word in submitted[0])
    assert "--dependency=afterok:101" in submitted[1] and "--kill-on-invalid-dep=yes" in submitted[1]
    assert "--dependency=afterany:101:102" in submitted[2]

    home = tmp_path / "out" / "runs" / "pair" / "seed-0"
    process, log = cluster.start(scripts["pair-seed-0"]), scripts["pair-seed-0"].with_suffix(".out")
    while not (home / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt").is_file():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)  # to the batch script alone
    assert process.wait(300) == STOPPED, log.read_text()
    assert cluster.asked()[-1] == ["scontrol", "requeue", str(1000 + os.getpid() % 9000)]
    printed = (home / "log.txt").read_text()
    assert "interrupted at step" in printed and not (home / "fit.json").exists(), printed

    for name in ("pair-seed-0", "behind-seed-0", "report"):
        assert cluster.start(scripts[name]).wait(300) == 0, scripts[name].with_suffix(".out").read_text()
    assert len(cluster.asked()) == 4  # nobody was queued again
    printed = (home / "log.txt").read_text()
    assert "$ srun zoo fit --ckpt_path=" in printed
    assert json.loads((home / "fit.json").read_text())["interrupted"] == 1
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["name"] for row in report["rows"]} == {"pair", "behind"}

    whole = [f"--config={tmp_path / 'bench.yaml'}", f"--out={tmp_path / 'whole'}", "--report=false"]
    subprocess.run(["zoo", "bench", *whole], check=True, env=cluster.environment)  # Lightning starts the other process
    for name in ("pair", "behind"):
        one, other = (tmp_path / out / "runs" / name / "seed-0" / "results" for out in ("out", "whole"))
        assert rows(one) == rows(other)
