"""Biographies: one question per speaker of a dialogue, no label in it, and every answer asked for once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.builders import make_corpus, make_llm
from tests.runs_helper import refused, zoo
from zoo.backbones.llm_client import QueryFailed
from zoo.data import MELD
from zoo.prepare.answer_store import AnswerStore, CachedClient
from zoo.prepare.biographies import ask, portraits
from zoo.prepare.prompt_files import load_prompt
from zoo.schema import Labels, Sample, Turn

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")

LABELS = Labels("meal", ("calm", "cross"))
SAID = (
    Turn("d_1", "Ada", "Who had my bun?", "cross"),
    Turn("d_2", "Ben", "Not me.", "calm"),
    Turn("d_3", "Ada", "It was the last!", None),
    Turn("d_4", "", "(door)", "calm"),
)
SAMPLES = [
    Sample(f"meal/train/{turn.id}", "meal/train/d", LABELS, turn, SAID[:i], later=SAID[i + 1 :])
    for i, turn in enumerate(SAID)
    if turn.label
]


class Model:
    """A model that answers with a count, and not about Ben."""

    name, local, host = "counter", True, ""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def __call__(self, prompt, frames=None, sound=None) -> str:
        assert frames is None and sound is None
        self.prompts.append(prompt)
        if "is Ben" in prompt:
            raise QueryFailed("busy")
        return f"Answer number {len(self.prompts)} about a person."


def test_every_speaker_is_asked_about_once_and_without_labels(tmp_path):
    asked = portraits(SAMPLES[1:])  # the later turns are known from any sample
    assert [(one.dialogue, one.speaker, one.turns) for one in asked] == [
        ("meal/train/d", "Ada", SAID),
        ("meal/train/d", "Ben", SAID),
    ]
    model, template = Model(), load_prompt(None, "biography", "en")[0]
    with AnswerStore(tmp_path / "answers.jsonl") as store:
        for _ in range(2):
            result = ask(asked, model, CachedClient(store), template)
            assert result.texts == dict.fromkeys(("d_1", "d_3"), "Answer number 1 about a person.")
            assert [(row["speaker"], row["what"], row["why"]) for row in result.listed] == [
                ("Ben", "no answer", "busy")
            ]
    assert [("is Ada" in p, "is Ben" in p) for p in model.prompts] == [(True, False), (False, True), (False, True)]
    for prompt in model.prompts:
        assert not re.search("calm|cross", prompt)
        assert "Ada: Who had my bun?\nBen: Not me.\nAda: It was the last!\n(door)\n" in prompt
        assert "at most 250 words" in prompt
    with AnswerStore(tmp_path / "other.jsonl") as store:
        short = ask(asked[:1], Model(), CachedClient(store), template, max_words=3)
    assert short.texts == {} and short.listed[0]["what"] == "dropped"


def test_the_command_writes_files_that_a_corpus_reads(tmp_path):
    make_llm(tmp_path / "llm")
    make_corpus(tmp_path / "meld", (2, 1, 1))
    options = ["--data=MELD", f"--data.root={tmp_path / 'meld'}", f"--model=local:{tmp_path / 'llm'}", "--max_tokens=8"]

    def prepare(out: str, *more: str) -> Path:
        zoo("prepare", "biographies", *options, "--split", "train", "dev", f"--out={tmp_path / out}", *more)
        return tmp_path / out

    out = prepare("out")
    data = MELD(root=tmp_path / "meld", descriptions=[out])
    told = {s.target.id: s.target.descriptions.get("biography") for s in data.samples("train")}
    written = json.loads((out / "biography_description_train.json").read_text())
    assert {key: text for key, text in told.items() if text} == written and len(written) > 5
    people: dict[tuple[str, str], set[str | None]] = {}
    for s in data.samples("train"):
        people.setdefault((s.dialogue, s.target.speaker), set()).add(told[s.target.id])
    assert len(people) > 2 and all(len(texts) == 1 for texts in people.values())
    left_out = [json.loads(line) for line in (out / "biography_left_out.jsonl").read_text().splitlines()]
    lacking = {key for key, (text,) in people.items() if text is None}
    assert lacking == {(row["dialogue"], row["speaker"]) for row in left_out if row["split"] == "train"}
    settings = json.loads((out / "biography_settings.json").read_text())
    assert settings["model"].startswith("local:llm:") and len(settings["template"]) == 16
    answers = (out / "biography_answers.jsonl").read_bytes()
    lines = answers.splitlines(keepends=True)
    (out / "biography_answers.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:9])  # killed while it wrote
    before = (out / "biography_description_train.json").read_bytes()
    prepare("out")
    assert (out / "biography_answers.jsonl").read_bytes() == answers
    assert (out / "biography_description_train.json").read_bytes() == before
    args = ["prepare", "biographies", *options, f"--out={out}"]
    assert "begun with other settings (max_words: 250, now 9)" in refused(*args, "--max_words=9")
    assert "--max_words is 1 or more" in refused(*args, "--max_words=0")
