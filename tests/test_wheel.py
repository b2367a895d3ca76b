"""The wheel holds all that a command needs: it is built without a network, unpacked, and used from an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.runs_helper import REPOSITORY
from zoo import __version__

TINY_FIT = "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.max_epochs=1"


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """The unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*pip, "-w", str(folder), str(REPOSITORY)], check=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == f"emotion_zoo-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.fixture
def zoo_there(package, tmp_path):
    """Runs a command of the unpacked package in an empty folder; returns what it printed."""

    def run(*args: object, folder: Path = tmp_path) -> str:
        environment = os.environ | {"PYTHONPATH": str(package)}
        done = subprocess.run(
            [sys.executable, "-P", "-m", "zoo", *map(str, args)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_every_file_of_the_package_and_what_comes_with_it_is_in_the_wheel(package):
    """Compared with what git has: a file that a build leaves out would be missed by users alone."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "zoo", "configs", "checkpoints", "notebooks", "docs/table"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if listing.returncode != 0:
        pytest.skip("no git, or no clone")
    files = [name for name in listing.stdout.split("\0") if name and (REPOSITORY / name).is_file()]
    assert len(files) > 400
    where = {name: name if name.startswith("zoo/") else f"zoo/shipped/{name}" for name in files}
    missing = [name for name, place in where.items() if not (package / place).is_file()]
    assert not missing
    assert not [*package.rglob("__pycache__")]


def test_a_project_is_begun_and_trained(zoo_there, tmp_path):
    assert "zoo fit --config train.yaml" in zoo_there("init", "mine")
    zoo_there("fit", "--config", "train.yaml", *TINY_FIT, folder=tmp_path / "mine")
    run = tmp_path / "mine" / "lightning_logs" / "version_0"
    zoo_there("test", "--ckpt_path", "best", "--trainer.accelerator=cpu", folder=tmp_path / "mine")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["versions"]["zoo"] == __version__ and metrics["git"] is None


def test_configs_and_checkpoints_are_found_by_name(zoo_there, tmp_path):
    printed = zoo_there("fit", "--config", "configs/causal_lm/tiny.yaml", *TINY_FIT, "--trainer.limit_train_batches=1")
    assert "configs/causal_lm/tiny.yaml: taken from what comes with the zoo" in printed
    assert (tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "best.ckpt").is_file()
    assert "dialoguellm-sitcom" in zoo_there("checkpoints")
    zoo_there("checkpoints", "verify", "tiny-llama")


def test_a_benchmark_names_configs_that_come_with_the_zoo(zoo_there, tmp_path):
    (tmp_path / "bench.yaml").write_text(
        "title: One row\n"
        "data: {class_path: Synthetic, init_args: {train_dialogues: 6, test_dialogues: 6}}\n"
        "seeds: [0]\n"
        "rows: {majority: {what: majority label, config: [configs/baselines/majority.yaml]}}\n"
    )
    zoo_there("bench", "--config", "bench.yaml", "--out", "out")
    assert (tmp_path / "out" / "report.html").is_file()


def test_init_writes_only_into_an_empty_folder(tmp_path, capsys):
    from tests.runs_helper import refused, zoo

    zoo("init", tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["README.md", "calls.csv", "train.yaml"]
    assert "is not empty; give a folder that is new or empty" in refused("init", tmp_path / "new")


def test_a_config_of_ones_own_comes_first(tmp_path, monkeypatch, capsys):
    from zoo.shipped import name_shipped_configs

    monkeypatch.chdir(tmp_path)
    name = "configs/causal_lm/tiny.yaml"
    shipped = str(REPOSITORY / name)
    assert name_shipped_configs(["--config", name, f"--config={name}", "--model.llm", name]) == [
        "--config",
        shipped,
        f"--config={shipped}",
        "--model.llm",
        name,
    ]
    assert capsys.readouterr().err.count("taken from what comes with the zoo") == 2
    Path("configs/causal_lm").mkdir(parents=True)
    Path(name).write_text("{}")
    assert name_shipped_configs(["--config", name]) == ["--config", name]
    outside = "configs/../pyproject.toml"
    assert name_shipped_configs(["--config", outside]) == ["--config", outside]
