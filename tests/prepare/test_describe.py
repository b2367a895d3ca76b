"""Clips in words: whose face, which expression, when somebody speaks; and ``zoo prepare describe`` over a corpus."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.builders import label_clip
from tests.media_files import write_clip
from tests.prepare import looks
from tests.prepare.looks import Looks, clip, make_home
from tests.runs_helper import refused, zoo
from zoo.data import MELD
from zoo.media import Unreadable
from zoo.media.speech import fit_bins
from zoo.models.emotion_qwen.faces import EMOTIONS, Face
from zoo.prepare.describe import ClipDescriber, ClipDescription, pauses_between, read_bins, voice_activity
from zoo.prepare.describe.faces import SeenFace, face_sentence, persons
from zoo.prepare.describe.voice import voice_sentence
from zoo.schema import Turn

RATE = 16_000
BOXES = ((16, 16, 64, 80), (96, 16, 144, 80))  # of the faces in a picture of 96 x 160
SKIN, GROUND = 200, 90


class Painted:
    """Finds the squares of skin in `BOXES`; one is happy where its forehead is red, else neutral."""

    def analyse(self, frames, clip=None, numbers=None):
        faces_by_frame = []
        for frame in frames.numpy().astype(int):
            faces = []
            for left, top, right, bottom in BOXES:
                if right > frame.shape[2]:
                    continue
                red, green, _ = frame[:, top + 2 : top + 8, left + 8 : right - 8].mean((1, 2))
                if red > (SKIN + GROUND) / 2:
                    mood = "happy" if red - green > 60 else "neutral"
                    rest = dict.fromkeys(EMOTIONS, 0.2 / 6)
                    faces.append(Face((left, top, right, bottom), rest | {mood: 0.8}))
            faces_by_frame.append(faces)
        return faces_by_frame


def spoken(*parts: tuple[float, bool], hertz: float = 150, height: float = 0.1) -> np.ndarray:
    """Silence (-60 dB noise) and a buzz of four syllables a second, (N,)."""
    pieces = []
    for seconds, speaks in parts:
        time = np.arange(round(seconds * RATE)) / RATE
        buzz = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 8))
        pieces.append(speaks * height * (0.6 - 0.4 * np.cos(8 * np.pi * time)) * buzz)
    wave = np.concatenate(pieces)
    return (wave + 1e-5 * np.random.default_rng(0).standard_normal(len(wave))).astype(np.float32)


def pictures(seconds, sizes=(1, 1), speaker=None, wave=None, happy_from=None, ground=GROUND) -> list[np.ndarray]:
    """Frames of two faces, 25 a second.

    Args:
        sizes: 0: no such face.
        speaker: whose mouth opens and closes while the wave is loud.
        happy_from: seconds from which on the faces are happy.
    """
    frames = []
    for i in range(round(seconds * 25)):
        picture = np.full((96, 160, 3), ground, np.uint8)
        for person, (left, top, right, bottom) in enumerate(BOXES):
            if not sizes[person]:
                continue
            picture[top:bottom, left:right] = SKIN
            if happy_from is not None and i / 25 >= happy_from:
                picture[top : top + 10, left:right, 1:] = 100
            heard = 0.0 if wave is None else float(np.abs(wave[i * RATE // 25 : (i + 1) * RATE // 25]).mean())
            if person == speaker and heard > 0.01 and i % 4 < 2:
                picture[bottom - 22 : bottom - 8, left + 14 : right - 14] = 30
        frames.append(picture)
    return frames


def described(tmp_path: Path, frames=(), wave=None, face: object = Painted()) -> ClipDescription:
    path = write_clip(tmp_path / "clip.mp4", frames, None if wave is None else wave[None], rate=RATE)
    return ClipDescriber(face).describe(path if len(frames) else None, None if wave is None else path)


# ---- the voice
def test_pauses_of_known_length_are_found_where_they_are():
    wave = spoken((0.5, False), (1.0, True), (0.6, False), (1.5, True), (0.1, False), (0.7, True), (0.4, False))
    expected = [(0.5, 1.5), (2.1, 4.4)]  # a gap of a tenth of a second is none
    for rate, sound in ((RATE, wave), (8000, wave[::2])):
        spans = voice_activity(sound, rate)
        assert len(spans) == 2 and np.abs(np.array(spans) - expected).max() < 0.04, spans
    assert pauses_between(spans)[0] == pytest.approx((1.5, 2.1), abs=0.04)


def test_noise_hides_no_pause_and_is_no_voice():
    parts = (0.5, False), (1.0, True), (0.8, False), (1.0, True), (0.4, False)
    noise = 0.02 * np.random.default_rng(1).standard_normal(round(3.7 * RATE)).astype(np.float32)
    spans = voice_activity(spoken(*parts) + noise, RATE)
    assert len(spans) == 2 and np.abs(np.array(spans) - [(0.5, 1.5), (2.3, 3.3)]).max() < 0.2, spans
    assert voice_activity(noise, RATE) == []


def test_a_quiet_speaker_is_heard_beside_a_loud_one():
    wave = np.concatenate([spoken((2.0, True), (6.0, False), height=0.3), spoken((2.0, True), height=0.003)])
    assert len(voice_activity(wave, RATE)) == 2


@pytest.mark.parametrize("sound", [np.zeros(0, np.float32), np.zeros(100, np.float32), np.zeros(RATE, np.float32)])
def test_nothing_to_hear(sound):
    assert voice_activity(sound, RATE) == []


@pytest.mark.parametrize(("sound", "rate"), [(np.zeros((2, 100), np.float32), RATE), ([0.0], RATE), (np.zeros(9), 0)])
def test_what_is_no_waveform(sound, rate):
    with pytest.raises(ValueError, match="expected a waveform|rate is"):
        voice_activity(sound, rate)


def test_the_voice_in_numbers_and_in_words(tmp_path):
    wave = spoken((0.5, False), (1.0, True), (0.6, False), (1.4, True))
    description = described(tmp_path, wave=wave, face=None)
    assert description.video == "No picture." and description.scene is None
    assert description.voice["seconds"] == pytest.approx(3.5, abs=0.1) and description.voice["pauses"] == 1
    assert description.voice["pitch"] == pytest.approx(150, rel=0.1)
    spans = sum(end - start for start, end in description.speech)
    assert description.voice["speech"] == spans / description.voice["seconds"] == pytest.approx(2.4 / 3.5, abs=0.04)
    assert description.audio.startswith("Voice at ") and "pitch 1" in description.audio
    assert description.audio.endswith("one pause (0.6 s).")
    bins = fit_bins([("ann", {"pitch": p, "loudness": 60.0}) for p in (90.0, 100.0, 110.0, 120.0)], least=3)
    assert voice_sentence(description.voice, bins, "ann").startswith("Very loud voice; very high pitch; speaking ")


def test_silence_and_no_sound(tmp_path):
    silent = described(tmp_path, pictures(1), np.zeros(RATE, np.float32))
    assert silent.audio == "Silence." and silent.speech == () and silent.missing == {}
    mute = described(tmp_path, pictures(1))
    assert mute.audio == "No sound." and mute.loudness is None
    asked = ClipDescriber(Painted()).describe(tmp_path / "clip.mp4", tmp_path / "clip.mp4")
    assert asked.audio == "The sound cannot be read." and "has no audio stream" in asked.missing["audio"]
    assert asked.video == mute.video
    noise = 0.1 * np.random.default_rng(1).standard_normal(RATE).astype(np.float32)
    assert described(tmp_path, wave=noise, face=None).audio == "No voice."


# ---- faces
def test_an_expression_that_changes_is_said(tmp_path):
    description = described(tmp_path, pictures(3, (1, 0), happy_from=1.5))
    assert description.video == "A face that turns from neutral to happy (0.80)." and description.chosen_by == "only"
    assert description.expression["happy"] == pytest.approx(0.45, abs=0.09)
    steady = described(tmp_path, pictures(1, (1, 0)))
    assert steady.video == "A face that looks neutral (0.80)."


def test_no_face_is_a_description(tmp_path):
    description = described(tmp_path, pictures(1, (0, 0)))
    assert description.video == "No face found." and description.faces == () and description.expression is None
    assert described(tmp_path, pictures(1, (1, 1)), face=None).video == "Faces were not looked for."


@pytest.mark.parametrize("speaker", [0, 1, None])
def test_of_two_faces_the_one_that_speaks(tmp_path, speaker):
    wave = spoken((0.6, False), (1.0, True), (0.8, False), (1.2, True), (0.4, False))
    description = described(tmp_path, pictures(4, (1, 1), speaker, wave), wave)
    own = [face for face in description.faces if face.described]
    assert (
        description.scene.faces == 2 and len(own) == len(description.frame_times) == 12 and len(description.faces) == 24
    )
    assert description.chosen_by == ("largest" if speaker is None else "mouth")
    assert {round(160 * face.box[0]) for face in own} == {BOXES[speaker or 0][0]}
    how = "is largest" if speaker is None else "se mouth moves with the voice"
    assert description.video.startswith("Of 2 faces, the one ") and how in description.video


def test_of_two_who_speak_alike_the_larger_one(tmp_path):
    wave = spoken((0.6, False), (1.0, True), (0.8, False), (1.2, True), (0.4, False))
    both = [
        np.concatenate([a[:, :80], b[:, 80:]], 1)
        for a, b in zip(pictures(4, speaker=0, wave=wave), pictures(4, speaker=1, wave=wave), strict=True)
    ]
    assert described(tmp_path, both, wave).chosen_by == "largest"


def test_persons_keep_their_numbers():
    near = Face((0, 0, 10, 10), dict.fromkeys(EMOTIONS, 1 / 7)), Face((20, 0, 30, 10), dict.fromkeys(EMOTIONS, 1 / 7))
    moved = Face((22, 1, 32, 11), near[0].probabilities)
    assert persons([near, near[::-1], [], [moved], [Face((50, 50, 60, 60), near[0].probabilities)]]) == [
        [0, 1],
        [1, 0],
        [],
        [1],
        [2],
    ]


def test_how_sure_a_face_is_said():
    def seen(**p):
        rest = (1 - sum(p.values())) / (7 - len(p))
        return SeenFace(0.0, (0, 0, 1, 1), {e: p.get(e, rest) for e in EMOTIONS}, 0, True)

    assert face_sentence([seen(sad=0.5, fear=0.3)], 1) == "A face that looks sad (0.50), or afraid (0.30)."
    assert face_sentence([seen(disgust=0.3)], 1) == "A face that looks perhaps disgusted (0.30)."
    assert face_sentence([seen(happy=0.9)], 4) == "A face that looks happy (0.90), seen in 1 of 4 frames."


# ---- the picture
def test_cuts_are_counted_and_dark_pictures_named(tmp_path):
    rng = np.random.default_rng(0)
    shots = [np.full((96, 160, 3), level, np.uint8) for level in (30, 120, 60)]
    frames = [
        np.clip(shot + rng.integers(-4, 5, shot.shape), 0, 255).astype(np.uint8) for shot in shots for _ in range(25)
    ]
    description = described(tmp_path, frames)
    assert (
        description.scene.cuts == pytest.approx((1.0, 2.0), abs=0.09)
        and description.video == "No face found. There are 2 cuts."
    )
    assert description.scene.brightness == pytest.approx(70 / 255, abs=0.02)
    fade = [np.full((96, 160, 3), 20 + 3 * i // 2, np.uint8) for i in range(75)]
    assert described(tmp_path, fade).scene.cuts == ()
    flash = [np.full_like(frames[25], 250) if i in (10, 11) else frame for i, frame in enumerate(frames[25:50])]
    assert len(described(tmp_path, flash).scene.cuts) == 1
    moving = np.where(np.arange(400) // 40 % 2, 30, 200).astype(np.uint8)[None, :, None].repeat(96, 0).repeat(3, 2)
    panned = [moving[:, 6 * i : 6 * i + 160] for i in range(40)]
    assert described(tmp_path, panned).scene.cuts == ()
    assert described(tmp_path, frames[:25]).video == "No face found. The picture is dark."


def test_a_still(tmp_path):
    Image.fromarray(pictures(0.04, (1, 0))[0]).save(tmp_path / "face.png")
    description = ClipDescriber(Painted()).describe(tmp_path / "face.png", None)
    assert description.video == "A face that looks neutral (0.80)." and description.frame_times == (0.0,)
    assert description.faces[0].box == pytest.approx([v / s for v, s in zip(BOXES[0], (160, 96) * 2, strict=True)])


def test_a_part_of_a_film_and_a_half_of_its_picture(tmp_path):
    wave = spoken((1.5, False), (1.5, True))
    path = write_clip(tmp_path / "clip.mp4", pictures(3, (0, 1), happy_from=1.5), wave[None], rate=RATE)
    describer = ClipDescriber(Painted())
    first, second = describer.describe(path, path, 0.0, 1.4), describer.describe(path, path, 1.6, 3.0)
    assert first.video == "A face that looks neutral (0.80)." and first.audio == "Silence."
    assert second.video == "A face that looks happy (0.80)." and second.voice["speech"] > 0.9
    assert second.frame_times[0] < 0.3 and second.speech[0][0] < 0.1
    half = describer.describe_turn(Turn("u", "", "", video=path, crop="left"))
    assert half.video == "No face found." and half.scene.brightness == pytest.approx(GROUND / 255, abs=0.02)
    for start, end in ((1.0, None), (2.0, 1.0), (-1.0, 1.0)):
        with pytest.raises(ValueError, match="0 <= start < end"):
            describer.describe(path, path, start, end)


def test_the_same_every_time_and_ready_for_json(tmp_path):
    wave = spoken((0.4, False), (1.0, True), (0.5, False), (0.6, True))
    description = described(tmp_path, pictures(2.5, (1, 1), 1, wave), wave)
    copy = pickle.loads(pickle.dumps(ClipDescriber(Painted())))  # as it comes to a loader's process; bytes of our own
    again = copy.describe(tmp_path / "clip.mp4", tmp_path / "clip.mp4")
    row = description.row()
    assert json.dumps(row) == json.dumps(again.row()) and row["scene"]["faces"] == 2
    assert len(row["loudness"]["times"]) == len(row["loudness"]["decibels"]) > 200
    assert row["faces"][0].keys() == {"time", "box", "probabilities", "person", "described"}


def test_a_clip_that_was_replaced_has_its_own_length(tmp_path):
    for seconds in (2, 1):
        assert described(tmp_path, pictures(seconds)).frame_times[-1] == pytest.approx(seconds - 0.125, abs=0.01)


def test_what_cannot_be_read(tmp_path):
    (tmp_path / "clip.mp4").write_text("no clip")
    with pytest.raises(Unreadable):
        ClipDescriber(Painted()).describe(tmp_path / "clip.mp4", tmp_path / "clip.mp4")
    with pytest.raises(ValueError, match="neither a video nor an audio"):
        ClipDescriber(Painted()).describe(None, None)
    description = described(tmp_path, pictures(0.4), np.zeros(62 * RATE, np.float32))
    assert "lasts 62." in description.missing["audio"] and description.audio.startswith(
        "The voice was not measured: the sound lasts"
    )


# ---- a corpus
@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A corpus with clips, of which one is broken, one is missing and one has no sound; and a reader of expressions."""
    home = make_home(tmp_path_factory.mktemp("describe"))
    write_clip(clip(home, 2), pictures(0.5))
    return home


