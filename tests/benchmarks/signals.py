"""Commands that are sent SIGTERM, SIGINT or SIGKILL at random moments end with the right exit code, and end like an
undisturbed one when they are given again.

    python tests/benchmarks/signals.py --out runs/signals --moments 10 --seed 0

Verbs: fit (checkpoint, log and answers are compared bit for bit), fit in two processes, test, test in two processes,
label, prepare synthetic, bench. Each is done once undisturbed; then, for each signal, once per moment: drawn evenly
from the time the undisturbed command took, sent to the command's first process or to all of its processes, and the
command is given again until it ends by itself. Prints a table, writes OUT/signals.json, and leaves with exit code 1 if
an exit code or a result differs. A command that had ended before its signal is counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

import zoo.lightning_cli  # noqa: E402, F401 - once, for all commands that are forked off
from tests.builders import make_corpus, make_llm  # noqa: E402
from tests.runs_helper import same  # noqa: E402
from zoo.cli import main as zoo_main  # noqa: E402

SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT, "SIGKILL": signal.SIGKILL}
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


# ---------------------------------------------------------------------------------------------------------- commands
def forked(args: list[str], folder: Path, env: dict[str, str] | None = None) -> int:
    """Starts ``zoo ARGS`` in a process forked off this one, with its output in log.txt; its process id."""
    child = os.fork()
    if child:
        CODES.pop(child, None)  # of an earlier process with this number
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ |= env or {}
        os.chdir(folder)
        torch.set_num_threads(1)
        print("$ zoo", *args, flush=True)
        sys.argv = ["zoo"]
        zoo_main(args)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@dataclass
class Command:
    """A command that can be given again until it is done.

    Attributes:
        start: folder -> ids of its processes; the first one is the one a user knows.
        result: folder -> what is compared.
    """

    start: Callable[[Path], list[int]]
    result: Callable[[Path], object]


CODES: dict[int, int] = {}  # process -> exit code of those that have ended


def ended(pids: list[int], until: float | None = None) -> list[int] | None:
    """Exit codes of all processes; None if one still runs at a time."""
    codes = {pid: CODES[pid] for pid in pids if pid in CODES}
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = CODES[pid] = os.waitstatus_to_exitcode(status)
        if len(codes) < len(pids):
            if until is not None and time.perf_counter() >= until:
                return None
            time.sleep(0.005)
    return [codes[pid] for pid in pids]


def newest(folder: Path) -> Path | None:
    runs = sorted((folder / "lightning_logs").glob("version_*/checkpoints/last.ckpt"))
    return runs[-1].parents[1] if runs else None


def fitted(folder: Path) -> object:
    """What training left: last.ckpt without what varies, and the log."""
    run = newest(folder)
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    parts = {part: last[part] for part in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers")}
    return parts, (run / "metrics.csv").read_text()


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def commands(home: Path) -> dict[str, Command]:
    """Every verb, on a miniature corpus and language model that are made in a folder."""
    llm, corpus = make_llm(home / "llm"), make_corpus(home / "meld", (8, 2, 6))
    model = [
        "--model=CausalLM",
        f"--model.llm={llm}",
        "--model.lr=3e-3",
        "--model.dropout=0.1",
        "--data=MELD",
        f"--data.root={corpus}",
        "--data.batch_size=4",
        *QUIET,
    ]
    training = [*model, "--trainer.max_epochs=12", "--save_last_every=5", "--trainer.log_every_n_steps=1"]
    done = forked(["fit", *model, "--trainer.max_epochs=1"], home)
    if ended([done]) != [0]:
        sys.exit(f"the run to test could not be trained; see {home / 'log.txt'}")
    run = newest(home)
    table = home / "table.csv"
    table.write_text("id,text\n" + "".join(f"u{i},{i} what is it\n" for i in range(60)), encoding="utf-8")
    bench = home / "bench.yaml"
    rows_of_bench = {
        "a": {
            "what": "a",
            "config": [str(home / "row.yaml")],
            "options": {"trainer.max_epochs": 6, "save_last_every": 5},
        },
        "b": {"what": "b", "config": [str(home / "row.yaml")], "options": {"model.start_from": "run:a"}},
    }
    init = {"llm": str(llm), "lr": 3e-3, "dropout": 0.1}
    (home / "row.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"class_path": "zoo.models.causal_lm.CausalLM", "init_args": init},
                "data": {"class_path": "zoo.data.MELD", "init_args": {"batch_size": 4}},
                "trainer": {"max_epochs": 2, "accelerator": "cpu"},
            }
        )
    )
    bench.write_text(
        yaml.safe_dump(
            {
                "title": "t",
                "rows": rows_of_bench,
                "data": {"class_path": "zoo.data.MELD", "init_args": {"root": str(corpus)}},
            }
        )
    )

    def one(args: Callable[[Path], list[str]]) -> Callable[[Path], list[int]]:
        return lambda folder: [forked(args(folder), folder)]

    def two(args: Callable[[Path], list[str]]) -> Callable[[Path], list[int]]:
        def start(folder: Path) -> list[int]:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            ranks = (
                {
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": f"{port}",
                    "WORLD_SIZE": "2",
                    "NODE_RANK": "0",
                    "LOCAL_RANK": f"{rank}",
                }
                for rank in (0, 1)
            )
            return [forked(args(folder), folder, env) for env in ranks]

        return start

    def fit(*more: str) -> Callable[[Path], list[str]]:
        def args(folder: Path) -> list[str]:
            begun = newest(folder)
            return ["fit", f"--ckpt_path={begun}", *more] if begun else ["fit", *training, *more]

        return args

    def test(*more: str) -> Callable[[Path], list[str]]:
        return lambda folder: [
            "test",
            f"--ckpt_path={run}",
            "--data.eval_batch_size=1",
            "--trainer.logger=false",
            f"--trainer.default_root_dir={folder}",
            *more,
        ]

    def start_bench(folder: Path) -> list[int]:
        log = (folder / "log.txt").open("a")
        command = [sys.executable, "-m", "zoo", "bench", f"--config={bench}", f"--out={folder / 'out'}", "--jobs=2"]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        CODES.pop(process.pid, None)
        return [process.pid]

    def written(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "out").rglob("*")) if p.is_file()}

    pair = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    answers = lambda folder: rows(folder / "predictions.jsonl")  # noqa: E731
    return {
        "fit": Command(one(fit()), fitted),
        "fit, two processes": Command(two(fit(*pair)), fitted),
        "test": Command(one(test()), answers),
        "test, two processes": Command(two(test(*pair)), answers),
        "label": Command(
            one(lambda folder: ["label", str(table), f"--ckpt_path={run}", f"--out={folder / 'labels.jsonl'}"]),
            lambda folder: {row["id"]: (row["label"], row["scores"]) for row in rows(folder / "labels.jsonl")},
        ),
        "prepare": Command(
            one(
                lambda folder: [
                    "prepare",
                    "synthetic",
                    "--seed=3",
                    "--dialogues=12",
                    "--workers=1",
                    f"--out={folder / 'out'}",
                ]
            ),
            written,
        ),
        "bench": Command(
            start_bench,
            lambda folder: {
                str(p.parent.relative_to(folder)): rows(p)
                for p in sorted(folder.glob("out/runs/*/*/results/predictions.jsonl"))
            },
        ),
    }


# -------------------------------------------------------------------------------------------------------- one moment
def processes_of(pids: list[int]) -> list[int]:
    """The processes of a command and all below them."""
    every, level = list(pids), list(pids)
    while level:
        children: list[int] = []
        for pid in level:
            for listing in Path(f"/proc/{pid}/task").glob("*/children"):  # of every thread
                try:
                    children += map(int, listing.read_text().split())
                except OSError:
                    continue
        every, level = every + children, children
    return every


def disturb(command: Command, name: str, moment: float, to_all: bool, folder: Path) -> tuple[str, str | None]:
    """How a command that got a signal ended (``stopped`` or ``had ended``), and what is wrong about it, or None."""
    number = SIGNALS[name]
    folder.mkdir(parents=True)
    pids = command.start(folder)
    codes = ended(pids, time.perf_counter() + moment)
    if codes is not None:
        return "had ended", None if set(codes) == {0} else f"ended with {codes} before the signal"
    for pid in processes_of(pids) if to_all else pids[:1]:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
    ended(pids[:1])
    for harder in (signal.SIGTERM, signal.SIGKILL):  # as torchrun and schedulers do once the first one has ended
        if ended(pids, time.perf_counter() + 5) is None:
            for pid in set(pids) - CODES.keys():
                os.kill(pid, harder)
    codes = ended(pids)
    right = -number if number == signal.SIGKILL else 128 + number
    finished = set(codes) == {0}
    # of the others, one that waits for the first inside a library ends by SIGKILL, or fails in what they do together
    if not finished and codes[0] not in (right, 0):
        return "stopped", f"exit codes {codes}, expected {right}"
    for _ in range(3):
        if finished:
            break
        finished = set(ended(command.start(folder))) == {0}
    return ("had ended" if set(codes) == {0} else "stopped"), None if finished else "given again, it failed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/signals"))
    parser.add_argument("--moments", type=int, default=10, help="per verb and signal")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--verbs", nargs="+", help="of those above; all if not given")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    out = options.out.absolute()
    out.mkdir(parents=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    every, rng, table, wrong = commands(out), np.random.default_rng(options.seed), [], []
    for verb in options.verbs or every:
        command, home = every[verb], out / verb.replace(", ", "-").replace(" ", "-")
        (home / "whole").mkdir(parents=True)
        began = time.perf_counter()
        if set(ended(command.start(home / "whole"))) != {0}:
            sys.exit(f"{verb}: the undisturbed command failed; see {home / 'whole' / 'log.txt'}")
        took, whole = time.perf_counter() - began, command.result(home / "whole")
        for name in SIGNALS:
            count: Counter[str] = Counter()
            for k in range(options.moments):
                moment, to_all, folder = float(rng.uniform(0, took)), bool(rng.integers(2)), home / f"{name}-{k}"
                how, problem = disturb(command, name, moment, to_all, folder)
                if problem is None and not same(command.result(folder), whole):
                    problem = "the result differs"
                count[how] += 1
                if problem:
                    receivers = "all its processes" if to_all else "its first process"
                    wrong.append(
                        f"{verb}: {name} after {moment:.2f} of {took:.2f} s to {receivers}: {problem}; see "
                        f"{folder / 'log.txt'}"
                    )
                    print(wrong[-1], flush=True)
                else:
                    shutil.rmtree(folder)
            table.append(
                {
                    "verb": verb,
                    "signal": name,
                    "seconds": round(took, 2),
                    "moments": options.moments,
                    "stopped": count["stopped"],
                    "had_ended": count["had ended"],
                    "wrong": sum(w.startswith(f"{verb}: {name} ") for w in wrong),
                }
            )
            print(table[-1], flush=True)
    record = {"seed": options.seed, "rows": table, "wrong": wrong}
    (out / "signals.json").write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
