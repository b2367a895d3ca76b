"""zoo.backbones.quantization: frozen weights in 4 and 8 bits, adapters on top, and what cannot be done with them."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from tests.builders import make_corpus, make_llm
from tests.data.miniature import LABELS, line
from tests.runs_helper import checkpoint, fit, flags, logged, refused, rows, zoo
from zoo.backbones import LLM, LoRA
from zoo.backbones.quantization import quantized_bytes
from zoo.backbones.tiny import make_folder
from zoo.memory.prediction import Step, predict
from zoo.models.dialoguellm import DialogueLLM

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")
KINDS = ("nf4", "int8")
LEVELS = [  # the 4-bit normal floats, QLoRA, appendix E
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.09105, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.562617, 0.7229568, 1.0,
]  # fmt: skip
ADAPTERS = LoRA(4, 8, 0.0, r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj")
IDS = torch.tensor([[1, 40, 77, 130, 9, 255, 300, 41], [1, 5, 6, 7, 8, 9, 10, 11]])


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("quantised")
    texts = [f"{line(random.Random(i), label)} emotion: {label}" for label in LABELS for i in range(20)]
    make_folder(home / "llm", texts, vocab_size=420, hidden_size=64, layers=2, heads=2, intermediate_size=128)
    make_corpus(home / "meld", (4, 2, 2))
    return home


def options(home: Path, **more: object) -> list[str]:
    lora = {f"model__lora__{k}": v for k, v in vars(ADAPTERS).items()}
    data = {"data": "MELD", "data__root": home / "meld", "data__batch_size": 8, "trainer__max_steps": 6}
    model = {"model": "DialogueLLM", "model__llm": home / "llm", "model__template": "short", "model__window": 0}
    return list(flags(**model | {"model__lr": 1e-2} | lora | data | more))


def linears(llm: LLM) -> dict[str, nn.Module]:
    return {n: m for n, m in llm.causal_lm.named_modules() if n.endswith("_proj")}


# ---- what a layer computes
def rounded_to_normal_floats(weight: Tensor) -> Tensor:
    """Blocks of 64 by their largest magnitude, each number the nearest of the 16 levels."""
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    levels = torch.tensor(LEVELS)
    return (levels[(blocks / scale).unsqueeze(2).sub(levels).abs().argmin(2)] * scale).view_as(weight)


def rounded_to_bytes(rows: Tensor) -> Tensor:
    """Rows in 127 steps up to their largest magnitude."""
    scale = rows.abs().amax(-1, keepdim=True) / 127
    return (rows / scale).round() * scale


@pytest.mark.parametrize("kind", KINDS)
def test_layers_multiply_by_rounded_weights(kind, home):
    plain, quantised = LLM(str(home / "llm")), LLM(str(home / "llm"), quantize=kind)
    generator = torch.Generator().manual_seed(0)
    assert linears(plain).keys() == linears(quantised).keys() and len(linears(plain)) == 14
    for name, layer in linears(plain).items():
        x = torch.randn(5, layer.in_features, generator=generator)
        if kind == "nf4":  # the scales of the blocks are rounded, too: to about a hundredth
            expected, tolerance = x @ rounded_to_normal_floats(layer.weight.detach()).T, 0.02
        else:
            stored, scale = linears(quantised)[name].weight.data, linears(quantised)[name].weight.SCB
            rounded = rounded_to_bytes(layer.weight.detach())
            # rounded after it passed through half precision
            torch.testing.assert_close(stored * scale[:, None] / 127, rounded, rtol=0, atol=1e-3)
            expected, tolerance = rounded_to_bytes(x) @ rounded.T, 0.01
        made, exact = linears(quantised)[name](x), x @ layer.weight.T
        assert (made - expected).norm() < tolerance * expected.norm(), name
        assert kind == "int8" or (made - exact).norm() > 2 * (made - expected).norm()  # not by the weights themselves


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_that_are_stored(kind, home):
    plain, quantised = LLM(str(home / "llm")), LLM(str(home / "llm"), quantize=kind)
    for name, layer in linears(quantised).items():
        weight = layer.weight
        stored = weight.numel() * weight.element_size()
        if kind == "nf4":
            state = weight.quant_state
            stored += state.absmax.numel() + 4 * state.state2.absmax.numel()
        else:
            stored += 4 * weight.SCB.numel()
        assert stored == quantized_bytes(linears(plain)[name], kind)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind, least", [("nf4", 0.9), ("int8", 0.999)])
def test_gradients_of_adapters_are_near_those_on_whole_weights(kind, least, dtype, home):
    gradients = []
    for quantize in (None, kind):
        llm = LLM(str(home / "llm"), dtype=dtype, quantize=quantize)
        torch.manual_seed(1)
        llm.add_lora(ADAPTERS)
        hidden = llm.hidden(llm.embed(IDS), torch.ones_like(IDS, dtype=torch.bool))
        cross_entropy(llm.head(hidden[:, :-1]).flatten(0, 1), IDS[:, 1:].flatten()).backward()
        trained = [p for p in llm.parameters() if p.requires_grad]
        assert len(trained) == 28 and all(p.dtype == torch.float32 for p in trained)
        gradients.append(torch.cat([p.grad.flatten() for p in trained]))
    assert cosine_similarity(*gradients, dim=0) > least


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_answers_are_scored_as_they_were_sampled(kind, home):
    llm = LLM(str(home / "llm"), quantize=kind)
    llm.add_lora(ADAPTERS)
    llm.eval()
    with torch.no_grad():
        for p in (p for p in llm.parameters() if p.requires_grad):
            p.normal_(std=0.1)
        prompts = llm.encode(IDS, torch.ones_like(IDS, dtype=torch.bool))
        answers = llm.sample(prompts, 2, max_new_tokens=5, temperature=1.0)
        again = llm.logprobs(prompts, answers.ids, answers.mask)
    torch.testing.assert_close(again[answers.mask], answers.logprobs[answers.mask], rtol=0, atol=1e-4)


# ---- runs
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_trains_adapters_and_stores_nothing_else(kind, home, tmp_path):
    """Its losses are near those on whole weights, and its checkpoint answers as it did."""
    plain = logged(fit(tmp_path / "plain", *options(home)), "train/loss")
    run = fit(tmp_path / "run", *options(home, model__quantize=kind))
    losses = logged(run, "train/loss")
    assert losses == pytest.approx(plain, abs=0.15 if kind == "nf4" else 0.02) and losses != plain
    assert losses[-1] < losses[0]
    content = checkpoint(run, "best")
    assert all(".lora_" in name for name in content["state_dict"])
    assert content["zoo"]["bases"]["llm"]["quantize"] == kind
    for _ in range(2):
        zoo("test", f"--ckpt_path={run}", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
        answers = [row["scores"] for row in rows(run)]
    assert answers == [row["scores"] for row in rows(run)] and len(answers) > 5
    message = refused("test", f"--ckpt_path={run}", "--model.quantize=null", "--trainer.accelerator=cpu")
    assert f"with quantize {kind}, but here it is None; give --model.quantize {kind}" in message


def test_a_run_on_whole_weights_is_not_evaluated_on_rounded_ones(home, tmp_path):
    run = fit(tmp_path, *options(home))
    message = refused("test", f"--ckpt_path={run}", "--model.quantize=nf4", "--trainer.accelerator=cpu")
    assert "with quantize None, but here it is nf4; give --model.quantize null" in message


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_adapter_is_exported_and_whole_weights_are_not(kind, home, tmp_path):
    run = fit(tmp_path / "run", *options(home, model__quantize=kind))
    message = refused("export", f"--ckpt_path={run}", f"--out={tmp_path / 'merged'}", "--merge")
    assert f"was quantised ({kind}), and rounded weights are not exported" in message
    assert not (tmp_path / "merged").exists()
    zoo("export", f"--ckpt_path={run}", f"--out={tmp_path / 'adapter'}")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    trained = checkpoint(run, "best")["state_dict"]
    assert len(stored) == len(trained)
    assert sum(v.double().sum() for v in stored.values()) == sum(v.double().sum() for v in trained.values())
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (4, 8)


# ---- what is refused
def test_without_adapters_there_is_nothing_to_train(home):
    assert "nothing to train" in refused("fit", *options(home, model__quantize="nf4", model__lora="null"))


def test_a_quantised_weight_cannot_be_trained(home):
    message = refused("fit", *options(home, model__quantize="int8", model__train=r"['.*']"))
    assert "which is quantised; train adapters, or leave quantize out" in message


@pytest.mark.parametrize(
    "package, there, message",
    [
        ("bitsandbytes", False, "needs the package bitsandbytes: pip install"),
        ("kernels", True, "the package kernels is installed, with which bitsandbytes downloads compiled code"),
    ],
)
def test_the_package_must_be_there_and_fetch_no_code(package, there, message, home, monkeypatch):
    find = importlib.util.find_spec
    answer = importlib.util.spec_from_loader(package, None) if there else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: answer if name == package else find(name, *a))
    with pytest.raises(ValueError, match=message):
        LLM(str(home / "llm"), quantize="nf4")


def test_rows_without_whole_blocks_are_not_rounded_to_four_bits(tmp_path):
    with pytest.raises(ValueError, match="are a multiple of 64, and q_proj in .* has 32; use quantize int8"):
        LLM(str(make_llm(tmp_path / "llm")), quantize="nf4")
    LLM(str(tmp_path / "llm"), quantize="int8")


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_adapters_are_not_merged_for_sampling(kind, home):
    with pytest.raises(ValueError, match="merge_adapters adds adapters to weights, which quantised ones cannot take"):
        LLM(str(home / "llm"), quantize=kind, merge_adapters=True)


def test_other_weights_are_not_loaded_over_quantised_ones(home):
    llm = LLM(str(home / "llm"), quantize="nf4")
    state = LLM(str(home / "llm")).state_dict()
    with pytest.raises(RuntimeError, match="q_proj.weight is quantised here and cannot be replaced"):
        llm.load_state_dict(state, strict=False)  # the layer itself refuses, where nobody asks for strictness


# ---- memory
@pytest.mark.parametrize("kind, per_number", [("nf4", 0.516), ("int8", 1.001)])
def test_predicted_memory_of_a_large_model(kind, per_number):
    """6.5 of LLaMA-2-7B's 6.7 billion numbers are in the linear layers of its decoder."""
    options = {"llm": "shape:llama-2-7b", "dtype": "bfloat16", "lora": LoRA()}
    made = {q: predict(DialogueLLM(**options, quantize=q), Step(1)) for q in (None, kind)}
    numbers = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    saved = made[None].parts["frozen weights"] - made[kind].parts["frozen weights"]
    assert saved == pytest.approx((2 - per_number) * numbers, rel=1e-3)
    # beside the activations, one weight at a time is multiplied by in bfloat16
    whole = made[kind].parts["working memory"] - made[None].parts["working memory"]
    assert whole in (0, 2 * 4096 * 11008)
