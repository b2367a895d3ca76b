"""Runs through the user's entry point, `zoo.cli.main`, and what they leave behind."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.cli import main
from zoo.data import EmotionData
from zoo.rl import Answer

REPOSITORY = Path(__file__).parents[1]
QUIET = (
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.log_every_n_steps=1",
)
TRACE = "--trainer.callbacks+=tests.runs_helper.Trace"


# ---- a reward
def checksum(answer: Answer) -> float:
    """A reward that tells almost any two answers apart."""
    return sum(answer.text.encode()) % 7 / 7


# ---- commands
def zoo(*args: object) -> None:
    """`zoo ARGS`, in this process."""
    argv = sys.argv
    try:
        # a script that returns something exits with 1
        assert main([str(a) for a in args]) is None  # type: ignore[func-returns-value]  # what the test asks
    finally:
        sys.argv = argv


def fit(root: Path, *args: object) -> Path:
    """`zoo fit` with its results under root/lightning_logs; the run folder."""
    zoo("fit", *QUIET, f"--trainer.default_root_dir={root}", *args)
    return newest(root)


def fit_corpus(root: Path, model: str, data: str, corpus: Path, epochs: int, **more: object) -> Path:
    """`fit` of a system on a corpus at the learning rate that the small models need; the run folder."""
    options = {"model": model, "data": data, "data__root": corpus, "model__lr": 3e-3, "trainer__max_epochs": epochs}
    return fit(root, *flags(**options | more))


def parsed_data(*args: str) -> EmotionData:
    """The corpus that options of the command line make."""
    parser = ArgumentParser()
    parser.add_subclass_arguments(EmotionData, "data")
    return parser.instantiate(parser.parse_args(list(args))).data


def no_picture(evaluation: Any, labels: Any, path: Path, title: str | None = None) -> None:
    """In place of zoo.training.evaluation.confusion_picture, a quarter of the time of so small a test."""
    path.write_bytes(b"no picture")


def newest(root: Path) -> Path:
    return max((root / "lightning_logs").glob("version_*"), key=lambda p: int(p.name.removeprefix("version_")))


def refused(*args: object) -> str:
    """The message of a command that must end with an exit code other than 0, without a traceback."""
    err = io.StringIO()
    with pytest.raises(SystemExit) as caught, contextlib.redirect_stderr(err):
        zoo(*args)
    code = caught.value.code
    assert code not in (0, None)
    message = code if isinstance(code, str) else err.getvalue()
    assert "Traceback" not in message and "\n\n" not in message.strip()
    return message


# ---- results
def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (run / "predictions.jsonl").read_text().splitlines()]


def metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def logged(run: Path, column: str | None = None) -> list:
    """The rows of metrics.csv but for what a step cost, which no two runs share, or the values of one column."""
    with (run / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    return (
        [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in table]
        if column is None
        else [float(r[column]) for r in table if r[column]]
    )


def checkpoint(run: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit: tensors, and containers of them."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return a == b


# ---- inside a run
KILL: tuple[str, int, int] | None = None  # event, epoch, batch (-1: any) at which `Trace` ends the process
BY: int = signal.SIGKILL


class Trace(Callback):
    """Appends what happens to trace.jsonl of the run folder: every step with its loss, every validation with its
    predictions, and which trainable parameters had no gradient. Ends the process where KILL says."""

    def __init__(self) -> None:
        self.moved: set[str] = set()
        self.predicted: list[dict[str, Any]] = []

    def _write(self, trainer: Trainer, **what: Any) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by one of its connectors
            return
        folder = Path(trainer.log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "trace.jsonl").open("a") as file:
            file.write(json.dumps(what) + "\n")

    def _at(self, event: str, trainer: Trainer, batch: int = -1) -> None:
        here = (event, trainer.current_epoch)
        if KILL is not None and not trainer.sanity_checking and here == KILL[:2] and KILL[2] in (-1, batch):
            os.kill(os.getpid(), BY)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        predict = pl_module.predict

        def noted(batch: dict[str, Any]) -> list:
            made = predict(batch)
            self.predicted += [p.row() for p in made]
            return made

        pl_module.predict = noted

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, event="start")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._at("epoch_start", trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.moved |= {n for n, p in pl_module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        self._at("before_step", trainer, trainer.fit_loop.epoch_loop.batch_idx)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        place = {"step": trainer.global_step, "epoch": trainer.current_epoch, "batch": batch_idx}
        loss = float(outputs["loss"]) if outputs else None  # none between the steps of an accumulated window
        self._write(trainer, event="step", **place, loss=loss, ids=batch["samples"].ids())
        self._at("batch_end", trainer, batch_idx)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.predicted.clear()
        self._at("val_start", trainer, trainer.fit_loop.epoch_loop.batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._write(trainer, event="validation", step=trainer.global_step, rows=list(self.predicted))
        self._at("val_end", trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trained = {n for n, p in pl_module.named_parameters() if p.requires_grad}
        self._write(trainer, event="end", without_gradient=sorted(trained - self.moved), trained=len(trained))


def trace(run: Path, event: str = "step") -> list[dict[str, Any]]:
    """What `Trace` wrote, of one kind."""
    return [e for e in map(json.loads, (run / "trace.jsonl").read_text().splitlines()) if e["event"] == event]


def in_child(call: Callable[[], object], kill: tuple[str, int, int] | None = None, by: int = signal.SIGKILL) -> int:
    """Runs ``call`` in a forked child, whose `Trace` ends it at ``kill``; the exit code, or minus the signal that ended
    it."""
    return exit_code(start_child(call, kill, by))


def exit_code(child: int) -> int:
    """Waits for a child; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start_child(call: Callable[[], object], kill: tuple[str, int, int] | None = None, by: int = signal.SIGKILL) -> int:
    """Starts what `in_child` waits for; its process id. From one thread: libraries refuse two forks at once."""
    global KILL, BY
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            KILL, BY = kill, by
            torch.set_num_threads(1)
            call()
            code = 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
            if isinstance(leaving.code, str):
                print(leaving.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return child


@contextlib.contextmanager
def one_thread():
    """Sums do not depend on the number of threads inside, and a forked child may compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def flags(**values: object) -> Sequence[str]:
    """``flags(model__lr=1)`` -> ``--model.lr=1``"""
    return [f"--{key.replace('__', '.')}={value}" for key, value in values.items()]


def grpo_flags(home: Path, **more: object) -> Sequence[str]:
    """Options of a small GRPO run on a home, see `tests.builders.make_home`."""
    base = {"model": "GRPO", "model__llm": home / "llm", "data": "MELD", "data__root": home / "meld"}
    base |= {"model__lr": 3e-3, "model__max_new_tokens": 4, "trainer__limit_val_batches": 0}
    return flags(**base | {"model__reward_funcs+": "tests.runs_helper.checksum"} | more)
