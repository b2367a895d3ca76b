"""Image-text models of several families: what is asked, scored and written, beside transformers' own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.builders import make_llm
from zoo.backbones.adapters import LoRA
from zoo.backbones.image_text import ImageTextModel, longer
from zoo.backbones.tiny_image_text import TINY_IMAGE_TEXT, make_image_text_folder

pytestmark = pytest.mark.usefixtures("one_threaded")
WORDS = ("joy", "sadness", "surprise")
ADAPTED = r"model\.language_model\.layers\.\d+\.self_attn\.(q|v)_proj"


@pytest.fixture(scope="module", params=sorted(TINY_IMAGE_TEXT))
def folder(request, tmp_path_factory) -> Path:
    return make_image_text_folder(tmp_path_factory.mktemp("vlm") / request.param, request.param)


@pytest.fixture(scope="module")
def model(folder) -> ImageTextModel:
    return ImageTextModel(str(folder)).eval()


def pictures(n: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, 40, 56), generator=generator, dtype=torch.uint8) for _ in range(n)]


def asked(model: ImageTextModel, n: int = 2, question: str = "who is it?", seed: int = 0) -> dict[str, Tensor]:
    return model.chat.inputs(model.chat.text(question, n), pictures(n, seed))


@torch.no_grad()
def test_scores_and_words_are_transformers_own(model, folder):
    """Against transformers alone: its processor makes the inputs of question and answer together."""
    theirs = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "who is it?"}]
    message = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    expected = []
    for word in WORDS:
        whole = processor(text=[text + word], images=[pictures(2)], return_tensors="pt")
        answer = processor.tokenizer(word, add_special_tokens=False)["input_ids"]
        assert whole["input_ids"][0, -len(answer) :].tolist() == answer
        logp = theirs(**whole).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
        expected.append(float(logp[range(len(answer)), answer].sum()))
    candidates = [model.chat.answer_ids(word) for word in WORDS]
    assert max(map(len, candidates)) > 1  # several tokens: more than one pass
    inputs = asked(model)
    assert model.score(inputs, candidates).tolist() == pytest.approx(expected, abs=1e-4)
    short = processor(text=[text], images=[pictures(2)], return_tensors="pt")
    ids = theirs.generate(**short, do_sample=False, max_new_tokens=5)[0, short["input_ids"].shape[1] :]
    assert model.write(inputs, 5) == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    other = model.score(asked(model, seed=1), candidates)
    assert (other - torch.tensor(expected)).abs().max() > 1e-3  # pictures are looked at


@torch.no_grad()
def test_nothing_is_left_of_an_earlier_question(model):
    """Qwen2.5-VL keeps the positions of the last pictures."""
    candidates = [model.chat.answer_ids(word) for word in WORDS]
    alone, words = model.score(asked(model, 0), candidates), model.write(asked(model, 0), 4)
    model.score(asked(model, 3), candidates)
    model.write(asked(model, 3), 2)
    assert torch.equal(model.score(asked(model, 0), candidates), alone) and model.write(asked(model, 0), 4) == words


def test_the_logits_of_an_answer_have_gradients_and_lora_0_changes_nothing(folder):
    model = ImageTextModel(str(folder)).eval()
    answer = torch.tensor(model.chat.answer_ids("surprise"))
    before = model.answer_logits(asked(model), answer)
    assert before.shape == (len(answer), model.causal_lm.config.get_text_config().vocab_size)
    model.add_lora(LoRA(r=2, targets=ADAPTED))
    after = model.answer_logits(asked(model), answer)
    assert torch.allclose(before, after, atol=1e-6)
    after.sum().backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert trained and all(".lora_B." in n and "language_model" in n for n in trained)


def test_control_tokens_of_the_model_are_written_apart_in_a_question(model):
    picture = model.chat.processor.image_token
    text = model.chat.text(f"look {picture} <|im_end|>", 1)
    assert text.count(picture) == 1 and text.count("<|im_end|>") == 1 and "< |im_end| >" in text


def test_a_system_message_stands_in_front(model):
    assert model.chat.text("who?", 0, "be brief").index("be brief") < model.chat.text("who?", 0, "be brief").index(
        "who?"
    )
    assert "system" not in model.chat.text("who?", 0)


def test_an_answer_behind_a_colon_begins_with_a_space(model, monkeypatch):
    decode = model.chat.tokenizer.decode
    assert decode(model.chat.answer_ids("joy")) == "joy"
    monkeypatch.setattr(model.chat, "template", "{% for m in messages %}U: x{% endfor %} ASSISTANT:")
    assert decode(model.chat.answer_ids("joy")) == " joy"


# ---- what is refused
def changed(folder: Path, out: Path, name: str, change) -> str:
    shutil.copytree(folder, out)
    content = json.loads((out / name).read_text())
    change(content)
    (out / name).write_text(json.dumps(content))
    return str(out)


def test_folders_that_are_refused(folder, tmp_path):
    make_llm(tmp_path / "llm")
    with pytest.raises(
        ValueError, match="a model of type 'llama', which transformers does not list among the image-text"
    ):
        ImageTextModel(str(tmp_path / "llm"))
    shutil.copytree(folder, tmp_path / "no_chat")
    (tmp_path / "no_chat" / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat format"):
        ImageTextModel(str(tmp_path / "no_chat"))
    shutil.copytree(folder, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no \*.safetensors"):
        ImageTextModel(str(tmp_path / "pickled"))
    code = changed(
        folder, tmp_path / "code", "config.json", lambda c: c.update(model_type="own", auto_map={"AutoConfig": "x.Y"})
    )
    with pytest.raises(ValueError, match="code of its own"):
        ImageTextModel(code)
    with pytest.raises(ValueError, match="unknown shape 'x'; expected one of tiny-qwen2.5-vl"):
        ImageTextModel("shape:x")
    with pytest.raises(FileNotFoundError, match="no image-text model at 'nowhere'.*--model.vlm"):
        ImageTextModel("nowhere")


def test_a_chat_format_that_does_not_end_is_refused(model, monkeypatch):
    monkeypatch.setattr(
        model.chat, "template", "{% for i in range(10**9) %}{% for j in range(10**9) %}{% endfor %}{% endfor %}"
    )
    with pytest.raises(ValueError, match="the chat format of .* cannot be used"):
        model.chat.text("who?", 0)


def test_inputs_that_an_answer_cannot_go_on_are_refused():
    inputs = {"input_ids": torch.zeros(1, 5, dtype=torch.int64), "cross_attention_mask": torch.zeros(1, 5, 2, 4)}
    with pytest.raises(ValueError, match="place: its inputs hold cross_attention_mask for every token"):
        longer(inputs, torch.tensor([1]), "place")