def command(home, out, *more):
    return looks.command("describe", home, out, *more)


@pytest.fixture(scope="module")
def out(home, tmp_path_factory):
    out = tmp_path_factory.mktemp("described")
    zoo(*command(home, out))
    return out


def contents(out):
    return {p.name: p.read_bytes() for p in sorted(out.glob("*.json"))}


def test_a_corpus_reads_its_descriptions(home, out):
    data = MELD(root=home / "meld", descriptions=[out])
    texts = [s.target.descriptions for split in data.splits() for s in data.samples(split)]
    assert sum(t.keys() == {"audio", "video"} for t in texts) == len(texts) - 3
    assert all(t["video"].startswith("A face that ") for t in texts if "video" in t)
    assert all("pitch" in t["audio"] and "Hz" not in t["audio"] for t in texts if "audio" in t)


def test_what_could_not_be_described_is_listed(home, out):
    record = json.loads((out / "describe.json").read_text())
    video, audio = (record["left out"][kind]["train"] for kind in ("video", "audio"))
    assert set(video) == {"dia0_utt0", "dia0_utt1"} and video["dia0_utt1"] == "no video file"
    assert set(audio) == {*video, "dia0_utt2"} and "has no audio stream" in audio["dia0_utt2"]
    counts = record["counts"]
    assert counts["video"]["left out"] == 2 and counts["audio"]["left out"] == 3
    assert counts["video"]["described"] == counts["video"]["utterances"] - 2


