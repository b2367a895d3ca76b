"""One run folder whatever the loggers are, two commands never in one folder, evaluations of a part, what is printed."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from pathlib import Path

import pytest
import yaml

from tests.builders import make_home
from tests.runs_helper import (
    QUIET,
    checkpoint,
    exit_code,
    fit,
    flags,
    in_child,
    logged,
    metrics,
    newest,
    refused,
    rows,
    start_child,
    zoo,
)
from zoo.data import MELD
from zoo.metrics.printed import score_table
from zoo.storage import locked

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("lightning_cli"), (2, 1, 3))


@pytest.fixture(scope="module")
def options(home):
    def options(**more: object) -> list[str]:
        defaults = {
            "model": "CausalLM",
            "model__llm": home / "llm",
            "data": "MELD",
            "data__root": home / "meld",
            "data__batch_size": 4,
            "trainer__max_epochs": 1,
        }
        return flags(**defaults | more)

    return options


# ---- one run folder, whatever the loggers
LOGGERS = {
    "default": ([], {"metrics.csv", "events"}),
    "false": (["--trainer.logger=false"], set()),
    "csv": (["--trainer.logger=CSVLogger"], {"metrics.csv"}),
    "tensorboard": (["--trainer.logger=TensorBoardLogger"], {"metrics.csv", "events"}),
    "tensorboard elsewhere": (
        ["--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=other"],
        {"metrics.csv", "events"},
    ),
    "wandb": (["--trainer.logger=WandbLogger", "--trainer.logger.offline=true"], {"metrics.csv", "wandb"}),
    "mlflow": (["--trainer.logger=MLFlowLogger", "--trainer.logger.tracking_uri=file:../mlruns"], {"metrics.csv"}),
    "two": (
        ["--trainer.logger+=WandbLogger", "--trainer.logger.offline=true", "--trainer.logger+=TensorBoardLogger"],
        {"metrics.csv", "wandb", "events"},
    ),
}


@pytest.mark.parametrize("name", LOGGERS)
def test_everything_of_a_run_lies_in_its_folder(name, options, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # in place of a server
    arguments, expected = LOGGERS[name]
    runs = 2 if name in ("default", "wandb") else 1  # the second run does not write over the first
    for k in range(runs):
        # in a process of its own, as wandb keeps its first run for all later ones
        assert in_child(lambda: zoo("fit", *QUIET, *options(), *arguments)) == 0
        run = Path("lightning_logs") / f"version_{k}"
        held = {p.name.split(".")[0] if p.name.startswith("events") else p.name for p in run.iterdir()}
        assert held - {"hparams.yaml"} == {"config.yaml", "checkpoints"} | expected
        assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert {p.name for p in Path().iterdir()} == {"lightning_logs"}
    assert in_child(lambda: zoo("test", "--ckpt_path=best")) == 0
    assert metrics(run)["checkpoint"].startswith(f"lightning_logs/version_{runs - 1}/")
    assert {p.name for p in Path().iterdir()} == {"lightning_logs"}


def test_runs_that_start_at_the_same_moment_get_folders_of_their_own(options, tmp_path):
    begin = time.time() + 1

    def start(seed: int) -> None:
        time.sleep(max(0, begin - time.time()))
        zoo("fit", *QUIET, *options(), f"--seed_everything={seed}")

    children = [start_child(lambda seed=seed: start(seed)) for seed in range(3)]
    assert [exit_code(child) for child in children] == [0, 0, 0]
    folders = sorted(Path("lightning_logs").iterdir())
    assert [f.name for f in folders] == ["version_0", "version_1", "version_2"]
    assert {yaml.safe_load((f / "config.yaml").read_text())["seed_everything"] for f in folders} == {0, 1, 2}


# ---- two at once
def test_a_run_is_trained_by_one_command_at_a_time_and_a_dead_one_holds_nothing(options, tmp_path):
    run = fit(tmp_path, *options())
    with locked(run / ".fit.lock", "the run"):
        message = refused("fit", f"--ckpt_path={run}", "--trainer.max_epochs=2")
        assert re.search(rf"the run .* is in use by process {os.getpid()} on .*; wait until it has ended", message)
        zoo("test", f"--ckpt_path={run}")  # which writes other files
    with locked(run / ".results.lock", "the results"):
        assert "the folder of results" in refused("test", f"--ckpt_path={run}")
        assert "the folder of results" in refused("predict", f"--ckpt_path={run}")
    killed = ["fit", f"--ckpt_path={run}", "--trainer.max_epochs=2", "--trainer.callbacks+=tests.runs_helper.Trace"]
    assert in_child(lambda: zoo(*killed), ("before_step", 1, 2)) == -signal.SIGKILL
    assert (run / ".fit.lock").exists()  # the file, but nobody holds it
    zoo("fit", f"--ckpt_path={run}", "--trainer.max_epochs=2")
    assert checkpoint(run)["global_step"] == 8


# ---- a part of an evaluation
def test_a_limited_test_scores_a_drawn_sample_and_says_so(options, tmp_path, caplog):
    run = fit(tmp_path, *options(data__eval_batch_size=3))
    with caplog.at_level(logging.WARNING):
        zoo("test", f"--ckpt_path={run}", "--trainer.limit_test_batches=2")
    assert "6 of 21 samples, drawn by seed 0" in caplog.text
    first = [r["id"] for r in rows(run)]
    population = metrics(run)["population"]
    assert (metrics(run)["n"], population["n_used"], len(first)) == (6, 6, 6)
    assert population["notes"]["left out by --trainer.limit_test_batches"] == 15
    corpus = MELD(root=yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["root"])
    by_length = sorted(corpus.samples("test"), key=lambda s: len(s.target.text))
    assert set(first) != {s.id for s in by_length[:6]}  # the first two batches, of the shortest
    zoo("test", f"--ckpt_path={run}", "--trainer.limit_test_batches=2", "--seed_everything=1")
    assert [r["id"] for r in rows(run)] != first
    zoo("test", f"--ckpt_path={run}", "--trainer.limit_test_batches=0.5")
    assert metrics(run)["n"] == 9  # 3 of 7 batches
    zoo("test", f"--ckpt_path={run}", "--trainer.limit_test_batches=99")
    assert metrics(run)["n"] == 21 and metrics(run)["population"]["notes"] == {}


def test_overfitting_some_batches_repeats_them(options, tmp_path):
    run = fit(
        tmp_path,
        *options(trainer__max_epochs=30),
        "--trainer.overfit_batches=1",
        "--model.lr=1e-2",
        "--model.schedule=constant",
    )
    losses = logged(run, "train/loss")
    assert len(losses) == 30 and losses[-1] < 0.05 * losses[0]


# ---- what is refused
@pytest.mark.parametrize(
    "flag",
    [
        "--save_last_every=-1",
        "--save_last_minutes=-1",
        "--save_last_every=x",
        "--model.warmup=-0.1",
        "--model.lr=-1",
        "--model.lr=nan",
        "--model.betas=[0.9, 1.0]",
        "--model.weight_decay=-1",
    ],
)
def test_values_that_make_no_sense_are_refused(flag, options):
    message = refused("fit", *QUIET, *options(), flag)
    assert flag.split("=")[0].split(".")[-1].strip("-") in message
    assert not Path("lightning_logs").exists()


# ---- what is printed
def test_a_test_prints_the_numbers_with_intervals_and_by_class(options, tmp_path, capfd):
    run = fit(tmp_path, *options())
    capfd.readouterr()
    zoo("test", f"--ckpt_path={run}")
    printed = capfd.readouterr().out
    record = metrics(run)
    low, high = record["ci95"]["weighted_f1"]
    assert "meld: 21 utterances of 3 dialogues (2610 in the official split)" in printed
    assert re.search(rf"weighted f1 +{record['weighted_f1']:.4f} +\[{low:.4f}, {high:.4f}\]", printed)
    for label in MELD.labels.names:
        f1, n = record["per_class"][label], record["support"][label]
        assert re.search(rf"{label} +F1 {f1:.4f} +recall .* n {n}\n", printed)
    assert "DataLoader 0" not in printed


def test_the_scores_of_joined_corpora_are_printed_one_by_one():
    scores = {"n": 4, "dialogues": 2, "accuracy": 0.5, "ci95": {"accuracy": [0.25, 0.75]}}
    record = {
        "corpora": {"meld": scores, "emorynlp": scores | {"unparsed": 0.25}},
        "events": {"prompts cut": 3},
        "population": {"n_official": None, "notes": {}},
        "corpus": "meld+emorynlp",
    }
    assert score_table(record).splitlines() == [
        "meld: 4 utterances of 2 dialogues",
        "  accuracy       0.5000  [0.2500, 0.7500]",
        "emorynlp: 4 utterances of 2 dialogues",
        "  accuracy       0.5000  [0.2500, 0.7500]",
        "  unreadable     0.2500  (answers without a label, counted as wrong)",
        "  prompts cut: 3",
    ]


def test_a_long_fit_without_a_terminal_is_not_silent(options, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("zoo.callbacks.ProgressLines.__init__.__defaults__", (0.0,))
    fit(tmp_path, *options(trainer__max_epochs=2, trainer__max_steps=5, trainer__enable_model_summary="true"))
    printed = capfd.readouterr().out
    assert re.search(r"^llm \(LLM\): [\d,]+ parameters, [\d,]+ of them trained$", printed, re.M)
    for step in range(1, 6):
        assert re.search(rf"^epoch \d, loss \d.*, {step} of 5 steps \({20 * step} %\), .*, .* left$", printed, re.M)
    assert re.search(r"^epoch 0, step 4: val/wf1 0\.\d{4}$", printed, re.M)
    assert "FLOPs" not in printed


def test_an_older_run_is_not_tested_without_a_word(options, tmp_path, capfd):
    old = fit(tmp_path, *options())
    (tmp_path / "lightning_logs" / "version_1").mkdir()
    (tmp_path / "lightning_logs" / "version_1" / "config.yaml").write_text("{}")  # stopped before its first checkpoint
    zoo("test", "--ckpt_path=best", f"--trainer.default_root_dir={tmp_path}")
    assert f"version_1 has no checkpoint; going on with {old}" in capfd.readouterr().err
    assert newest(tmp_path) != old


# ---- what an evaluation leaves alone
@pytest.mark.parametrize("logger", ["CSVLogger", "TensorBoardLogger", None])
def test_an_evaluation_does_not_touch_the_log_of_the_training(logger, options, tmp_path):
    named = [f"--trainer.logger={logger}"] if logger else []
    run = fit(tmp_path, *options(), *named)
    before = (run / "metrics.csv").read_bytes()
    for verb in ("test", "validate", "predict"):
        zoo(verb, f"--ckpt_path={run}", *named)
        assert (run / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize("verb", ["fit", "test", "predict"])
def test_a_trial_run_leaves_nothing_behind(verb, options, tmp_path):
    run = fit(tmp_path, *options())
    for name in ("predictions.jsonl", "metrics.json"):  # of the user
        Path(name).write_text("mine")
    zoo(verb, *(options() if verb == "fit" else [f"--ckpt_path={run}"]), "--trainer.fast_dev_run=true")
    assert {p.name: p.read_text() for p in Path().iterdir() if p.is_file()} == {
        "predictions.jsonl": "mine",
        "metrics.json": "mine",
    }
    assert {p.name for p in Path().iterdir()} == {"predictions.jsonl", "metrics.json", "lightning_logs"}
    assert [p.name for p in Path("lightning_logs").iterdir()] == ["version_0"]


def test_a_refused_command_leaves_nothing_behind(options, tmp_path):
    refused("fit", *QUIET, *options(), "--data.root=/nowhere")
    assert not list(Path("lightning_logs").glob("*"))
    run = fit(tmp_path, *options())
    before = sorted(p.name for p in run.iterdir())
    refused("fit", f"--ckpt_path={run}", "--seed_everything=5", "--trainer.max_epochs=2")
    refused("fit", f"--ckpt_path={run}", "--data.root=/nowhere", "--trainer.max_epochs=2")
    assert sorted(p.name for p in run.iterdir()) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint.save_top_k=2"], "one file"),
        (["--checkpoint.save_top_k=-1"], "one file"),
        (["--checkpoint.dirpath=elsewhere"], "one file"),
        (["--optimizer=torch.optim.SGD"], "trained by AdamW"),
        (["--lr_scheduler=ConstantLR"], "trained by AdamW"),
        (["--trainer.limit_val_batches=0.01"], "is none"),
        (["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.1"], "leave it out"),
    ],
)
def test_options_that_would_not_do_what_they_say_are_refused(flags, message, options):
    assert message in refused("fit", *QUIET, *options(), *flags)


@pytest.mark.parametrize("verb", ["test", "predict"])
def test_an_evaluation_of_nothing_is_refused(verb, options, tmp_path):
    run = fit(tmp_path, *options())
    for limit in ("0", "0.01"):
        message = refused(verb, f"--ckpt_path={run}", f"--trainer.limit_{verb}_batches={limit}")
        assert f"limit_{verb}_batches" in message and "give" in message


def test_files_of_the_users_own_callbacks_lie_in_the_run_folder(options, tmp_path, capfd):
    zoo(
        "fit",
        *QUIET,
        *options(),
        "--trainer.logger=false",
        "--trainer.profiler=SimpleProfiler",
        "--trainer.profiler.filename=prof",
        "--trainer.callbacks+=ModelCheckpoint",
        "--trainer.callbacks.filename=mine",
    )
    run = Path("lightning_logs/version_0")
    assert (run / "checkpoints" / "mine.ckpt").is_file() and (run / "fit-prof.txt").is_file()
    assert [p.name for p in Path().iterdir()] == ["lightning_logs"]
    assert "best val/wf1 0." in capfd.readouterr().out
