"""Decoding one token of every answer with few kernel launches and no wait for the device.

A GPU decodes a token in the time it takes to launch its kernels: in transformers and peft about 76 per layer with
adapters on every linear layer. Here they are about 36, or 27 with the adapters merged, because projections write into
one tensor, queries and keys are turned together, and the adapters of layers that read the same input are one product.
What changes from token to token (the position, the masked slots) lies on the device, keys and values keep their
addresses: the operations of a token can be captured as a CUDA graph.

The numbers are those of transformers' forward pass up to rounding, for LLaMA, Qwen2 and Qwen3. Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from zoo.backbones.prefix import KeyValues, Prefix, cached_key_values

if TYPE_CHECKING:
    from zoo.backbones.llm import LLM


GRAPH_BLOCK = 64  # answer slots that one CUDA graph reads


def decoding_dtype(llm: LLM) -> torch.dtype:
    """Return the dtype in which the linear layers compute: autocast's where it is on, else that of the weights."""
    weight = cast(Tensor, llm.causal_lm.get_input_embeddings().weight)
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


class AnswerCache:
    """Keys and values while answers are decoded: those of a prompt once for all its answers, those of answers apart.

    Args:
        prefix: B prompts with their keys and values.
        n: answers per prompt.
        max_new_tokens: T, tokens an answer may get.
        dtype: of keys and values.

    Attributes:
        n: answers per prompt that are still written.
        length: tokens that each of them has.
        visible: number of slots that attention reads; the unwritten ones among them are masked.
    """

    def __init__(self, prefix: Prefix, n: int, max_new_tokens: int, dtype: torch.dtype) -> None:
        prompt_key_values: KeyValues = cached_key_values(prefix.prefilled()[0])
        b, heads, p, width = prompt_key_values[0][0].shape
        mask, start = prefix.mask, prefix.answer_start
        self.n, self.length, self.visible = n, 0, 0
        self.prompt_key_values = [(k.to(dtype), v.to(dtype)) for k, v in prompt_key_values]
        self.answer_start = mask.sum(1) if start is None else start  # (B,) position of the first token
        self.slot = torch.zeros(1, dtype=torch.int64, device=mask.device)  # of the token that is fed now
        # added to the scores (B, P + T), in float32: sums of many bfloat16 products would lose what sets keys apart
        precision = torch.promote_types(dtype, torch.float32)
        self.bias = torch.full((b, p + max_new_tokens), float("-inf"), dtype=precision, device=mask.device)
        self.bias[:, :p].masked_fill_(mask, 0.0)
        # zeros, because an unwritten slot is multiplied by a weight of 0
        layers = len(prompt_key_values)
        self.answer_key_values = torch.zeros(
            layers, 2, b, heads, n, max_new_tokens, width, dtype=dtype, device=mask.device
        )

    @property
    def prompt_length(self) -> int:
        """P, the padded length of the prompts."""
        return self.prompt_key_values[0][0].shape[2]

    def begin_token(self) -> Tensor:
        """Open the slot of the token that is fed now, and return its positions (B n, 1) int64."""
        self.bias[:, self.prompt_length :].index_fill_(1, self.slot, 0.0)
        positions = self.answer_start[:, None] + self.slot
        return positions.expand(-1, self.n).reshape(-1, 1)

    def end_token(self) -> None:
        """Move on to the next slot."""
        self.slot += 1

    def attend(self, layer: int, heads: Tensor, scaling: float) -> Tensor:
        """Let one token of every answer attend to its prompt and to the answer so far.

        Args:
            layer: index of the layer.
            heads: (B n, H + 2 Hkv, hd), turned queries and keys, and values.
            scaling: of the scores.

        Returns:
            (B n, H hd).
        """
        prompt_key, prompt_value = (x.flatten(0, 1) for x in self.prompt_key_values[layer])  # (B Hkv, P, hd)
        key_values = self.answer_key_values[layer]
        _, b, kv_heads, n, _, width = key_values.shape
        p, groups = self.prompt_length, heads.shape[1] // kv_heads - 2
        new = heads.view(b, n, -1, width)
        written = new[:, :, groups * kv_heads :].view(b, n, 2, kv_heads, 1, width).permute(2, 0, 3, 1, 4, 5)
        key_values.index_copy_(4, self.slot, written)
        answer_key, answer_value = key_values[..., : self.visible, :].flatten(1, 3)  # (B Hkv n, visible, hd) each
        query = new[:, :, : groups * kv_heads].view(b, n, kv_heads, groups, width).transpose(1, 2)
        query = query.reshape(b * kv_heads, n * groups, width)
        scores = torch.cat(
            [
                _scores(query, prompt_key).view(b, -1, p),
                _scores(query.reshape(-1, groups, width), answer_key).view(b, -1, self.visible),
            ],
            2,
        )
        scores = torch.add(self.bias[:, None, : p + self.visible], scores, alpha=scaling)
        weight = torch.softmax(scores, 2).to(key_values.dtype)
        out = torch.bmm(weight[..., :p].view(b * kv_heads, -1, p), prompt_value)
        out = torch.baddbmm(out.view(-1, groups, width), weight[..., p:].view(-1, groups, self.visible), answer_value)
        return out.view(b, kv_heads, n, groups, width).transpose(1, 2).reshape(b * n, -1)

    def select(self, prompts: Tensor, answers: Tensor) -> None:
        """Go on with some answers only.

        Args:
            prompts: (b,) int64, which prompts.
            answers: (b, n) int64, which answers of each.
        """
        if len(prompts) < len(self.answer_start):
            self.prompt_key_values = [(k[prompts], v[prompts]) for k, v in self.prompt_key_values]
            self.answer_start, self.bias = self.answer_start[prompts], self.bias[prompts]
        head = torch.arange(self.answer_key_values.shape[3], device=prompts.device)
        index = (prompts[:, None, None], head[:, None], answers[:, None, :])
        self.answer_key_values = self.answer_key_values[:, :, *index]
        self.n = answers.shape[1]


