"""Small language models as GGUF files, their blocks packed here bit by bit, beside the numbers that they stand for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.conftest import tiny_texts
from zoo.backbones.tiny import make_tokenizer

WIDTH, HEADS, GROUPS, INNER, LAYERS, LONGEST = 64, 4, 2, 256, 3, 64
HEAD = {"llama": 16, "qwen2": 16, "qwen3": 32}  # channels of a head; those of Qwen3 are no share of the width
TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
Packed = tuple[np.ndarray, np.ndarray]  # bytes (rows, bytes of a row), and the numbers (rows, columns) float32


def source_tokenizer(digits_apart: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer that the files hold: byte pairs, 320 tokens, each text cut as GPT-2 cuts it."""
    tokenizer = make_tokenizer(tiny_texts(), 320, lowercase=False)
    if digits_apart:
        cut = tokenizer.backend_tokenizer.pre_tokenizer
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), cut]
        )
    return tokenizer


# ---- blocks: of each kind, the bytes and what they stand for
def _scales(rng: np.random.Generator, blocks: int, size: float) -> np.ndarray:
    return (size * rng.uniform(0.5, 1.5, (blocks, 1))).astype(np.float16)


def q4_0(rng: np.random.Generator, rows: int, columns: int) -> Packed:
    """d * (q - 8), 32 to a block: d as float16, then 16 bytes; the low halves are the first 16 numbers."""
    n = rows * columns // 32
    d, q = _scales(rng, n, 0.03), rng.integers(0, 16, (n, 32), dtype=np.uint8)
    packed = np.concatenate([d.view(np.uint8), q[:, :16] | q[:, 16:] << 4], 1)
    return packed.reshape(rows, -1), (d.astype(np.float32) * (q.astype(np.float32) - 8)).reshape(rows, columns)


def q4_1(rng: np.random.Generator, rows: int, columns: int) -> Packed:
    """d * q + m, 32 to a block: d and m as float16, then as in q4_0."""
    n = rows * columns // 32
    d, m, q = _scales(rng, n, 0.03), -_scales(rng, n, 0.2), rng.integers(0, 16, (n, 32), dtype=np.uint8)
    packed = np.concatenate([d.view(np.uint8), m.view(np.uint8), q[:, :16] | q[:, 16:] << 4], 1)
    values = d.astype(np.float32) * q.astype(np.float32) + m.astype(np.float32)
    return packed.reshape(rows, -1), values.reshape(rows, columns)


def q8_0(rng: np.random.Generator, rows: int, columns: int) -> Packed:
    """d * q, 32 to a block: d as float16, then 32 signed bytes."""
    n = rows * columns // 32
    d, q = _scales(rng, n, 0.003), rng.integers(-127, 128, (n, 32), dtype=np.int8)
    packed = np.concatenate([d.view(np.uint8), q.view(np.uint8)], 1)
    return packed.reshape(rows, -1), (d.astype(np.float32) * q.astype(np.float32)).reshape(rows, columns)


def q5_0(rng: np.random.Generator, rows: int, columns: int) -> Packed:
    """d * (q - 16), 32 to a block: d as float16, the 32 highest bits, then the low halves as in q4_0."""
    n = rows * columns // 32
    d, q = _scales(rng, n, 0.015), rng.integers(0, 32, (n, 32), dtype=np.uint8)
    high, low = np.packbits(q >> 4, 1, bitorder="little"), q & 15
    packed = np.concatenate([d.view(np.uint8), high, low[:, :16] | low[:, 16:] << 4], 1)
    return packed.reshape(rows, -1), (d.astype(np.float32) * (q.astype(np.float32) - 16)).reshape(rows, columns)


