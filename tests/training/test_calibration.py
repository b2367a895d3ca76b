"""Calibrated scores against the equations; their statistics come neither from labels nor from the test split."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.builders import make_corpus, make_llm
from tests.fake_corpus import attach
from tests.runs_helper import QUIET, checkpoint, fit, flags, metrics, newest, refused, rows, zoo
from zoo import checkpoints
from zoo.data import MELD
from zoo.models.dialoguellm import DialogueLLM
from zoo.training.calibration import CONTENT_FREE, batch_preference, content_free_preference, stored_preferences

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")
SYSTEMS = {"CausalLM": {"model__shots": 2}, "DialogueLLM": {"model__template": "short"}, "InstructERC": {}}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("calibration")
    make_llm(home / "llm")
    make_corpus(home / "meld", (6, 2, 2))
    return home


def options(home: Path, name: str, **more: object) -> list[str]:
    base = {"model": name, "model__llm": home / "llm", "data": "MELD", "data__root": home / "meld"}
    return list(flags(**base | SYSTEMS.get(name, {}) | {"data__eval_batch_size": 4} | more))


def asked(home: Path, root: Path, name: str, **more: object) -> Path:
    """The run folder of a test without training."""
    zoo("test", "--zero_shot=true", *QUIET, f"--trainer.default_root_dir={root}", *options(home, name, **more))
    return newest(root)


def scores(run: Path) -> torch.Tensor:
    return torch.tensor([list(row["scores"].values()) for row in rows(run)], dtype=torch.float64)


def test_a_preference_is_the_mean_that_its_paper_takes():
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    assert np.exp(content_free_preference(p.log()).logprobs) == pytest.approx([0.3, 0.175, 0.525], rel=1e-6)
    log_means = [(math.log(a) + math.log(b)) / 2 for a, b in p.T.tolist()]
    assert batch_preference(p.log()).logprobs == pytest.approx(log_means, rel=1e-6)
    assert batch_preference(p.log()).inputs == content_free_preference(p.log()).inputs == 2


@pytest.mark.parametrize("name", SYSTEMS)
def test_scores_are_those_of_the_equations(name, home, tmp_path):
    plain = scores(asked(home, tmp_path / "none", name))
    # batch: the scores of the validation texts come from a prediction of that split by the same untrained model
    zoo(
        "predict", "--zero_shot=true", *QUIET, f"--trainer.default_root_dir={tmp_path / 'dev'}",
        "--data.predict_splits=[dev]", *options(home, name),
    )  # fmt: skip
    dev = scores(newest(tmp_path / "dev"))
    b = [sum(math.log(p) for p in column) / len(column) for column in dev.T.tolist()]
    expected = plain / torch.tensor(b, dtype=torch.float64).exp()
    asked_plainly, run = (
        rows(newest(tmp_path / "none")),
        asked(home, tmp_path / "batch", name, model__calibration="batch"),
    )
    torch.testing.assert_close(scores(run), expected / expected.sum(1, keepdim=True), rtol=0, atol=1e-4)
    assert [row["predicted"] for row in rows(run)] != [row["predicted"] for row in asked_plainly]
    record = metrics(run)["calibration"]
    taken_out = record["label_logprobs"]["meld"]
    assert (record["kind"], record["inputs_from"], taken_out.pop("inputs")) == ("batch", "dev", len(dev))
    given = torch.tensor(list(taken_out.values()))
    torch.testing.assert_close(given - given[0], torch.tensor(b) - b[0], rtol=0, atol=1e-3)


def test_a_text_without_content_is_asked_about_in_the_same_prompt(home, tmp_path):
    """Three utterances of somebody without a name, who says nothing, are the content-free inputs."""
    corpus = MELD(root=home / "meld")
    corpus.setup("test")
    sample = corpus.samples("test")[0]
    empty = [
        replace(sample, history=(), target=replace(sample.target, speaker="", text=text, descriptions={}))
        for text in CONTENT_FREE
    ]
    plain = asked(home, tmp_path / "none", "DialogueLLM")
    run = asked(home, tmp_path / "content free", "DialogueLLM", model__calibration="content_free")
    system = DialogueLLM(llm=str(home / "llm"), template="short")
    attach(system, corpus).configure_model()
    batch = system.collator(False)(empty, np.random.default_rng(0))
    with torch.no_grad():
        p = system.llm.score(system.encode(batch), system.candidates(sample.labels)).double().exp().mean(0)
    expected = scores(plain) / p
    torch.testing.assert_close(scores(run), expected / expected.sum(1, keepdim=True), rtol=0, atol=1e-4)
    assert metrics(run)["calibration"]["inputs_from"] is None


def test_no_label_and_no_test_text_changes_what_is_taken_out(home, tmp_path):
    def taken_out(corpus: Path, root: str) -> dict[str, float]:
        run = asked(home, tmp_path / root, "CausalLM", model__calibration="batch", data__root=corpus)
        return metrics(run)["calibration"]["label_logprobs"]

    before = taken_out(home / "meld", "before")
    make_corpus(tmp_path / "changed", (6, 2, 2))
    for split in ("dev", "test"):
        file = tmp_path / "changed" / f"{split}_sent_emo.csv"
        with file.open(newline="", encoding="utf-8") as read:
            table = list(csv.DictReader(read))
        labels = [row["Emotion"] for row in table]
        for row, label in zip(table, labels[1:] + labels[:1], strict=True):
            row["Emotion"] = label
        with file.open("w", newline="", encoding="utf-8") as written:
            writer = csv.DictWriter(written, list(table[0]))
            writer.writeheader()
            writer.writerows(table[: -1 if split == "test" else None])
    assert taken_out(tmp_path / "changed", "after") == before


def test_what_was_taken_out_lies_with_the_weights_and_serves_data_without_a_validation_split(home, tmp_path, capsys):
    run = fit(
        tmp_path, *options(home, "DialogueLLM", model__calibration="batch", model__lr=3e-3, trainer__max_epochs=1)
    )
    stored = checkpoint(run)["zoo"]["calibration"]
    assert stored["kind"] == "batch" and len(stored["labels"]["meld"]["logprobs"]) == 7
    zoo("label", "--text", "I miss her.", f"--ckpt_path={run}")
    assert "joy" in capsys.readouterr().out
    system = checkpoints.load(run)
    assert list(system.preferences["meld"].logprobs) == stored["labels"]["meld"]["logprobs"]
    assert not stored_preferences(stored, "content_free", "x")
    with pytest.raises(ValueError, match="cannot be read"):
        stored_preferences({"kind": "batch", "labels": {"meld": 3}}, "batch", "x")
    with pytest.raises(ValueError, match="not finite"):
        stored_preferences(
            json.loads('{"kind": "batch", "labels": {"m": {"logprobs": [NaN], "inputs": 1}}}'), "batch", "x"
        )


def test_it_is_refused_where_no_label_words_are_scored(home, tmp_path):
    greedy = options(home, "CausalLM", model__calibration="batch", model__decode="greedy")
    message = refused("test", "--zero_shot=true", *greedy)
    assert "calibration batch corrects the scores of label words, but decode: greedy scores none" in message
    corpus = MELD(root=home / "meld")
    corpus.setup("test")
    shows_more = DialogueLLM(llm=str(home / "llm"), template="short", calibration="batch")
    shows_more.own_encoders(object())
    attach(shows_more, corpus)
    with pytest.raises(ValueError, match="prompts of words alone, and this is DialogueLLM, which shows more"):
        shows_more.check_calibration()
