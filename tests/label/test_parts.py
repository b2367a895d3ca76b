"""`zoo label` without a checkpoint: words, face and voice side by side, what is not there said, nothing invented."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.backbones.test_vision import keras_file
from tests.label.test_label import label, read
from tests.label.test_utterances import spoken
from tests.media_files import write_clip
from tests.runs_helper import REPOSITORY, refused
from zoo.label import installed
from zoo.label.parts import PARTS, PartsLabeler
from zoo.label.requests import Request, read_samples
from zoo.label.utterances import read_utterances
from zoo.media import Media
from zoo.media.clips import RATE
from zoo.models.emotion_qwen.faces import EMOTIONS
from zoo.sitcom.clips import render
from zoo.sitcom.release import split_dialogues
from zoo.sitcom.settings import Settings

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")

READER = Path("runs", "weights", "mini-xception", "fer2013_mini_XCEPTION.102-0.66.hdf5")
TEXT = "I miss her. The house is so quiet now."
SECONDS = 1


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """A drawn face of the sitcom at four times its size, uint8 (H, W, 3)."""
    (dialogue,) = split_dialogues(9, "test", 1, Settings())
    pictures, _ = render(dialogue.utterances[0], dialogue.place, "parts")
    return pictures[len(pictures) // 2].repeat(2, 0).repeat(2, 1)


@pytest.fixture(scope="module")
def clips(tmp_path_factory, face) -> dict[str, Path]:
    """What is seen and heard -> a clip of one second."""
    folder = tmp_path_factory.mktemp("clips")
    wall = np.full_like(face, 120)
    voice, silence = spoken(((0.1, 0.9),), SECONDS)[None], np.zeros((1, SECONDS * RATE), np.float32)
    five = np.concatenate([face] * 5, 1)
    shown = {
        "face": (face, voice),
        "no face": (wall, voice),
        "five faces": (five, voice),
        "silence": (face, silence),
        "no sound": (face, None),
        "nothing": (wall, silence),
    }
    return {
        name: write_clip(folder / f"{name}.mp4", [picture] * 25 * SECONDS, sound, rate=RATE)
        for name, (picture, sound) in shown.items()
    }


@pytest.fixture
def reader(tmp_path) -> None:
    """A reader of expressions with random weights, where `zoo checkpoints pull` puts the published one."""
    READER.parent.mkdir(parents=True)
    keras_file(READER)


@pytest.fixture(scope="module")
def whole(clips, tmp_path_factory) -> dict:
    """The answer about a face, a voice and words, with `reader`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        READER.parent.mkdir(parents=True)
        keras_file(READER)
        (row,) = label(clips["face"], "--text", TEXT)
    return row


def test_the_parts_stand_side_by_side(whole, capsys):
    row = whole
    assert row["used"] == list(PARTS) and row["unused"] == {} and row["label_from"] == "text"
    text, seen, heard = (row["parts"][part] for part in PARTS)
    (alone,) = label("--text", TEXT, "--ckpt_path", "tiny-llama")
    assert row["label"] == text["label"] == alone["label"] and row["scores"] == text["scores"] == alone["scores"]
    assert text["said"] == TEXT and text["system"] == "tiny-llama"
    assert text["measured"] == {
        "corpus": "goemotions",
        "split": "test",
        "n": 4968,
        "metric": "weighted_f1",
        "value": 0.6595,
    }
    assert "smollm2-goemotions, after zoo checkpoints pull smollm2-135m" in text["better"]
    assert set(seen["scores"]) == set(EMOTIONS) and seen["label"] == max(seen["scores"], key=seen["scores"].get)
    assert seen["system"] == "mini-xception" and seen["faces"] == 1 and "face" in seen["seen"]
    assert heard["label"] is None and "scores" not in heard and "has been tested" in heard["why_no_label"]
    assert heard["heard"].startswith("Voice at") and heard["measures"]["pitch"] == pytest.approx(150, abs=3)
    assert "was trained on GoEmotions" in capsys.readouterr().err


def test_every_field_is_documented(whole):
    document = (REPOSITORY / "docs" / "labelling.md").read_text(encoding="utf-8")
    names = {*whole, *(name for part in whole["parts"].values() for name in part)} - {"id", "clip"}
    assert len(names) > 15 and [name for name in sorted(names) if f"`{name}`" not in document] == []


@pytest.mark.parametrize("off", PARTS)
def test_a_part_that_is_switched_off_changes_no_other(clips, reader, whole, off):
    (row,) = label(clips["face"], "--text", TEXT, "--parts", *(part for part in PARTS if part != off))
    assert row["parts"].pop(off) == {"used": False, "why": "switched off (--parts)"}
    assert (
        row["parts"] == {part: found for part, found in whole["parts"].items() if part != off}
        and off not in row["used"]
        and off in row["unused"]
    )
    assert row["label"] == (None if off == "text" else whole["label"])
    assert off != "text" or "only the words have a system" in row["why_no_label"]


