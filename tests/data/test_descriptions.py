import json

import pytest

from tests.data.miniature import write_csv
from zoo.data.descriptions import load_descriptions

KEYS = [f"dia{d}_utt{u}" for d in range(20) for u in range(10)]
SPEECH = {"split": "train", "id": "dia0_utt0", "duration": "2.5", "avg_pitch": "", "description": "high volume"}
STAGE = {
    "split": "train",
    "id": "dia0_utt0",
    "scene": "[Scene: a yard]",
    "before": ["(knocks)"],
    "after": ["(sits)", "(laughs)"],
}


def write_json(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_json_joins_by_key_and_missing_ones_are_counted(tmp_path):
    path = write_json(tmp_path / "audio_description_train.json", {"dia0_utt0": " a calm\x92 voice ", "dia0_utt1": " "})
    found, notes = load_descriptions([path], "train", KEYS)
    assert {key: texts for key, texts in found.items() if texts} == {"dia0_utt0": {"audio": "a calm' voice"}}
    assert notes["audio descriptions missing"] == 199  # an empty text is a missing one


def test_a_file_of_another_split_is_skipped_but_its_kind_counts_as_missing(tmp_path):
    path = write_json(tmp_path / "audio_description_train.json", {"other_key": "x"})
    found, notes = load_descriptions([path], "test", KEYS)
    assert found == {} and notes == {"audio descriptions missing": 200}


def test_folder_and_disjoint_kinds(tmp_path):
    for kind in ("audio", "video", "body_pose"):
        write_json(tmp_path / f"{kind}_description_train.json", {"dia0_utt0": kind})
        write_json(tmp_path / f"{kind}_description_dev.json", {"dia0_utt0": "other"})
    write_csv(tmp_path / "meld_audio_features.csv", [SPEECH])
    write_lines(tmp_path / "meld_stage_directions.jsonl", [STAGE])
    (tmp_path / "LICENSE").touch()
    (tmp_path / "train_sent_emo.csv").touch()
    found, _ = load_descriptions([tmp_path, tmp_path / "audio_description_train.json"], "train", KEYS)
    assert found["dia0_utt0"] == {
        "audio": "audio",
        "video": "video",
        "body_pose": "body_pose",
        "speech": "high volume",
        "stage": "(knocks) (sits) (laughs)",
        "scene": "[Scene: a yard]",
    }


def test_two_files_of_one_kind(tmp_path):
    (tmp_path / "more").mkdir()
    first = write_json(tmp_path / "audio_description_train.json", {"dia0_utt0": "x"})
    second = write_json(tmp_path / "more" / "audio_description_train.json", {"dia0_utt1": "y"})
    with pytest.raises(ValueError, match="gives? 'audio' descriptions") as error:
        load_descriptions([first, second], "train", KEYS)
    assert str(first) in str(error.value) and str(second) in str(error.value)


@pytest.mark.parametrize("name", ["audio_train.json", "A_description_train.json", "a_description_val.json", "x.csv"])
def test_unrecognised_name(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match="says neither kind nor split") as error:
        load_descriptions([tmp_path / name], "train", KEYS)
    assert name in str(error.value) and "expected {kind}_description_{train,dev,test}.json" in str(error.value)


def test_missing_file_and_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="audio_description_train.json does not exist; .*--data.descriptions"):
        load_descriptions([tmp_path / "audio_description_train.json"], "train", KEYS)
    with pytest.raises(FileNotFoundError, match="has no description file; expected {kind}_description") as error:
        load_descriptions([tmp_path], "train", KEYS)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    "content, words",
    [
        ('{"dia0_utt0": "x"', ["not valid JSON", "line 1 column"]),
        ("", ["not valid JSON"]),
        ('["x"]', ["holds a list", '{"dia0_utt0": "a calm voice"}']),
        ('{"dia0_utt0": null}', ["value of dia0_utt0 is None", "expected a text"]),
        ('{"dia0_utt0": ["x"]}', ["value of dia0_utt0 is ['x']"]),
        ('{"dia0_utt0": {"a": "b"}}', ["value of dia0_utt0 is"]),
        ('{"dia0_utt0": "x", "dia0_utt0": "y"}', ["different contents for dia0_utt0"]),
    ],
)
def test_bad_json(tmp_path, content, words):
    path = tmp_path / "video_description_train.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        load_descriptions([path], "train", KEYS)
    for word in (path.name, *words):
        assert word in str(error.value)


