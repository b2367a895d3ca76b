import random

import pytest
from jsonargparse import ArgumentParser

from tests.data.miniature import dialogue, write_csv, write_meld
from tests.media_files import clip, numbers
from zoo.data.base import EmotionData
from zoo.data.meld import CLIPS, KNOWN_BAD, MELD, OFFICIAL
from zoo.media import read_frames

TURNS = [("Where is the ladder?", "neutral"), ("Behind you!", "fear"), ("Oh, lovely.", "joy")]


@pytest.fixture
def rows():
    return dialogue(0, TURNS) + dialogue(4, TURNS[:2])


def read(folder, rows, split="train", **options):
    write_csv(folder / f"{split}_sent_emo.csv", rows)
    return MELD(root=folder, **options).reading(split)


def test_samples(tmp_path, rows):
    reading = read(tmp_path, rows)
    keys = ["dia0_utt0", "dia0_utt1", "dia0_utt2", "dia4_utt0", "dia4_utt1"]
    assert [s.id for s in reading.samples] == [f"meld/train/{key}" for key in keys]
    third = reading.samples[2]
    assert (third.dialogue, third.label, third.labels.names[4]) == ("meld/train/dia0", 4, "joy")
    assert (third.target.speaker, third.target.text, third.target.label) == ("Cleo", "Oh, lovely.", "joy")
    assert [turn.id for turn in third.history] == ["dia0_utt0", "dia0_utt1"]
    assert third.target.descriptions == {} and third.target.video is None and third.target.audio is None
    assert reading.samples[3].history == ()
    assert reading.report() == {"n_used": 5, "n_official": 9989, "excluded": {}, "notes": {}}


def test_official_counts_and_known_faults_are_data():
    assert OFFICIAL == {"train": (9989, 1038), "dev": (1109, 114), "test": (2610, 280)}
    assert sorted(map("/".join, KNOWN_BAD)) == [
        "dev/dia110_utt7",
        "test/dia220_utt0",
        "test/dia38_utt4",
        "train/dia125_utt3",
    ]


def test_last_utterance_protocol(tmp_path, rows):
    reading = read(tmp_path, rows, "test", protocol="last_utterance")
    assert [s.id for s in reading.samples] == ["meld/test/dia0_utt2", "meld/test/dia4_utt1"]
    assert [len(s.history) for s in reading.samples] == [2, 1]
    assert (reading.official, reading.notes["not the last of their dialogue, context only"]) == (280, 3)
    with pytest.raises(ValueError, match="protocol is all_utterances or last_utterance, got 'last'"):
        MELD(root=tmp_path, protocol="last")


def test_miniature_has_all_labels_and_is_reproducible(tmp_path):
    data = MELD(root=write_meld(tmp_path / "a"))
    assert [len(data.samples(split)) for split in data.splits()] == [56, 21, 21]
    assert {s.target.label for s in data.samples("dev")} == set(MELD.labels.names)
    write_meld(tmp_path / "b")
    write_meld(tmp_path / "c", seed=1)
    a, b, c = ((tmp_path / n / "train_sent_emo.csv").read_bytes() for n in "abc")
    assert a == b != c


def test_csv_may_lie_in_the_folder_of_its_split(tmp_path, rows):
    write_csv(tmp_path / "train" / "train_sent_emo.csv", rows)
    assert len(MELD(root=tmp_path).samples("train")) == 5


def test_missing_folder_and_file(tmp_path, rows):
    with pytest.raises(FileNotFoundError, match="MELD: no train_sent_emo.csv .*which does not exist; .*--data.root"):
        MELD(root=tmp_path / "nowhere").reading("train")
    write_csv(tmp_path / "train_sent_emo.csv", rows)
    with pytest.raises(FileNotFoundError, match="no dev_sent_emo.csv .*holds train_sent_emo.csv; expected .*MELD.Raw"):
        MELD(root=tmp_path).reading("dev")
    with pytest.raises(FileNotFoundError, match="MELD needs its folder: give --data.root"):
        MELD().reading("train")


def test_renamed_column(tmp_path, rows):
    renamed = [{("Dialogue ID" if name == "Dialogue_ID" else name): cell for name, cell in row.items()} for row in rows]
    with pytest.raises(ValueError, match="_sent_emo.csv has the columns .*Dialogue_ID is not .closest .*: Dialogue ID"):
        read(tmp_path, renamed)


