"""The image-text baseline: what it asks about, that it learns, and that a batch is no part of an answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.builders import make_corpus
from tests.fake_corpus import attach
from tests.runs_helper import checkpoint, fit, flags, logged, metrics, refused, rows, zoo
from zoo.backbones.tiny_image_text import TINY_IMAGE_TEXT, make_image_text_folder
from zoo.data import MELD
from zoo.models.image_text import ImageText
from zoo.schema import Labels, Sample, Turn
from zoo.sitcom import release

LABELS = MELD.labels
SMALL = {"template": "short", "frames": 2, "side": 32}
pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


@pytest.fixture(scope="module", params=sorted(TINY_IMAGE_TEXT))
def family(request, tmp_path_factory) -> Path:
    return make_image_text_folder(tmp_path_factory.mktemp("vlm") / request.param, request.param)


@pytest.fixture(scope="module")
def sitcom(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sitcom") / "written"
    release.write(root, {"train": 8, "dev": 2, "test": 2}, workers=1)
    return root


def made(folder: Path | str, **options) -> ImageText:
    model = ImageText(vlm=str(folder), **SMALL | options)
    attach(model, SimpleNamespace(run_seed=0), state=SimpleNamespace(fn="test"))
    model.configure_model()
    return model.eval()


def sample(name: str, video: Path | None = None, text: str = "who took it", **more) -> Sample:
    turn = Turn(name, "Ann", text, "joy", video=video)
    return Sample(f"meld/test/{name}", f"meld/test/{name}", LABELS, turn, **more)


def collated(model: ImageText, samples: list[Sample], training: bool = False) -> dict:
    return model.collator(training)(samples, np.random.default_rng(0))


def picture(path: Path, height: int = 40, width: int = 56, seed: int = 0) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return path


# ---- runs
def test_it_learns_the_sitcom_and_batches_change_nothing(family, sitcom, tmp_path):
    options = flags(model="ImageText", model__vlm=family, data="Synthetic", data__root=sitcom, data__limit=8)
    options += flags(**{f"model__{k}": v for k, v in SMALL.items()}, model__lr=3e-3, data__batch_size=8)
    options += (*flags(trainer__max_epochs=4, model__cache=tmp_path / "cache", model__schedule="constant"),)
    lora = (
        r"--model.lora.targets=model\.language_model\.layers\.\d+\..*",
        "--model.lora.r=16",
        "--model.lora.alpha=32",
    )
    run = fit(tmp_path, *options, *lora)
    losses = logged(run, "train/loss")
    assert len(losses) >= 12 and np.mean(losses[-3:]) < 0.5 * losses[0]
    held = checkpoint(run, "best")["state_dict"]
    assert held and all(".lora_" in name for name in held)
    answers = []
    for size in (1, 16):
        zoo("test", f"--ckpt_path={run}", f"--data.eval_batch_size={size}")
        answers.append(rows(run))
    assert answers[0] == answers[1] and len(answers[0]) > 8
    assert metrics(run)["reads"] == ["text", "face"]


def test_zero_shot_in_both_ways_of_answering(family, sitcom, tmp_path):
    options = (
        "--zero_shot=true",
        "--model=ImageText",
        f"--model.vlm={family}",
        "--data=Synthetic",
        f"--data.root={sitcom}",
    )
    options += (
        "--model.frames=1",
        "--model.side=32",
        "--trainer.accelerator=cpu",
        "--data.limit=4",
        "--trainer.logger=false",
    )
    for decode in ("score", "greedy"):
        zoo("test", *options, f"--model.decode={decode}", f"--trainer.default_root_dir={tmp_path / decode}")
        (file,) = (tmp_path / decode).rglob("predictions.jsonl")
        said = rows(file.parent)
        assert said and all((row.get("scores") is None) == (decode == "greedy") for row in said)


def test_all_weights_can_be_trained(family, tmp_path):
    make_corpus(tmp_path / "meld", (1, 1, 1), clips=True)
    options = flags(
        model="ImageText", model__vlm=family, data="MELD", data__root=tmp_path / "meld", trainer__max_steps=2
    )
    run = fit(tmp_path, *options, *flags(**{f"model__{k}": v for k, v in SMALL.items()}, model__lr=1e-3))
    held, before = checkpoint(run, "last")["state_dict"], load_file(family / "model.safetensors")
    assert sum(v.numel() for v in held.values()) >= sum(v.numel() for v in before.values()) * 0.9
    zoo("test", f"--ckpt_path={run}")


# ---- questions
def test_a_question_shows_frames_in_front_and_counts_what_is_missing(family, tmp_path):
    model = made(family, template="default", window=1)
    earlier = Turn("before", "Ben", "hello there", "joy")
    samples = [
        sample("still", picture(tmp_path / "a.png"), history=(earlier,)),
        sample("none"),
        sample("silent", text=""),
        sample("broken", tmp_path / "absent.png"),
    ]
    batch = collated(model, samples)
    token = model.vlm.chat.processor.image_token_id
    shown = [int((inputs["input_ids"] == token).sum()) for inputs in batch["inputs"]]
    assert shown[0] > 0 and shown[1:] == [0, 0, 0]  # a picture is one, whatever `frames` says
    bare = (tmp_path / "a.png").rename(tmp_path / "12_34")  # as SEED-Bench's are called
    assert [len(model.collator(False).pictures(Turn("x", "", "", video=bare)))] == [1]
    assert (batch["no_clip"], batch["nothing"]) == (3, 1)
    text = model.vlm.chat.tokenizer.decode(batch["inputs"][0]["input_ids"][0])
    assert "hello there" in text and "who took it" in text and text.index("hello there") < text.index("who took it")
    assert all(name in text for name in LABELS.names) and "the picture shows" in text
    model.predict(batch)
    assert model.events["samples without a readable clip"] == 3 and model.events["samples with nothing to go by"] == 1


def test_only_labels_are_learnt(family):
    model = made(family)
    unlabelled = replace(sample("b"), target=replace(sample("b").target, label=None))
    batch = collated(model, [sample("a"), unlabelled], training=True)
    end = model.vlm.chat.tokenizer.eos_token_id
    assert batch["answers"][0].tolist() == [*model.vlm.chat.answer_ids("joy"), end] and len(batch["answers"][1]) == 0
    model.log = lambda *args, **kwargs: None
    both = model.training_step(batch, 0)
    (inputs, _), answer = batch["inputs"], batch["answers"][0]
    expected = torch.nn.functional.cross_entropy(model.vlm.answer_logits(inputs, answer), answer)
    assert both.item() == pytest.approx(expected.item(), abs=1e-6)
    assert model.training_step(collated(model, [unlabelled], training=True), 0).item() == 0


def test_a_long_question_loses_old_turns_then_words(family, tmp_path):
    history = tuple(Turn(f"t{i}", "Ben", "hello again my friend", "joy") for i in range(4))
    clip = picture(tmp_path / "a.png")
    long = sample("a", clip, text="words " * 30 + "the end", history=history)
    whole = collated(made(family, window=None), [long])
    length = whole["inputs"][0]["input_ids"].shape[1]
    assert whole["truncated"] == 0
    fewer = collated(made(family, window=None, max_length=length - 8), [long])
    text = made(family).vlm.chat.tokenizer.decode(fewer["inputs"][0]["input_ids"][0])
    assert fewer["truncated"] == 1 and 0 < text.count("hello again") < 4 and text.count("words") == 30
    least = collated(made(family, window=None, max_length=length - 60), [long])
    text = made(family).vlm.chat.tokenizer.decode(least["inputs"][0]["input_ids"][0])
    assert "hello again" not in text and "the end" in text and text.count("words") < 30
    with pytest.raises(ValueError, match="has .* tokens without any words, more than --model.max_length 5; raise it"):
        collated(made(family, max_length=5), [long])


def test_a_question_of_its_own_stands_in_place_of_the_emotion(family, tmp_path):
    clip = picture(tmp_path / "a.png")
    labels = Labels("walls", ("red", "blue"))
    for template in ("default", "short"):
        model = made(family, template=template)
        model.data.label_sets = {"walls": labels}
        chosen = replace(sample("a", clip, text="", question="which wall?"), labels=labels)
        chosen = replace(chosen, target=replace(chosen.target, label="red"))
        written = sample("b", clip, text="a <|im_end|> b", question="why <|im_end|> so?", answer="because")
        batch = collated(model, [chosen, written])
        first, second = (model.vlm.chat.tokenizer.decode(one["input_ids"][0]) for one in batch["inputs"])
        assert "which wall?" in first and "emotion" not in first and "why" in second and "emotion" not in second
        assert "who took it" not in second and second.count("<|im_end|>") == first.count("<|im_end|>")
        scored, answered = model.predict(batch)
        assert set(scored.scores) == {"red", "blue"} and scored.text is None  # choices are labels
        assert answered.scores is None and isinstance(answered.text, str)  # a free answer is written
    assert collated(made(family), [replace(chosen, target=replace(chosen.target, video=None))])["nothing"] == 0


# ---- what is refused
def test_what_it_cannot_do_is_refused(family, sitcom, tmp_path):
    with pytest.raises(ValueError, match="nothing would be shown"):
        ImageText(vlm=str(family), frames=0, show_text=False)
    with pytest.raises(ValueError, match="names features; an image-text model reads pictures"):
        ImageText(vlm="features:x")
    with pytest.raises(ValueError, match="not divided over processes; use --trainer.strategy ddp"):
        made(family).shard(None, "32-true")  # type: ignore[arg-type]
    model = made(family)
    turn = Turn("before", "Ben", "hello", "joy")
    conversation = sample("a", question="why?", answer="because", history=(turn,))
    for one, stage in ((sample("a", question="why?", answer="because"), "fit"), (conversation, "test")):
        with pytest.raises(ValueError, match="a turn of a conversation or an answer to be learnt"):
            model.check_split([one], "dev", stage)
    model.check_split([sample("a", question="why?", answer="because")], "test", "test")
    corpus = ("--data=Synthetic", "--data.train_dialogues=2", "--data.dev_dialogues=1", "--data.test_dialogues=1")
    said = refused("test", "--zero_shot=true", "--model=ImageText", f"--model.vlm={family}", *corpus)
    assert "has a clip or picture (video), so ImageText would read nothing" in said and "--model.frames 0" in said
    assert "reward_funcs" in refused(
        "fit", "--model=ImageText", f"--model.vlm={family}", *corpus, "--model.reward_funcs=[x]"
    )


def test_a_picture_that_no_processor_takes_is_listed_and_ends_nothing(family, tmp_path):
    model = made(family)
    batch = collated(model, [sample("strip", picture(tmp_path / "strip.png", 1, 250)), sample("words")])
    assert batch["no_clip"] == 2 and len(model.predict(batch)) == 2
    (problem,) = model.media.new_problems()
    assert problem["problem"] == "unreadable" and "over 200 times longer than wide" in problem["reason"]
