"""Table: what a user's own CSV, TSV or JSONL holds is read as it stands, and what cannot be meant is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders import label_clip, make_eyes, make_llm
from tests.data.miniature import write_csv
from tests.runs_helper import fit, flags, metrics, parsed_data, refused, rows, zoo
from zoo.data import Adaptation, EmotionData, Joint, Resplit, Table
from zoo.schema import Sample

SAID = {"calm": "All fine here.", "tense": "Who took it now?", "playful": "Ha, what a joke!"}
NAMES = ("text", "label", "dialogue", "order", "speaker")


def talk(count: int = 10, turns: int = 3) -> list[dict[str, str]]:
    """Rows of some dialogues."""
    labels = list(SAID)
    return [
        {"text": SAID[label], "label": label, "dialogue": f"d{d}", "order": str(t), "speaker": "Ada"}
        for d in range(count)
        for t in range(turns)
        for label in [labels[(d + t) % 3]]
    ]


def write(folder: Path, table: Sequence[Mapping[str, str]], name: str = "t.csv") -> Path:
    write_csv(folder / name, table)
    return folder


def corpus(folder: Path, table: Sequence[Mapping[str, str]], **options: Any) -> Table:
    return Table(root=write(folder, table), **options)


def samples(data: EmotionData, split: Any = "train") -> list[Sample]:
    return list(data.samples(split))


# ---- what is read
def test_rows_become_samples_with_what_was_said_before(tmp_path):
    rows_ = [
        {"Utterance": "Ok.", "Emotion": " Calm", "Dialogue_ID": "7", "Utterance_ID": "10", "split": "Train"},
        {"Utterance": "Who?", "Emotion": "tense", "Dialogue_ID": "7", "Utterance_ID": "9", "split": "train"},
        {"Utterance": "Hm.", "Emotion": "", "Dialogue_ID": "7", "Utterance_ID": "9.5", "split": "train"},
        {"Utterance": "Ha!", "Emotion": "playful", "Dialogue_ID": "8", "Utterance_ID": "0", "split": "val"},
        {"Utterance": "No.", "Emotion": "calm", "Dialogue_ID": "9", "Utterance_ID": "0", "split": "test"},
    ]
    data = corpus(tmp_path, rows_)
    assert data.labels.names == ("calm", "playful", "tense") and data.protocol == "all_utterances"
    first, second = samples(data)
    assert (first.id, first.history, first.target.label) == ("table/train/dia7_utt9", (), "tense")
    assert second.id == "table/train/dia7_utt10" and [t.text for t in second.history] == ["Who?", "Hm."]
    assert data.population("train")["listed"] == {"without a label, context only": ["dia7_utt9.5"]}
    assert [s.dialogue for s in samples(data, "dev")] == ["table/dev/8"] and len(data.samples("test")) == 1


def test_one_content_in_three_formats(tmp_path):
    table = talk()
    read = []
    for name, text in {
        "t.tsv": "\n".join("\t".join(row) for row in [list(table[0]), *(list(r.values()) for r in table)]),
        "t.jsonl": "\n".join(json.dumps({**row, "order": int(row["order"]), "unread": [1]}) for row in table),
        "t.csv": "\ufeff" + "\n".join(";".join(row) for row in [list(table[0]), *(list(r.values()) for r in table)]),
    }.items():
        folder = tmp_path / name.partition(".")[2]
        folder.mkdir()
        (folder / name).write_text(text, encoding="utf-8")
        data = Table(root=folder, separator=";" if name == "t.csv" else None)
        read.append([samples(data, split) for split in ("train", "dev", "test")])
    assert read[0] == read[1] == read[2] and sum(map(len, read[0])) == 30


def test_columns_and_labels_are_named_by_options(tmp_path):
    table = [{"Words": r["text"], "m": r["label"], "seen": "she smiles", "emotion": "x"} for r in talk()]
    write(tmp_path, table)
    options = flags(
        data="Table",
        data__root=tmp_path,
        data__text="Words",
        data__label="m",
        data__labels="[Tense,calm,playful]",
        data__description_columns="{video: seen}",
        data__name="calls",
    )
    data = parsed_data(*options)
    assert data.labels.names == ("tense", "calm", "playful") and data.labels.corpus == "calls"
    (first, *_) = samples(data)
    assert dict(first.target.descriptions) == {"video": "she smiles"} and first.id.startswith("calls/train/row")
    assert data.population("train")["notes"] == {"columns not read: emotion": 1}


def test_dialogues_are_drawn_whole_and_the_same_whatever_the_order_of_rows(tmp_path):
    table = talk(20)
    (tmp_path / "b").mkdir()
    one, two = corpus(tmp_path, table), corpus(tmp_path / "b", table[::-1])
    parts = [
        [{s.dialogue.split("/")[2] for s in samples(data, split)} for split in data.splits()] for data in (one, two)
    ]
    assert parts[0] == parts[1] and [len(part) for part in parts[0]] == [14, 2, 4]
    assert len(set.union(*parts[0])) == 20
    other = Table(root=tmp_path, split_seed=1)
    assert {s.dialogue for s in samples(other, "test")} != {s.dialogue for s in samples(one, "test")}
    assert one.protocol != other.protocol and "seed 1" in other.protocol
    whole = Table(root=tmp_path, test_share=1, dev_share=0)
    assert whole.splits() == ("test",) and len(whole.samples("test")) == 60


def test_a_column_of_splits_without_dev_has_some_dialogues_drawn_for_it(tmp_path):
    table = [row | {"split": "test" if row["dialogue"] == "d0" else "train"} for row in talk()]
    data = corpus(tmp_path, table)
    assert len({s.dialogue for s in samples(data, "dev")}) == 1 and len(data.samples("test")) == 3
    assert any(what.startswith("no dev rows") for what in data.population("dev")["notes"])
    one = [row | {"split": "train" if row["dialogue"] == "d0" else "test"} for row in talk()]
    assert corpus(tmp_path, one).splits() == ("train", "test")  # which is left, the only one to train on


def test_labels_are_cleaned_as_texts_are(tmp_path):
    table = talk()
    table[0]["label"] = "\ufeff" + table[0]["label"] + "\x01"
    assert corpus(tmp_path, table).labels.names == ("calm", "playful", "tense")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "t.jsonl").write_text('{"text": "Oh.", "label": "a\\ud800"}\n{"text": "Hm.", "label": "b"}\n')
    with pytest.raises(ValueError, match="t.jsonl is not UTF-8"):
        Table(root=tmp_path / "half").splits()


def test_a_name_that_stands_twice_but_for_spaces(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "Oh.", " text": "Hm.", "label": "a"}\n')
    with pytest.raises(ValueError, match="line 1 names a column twice"):
        Table(root=tmp_path).splits()


def test_what_cannot_be_used_is_counted_and_listed(tmp_path):
    table = [{"id": f"u{i}", **row, "clip": ""} for i, row in enumerate(talk(2))]
    table[1] |= {"text": " "}
    table[2] |= {"text": "", "clip": "gone.mp4"}
    table[3] |= {"clip": f"{'long' * 100}.wav"}
    table.append(dict(table[0]))
    data = corpus(tmp_path, table, dev_share=0, test_share=0)
    reading = data.reading("train")
    assert reading.excluded == {
        "u1": "no words, no clip, no description",
        "u2": "the clip is not there",
        "u0 (row 8)": "repeats an earlier row word for word",
    }
    assert reading.listed == {"clips missing": ["u3"]} and reading.without_file == {"u2"}
    assert [s.target.id for s in reading.samples] == ["u0", "u3", "u4", "u5"]


def test_it_stands_inside_other_corpora(tmp_path):
    table = write(tmp_path, talk(20))
    inner = {"class_path": "Table", "init_args": {"root": str(table)}}
    again = Resplit(Table(root=table), split_seed=3)
    assert sum(len(again.samples(s)) for s in ("train", "dev", "test")) == 60
    assert len(Adaptation(Table(root=table)).samples("train")) == len(Table(root=table).samples("test"))
    joint = Joint([Table(root=table, name="one"), Table(root=table, name="two")])
    section = {"init_args": {"parts": [{"init_args": dict(inner["init_args"])} for _ in "12"]}}
    joint.settle(section)
    assert [part["init_args"]["labels"] for part in section["init_args"]["parts"]] == [["calm", "playful", "tense"]] * 2


# ---- what is refused
GOOD = talk(10)
BAD: dict[str, tuple[list[dict[str, str]], dict[str, Any], list[str]]] = {
    "an unknown column is named": (GOOD, {"text": "txet"}, ["--data.text names 'txet'", "did you mean text"]),
    "no words": ([{"words": "a", "label": "x"}], {}, ["none is known to hold words", "--data.text"]),
    "no labels": ([{"text": "a"}], {}, ["none is known to hold labels", "--data.label"]),
    "one column twice": (GOOD, {"text": "label", "label": "label"}, ["--data.text and --data.label name the same"]),
    "two label columns": (
        [row | {"Emotion": "x"} for row in GOOD],
        {},
        ["two columns for label: label and Emotion", "--data.label Emotion"],
    ),
    "a label that is none": (GOOD, {"labels": ["calm", "tense"]}, ["unknown label 'playful' in row", "--data.labels"]),
    "one label": ([row | {"label": "calm"} for row in GOOD], {}, ["holds 1 different words (calm)"]),
    "texts as labels": (
        [row | {"label": f"{row['text']} {i}"} for i, row in enumerate(talk(40))],
        {},
        ["holds 120 different words", "from 2 to 64 labels"],
    ),
    "labels twice": (GOOD, {"labels": ["calm", "Calm "]}, ["at least two different words, got calm, calm"]),
    "an empty id": ([{"id": "", **row} for row in GOOD], {}, ["the id '' is empty"]),
    "an id twice": ([{"id": "a", **row} for row in GOOD], {}, ["that of row 2, too, with other contents"]),
    "no dialogue": ([row | {"dialogue": ""} for row in GOOD], {}, ["row 2: no dialogue"]),
    "an order in words": ([row | {"order": "first"} for row in GOOD], {}, ["order is 'first'", "whole numbers"]),
    "a split of another name": ([row | {"split": "evaluation"} for row in GOOD], {}, ["split is 'evaluation'"]),
    "a dialogue in two splits": (
        [row | {"split": "test" if row["order"] == "2" else "train"} for row in GOOD],
        {},
        ["the dialogue 'd0' stands in train and in test", "cannot be tested on"],
    ),
    "an empty split": (
        [row | {"split": "test"} for row in GOOD],
        {},
        ["has no train rows: its column of splits gives the dialogues train 0, dev 0, test 10"],
    ),
    "too few dialogues": (talk(2), {}, ["no train rows: of its dialogues were drawn train 0, dev 1, test 1"]),
    "no label in the split": (
        [row | {"label": ""} for row in GOOD],
        {"labels": ["a", "b"]},
        ["none to score", "zoo label"],
    ),
    "a clip above the folder": ([row | {"clip": "a/../../x.mp4"} for row in GOOD], {}, ["leads out of the folder"]),
    "a clip elsewhere": ([row | {"clip": "/etc/x.mp4"} for row in GOOD], {}, ["'/etc/x.mp4' leads out"]),
    "a clip of Windows": ([row | {"clip": r"C:\x.mp4"} for row in GOOD], {}, ["leads out of the folder"]),
    "a clip with backslashes": ([row | {"clip": r"..\x.mp4"} for row in GOOD], {}, ["leads out of the folder"]),
    "a clip that is none": ([row | {"clip": "x.txt"} for row in GOOD], {}, ["'x.txt' is no clip"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_refused(tmp_path, case):
    table, options, message = BAD[case]
    with pytest.raises(ValueError) as error:
        corpus(tmp_path, table, **options).reading("train")
    assert all(words in str(error.value) for words in message), str(error.value)


CSV = "text,label\nOh.,calm\nAh.,tense\n"
BYTES: dict[str, tuple[str, bytes, list[str]]] = {
    "semicolons": ("t.csv", b"text;label\nWell, yes;calm\n", ["no commas but semicolons", "--data.separator ';'"]),
    "tabs": ("t.csv", b"text\tlabel\nOh.\tcalm\n", ["no commas but tabs", "call it .tsv"]),
    "a spreadsheet's line": ("t.csv", b"sep=;\ntext;label\nOh.;calm\n", ["Remove the line", "--data.separator ';'"]),
    "UTF-16": ("t.csv", CSV.encode("utf-16"), ["zero bytes: UTF-16", "--data.encoding utf-16"]),
    "GBK": ("t.csv", "text,label\n我不知道你在说什么。,calm\n".encode("gbk"), ["not UTF-8", "--data.encoding gb18030"]),
    "ragged": ("t.csv", CSV.encode() + b"a,b,c\n", ["row 4 has 3 cells, expected 2"]),
    "an open quote": ("t.csv", b'text,label\n"Oh.,calm\n', ["Close or double the quotes"]),
    "a column twice": ("t.csv", b"text,text,label\na,b,calm\n", ["two columns for text"]),
    "nothing": ("t.csv", b"", ["is empty"]),
    "headings alone": ("t.csv", b"text,label\n", ["is empty"]),
    "quotes in a TSV": ("t.tsv", b'text\tlabel\n"He said ""no"""\tcalm\n', ["in the quotes of a CSV file"]),
    "a list": ("t.jsonl", b'{"text": ["Oh."], "label": "calm"}\n', ["text in row 1 (['Oh.'])"]),
    "no object": ("t.jsonl", b"[1]\n", ["line 1 holds a list"]),
    "a name twice": ("t.jsonl", b'{"text": "a", "text": "b", "label": "c"}\n', ["line 1 names a column twice"]),
    "no JSON": ("t.jsonl", b'{"text": "Oh."', ["line 1 is not JSON"]),
    "a spreadsheet": ("t.xlsx", b"PK", ["is no table that is read", "as CSV"]),
}


