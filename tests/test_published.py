"""The weights that come with the repository are the ones that were published, and can be used."""

import random

import pytest
import torch
import yaml
from safetensors import safe_open

from zoo.backbones import LLM, Audio, Vision
from zoo.checkpoints import INDEX, index, verify
from zoo.data.synthetic import faces, voices
from zoo.data.synthetic.script import CAST, LABELS

NAMES = sorted(p.parent.name for p in INDEX.parent.glob("*/config.yaml"))


def test_index_and_folders_agree():
    assert NAMES and sorted(index()) == NAMES
    total = sum(p.stat().st_size for p in INDEX.parent.rglob("*") if p.is_file())
    assert total < 40_000_000


@pytest.mark.parametrize("name", NAMES)
def test_published_files(name):
    assert verify(name) == []
    entry, folder = index()[name], INDEX.parent / name
    assert {"what", "licence", "made_by", "files", "reported"} <= set(entry)
    assert (folder / "README.md").is_file()
    assert set(entry["files"]) >= {p.name for p in folder.iterdir()} - {"README.md"}
    text = "".join(p.read_text() for p in folder.glob("*.y*ml"))
    assert yaml.safe_load(text)


def test_tiny_llama():
    folder = INDEX.parent / "tiny-llama"
    assert (folder / "model.safetensors").stat().st_size < 6_000_000
    with safe_open(folder / "model.safetensors", "pt") as f:
        assert {str(f.get_slice(k).get_dtype()) for k in f.keys()} == {"F16"}  # noqa: SIM118 - not a dict
    llm = LLM("tiny-llama").eval()
    assert sum(p.numel() for p in llm.parameters()) == 2_114_880
    # it was trained to answer: an unmistakable line gets its label
    labels = ["neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"]
    candidates = [llm.tokenizer(f" {w}", add_special_tokens=False)["input_ids"] for w in labels]
    assert all(len(c) == 1 for c in candidates)
    for text, label in (("I hate you, leave me alone!", "anger"), ("I am so happy for you, this is wonderful!", "joy"),
                        ("What? No way! I can't believe it!", "surprise")):  # fmt: skip
        ids = torch.tensor([llm.tokenizer(f"{text}\nemotion:")["input_ids"]])
        with torch.no_grad():
            scores = llm.score(llm.encode(ids, torch.ones_like(ids)), candidates)[0]
        assert labels[int(scores.argmax())] == label


@pytest.mark.parametrize("name, kind, parameters", [
    ("tiny-vit-sitcom", Vision, 1_118_599), ("tiny-hubert-sitcom", Audio, 990_695)])
def test_tiny_encoders(name, kind, parameters):
    """They read faces and hear voices of the embedded corpus: clear ones, of a seed they were not trained on."""
    encoder = kind(name).eval()
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert (INDEX.parent / name / "model.safetensors").stat().st_size < 3_000_000
    assert encoder.labels == LABELS
    rng, right = random.Random(0), 0
    for label in LABELS[1:] * 3:
        speaker, seed = rng.choice(CAST), f"published {rng.random()}"
        model = faces.EXPRESSION if kind is Vision else voices.PROSODY
        values = [1.2 * d for d in model.directions[label]]
        with torch.no_grad():
            if kind is Vision:
                picture = faces.frame(values, speaker, faces.scene(rng), seed, 15, "studio")
                logits = encoder.logits(torch.from_numpy(picture).permute(2, 0, 1)[None])
            else:
                wave = torch.from_numpy(voices.speak(values, speaker, seed, 1.5, "studio"))[None]
                logits = encoder.logits(wave, torch.tensor([wave.shape[1]]))
        right += LABELS[int(logits[0, 1:].argmax()) + 1] == label  # neutral is nearly half of what it was trained on
    assert right >= 12  # of 18; chance is 3


def test_tiny_llama_sitcom():
    llm = LLM("tiny-llama-sitcom").eval()
    assert sum(p.numel() for p in llm.parameters()) == 2_114_880
    assert (INDEX.parent / "tiny-llama-sitcom" / "model.safetensors").stat().st_size < 6_000_000
