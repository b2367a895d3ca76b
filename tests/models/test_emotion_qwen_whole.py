"""Emotion-Qwen made of a whole Qwen2.5-VL says what transformers' own Qwen2.5-VL says."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from tests.builders import make_corpus, make_llm
from tests.fake_corpus import attach
from tests.runs_helper import checkpoint, fit, flags, zoo
from zoo.backbones import LLM, LoRA
from zoo.backbones.patch_vision import PatchVision
from zoo.backbones.tiny_image_text import make_image_text_folder
from zoo.data import MELD
from zoo.models.emotion_qwen import EmotionQwen
from zoo.models.emotion_qwen.parts import HybridCompressor, expert_of_merger
from zoo.schema import Sample, Turn
from zoo.sitcom.clips import encode
from zoo.sitcom.faces import FPS

LABELS = MELD.labels
SECTIONS = (2, 3, 3)
LENGTH = 2.0  # of the video in seconds
pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_image_text_folder(tmp_path_factory.mktemp("whole") / "qwen2.5-vl")


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[Sample]:
    """A picture of several windows, a video, and words alone."""
    home, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (48, 80, 3), np.uint8)).save(home / "a.png")
    (home / "b.mp4").write_bytes(
        encode(rng.integers(0, 256, (round(LENGTH * FPS), 64, 64, 3), np.uint8), np.zeros(32000, "f4"))
    )
    clips = {"a": home / "a.png", "b": home / "b.mp4", "c": None}
    turns = [Turn(name, "Ann", "who took it", "joy", video=clip) for name, clip in clips.items()]
    return [Sample(f"meld/test/{t.id}", f"meld/test/{t.id}", LABELS, t) for t in turns]


def made(folder: Path, **options) -> EmotionQwen:
    """A model without a trainer."""
    sizes = {"min_pixels": 256, "max_pixels": 8192, "video_max_pixels": 4096, "fps": 2.0, "max_frames": 4}
    whole = {"llm": str(folder), "vision": str(folder), "projector": "merger", "mrope": SECTIONS}
    model = EmotionQwen(**whole | sizes | options)
    attach(model, SimpleNamespace(run_seed=0), state=SimpleNamespace(fn="test"))
    model.configure_model()
    return model.eval()


def collated(model: EmotionQwen, samples: list[Sample]) -> dict:
    return model.collator(False)(samples, np.random.default_rng(0))


def their_inputs(model: EmotionQwen, batch: dict, theirs: Qwen2_5_VLForConditionalGeneration) -> dict:
    """One of our batches of a single sample as transformers' processor would give it."""
    ids, config = batch["input_ids"], theirs.config
    inputs = {"input_ids": ids, "attention_mask": batch["mask"].long(), "mm_token_type_ids": torch.zeros_like(ids)}
    if batch["patches"] is None:
        return inputs
    still = bool((ids == config.image_token_id).any())
    assert int((ids == (config.image_token_id if still else config.video_token_id)).sum()) == int(batch["slots"].sum())
    inputs["mm_token_type_ids"] = batch["slots"].long() * (1 if still else 2)
    mean, std = (torch.tensor(v).repeat_interleave(batch["patches"].shape[1] // 3) for v in MEAN_STD)
    pixels = (batch["patches"] / 255 - mean) / std
    if still:
        return inputs | {"pixel_values": pixels, "image_grid_thw": batch["grid"]}
    seconds = torch.tensor([2 * LENGTH / 4])  # four frames, two to a step
    return inputs | {"pixel_values_videos": pixels, "video_grid_thw": batch["grid"], "second_per_grid_ts": seconds}


MEAN_STD = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def our_logits(model: EmotionQwen, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        hidden = model.llm.hidden(model.embed(batch), batch["mask"], positions=batch["positions"])
        return model.llm.head(hidden)


def in_the_tree_of_transformers_5(folder: Path, out: Path) -> Path:
    """The same model under the names of the modules; transformers writes those of the published files."""
    shutil.copytree(folder, out)
    old = load_file(folder / "model.safetensors")
    assert "model.layers.0.self_attn.q_proj.weight" in old and "visual.merger.ln_q.weight" in old
    new = {
        re.sub(r"^visual\.", "model.visual.", re.sub(r"^model\.", "model.language_model.", k)): v
        for k, v in old.items()
    }
    save_file(new, out / "model.safetensors", {"format": "pt"})
    return out


@pytest.mark.parametrize("layout", ["hub", "modules"])
@pytest.mark.parametrize("lora", [None, LoRA(r=4)], ids=["plain", "lora"])
def test_logits_and_answers_are_transformers_own(layout, lora, folder, samples, tmp_path):
    place = folder if layout == "hub" else in_the_tree_of_transformers_5(folder, tmp_path / "modules")
    model = made(place, lora=lora)
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval()
    for sample, clip in zip(samples, ("picture", "video", "none"), strict=True):
        batch = collated(model, [sample])
        inputs = their_inputs(model, batch, theirs)
        assert ("pixel_values" in inputs, "pixel_values_videos" in inputs) == (clip == "picture", clip == "video")
        if clip == "video":
            assert batch["grid"].tolist() == [[2, 8, 8]]
            assert len(set(batch["positions"][0, 0, batch["slots"][0]].tolist())) == 2  # its steps differ in time
        with torch.no_grad():
            expected = theirs(**inputs).logits
        ours = our_logits(model, batch)
        assert (ours - expected).abs().max() < 1e-4
        # the answer that is written
        written = theirs.generate(**inputs, do_sample=False, max_new_tokens=6)[:, batch["input_ids"].shape[1] :]
        text = model.llm.tokenizer.decode(written[0], skip_special_tokens=True)
        assert model.llm.greedy_text(model.encode(batch), 6) == [text]
        # the label that is scored
        (prediction,) = model.predict(batch)
        logprobs = [their_logprob(theirs, inputs, ids) for ids in model.candidates(LABELS)]
        expected_scores = torch.softmax(torch.tensor(logprobs, dtype=torch.float64), 0).tolist()
        assert list(prediction.scores.values()) == pytest.approx(expected_scores, abs=1e-5)
        assert prediction.predicted == LABELS.names[int(np.argmax(logprobs))]


@torch.no_grad()
def their_logprob(theirs: Qwen2_5_VLForConditionalGeneration, inputs: dict, answer: list[int]) -> float:
    """The log-probability of an answer behind the prompt."""
    more = torch.tensor([answer])
    longer = {
        **inputs,
        "input_ids": torch.cat([inputs["input_ids"], more], 1),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(more)], 1),
        "mm_token_type_ids": torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(more)], 1),
    }
    logprobs = theirs(**longer).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
    return float(logprobs.gather(1, more.T).sum())


