"""The line at the beginning of a fit on a GPU, and what is refused there; a card is what it says of itself."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy

from tests.builders import make_home
from tests.runs_helper import QUIET, fit, flags, refused
from zoo.backbones import LLM, LoRA
from zoo.memory import check_fit, start
from zoo.memory.start import refuse_dtype
from zoo.models.baselines import Majority
from zoo.models.dialoguellm import DialogueLLM

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")
GIB = 2**30


def trainer(device: str = "cuda", precision: str = "bf16-mixed") -> SimpleNamespace:
    strategy = SingleDeviceStrategy(device=torch.device(device, 0) if device == "cuda" else torch.device(device))
    return SimpleNamespace(strategy=strategy, precision=precision, accumulate_grad_batches=1)


def test_the_line_is_printed_in_a_fit(tmp_path, monkeypatch, capsys):
    make_home(tmp_path, (3, 1, 1))
    asked = []

    def check(model: DialogueLLM, trainer: Trainer, batch_size: int) -> str:
        asked.append((batch_size, trainer.accumulate_grad_batches, hasattr(model, "llm")))
        return "memory: some"

    monkeypatch.setattr(start, "check_fit", check)
    options = {"model": "CausalLM", "model__llm": tmp_path / "llm", "data": "MELD", "data__root": tmp_path / "meld"}
    fit(tmp_path, *flags(**options), "--data.batch_size=3", "--trainer.max_steps=1")
    assert asked == [(3, 1, False)] and "\nmemory: some\n" in capsys.readouterr().out


@pytest.fixture
def card(monkeypatch):
    """A card of 24 GB whose numbers a test may change."""
    properties = SimpleNamespace(name="Card", major=8, minor=9, total_memory=int(23.5 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return properties


def system(**options: object) -> DialogueLLM:
    return DialogueLLM(llm="shape:llama-2-7b", lora=LoRA(), **{"dtype": "bfloat16"} | options)


def test_one_line_with_the_peak_and_the_card(card):
    assert check_fit(system(gradient_checkpointing=True, max_length=512), trainer(), 1) == (
        "memory: expected peak 12.9 GiB of 23.5 GiB on Card with prompts of 512 tokens"
    )
    said = check_fit(system(max_length=512), trainer(), 16)
    assert said is not None and said.endswith(
        "it may not fit: zoo memory, with the same options and --card, says what to change"
    )


def test_weights_that_do_not_fit_are_refused(card):
    with pytest.raises(ValueError, match=r"weights alone take 25\.1 GiB, and Card has 23\.5 GiB; give --model\.dtype"):
        check_fit(system(dtype="float32"), trainer(), 1)
    card.total_memory = int(39.4 * GIB)
    assert check_fit(system(dtype="float32"), trainer(), 1)


def test_processes_that_divide_the_weights_hold_their_share(card):
    """25.1 GiB of weights are no reason to refuse four cards of 24 GB."""
    four = trainer()
    four.strategy, four.world_size = ModelParallelStrategy(data_parallel_size=4, tensor_parallel_size=1), 4
    four.strategy.parallel_devices = [torch.device("cuda", i) for i in range(4)]
    four.strategy.cluster_environment = SimpleNamespace(local_rank=lambda: 0)
    said = check_fit(system(dtype="float32", gradient_checkpointing=True, max_length=512), four, 1)
    assert said is not None and 8 < float(re.search(r"expected peak ([\d.]+) GiB of 23\.5 GiB on Card", said)[1]) < 14


def test_nothing_is_said_on_a_cpu(card):
    assert check_fit(system(dtype="float32"), trainer("cpu"), 1) is None


def test_what_cannot_be_predicted_is_trained_all_the_same(card):
    assert check_fit(Majority(), trainer(), 1) == (
        "memory: no prediction (Majority has no language model, image encoder or sound encoder: there is nothing to "
        "predict)"
    )


@pytest.mark.parametrize(("dtype", "precision"), [("bfloat16", "32-true"), ("float32", "bf16-mixed")])
def test_a_card_without_bfloat16_is_told_what_to_use(dtype, precision):
    with pytest.raises(
        ValueError, match=r"T4 \(compute capability 7\.5\) has no bfloat16.*float16 with --trainer\.precision 16-mixed"
    ):
        refuse_dtype(system(dtype=dtype), precision, "T4", (7, 5))
    refuse_dtype(system(dtype=dtype), precision, "A100", (8, 0))


def test_older_cards_take_the_other_dtypes():
    refuse_dtype(system(dtype="float16"), "16-mixed", "T4", (7, 5))
    refuse_dtype(system(dtype="float32"), "32-true", "T4", (7, 5))


def test_a_fit_asks_before_it_reads_weights(tmp_path, monkeypatch):
    make_home(tmp_path, (3, 1, 1))

    def no_weights(self: LLM, *args: object) -> None:
        raise AssertionError("weights were read")

    def old_card(model: DialogueLLM, *args: object) -> None:
        refuse_dtype(model, "bf16-mixed", "T4", (7, 5))

    monkeypatch.setattr(LLM, "_load", no_weights)
    monkeypatch.setattr(start, "check_fit", old_card)
    options = {"model": "CausalLM", "model__llm": tmp_path / "llm", "data": "MELD", "data__root": tmp_path / "meld"}
    said = refused("fit", *QUIET, *flags(**options))
    assert said.startswith("zoo fit: T4 (compute capability 7.5) has no bfloat16")
    assert not list(Path("lightning_logs").glob("*"))  # no run folder is left behind
