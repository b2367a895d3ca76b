"""zoo data show: rows as the system sees them, counts, what was left out; nothing trained, no weights read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.builders import label_clip, make_eyes, make_llm
from tests.data.miniature import write_csv
from tests.runs_helper import flags, refused, zoo

HEAD = ["id", "text", "label", "dialogue", "clip", "voice_description"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A table and models whose weights are gone."""
    home = tmp_path_factory.mktemp("show")
    make_llm(home / "llm")
    make_eyes(home / "vision")
    (home / "llm" / "model.safetensors").unlink()
    (home / "own").mkdir()
    (home / "own" / "a.mp4").write_bytes(label_clip("joy", "a"))
    (home / "own" / "cut.mp4").write_bytes(b"no clip")
    rows = [
        ["a", "Oh no!", "tense", "k", "a.mp4", "a thin voice"],
        ["b", "\x1b[31mAll fine.", "calm", "k", "cut.mp4", ""],
        ["c", "", "calm", "k", "", ""],
        ["d", "Ha.", "calm", "l", "", ""],
        ["e", "Hm.", "", "l", "", ""],
        ["f", "Eh?", "tense", "m", "", ""],
    ]
    heads, splits = [*HEAD, "split"], {"k": "train", "l": "test", "m": "dev"}
    full = [dict(zip(heads, [*r, splits[r[3]]], strict=True)) for r in rows]
    write_csv(home / "own" / "t.csv", full)
    return home


def shown(capsys, *args: object) -> str:
    zoo("data", "show", *args)
    return capsys.readouterr().out


def own(home: Path, **more: object) -> list[str]:
    return list(flags(data="Table", data__root=home / "own", data__dev_share=0, **more))


def test_a_corpus_alone(home, capsys):
    out = shown(capsys, *own(home))
    lines = [line.split() for line in out.splitlines()]
    assert ["split", "dialogues", "to", "classify", "left", "out", "calm", "tense"] in lines
    assert ["train", "1", "2", "1", "1", "1"] in lines and ["test", "1", "1", "0", "1", "0"] in lines
    assert "train: 1 left out, no words, no clip, no description: c" in out
    assert "test: 1 without a label, context only: e" in out
    assert "a.mp4: 0.50 s, 5 frames of 32x32, 10 per second" in out and "0.51 s at 16000 Hz" in out
    assert "cut.mp4: cannot be read" in out and "described voice: a thin voice" in out
    assert "\x1b" not in out and max(map(len, out.splitlines())) <= 100
    assert "prompt" not in out


def test_no_heading_reaches_the_terminal_as_it_is(tmp_path, capsys):
    write_csv(tmp_path / "t.csv", [{"text": f"Oh {i}", "label": "ab"[i % 2], "\x1b[31mred": "x"} for i in range(9)])
    out = shown(capsys, *flags(data="Table", data__root=tmp_path))
    assert "\x1b" not in out and "columns not read: \\x1b[31mred" in out


def test_a_system_writes_its_prompts(home, capsys):
    model = flags(model="CausalLM", model__llm=home / "llm", model__window=1)
    out = shown(capsys, *own(home, rows=2), *model)  # --rows needs no dots
    assert "learns from them with the tokens of" in out and "  | <s>" in out and "tense</s>" in out
    assert out.count("  prompt ") == out.count("  answer ") == 2 and "fit" not in out
    assert "Oh no!".lower() in out.lower().rpartition("table/train/b")[2], (
        "the earlier turn stands in the second prompt"
    )
    out = shown(capsys, *own(home, rows=1, split="test"), *model)
    assert "table/test/d" in out and "table/train" not in out.partition("the first")[2]


def test_places_of_clips_are_counted(home, tmp_path, capsys):
    shutil.copytree(home / "own", tmp_path / "own")
    shutil.copy(home / "own" / "a.mp4", tmp_path / "own" / "cut.mp4")
    model = flags(
        model="FARCER",
        model__llm=home / "llm",
        model__vision=home / "vision",
        model__template="plain",
        model__shots=0,
        model__train_shots=0,
        data__dev_share=0.5,
    )
    rows = "id,text,label,clip\n" + "".join(f"{i},Oh.,{'calm' if i % 2 else 'tense'},a.mp4\n" for i in range(10))
    (tmp_path / "own" / "t.csv").write_text(rows)
    out = shown(capsys, *own(tmp_path, rows=1), *model)
    assert "1 of them for clips" in out and "[clip x 1]" in out and "  answer " in out


def test_a_system_that_reads_no_prompt(home, capsys):
    assert "no prompt of Majority is shown here" in shown(capsys, *own(home), "--model=Majority")


def test_a_config_of_a_run_is_read(home, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"zero_shot: false\nckpt_path: null\nmodel:\n  class_path: CausalLM\n  init_args: {{llm: {home / 'llm'}}}\n"
        f"data:\n  class_path: Table\n  init_args: {{root: {home / 'own'}, dev_share: 0}}\n"
    )
    assert "tense</s>" in shown(capsys, "--config", config)


def test_what_a_fit_would_refuse_is_said_after_the_rest(home, capsys):
    message = refused("data", "show", *own(home, data__labels="[calm,joy]"))
    assert "unknown label 'tense' in row 2" in message
    model = flags(model="DialogueLLM", model__llm=home / "llm", model__descriptions="[nose]", data__dev_share=0.5)
    write_csv(home / "own" / "u.csv", [{"text": "Oh.", "label": "calm"}, {"text": "Ah.", "label": "tense"}] * 5)
    message = refused("data", "show", *own(home), *model, "--data.file=u.csv")
    (home / "own" / "u.csv").unlink()
    out = capsys.readouterr().out
    assert "nose" in message and "the first 3 of" in out and "DialogueLLM refuses them" in out


def test_usage(capsys):
    assert "zoo data show --config FILE" in refused("data")
    assert "expected a number of rows" in refused("data", "show", "--data=Synthetic", "--rows=-1")
    zoo("data", "--help")
    assert "token" in capsys.readouterr().out
