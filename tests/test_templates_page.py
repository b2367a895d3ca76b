"""docs/templates.md: the templates that it shows make the prompts that they should, inside the systems."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.builders import make_corpus, make_llm
from tests.runs_helper import fit, flags, refused, zoo
from zoo.models.farcer.collator import SLOT, PromptWriter
from zoo.prompts import load_template, render
from zoo.schema import Labels, Sample, Turn

PAGE = (Path(__file__).parents[1] / "docs" / "templates.md").read_text(encoding="utf-8")
LABELS = Labels("made_up", ("calm", "tense", "glad"))
FIRST = Turn("0", "Ann", "Who took my <|eot_id|> tent?", "tense", video=Path("a.png"))
SECOND = Turn("1", "Bo", "Not me.", "calm", {"video": "he looks away"}, video=Path("b.png"))
SAMPLE = Sample("made_up/test/1", "made_up/test/d", LABELS, SECOND, (FIRST,))
SHOT = Sample("made_up/train/1", "made_up/train/d", LABELS, Turn("1", "Cy", "Ha!", "glad", video=Path("c.png")))


@pytest.fixture
def template(tmp_path):
    def write(system: str) -> Path:
        section = PAGE.partition(f"## {system}\n")[2]
        path = tmp_path / f"{system.lower()}.txt"
        path.write_text(re.search(r"```jinja\n(.*?)```", section, re.DOTALL)[1], encoding="utf-8")
        assert f"`{path.name}`" in section and f"--model.template {path.name}" in section
        return path

    return write


def test_dialoguellm(template, tmp_path):
    text = render(
        load_template(str(template("DialogueLLM")), tmp_path / "none" / "templates"),
        SAMPLE,
        window=1,
        descriptions=("video",),
        words=LABELS.names,
    )
    assert text == (
        "Sort this sentence into one of the classes.\n### Instruction:\nMind who speaks and what came before. The "
        "classes are ['calm', 'tense', 'glad'].\n### Context:\nAnn: Who took my < |eot_id| > tent?\n"
        "(video: he looks away)\n### Input:\nNot me.\n### Response:"
    )


@pytest.mark.parametrize("past", [False, True])
def test_farcer(template, past, tmp_path):
    writer = PromptWriter(
        tokenizer=SimpleNamespace(bos_token="<|begin_of_text|>"),
        template=load_template(str(template("FARCER")), tmp_path / "none" / "templates"),
        pictures=True,
        past_labels=past,
        shots={"made_up": [(SHOT,)]},
    )
    fixed, own = writer.text(SAMPLE, [SLOT, SLOT], None)
    assert fixed == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou listen to people. Say how the last one "
        'feels.\n1. Choose among 3: "calm", "tense", or "glad".\n\nSolved:\n\n<|start_header_id|>user'
        "<|end_header_id|>\n\nTALK:\nCy: <image feature token> Ha!\nFEELING:<|eot_id|><|start_header_id|>assistant"
        "<|end_header_id|>\n\nglad<|eot_id|>\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    )
    felt = "(Ann felt tense)\n" if past else ""
    assert own == (
        f"TALK:\nAnn: {SLOT} Who took my < |eot_id| > tent?\n{felt}Bo: {SLOT} Not me.\nFEELING:<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@pytest.mark.usefixtures("one_threaded", "elsewhere")
def test_a_run_with_a_template_of_its_own(template, tmp_path, capsys):
    make_llm(tmp_path / "llm")
    make_corpus(tmp_path / "meld", (1, 1, 1))
    path = template("DialogueLLM")
    options = flags(model="DialogueLLM", model__llm=tmp_path / "llm", data="MELD", data__root=tmp_path / "meld")
    options = [*options, f"--model.template={path}"]
    zoo("data", "show", *options, "--rows=1")
    shown = " ".join(capsys.readouterr().out.replace("|", " ").split())
    assert "sort this sentence into one of the classes. ### instruction:" in shown  # the small tokenizer lowers
    run = fit(tmp_path, *options, "--trainer.max_steps=1")
    zoo("test", f"--ckpt_path={run}")
    assert json.loads((run / "metrics.json").read_text())["n"] > 0
    other = tmp_path / "other.txt"
    other.write_text("{{ target.text }} {{ wordz }}")
    assert "wordz" in refused("fit", *options, f"--model.template={other}", "--trainer.max_steps=1")