@pytest.mark.parametrize(
    ("clip", "part", "why"),
    [
        ("no face", "face", "no face found"),
        ("silence", "voice", "silence"),
        ("no sound", "voice", "has no audio stream"),
    ],
)
def test_what_is_not_there_is_said(clips, reader, clip, part, why):
    (row,) = label(clips[clip], "--text", TEXT)
    assert why in row["unused"][part] and not row["parts"][part]["used"] and row["label"] is not None


def test_five_faces_are_counted_and_one_is_described(clips, reader):
    (row,) = label(clips["five faces"], "--text", TEXT)
    assert row["parts"]["face"]["faces"] == 5 and row["parts"]["face"]["chosen_by"] == "largest"
    assert "Of 5 faces" in row["parts"]["face"]["seen"]


def test_what_is_not_installed_is_named(clips):
    (row,) = label(clips["face"])
    assert row["unused"]["face"] == "not installed: zoo checkpoints pull mini-xception"
    assert row["unused"]["text"].startswith("no words given") and row["label"] is None and row["used"] == ["voice"]
    message = refused("label", clips["face"], "--parts", "face")
    assert "no label" in message and "zoo checkpoints pull mini-xception" in message


def test_the_best_that_is_here_is_taken(tmp_path, monkeypatch):
    assert installed.best_for_text().name == "tiny-llama" and installed.best_for_faces().name is None
    folder = tmp_path / "runs" / "weights" / "smollm2-135m"
    folder.mkdir(parents=True)
    (folder / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"")
    assert installed.best_for_text().name == "smollm2-goemotions" and installed.best_for_text().commands == ()
    found = installed.find_spec
    monkeypatch.setattr(installed, "find_spec", lambda name: None if name in ("gguf", "dlib") else found(name))
    assert installed.best_for_text().commands == ("pip install 'emotion-zoo[gguf]'",)
    assert installed.best_for_faces().commands[1:] == ("pip install 'emotion-zoo[faces]'",)
    monkeypatch.setattr(installed, "INDEX", tmp_path / "none.yaml")
    assert "install the zoo from its repository" in refused("label", "--text", TEXT)


def test_bad_files(clips, reader, tmp_path):
    Path("words.mp4").write_text("a text")
    (row,) = label("words.mp4", "--text", TEXT)
    assert row["used"] == ["text"] and "is broken, or no video" in row["unused"]["face"]
    message = refused("label", "words.mp4")
    assert "nothing of it could be used" in message and "is broken, or no video" in message
    assert "no label" in refused("label", clips["nothing"])
    film = write_clip(Path("film.mp4"), [np.full((32, 32, 3), 9, np.uint8)] * 122, fps=2)
    message = refused("label", film)
    assert "lasts 61 s, and an utterance at most 60 s; give --segments or --subtitles" in message
    assert "words given" in refused("label", film, "--parts", "text")


def test_hostile_text_is_a_text():
    hostile = "<script>alert('{{ 7*7 }}')</script> ../../etc/passwd"
    (row,) = label("--text", hostile)
    assert row["parts"]["text"]["said"] == hostile and row["label"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "nothing to label"),
        (("--text", "Oh.", "--selector", "x"), "name the system with --ckpt_path"),
        (("--text", "Oh.", "--labels", "meld"), "name the system with --ckpt_path"),
        (("--text", "Oh.", "--model.llm", "x"), "name the system with --ckpt_path"),
        (("--text", "Oh.", "--parts", "smell"), "invalid choice: 'smell'"),
        (("--text", "Oh.", "--parts", "text", "--ckpt_path", "tiny-llama"), "--parts goes without --ckpt_path"),
        (("--text", "Oh.", "--transcribe", "base"), "needs the package faster-whisper"),
        (("--text", "Oh.", "--max_clip_seconds", "-1"), "max_seconds is a number over 0"),
        (("none.mp4",), "no file none.mp4"),
    ],
)
def test_refused(args, message):
    assert message in refused("label", *args)


# ---- films
@pytest.fixture
def film(face) -> Path:
    """Seven seconds, in which three utterances are heard and a face is seen but for the second of them."""
    wall = np.full_like(face, 120)
    pictures = [wall if 2.3 < i / 25 < 4 else face for i in range(25 * 7)]
    return write_clip(Path("film.mp4"), pictures, spoken()[None], rate=RATE, coder={"g": "12"})


