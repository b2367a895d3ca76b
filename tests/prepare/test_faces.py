"""``zoo prepare faces``: the faces of a corpus' clips, found once, and read by face capture afterwards."""

import json
import re
import shutil

import pytest
import torch

from tests.builders import label_clip
from tests.prepare import looks
from tests.prepare.looks import Looks, clip, make_home
from tests.runs_helper import refused, zoo
from zoo.data import MELD
from zoo.media import Media
from zoo.models.emotion_qwen.faces import FaceCapture, PrecomputedFaces, WholeFrame
from zoo.models.emotion_qwen.sampling import FrameSampling

SAMPLING = FrameSampling(frames=3)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("faces"))


def command(home, out, *more):
    return looks.command("faces", home, out, "--frames=3", *more)


@pytest.fixture(scope="module")
def out(home, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    zoo(*command(home, out))
    return out


def samples(home):
    data = MELD(root=home / "meld", descriptions=[])
    return [s for split in data.splits() for s in data.samples(split)]


def test_face_capture_reads_what_was_found(home, out):
    """What the file gives is what the analyzer itself finds, of every clip that can be read."""
    given, media = PrecomputedFaces(str(out / "faces.jsonl")), Media()
    analyzer, captured = WholeFrame(str(home / "head")), 0
    readable = [s for s in samples(home) if s.target.video and s.target.video != clip(home, 0)]
    assert len(readable) > 4 and set(given.rows) == {s.id for s in readable}
    for sample in readable:
        frames = torch.from_numpy(SAMPLING.read(media, sample.target)[0])
        assert given.analyse(frames, sample.id) == analyzer.analyse(frames)
        captured += FaceCapture(given, 0.1)(frames, sample.id) is not None
    assert captured
    with pytest.raises(
        ValueError, match=r"is about 3 frames of .* and 2 are shown; run zoo prepare faces with the same"
    ):
        given.analyse(frames[:2], sample.id)


def test_what_was_not_found_is_counted_and_listed(home, out):
    record = json.loads((out / "faces.json").read_text())
    broken, missing = (f"meld/train/dia0_utt{i}" for i in range(2))
    assert set(record["left out"]) == {broken, missing} and record["left out"][missing] == "has no clip"
    n = len(samples(home))
    assert record["counts"] == {
        "samples": n,
        "without a readable clip": 2,
        "frames": 3 * (n - 2),
        "frames without a face": 0,
        "faces": 3 * (n - 2),
        "clips without a face": 0,
    }


def test_a_killed_run_goes_on_and_a_repaired_clip_is_looked_at(home, tmp_path, monkeypatch):
    root = tmp_path / "home"
    shutil.copytree(home, root)
    seen_clips = Looks(monkeypatch)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        zoo(*command(root, tmp_path / "out"))
    assert not (tmp_path / "out" / "faces.jsonl").exists()
    with (tmp_path / "out" / "answers.jsonl").open("a") as file:
        file.write('{"key": "torn')
    seen_clips.forget()
    zoo(*command(root, tmp_path / "out"))
    todo = len({s.target.video.read_bytes() for s in samples(root) if s.target.video}) - 1
    assert len(seen_clips) == todo - 2  # two were done
    seen_clips.forget()
    clip(root, 0).write_bytes(label_clip("joy", "repaired"))
    zoo(*command(root, tmp_path / "out"))
    assert len(seen_clips) == 1
    assert "meld/train/dia0_utt0" in PrecomputedFaces(str(tmp_path / "out" / "faces.jsonl")).rows


def test_several_processes_find_the_same(home, out, tmp_path):
    zoo(*command(home, tmp_path, "--workers=2"))
    assert (tmp_path / "faces.jsonl").read_bytes() == (out / "faces.jsonl").read_bytes()


def test_other_settings_and_encoders_need_a_folder_of_their_own(home, out, tmp_path):
    told = refused(*command(home, out, "--frames=4"))
    assert "was begun with other settings (frames: 3, now 4)" in told
    shutil.copytree(home / "head", tmp_path / "moved")  # the same weights elsewhere are the same
    zoo(*command(home, out, f"--analyzer.expression={tmp_path / 'moved'}"))


def test_dlib_finds_no_face_in_a_coloured_bar(home, tmp_path):
    zoo(*command(home, tmp_path, "--analyzer=DlibFaces", f"--analyzer.expression={home / 'head'}"))
    record = json.loads((tmp_path / "faces.json").read_text())
    assert record["counts"]["faces"] == 0 and len(record["without a face"]) == record["counts"]["clips without a face"]
    given = PrecomputedFaces(str(tmp_path / "faces.jsonl"))
    assert FaceCapture(given)(torch.zeros(3, 3, 32, 32).byte(), record["without a face"][0]) is None


@pytest.mark.parametrize(
    ("wrong", "told"), [("--frames=0", "1 or more"), ("--fps=0", "over 0"), ("--workers=0", "1 or")]
)
def test_numbers_that_make_no_sense(home, tmp_path, wrong, told):
    assert re.search(told, refused(*command(home, tmp_path, wrong)))
