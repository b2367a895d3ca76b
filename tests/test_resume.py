"""A run that is killed and resumed ends like one that was not: the same losses, weights, optimizer and log, bit for
bit."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from tests.builders import make_home
from tests.runs_helper import TRACE, checkpoint, fit, flags, in_child, logged, newest, refused, same, trace, zoo
from zoo import checkpoints
from zoo.data.base import EmotionData
from zoo.training.module import EmotionModule

RANDOM = {"model__dropout": 0.1, "model__word_dropout": 0.2}
VARIANTS = {  # seven batches of four in each of the two epochs
    "lora": RANDOM | {"model__lora__r": 4, "model__lora__dropout": 0.1, "save_last_every": 3},
    "full": RANDOM | {"save_last_every": 7},
    "from full": RANDOM | {"model__lora__r": 4, "save_last_every": 3},  # it starts from that run
    "accumulate": RANDOM | {"trainer__accumulate_grad_batches": 2, "save_last_every": 1},
    "grpo": {
        "model": "GRPO",
        "model__reward_funcs+": "tests.runs_helper.checksum",
        "model__max_new_tokens": 4,
        "model__lora__r": 4,
        "model__lora__dropout": 0.1,
        "model__objective__beta": 0.04,
        "trainer__accumulate_grad_batches": 2,
        "save_last_every": 1,
    },
    "grpo that moves": {  # its reference and the weight of its divergence
        "model": "GRPO",
        "model__reward_funcs+": "tests.runs_helper.checksum",
        "model__max_new_tokens": 4,
        "model__lora__r": 4,
        "model__objective__beta": 0.4,
        "model__objective__target_kl": 0.01,
        "model__objective__kl_horizon": 50,
        "model__sync_ref_model": "true",
        "model__ref_model_sync_steps": 3,
        "save_last_every": 1,
    },
    "grpo in parts": {
        "model": "GRPO",
        "model__reward_funcs+": "tests.runs_helper.checksum",
        "model__max_new_tokens": 2,
        "model__num_generations": 2,
        "model__lora__r": 4,
        "model__num_mini_batches": 2,
        "model__num_iterations": 2,
        "model__max_resample_times": 2,
        "trainer__accumulate_grad_batches": 2,
        "save_last_every": 1,
    },
    "validate": RANDOM | {"trainer__val_check_interval": 3, "save_last_every": 2},
    "no validation": RANDOM | {"trainer__limit_val_batches": 0, "save_last_every": 1},
    "every other epoch": RANDOM | {"trainer__check_val_every_n_epoch": 2, "save_last_every": 1},
    "uneven": RANDOM | {"trainer__val_check_interval": 2, "trainer__accumulate_grad_batches": 3, "save_last_every": 1},
    "validate in a window": RANDOM
    | {"trainer__val_check_interval": 3, "trainer__accumulate_grad_batches": 2, "save_last_every": 1},
}


pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("resume"), (4, 1, 1))


@pytest.fixture(scope="module")
def options(home):
    def options(variant: str, **more: object) -> list[str]:
        data = {"data": "MELD", "data__root": home / "meld", "data__batch_size": 4}
        model = {"model": "CausalLM", "model__llm": home / "llm", "model__lr": 3e-3, "trainer__max_epochs": 2}
        if variant == "from full":
            model["model__start_from"] = home / "undisturbed" / "full" / "lightning_logs" / "version_0"
        return [TRACE, *flags(**model | data | VARIANTS[variant] | more)]

    return options


@pytest.fixture(scope="module")
def undisturbed(home, options):
    """variant -> its run without interruption, made once."""
    made: dict[str, Path] = {}

    def undisturbed(variant: str) -> Path:
        if variant not in made:
            if variant == "from full":
                undisturbed("full")
            made[variant] = fit(home / "undisturbed" / variant, *options(variant))
        return made[variant]

    return undisturbed


def steps(run: Path) -> list[dict]:
    """The steps that count: of those done twice the second time, which starts after the last ``start``."""
    return list({(e["epoch"], e["batch"]): e for e in trace(run)}.values())


def assert_equal(run: Path, reference: Path) -> None:
    assert steps(run) == trace(reference)
    validated, expected = ([e["rows"] for e in trace(r, "validation")][-1:] for r in (run, reference))
    assert validated == expected
    assert logged(run) == logged(reference)  # each step once, each validation once
    names = sorted(p.stem for p in (reference / "checkpoints").glob("*.ckpt"))
    assert "last" in names
    for name in names:
        a, b = checkpoint(run, name), checkpoint(reference, name)
        parts = {"epoch", "global_step", "state_dict", "zoo"} | ({"optimizer_states", "lr_schedulers"} & a.keys())
        for part in parts:
            assert same(a[part], b[part]), (name, part)
        assert ("optimizer_states" in parts) == (name != "best")  # of whom no run goes on


KILLS = [  # variant, workers, where (event, epoch, batch), batch it goes on from
    ("lora", 0, ("before_step", 0, 4), (0, 3)),
    ("lora", 2, ("batch_end", 1, 3), (1, 2)),
    ("lora", 0, ("val_start", 1, -1), (1, 5)),  # after the epoch's last batch, whose validation is then done
    ("lora", 0, ("epoch_start", 1, -1), (1, 0)),
    ("from full", 0, ("batch_end", 1, 3), (1, 2)),
    ("full", 0, ("val_start", 1, -1), (1, 0)),  # a last.ckpt of the epoch's last batch would leave its validation out
    ("full", 2, ("epoch_start", 1, -1), (1, 0)),
    ("accumulate", 0, ("batch_end", 0, 2), (0, 2)),  # gradients of half a step are in no checkpoint
    ("accumulate", 2, ("batch_end", 1, 4), (1, 4)),
    ("accumulate", 0, ("val_end", 0, -1), (0, 6)),
    ("grpo", 0, ("before_step", 0, 3), (0, 2)),
    ("grpo", 2, ("batch_end", 1, 4), (1, 4)),  # half a window is sampled again, whole
    ("grpo that moves", 0, ("before_step", 1, 2), (1, 2)),
    ("grpo in parts", 0, ("before_step", 1, 3), (1, 2)),
    ("validate", 0, ("batch_end", 1, 4), (1, 3)),
    ("validate", 2, ("batch_end", 1, 6), (1, 6)),
    ("validate", 0, ("val_start", 1, 2), (1, 1)),
    ("validate in a window", 0, ("val_start", 0, 2), (0, 2)),  # the gradient of its first batch is in no checkpoint
    ("validate in a window", 2, ("batch_end", 1, 4), (1, 4)),
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


CHAINS = [  # variant, where the first run, its resume, ... are killed
    ("no validation", [("epoch_start", 1, -1), ("batch_end", 1, 3)]),
    ("every other epoch", [("epoch_start", 1, -1), ("batch_end", 1, 3)]),
    ("every other epoch", [("batch_end", 0, 6), ("before_step", 1, 2), ("val_start", 1, -1)]),
    ("uneven", [("epoch_start", 1, -1), ("batch_end", 1, 4), ("before_step", 1, 5)]),
    ("lora", [("epoch_start", 1, -1), ("batch_end", 1, 2), ("batch_end", 1, 5)]),
    ("grpo", [("epoch_start", 1, -1), ("batch_end", 1, 2), ("batch_end", 1, 5)]),
]


@pytest.mark.parametrize(("variant", "kills"), CHAINS)
def test_killed_several_times(variant, kills, options, undisturbed, tmp_path):
    assert in_child(lambda: fit(tmp_path, *options(variant)), kills[0]) == -signal.SIGKILL
    run = newest(tmp_path)
    for kill in kills[1:]:
        assert in_child(lambda: zoo("fit", f"--ckpt_path={run}"), kill) == -signal.SIGKILL
    zoo("fit", f"--ckpt_path={run}")
    assert_equal(run, undisturbed(variant))


STOPS = [  # variant, workers, signal, where it arrives, step and place that the run goes on from
    ("lora", 2, signal.SIGINT, ("before_step", 0, 4), (5, 0, 5)),  # the step ends first
    ("lora", 0, signal.SIGTERM, ("before_step", 1, 6), (14, 1, 6)),  # the last one; its validation is still to be done
    ("lora", 0, signal.SIGINT, ("val_start", 0, -1), (7, 1, 0)),  # the resumed run validates
    ("accumulate", 0, signal.SIGTERM, ("batch_end", 1, 2), (6, 1, 4)),
    ("grpo", 0, signal.SIGINT, ("batch_end", 1, 2), (6, 1, 4)),
    ("grpo", 2, signal.SIGTERM, ("val_start", 0, -1), (4, 1, 0)),
    ("validate", 0, signal.SIGTERM, ("val_start", 0, 5), (6, 0, 6)),
    ("validate", 2, signal.SIGTERM, ("val_start", 1, 2), (10, 1, 3)),
    ("validate in a window", 0, signal.SIGTERM, ("val_start", 0, 2), (2, 0, 4)),  # the window ends first
]


@pytest.mark.parametrize(("variant", "workers", "number", "stop", "place"), STOPS)
def test_a_signal_ends_the_step_and_saves_it(
    variant, workers, number, stop, place, options, undisturbed, tmp_path, capfd
):
    args = options(variant, save_last_every=0, data__num_workers=workers)
    assert in_child(lambda: fit(tmp_path, *args), stop, number) == 128 + number
    run = newest(tmp_path)
    printed, before = capfd.readouterr().out, len(trace(run))
    assert f"interrupted at step {place[0]}; go on with: zoo fit --ckpt_path {run}\n" in printed
    assert "stopping after this step" in printed and checkpoint(run)["global_step"] == place[0]
    zoo("fit", f"--ckpt_path={run}")
    resumed = trace(run)[before:]
    assert not resumed or (resumed[0]["epoch"], resumed[0]["batch"]) == place[1:]
    assert_equal(run, undisturbed(variant))


def test_a_second_signal_stops_at_once(options, undisturbed, tmp_path, capfd):
    args = options("lora", trainer__callbacks="[tests.test_resume.Impatient]", save_last_every=5)
    assert in_child(lambda: fit(tmp_path, *args)) == 128 + signal.SIGINT
    printed = capfd.readouterr().out
    assert f"interrupted at step 8; go on with: zoo fit --ckpt_path {newest(tmp_path)}\n" in printed
    assert checkpoint(newest(tmp_path))["global_step"] == 7  # the validation before


class Impatient(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step == 8:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_before_the_first_checkpoint_promises_nothing(options, tmp_path, capfd):
    args = options("lora", trainer__callbacks="[tests.test_resume.Hasty]")
    assert in_child(lambda: fit(tmp_path, *args)) == 128 + signal.SIGTERM
    assert "interrupted at step 0; nothing was saved yet" in capfd.readouterr().out


class Hasty(Callback):
    def on_fit_start(self, trainer, pl_module) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("forgotten", ["position", "dropout", "weights of the optimizer"])
def test_the_comparison_notices_what_a_resume_forgets(forgotten, options, undisturbed, tmp_path, monkeypatch):
    assert in_child(lambda: fit(tmp_path, *options("lora")), ("batch_end", 1, 3)) == -signal.SIGKILL
    if forgotten == "position":
        monkeypatch.setattr(EmotionData, "load_state_dict", lambda self, state: None)
    elif forgotten == "dropout":
        monkeypatch.setattr(EmotionModule, "on_train_batch_start", lambda self, batch, batch_idx: None)
    else:
        monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", lambda self, state: None)
    zoo("fit", f"--ckpt_path={newest(tmp_path)}")
    with pytest.raises(AssertionError):
        assert_equal(newest(tmp_path), undisturbed("lora"))


def test_resuming_changes_what_may_change_and_refuses_the_rest(options, undisturbed, tmp_path):
    run = shutil.copytree(undisturbed("lora"), tmp_path / "lightning_logs" / "version_0")
    other_order = {
        "--seed_everything=1": "seed 1, but .* with 0",
        "--data.batch_size=2": "batch_size 2, but .* with 4",
        "--data.bucket=false": "bucket False, but .* with True",
        "--data.limit=3": "training samples 21, but .* with 28",
    }
    for flag, said in other_order.items():
        message = refused("fit", f"--ckpt_path={run}", flag, "--trainer.max_epochs=3")
        assert re.search(f"resuming with {said}", message)
    zoo("fit", f"--ckpt_path={run}", "--trainer.max_epochs=3", "--model.lr=0.5")
    assert [e["epoch"] for e in trace(run)[14:]] == [2] * 7
    kept = yaml.safe_load((run / "config.yaml").read_text())
    now = yaml.safe_load(max(run.glob("config.resume-*.yaml")).read_text())
    assert (kept["model"]["init_args"]["lr"], now["model"]["init_args"]["lr"]) == (3e-3, 0.5)
    assert (kept["trainer"]["max_epochs"], now["trainer"]["max_epochs"]) == (2, 3)


def test_a_run_that_starts_from_another_lacks_what_is_that_ones(undisturbed):
    assert all(".lora_" in name for name in checkpoint(undisturbed("from full"))["state_dict"])


def test_a_run_that_was_moved_keeps_its_best(options, undisturbed, tmp_path):
    """Started under a relative path, as in `zoo fit --config ...` without a root, then renamed and resumed twice."""
    reference = undisturbed("accumulate")
    assert checkpoint(reference, "best")["epoch"] == 0  # so that a forgotten best score would show
    assert in_child(lambda: fit(Path("."), *options("accumulate")), ("batch_end", 1, 3)) == -signal.SIGKILL
    assert in_child(lambda: zoo("fit", "--ckpt_path=lightning_logs/version_0"), ("batch_end", 1, 5)) == -signal.SIGKILL
    run = Path("lightning_logs/version_0").rename(tmp_path / "renamed")
    zoo("fit", "--ckpt_path=renamed")
    assert_equal(run, reference)
    for _ in range(2):  # a finished run does nothing more
        zoo("fit", f"--ckpt_path={run}")
        assert_equal(run, reference)
    assert list(tmp_path.glob("lightning_logs/*")) == []


# ---- what a resumed run goes by
def rates(run: Path) -> list[float]:
    return logged(run, "lr-AdamW")


MONITOR = "--trainer.callbacks+=LearningRateMonitor"


def test_a_finished_run_that_is_extended_follows_the_schedule_of_its_new_length(options, tmp_path):
    run = fit(tmp_path / "a", *options("lora", trainer__max_epochs=1), MONITOR)
    whole = fit(tmp_path / "b", *options("lora", trainer__max_epochs=2), MONITOR)
    zoo("fit", f"--ckpt_path={run}", "--trainer.max_epochs=2")
    first, extended, expected = rates(whole)[:7], rates(run)[7:], rates(whole)[7:]
    assert extended == pytest.approx(expected) and min(extended) > 1e-5 and len(extended) == 7
    assert rates(run)[:7] != pytest.approx(first)  # the first epoch went by a schedule of its own
    losses = logged(run, "train/loss")
    assert losses[7:] != losses[:7]


def test_options_of_the_optimizer_change_from_the_resumed_step_on(options, tmp_path, caplog):
    """AnswerStatistics in the optimizer, not in a YAML."""
    run = fit(tmp_path, *options("lora", trainer__max_steps=5), MONITOR)
    changed = {
        "model__lr": 5e-4,
        "model__betas": "[0.8, 0.95]",
        "model__weight_decay": 0.1,
        "model__warmup": 0,
        "model__schedule": "linear",
    }
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        zoo("fit", f"--ckpt_path={run}", "--trainer.max_steps=9", *flags(**changed))
    assert "resumed at step 5 of 9: learning rate 0.000222" in caplog.text
    assert rates(run)[5:] == pytest.approx([5e-4 * (1 - step / 9) for step in range(5, 9)])
    (group,) = checkpoint(run)["optimizer_states"][0]["param_groups"]
    assert (tuple(group["betas"]), group["weight_decay"], group["initial_lr"]) == ((0.8, 0.95), 0.1, 5e-4)
    zoo("fit", f"--ckpt_path={run}", "--trainer.max_steps=12")  # and stay, without being named again
    assert rates(run)[9:] == pytest.approx([5e-4 * (1 - step / 12) for step in range(9, 12)])


@pytest.mark.parametrize("variant", ["lora", "accumulate", "grpo"])
def test_a_run_that_ended_at_max_steps_goes_on_in_the_middle_of_its_epoch(variant, options, tmp_path):
    constant = {"model__schedule": "constant", "save_last_every": 0}
    whole = fit(tmp_path / "whole", *options(variant, **constant))
    run = fit(tmp_path / "part", *options(variant, **constant, trainer__max_steps=2, trainer__max_epochs=1))
    for steps_in_all in (3, -1):
        zoo("fit", f"--ckpt_path={run}", f"--trainer.max_steps={steps_in_all}", "--trainer.max_epochs=2")
    assert_equal(run, whole)


def test_early_stopping_goes_on_counting(options, tmp_path):
    stopping = [
        "--trainer.callbacks+=EarlyStopping",
        "--trainer.callbacks.monitor=val/wf1",
        "--trainer.callbacks.mode=max",
        "--trainer.callbacks.patience=2",
    ]
    slow = {"model__lr": 1e-9, "trainer__max_epochs": 9, "model__schedule": "constant", "model__warmup": 0}
    whole = fit(tmp_path / "whole", *options("lora", **slow), *stopping)  # nothing ever gets better
    assert checkpoint(whole)["global_step"] == 3 * 7
    part = fit(tmp_path / "part", *options("lora", **slow | {"trainer__max_epochs": 1}), *stopping)
    zoo("fit", f"--ckpt_path={part}", "--trainer.max_epochs=2")
    zoo("fit", f"--ckpt_path={part}", "--trainer.max_epochs=9")
    assert_equal(part, whole)
    before = trace(part)
    zoo("fit", f"--ckpt_path={part}")  # it had stopped: nothing to do
    assert trace(part) == before
    zoo("fit", f"--ckpt_path={part}", "--trainer.callbacks.patience=3")  # the option of now
    assert checkpoint(part)["global_step"] == 4 * 7


def test_what_is_trained_cannot_change_in_a_resumed_run(options, undisturbed, tmp_path):
    run = shutil.copytree(undisturbed("lora"), tmp_path / "run")
    for flag in (
        "--model.lora.r=8",
        "--model.train=[.*lora_A.*]",
        "--model.start_from=elsewhere",
        "--trainer.accumulate_grad_batches=2",
        "--trainer.limit_train_batches=3",
        "--model=GRPO",
    ):
        message = refused("fit", f"--ckpt_path={run}", flag, "--trainer.max_epochs=3")
        assert "cannot go on with other values" in message and "--model.start_from" in message, flag
    assert not (run / "config.resume-1.yaml").exists()  # nor does a refused one leave a config for the next


def test_last_is_saved_by_the_clock(options, tmp_path):
    args = options("lora", save_last_every=0, save_last_minutes=1e-9)
    assert in_child(lambda: fit(tmp_path, *args), ("before_step", 0, 4)) == -signal.SIGKILL
    assert checkpoint(newest(tmp_path))["global_step"] == 4
    args = options("lora", save_last_every=0)  # ten minutes
    assert in_child(lambda: fit(tmp_path / "slow", *args), ("before_step", 0, 4)) == -signal.SIGKILL
    assert not (newest(tmp_path / "slow") / "checkpoints" / "last.ckpt").exists()


def test_a_kill_while_last_is_written_leaves_the_one_before(options, undisturbed, tmp_path, monkeypatch):
    """Also where the system's temporary folder lies on another filesystem: nothing goes through it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    args = options("lora", save_last_every=2)
    written = torch.save

    def killed(content, file, *rest, **options) -> None:
        written(content, file, *rest, **options)
        if content["global_step"] == 6:
            file.flush()
            os.truncate(file.fileno(), 1000)
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(torch, "save", killed)
    assert in_child(lambda: fit(tmp_path, *args)) == -signal.SIGKILL
    run = newest(tmp_path)
    assert checkpoint(run)["global_step"] == 4
    assert len(list((run / "checkpoints").glob(".last.ckpt.*"))) == 1
    monkeypatch.setattr(torch, "save", written)
    zoo("fit", f"--ckpt_path={run}")
    assert_equal(run, undisturbed("lora"))
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_what_a_resumed_run_was_trained_with_is_what_is_loaded(options, undisturbed, tmp_path):
    run = shutil.copytree(undisturbed("lora"), tmp_path / "run")
    zoo("fit", f"--ckpt_path={run}", "--trainer.max_epochs=3", "--model.window=2")
    assert checkpoints.load(str(run)).window == 2
    zoo("test", f"--ckpt_path={run}")
    tested = yaml.safe_load((run / "config.test.yaml").read_text())
    assert tested["model"]["init_args"]["window"] == 2


