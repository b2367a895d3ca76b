import json
import random
import re
import shutil
import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import make_tiny, tiny_texts
from zoo.backbones import LLM
from zoo.backbones.tiny import make_folder, make_tokenizer

TEXTS = [
    "Hello,  World!\n\temotion: joy",
    "it's  naïve — “déjà vu” 漢字 🙂👩‍👩‍👧 \x00\x7f",
    "  leading, trailing  ",
    "",
    "\n\n",
]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(tiny_texts(), 640)


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_default_sizes_at_a_full_vocabulary(tmp_path):
    rng = random.Random(0)
    words = ["".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(2500)]
    folder = make_folder(tmp_path, [" ".join(words)] * 2)
    llm = LLM(str(folder))
    assert len(llm.tokenizer) == 4096 == llm.causal_lm.config.vocab_size
    v, d, f = 4096, 192, 512  # tied embeddings; per layer q, k, v, o, three of the MLP and two norms; a last norm
    assert v * d + 3 * (4 * d * d + 3 * d * f + 2 * d) + d == 2_114_880
    assert sum(p.numel() for p in llm.parameters()) == 2_114_880
    assert sum(t.numel() for t in weights(folder).values()) == 2_114_880  # stored once, too
    assert {t.dtype for t in weights(folder).values()} == {torch.float32}


def test_the_smallest_vocabulary_is_bytes_and_three_tokens():
    assert len(make_tokenizer([], 0)) == 256 + 3


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_same_seed_gives_the_same_weights(tmp_path, family):
    sizes = {"vocab_size": 300, "hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 48}
    before = torch.get_rng_state()
    a, b = (make_folder(tmp_path / name, tiny_texts(2), family, **sizes, seed=0) for name in "ab")
    c = make_folder(tmp_path / "c", tiny_texts(2), family, **sizes, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(t, weights(b)[name]) for name, t in weights(a).items())
    assert any(not torch.equal(t, weights(c)[name]) for name, t in weights(a).items())
    assert (a / "tokenizer.json").read_bytes() == (b / "tokenizer.json").read_bytes()
    model = AutoModelForCausalLM.from_pretrained(a)
    assert model.config.model_type == family and model.config.num_key_value_heads == 2
    assert len(model.model.layers) == 1 and model.model.layers[0].mlp.up_proj.weight.shape == (48, 32)


def test_a_model_is_never_overwritten(tmp_path):
    folder = make_tiny(tmp_path / "model")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(FileExistsError, match="already holds a model; choose another folder or delete it first"):
        make_tiny(folder, seed=1)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_special_tokens(tokenizer):
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "<s>", "</s>"]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    ids = tokenizer("a joy")["input_ids"]
    assert ids[0] == 1 and ids.count(1) == 1 and ids[-1] != 2  # <s> opens every text; nothing closes it
    assert tokenizer("a joy", add_special_tokens=False)["input_ids"] == ids[1:]


def test_text_is_lower_case_unless_asked_otherwise(tokenizer):
    assert tokenizer("JOY to Ada")["input_ids"] == tokenizer("joy to ada")["input_ids"]
    cased = make_tokenizer(tiny_texts(), 640, lowercase=False)
    assert cased("JOY to Ada")["input_ids"] != cased("joy to ada")["input_ids"]
    assert cased.decode(cased("JOY to Ada", add_special_tokens=False)["input_ids"]) == "JOY to Ada"


def test_words_of_the_texts_become_one_token_others_do_not(tokenizer):
    assert [len(tokenizer.tokenize(f" {word}")) for word in ("surprise", "disgust", "kettle")] == [1, 1, 1]
    assert len(tokenizer.tokenize(" xylophone")) > 3
    assert len(make_tokenizer(tiny_texts(), 300).tokenize(" surprise")) > 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=st.text())
def test_anything_encodes_and_comes_back(tokenizer, text):
    """Nothing is unknown: any text is bytes. Special tokens written in a text are the exception (prompts.escape)."""
    if any(special in text for special in tokenizer.all_special_tokens):
        return
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert all(2 < i < len(tokenizer) for i in ids)
    assert tokenizer.decode(ids) == re.sub(".", lambda m: m[0].lower(), text, flags=re.DOTALL)


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip_and_the_saved_tokenizer(tokenizer, tiny_llama, tiny_qwen2, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.lower()
    ours = [LLM(str(folder)).tokenizer for folder in (tiny_llama, tiny_qwen2)]
    for loaded in (AutoTokenizer.from_pretrained(tiny_llama), *ours):
        assert loaded(text)["input_ids"] == ids
        assert loaded.decode(ids, skip_special_tokens=True) == text.lower()
        assert loaded.pad_token_id == 0 and loaded.eos_token_id == 2 and len(loaded) == len(tokenizer)


def test_a_folder_that_names_another_tokenizer_class_gets_it(tiny_qwen2, tmp_path):
    """Only the plain class is taken literally; a real Qwen2 folder is loaded as transformers means it."""
    folder = shutil.copytree(tiny_qwen2, tmp_path / "qwen2")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}))
    names = [type(LLM(str(f)).tokenizer).__name__ for f in (tiny_qwen2, folder)]
    assert names == ["TokenizersBackend", "Qwen2Tokenizer"]
