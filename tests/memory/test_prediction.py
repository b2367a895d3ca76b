"""The formula beside what a real step of a small system keeps alive, and what it makes of paper-size systems."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.benchmarks import memory_divided, memory_paper, memory_small
from tests.benchmarks.memory_small import CASES, LiveBytes, compare
from tests.benchmarks.result_files import load
from zoo.backbones import AUDIO_SHAPES, SHAPES, VISION_SHAPES, LoRA
from zoo.backbones.patch_vision import PATCH_SHAPES
from zoo.backbones.shapes import HUB_SHAPES
from zoo.backbones.tiny_image_text import make_image_text_folder
from zoo.memory import formula, predict
from zoo.memory.formula import Rows
from zoo.memory.prediction import Step, Unpredictable, decoder_of, on_meta
from zoo.models.baselines import Majority
from zoo.models.dialoguellm import DialogueLLM
from zoo.models.emotion_qwen import EmotionQwen
from zoo.models.image_text import ImageText
from zoo.models.instructerc import InstructERC

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")
LARGEST_ERROR = 0.1  # of the peak
COMPARED = [
    "SFT, LoRA on q and v",
    "SFT, LoRA on q and v, checkpointing",
    "SFT, LoRA on all, dropout",
    "SFT, LoRA, bfloat16, bf16-mixed",
    "SFT, LoRA, eager attention",
    "SFT, LoRA, whole text in the loss",
    "SFT, full tuning",
    "SFT, full tuning, checkpointing, bf16-mixed",
    "GRPO, LoRA",
    "GRPO, LoRA, checkpointing",
    "GRPO, LoRA, checkpointing, 16384 words",
    "GRPO, LoRA, checkpointing, 4 batches",
    "FARCER, projection alone",
    "MERIT, LoRA and projections",
]


# ---- the formula and the truth
@pytest.mark.parametrize("name", COMPARED)
def test_the_predicted_peak_is_the_measured_one(name):
    prediction, peak = compare(name)
    ratio = prediction.peak / peak
    print(f"{name}: predicted {prediction.peak / 2**20:.1f} MiB, measured {peak / 2**20:.1f} MiB, ratio {ratio:.2f}")
    assert abs(ratio - 1) < LARGEST_ERROR
    assert peak > 2 * prediction.weights  # activations matter


def test_live_bytes_are_counted_until_the_last_reference_is_gone():
    with LiveBytes(100) as live:
        a = torch.ones(1000)  # 4000 bytes
        b = a.view(10, 100)  # the same storage
        assert live.now == 4100
        c = b * 2
        assert live.now == live.peak == 8100
        del a, c
        assert live.now == 4100
        del b
        assert live.now == 100
    assert live.peak == 8100


def test_every_case_of_the_table_is_one_of_the_formula():
    assert set(COMPARED) <= set(CASES) and len(CASES) >= 15


# ---- options that cost or save
STEP = Step(8, tokens=1024)


def peak_of(step: Step = STEP, **options: object) -> int:
    return predict(DialogueLLM(llm="shape:llama-2-7b", **{"lora": LoRA(), "dtype": "bfloat16"} | options), step).peak


def test_paper_size_weights_and_state():
    """LLaMA-2-7B: two bytes of each weight; LoRA on q and v with r 8: 4,194,304 numbers in float32, four times."""
    prediction = predict(DialogueLLM(llm="meta-llama/Llama-2-7b-hf", lora=LoRA(), dtype="bfloat16"), Step(1, tokens=64))
    assert (prediction.parameters, prediction.trained) == (6_738_415_616 + 4_194_304, 4_194_304)
    buffers = 64 * 4 * 2  # frequencies of the rotary embedding, twice in transformers
    assert prediction.parts["frozen weights"] == 2 * 6_738_415_616 + buffers
    assert prediction.parts["trained weights"] == prediction.parts["gradients"] == 4 * 4_194_304
    assert prediction.parts["Adam's moments"] == 8 * 4_194_304
    assert prediction.weights == 2 * 6_738_415_616 + buffers + 4 * 4_194_304
    assert prediction.notes == ()


def test_what_saves_memory_is_predicted_to():
    full = peak_of()
    assert peak_of(gradient_checkpointing=True) < 0.7 * full
    assert peak_of(Step(1, accumulate=8, tokens=1024)) < 0.7 * full
    assert peak_of(Step(8, tokens=512)) < 0.8 * full
    assert peak_of(dtype="float32") > 1.5 * full
    assert peak_of(lora=None, dtype="float32") > 16 * 6_738_415_616  # weights, gradients, two moments
    assert peak_of(attention="eager") > 1.8 * full


def test_gradients_stay_while_batches_are_accumulated():
    small = Step(1, tokens=16)
    once = predict(DialogueLLM(llm="shape:llama-2-7b"), small).moments
    several = predict(DialogueLLM(llm="shape:llama-2-7b"), dataclasses.replace(small, accumulate=4)).moments
    assert several["backward pass"] - once["backward pass"] == 4 * 6_738_415_616


def test_two_prompts_of_a_sample_are_kept_together():
    def kept(impact: float) -> int:
        system = InstructERC(llm="shape:llama-2-7b", lora=LoRA(), dtype="bfloat16", impact=impact)
        return predict(system, Step(2, tokens=256)).parts["activations"]

    assert kept(1.0) == 2 * kept(0.0)


def test_adapters_on_some_layers_cost_in_these_alone():
    def layers(targets: str) -> list[int]:
        step = Step(2, tokens=64)
        system = on_meta(DialogueLLM(llm="shape:llama-2-7b", lora=LoRA(targets=targets), dtype="bfloat16"))
        model = decoder_of(system, step)
        return [formula.saved_by_layer(model, layer, Rows(2, 64)) for layer in model.layers]

    saved = layers(r"model\.layers\.(30|31)\.mlp\.down_proj")
    assert len(set(saved[:30])) == 1 and saved[30] == saved[31] > saved[0]
    # the adapter's input in float32, as wide as the MLP, and its 8 numbers between A and B
    assert saved[31] - saved[0] == 2 * 64 * 4 * (11008 + 8)


# ---- where sizes come from
def test_well_known_hub_ids_name_shapes():
    known = {*SHAPES, *VISION_SHAPES, *AUDIO_SHAPES, *PATCH_SHAPES}
    assert set(HUB_SHAPES.values()) <= known and all("/" in hub_id for hub_id in HUB_SHAPES)


def test_a_hub_model_of_several_parts_has_the_shape_of_the_part_that_is_read(tmp_path, monkeypatch):
    """The table knows the tower of Qwen2.5-VL alone; whoever reads the whole looks at its config."""
    whole = "Qwen/Qwen2.5-VL-7B-Instruct"
    tower = on_meta(EmotionQwen(llm="shape:qwen2.5-7b", vision=whole, train=["compressor.*"])).vision
    assert sum(p.numel() for p in tower.parameters()) == 631_975_680
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="Qwen2.5-VL-7B-Instruct is no folder here"):
        on_meta(ImageText(vlm=whole))
    folder = make_image_text_folder(tmp_path / "vlm")
    said = predict(ImageText(vlm=str(folder)), Step(1))
    assert said.parameters == sum(v.numel() for v in load_file(folder / "model.safetensors").values())
    assert any("activations of ImageText, for which there is no formula" in note for note in said.notes)


def test_an_unknown_hub_id_asks_for_a_shape():
    with pytest.raises(FileNotFoundError, match=r"nobody/nothing.*--model\.llm shape:NAME, one of llama-2-7b"):
        predict(DialogueLLM(llm="nobody/nothing"), Step(1))


def test_the_system_is_left_as_it_was():
    system = DialogueLLM(llm="shape:llama-2-7b")
    predict(system, Step(1))
    assert not hasattr(system, "llm") and not list(system.parameters()) and "device" not in system.make_llm.keywords


def test_a_system_without_a_network_has_no_prediction():
    with pytest.raises(Unpredictable, match="nothing to predict"):
        predict(Majority(), Step(1))


def test_small_shapes_are_known_inside_alone():
    with memory_small.small_shapes():
        assert "small" in SHAPES
    assert "small" not in SHAPES


# ---- the documentation
DOCUMENT = Path(__file__).parents[2] / "docs" / "gpu.md"


def test_the_tables_of_small_steps_are_what_is_predicted():
    stored = load("results/memory.json")
    for name, cases, processes in (("small", CASES, 1), ("divided", memory_divided.COMPARED, memory_divided.PROCESSES)):
        rows = {row[0]: row[1:] for row in stored[name]["rows"]}
        peaks = {key: memory_small.prediction_of(case, processes).peak for key, case in cases.items()}
        assert {key: row[0] for key, row in rows.items()} == {key: f"{peak / 2**20:.1f}" for key, peak in peaks.items()}
        assert all(abs(float(ratio) - float(a) / float(b)) < 0.02 for a, b, ratio in rows.values())


@pytest.mark.parametrize("config", ["merit/mosei", "emotion_qwen/stage3"])
def test_the_table_of_what_fits_is_what_is_predicted(config):
    (tuning, *_) = (t for t in memory_paper.TUNINGS if t.config == config)
    rows = memory_paper.fits(tuning)
    assert rows and set(rows) <= set(DOCUMENT.read_text().splitlines())


@pytest.mark.parametrize("config", ["dialoguellm/meld", "farcer/meld", "selector/meld", "emotion_qwen/stage1"])
def test_the_table_of_paper_sizes_is_what_is_predicted(config):
    assert memory_paper.row(config) in DOCUMENT.read_text().splitlines()


def test_the_table_of_paper_sizes_is_complete():
    assert [c for c in memory_paper.PAPER if f"| `configs/{c}.yaml` |" not in DOCUMENT.read_text()] == []
