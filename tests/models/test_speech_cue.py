"""SpeechCueLLM: its sentence on constructed sounds, thresholds of the training split alone, missing voices."""

from __future__ import annotations

import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.builders import make_home
from tests.runs_helper import checkpoint, fit, flags, metrics, refused, rows, zoo
from zoo.data import MELD
from zoo.data.meld import CLIPS
from zoo.media import Media
from zoo.media.speech import MEASURES, PERCENTILES
from zoo.models.speech_cue import SpeechCueLLM
from zoo.models.speech_cue.cues import LEVELS, NO_VOICE, SAID, Ear, VoiceLevels, cue_sentence
from zoo.prompts import load_template, render
from zoo.schema import Labels, Sample, Turn

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")

RATE = 16_000


def sound(path: Path, hertz: float = 150, amplitude: float = 0.1, syllables: float = 4, seconds: float = 2) -> Path:
    """A buzz with harmonics whose level rises and falls, as a WAV file."""
    time = np.arange(round(seconds * RATE)) / RATE
    buzz = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 8))
    samples = amplitude * 0.5 * (1 - np.cos(2 * np.pi * syllables * time)) * buzz
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def spoken(path: Path | None, speaker: str = "Ada") -> Turn:
    return Turn(path.stem if path else "none", speaker, "Oh.", audio=path)


def level(sentence: str, measure: str) -> str:
    """The level that a sentence gives a measure."""
    (part,) = (part for part in sentence.split(", ") if part.startswith(f"{SAID[measure]} "))
    return part.removeprefix(f"{SAID[measure]} ")


# ---- the sentence
def test_levels_of_constructed_sounds(tmp_path):
    ear = Ear(Media(), {})
    training = [
        spoken(sound(tmp_path / f"{i}.wav", 100 + 4 * i, 0.02 * 1.06**i, 2 + (7 * i % 41) / 10)) for i in range(41)
    ]
    levels = VoiceLevels(())
    levels.fit([("", ear.hear(turn)) for turn in training])
    bins = levels.bins()

    def said(**how: float) -> str:
        file = sound(tmp_path / f"{len(list(tmp_path.iterdir()))}.wav", **{"hertz": 180, "amplitude": 0.065} | how)
        return cue_sentence(ear.hear(spoken(file)), bins, "")

    for values, what, measure, expected in (
        ([102, 130, 180, 232, 258], "hertz", "pitch", LEVELS),
        ([0.021, 0.03, 0.065, 0.14, 0.2], "amplitude", "loudness", LEVELS),
        ([2, 4, 6], "syllables", "rate", LEVELS[::2]),
    ):
        sentences = [said(**{what: value}) for value in values]
        assert [level(s, measure) for s in sentences] == list(expected), (what, sentences)
    assert said().count(",") == 4 and all(f"{name} " in said() for name in SAID.values())
    hiss = {name: value for name, value in ear.hear(training[0]).items() if name.startswith("loudness")}
    assert cue_sentence(hiss, bins, "").endswith("pitch unknown, variation of pitch unknown, speaking rate unknown")


def test_groups_have_thresholds_of_their_own_and_others_those_of_all():
    values = dict.fromkeys(MEASURES, 1.0)
    low = [("m", values | {"pitch": float(p)}) for p in range(100, 201)]
    high = [("f", values | {"pitch": float(p)}) for p in range(200, 301)]
    levels = VoiceLevels(("f", "m"))
    assert not levels.fitted
    levels.fit(low + high)
    assert levels.fitted and levels.thresholds.shape == (3, len(MEASURES), len(PERCENTILES))
    bins = levels.bins()
    assert [LEVELS[bins.level(group, "pitch", 205.0)] for group in ("f", "m", "")] == [
        "very low",
        "very high",
        "medium",
    ]
    again = VoiceLevels(("f", "m"))
    again.load_state_dict(levels.state_dict())
    assert again.bins() == bins
    only = VoiceLevels(("f", "m"))
    only.fit(low)  # no training utterance of f: by all
    assert only.bins().level("f", "pitch", 205.0) == only.bins().level("", "pitch", 205.0) == 4
    with pytest.raises(ValueError, match="measurable pitch"):
        VoiceLevels(()).fit([("", {k: v for k, v in values.items() if "pitch" not in k})])


