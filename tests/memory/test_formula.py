"""What a decoder layer keeps, beside the tensors that autograd saves in one: the same within a hundredth."""

from __future__ import annotations

import contextlib
from typing import Any
from unittest import mock

import pytest
import torch

from tests.benchmarks.memory_small import ALL, QV, SIZES
from zoo.backbones import SHAPES, LoRA
from zoo.backbones.llm import LLM
from zoo.memory import formula
from zoo.memory.formula import Rows
from zoo.memory.prediction import Step, decoder_of
from zoo.models.dialoguellm import DialogueLLM
from zoo.models.grpo import GRPO

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")
ROWS = Rows(3, 64)
PACKED = Rows(3, 40, answers=3, answer=8)


def saved_bytes(llm: LLM, rows: Rows, autocast: bool) -> int:
    """Bytes of the storages that autograd saves in a forward pass, without the model's own."""
    storages: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    ids = torch.randint(3, 500, (rows.count, rows.prompt))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1:2, :2] = False
    answers = torch.randint(3, 500, (rows.count, rows.answers, rows.answer))
    embedded = llm.embed(ids).detach().requires_grad_()
    with (
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext(),
    ):
        if rows.answers:
            prefix = llm.encode(embedded, mask)
            result = llm._states_before_answers(prefix, answers, torch.ones_like(answers, dtype=torch.bool))
        else:
            result = llm.hidden(embedded, mask)
    own = {t.untyped_storage().data_ptr() for t in (*llm.parameters(), *llm.buffers(), embedded, result)}
    return sum(storage.nbytes() for place, storage in storages.items() if place not in own)


LORA, DROPPED = LoRA(targets=QV), LoRA(r=4, dropout=0.1, targets=ALL)
OPTIONS: dict[str, tuple[dict[str, Any], Rows, bool]] = {
    "LoRA": ({"lora": LORA}, ROWS, False),
    "LoRA on all with dropout": ({"lora": DROPPED}, ROWS, False),
    "LoRA, bfloat16": ({"lora": LORA, "dtype": "bfloat16"}, ROWS, False),
    "LoRA, bfloat16, autocast": ({"lora": LORA, "dtype": "bfloat16"}, ROWS, True),
    "LoRA on all with dropout, bfloat16, autocast": ({"lora": DROPPED, "dtype": "bfloat16"}, ROWS, True),
    "LoRA, eager": ({"lora": LORA, "attention": "eager"}, ROWS, False),
    "LoRA, eager, bfloat16": ({"lora": LORA, "attention": "eager", "dtype": "bfloat16"}, ROWS, False),
    "LoRA, one row, which needs no mask": ({"lora": LORA}, Rows(1, 64), False),
    "LoRA, checkpointing": ({"lora": LORA, "gradient_checkpointing": True}, ROWS, False),
    "LoRA, bfloat16, checkpointing": ({"lora": LORA, "dtype": "bfloat16", "gradient_checkpointing": True}, ROWS, False),
    "full": ({"lora": None}, ROWS, False),
    "full, autocast": ({"lora": None}, ROWS, True),
    "LoRA, packed": ({"lora": LORA}, PACKED, False),
    "LoRA on all, packed, bfloat16": ({"lora": DROPPED, "dtype": "bfloat16"}, PACKED, False),
    "full, packed": ({"lora": None}, PACKED, False),
}


@pytest.mark.parametrize("keys", [6, 2], ids=["one key per query", "grouped"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_layer_keeps_what_autograd_saves(name, keys):
    options, rows, autocast = OPTIONS[name]
    saved, predicted, trained = [], [], []
    for layers in (2, 3):
        torch.manual_seed(0)
        sizes = SIZES | {"num_hidden_layers": layers, "num_key_value_heads": keys}
        with mock.patch.dict(SHAPES, {"small": ("llama", sizes)}):
            if rows.answers:
                system = GRPO(llm="shape:small", num_generations=3, max_new_tokens=8, reward_funcs=[len], **options)
            else:
                system = DialogueLLM(llm="shape:small", **options)
            system.configure_model()
        step = Step(rows.count, precision="bf16-mixed" if autocast else "32-true", device_type="cpu")
        model = decoder_of(system, step)
        saved.append(saved_bytes(system.llm, rows, autocast))
        layer = system.llm.causal_lm.get_decoder().layers[1]
        matrices = [p for p in layer.parameters() if p.requires_grad and p.ndim == 2]
        trained.append(2 * sum(p.numel() for p in matrices) if autocast else 0)  # copies of autocast
        predicted.append(formula.activations(model, rows)[0])
    expected = predicted[1] - predicted[0] + trained[0]
    assert saved[1] - saved[0] == pytest.approx(expected, rel=0.01)