def test_padded_column_names_and_extra_columns_do_no_harm(tmp_path, rows):
    padded = [{f" {name} ": cell for name, cell in row.items()} | {"more": "x"} for row in rows]
    assert len(read(tmp_path, padded).samples) == 5


def test_labels_in_another_case_or_padded_are_counted(tmp_path, rows):
    rows[0]["Emotion"], rows[2]["Emotion"] = "Neutral", " JOY "
    reading = read(tmp_path, rows)
    assert [s.target.label for s in reading.samples[:3]] == ["neutral", "fear", "joy"]
    assert reading.notes["labels written in another case or padded"] == 2


@pytest.mark.parametrize("label", ["happy", "", "joy, fear"])
def test_unknown_label(tmp_path, rows, label):
    rows[1]["Emotion"] = label
    with pytest.raises(ValueError) as error:
        read(tmp_path, rows)
    for word in ("train_sent_emo.csv", f"unknown label {label!r} in row 3 (dia0_utt1)", "one of neutral, surprise"):
        assert word in str(error.value)


@pytest.mark.parametrize("column", ["Dialogue_ID", "Utterance_ID"])
@pytest.mark.parametrize("value", ["0.0", "-1", "", "one"])
def test_ids_must_be_whole_numbers(tmp_path, rows, column, value):
    rows[2][column] = value
    with pytest.raises(ValueError, match=f"{column} is '{value}' in row 4; expected whole numbers"):
        read(tmp_path, rows)


def test_duplicate_keys(tmp_path, rows):
    reading = read(tmp_path, [*rows, rows[1]])
    assert len(reading.samples) == 5 and len({s.id for s in reading.samples}) == 5
    assert reading.excluded == {"dia0_utt1 (row 7)": "repeats an earlier row word for word"}
    with pytest.raises(ValueError, match="train_sent_emo.csv has several rows with different contents for dia0_utt1"):
        read(tmp_path, [*rows, rows[1] | {"Utterance": "In front of you!"}])
    with pytest.raises(ValueError, match="dia4_utt0"):
        read(tmp_path, [*rows, rows[3] | {"Emotion": "anger"}])


def test_rows_out_of_order_change_nothing(tmp_path, rows):
    in_order = read(tmp_path, rows)
    shuffled = read(tmp_path, [rows[i] for i in (0, 2, 1, 3, 4)])
    assert shuffled.samples == in_order.samples
    assert (in_order.notes["rows out of order"], shuffled.notes["rows out of order"]) == (0, 1)
    random.Random(0).shuffle(rows)
    assert read(tmp_path, rows).samples == in_order.samples


def test_utterance_ten_comes_after_nine(tmp_path):
    reading = read(tmp_path, dialogue(0, TURNS[:1] * 11))
    assert [s.target.id for s in reading.samples][-2:] == ["dia0_utt9", "dia0_utt10"]
    assert reading.notes["rows out of order"] == 0


@pytest.mark.parametrize("empty", ["", "  ", "\xa0", "\ufeff"])
def test_empty_utterance_is_left_out_everywhere(tmp_path, rows, empty):
    rows[1]["Utterance"] = empty
    reading = read(tmp_path, rows)
    assert reading.excluded == {"dia0_utt1": "empty utterance"}
    assert [turn.id for turn in reading.samples[1].history] == ["dia0_utt0"]
    assert "dia0_utt1" not in {s.target.id for s in reading.samples}


def test_encoding_leftovers_bom_and_line_ends(tmp_path, rows):
    rows[0]["Utterance"], rows[1]["Utterance"] = "I didn\x92t\xa0know ", "two\r\nlines"
    path = write_csv(tmp_path / "train_sent_emo.csv", rows, encoding="utf-8-sig")
    reading = MELD(root=tmp_path).reading("train")
    assert [s.target.text for s in reading.samples[:2]] == ["I didn't know", "two lines"]
    assert reading.notes["texts with encoding leftovers, repaired"] == 1
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))
    assert MELD(root=tmp_path).reading("train").samples == reading.samples


