import pytest

from tests.builders import make_llm
from tests.data.miniature import EMORYNLP, dialogue, scene, write_csv, write_emorynlp, write_meld
from tests.runs_helper import fit_corpus, metrics, parsed_data, rows, zoo
from zoo.data.emorynlp import OFFICIAL, EmoryNLP

TURNS = [("Where is the ladder?", "neutral"), ("Behind you!", "scared"), ("Oh, lovely.", "joyful")]


@pytest.fixture
def table():
    return scene(3, TURNS) + scene(10, TURNS[:2]) + scene(3, TURNS[:2], episode=11)


def read(folder, table, split="train", **options):
    write_csv(folder / f"emorynlp_{split}_final.csv", table)
    return EmoryNLP(root=folder, **options).reading(split)


def test_samples(tmp_path, table):
    reading = read(tmp_path, table)
    keys = [f"s1e2_sc3_utt{i}" for i in (1, 2, 3)] + ["s1e2_sc10_utt1", "s1e2_sc10_utt2"]
    keys += ["s1e11_sc3_utt1", "s1e11_sc3_utt2"]
    assert [s.id for s in reading.samples] == [f"emorynlp/train/{key}" for key in keys]
    third = reading.samples[2]
    assert (third.dialogue, third.label, third.labels.names[0]) == ("emorynlp/train/s1e2_sc3", 0, "joyful")
    assert [turn.speaker for turn in (*third.history, third.target)] == ["Ada", "Ada and Bela", "Cleo"]
    assert [turn.label for turn in third.history] == ["neutral", "scared"] and third.target.video is None
    assert reading.samples[3].history == () and reading.official == 7551
    notes = {"utterances of several speakers at once, in the file": 3}
    assert reading.report() == {"n_used": 7, "n_official": 7551, "excluded": {}, "notes": notes}


def test_official_counts():
    assert OFFICIAL == {"train": (7551, 659), "dev": (954, 89), "test": (984, 79)}
    assert EmoryNLP.labels.names == EMORYNLP


def test_order_of_rows_changes_nothing(tmp_path, table):
    assert read(tmp_path, table[::-1]).samples == read(tmp_path, table).samples


def test_last_utterance(tmp_path, table):
    reading = read(tmp_path, table, protocol="last_utterance")
    assert [s.target.id for s in reading.samples] == ["s1e2_sc3_utt3", "s1e2_sc10_utt2", "s1e11_sc3_utt2"]
    assert (reading.official, reading.notes["not the last of their scene, context only"]) == (659, 4)
    with pytest.raises(ValueError, match="protocol is all_utterances or last_utterance, got 'last'"):
        EmoryNLP(protocol="last")


@pytest.mark.parametrize("cell", ["Ada", "", "[]", "['']", "[1]", "{'Ada': 1}", "__import__('os').getcwd()", "['Ada'"])
def test_speakers_must_be_a_list_of_names(tmp_path, table, cell):
    table[1]["Speaker"] = cell
    with pytest.raises(ValueError) as error:
        read(tmp_path, table)
    assert f"Speaker is {cell!r} in row 3; expected a list of names" in str(error.value)


def test_speakers_with_apostrophes(tmp_path, table):
    table[0]["Speaker"] = "[\"Ada's Aunt\", 'Dan ']"
    assert read(tmp_path, table).samples[0].target.speaker == "Ada's Aunt and Dan"


@pytest.mark.parametrize("column", ["Season", "Episode", "Scene_ID", "Utterance_ID"])
def test_renamed_columns_and_odd_numbers(tmp_path, table, column):
    renamed = [{(f"{name} No" if name == column else name): cell for name, cell in row.items()} for row in table]
    with pytest.raises(ValueError, match=f"emorynlp_train_final.csv has the columns .*and {column} is not"):
        read(tmp_path, renamed)
    table[2][column] = "2b"
    with pytest.raises(ValueError, match=f"{column} is '2b' in row 4; expected whole numbers"):
        read(tmp_path, table)


def test_unknown_label(tmp_path, table):
    table[1]["Emotion"] = "Fear"
    with pytest.raises(ValueError, match=r"unknown label 'Fear' in row 3 \(s1e2_sc3_utt2\); expected one of joyful"):
        read(tmp_path, table)


def test_repeated_rows(tmp_path, table):
    reading = read(tmp_path, [*table, table[1]])
    assert reading.excluded == {"s1e2_sc3_utt2 (row 9)": "repeats an earlier row word for word"}
    assert len(reading.samples) == 7
    with pytest.raises(ValueError, match="several rows with different contents for s1e2_sc3_utt2"):
        read(tmp_path, [*table, table[1] | {"Emotion": "Mad"}])


def test_empty_and_damaged_texts(tmp_path, table):
    table[0]["Utterance"], table[1]["Utterance"] = " ", "Isn\x92t it"
    reading = read(tmp_path, table)
    assert reading.excluded == {"s1e2_sc3_utt1": "empty utterance"}
    assert reading.samples[0].target.text == "Isn't it" and reading.samples[0].history == ()
    assert reading.notes["texts with encoding leftovers, repaired"] == 1
    path = tmp_path / "emorynlp_train_final.csv"
    path.write_bytes(path.read_text().encode("utf-16"))
    with pytest.raises(ValueError, match="emorynlp_train_final.csv holds zero bytes"):
        EmoryNLP(root=tmp_path).reading("train")


