"""What runs need: a corpus, a language model that learns within some steps, and encoders, each written in a second."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.data.miniature import LABELS, line, write_meld
from zoo.backbones.patch_vision import small_patch_vision
from zoo.backbones.tiny import make_folder, make_hubert_folder, make_vit_folder
from zoo.backbones.tiny_image_text import make_image_text_folder
from zoo.data.meld import CLIPS
from zoo.sitcom.clips import encode


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


def make_patch_vision(folder: Path) -> Path:
    """A vision tower of 2 layers of 32 for pictures of their own shape, patches of 4 pixels; the second sees all."""
    small_patch_vision(
        folder, depth=2, width=32, heads=2, intermediate_size=48, patch=4, window=16, full_attention=(1,)
    )
    return folder


def make_ears(folder: Path) -> Path:
    """A HuBERT of 2 layers of 32."""
    return make_hubert_folder(folder, LABELS, width=32, layers=2, heads=2, intermediate_size=64, conv_dim=(16,) * 7)


def make_home(
    folder: Path,
    dialogues: tuple[int, int, int],
    test_is: str | None = None,
    clips: bool = False,
    **more: tuple[int, int, int],
) -> Path:
    """A folder with a language model (``llm``) and a miniature MELD (``meld``); the folder.

    Args:
        dialogues: of the corpus, see `make_corpus`.
        test_is: the split whose files its test split is a copy of.
        clips: write its clips, the encoders ``vision`` and ``audio``, and an image-text model ``vlm``.
        more: further corpora by name, with their dialogues.
    """
    make_llm(folder / "llm")
    if clips:
        make_eyes(folder / "vision")
        make_ears(folder / "audio")
        make_image_text_folder(folder / "vlm")
    make_corpus(folder / "meld", dialogues, test_is, clips)
    for name, numbers in more.items():
        make_corpus(folder / name, numbers)
    return folder


def spoil(source: Path, target: Path, change: Callable[[dict[str, Tensor]], object]) -> str:
    """A copy of a model folder with its tensors changed; its path."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return str(target)
