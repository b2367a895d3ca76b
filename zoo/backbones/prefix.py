"""Encoded prompt batches, as the verbs of `zoo.backbones.LLM` take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from zoo.backbones.row_tree import RowTree

KeyValues = list[tuple[Tensor, Tensor]]  # keys and values of each layer, (B, Hkv, T, hd) each


def positions_from_mask(mask: Tensor) -> Tensor:
    """Count real tokens: (B, P) bool -> (B, P) int64 positions; padding on the left gets 0."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


class _FilledLayer(Protocol):
    """A layer of a cache that has seen tokens."""

    keys: Tensor
    values: Tensor


def cached_key_values(cache: DynamicCache) -> KeyValues:
    """Return the keys and values of each layer of a cache."""
    layers = cast(Sequence[_FilledLayer], cache.layers)  # of the models with attention in every layer
    return [(layer.keys, layer.values) for layer in layers]


@dataclass
class StaticPrefix:
    """A beginning that many prompts share, e.g. instructions and solved examples (see `LLM.cache_prefix`).

    Its keys and values are computed when it is first used, and again after the weights have changed.

    Attributes:
        ids: (S,) int64.
        weights_state: of the weights, when `key_values` were computed; None: they were not yet.
        key_values: of each layer, (1, Hkv, S, hd).
    """

    ids: Tensor
    weights_state: Any = None
    key_values: KeyValues = field(default_factory=list)


@dataclass
class Prefix:
    """An encoded prompt batch.

    Attributes:
        embeddings: (B, P, D), left-padded; without the S tokens of `static_prefix`.
        mask: (B, S + P) bool.
        static_prefix: shared beginning in front of every prompt; None: S is 0.
        cache: keys and values of the S + P tokens; None until a verb needs it.
        logits: (B, V) float32, next-token logits after the prompt; None until a verb needs it.
        adapter_state: `LLM.adapter_state` when cache and logits were computed.
        positions: (3, B, S + P) int64: time, height and width of every token, 0 at padding; None: they are counted.
        tree: what the prompts begin with in common (`zoo.backbones.row_tree`); None: nothing that is worth it.
        ids: (B, P) int64 tokens that `embeddings` are those of; None: they hold more than words.
    """

    embeddings: Tensor
    mask: Tensor
    static_prefix: StaticPrefix | None = None
    cache: DynamicCache | None = None
    logits: Tensor | None = None
    adapter_state: str = ""
    positions: Tensor | None = None
    tree: RowTree | None = None
    ids: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """(B,) true prompt lengths, the static prefix included."""
        return self.mask.sum(1)

    @property
    def static_mask(self) -> Tensor:
        """(B, S) bool: the mask of the static prefix."""
        return self.mask[:, : self.mask.shape[1] - self.embeddings.shape[1]]

    @property
    def prompt_mask(self) -> Tensor:
        """(B, P) bool: the mask without the static prefix."""
        return self.mask[:, self.mask.shape[1] - self.embeddings.shape[1] :]

    @property
    def answer_start(self) -> Tensor | None:
        """(B,) int64, position of an answer's first token: behind the largest of the prompt's; None: it is counted."""
        return None if self.positions is None else self.positions.amax((0, 2)) + 1

    def answer_positions(self, count: int) -> Tensor | None:
        """Return positions (B, T) int64 of an answer's tokens; None: they are counted."""
        start = self.answer_start
        return None if start is None else start[:, None] + torch.arange(count, device=self.mask.device)

    def prefilled(self) -> tuple[DynamicCache, Tensor]:
        """Return `cache` and `logits`. RuntimeError before `LLM.prefill`."""
        if self.cache is None or self.logits is None:
            raise RuntimeError("the prompts have no keys, values and logits yet; call LLM.prefill first")
        return self.cache, self.logits

    def rows(self, index: Tensor) -> Prefix:
        """Select some prompts, without the padding that only the others needed; nothing is computed yet."""
        prompt_mask = self.prompt_mask[index]
        first = int(prompt_mask.any(0).int().argmax())
        start = self.mask.shape[1] - prompt_mask.shape[1]
        static_mask, positions = self.mask[index, :start], self.positions
        if positions is not None:
            positions = torch.cat([positions[:, index, :start], positions[:, index, start + first :]], 2)
        mask = torch.cat([static_mask, prompt_mask[:, first:]], 1)
        ids = None if self.ids is None else self.ids[index, first:]
        return Prefix(self.embeddings[index, first:], mask, self.static_prefix, positions=positions, ids=ids)

    @staticmethod
    def join(parts: Sequence[Prefix]) -> Prefix:
        """Join several batches into one; where only some have `positions`, those of the others are counted.

        Raises:
            ValueError: they do not stand behind the same static prefix.
        """
        if any(part.static_prefix is not parts[0].static_prefix for part in parts):
            raise ValueError("prompts can be joined only behind the same fixed beginning")
        longest = max(part.embeddings.shape[1] for part in parts)
        any_positions = any(part.positions is not None for part in parts)
        embeddings, masks, positions = [], [], []
        for part in parts:
            b, p, _ = part.embeddings.shape
            start = part.mask.shape[1] - p
            embeddings.append(nn.functional.pad(part.embeddings, (0, 0, longest - p, 0)))
            masks.append(torch.cat([part.static_mask, part.mask.new_zeros(b, longest - p), part.prompt_mask], 1))
            if any_positions:
                own_positions = (
                    positions_from_mask(part.mask).expand(3, -1, -1) if part.positions is None else part.positions
                )
                filling = own_positions.new_zeros(3, b, longest - p)
                positions.append(torch.cat([own_positions[..., :start], filling, own_positions[..., start:]], 2))
        joined = torch.cat(positions, 1) if any_positions else None
        rows = [nn.functional.pad(x, (longest - x.shape[1], 0)) for part in parts if (x := part.ids) is not None]
        ids = torch.cat(rows) if len(rows) == len(parts) else None
        return Prefix(torch.cat(embeddings), torch.cat(masks), parts[0].static_prefix, positions=joined, ids=ids)
