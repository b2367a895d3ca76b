"""``zoo prepare tiny``, ``tiny-vit``, ``tiny-hubert``: small backbones with random weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.prepare.command import Add


def add_tiny(add: Add) -> Callable[[argparse.Namespace], None]:
    """Add the command ``tiny``; return what runs it."""
    tiny = add("tiny", help="a small language model with random weights and a tokenizer made from text")
    tiny.add_argument("--out", required=True, type=Path)
    tiny.add_argument(
        "--goemotions", type=Path, help="folder of GoEmotions; its training sentences shape the tokenizer"
    )
    tiny.add_argument(
        "--synthetic", type=int, default=2000, help="dialogues of the embedded corpus that shape the tokenizer"
    )
    tiny.add_argument("--family", choices=["llama", "qwen2"], default="llama")
    tiny.add_argument("--vocab_size", type=int, default=4096)
    tiny.add_argument("--hidden_size", type=int, default=192)
    tiny.add_argument("--layers", type=int, default=3)
    tiny.add_argument("--heads", type=int, default=6)
    tiny.add_argument("--intermediate_size", type=int, default=512)
    tiny.add_argument("--seed", type=int, default=0)
    return make_language_model


def make_language_model(options: argparse.Namespace) -> None:
    """Write a small language model with random weights."""
    from zoo.backbones.tiny import make_folder
    from zoo.data import GoEmotions, Synthetic
    from zoo.data.text import whole_number
    from zoo.models.causal_lm import CausalLM
    from zoo.prompts import load_template, render

    for name in ("vocab_size", "hidden_size", "layers", "heads", "intermediate_size"):
        whole_number(f"--{name}", getattr(options, name), 1)
    for name in ("synthetic", "seed"):
        whole_number(f"--{name}", getattr(options, name))
    corpora: list[Any] = [Synthetic(train_dialogues=options.synthetic)] if options.synthetic else []
    corpora += [GoEmotions(root=options.goemotions)] if options.goemotions else []
    if not corpora:
        raise ValueError("a tokenizer needs text: give --goemotions, --synthetic, or both")
    template = load_template("default", CausalLM.templates)
    texts = [
        f"{render(template, s, window=0, descriptions=('audio', 'video'), words=s.labels.names)} {s.target.label}"
        for corpus in corpora
        for s in corpus.samples("train")
    ]
    make_folder(
        options.out,
        texts,
        options.family,
        options.vocab_size,
        options.hidden_size,
        options.layers,
        options.heads,
        intermediate_size=options.intermediate_size,
        seed=options.seed,
    )
    print(f"wrote {options.out} (tokenizer from {len(texts)} utterances)")


def add_tiny_encoder(add: Add, kind: str) -> Callable[[argparse.Namespace], None]:
    """Add the command ``tiny-vit`` or ``tiny-hubert``; return what runs it."""
    inputs = {"vit": "pictures", "hubert": "waveforms"}[kind]
    parser = add(f"tiny-{kind}", help=f"a small encoder of {inputs} with random weights and a head for seven labels")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seed", type=int, default=0)

    def run(options: argparse.Namespace) -> None:
        from zoo.backbones.tiny import make_hubert_folder, make_vit_folder
        from zoo.data.meld import MELD

        make = make_vit_folder if kind == "vit" else make_hubert_folder
        make(options.out, labels=MELD.labels.names, seed=options.seed)
        print(f"wrote {options.out}")

    return run