def test_a_validation_that_is_done_twice_is_logged_once(options, undisturbed, tmp_path):
    """Stopped in a validation, resumed, and killed between its row in metrics.csv and last.ckpt."""
    assert in_child(lambda: fit(tmp_path, *options("lora")), ("val_start", 0, -1), signal.SIGTERM) == 143
    run = newest(tmp_path)
    assert in_child(lambda: zoo("fit", f"--ckpt_path={run}"), ("val_end", 0, -1)) == -signal.SIGKILL
    zoo("fit", f"--ckpt_path={run}")
    assert_equal(run, undisturbed("lora"))


@pytest.mark.parametrize("variant", ["no validation", "accumulate"])
def test_a_run_that_was_out_of_time_goes_on(variant, options, tmp_path):
    constant = {"model__schedule": "constant", "save_last_every": 0, "trainer__limit_val_batches": 0}
    whole = fit(tmp_path / "whole", *options(variant, **constant))
    part = fit(tmp_path / "part", *options(variant, **constant), "--trainer.callbacks+=tests.test_resume.OutOfTime")
    assert 0 < checkpoint(part)["global_step"] < checkpoint(whole)["global_step"]
    zoo("fit", f"--ckpt_path={part}", "--trainer.callbacks=[tests.runs_helper.Trace]")
    assert_equal(part, whole)


class OutOfTime(Callback):
    def on_train_batch_end(self, trainer, *args) -> None:
        trainer.should_stop |= trainer.fit_loop.epoch_loop.batch_idx == 2  # in the middle of a window