def _scores(query: Tensor, key: Tensor) -> Tensor:
    """Multiply (N, Q, hd) queries and (N, K, hd) keys to (N, Q, K) scores in at least float32.

    The trainer's attention kernels keep scores in float32, too; rounded to bfloat16 they would make the sampler another
    policy than the trained one.
    """
    key = key.transpose(1, 2)
    if query.dtype not in (torch.float16, torch.bfloat16):
        return torch.bmm(query, key)
    if query.is_cuda:
        return torch.bmm(query, key, out_dtype=torch.float32)  # of CUDA alone
    return torch.bmm(query.float(), key.float())


class _Projection:
    """Linear layers that read the same input, as one tensor, with the adapters in use.

    Args:
        layers: linear layers, with or without peft's adapters.
        dtype: to compute in.
        merge: add the adapters to copies of the weights.
    """

    def __init__(self, layers: Sequence[nn.Module], dtype: torch.dtype, merge: bool) -> None:
        self.weights: list[Tensor] = []
        self.biases: list[Tensor | None] = []
        down: list[Tensor] = []  # (r, in) each
        up: list[Tensor] = []  # (out, r) each, scaled
        for layer in layers:
            linear = cast(nn.Linear, layer.base_layer if isinstance(layer, LoraLayer) else layer)
            adapters = _adapters_in_use(layer)
            weight = linear.weight
            if merge and adapters:
                weight = weight.float() + sum(b.float() @ a.float() for a, b in adapters)
            self.weights.append(weight.detach().to(dtype).T)
            self.biases.append(None if linear.bias is None else linear.bias.detach().to(dtype))
            down.append(_stack([] if merge else [a for a, _ in adapters], 0, weight.new_empty(0, linear.in_features)))
            up.append(_stack([] if merge else [b for _, b in adapters], 1, weight.new_empty(linear.out_features, 0)))
        self.sizes = [weight.shape[1] for weight in self.weights]
        self.down = self.up = None
        if any(len(a) for a in down):
            self.down = torch.cat(down).detach().to(dtype).T
            self.up = torch.block_diag(*up).detach().to(dtype).T

    def __call__(self, x: Tensor) -> Tensor:
        """Project (N, in) to (N, sum of outs)."""
        out = x.new_empty(len(x), sum(self.sizes))
        for weight, bias, part in zip(self.weights, self.biases, out.split(self.sizes, 1), strict=True):
            if bias is None:
                torch.mm(x, weight, out=part)
            else:
                torch.addmm(bias, x, weight, out=part)
        if self.down is None or self.up is None:
            return out
        return torch.addmm(out, x @ self.down, self.up)