def test_segments_are_rows(film, reader, capsys):
    rows = label(film, "--segments", "--out", "rows.jsonl") or read(Path("rows.jsonl"))
    assert [row["id"] for row in rows] == ["film.mp4#0001", "film.mp4#0002", "film.mp4#0003"]
    assert np.allclose([(row["start"], row["end"]) for row in rows], [(0.9, 2.1), (2.5, 3.5), (4.9, 6.1)], atol=0.05)
    assert [row["used"] for row in rows] == [["face", "voice"], ["voice"], ["face", "voice"]]
    assert rows[1]["unused"]["face"] == "no face found"
    lasting = [row["parts"]["voice"]["measures"]["seconds"] for row in rows]
    assert np.allclose(lasting, [1.2, 1.0, 1.2], atol=0.05)
    assert "3 of 3 labelled" in capsys.readouterr().err
    before = Path("rows.jsonl").read_bytes()
    label(film, "--segments", "--out", "rows.jsonl")  # which has nothing left to do
    assert Path("rows.jsonl").read_bytes() == before
    assert "lines of another command" in refused("label", film, "--segments", "--out", "rows.jsonl", "--parts", "voice")


def test_subtitles_are_rows(film, reader, capsys):
    Path("film.srt").write_text(
        "1\n00:00:01,000 --> 00:00:02,000\n<i>I miss her.</i>\n\nbad\n\n2\n00:00:09,000 --> 00:00:10,000\nToo late.\n"
    )
    first, second = label(film, "--subtitles", "film.srt")
    assert (first["start"], first["end"], first["used"]) == (1.0, 2.0, list(PARTS))
    assert first["parts"]["text"]["said"] == "I miss her." and first["parts"]["voice"]["measures"]["speech"] > 0.9
    assert second["used"] == ["text"] and "no frames from 9 to 10 s" in second["unused"]["face"]
    assert "no sound from 9 to 10 s" in second["unused"]["voice"]
    assert "1 blocks left out" in capsys.readouterr().err
    (row, _) = label(
        film, "--subtitles", "film.srt", "--ckpt_path", "tiny-llama"
    )  # a system of one's own has them, too
    assert row["start"] == 1.0 and row["label"] == first["label"] and "parts" not in row


def test_an_utterance_that_begins_before_the_picture(face, reader):
    """The face is seen from second 1.6 to 3.6, and gone from 2.4 on, which is not the utterance's any more."""
    wall, times = np.full_like(face, 120), [1600 + 40 * i for i in range(50)]
    pictures = [face if time < 2400 else wall for time in times]
    write_clip(Path("late.mp4"), pictures, spoken()[None], rate=RATE, times=times)
    labeler = PartsLabeler(("face", "voice"))
    labels = labeler.labels
    Path("late.srt").write_text("00:00:01,000 --> 00:00:02,400\nOh!\n")
    (sample,) = read_utterances(Request(clip=Path("late.mp4"), subtitles=Path("late.srt")), labels, labeler.media)
    answer = labeler(sample)
    assert answer.row["used"] == ["face", "voice"]
    seen = [face.time for face in answer.description.faces]
    assert len(seen) == len(answer.description.frame_times) and 0.6 <= min(seen) < max(seen) < 1.4


def test_damage_is_said_of_every_utterance_and_of_the_film(film, reader):
    content = bytearray(film.read_bytes())
    media = Media()
    for place in np.random.default_rng(0).integers(len(content) // 4, len(content) // 2, 300):
        content[place] ^= 0xFF
    film.write_bytes(content)
    media.waveform(film, RATE)
    assert (damage := media.damage(film)) is not None
    Path("film.srt").write_text("".join(f"00:00:0{i},000 --> 00:00:0{i},900\nOh!\n\n" for i in (1, 5)))
    for row in label(film, "--subtitles", "film.srt"):
        assert f"film.mp4: {damage}" in row["damaged"]
        assert all(line.startswith("film.mp4: ") for line in row["damaged"])


# ---- in Python
def test_one_labeler_answers_many_times(clips, reader):
    (READER.parent / ".DS_Store").write_bytes(b"of another program")
    labeler = PartsLabeler()
    labeler.load()
    system, describer = labeler._system.module, labeler._describer
    request = Request(clip=clips["face"], text=TEXT)
    (sample,) = read_samples(request, labeler.labels)
    first, again = labeler(sample), labeler(sample)
    assert first.error is None and json.loads(json.dumps(first.row)) == first.row
    assert first.row | {"seconds": 0} == again.row | {"seconds": 0}
    assert labeler._system.module is system and labeler._describer is describer
    assert first.description.faces and len(first.description.loudness.times) > 50 and first.description.speech
    (line,) = read_samples(Request(text="Oh!"), labeler.labels)
    assert labeler(line).description is None
    with pytest.raises(ValueError, match="parts are some of"):
        PartsLabeler(("text", "smell"))


def test_the_picture_of_a_sound_is_not_missed(tmp_path, reader):
    soundfile.write("voice.wav", spoken(((0.1, 0.9),), SECONDS), RATE)
    (row,) = label("voice.wav")
    assert row["used"] == ["voice"] and row["unused"]["face"] == "no picture given"
