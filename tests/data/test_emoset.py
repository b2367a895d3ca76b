import json

import pytest

from tests.data.miniature_clips import still, write_emoset
from tests.runs_helper import fit_corpus, metrics, zoo
from zoo.backbones.tiny import make_vit_folder
from zoo.data import EmoSet
from zoo.media import read_frames


def test_a_picture_is_a_clip_of_one_frame(tmp_path):
    data = EmoSet(root=write_emoset(tmp_path, (8, 8, 8)))
    assert [len(data.samples(split)) for split in data.splits()] == [8, 8, 8]
    first = data.samples("dev")[1]
    assert (first.id, first.dialogue, first.target.label) == ("emoset/dev/awe_00010", "emoset/dev/awe_00010", "awe")
    assert (first.target.text, first.target.audio) == ("", None)
    assert read_frames(first.target.video).shape == (1, 3, 32, 32)
    assert data.reading("dev").report() == {"n_used": 8, "n_official": None, "excluded": {}, "notes": {}}


def test_missing_and_surplus_pictures_are_counted(tmp_path):
    write_emoset(tmp_path, (8, 8, 8))
    (tmp_path / "image/awe/awe_00002.jpg").unlink()
    still(tmp_path / "image/awe/awe_99999.jpg", 1)
    reading = EmoSet(root=tmp_path).reading("train")
    assert reading.report()["notes"] == {"pictures missing": 1, "pictures in no list, not used": 1}
    assert [s.target.video is None for s in reading.samples] == [False, True] + [False] * 6
    none = EmoSet(root=write_emoset(tmp_path / "lists", (8, 8, 8), pictures=False)).reading("test")
    assert len(none.samples) == none.notes["pictures missing"] == 8


def test_rows_without_a_name_and_in_other_lists(tmp_path):
    write_emoset(tmp_path, (8, 8, 8))
    rows = json.loads((tmp_path / "test.json").read_text())
    (tmp_path / "test.json").write_text(json.dumps([[a, c, d] for a, b, c, d in [*rows, rows[0]]]))
    reading = EmoSet(root=tmp_path).reading("test")
    assert len(reading.samples) == 8 and reading.excluded == {"amusement_00017 (row 9)": "repeats an earlier row"}
    (tmp_path / "val.json").write_text(json.dumps(rows[:1]))
    with pytest.raises(ValueError, match="1 names stand both in .*test.json and in .*val.json: image/amusement/amus"):
        EmoSet(root=tmp_path).reading("test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[["awe", "a"', "test.json line 1: .*; expected JSON"),
        ("{}", "holds dict; expected a list of rows"),
        ('[["awe", "image/awe/a.jpg"]]', "row 1 is .*; expected .label, name, picture, annotation."),
        ('[["joy", "a", "image/joy/a.jpg", "x"]]', "row 1: unknown label 'joy' .*; expected one of amusement, awe"),
        ('[["awe", "a", "image/fear/a.jpg", "x"]]', "picture of 'awe' is 'image/fear/a.jpg'; expected image/awe/FILE"),
        ('[["awe", "a", "../awe/a.jpg", "x"]]', "expected image/awe/FILE"),
    ],
)
def test_damaged_lists_are_refused(tmp_path, text, message):
    write_emoset(tmp_path, (8, 8, 8), pictures=False)
    (tmp_path / "test.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        EmoSet(root=tmp_path).reading("test")


def test_missing_list(tmp_path):
    with pytest.raises(FileNotFoundError, match="EmoSet: no val.json .*vcc.tech"):
        EmoSet(root=tmp_path).reading("dev")


@pytest.mark.usefixtures("one_threaded", "elsewhere")
def test_a_face_model_learns_the_pictures(tmp_path):
    corpus = write_emoset(tmp_path / "emoset", (64, 8, 16))
    make_vit_folder(tmp_path / "vit", ("a", "b"), 32, 8, width=32, layers=2, heads=2, intermediate_size=64)
    run = fit_corpus(
        tmp_path,
        "FaceClassifier",
        "EmoSet",
        corpus,
        8,
        model__vision=tmp_path / "vit",
        model__new_head=list(EmoSet.labels.names),
        model__frames=1,
        model__size=32,
        data__batch_size=8,
    )
    zoo("test", f"--ckpt_path={run}")
    said = metrics(run)
    assert (said["n"], said["unparsed"], said["corpus"]) == (16, 0, "emoset") and said["accuracy"] >= 0.5  # chance: 1/8