@pytest.mark.parametrize("case", BYTES)
def test_bad_files_are_refused(tmp_path, case):
    name, content, message = BYTES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        Table(root=tmp_path, file=name).reading("train")
    assert all(words in str(error.value) for words in message), str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gbk"])
def test_a_named_encoding_is_read(tmp_path, encoding):
    (tmp_path / "t.csv").write_bytes("text,label\n我不知道,calm\n你说,tense\n".encode(encoding))
    named = None if encoding == "utf-8-sig" else encoding
    data = Table(root=tmp_path, encoding=named, test_share=0, dev_share=0)
    assert [s.target.text for s in samples(data)] == ["我不知道", "你说"]


def test_the_place_of_the_table_is_said_rightly(tmp_path):
    write(tmp_path, GOOD)
    for options, message in (
        ({}, "needs its folder: give --data.root"),
        ({"root": tmp_path / "t.csv"}, f"--data.root {tmp_path} --data.file t.csv"),
        ({"root": tmp_path / "absent"}, "there is no such folder"),
        ({"root": tmp_path, "file": "u.csv"}, "no u.csv in"),
    ):
        with pytest.raises(FileNotFoundError, match=message.replace("(", r"\(")):
            Table(**options).reading("train")
    write(tmp_path, GOOD, "u.csv")
    with pytest.raises(FileNotFoundError, match="2 tables in .*it holds t.csv, u.csv.*--data.file"):
        Table(root=tmp_path).reading("train")
    assert len(Table(root=tmp_path, file="u.csv").samples("test")) == 6


