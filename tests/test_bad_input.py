"""Bad input as a user of the command line meets it: a clear refusal, or something counted in metrics.json. What the
readers themselves refuse is in tests/data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.builders import make_corpus, make_home
from tests.data.miniature import write_goemotions
from tests.runs_helper import checkpoint, fit, flags, logged, metrics, newest, refused, zoo

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = make_home(tmp_path_factory.mktemp("bad_input"), (2, 1, 1))
    write_goemotions(home / "goemotions")
    empty = write_goemotions(home / "unlabelled")
    (empty / "ekman_labels.txt").write_text("")
    (home / "captions").mkdir()
    for split in ("train", "dev", "test"):
        (home / "captions" / f"audio_description_{split}.json").write_text(json.dumps({"Ses01_F001": "a loud voice"}))
    return home


def model(home: Path, **more: object) -> list[str]:
    base = {"model__llm": home / "llm", "trainer__accelerator": "cpu", "trainer__max_epochs": 1}
    return ["--model=CausalLM", *flags(**base, **more)]


REFUSALS = [  # data, what the message must hold
    (["--data=MELD"], "MELD needs its folder: give --data.root"),
    (["--data=MELD", "--data.root=nosuch"], "folder nosuch, which does not exist"),
    (["--data=MELD", "--data.root={goemotions}"], "which holds ekman_dev.tsv"),
    (["--data=GoEmotions", "--data.root={unlabelled}"], "has the labels none; expected anger, disgust"),
    (
        ["--data=MELD", "--data.root={meld}", "--data.descriptions=[{captions}]"],
        "keys are not in the corpus' train split",
    ),
    (["--data=MELD", "--data.root={meld}", "--model.descriptions=[video]"], "kind 'video'; the data has none"),
    (
        ["--data=MELD", "--data.root={meld}", "--data.descriptions=[{meld}]", "--model.descriptions=[video]"],
        "['audio']",
    ),
    (["--data=MELD", "--data.root={meld}", "--data.batch_size=0"], "batch sizes must be at least 1"),
    (["--data=MELD", "--data.root={meld}", "--model.llm=nosuch"], "no language model at 'nosuch'"),
    (["--data=MELD", "--data.root={meld}", "--model.template=nosuch"], "no prompt template 'nosuch'"),
    (["--data=MELD", "--data.root={meld}", "--model.verbalizer={{joy: anger}}"], "two labels of meld the same word"),
    (["--data=MELD", "--data.root={meld}", "--model.lora.targets=nosuch"], "no linear layer's full name matches"),
    (["--data=MELD", "--data.root={meld}", "--trainer.max_epochs=-1"], "schedule needs an end"),
]


@pytest.mark.parametrize(("data", "said"), REFUSALS, ids=[said for _, said in REFUSALS])
def test_refused_with_the_reason(data, said, home, tmp_path):
    folders = {name: home / name for name in ("meld", "goemotions", "unlabelled", "captions")}
    message = refused("fit", *model(home), *(arg.format(**folders) for arg in data))
    assert said in message and message.startswith("zoo fit: ")
    assert not list(tmp_path.rglob("*.ckpt"))


def test_control_tokens_are_counted(home, tmp_path):
    make_corpus(tmp_path / "meld", (1, 1, 1))
    for split, count in (("train", 1), ("test", 2)):
        file = tmp_path / "meld" / f"{split}_sent_emo.csv"
        file.write_text(file.read_text().replace(" by the ", " <|eot_id|> ", count).replace(" put ", " [INST] ", 1))
    run = fit(tmp_path, *model(home), "--data=MELD", f"--data.root={tmp_path / 'meld'}")
    zoo("test", f"--ckpt_path={run}")
    assert metrics(run)["population"]["notes"] == {"utterances with chat-template tokens, written apart": 2}
    assert metrics(run)["n"] == 7  # counted, not left out


def diverging(home: Path, **more: object) -> list[str]:
    absurd = {"model__lr": 1e10, "model__schedule": "constant", "model__warmup": 0}
    return [*model(home, **absurd, **more), "--data=MELD", f"--data.root={home / 'meld'}"]


def test_a_loss_that_is_not_finite_stops_the_run(home, tmp_path):
    said = refused("fit", *diverging(home, data__batch_size=5, save_last_every=1, trainer__log_every_n_steps=1))
    assert "the loss is nan at step 1; samples: ['meld/train/dia" in said and said.count("meld/train/") == 5
    assert "A lower --model.lr" in said
    run = newest(tmp_path)
    assert [p.name for p in run.rglob("*.ckpt")] == ["last.ckpt"]  # never the best
    assert len(logged(run, "train/loss")) == 1
    assert "the loss is nan" in refused("fit", f"--ckpt_path={run}")  # resuming does not hide it


def test_weights_that_diverged_in_the_last_step_never_become_the_best(home, tmp_path):
    """One step per epoch: its loss is finite, but nothing can be predicted after it."""
    said = refused("fit", *diverging(home, data__batch_size=14))
    assert "not finite" in said and "meld/dev/dia0_utt" in said
    assert not list(tmp_path.rglob("best.ckpt"))


def test_predictions_that_are_not_finite_are_no_answers(home, tmp_path):
    """A model whose scores are NaN must not be read as one that says the first label, neutral."""
    run = fit(tmp_path, *model(home), "--data=MELD", f"--data.root={home / 'meld'}")
    for name in ("best", "last"):
        content = checkpoint(run, name)
        content["state_dict"]["llm.model.model.norm.weight"].fill_(3e38)  # finite, but no sum over it is
        torch.save(content, run / "checkpoints" / f"{name}.ckpt")
    said = refused("test", f"--ckpt_path={run}")
    assert "not finite" in said and "meld/test/dia0_utt" in said
    assert not (run / "predictions.jsonl").exists()