def _stack(parts: Sequence[Tensor], dim: int, nothing: Tensor) -> Tensor:
    return torch.cat(list(parts), dim) if parts else nothing


def _adapters_in_use(layer: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return (r, in) and scaled (out, r) matrices of the adapters that a layer applies now."""
    if not isinstance(layer, LoraLayer) or layer.disable_adapters or layer.merged:  # merged: in the weights already
        return []
    return [
        (cast(Tensor, layer.lora_A[name].weight), cast(Tensor, layer.lora_B[name].weight) * layer.scaling[name])
        for name in layer.active_adapters
        if name in layer.lora_A
    ]


class _Layer:
    """Weights of one layer, as they are used for a token."""

    def __init__(self, layer: Any, dtype: torch.dtype, merge: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.norm, self.mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = _Projection([attention.q_proj, attention.k_proj, attention.v_proj], dtype, merge)
        self.out = _Projection([attention.o_proj], dtype, merge)
        self.gate_up = _Projection([mlp.gate_proj, mlp.up_proj], dtype, merge)
        self.down = _Projection([mlp.down_proj], dtype, merge)
        self.activation = mlp.act_fn
        self.head_width, self.scaling = attention.head_dim, attention.scaling
        self.value_heads = attention.v_proj.out_features // attention.head_dim
        self.head_norm: Tensor | None = None  # (H + Hkv, hd), of queries and keys (Qwen3)
        if hasattr(attention, "q_norm"):
            heads = (attention.q_proj.out_features, attention.k_proj.out_features)
            norms = (attention.q_norm, attention.k_norm)
            rows = [n.weight.expand(h // self.head_width, -1) for n, h in zip(norms, heads, strict=True)]
            self.head_norm, self.epsilon = torch.cat(rows).detach().to(dtype), attention.q_norm.variance_epsilon

    def __call__(self, index: int, hidden: Tensor, cos: Tensor, sin: Tensor, cache: AnswerCache) -> Tensor:
        """Compute (N, D) states from those of the layer below.

        Args:
            index: of the layer.
            hidden: (N, D).
            cos: (N, 1, hd).
            sin: (N, 1, hd), negative in the first half.
            cache: takes the keys and values of the token.
        """
        dtype = self.qkv.weights[0].dtype
        heads = self.qkv(_normalised(self.norm, hidden).to(dtype)).view(len(hidden), -1, self.head_width)
        turned = heads[:, : -self.value_heads]  # queries and keys
        if self.head_norm is not None:
            torch.mul(rms_norm(turned, (self.head_width,), eps=self.epsilon), self.head_norm, out=turned)
        halves_swapped = turned.roll(self.head_width // 2, 2)
        turned.mul_(cos).addcmul_(halves_swapped, sin)
        hidden = hidden + self.out(cache.attend(index, heads, self.scaling))
        gate, up = self.gate_up(_normalised(self.mlp_norm, hidden).to(dtype)).chunk(2, 1)
        return hidden + self.down(self.activation(gate) * up)


def _normalised(norm: Any, hidden: Tensor) -> Tensor:
    """Apply a root-mean-square norm of transformers, as one kernel on CUDA."""
    return rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)


class TokenDecoder:
    """Decodes one token of every answer behind prompts.

    Weights are read when it is made, so one decoder serves one call of `LLM.sample`.

    Args:
        llm: a model that can share prompts, whose weights are whole on this device.
        prefix: B prompts, prefilled.
        n: answers per prompt.
        max_new_tokens: tokens an answer may get.
    """

    def __init__(self, llm: LLM, prefix: Prefix, n: int, max_new_tokens: int) -> None:
        dtype = decoding_dtype(llm)
        self.llm, self.decoder = llm, cast(Any, llm.causal_lm.get_decoder())
        self.cache = AnswerCache(prefix, n, max_new_tokens, dtype)
        self.layers = [_Layer(layer, dtype, llm.merge_adapters) for layer in self.decoder.layers]
        half = self.layers[0].head_width // 2
        self.sign = torch.ones(2 * half, device=prefix.mask.device)
        self.sign[:half] = -1

    def __call__(self, token: Tensor) -> Tensor:
        """Feed (B n,) int64 tokens and return the states (B n, D) that predict the next ones."""
        self.cache.length += 1
        self.cache.visible = self.cache.length
        return self.advance(token)

    def advance(self, token: Tensor) -> Tensor:
        """Do the device's part of a token: nothing in it depends on how many tokens there are."""
        cache = self.cache
        with torch.autocast(token.device.type, enabled=False):
            hidden = self.llm.embed(token)
            cos, sin = self.decoder.rotary_emb(hidden[:, None], cache.begin_token())
            dtype = self.layers[0].qkv.weights[0].dtype
            cos, sin = cos.to(dtype), (sin * self.sign).to(dtype)
            for index, layer in enumerate(self.layers):
                hidden = layer(index, hidden, cos, sin, cache)
            cache.end_token()
            return _normalised(self.decoder.norm, hidden)


class GraphedTokenDecoder(TokenDecoder):
    """A `TokenDecoder` that records the operations of a token as a CUDA graph, and replays them.

    Attention then reads slots in whole blocks of `GRAPH_BLOCK`, the unwritten ones masked, so that one graph serves a
    block of tokens. It is recorded again when a block is full or finished answers leave the batch.

    Raises:
        ValueError: not on a CUDA device, or a model whose rotary positions wait for the device at every token.
    """

    def __init__(self, llm: LLM, prefix: Prefix, n: int, max_new_tokens: int) -> None:
        super().__init__(llm, prefix, n, max_new_tokens)
        device = prefix.mask.device
        if device.type != "cuda":
            raise ValueError(f"cuda_graph needs a CUDA device, this model is on {device}; set --model.cuda_graph false")
        kind = getattr(self.decoder.rotary_emb, "rope_type", "default")
        if kind in ("dynamic", "longrope"):
            raise ValueError(
                f"the model's rotary positions are of type {kind}, which looks at the longest prompt on the host at "
                "every token; set --model.cuda_graph false"
            )
        self.warm: tuple[int, int] | None = None  # rows and visible slots of the last token
        self.recorded: tuple[int, int] | None = None  # rows and visible slots that the graph is for
        self.graph: torch.cuda.CUDAGraph | None = None
        self.token = self.states = prefix.mask  # the graph's input and output, once there is one

    def __call__(self, token: Tensor) -> Tensor:
        """Feed (B n,) int64 tokens and return the states (B n, D) that predict the next ones, until the next call."""
        cache = self.cache
        cache.length += 1
        cache.visible = min(-(-cache.length // GRAPH_BLOCK) * GRAPH_BLOCK, cache.answer_key_values.shape[5])
        shape = (len(token), cache.visible)
        if shape != self.warm:  # the first token of a shape runs as it is: libraries prepare themselves in it
            self.warm = shape
            return self.advance(token)
        if shape != self.recorded:
            self.token, self.recorded = token.clone(), shape
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.states = self.advance(self.token)
        self.token.copy_(token)
        cast(torch.cuda.CUDAGraph, self.graph).replay()
        return self.states