def test_a_killed_run_goes_on_and_a_repaired_clip_is_described(home, out, tmp_path, monkeypatch):
    root = tmp_path / "home"
    shutil.copytree(home, root)
    seen_clips = Looks(monkeypatch)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        zoo(*command(root, tmp_path / "out"))
    assert not (tmp_path / "out" / "describe.json").exists()
    with (tmp_path / "out" / "answers.jsonl").open("a") as file:
        file.write('{"key": "torn')
    seen_clips.forget()
    zoo(*command(root, tmp_path / "out"))
    data = MELD(root=home / "meld", descriptions=[])
    clips = {s.target.video.read_bytes() for x in data.splits() for s in data.samples(x) if s.target.video}
    assert len(seen_clips) == len(clips) - 1 - 2  # one is broken, two were done
    assert contents(tmp_path / "out") == contents(out)
    seen_clips.forget()
    clip(root, 0).write_bytes(label_clip("joy", "repaired"))
    zoo(*command(root, tmp_path / "out"))
    assert len(seen_clips) == 1
    assert "dia0_utt0" in json.loads((tmp_path / "out" / "video_description_train.json").read_text())


def test_several_processes_and_pictures(home, out, tmp_path):
    zoo(*command(home, tmp_path, "--workers=2"))
    assert contents(tmp_path) == contents(out)
    zoo(*command(home, tmp_path, "--explain"))  # described already, but without pictures
    assert contents(tmp_path) == contents(out)
    drawn = list((tmp_path / "explain").rglob("*.png"))
    done = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert len(drawn) == len({json.loads(line)["key"] for line in done}) > 5
    with Image.open(drawn[0]) as picture:
        assert picture.size == (960, 560)


def test_thresholds_of_another_run_and_numbers(home, out, tmp_path):
    zoo(*command(home, tmp_path / "words", f"--thresholds={out / 'describe.json'}"))
    assert contents(tmp_path / "words") == contents(out)
    zoo(*command(home, tmp_path / "numbers", "--numbers", "--kinds", "audio"))
    texts = json.loads((tmp_path / "numbers" / "audio_description_test.json").read_text())
    assert all(text.startswith("Voice at ") for text in texts.values())
    assert not (tmp_path / "numbers" / "video_description_test.json").exists()
    (tmp_path / "bad.json").write_text(
        '{"thresholds": {"all": {"pitch": {"n": 3, "thresholds": [4, 3, 2, 1]}}, "speakers": {}}}'
    )
    with pytest.raises(ValueError, match="holds no thresholds of voices .*four rising numbers"):
        read_bins(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--frames=0"], "1 or more"),
        (["--fps=0"], "over 0"),
        (["--analyzer=null"], "no --analyzer, which finds faces"),
        (["--numbers", "--thresholds=x.json"], "give one of them"),
        (["--fps=3"], "was begun with other settings"),
    ],
)
def test_options_that_make_no_sense(home, out, wrong, told):
    assert told in refused(*command(home, out, *wrong))
