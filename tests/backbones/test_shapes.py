"""Paper sizes on the meta device: the numbers are those of the published models and papers, counted there."""

import pytest
import torch
from transformers import AutoConfig

from zoo.backbones import LLM, LoRA
from zoo.backbones.shapes import SHAPES

PARAMETERS = {  # model cards
    "llama-2-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "qwen2-7b": 7_615_616_512,
    "glm-4-9b": 9_399_951_360,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-32b": 32_763_876_352,
}
ATTENTION = r"model\.layers\.\d+\.self_attn\.({})_proj"


def build(name):
    return LLM(f"shape:{name}", dtype="bfloat16", device="meta")


def nothing_materialised(llm):
    return {t.device.type for t in llm.parameters()} == {"meta"}


def test_every_shape_is_counted():
    assert set(PARAMETERS) == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_parameters(name):
    llm = build(name)
    assert sum(p.numel() for p in llm.parameters()) == PARAMETERS[name]
    assert nothing_materialised(llm) and {p.dtype for p in llm.parameters()} == {torch.bfloat16}
    assert llm.tokenizer is None and llm.causal_lm.lm_head.weight is not llm.causal_lm.get_input_embeddings().weight


@pytest.mark.parametrize("name", SHAPES)
def test_rotary_base_is_the_published_one(name):
    """A wrong one changes no count and no shape. transformers must find it inside rope_parameters."""
    base = {"llama-2-7b": 10_000.0, "glm-4-9b": 10_000.0, "llama-3-8b": 500_000.0}.get(name, 1_000_000.0)
    kind, values = SHAPES[name]
    small = AutoConfig.for_model(kind, **values | {"num_hidden_layers": 1, "vocab_size": 8})
    assert small.rope_parameters["rope_theta"] == base
    assert values["hidden_size"] // values["num_attention_heads"] == 128


@pytest.mark.parametrize(
    "name, r, targets, count",
    [
        ("llama-2-7b", 8, ATTENTION.format("q|v"), 4_194_304),  # DialogueLLM
        ("llama-2-7b", 16, ATTENTION.format("q|k|v"), 12_582_912),
        ("qwen2.5-7b", 8, r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj", 20_185_088),
    ],
)
def test_lora(name, r, targets, count):
    llm = build(name)
    llm.add_lora(LoRA(r=r, alpha=64, dropout=0.05, targets=targets))
    assert sum(p.numel() for p in llm.parameters() if p.requires_grad) == count
    assert sum(p.numel() for p in llm.parameters()) == PARAMETERS[name] + count
    assert nothing_materialised(llm)


def test_the_default_lora_is_dialoguellms():
    llm = build("llama-2-7b")
    llm.add_lora(LoRA())
    assert sum(p.numel() for p in llm.parameters() if p.requires_grad) == 4_194_304