def test_a_wrong_position_would_be_noticed(folder, samples):
    model = made(folder)
    batch = collated(model, samples[:1])
    counted = our_logits(model, batch | {"positions": None})
    assert (our_logits(model, batch) - counted).abs().max() > 1e-3


# ---- what is refused
def test_positions_that_the_folder_states_are_asked_for(folder):
    with pytest.raises(
        ValueError, match=r"has positions of time, height and width; got --model.mrope None, give \(2, 3"
    ):
        made(folder, mrope=None)
    assert LLM(str(folder)).stated_mrope == SECTIONS  # a system of words alone needs none


def test_a_merger_is_refused_where_there_is_none_or_where_it_does_not_fit(folder, tmp_path):
    tower = PatchVision(str(folder)).save(tmp_path / "tower")
    with pytest.raises(ValueError, match="holds nothing of a merger; expected ln_q.weight.*whole Qwen2.5-VL"):
        made(folder, vision=str(tower))
    make_llm(tmp_path / "llm")
    with pytest.raises(ValueError, match=r"does not fit: it has .*mlp.2.weight \(64, 256\), not \(32, 256\)"):
        made(folder, llm=str(tmp_path / "llm"), mrope=None)
    with pytest.raises(ValueError, match="leave inner and embedding_scale out"):
        made(folder, inner=8)
    with pytest.raises(ValueError, match="general_start merger is of the hybrid projector's expert"):
        made(folder, general_start="merger")


# ---- the start of the paper's general expert
def test_the_general_expert_starts_from_the_merger(folder, samples):
    model = made(folder, projector="hybrid", general_start="merger", force_gate="general")
    merger = load_file(folder / "model.safetensors")
    state = model.compressor.general.state_dict()
    assert torch.equal(state["fc2.weight"], merger["visual.merger.mlp.2.weight"])
    assert torch.equal(state["norm.weight"], torch.ones(64))
    assert not torch.equal(model.compressor.emotion.state_dict()["fc2.weight"], state["fc2.weight"])
    assert np.isfinite(list(model.predict(collated(model, samples[:1]))[0].scores.values())).all()
    with pytest.raises(ValueError, match=r"does not fit: it has .*fc1.weight \(256, 256\), not \(24, 256\)"):
        made(folder, projector="hybrid", general_start="merger", inner=24)
    with pytest.raises(ValueError, match="holds nothing of a merger"):
        made(
            folder,
            vision="shape:tiny-patch-vision",
            projector="hybrid",
            general_start="merger",
            llm="tiny-llama",
            mrope=None,
        )


def test_an_expert_is_the_merger_but_for_two_norms():
    """Patches of unit size give the same before the expert's own LayerNorm, whatever the merger's scale is."""
    torch.manual_seed(0)
    merger = {
        "ln_q.weight": torch.rand(8) + 0.5,
        "mlp.0.weight": torch.randn(32, 32),
        "mlp.0.bias": torch.randn(32),
        "mlp.2.weight": torch.randn(6, 32),
        "mlp.2.bias": torch.randn(6),
    }
    expert = HybridCompressor(8, 6).general
    expert.load_state_dict(expert.state_dict() | expert_of_merger(merger))
    patches = torch.nn.functional.rms_norm(torch.randn(12, 8), (8,))
    hidden = torch.nn.functional.gelu(
        (patches * merger["ln_q.weight"]).reshape(-1, 32) @ merger["mlp.0.weight"].T + merger["mlp.0.bias"]
    )
    expected = hidden @ merger["mlp.2.weight"].T + merger["mlp.2.bias"]
    assert (expert(patches) - torch.nn.functional.layer_norm(expected, (6,))).abs().max() < 1e-4


# ---- runs
def test_lora_is_trained_on_the_whole_and_tested_from_its_run(folder, tmp_path):
    make_corpus(tmp_path / "meld", (1, 1, 1), clips=True)
    options = flags(model="EmotionQwen", model__llm=folder, model__vision=folder, data="MELD", trainer__max_steps=2)
    options += flags(data__root=tmp_path / "meld", model__frames=2, model__min_pixels=256)
    whole = (
        "--model.projector=merger",
        "--model.mrope=[2,3,3]",
        "--model.lora.r=4",
        r"--model.train=['llm\..*lora.*']",
    )
    run = fit(tmp_path, *options, *whole)
    zoo("test", f"--ckpt_path={run}")
    held = checkpoint(run, "last")["state_dict"]
    assert {k.split(".")[0] for k in held} == {"llm", "compressor"} and not any("embed_tokens" in k for k in held)