def _six_bits(scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """(N, 8) scales and minima of six bits each in (N, 12) bytes.

    The first four of each have bytes of their own, whose two high bits are those of the last four; the four low bits
    of these are the halves of the last four bytes.
    """
    first = [x[:, :4] | (x[:, 4:] >> 4) << 6 for x in (scales, minima)]
    return np.concatenate([*first, (scales[:, 4:] & 15) | (minima[:, 4:] & 15) << 4], 1).astype(np.uint8)


def _k_blocks(rng: np.random.Generator, rows: int, columns: int, bits: int) -> Packed:
    """d * scale * q - m * minimum, 256 to a block, a scale and a minimum for every 32.

    Of each pair of 32, a byte holds a number of the first in its low half and one of the second in its high half; the
    fifth bits, if there are any, stand before: byte l holds those of the eight numbers l, one bit each.
    """
    n = rows * columns // 256
    d, m = _scales(rng, n, 0.0005), _scales(rng, n, 0.003)
    scale, minimum = (rng.integers(0, 64, (n, 8), dtype=np.uint8) for _ in range(2))
    q = rng.integers(0, 2**bits, (n, 8, 32), dtype=np.uint8)
    low = [(q[:, i] & 15) | (q[:, i + 1] & 15) << 4 for i in range(0, 8, 2)]
    high = [sum((q[:, i] >> 4) << i for i in range(8))] if bits == 5 else []
    packed = np.concatenate([d.view(np.uint8), m.view(np.uint8), _six_bits(scale, minimum), *high, *low], 1)
    sizes, offsets = d.astype(np.float32) * scale, m.astype(np.float32) * minimum
    values = sizes[..., None] * q.astype(np.float32) - offsets[..., None]
    return packed.astype(np.uint8).reshape(rows, -1), values.reshape(rows, columns)


def q4_k(rng: np.random.Generator, rows: int, columns: int) -> Packed:
    """Four bits; see `_k_blocks`."""
    return _k_blocks(rng, rows, columns, 4)


def q5_k(rng: np.random.Generator, rows: int, columns: int) -> Packed:
    """Five bits; see `_k_blocks`."""
    return _k_blocks(rng, rows, columns, 5)


def q6_k(rng: np.random.Generator, rows: int, columns: int) -> Packed:
    """d * scale * (q - 32), 256 to a block: four low bits, two high bits, a signed scale for every 16, d as float16.

    Of each half of 128, byte l of the low bits holds number l and number l + 64, byte l + 32 the numbers l + 32 and
    l + 96; byte l of the high bits holds those of l, l + 32, l + 64 and l + 96.
    """
    n = rows * columns // 256
    d, scale = _scales(rng, n, 0.0005), rng.integers(-60, 61, (n, 16), dtype=np.int8)
    q = rng.integers(0, 64, (n, 2, 4, 32), dtype=np.uint8)  # half, quarter of a half, number
    low = [(q[:, h, i] & 15) | (q[:, h, i + 2] & 15) << 4 for h in range(2) for i in range(2)]
    high = [sum((q[:, h, i] >> 4) << 2 * i for i in range(4)) for h in range(2)]
    packed = np.concatenate([*low, *high, scale.view(np.uint8), d.view(np.uint8)], 1).astype(np.uint8)
    sizes = d.astype(np.float32) * scale.astype(np.float32)
    values = sizes.repeat(16, 1) * (q.reshape(n, 256).astype(np.float32) - 32)
    return packed.reshape(rows, -1), values.reshape(rows, columns)


def f16(rng: np.random.Generator, rows: int, columns: int) -> Packed:
    """Numbers as they are."""
    values = (0.2 * rng.standard_normal((rows, columns))).astype(np.float16)
    return values, values.astype(np.float32)


KINDS = {
    "Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q8_0": q8_0, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k, "F16": f16,
}  # fmt: skip
K_KINDS = ("Q4_K", "Q5_K", "Q6_K")  # of the layers, in order


# ---- files
def neighbours(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys as llama.cpp stores those of LLaMA: the two of a rotary pair beside each other."""
    half = rows.shape[0] // heads // 2
    order = [head * 2 * half + pair + side * half for head in range(heads) for pair in range(half) for side in (0, 1)]
    return rows[order]


def tensors_of(family: str, rows: int, untied: bool = False) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """llama.cpp's name -> kind and bytes, and transformers' name -> numbers, of a model with random weights."""
    rng, head = np.random.default_rng(0), HEAD[family]
    stored: dict[str, Any] = {}
    numbers: dict[str, np.ndarray] = {}

    def add(name: str, place: str, kind: str, shape: Sequence[int], turned: int = 0) -> None:
        if kind == "F32":
            values = (1 + 0.2 * rng.standard_normal(shape)).astype(np.float32)
            packed = values
        else:
            packed, values = KINDS[kind](rng, *shape)
        stored[name] = (kind, neighbours(packed, turned) if turned else packed)
        numbers[place] = values

    add("token_embd.weight", "model.embed_tokens.weight", "Q8_0", (rows, WIDTH))
    add("output_norm.weight", "model.norm.weight", "F32", (WIDTH,))
    if untied:
        add("output.weight", "lm_head.weight", "F16", (rows, WIDTH))
    for i in range(LAYERS):
        block, layer = f"blk.{i}", f"model.layers.{i}"
        add(f"{block}.attn_norm.weight", f"{layer}.input_layernorm.weight", "F32", (WIDTH,))
        add(f"{block}.ffn_norm.weight", f"{layer}.post_attention_layernorm.weight", "F32", (WIDTH,))
        for p, heads, kind in (("q", HEADS, "Q4_0"), ("k", GROUPS, "Q4_1"), ("v", GROUPS, "Q8_0")):
            turned = heads if family == "llama" and p != "v" else 0
            place = f"{layer}.self_attn.{p}_proj"
            add(f"{block}.attn_{p}.weight", f"{place}.weight", kind, (heads * head, WIDTH), turned)
            if family == "qwen2":
                add(f"{block}.attn_{p}.bias", f"{place}.bias", "F32", (heads * head,))
            if family == "qwen3" and p != "v":
                add(f"{block}.attn_{p}_norm.weight", f"{layer}.self_attn.{p}_norm.weight", "F32", (head,))
        add(f"{block}.attn_output.weight", f"{layer}.self_attn.o_proj.weight", "Q5_0", (WIDTH, HEADS * head))
        add(f"{block}.ffn_gate.weight", f"{layer}.mlp.gate_proj.weight", "Q4_1", (INNER, WIDTH))
        add(f"{block}.ffn_up.weight", f"{layer}.mlp.up_proj.weight", "F16", (INNER, WIDTH))
        add(f"{block}.ffn_down.weight", f"{layer}.mlp.down_proj.weight", K_KINDS[i], (WIDTH, INNER))
    return stored, numbers


def metadata_of(family: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """key -> value of a whole file; a size is a whole number of 32 bits, as llama.cpp writes it."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return {
        f"{family}.block_count": LAYERS,
        f"{family}.context_length": LONGEST,
        f"{family}.embedding_length": WIDTH,
        f"{family}.feed_forward_length": INNER,
        f"{family}.attention.head_count": HEADS,
        f"{family}.attention.head_count_kv": GROUPS,
        f"{family}.attention.key_length": HEAD[family],
        f"{family}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{family}.rope.freq_base": 5000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [token for token, _ in vocabulary],
        "tokenizer.ggml.token_type": [3 if i < 3 else 1 for _, i in vocabulary],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": TEMPLATE,
    }


def write_gguf(
    file: Path,
    family: str = "llama",
    changes: Mapping[str, Any] | None = None,
    untied: bool = False,
    architecture: str | None = None,
    without: Sequence[str] = (),
    more: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Write a model of a family; return its numbers under transformers' names.

    Args:
        changes: metadata that differ; None leaves a key out.
        untied: write output embeddings of its own.
        architecture: family that the file claims.
        without: names of tensors that are left out.
        more: tensors beside those of the family, as float32.
    """
    tokenizer = source_tokenizer()
    metadata = metadata_of(family, tokenizer) | dict(changes or {})
    stored, numbers = tensors_of(family, len(tokenizer), untied)
    writer = gguf.GGUFWriter(str(file), architecture or family)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for name, (kind, packed) in stored.items():
        if name not in without:
            raw = None if kind in ("F16", "F32") else gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, packed, raw_dtype=raw)
    for name, values in (more or {}).items():
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return numbers
