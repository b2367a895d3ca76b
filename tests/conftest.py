"""Small language models for all tests: real model folders, made once per session.

Libraries are imported where they are needed: the process that deals out the tests reads this file before it starts
those that run them.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest


def tiny_texts(count: int = 40) -> list[str]:
    """Made-up utterances of every label, each followed by its label: enough for the label words to become one token."""
    from tests.data.miniature import LABELS, line

    rng = random.Random(0)
    return [f"{line(rng, label)}\nemotion: {label}" for _ in range(count) for label in LABELS]


def redraw(folder: Path, seed: int = 0) -> None:
    """Draws the weights of a model folder again, far larger than usual: the next token is then far from uniform and
    depends on every token before it, so that a mistake in positions, masks or caches shows."""
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in sorted(tensors.items()):
        noise = torch.randn(tensor.shape, generator=generator)
        tensors[name] = 1 + 0.2 * noise if "norm" in name else 0.3 * noise
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def make_tiny(folder: Path, family: str = "llama", texts: Sequence[str] | None = None, seed: int = 0) -> Path:
    """A model folder of 32 units and 2 layers, with four heads (qwen2: two of keys and values)."""
    from zoo.backbones.tiny import make_folder

    made = make_folder(
        folder, texts or tiny_texts(), family, 640, 32, 2, 4, 2 if family == "qwen2" else None, 64, seed=seed
    )
    redraw(made, seed)
    return made


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small LLaMA. Copy it before changing anything in it."""
    return make_tiny(tmp_path_factory.mktemp("models") / "tiny_llama", "llama")


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small Qwen2 with grouped keys and values. Copy it before changing anything in it."""
    return make_tiny(tmp_path_factory.mktemp("models") / "tiny_qwen2", "qwen2")


# ---- what tests may read
# Folders that git does not have: what lies in them differs from clone to clone
LEFT_BEHIND = tuple(f"{Path(__file__).parents[1] / name}{os.sep}" for name in ("runs", "lightning_logs"))


def _refuse_what_is_left_behind(event: str, arguments: tuple[object, ...]) -> None:
    # os.open has no mode; the cleaning up of temporary folders calls it with names relative to them
    if event == "open" and isinstance(arguments[0], (str, os.PathLike)) and arguments[1] is not None:
        file = os.path.abspath(os.fspath(arguments[0]))
        if file.startswith(LEFT_BEHIND):
            raise AssertionError(f"a test opened {file}, which a fresh clone does not have; write it in the test")


sys.addaudithook(_refuse_what_is_left_behind)


# ---- order
# Files that take longest, by CPU time. `make test` gives whole files to its processes in this order: a long file that
# begins last would leave the other processes idle.
LONGEST = (
    "test_divided.py",
    "benchmark/test_scripts.py",
    "models/test_contract.py",
    "test_systems_on_gpu.py",
    "test_attacks.py",
    "test_table_page.py",
    "label/test_parts.py",
    "prepare/test_describe.py",
    "test_resume.py",
    "test_processes.py",
    "test_broken_rows.py",
    "benchmark/test_run.py",
    "test_lightning_cli.py",
    "models/test_merit.py",
    "test_configs.py",
    "sitcom/test_release.py",
    "test_checkpoints.py",
    "models/test_baselines.py",
    "models/test_emotion_qwen.py",
    "checkpoints/test_systems.py",
    "sitcom/test_script.py",
    "models/test_selector.py",
    "models/test_farcer.py",
    "test_interrupts.py",
    "test_cli.py",
    "test_chat.py",
    "backbones/test_shared_prefix.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the notebooks first, then the longest files; the rest stays in its order."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: -1 if item.path.suffix == ".ipynb" else place.get(item.path, len(place)))


# ---- runs through the command line (usefixtures)
@pytest.fixture(scope="module")
def one_threaded():
    """Bit-identical results need one thread."""
    from tests.runs_helper import one_thread

    with one_thread():
        yield


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Relative paths land in a folder of the test's own, and no time goes into pictures."""
    from tests.runs_helper import no_picture

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoo.training.evaluation.confusion_picture", no_picture)


# ---- a device
@pytest.fixture
def gpu():
    """``cuda:0``, pretended, on which runs of Lightning with one CPU device run then; what it counts."""
    from tests.pretended_gpu import pretended_gpu

    with pretended_gpu() as counted:
        yield counted
