"""Runs through the user's entry point, `zoo.cli.main`, on a miniature corpus and with a language model that trains in
a second."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import load_file, save_file

from tests.data.miniature import LABELS, line, write_meld
from zoo.backbones.tiny import make_folder, make_hubert_folder, make_vit_folder
from zoo.cli import main
from zoo.data.meld import CLIPS
from zoo.rl import Answer
from zoo.sitcom.clips import encode

QUIET = (
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.log_every_n_steps=1",
)
TRACE = "--trainer.callbacks+=tests.runs_helper.Trace"


# ---- what runs need
def checksum(answer: Answer) -> float:
    """A reward that tells almost any two answers apart."""
    return sum(answer.text.encode()) % 7 / 7


def make_llm(folder: Path, seed: int = 0) -> Path:
    """A language model with 2 layers of 32 and random weights, larger than usual: it learns within some steps. Its
    tokenizer knows the words of the miniature corpora."""
    rng = random.Random(0)
    texts = [f"{line(rng, label)} emotion: {label} audio: calm raised" for label in LABELS for _ in range(20)]
    make_folder(folder, texts, vocab_size=420, hidden_size=32, layers=2, heads=2, intermediate_size=64, seed=seed)
    weights = folder / "model.safetensors"
    larger = {name: v * 8 if v.ndim > 1 else v for name, v in load_file(weights).items()}
    save_file(larger, weights, {"format": "pt"})
    return folder


def untied(llm: Path, out: Path) -> Path:
    """A copy of a language model with output embeddings of its own."""
    shutil.copytree(llm, out)
    config = json.loads((out / "config.json").read_text()) | {"tie_word_embeddings": False}
    (out / "config.json").write_text(json.dumps(config))
    weights = load_file(out / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 0.5
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    return out


def make_corpus(
    folder: Path, dialogues: tuple[int, int, int] = (6, 2, 2), test_is: str | None = None, clips: bool = False
) -> Path:
    """A miniature MELD with audio descriptions.

    Args:
        test_is: the split whose files the test split is a copy of.
        clips: write a clip for every utterance: a colour and a tone for every label.
    """
    write_meld(folder, dialogues=dialogues, kinds=("audio",))
    if test_is:
        for name in ("{}_sent_emo.csv", "audio_description_{}.json"):
            (folder / name.format("test")).write_bytes((folder / name.format(test_is)).read_bytes())
    for split, place in CLIPS.items() if clips else ():
        (folder / place).mkdir()
        with (folder / f"{split}_sent_emo.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                path = folder / place / f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}.mp4"
                path.write_bytes(label_clip(row["Emotion"], row["Utterance"]))
    return folder


def label_clip(label: str, text: str) -> bytes:
    """An mp4 of half a second; the same for the same text."""
    rng = np.random.default_rng(list(text.encode()))
    which = LABELS.index(label)
    frames = np.full((5, 32, 32, 3), 60) + rng.integers(0, 20, (5, 32, 32, 3))
    frames[:, 4 * which : 4 * which + 5] += 150  # a bright bar: higher or lower
    time = np.arange(8000) / 16_000
    tone = 0.3 * np.sin(2 * np.pi * 200 * 1.4**which * time) + 0.01 * rng.standard_normal(8000)
    return encode(frames.astype(np.uint8), tone.astype(np.float32))


def make_eyes(folder: Path) -> Path:
    """A ViT of 2 layers of 32 for pictures of 32 pixels."""
    return make_vit_folder(folder, LABELS, size=32, patch=8, width=32, layers=2, heads=2, intermediate_size=64)


def make_ears(folder: Path) -> Path:
    """A HuBERT of 2 layers of 32."""
    return make_hubert_folder(folder, LABELS, width=32, layers=2, heads=2, intermediate_size=64, conv_dim=(16,) * 7)


# ---- commands
def zoo(*args: object) -> None:
    """`zoo ARGS`, in this process."""
    argv = sys.argv
    try:
        assert main([str(a) for a in args]) is None  # a script that returns something exits with 1
    finally:
        sys.argv = argv


def fit(root: Path, *args: object) -> Path:
    """`zoo fit` with its results under root/lightning_logs; the run folder."""
    zoo("fit", *QUIET, f"--trainer.default_root_dir={root}", *args)
    return newest(root)


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
    """The rows of metrics.csv, or the values of one of its columns."""
    with (run / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    return table if column is None else [float(r[column]) for r in table if r[column]]


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
        if trainer.fast_dev_run:
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
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


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
