"""Captions by an image-text model in this process: what it is shown, what it is refused, and that a run goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.builders import make_corpus
from tests.runs_helper import refused, zoo
from zoo.backbones.image_text import ImageTextModel, is_image_text
from zoo.backbones.llm_client import AbortRun, LocalText
from zoo.backbones.tiny_image_text import make_image_text_folder
from zoo.prepare.local_pictures import LocalPictures, local_model

FRAMES = np.full((2, 3, 32, 48), 40, np.uint8)  # a dark frame and a bright one
FRAMES[1] = 200
pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("captions")
    make_image_text_folder(home / "vlm")
    make_corpus(home / "meld", (2, 1, 1), clips=True)
    return home


def test_it_says_what_the_model_writes(home):
    model = local_model(str(home / "vlm"), max_tokens=6)
    assert isinstance(model, LocalPictures) and model.local
    assert re.fullmatch(r"local:vlm:[0-9a-f]{12}", model.name)
    own = ImageTextModel(str(home / "vlm")).eval()

    inputs = own.chat.inputs(own.chat.text("What is seen?", 2), list(torch.from_numpy(FRAMES)))
    assert model("What is seen?", FRAMES) == own.write(inputs, 6)
    alone = own.chat.inputs(own.chat.text("What is seen?", 0), [])
    assert model("What is seen?") == own.write(alone, 6)
    with pytest.raises(AbortRun, match="sees pictures and reads text; it cannot be given sound"):
        model("What is heard?", None, np.zeros(1600, np.float32))


def test_the_kind_of_a_local_model_is_that_of_its_folder(home, tiny_llama):
    assert isinstance(local_model(str(tiny_llama), 6), LocalText) and not is_image_text("tiny-llama")
    assert is_image_text("shape:tiny-llava") and not is_image_text("shape:llama-2-7b")
    with pytest.raises(FileNotFoundError, match="no model at 'nowhere'.*local:"):
        local_model("nowhere", 6)


def test_captions_without_a_server(home, monkeypatch, capsys):
    command = (
        "prepare",
        "captions",
        "--data",
        "MELD",
        "--data.root",
        home / "meld",
        "--model",
        f"local:{home / 'vlm'}",
    )
    command += ("--out", "out", "--frames", 2, "--size", 32, "--max_tokens", 8)
    shown = []
    write = LocalPictures.__call__

    def counted(self, prompt, frames=None, sound=None):
        shown.append((frames.shape, write(self, prompt, frames, sound)))
        return shown[-1][1]

    monkeypatch.setattr(LocalPictures, "__call__", counted)
    zoo(*command, "--limit", 3)
    assert [shape for shape, _ in shown] == [(2, 3, 32, 32)] * 3
    zoo(*command)  # goes on
    texts = json.loads(Path("out/video_description_train.json").read_text())
    left = [json.loads(line) for line in Path("out/left_out.jsonl").read_text().splitlines()]
    assert len(shown) == 14 and len(texts) + len(left) == 14 and texts  # random weights: some texts are none
    assert set(texts.values()) <= {" ".join(text.split()) for _, text in shown}
    assert str(home) not in "".join(f.read_text() for f in Path("out").iterdir())
    assert "leaves this machine" not in capsys.readouterr().out


def test_sound_and_models_of_texts_are_refused(home, tiny_llama):
    command = ("prepare", "captions", "--data", "MELD", "--data.root", home / "meld", "--out", "out")
    said = refused(*command, "--model", f"local:{home / 'vlm'}", "--kinds", "video", "audio")
    assert "models of this machine hear no sound" in said
    assert "or the folder of an image-text model" in refused(*command, "--model", f"local:{tiny_llama}")
