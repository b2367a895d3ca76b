"""Emotion-Qwen on conversations: all answers in one sequence, system messages, pictures inside of shards."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.builders import make_llm, make_patch_vision
from tests.fake_corpus import attach
from tests.runs_helper import fit, flags, metrics, rows, zoo
from zoo.data import Conversations
from zoo.media.container import member_path
from zoo.models.emotion_qwen import EmotionQwen
from zoo.models.emotion_qwen.sampling import seconds_of
from zoo.sitcom.clips import encode

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("conversations")
    make_llm(home / "llm")
    make_patch_vision(home / "vision")
    return home


def made(home, chat: bool, **options) -> EmotionQwen:
    torch.manual_seed(0)
    options = {"template": "default" if chat else "plain", "min_pixels": 64, "max_pixels": 4096, "frames": 2} | options
    model = EmotionQwen(llm=str(home / "llm"), vision=str(home / "vision"), **options)
    attach(model, SimpleNamespace(run_seed=0), state=SimpleNamespace(fn="test"))
    model.configure_model()
    if chat:
        model.llm.tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
        model.llm.tokenizer.chat_template = CHAT
        model.llm.tokenizer.eos_token = "<|im_end|>"
        model.llm.causal_lm.resize_token_embeddings(len(model.llm.tokenizer))
    return model.eval()


def png(seed: int, height: int = 16, width: int = 24) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def row(i: int, system: bool = False) -> dict:
    contents = ["<image>\nWhat is there?", "calm joy", "Sure?", "yes it is", "Why?", "no"]
    turns = [{"from": ("human", "gpt")[k % 2], "value": words} for k, words in enumerate(contents)]
    return {"id": i, "conversations": [{"from": "system", "value": "Be kind."}] * system + turns}


def shard(folder: Path, n: int = 6, broken: int | None = None, system: bool = False) -> Path:
    """Write a shard of conversations about pictures, and a mixture of it."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "talk.tar", "w") as tar:
        for i in range(n):
            picture = b"no picture" if i == broken else png(i)
            for name, data in ((f"{i}.png", picture), (f"{i}.json", json.dumps(row(i, system)).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    (folder / "mix.yaml").write_text(yaml.safe_dump({k: [{"path": "talk.tar"}] for k in ("train", "dev", "test")}))
    return folder / "mix.yaml"


def collated(model, samples, training=True):
    return model.collator(training)(samples, np.random.default_rng(0))


@pytest.mark.parametrize("chat", [True, False])
def test_answers_together_learn_what_they_learn_apart(home, tmp_path, chat):
    """The loss of one sequence is the mean over the tokens of all answers, each as if it were asked by itself."""
    model = made(home, chat)
    mixture = shard(tmp_path, 1)
    (together,) = Conversations(mixture, answers="together").samples("train")
    apart = Conversations(mixture).samples("train")
    batch = collated(model, [together])
    learnt = batch["input_ids"][0][batch["answer"][0]]
    eos = model.llm.tokenizer.eos_token_id
    text = model.llm.tokenizer.decode(learnt).replace(" ", "")
    end = model.llm.tokenizer.eos_token
    assert text == (f"calmjoy{end}yesitis{end}no{end}" if chat else f"calmjoyyesitisno{end}"), text
    assert batch["input_ids"].max() < len(model.llm.tokenizer) and len(batch["grid"]) == 1
    assert batch["target_ids"][0][batch["answer"][0]].tolist() == learnt.tolist() and learnt[-1] == eos
    sums = n = 0.0
    with torch.no_grad():
        for sample in apart:
            own = collated(model, [sample])
            assert len(own["grid"]) == 1  # the picture is seen again for each answer
            tokens = int(own["answer"].sum())
            if not chat and sample != apart[-1]:  # in plain text a line ends an earlier answer, not the end token
                end_alone = own["answer"].clone()
                end_alone[:, :-1] = False
                own = own | {"answer": own["answer"] & ~end_alone}
                tokens -= 1
            sums, n = sums + float(model.loss(own)) * tokens, n + tokens
        assert n == len(learnt)
        assert float(model.loss(batch)) == pytest.approx(sums / n, rel=1e-5)


def test_a_question_is_no_other_for_what_was_learnt_before_it(home, tmp_path):
    model = made(home, True)
    (together,) = Conversations(shard(tmp_path, 1), answers="together").samples("train")
    prompts = [
        collated(model, [s], training=False)["input_ids"] for s in (together, replace(together, learn_history=False))
    ]
    assert torch.equal(*prompts) and prompts[0].max() < len(model.llm.tokenizer)


def test_a_long_conversation_keeps_its_marks_straight(home, tmp_path):
    model = made(home, True)
    (together,) = Conversations(shard(tmp_path, 1), answers="together").samples("train")
    whole = collated(model, [together])
    model.max_length = int(whole["mask"].sum()) - 8
    cut = collated(model, [together])
    assert cut["truncated"] == 1 and cut["input_ids"].shape[1] < whole["input_ids"].shape[1]
    assert cut["input_ids"].max() < len(model.llm.tokenizer) and (cut["target_ids"][cut["answer"]] >= 0).all()


def test_a_system_message_of_its_own_replaces_the_prompt(home, tmp_path):
    model = made(home, True, system_prompt="Be brief.")
    for system in (True, False):
        sample = Conversations(shard(tmp_path / str(system), 1, system=system)).samples("train")[1]
        text = model.llm.tokenizer.decode(collated(model, [sample])["input_ids"][0]).replace(" ", "")
        expected = f"<|im_start|>system\n{'bekind.' if system else 'bebrief.'}<|im_end|>\n<|im_start|>user"
        assert text.replace("\n", "").startswith(expected.replace("\n", "")) and text.count("system") == 1, text


def test_pictures_and_films_of_a_shard_are_those_of_files(home, tmp_path):
    model = made(home, False)
    samples = Conversations(shard(tmp_path / "in", 2)).samples("train")
    (tmp_path / "beside").mkdir()
    beside = []
    for i in range(2):
        (tmp_path / "beside" / f"{i}.png").write_bytes(png(i))
        beside.append(
            replace(samples[3 * i], target=replace(samples[3 * i].target, video=tmp_path / "beside" / f"{i}.png"))
        )
    one, other = collated(model, [samples[0], samples[3]]), collated(model, beside)
    assert torch.equal(one["patches"], other["patches"]) and one["no_clip"] == 0
    film = encode(np.random.default_rng(0).integers(0, 256, (10, 48, 64, 3), np.uint8), np.zeros(8000, "f4"))
    (tmp_path / "film.mp4").write_bytes(film)
    with tarfile.open(tmp_path / "film.tar", "w") as tar:
        tar.add(tmp_path / "film.mp4", "film.mp4")
    with tarfile.open(tmp_path / "film.tar") as tar:
        offset = tar.getmember("film.mp4").offset_data
    inside = member_path(tmp_path / "film.tar", offset, len(film), "film.mp4")
    assert seconds_of(inside) == seconds_of(tmp_path / "film.mp4") > 0


def test_nothing_is_learnt_from_a_row_that_cannot_be_read(home, tmp_path):
    model = made(home, True)
    data = Conversations(shard(tmp_path, 1))
    sample = replace(data.samples("train")[0], question="", answer="")  # as `Conversation.sample` makes of one
    batch = collated(model, [sample])
    assert not batch["answer"].any() and float(model.loss(batch).detach()) == 0


def test_a_run_on_shards(home, tmp_path):
    """Trained together, tested apart; a picture that is none is counted and listed."""
    mixture = shard(tmp_path, broken=2)
    options = flags(
        model="EmotionQwen",
        model__llm=home / "llm",
        model__vision=home / "vision",
        model__template="plain",
        model__min_pixels=64,
        model__frames=1,
        model__lr=0.01,
        model__train=r"['compressor\..*','llm\..*']",
        model__max_new_tokens=6,
        checkpoint__monitor="val/answer",
        data="Conversations",
        data__mixture=mixture,
        data__answers="together",
        data__batch_size=2,
        data__num_workers=1,
        data__max_unreadable=0.2,
        trainer__max_epochs=8,
    )
    run = fit(tmp_path, *options)
    zoo("test", f"--ckpt_path={run}")
    said = metrics(run)
    assert said["n"] == len(rows(run)) == 18 and said["reasons"]["clue_overlap/f1"] > 0.3
    (name,) = said["problems"]["test"]["listed"]["unreadable"]
    assert name.endswith("/2.png") and said["events"]["samples without a readable clip"]