def test_unknown_keys(tmp_path):
    texts = dict.fromkeys(KEYS, "x")
    path = write_json(tmp_path / "audio_description_train.json", texts | {"dia99_utt0": "x", "dia99_utt1": "x"})
    found, notes = load_descriptions([path], "train", KEYS)  # 2 of 202: under one percent
    assert set(found) == set(KEYS)
    assert notes["audio_description_train.json: keys not in the corpus, left out"] == 2
    write_json(path, texts | {f"dia99_utt{i}": "x" for i in range(3)})
    with pytest.raises(ValueError, match="3 of 203 keys are not in .* train split .dia99_utt0, .*keys like dia0_utt0"):
        load_descriptions([path], "train", KEYS)


def test_cp1252_and_bom(tmp_path):
    path = tmp_path / "audio_description_train.json"
    path.write_bytes('{"dia0_utt0": "she’s calm"}'.encode("cp1252"))
    found, notes = load_descriptions([path], "train", KEYS)
    assert found["dia0_utt0"] == {"audio": "she’s calm"}
    assert notes["audio_description_train.json is not UTF-8, read as cp1252"] == 1
    path.write_bytes(b'\xef\xbb\xbf{"dia0_utt0": "calm"}\r\n')
    assert load_descriptions([path], "train", KEYS)[0]["dia0_utt0"] == {"audio": "calm"}


def test_speech_leaves_out_broken_durations(tmp_path):
    broken, elsewhere = {"id": "dia0_utt1", "duration": "304.97"}, {"split": "dev", "id": "unknown"}
    rows = [SPEECH, SPEECH | broken, SPEECH | elsewhere, SPEECH]
    found, notes = load_descriptions([write_csv(tmp_path / "meld_audio_features.csv", rows)], "train", KEYS)
    assert {key for key, texts in found.items() if texts} == {"dia0_utt0"}
    assert notes["speech descriptions of a clip over 60 s, left out"] == 1
    assert notes["meld_audio_features.csv: rows repeated, left out"] == 1
    assert notes["speech descriptions missing"] == 199


@pytest.mark.parametrize(
    "change, words",
    [
        ({"duration": "long"}, "row 2 .dia0_utt0.: duration is 'long'; expected seconds"),
        ({"duration": ""}, "row 2 .dia0_utt0.: duration is ''"),
        ({"split": "Train"}, "row 2: split is 'Train'; expected train, dev or test"),
    ],
)
def test_bad_speech(tmp_path, change, words):
    with pytest.raises(ValueError, match=f"meld_audio_features.csv {words}"):
        load_descriptions([write_csv(tmp_path / "meld_audio_features.csv", [SPEECH | change])], "train", KEYS)


def test_speech_without_description(tmp_path):
    rows = [{name: cell for name, cell in SPEECH.items() if name != "description"}]
    with pytest.raises(ValueError, match="meld_audio_features.csv has the columns .*description is not"):
        load_descriptions([write_csv(tmp_path / "meld_audio_features.csv", rows)], "train", KEYS)


def test_stage_and_scene_are_apart(tmp_path):
    rows = [STAGE, STAGE | {"id": "dia0_utt1", "before": [], "after": []}, STAGE | {"id": "dia0_utt2", "scene": None}]
    rows.append(STAGE | {"split": "dev", "id": "dia0_utt3"})  # dia0_utt3 of train has none
    found, notes = load_descriptions([write_lines(tmp_path / "meld_stage_directions.jsonl", rows)], "train", KEYS)
    assert found["dia0_utt1"] == {"scene": "[Scene: a yard]"}
    assert found["dia0_utt2"] == {"stage": "(knocks) (sits) (laughs)"}
    assert (notes["stage descriptions missing"], notes["scene descriptions missing"]) == (198, 198)


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "line 2 cannot be read .JSONDecodeError"),
        ('{"split": "train", "id": "dia0_utt1"}', "line 2 cannot be read .KeyError: 'before'"),
        (json.dumps(STAGE | {"before": "(knocks)"}), "line 2 .*before and after are not lists"),
        (json.dumps(STAGE | {"after": [1]}), "line 2 cannot be read .TypeError"),
        (json.dumps(STAGE | {"split": "validation"}), "row 2: split is 'validation'"),
        (json.dumps(STAGE | {"scene": "[Scene: a hall]"}), "different contents for dia0_utt0"),
        ("[]", "line 2 cannot be read .TypeError"),
    ],
)
def test_bad_stage_directions(tmp_path, line, words):
    path = tmp_path / "meld_stage_directions.jsonl"
    path.write_text(json.dumps(STAGE) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"meld_stage_directions.jsonl .*{words}"):
        load_descriptions([path], "train", KEYS)
