"""Features in files: each is what its encoder says of the utterance, and none is computed twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.builders import make_home
from tests.runs_helper import refused, zoo
from zoo.backbones import LLM, Audio, Vision
from zoo.data import MELD
from zoo.data.meld import CLIPS
from zoo.media import Media
from zoo.media.clips import utterance_frames, utterance_sound
from zoo.training.given_features import FeatureFolder

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("features"), (1, 1, 1), clips=True)


def prepare(home: Path, out: Path, *more: str) -> None:
    encoders = ((option, home / part) for option, part in (("text", "llm"), ("vision", "vision"), ("audio", "audio")))
    options = [f"--{option}={path}" for option, path in encoders]
    zoo("prepare", "features", "--data=MELD", f"--data.root={home / 'meld'}", *options, f"--out={out}", *more)


def test_vectors_are_means_of_what_the_encoders_say(home, tmp_path):
    out, data = tmp_path / "out", MELD(root=home / "meld")
    prepare(home, out)
    llm, vision, audio = LLM(str(home / "llm")).eval(), Vision(str(home / "vision")), Audio(str(home / "audio"))
    vision, audio = vision.freeze(), audio.freeze()
    sample = data.samples("dev")[1]
    turn, media = sample.target, Media()
    with torch.inference_mode():
        ids = torch.tensor([llm.tokenizer(turn.text)["input_ids"]])
        words = llm.causal_lm(ids, output_hidden_states=True).hidden_states[-1][0].mean(0)
        frames = utterance_frames(media, turn, 4, side=vision.size, square=True, middle=0.5)
        face = vision.hidden(torch.from_numpy(frames), normed=True)[:, 0].mean(0)
        wave = torch.from_numpy(utterance_sound(media, turn))
        voice = audio.hidden(wave[None], torch.tensor([len(wave)]))[0][0].mean(0)
    for modality, expected in (("text", words), ("vision", face), ("audio", voice)):
        folder = FeatureFolder(f"features:{out / modality}", modality, media)
        (clip, problems) = folder.read(sample.dialogue, turn, 1, found := []), found
        assert not problems and len(folder.files) == sum(len(data.samples(s)) for s in ("train", "dev", "test"))
        torch.testing.assert_close(clip.features[0], expected.float(), rtol=1e-4, atol=1e-5)


def test_a_run_goes_on_and_says_what_it_left_out(home, tmp_path, capsys):
    out, clip = tmp_path / "out", home / "meld" / CLIPS["test"] / "dia0_utt0.mp4"
    content = clip.read_bytes()
    clip.unlink()
    try:
        prepare(home, out, "--split", "test")
    finally:
        clip.write_bytes(content)
    left_out = [json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines()]
    assert [(r["modality"], r["id"], r["why"]) for r in left_out] == [
        ("vision", "dia0_utt0", "has no clip"),
        ("audio", "dia0_utt0", "has no sound"),
    ]
    kept = out / "text" / "test" / "dia0_utt1.npy"
    np.save(kept, np.zeros(3, np.float32))
    prepare(home, out, "--split", "test")
    assert np.load(kept).shape == (3,) and (out / "vision" / "test" / "dia0_utt0.npy").is_file()
    assert (out / "left_out.jsonl").read_text() == "" and "(0 now)" in capsys.readouterr().out
    data = f"--data.root={home / 'meld'}"
    assert "nothing to encode with" in refused("prepare", "features", "--data=MELD", data, f"--out={out}")
    other = refused("prepare", "features", "--data=MELD", data, f"--out={out}", f"--text={home / 'llm'}")
    assert "begun with other settings" in other
