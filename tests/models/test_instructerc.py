"""InstructERC-style classifier: its three prompts, its joint loss, and its two stages through the command line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.builders import make_home
from tests.data.miniature import LABELS
from tests.runs_helper import TRACE, checkpoint, fit, flags, logged, refused, rows, trace, zoo
from zoo.data import MELD, Synthetic
from zoo.models.instructerc import InstructERC
from zoo.models.instructerc.model import OTHER, frequent_speakers, label_speaker
from zoo.prompts import load_template, render
from zoo.schema import Labels, Sample, Turn

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("instructerc"), (4, 2, 2))


@pytest.fixture
def options(home):
    def options(**more: object) -> list[str]:
        base = {"model__llm": home / "llm", "model__template": "short", "model__window": 2, "model__lr": 3e-3}
        base |= {"data": "MELD", "data__root": home / "meld", "data__batch_size": 4, "trainer__max_epochs": 2}
        return ["--model=InstructERC", *flags(**base | more)]

    return options


def collator(home: Path, data: MELD, training: bool = True, **options: object):
    """The collator of a model, and the model, outside a run."""
    model = InstructERC(llm=str(home / "llm"), **options)
    model.build()
    data.trainer = SimpleNamespace(world_size=1)
    model.data = data
    if model.task == "speaker":
        model.speaker_labels = {c: frequent_speakers(data.samples("train"), c, model.speakers) for c in data.label_sets}
    return model.collator(training), model


def read(model: InstructERC, batch: dict) -> list[str]:
    decode = model.llm.tokenizer.decode
    return [decode(ids[m]) for ids, m in zip(batch["input_ids"], batch["mask"], strict=True)]


MEAL = Labels("meal", ("calm", "cross"))
SAID = (Turn("d_1", "Ada", "Who had my bun?", "cross"), Turn("d_2", "Ben", "Not me.", "calm"))
ASKED = Sample("meal/train/d_3", "meal/train/d", MEAL, Turn("d_3", "Ada", "It was the last!", "cross"), SAID)


def test_prompts():
    def shown(task: str, kinds=(), sample=ASKED):
        template = load_template(task, InstructERC.templates)
        return render(template, sample, window=2, descriptions=kinds, words=sample.labels.names)

    intro = "You judge the emotions of people who talk to each other. Read the conversation.\n\n"
    history = "Conversation:\nAda: Who had my bun?\nBen: Not me.\n"
    assert shown("default") == (
        intro + history + "Ada: It was the last!\n\n"
        "Which of these emotions does its last utterance have: calm, cross?\nEmotion:"
    )
    assert shown("impact") == (
        intro + history + "\nAda speaks next. Which of these emotions will it be: calm, cross?\nEmotion:"
    )
    people = {"meal": Labels("meal", ("ada", "ben", OTHER))}
    assert shown("speaker", sample=label_speaker(ASKED, people)) == (
        "You know how the people of this series talk. Here is one line: It was the last!\n\n"
        "Who says it: ada, ben, other?\nSpeaker:"
    )
    for task in ("impact", "short_impact"):  # the utterance itself is what is to be foreseen
        assert "the last!" not in shown(task) and "Not me." in shown(task)
    for task in ("speaker", "short_speaker"):
        assert "Ada" not in shown(task) and "Ben" not in shown(task)


def test_speakers():
    samples = Synthetic(train_dialogues=30).samples("train")
    people = frequent_speakers(samples, "synthetic", 2)
    counts: dict[str, int] = {}
    for s in samples:
        counts[s.target.speaker.lower()] = counts.get(s.target.speaker.lower(), 0) + 1
    assert people.names == (*sorted(counts, key=counts.get, reverse=True)[:2], OTHER) and len(counts) > 2
    asked = [label_speaker(s, {"synthetic": people}) for s in samples]
    assert {s.target.label for s in asked} == set(people.names)
    for before, after in zip(samples, asked, strict=True):
        assert after.id == before.id and after.target.text == before.target.text
        assert after.target.label in (before.target.speaker.lower(), OTHER)
    nobody = [Sample("meal/train/1", "meal/train/d", MEAL, Turn("1", "", "Hm.", "calm"))]
    with pytest.raises(ValueError, match="names none"):
        frequent_speakers(nobody, "meal", 2)


def test_the_joint_loss(home):
    """emotion + impact * emotion impact, both by log-softmax written out; the impact prompts end before the target."""
    data = MELD(root=home / "meld")
    made, model = collator(home, data, template="short", window=2, impact=0.3)
    samples = data.samples("train")[:5]
    assert not samples[0].history and all(s.history for s in samples[1:])
    batch = made(samples, np.random.default_rng(0))
    assert [s.id for s in batch["impact"]["samples"]] == [s.id for s in samples[1:]]
    for s, text in zip(samples[1:], read(model, batch["impact"]), strict=True):
        assert text.endswith(f"{s.target.speaker.lower()} next\nemotion: {s.target.label}</s>")
        assert s.target.text.lower() not in text and s.history[-1].text.lower() in text
    logs: dict[str, torch.Tensor] = {}
    model.log = lambda name, value, **_: logs.update({name: value})
    model.eval()

    def by_hand(part: dict) -> torch.Tensor:
        losses = []
        for ids, mask, answer in zip(part["input_ids"], part["mask"], part["answer"], strict=True):
            own, own_answer = ids[mask], answer[mask]
            p = torch.log_softmax(model.llm.causal_lm(own[None]).logits[0], -1)
            losses += [-p[i - 1, own[i]] for i in own_answer.nonzero()[:, 0]]
        return torch.stack(losses).mean()

    emotion, impact = by_hand(batch), by_hand(batch["impact"])
    torch.testing.assert_close(model.loss(batch), emotion + 0.3 * impact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logs["train/impact_loss"], impact, rtol=1e-4, atol=1e-5)
    assert abs(emotion - impact) > 1e-3
    first = made(samples[:1], np.random.default_rng(0))  # nothing came before
    assert first["impact"] is None
    torch.testing.assert_close(model.loss(first), by_hand(first), rtol=1e-4, atol=1e-5)


def test_evaluation_asks_for_the_emotion_alone(home):
    data = MELD(root=home / "meld")
    made, model = collator(home, data, training=False, template="short", window=2)
    batch = made(data.samples("train")[:3], np.random.default_rng(0))
    assert "impact" not in batch and all(t.endswith("\nemotion:") for t in read(model, batch))


def test_two_stages(options, tmp_path):
    """Who speaks, then the emotion from there."""
    first = fit(tmp_path / "first", *options(model__task="speaker", model__speakers=2, model__class_weight=0.5))
    assert len(logged(first, "val/wf1")) == 2 and not any("impact" in k for k in logged(first)[0])
    assert "learnt who speaks" in refused("test", f"--ckpt_path={first}")
    run = fit(tmp_path / "second", TRACE, *options(model__start_from=first, model__impact=0.5))
    alone = fit(tmp_path / "alone", TRACE, *options(model__impact=0.5))
    assert trace(run)[0]["ids"] == trace(alone)[0]["ids"] and trace(run)[0]["loss"] != trace(alone)[0]["loss"]
    (end,) = trace(run, "end")
    assert end["without_gradient"] == [] and logged(run, "train/impact_loss")
    zoo("test", f"--ckpt_path={run}")
    assert {r["predicted"] for r in rows(run)} <= set(LABELS) and all("scores" in r for r in rows(run))
    plain = fit(tmp_path / "plain", TRACE, *options(model__impact=0, trainer__max_steps=1))
    assert trace(plain)[0]["loss"] < trace(alone)[0]["loss"]
    assert set(checkpoint(plain)["state_dict"]) == set(checkpoint(run)["state_dict"])


def test_bad_options(options):
    assert "reads the history" in refused("fit", *options(model__window=0))
    assert "impact >= 0" in refused("fit", *options(model__impact=-1))
    assert "no prompt template" in refused("fit", *options(model__template="causal_lm/default"))
