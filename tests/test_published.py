"""The weights that come with the repository are the ones that were published, and can be used."""

import json
import random
import re

import pytest
import torch
import yaml
from safetensors import safe_open

from zoo.backbones import LLM, Audio, Vision
from zoo.checkpoints import index, load, probes, verify
from zoo.checkpoints.commands import _function
from zoo.checkpoints.listing import INDEX, bases_to_pull
from zoo.sitcom import faces, voices
from zoo.sitcom.cues import LABELS
from zoo.sitcom.settings import CAST

NAMES = sorted(p.parent.name for p in INDEX.parent.glob("*/config.yaml"))


def test_index_and_folders_agree():
    assert NAMES and sorted(name for name, entry in index().items() if entry["source"] == "shipped") == NAMES
    total = sum(p.stat().st_size for p in INDEX.parent.rglob("*") if p.is_file())
    assert total < 40_000_000


@pytest.mark.parametrize("name", NAMES)
def test_published_files(name):
    assert verify(name) == []
    entry, folder = index()[name], INDEX.parent / name
    assert "made_by" in entry and entry["reported"] and entry["commercial"] is True and entry["gated"] is False
    assert (folder / "README.md").is_file()
    assert set(entry["files"]) >= {p.name for p in folder.iterdir()} - {"README.md"}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert {"model", "data"} <= set(config) and "probe.json" in entry["files"]


@pytest.mark.parametrize("name", NAMES)
def test_published_weights_answer_their_probe(name):
    """The stored utterances, faces and voices get the stored answers; `load` raises if not."""
    if bases := bases_to_pull(name):
        pytest.skip(f"needs zoo checkpoints pull {' '.join(bases)}")
    samples, _, expected = probes.read(INDEX.parent / name)
    # a policy gives no label a score; its answer is how sure it is to keep the descriptions
    said = [row["scores"] if name != "selector-sitcom" else row["details"]["keep"] for row in expected]
    assert len(samples) == len(expected) == 4 and len(set(map(json.dumps, said))) == 4
    load(name)


def test_smollm2_goemotions_is_an_adapter_of_what_can_be_pulled():
    folder, base = INDEX.parent / "smollm2-goemotions", index()["smollm2-135m"]
    assert (folder / "weights.safetensors").stat().st_size < 20_000_000
    with safe_open(folder / "weights.safetensors", "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a dict
        contract = json.loads(file.metadata()["zoo"])
    assert sum(a * b for a, b in shapes.values()) == 4_884_480 and len(shapes) == 30 * 7 * 2
    assert all(16 in shape for shape in shapes.values())
    (digest,) = base["files"].values()
    assert digest in json.dumps(contract["bases"])
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["llm"] == "smollm2-135m"


def test_weights_of_others():
    """Fields that `zoo checkpoints pull` and `convert` use: a revision or an address, whole sums, a function."""
    others = {name: entry for name, entry in index().items() if entry["source"] != "shipped"}
    assert sorted(others) == [
        "emotion-qwen",
        "mini-xception",
        "smollm2-135m",
        "smollm2-135m-hub",
        "vit-face-expression",
    ]
    for name, entry in others.items():
        assert all(d is None or re.fullmatch("[0-9a-f]{64}", d) for d in entry["files"].values()), name
        assert entry["commercial"] in (True, False, "unknown") and entry["licence"]
        assert all({"corpus", "split", "n", "metric", "value", "protocol"} <= set(r) for r in entry["reported"])
    assert re.fullmatch("[0-9a-f]{40}", others["vit-face-expression"]["revision"])
    assert callable(_function(others["emotion-qwen"]["converter"]))
    assert (INDEX.parent.parent / others["emotion-qwen"]["config"]).is_file()
    config = (INDEX.parent.parent / "configs" / "farcer" / "meld.yaml").read_text()
    assert others["vit-face-expression"]["hub"] in config
    packed = others["smollm2-135m"]
    assert re.fullmatch("[0-9a-f]{64}", packed["wheel"]) and len(packed["files"]) == 1
    assert {"text", "logprobs"} == packed["probe"].keys() and "smollm2-135m-hub" in others
    assert others["mini-xception"]["url"].endswith(next(iter(others["mini-xception"]["files"])))


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
    for text, label in (
        ("I hate you, leave me alone!", "anger"),
        ("I am so happy for you, this is wonderful!", "joy"),
        ("What? No way! I can't believe it!", "surprise"),
    ):
        ids = torch.tensor([llm.tokenizer(f"{text}\nemotion:")["input_ids"]])
        with torch.no_grad():
            scores = llm.score(llm.encode(ids, torch.ones_like(ids)), candidates)[0]
        assert labels[int(scores.argmax())] == label


@pytest.mark.parametrize(
    "name, kind, parameters", [("tiny-vit-sitcom", Vision, 1_118_599), ("tiny-hubert-sitcom", Audio, 990_695)]
)
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
                picture = faces.clip(values, speaker, faces.scene(rng), seed, 15, "studio", only=7)[0]
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
