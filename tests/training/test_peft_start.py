"""PEFT folders, as peft itself writes them, as the start of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.builders import make_home
from tests.runs_helper import QUIET, checkpoint, fit, flags, refused, same, zoo
from zoo import checkpoints

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")

TARGETS = r"model\.layers\.\d+\.self_attn\.(q|v)_proj"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A corpus, a language model, and adapters far from zero that peft saved."""
    home = make_home(tmp_path_factory.mktemp("peft"), (1, 1, 1))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(home / "llm", dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    for name, p in adapted.named_parameters():
        if "lora_" in name:
            p.data = 0.1 * torch.randn(p.shape)
    adapted.save_pretrained(home / "adapter")
    return home


@pytest.fixture
def adapter(home, tmp_path) -> Path:
    return shutil.copytree(home / "adapter", tmp_path / "adapter")


def options(home: Path, start: Path, **more: object) -> list[str]:
    base = {"model": "GRPO", "model__llm": home / "llm", "data": "MELD", "data__root": home / "meld"}
    base |= {"model__lora__r": 4, "model__lora__alpha": 8, "model__lora__targets": TARGETS, "model__max_new_tokens": 2}
    base |= {"model__reward_funcs+": "tests.runs_helper.checksum", "model__start_from": start, "data__batch_size": 7}
    return flags(**base | {"trainer__max_steps": 2, "trainer__limit_val_batches": 0} | more)


def test_a_run_starts_from_adapters_of_peft(home, adapter, tmp_path):
    """It answers as peft's model does, stays close to it, and needs the folder no more."""
    run = fit(tmp_path, *options(home, adapter, model__lr=0, model__objective__beta=0.04))
    state, stored = checkpoint(run)["state_dict"], load_file(adapter / "adapter_model.safetensors")
    assert len(stored) == 8
    for name, tensor in stored.items():
        for copy in ("default", "reference"):
            assert torch.equal(state[f"llm.model.{name.removesuffix('.weight')}.{copy}.weight"], tensor)
    ids = torch.arange(5, 15)[None]
    model = AutoModelForCausalLM.from_pretrained(home / "llm", dtype=torch.float32)
    without = model(ids).logits
    expected = PeftModel.from_pretrained(model, adapter).eval()(ids).logits
    shutil.rmtree(adapter)
    module = checkpoints.load(str(run))
    torch.testing.assert_close(module.eval().llm.causal_lm(ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert (without - expected).abs().max() > 0.01
    zoo("test", f"--ckpt_path={run}/checkpoints/last.ckpt")


def test_what_is_exported_may_be_started_from(home, adapter, tmp_path):
    first = fit(tmp_path / "1", *options(home, adapter, model__lr=0.01))
    zoo("export", f"--ckpt_path={first}/checkpoints/last.ckpt", f"--out={tmp_path / 'out'}")
    second = fit(tmp_path / "2", *options(home, tmp_path / "out", model__lr=0))
    assert same(checkpoint(first)["state_dict"], checkpoint(second)["state_dict"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 8}, "r 8 and alpha 8, but this model has r 4 and alpha 8; give --model.lora.r 8"),
        ({"lora_alpha": 16}, "r 4 and alpha 16"),
        ({"use_rslora": True}, "use_rslora True, which plain LoRA does not have"),
        ({"use_dora": True, "bias": "all"}, "use_dora True, bias 'all'"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"peft_type": "IA3"}, "of the kind IA3, expected LORA"),
    ],
)
def test_other_adapters_are_refused(config, message, home, adapter):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    assert message in refused("fit", *QUIET, *options(home, adapter))


def test_other_layers_are_refused(home, adapter):
    wider = r"model\.layers\.\d+\.self_attn\.(q|k|v)_proj"
    message = refused("fit", *QUIET, *options(home, adapter, model__lora__targets=wider))
    assert "4 tensors are missing" in message and "k_proj" in message and "0 are left over" in message
    narrower = r"model\.layers\.\d+\.self_attn\.q_proj"
    message = refused("fit", *QUIET, *options(home, adapter, model__lora__targets=narrower))
    assert "0 tensors are missing" in message and "4 are left over" in message


def test_without_adapters_of_its_own(home, adapter):
    given = [o for o in options(home, adapter) if not o.startswith("--model.lora")]
    assert "this model has none; train them further with --model.lora" in refused("fit", *QUIET, *given)


def test_files_that_cannot_be_read(home, adapter):
    weights = adapter / "adapter_model.safetensors"
    whole = load_file(weights)
    save_file({name: tensor[:, :-1].contiguous() for name, tensor in whole.items()}, weights)
    assert "of another shape" in refused("fit", *QUIET, *options(home, adapter))
    save_file(whole | {next(iter(whole)): torch.full_like(next(iter(whole.values())), float("nan"))}, weights)
    assert "NaN or infinite" in refused("fit", *QUIET, *options(home, adapter))
    weights.write_bytes(weights.read_bytes()[:200])
    assert "could not be read" in refused("fit", *QUIET, *options(home, adapter))
    weights.rename(adapter / "adapter_model.bin")
    message = refused("fit", *QUIET, *options(home, adapter))
    assert "adapter_model.safetensors; pickled weights such as a .bin are not read" in message
