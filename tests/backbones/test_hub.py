"""zoo.backbones.hub: where a model is found, and how it is told from others."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file

from zoo.backbones import hub
from zoo.backbones.frozen import WEIGHT_FILES
from zoo.backbones.hub import fingerprint
from zoo.backbones.llm import locate_language_model


def test_fingerprints(tiny_llama, tiny_qwen2, tmp_path):
    copied = shutil.copytree(tiny_llama, tmp_path / "copy")
    assert fingerprint(str(copied)) == fingerprint(str(tiny_llama)) != fingerprint(str(tiny_qwen2))
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16", "transformers_version": "9"}))
    assert fingerprint(str(copied)) == fingerprint(str(tiny_llama))
    (copied / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    assert fingerprint(str(copied)) != fingerprint(str(tiny_llama))
    (copied / "config.json").write_text(json.dumps(config))
    tensors = load_file(copied / "model.safetensors")
    tensors["model.norm.weight"][5] += 1e-3  # one number
    save_file(tensors, copied / "model.safetensors", {"format": "pt"})
    assert fingerprint(str(copied)) != fingerprint(str(tiny_llama))


def test_locate(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "SHIPPED", tmp_path / "repository")
    monkeypatch.chdir(tmp_path)
    for folder in ("here", "repository/checkpoints/here", "repository/checkpoints/small", "repository/models/mine"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
    (tmp_path / "owner" / "empty").mkdir(parents=True)
    assert locate_language_model("here") == "here"  # a folder before a published name
    assert locate_language_model("small") == str(tmp_path / "repository/checkpoints/small")
    assert locate_language_model("models/mine") == str(tmp_path / "repository/models/mine")
    assert locate_language_model("owner/name") == "owner/name"  # a hub id
    for wrong in ("nothing", "owner/empty", str(tmp_path / "nothing"), "a/b/c"):
        with pytest.raises(FileNotFoundError, match=re.escape(f"no language model at {wrong!r}: neither a file")):
            locate_language_model(wrong)


def test_files_are_found_for_encoders_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "SHIPPED", tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "face.hdf5").write_bytes(b"")
    options = {"what": "image encoder", "option": "--model.vision"}
    assert hub.locate("face.hdf5", file_suffixes=WEIGHT_FILES, **options) == str(tmp_path / "checkpoints/face.hdf5")
    with pytest.raises(FileNotFoundError, match="no image encoder at 'face.hdf5': neither a folder.*safetensors"):
        hub.locate("face.hdf5", **options)
    with pytest.raises(FileNotFoundError, match="neither a file, nor a folder.*Give --model.vision"):
        hub.locate("missing/face.hdf5", file_suffixes=WEIGHT_FILES, **options)  # a file's name is no hub id
    assert hub.locate("owner/face.v2", file_suffixes=WEIGHT_FILES, **options) == "owner/face.v2"


def test_a_folder_of_adapters_is_no_language_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="is a PEFT adapter, not a language model"):
        locate_language_model(str(tmp_path))


def test_files_of_a_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert hub.find_file(str(tmp_path), "config.json") == tmp_path / "config.json"
    assert hub.find_file(str(tmp_path), "model.safetensors") is None
    with pytest.raises(FileExistsError, match="already holds a model"):
        hub.new_model_folder(tmp_path)
    assert hub.new_model_folder(tmp_path / "new") == tmp_path / "new"


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("runs/gguf-cache/0123-bfloat16/smollm2-135m", "smollm2-135m"),
        ("/somewhere/runs/gguf-cache/0123-float32/smollm2-135m", "smollm2-135m"),
        ("runs/weights/smollm2-135m", "smollm2-135m"),
        ("checkpoints/tiny-llama", "checkpoints/tiny-llama"),
        ("/models/Llama-2-7b-hf", "/models/Llama-2-7b-hf"),
    ],
)
def test_a_fetched_model_is_called_by_its_published_name(path, given):
    assert hub.given_name(path) == given