@pytest.mark.parametrize(
    "options",
    [
        {"dev_share": 0.6, "test_share": 0.6},
        {"name": "My table"},
        {"description_columns": {"A B": "text"}},
        {"separator": ";;"},
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match="--data"):
        corpus(tmp_path, GOOD, **options).reading("train")


# ---- runs
@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A table with clips and descriptions of three labels, and small models."""
    home = tmp_path_factory.mktemp("table")
    make_llm(home / "llm")
    make_eyes(home / "vision")
    (home / "own" / "clips").mkdir(parents=True)
    table = []
    for i, row in enumerate(talk(6, 2)):
        drawn = {"calm": "neutral", "tense": "anger", "playful": "joy"}[row["label"]]
        (home / "own" / "clips" / f"{i}.mp4").write_bytes(label_clip(drawn, f"{i}"))
        table.append({**row, "clip": f"clips/{i}.mp4", "voice_description": f"a {row['label']} voice"})
    table[0]["clip"] = "clips/gone.mp4"
    write(home / "own", table)
    return home


@pytest.mark.usefixtures("one_threaded", "elsewhere")
def test_clips_and_descriptions_go_into_a_system(home, tmp_path, capsys):
    data = flags(data="Table", data__root=home / "own", data__max_unreadable=0.5, data__split_seed=1)
    model = flags(
        model="FARCER", model__llm=home / "llm", model__vision=home / "vision", model__template="plain", model__window=1
    )
    run = fit(
        tmp_path,
        *model,
        *data,
        "--trainer.max_steps=1",
        "--model.shots=0",
        "--model.train_shots=0",
        "--model.decode=score",
    )
    kept = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["labels"]
    assert kept == ["calm", "playful", "tense"]
    for verb in ("validate", "test", "predict"):
        zoo(verb, f"--ckpt_path={run}", "--trainer.accelerator=cpu")
    assert len(rows(run)) == 2 and set(rows(run)[0]["scores"]) == set(kept)
    # the words that the voices were measured as come into the prompt of another system
    zoo("prepare", "speech", *data, f"--out={tmp_path / 'speech'}", "--least=1")
    described = flags(data__descriptions=f"[{tmp_path / 'speech'}]", model__descriptions="[speech,voice]")
    words = flags(model="DialogueLLM", model__llm=home / "llm", model__template="short", trainer__max_steps=1)
    run = fit(tmp_path, *words, *data, *described)
    zoo("test", f"--ckpt_path={run}", "--trainer.accelerator=cpu")
    assert metrics(run)["reads"] == ["text", "turns", "descriptions"] and metrics(run)["n"] == 2
    capsys.readouterr()
    zoo("prepare", "leaks", *data, "--min_words", "2")
    assert "table/train" in capsys.readouterr().out


@pytest.mark.usefixtures("elsewhere")
def test_missing_clips_beyond_the_share_end_a_run_before_it_begins(home, tmp_path):
    data = flags(data="Table", data__root=home / "own", data__split_seed=1, data__test_share=0, data__dev_share=0.2)
    model = flags(model="FARCER", model__llm=home / "llm", model__vision=home / "vision", model__shots=0)
    assert "of --data.max_unreadable" in refused("fit", *model, *data, "--trainer.accelerator=cpu")