def test_the_prompt():
    labels = Labels("meal", ("calm", "cross"))
    said = (Turn("1", "Ada", "Who had my bun?"), Turn("2", "Ben", "Not me."))
    sample = Sample("meal/train/3", "meal/train/d", labels, Turn("3", "Ada", "It was the last!"), said)
    template = load_template("default", SpeechCueLLM.templates)
    shown = render(template, sample, window=2, words=labels.names, variables={"voice": "pitch very high"})
    assert shown == (
        "You judge the emotions of people who talk to each other. Read the conversation, and how the voice of its last "
        "utterance sounds.\n\nConversation:\nAda: Who had my bun?\nBen: Not me.\nAda: It was the last!\n\n"
        "The voice of the last utterance: pitch very high.\n\n"
        "By its context and its voice, which of these emotions does the last utterance have: calm, cross?\nEmotion:"
    )
    short = load_template("short", SpeechCueLLM.templates)
    shown = render(short, sample, window=0, words=labels.names, variables={"voice": NO_VOICE})
    assert shown == f"Ada: It was the last!\naudio: {NO_VOICE}\nemotion:"


# ---- runs
@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("speech_cue"), (4, 2, 2), clips=True)


@pytest.fixture
def options(home):
    def options(**more: object) -> list[str]:
        base = {"model__llm": home / "llm", "model__template": "short", "model__window": 1, "model__lr": 3e-3}
        base |= {"data": "MELD", "data__root": home / "meld", "data__batch_size": 4, "trainer__max_epochs": 1}
        return ["--model=SpeechCueLLM", *flags(**base | more)]

    return options


def test_thresholds_are_those_of_training_and_of_the_checkpoint(home, options, tmp_path, monkeypatch):
    heard = []
    measured = Ear.hear_training
    monkeypatch.setattr(Ear, "hear_training", lambda ear, samples: heard.extend(samples) or measured(ear, samples))
    run = fit(tmp_path / "run", *options())
    data = MELD(root=home / "meld")
    assert [s.id for s in heard] == [s.id for s in data.samples("train")]  # once, and no other split
    expected, ear = VoiceLevels(()), Ear(Media(), {})
    expected.fit([("", ear.hear(s.target)) for s in data.samples("train")])
    state = checkpoint(run, "best")["state_dict"]
    torch.testing.assert_close(state["voice_levels.thresholds"], expected.thresholds)
    zoo("test", f"--ckpt_path={run}")
    before = rows(run)
    clips = sorted((home / "meld" / CLIPS["train"]).glob("*.mp4"))
    kept = [clip.read_bytes() for clip in clips]
    try:  # other voices in the training split: a test does not look there
        for clip in clips:
            clip.write_bytes(kept[0])
        zoo("test", f"--ckpt_path={run}")
        assert rows(run) == before and len(heard) == len(data.samples("train"))
    finally:
        for clip, content in zip(clips, kept, strict=True):
            clip.write_bytes(content)


def test_a_missing_voice_is_said_and_counted(home, options, tmp_path):
    run = fit(tmp_path / "run", *options())
    clip = home / "meld" / CLIPS["test"] / "dia0_utt0.mp4"
    content = clip.read_bytes()
    try:
        clip.unlink()
        zoo("test", f"--ckpt_path={run}", "--data.max_unreadable=0.5")
        assert metrics(run)["events"]["samples without a voice that can be measured"] == 1
        listed = metrics(run)["problems"]["test"]["listed"]
        assert "meld/test/dia0_utt0" in listed["voices not measured"] and rows(run)[0]["predicted"] is not None
        assert "test samples have no clip" in refused("test", f"--ckpt_path={run}")
    finally:
        clip.write_bytes(content)
    assert metrics(run)["reads"] == ["text", "turns", "voice"]


def test_silence_is_said_and_each_voice_is_measured_once(tmp_path):
    ear = Ear(Media(), {"Ada": "f"})
    silent = spoken(sound(tmp_path / "silent.wav", amplitude=0.0))
    assert "silent" in ear.hear(silent) and ear.hear(spoken(None)) == "has no sound"
    assert ear.group(silent) == "f" and ear.group(replace(silent, speaker="Ben")) == ""
    (tmp_path / "silent.wav").unlink()
    assert "silent" in ear.hear(silent)


def test_bad_options(options):
    assert "has no name" in refused("fit", *options(model__genders="{Ada: ''}"))
