"""A run that is killed and resumed ends like one that was not: the same losses, weights, optimizer and log, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from tests.runs_helper import (
    TRACE, checkpoint, fit, flags, in_child, logged, make_corpus, make_llm, newest, one_thread, refused, same, trace, zoo,
)  # fmt: skip
from zoo.data.base import EmotionData
from zoo.module import EmotionModule

RANDOM = {"model__dropout": 0.1, "model__word_dropout": 0.2}
VARIANTS = {  # seven batches of four in each of the three epochs
    "lora": RANDOM | {"model__lora__r": 4, "model__lora__dropout": 0.1, "save_last_every": 3},
    "full": RANDOM | {"save_last_every": 7},
    "accumulate": RANDOM | {"trainer__accumulate_grad_batches": 2, "save_last_every": 1},
    "validate": RANDOM | {"trainer__val_check_interval": 3, "save_last_every": 2},
}


@pytest.fixture(scope="module", autouse=True)
def _bits():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("resume")
    make_llm(home / "llm")
    make_corpus(home / "meld", (4, 1, 1))
    return home


@pytest.fixture(scope="module")
def options(home):
    def options(variant: str, **more: object) -> list[str]:
        data = {"data": "MELD", "data__root": home / "meld", "data__batch_size": 4}
        model = {"model": "CausalLM", "model__llm": home / "llm", "model__lr": 3e-3, "trainer__max_epochs": 3}
        return [TRACE, *flags(**model, **data, **(VARIANTS[variant] | more))]

    return options


@pytest.fixture(scope="module")
def undisturbed(home, options):
    """variant -> its run without interruption, made once."""
    made: dict[str, Path] = {}

    def undisturbed(variant: str) -> Path:
        if variant not in made:
            made[variant] = fit(home / "undisturbed" / variant, *options(variant))
        return made[variant]

    return undisturbed


def steps(run: Path) -> list[dict]:
    """The steps that count: of those done twice the second time, which starts after the last ``start``."""
    return list({(e["epoch"], e["batch"]): e for e in trace(run)}.values())


def assert_equal(run: Path, reference: Path) -> None:
    assert steps(run) == trace(reference)
    assert [e["rows"] for e in trace(run, "validation")][-1] == [e["rows"] for e in trace(reference, "validation")][-1]
    assert logged(run) == logged(reference)  # each step once, each validation once
    for name in ("last", "best"):
        a, b = checkpoint(run, name), checkpoint(reference, name)
        for part in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers"):
            assert same(a[part], b[part]), (name, part)


KILLS = [  # variant, workers, where (event, epoch, batch), batch it goes on from
    ("lora", 0, ("before_step", 0, 4), (0, 3)),
    ("lora", 2, ("batch_end", 1, 3), (1, 2)),
    ("lora", 0, ("val_start", 1, -1), (1, 5)),  # after the epoch's last batch, whose validation is then done
    ("lora", 0, ("epoch_start", 1, -1), (1, 0)),
    ("full", 0, ("val_start", 1, -1), (1, 0)),  # a last.ckpt of the epoch's last batch would leave its validation out
    ("full", 2, ("epoch_start", 2, -1), (2, 0)),
    ("accumulate", 0, ("batch_end", 0, 2), (0, 2)),  # gradients of half a step are in no checkpoint
    ("accumulate", 2, ("batch_end", 1, 4), (1, 4)),
    ("accumulate", 0, ("val_end", 0, -1), (0, 6)),
    ("validate", 0, ("batch_end", 1, 4), (1, 3)),
    ("validate", 2, ("batch_end", 1, 6), (1, 6)),
    ("validate", 0, ("val_start", 1, 2), (1, 1)),
]


@pytest.mark.parametrize(("variant", "workers", "kill", "at"), KILLS)
def test_killed_and_resumed(variant, workers, kill, at, options, undisturbed, tmp_path):
    reference = undisturbed(variant)
    args = options(variant, data__num_workers=workers)
    assert in_child(lambda: fit(tmp_path, *args), kill) == -signal.SIGKILL
    run = newest(tmp_path)
    config, before = (run / "config.yaml").read_bytes(), len(trace(run))
    zoo("fit", f"--ckpt_path={run}")
    again = trace(run)[before:]
    assert (again[0]["epoch"], again[0]["batch"]) == at
    assert_equal(run, reference)
    assert (run / "config.yaml").read_bytes() == config and (run / "config.resume-1.yaml").is_file()
    assert [p.name for p in tmp_path.glob("lightning_logs/*")] == ["version_0"]


@pytest.mark.parametrize(("variant", "stop"), [
    ("lora", ("before_step", 1, 4)), ("lora", ("batch_end", 1, 3)), ("full", ("val_start", 1, 6)), ("accumulate", ("batch_end", 1, 2)),
])  # fmt: skip
def test_interrupted_from_the_keyboard(variant, stop, options, undisturbed, tmp_path, capfd):
    reference = undisturbed(variant)
    assert in_child(lambda: fit(tmp_path, *options(variant, save_last_every=0)), stop, signal.SIGINT) == 1
    run = newest(tmp_path)
    print(trace(run)[-1], checkpoint(run)["global_step"])
    assert f"go on with: zoo fit --ckpt_path {run}" in capfd.readouterr().out
    zoo("fit", f"--ckpt_path={run}")
    assert_equal(run, reference)
