"""Attention of many answers over one prompt, without copying the prompt.

A prompt of P tokens and n answers of T tokens are one row of P + n T tokens: the prompt attends to itself, every answer
to the prompt and to itself, and positions of every answer restart behind the prompt. So the prompt is computed once for
all its answers, with gradients (training), or its keys and values are kept and used un-copied (scoring; for
decoding see `zoo.backbones.token_decoder`). The results are those of n separate rows.

It plugs into transformers as an attention function named `NAME`; no model is changed. A call without a plan is plain
SDPA, so that the same model serves every other use. Source: ours; the idea is known (Prefix Grouper, arXiv 2506.05433).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "zoo_shared_prefix"
FAMILIES = ("llama", "qwen2", "qwen3")  # whose attention passes the plan on and masks nothing by itself
NO_MASK = (1, 1, 1, 1)  # a mask of four axes is taken as it is by transformers; a plan has its own


def unsupported_reason(config: PretrainedConfig) -> str | None:
    """Return why a model cannot share a prompt between answers; None if it can."""
    if config.model_type not in FAMILIES:
        return f"{config.model_type} is not one of {', '.join(FAMILIES)}"
    others = sorted({kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"})
    return f"it has layers of kind {', '.join(others)}" if others else None


@dataclass
class PackedPlan:
    """Plan of one pass over [prompt | answer 1 | ... | answer n], possibly behind tokens of an earlier pass.

    Attributes:
        prompt: (B, P) bool, left-padded, True on real tokens; P may be 0.
        answers: (B, n, T) bool, right-padded.
        past_mask: (B, K) bool, real tokens of the earlier pass; None: there was none.
        past_key_values: their keys and values for each layer, (B or 1, Hkv, K, hd) each.
        prompt_positions: (3, B, K + P) int64, positions of the earlier tokens and of the prompt, 0 at padding; answers
            go on after the largest. None: real tokens are counted.
    """

    prompt: Tensor
    answers: Tensor
    past_mask: Tensor | None = None
    past_key_values: list[tuple[Tensor, Tensor]] | None = None
    prompt_positions: Tensor | None = None
    _masks: tuple[Tensor, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        b, n, t = self.answers.shape
        device, p = self.prompt.device, self.prompt.shape[1]
        # a padded query sees itself: a row without any key would be NaN, also in the gradient
        causal = torch.ones(p, p, dtype=torch.bool, device=device).tril()
        prompt_sees = (causal & self.prompt[:, None]) | torch.eye(p, dtype=torch.bool, device=device)
        step = torch.arange(n * t, device=device)
        same = step[:, None] // t == step // t
        answers_see = same & (step <= step[:, None]) & self.answers.reshape(b, 1, n * t)
        answers_see = answers_see | torch.eye(n * t, dtype=torch.bool, device=device)
        answers_see = torch.cat([self.prompt[:, None].expand(b, n * t, p), answers_see], 2)
        if self.past_mask is not None:
            prompt_sees, answers_see = (
                torch.cat([self.past_mask[:, None].expand(b, x.shape[1], -1), x], 2) for x in (prompt_sees, answers_see)
            )
        self._masks = (prompt_sees[:, None], answers_see[:, None])  # (B, 1, P, K + P), (B, 1, nT, K + P + nT)

    @property
    def positions(self) -> Tensor:
        """(B, P + nT) int64; (3, B, P + nT) where they are given."""
        b, n, t = self.answers.shape
        if self.prompt_positions is None:
            first = 0 if self.past_mask is None else self.past_mask.sum(1)[:, None]
            prompt = first + (self.prompt.long().cumsum(1) - 1).clamp(min=0)
            after = first + self.prompt.sum(1)[:, None]
        else:
            prompt = self.prompt_positions[:, :, self.prompt_positions.shape[2] - self.prompt.shape[1] :]
            after = self.prompt_positions.amax((0, 2))[:, None] + 1
        answers = (after[:, None] + torch.arange(t, device=after.device)).expand(b, n, t).reshape(b, n * t)
        return torch.cat([prompt, answers.expand(*prompt.shape[:-1], -1)], -1)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        """Attend: (B, H, S, hd) queries, (B, Hkv, S, hd) keys and values -> (B, H, S, hd)."""
        options: dict[str, Any] = {"scale": scaling, "dropout_p": dropout, "enable_gqa": query.shape[1] != key.shape[1]}
        prompt_sees, answers_see = self._masks
        p = self.prompt.shape[1]
        if self.past_key_values is not None:
            key, value = (
                torch.cat([past.expand(len(x), -1, -1, -1), x], 2)
                for past, x in zip(self.past_key_values[layer], (key, value), strict=True)
            )
        if not key.is_cpu:
            key, value = (repeat_heads(x, query.shape[1]) for x in (key, value))
            options["enable_gqa"] = False
        answers = scaled_dot_product_attention(query[:, :, p:], key, value, answers_see, **options)
        if p == 0:
            return answers
        known = prompt_sees.shape[-1]
        prompt = scaled_dot_product_attention(
            query[:, :, :p], key[:, :, :known], value[:, :, :known], prompt_sees, **options
        )
        return torch.cat([prompt, answers], 2)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Repeat (B, Hkv, S, hd) keys or values for the queries of their group: (B, heads, S, hd).

    Under a mask, CUDA computes grouped queries in its float32 math kernel alone; of repeated keys and values it takes
    the memory-efficient kernel, as transformers does.
    """
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    plan: PackedPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as a plan says, in transformers' interface: (B, H, S, hd) -> (B, S, H, hd). None: its own SDPA."""
    if plan is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = plan.attend(cast(int, module.layer_idx), query, key, value, scaling, dropout)
    return out.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