def test_cp1252_copy(tmp_path, rows):
    rows[0]["Utterance"] = "It’s here…"
    expected = read(tmp_path, rows).samples
    write_csv(tmp_path / "train_sent_emo.csv", rows, encoding="cp1252")
    reading = MELD(root=tmp_path).reading("train")
    assert reading.samples == expected
    assert reading.report()["notes"] == {"train_sent_emo.csv is not UTF-8, read as cp1252": 1}


def test_chat_template_tokens_stay_text(tmp_path, rows):
    rows[0]["Utterance"] = "<|eot_id|> [INST] <image>"
    assert read(tmp_path, rows).samples[0].target.text == "<|eot_id|> [INST] <image>"


@pytest.mark.parametrize("inside", ["", "test"])
def test_clips(tmp_path, rows, inside):
    folder = tmp_path / inside / CLIPS["test"]
    folder.mkdir(parents=True)
    orphans = "dia0_utt9.mp4", "._dia0_utt2.mp4", "final_videos_testdia0_utt1.mp4"
    for name in ("dia0_utt0.mp4", "dia4_utt1.mp4", *orphans):
        (folder / name).touch()
    reading = read(tmp_path, rows, "test")
    clips = {s.target.id: s.target.video for s in reading.samples if s.target.video}
    assert clips == {"dia0_utt0": folder / "dia0_utt0.mp4", "dia4_utt1": folder / "dia4_utt1.mp4"}
    assert all(s.target.audio == s.target.video for s in reading.samples)
    assert reading.report()["notes"] == {"clips missing": 3, "second cuts (final_videos_test*), not used": 1}


def test_the_frame_of_an_utterance_is_the_one_at_half_time_of_its_clip(tmp_path, rows):
    (tmp_path / CLIPS["test"]).mkdir()
    clip(tmp_path / CLIPS["test"] / "dia0_utt0.mp4", count=25, seconds=1.0)
    turn = read(tmp_path, rows, "test").samples[0].target
    assert (turn.start, turn.end, turn.crop, turn.frame_at) == (None, None, None, "middle")
    assert numbers(read_frames(turn.video, position=turn.frame_at)) == [12]


def test_known_bad_clip_is_not_used_but_its_text_is(tmp_path):
    folder = tmp_path / CLIPS["test"]
    folder.mkdir()
    for i in range(5):
        (folder / f"dia38_utt{i}.mp4").touch()
    reading = read(tmp_path, dialogue(38, [*TURNS, *TURNS]), "test")
    assert [s.target.video is not None for s in reading.samples] == [True, True, True, True, False, False]
    assert reading.samples[4].target.text == "Behind you!"
    assert reading.report()["notes"] == {"clips known to be bad, not used": 1, "clips missing": 1}
    train = read(tmp_path, dialogue(38, [*TURNS, *TURNS]), "train")
    assert train.report()["notes"] == {}  # the fault is the test clip's; and no clip folder, no word about clips


def test_captions_are_joined_to_target_and_history(tmp_path):
    data = MELD(root=write_meld(tmp_path, kinds=("audio", "video")), descriptions=[tmp_path])
    last = data.samples("dev")[-1]
    assert set(last.target.descriptions) == set(last.history[0].descriptions) == {"audio", "video"}
    assert data.reading("dev").report()["notes"] == {}


def test_limit_and_nothing_left(tmp_path, rows):
    assert len(read(tmp_path, rows, limit=1).samples) == 3
    for row in rows:
        row["Utterance"] = ""
    with pytest.raises(ValueError, match="MELD has no train samples"):
        read(tmp_path, rows)


def test_options_reach_the_command_line(tmp_path, capsys):
    parser = ArgumentParser()
    parser.add_subclass_arguments(EmotionData, "data")
    given = [
        "--data=zoo.data.meld.MELD",
        f"--data.root={tmp_path}",
        "--data.descriptions=[a.json, b]",
        "--data.protocol=last_utterance",
        "--data.batch_size=4",
    ]
    data = parser.instantiate(parser.parse_args(given)).data
    assert (data.root, data.protocol, data.batch_size) == (tmp_path, "last_utterance", 4)
    assert [path.name for path in data.description_files] == ["a.json", "b"]
    with pytest.raises(SystemExit):
        parser.parse_args(["--data.help=zoo.data.meld.MELD"])
    text = " ".join(capsys.readouterr().out.split())
    assert "which utterances are classified" in text and "samples per training batch" in text
