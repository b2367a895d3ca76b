"""What is trained is float32, whatever the frozen model is, so that small steps of AdamW are not rounded away."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import load_file, save_file

from tests.builders import make_corpus, make_llm
from tests.runs_helper import fit, flags, logged, refused
from zoo.backbones import LLM, LoRA
from zoo.rl import Answer
from zoo.training.checkpointing import CheckpointedModule
from zoo.training.grpo import GRPOModule, RewardBatch

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")
MIXED_16 = (
    "--trainer.plugins+=lightning.pytorch.plugins.MixedPrecision",
    "--trainer.plugins.precision=16-mixed",
    "--trainer.plugins.device=cpu",
)
PRECISIONS = {
    "32-true": ("--trainer.precision=32-true",),
    "bf16-mixed": ("--trainer.precision=bf16-mixed",),
    "16-mixed": (
        *MIXED_16,
        "--model.dtype=float16",
    ),  # Lightning takes bf16-mixed for it on a CPU, but not where the plugin is named
}


def uneven(answer: Answer) -> float:
    """A reward that bfloat16 would round: 2.76875 to 2.765625."""
    return 2.76875 + sum(answer.text.encode()) % 7 / 160


class Dtypes(Callback):
    """Notes what a fit trains, and with which dtypes."""

    first: ClassVar[dict[str, torch.Tensor]] = {}
    dtypes: ClassVar[dict[str, set[torch.dtype]]] = {}
    moved: ClassVar[float] = 0.0
    rewards: ClassVar[list[float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        Dtypes.first = {n: p.detach().clone() for n, p in pl_module.named_parameters() if p.requires_grad}
        Dtypes.dtypes, Dtypes.rewards = {"adapters": {p.dtype for p in Dtypes.first.values()}}, []
        if isinstance(pl_module, GRPOModule):
            rewards = pl_module.rewards

            def note(groups: Any) -> RewardBatch:
                batch = rewards(groups)
                Dtypes.dtypes["rewards"] = {batch.total.dtype, *(v.dtype for v in batch.parts.values())}
                Dtypes.rewards += batch.total.flatten().tolist()
                return batch

            pl_module.rewards = note

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        (optimizer,) = trainer.optimizers
        moments = [v for state in optimizer.state.values() for k, v in state.items() if k.startswith("exp_avg")]
        Dtypes.dtypes["moments"] = {m.dtype for m in moments}
        Dtypes.dtypes["base"] = {p.dtype for n, p in pl_module.llm.named_parameters() if ".lora_" not in n}
        Dtypes.dtypes["inv_freq"] = {b.dtype for n, b in pl_module.llm.named_buffers() if n.endswith("inv_freq")}
        parameters = dict(pl_module.named_parameters())
        pairs = [(v, parameters[n]) for n, v in Dtypes.first.items() if "lora_A" in n]
        different = sum(int((a != b).sum()) for a, b in pairs)
        Dtypes.moved = different / sum(a.numel() for a, _ in pairs)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("precision")
    make_llm(home / "llm")
    make_corpus(home / "meld", (4, 1, 1))
    return home


@pytest.fixture(scope="module")
def options(home):
    def options(model: str, **more: object) -> list[str]:
        base = {"model": model, "model__llm": home / "llm", "data": "MELD", "data__root": home / "meld"}
        base |= {"model__lora__r": 4, "model__dtype": "bfloat16", "trainer__limit_val_batches": 0}
        if model == "GRPO":
            base |= {"model__reward_funcs+": "tests.training.test_precision.uneven", "model__max_new_tokens": 2}
        return flags(**base | more)

    return options


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", ["GRPO", "CausalLM"])
def test_small_steps_move_what_is_trained(model, precision, options, tmp_path):
    callback = "--trainer.callbacks+=tests.training.test_precision.Dtypes"
    more = {"model__lr": 5e-6, "model__warmup": 0, "model__schedule": "constant", "trainer__max_steps": 30}
    run = fit(tmp_path, *options(model, **more), *PRECISIONS[precision], callback, "--trainer.gradient_clip_val=1.0")
    float32 = {torch.float32}
    base = {torch.float16 if precision == "16-mixed" else torch.bfloat16}
    expected = {"adapters": float32, "moments": float32, "base": base, "inv_freq": float32}
    assert Dtypes.dtypes == expected | ({"rewards": float32} if model == "GRPO" else {})
    assert Dtypes.moved > 0.99
    assert len(logged(run, "train/loss")) == 30
    if model == "GRPO":  # as float32 has them, not as bfloat16
        assert {round((r - 2.76875) * 160, 3) for r in Dtypes.rewards} <= set(range(7))


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
@pytest.mark.parametrize("model", ["GRPO", "CausalLM"])
def test_precisions_that_round_steps_away_are_refused(model, precision, options):
    message = refused("fit", *options(model), f"--trainer.precision={precision}")
    assert f"--trainer.precision {precision} keeps what is trained in half precision" in message
    assert "use bf16-mixed" in message


def test_two_half_precisions_at_once_are_refused(options):
    message = refused("fit", *options("GRPO"), *MIXED_16)
    assert "16-mixed computes in float16" in message and "--model.dtype float16" in message


def test_a_half_precision_model_is_not_trained_whole(options):
    message = refused("fit", *options("CausalLM", model__lora="null"))
    assert "parameters in bfloat16 would be trained" in message and "--model.dtype float32" in message


def test_gradients_are_clipped_after_their_scale_is_taken_off(options, tmp_path):
    """A norm that was judged before would be thousands of times too large, and the step as much too small."""
    from tests import test_reinforced

    test_reinforced.Norms.found.clear()
    fit(
        tmp_path,
        *options("GRPO", trainer__max_steps=2, trainer__gradient_clip_val=0.01),
        *PRECISIONS["16-mixed"],
        "--trainer.callbacks+=tests.test_reinforced.Norms",
    )
    assert 0.005 < max(test_reinforced.Norms.found) <= 0.0101


def test_the_kept_reference_has_no_dropout(home):
    llm = LLM(str(home / "llm"))
    llm.add_lora(LoRA(r=4, dropout=0.5))
    for name, parameter in llm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    llm.keep_reference()
    llm.train()
    ids = torch.tensor([[5, 6, 7, 8]])
    prefix = llm.encode(ids, torch.ones_like(ids, dtype=torch.bool))
    answers, mask = torch.tensor([[[9, 10]]]), torch.ones(1, 1, 2, dtype=torch.bool)
    with torch.no_grad(), llm.reference():
        first, second = (llm.logprobs(prefix, answers, mask) for _ in range(2))
    assert torch.equal(first, second) and llm.training
    with torch.no_grad():
        assert not torch.equal(llm.logprobs(prefix, answers, mask), llm.logprobs(prefix, answers, mask))


class Alone(CheckpointedModule):
    """A language model that stays in its file until it is divided."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def build(self) -> None:
        self.llm = LLM(str(self.folder), mapped=True)

    def backbones(self) -> dict[str, LLM]:
        return {"llm": self.llm}


def test_mapped_weights_take_values_that_the_dtype_of_their_file_does_not_have(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "llama")
    weights = load_file(folder / "model.safetensors")
    rounded = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_file(rounded, folder / "model.safetensors", {"format": "pt"})
    model = Alone(folder)
    model.configure_model()
    name = "model.layers.0.mlp.up_proj.weight"
    assert model.state_dict()[f"llm.model.{name}"].dtype == torch.bfloat16
    assert not torch.equal(rounded[name].float(), weights[name])
    model.take({f"llm.model.{name}": weights[name]})
    assert torch.equal(model.state_dict()[f"llm.model.{name}"], weights[name])
