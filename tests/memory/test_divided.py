"""Weights divided over processes: the predicted peak beside that of two processes, and what a share is."""

from __future__ import annotations

import pytest

from tests.benchmarks import memory_divided
from tests.benchmarks.memory_divided import COMPARED, PROCESSES
from tests.benchmarks.memory_small import prediction_of
from zoo.backbones import LoRA
from zoo.memory import predict
from zoo.memory.command import processes_of
from zoo.memory.divided import Division
from zoo.memory.prediction import Step, Unpredictable, on_meta
from zoo.models.dialoguellm import DialogueLLM
from zoo.models.merit import Merit

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")
LARGEST_ERROR = 0.12  # of the peak
MEASURED = [name for name in COMPARED if name.startswith("one short row")] + [
    "SFT, full tuning, checkpointing, bf16-mixed",
    "GRPO, LoRA, checkpointing, 16384 words",
]


def test_the_predicted_peak_of_a_process_is_the_measured_one():
    for name, peak in memory_divided.measured(MEASURED).items():
        prediction = prediction_of(COMPARED[name], PROCESSES)
        assert abs(prediction.peak / peak - 1) < LARGEST_ERROR, (name, prediction.peak, peak)
        assert prediction_of(COMPARED[name]).weights > 1.9 * prediction.weights
    assert len(MEASURED) == 9


def system(**options: object) -> DialogueLLM:
    return DialogueLLM(llm="shape:llama-2-7b", **{"lora": LoRA(), "dtype": "bfloat16"} | options)


def test_paper_size_shares():
    """LLaMA-2-7B over 8 processes; rows of LoRA's A (8 x 4096) are one each, and buffers stay whole."""
    one = predict(system(), Step(1, tokens=64))
    eight = predict(system(), Step(1, tokens=64, processes=8))
    buffers = 64 * 4 * 2
    assert eight.parts["frozen weights"] == 2 * 6_738_415_616 // 8 + buffers
    for name in ("trained weights", "gradients", "Adam's moments"):
        assert 8 * eight.parts[name] == one.parts[name], name
    assert (eight.parameters, eight.trained) == (one.parameters, one.trained)
    gathered = Division(on_meta(system()), 8, "bf16-mixed").gathered()
    assert gathered.root.weights == 2 * (32_000 * 4096 + 4096)  # head and last norm
    assert gathered.embeddings.weights == 2 * 32_000 * 4096
    layer = (6_738_415_616 - 2 * 32_000 * 4096 - 4096) // 32
    assert gathered.block.weights == 2 * layer + 4 * 4_194_304 // 32  # with adapters in float32: as it is
    assert (gathered.block.gradients, gathered.block.reduced) == (4 * 4_194_304 // 32, 4 * 4_194_304 // 32)


def test_full_tuning_travels_in_sixteen_bits_and_is_added_up_in_float32():
    built = on_meta(system(lora=None, dtype="float32"))
    block = Division(built, 8, "bf16-mixed").gathered().block
    layer = (6_738_415_616 - 2 * 32_000 * 4096 - 4096) // 32
    assert (block.weights, block.gradients, block.reduced) == (2 * layer, 2 * layer, 4 * layer)
    assert Division(built, 8, "32-true").gathered().block.weights == 4 * layer


def test_rows_that_are_no_multiple_are_rounded_up():
    built = on_meta(system())
    (a,) = {p.shape[0] for name, p in built.named_parameters() if "lora_A" in name}
    assert a == 8
    adapters = [p for name, p in built.named_parameters() if "lora_A" in name]
    assert Division(built, 3, "32-true").held(adapters) == sum(3 * p.shape[1] * 4 for p in adapters)


def test_frozen_encoders_stay_whole():
    merit = Merit(llm="shape:llama-2-7b", vision="shape:clip-vit-large-patch14", template="plain", lora=LoRA())
    one, eight = (predict(merit, Step(1, tokens=64, processes=n)).parts for n in (1, 8))
    assert eight["frozen encoders"] == one["frozen encoders"] > 2**29
    assert eight["frozen weights"] < one["frozen weights"] / 7


def test_quantised_weights_are_not_divided():
    with pytest.raises(Unpredictable, match="weights in nf4 are not divided over processes; use ddp"):
        predict(system(quantize="nf4"), Step(1, processes=2))


# ---- options
def strategy(**options: object) -> dict[str, object]:
    return {"strategy": {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy", "init_args": options}}


def test_how_many_processes_divide():
    assert processes_of(strategy(data_parallel_size=16, tensor_parallel_size=1)) == 16
    assert processes_of({"strategy": "ddp", "devices": 8}) == processes_of({}) == 1


@pytest.mark.parametrize("sizes", [{}, {"data_parallel_size": 2}, {"data_parallel_size": 2, "tensor_parallel_size": 2}])
def test_what_a_fit_would_refuse_has_no_prediction(sizes):
    with pytest.raises(ValueError, match="tensor_parallel_size .*: expected the number of all processes, and 1"):
        processes_of(strategy(**sizes))
