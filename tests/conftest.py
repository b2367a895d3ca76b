"""Small language models for all tests: real model folders, made once per session."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.data.miniature import LABELS, line
from tests.runs_helper import no_picture, one_thread
from zoo.backbones.tiny import make_folder


def tiny_texts(count: int = 40) -> list[str]:
    """Made-up utterances of every label, each followed by its label: enough for the label words to become one token."""
    rng = random.Random(0)
    return [f"{line(rng, label)}\nemotion: {label}" for _ in range(count) for label in LABELS]


def redraw(folder: Path, seed: int = 0) -> None:
    """Draws the weights of a model folder again, far larger than usual: the next token is then far from uniform and
    depends on every token before it, so that a mistake in positions, masks or caches shows."""
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in sorted(tensors.items()):
        noise = torch.randn(tensor.shape, generator=generator)
        tensors[name] = 1 + 0.2 * noise if "norm" in name else 0.3 * noise
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def make_tiny(folder: Path, family: str = "llama", texts: Sequence[str] | None = None, seed: int = 0) -> Path:
    """A model folder of 32 units and 2 layers, with four heads (qwen2: two of keys and values)."""
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


# ---- runs through the command line (usefixtures)
@pytest.fixture(scope="module")
def one_threaded():
    """Bit-identical results need one thread."""
    with one_thread():
        yield


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Relative paths land in a folder of the test's own, and no time goes into pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoo.module.confusion_picture", no_picture)
