"""BiosERC: a prompt with both sides of an utterance and a biography, and the noise of NEFTune."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.builders import make_home
from tests.runs_helper import TRACE, fit, flags, metrics, refused, trace, zoo
from zoo.data import MELD
from zoo.data.adaptation import without_labels
from zoo.models.bioserc import BiosERC
from zoo.models.causal_lm import CausalLM
from zoo.prompts import load_template, render
from zoo.schema import Labels, Sample, Turn

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")

MEAL = Labels("meal", ("calm", "cross"))
SAID = tuple(Turn(f"d_{i}", "Ada" if i % 2 else "Ben", f"Line {i}.", "calm") for i in range(1, 8))
ASKED = replace(SAID[3], text="The middle.", descriptions={"biography": "Ben is patient."})
SAMPLE = Sample("meal/train/d_4", "meal/train/d", MEAL, ASKED, SAID[:3], later=SAID[4:])


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A miniature MELD with biographies beside it."""
    home = make_home(tmp_path_factory.mktemp("bioserc"), (4, 2, 2))
    data = MELD(root=home / "meld")
    for split in ("train", "dev", "test"):
        texts = {s.target.id: f"{s.target.speaker} is calm." for s in data.samples(split)}
        (home / "meld" / f"biography_description_{split}.json").write_text(json.dumps(texts))
    return home


@pytest.fixture
def options(home):
    def options(**more: object) -> list[str]:
        base = {"model__llm": home / "llm", "model__template": "short", "model__window": 2, "model__later_window": 2}
        base |= {"data": "MELD", "data__root": home / "meld", "data__batch_size": 4, "trainer__max_epochs": 1}
        base |= {"data__descriptions": f"[{home / 'meld'}]", "model__descriptions": "[biography]"}
        return ["--model=BiosERC", *flags(**base | more)]

    return options


# ---- prompts
def test_the_prompt_shows_both_sides():
    template = load_template("default", BiosERC.templates)
    shown = render(template, SAMPLE, window=2, later_window=2, descriptions=["biography"], words=MEAL.names)
    assert shown == (
        "You judge the emotions of people who talk to each other. Read about the speaker of one utterance, and the "
        "conversation around it.\n\nBen (biography): Ben is patient.\n\n"
        "Conversation:\nBen: Line 2.\nAda: Line 3.\nBen: The middle.\nAda: Line 5.\nBen: Line 6.\n\n"
        "The utterance: Ben: The middle.\nWhich of these emotions does it have: calm, cross?\nEmotion:"
    )
    short = load_template("short", BiosERC.templates)
    shown = render(short, SAMPLE, window=1, later_window=1, descriptions=["biography"], words=MEAL.names)
    assert shown == "biography: Ben is patient.\nAda: Line 3.\n...\nAda: Line 5.\nBen: The middle.\nemotion:"


def test_later_turns_are_those_of_the_dialogue_and_lose_their_labels_with_it(home):
    data = MELD(root=home / "meld")
    for s in data.samples("train"):
        assert not {t.id for t in s.later} & {t.id for t in (*s.history, s.target)}
    first = data.samples("train")[0]
    whole = [s.target.id for s in data.samples("train") if s.dialogue == first.dialogue]
    assert [first.target.id, *(t.id for t in first.later)] == whole and len(whole) > 2
    assert all(t.label for t in first.later) and not any(t.label for t in without_labels(first).later)


def collator(home: Path, **options: object):
    model = BiosERC(llm=str(home / "llm"), template="short", **options)
    model.build()
    data = MELD(root=home / "meld")
    data.trainer = SimpleNamespace(world_size=1)
    model.data = data
    return model.collator(training=False), model


def test_a_long_prompt_loses_the_last_turns_first(home):
    def shown(max_length: int) -> str:
        made, model = collator(home, window=3, later_window=3, max_length=max_length, descriptions=["biography"])
        batch = made([SAMPLE], np.random.default_rng(0))
        return model.llm.tokenizer.decode(batch["input_ids"][0][batch["mask"][0]]), batch["truncated"]

    whole, cut = shown(1024)
    assert "line 7" in whole and "line 1" in whole and not cut
    length = len(
        collator(home, window=3, later_window=3)[1].llm.tokenizer(whole, add_special_tokens=False)["input_ids"]
    )
    one_less, cut = shown(length - 1)
    assert "line 7" not in one_less and "line 6" in one_less and "line 1" in one_less and cut == 1


def test_reads():
    def reads(**more: object) -> tuple[str, ...]:
        return BiosERC(llm="any", **more).reads

    assert reads(descriptions=["biography"]) == ("text", "turns", "later turns", "descriptions")
    assert reads(later_window=0) == ("text", "turns") and reads(window=0) == ("text", "later turns")
    assert "later turns" not in CausalLM(llm="any", window=2).reads


# ---- NEFTune
def test_noise_on_the_embeddings_is_uniform_within_its_bound_and_in_training_alone():
    model = CausalLM(llm="any", embedding_noise=5.0)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[1, :30] = False  # padded on the left: 10 tokens
    embedded = torch.zeros(2, 40, 64)
    model.train()
    torch.manual_seed(0)
    noise = model.with_noise(embedded, mask)
    for row, tokens in ((0, 40), (1, 10)):
        bound = 5 / math.sqrt(tokens * 64)
        assert noise[row].abs().max() <= bound and noise[row].abs().max() > 0.99 * bound
        assert noise[row].mean().abs() < 0.05 * bound and abs(noise[row].std() - bound / math.sqrt(3)) < 0.03 * bound
    assert torch.equal(model.eval().with_noise(embedded, mask), embedded)
    assert torch.equal(CausalLM(llm="any").train().with_noise(embedded, mask), embedded)
    with pytest.raises(ValueError, match="embedding_noise >= 0"):
        CausalLM(llm="any", embedding_noise=-1.0)


# ---- runs
def test_runs(options, tmp_path):
    run = fit(tmp_path / "run", TRACE, *options())
    again = fit(tmp_path / "again", TRACE, *options())
    calm = fit(tmp_path / "calm", TRACE, *options(model__embedding_noise=0))
    assert trace(run) == trace(again) and trace(run)[0]["ids"] == trace(calm)[0]["ids"]
    assert trace(run)[0]["loss"] != trace(calm)[0]["loss"]  # the noise reaches the loss
    zoo("test", f"--ckpt_path={run}")
    assert metrics(run)["reads"] == ["text", "turns", "later turns", "descriptions"]


def test_bad_options(options):
    assert "later_window >= 0" in refused("fit", *options(model__later_window=-1))
    assert "no train sample has a description of kind 'biography'" in refused(
        "fit", *options(data__descriptions="null")
    )