def test_the_test_file_is_missed_only_where_it_is_needed(tmp_path):
    write_emorynlp(tmp_path)
    assert EmoryNLP(root=tmp_path).splits() == ("train", "dev", "test")
    (tmp_path / "emorynlp_test_final.csv").unlink()
    data = EmoryNLP(root=tmp_path)
    data.setup("fit")
    assert data.splits() == ("train", "dev")
    with pytest.raises(FileNotFoundError, match="EmoryNLP: no emorynlp_test_final.csv .*--data.root"):
        data.setup("test")
    assert EmoryNLP(root=tmp_path / "nowhere").splits() == EmoryNLP().splits() == ("train", "dev", "test")


def test_dev_as_test(tmp_path):
    write_emorynlp(tmp_path, scenes=(20, 3, 3))
    (tmp_path / "emorynlp_test_final.csv").unlink()
    data = EmoryNLP(root=tmp_path, split_source="dev_as_test")
    parts = {split: {s.dialogue for s in data.samples(split)} for split in data.splits()}
    assert [len(part) for part in parts.values()] == [18, 2, 3] and not parts["train"] & parts["dev"]
    released = EmoryNLP(root=tmp_path)
    assert parts["train"] | parts["dev"] == {s.dialogue for s in released.samples("train")}
    assert data.samples("test") == released.samples("dev")  # ids name the file
    assert [data.reading(s).official for s in data.splits()] == [None, None, 954]
    assert data.protocol == "all_utterances_dev_as_test"
    others = [EmoryNLP(root=tmp_path, split_source="dev_as_test", split_seed=s).samples("dev") for s in range(4)]
    assert any({s.dialogue for s in o} != parts["dev"] for o in others)


def test_scenes_with_lines_of_meld_are_dropped(tmp_path):
    lines = [
        [("Who left the ladder in the yard?", "neutral"), ("Not me.", "sad")],  # in MELD's test split
        [("Not me.", "mad"), ("The ladder -- it isn't here, you know!", "sad")],  # too short; and in dev
        [("Hello there, Ada, how is it?", "joyful"), ("Not me.", "neutral")],  # in train: no harm
    ]
    meld = {
        "train": "Hello there, Ada, how is it?",
        "dev": "the ladder, it isn’t here you know",
        "test": "WHO LEFT THE LADDER -- in the yard",
    }
    for split, text in meld.items():
        write_csv(tmp_path / "meld" / f"{split}_sent_emo.csv", dialogue(0, [(text, "joy"), ("Not me.", "joy")]))
    table = [row for i, turns in enumerate(lines) for row in scene(i + 1, turns)]
    reading = read(tmp_path, table, drop_leaks_to=tmp_path / "meld")
    assert {s.dialogue for s in reading.samples} == {"emorynlp/train/s1e2_sc3"}
    assert reading.notes["scenes left out, they hold lines of MELD's dev or test split"] == 2
    assert reading.notes["utterances of those scenes"] == 4
    with pytest.raises(FileNotFoundError, match="MELD: no dev_sent_emo.csv .*their folder as --data.drop_leaks_to"):
        EmoryNLP(root=tmp_path, drop_leaks_to=tmp_path).reading("train")


def test_captions(tmp_path, table):
    (tmp_path / "video_description_train.json").write_text('{"s1e2_sc3_utt1": "she frowns"}')
    samples = read(tmp_path, table, descriptions=[tmp_path]).samples
    assert samples[1].history[0].descriptions == {"video": "she frowns"} and samples[1].target.descriptions == {}


def test_options_reach_the_command_line(tmp_path):
    data = parsed_data(
        "--data=zoo.data.emorynlp.EmoryNLP",
        f"--data.root={write_emorynlp(tmp_path / 'e')}",
        f"--data.drop_leaks_to={write_meld(tmp_path / 'm')}",
        "--data.split_source=dev_as_test",
    )
    assert len(data.samples("test")) == 21 and data.drop_leaks_to == tmp_path / "m"


@pytest.mark.usefixtures("elsewhere")
def test_fit_and_test(tmp_path):
    corpus = write_emorynlp(tmp_path / "emorynlp", scenes=(3, 2, 2))
    model = {"model__template": "short", "model__window": 1, "model__lr": 0.01}
    run = fit_corpus(
        tmp_path,
        "DialogueLLM",
        "EmoryNLP",
        corpus,
        1,
        model__llm=make_llm(tmp_path / "llm"),
        **model,
        data__batch_size=4,
    )
    zoo("test", f"--ckpt_path={run}")
    answers, result = rows(run), metrics(run)
    assert {r["label"] for r in answers} == set(EMORYNLP) == set(result["per_class"]) and len(answers) == 14
    assert all(set(r["scores"]) == set(EMORYNLP) for r in answers)
    assert answers[0]["id"] == "emorynlp/test/s1e3_sc1_utt1" and result["population"]["n_official"] == 984
