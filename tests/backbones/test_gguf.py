"""zoo.backbones.gguf: GGUF files become the models that their blocks describe, or are refused in one sentence."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests import gguf_files
from tests.gguf_files import source_tokenizer, write_gguf
from zoo.backbones import LLM, gguf
from zoo.backbones.llm import locate_language_model
from zoo.storage import sha256_of

FAMILIES = ("llama", "qwen2", "qwen3")
IDS = torch.tensor([[1, 40, 77, 130, 9, 255, 300, 41, 77, 12]])
TEXTS = ("I hate you, leave me alone!", "What?  No way!\n\n12 times in 2024", "été 你好 🙂", " two  spaces ")

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def no_dequantising(monkeypatch):
    """Blocks are not decoded, whatever the file says."""
    import gguf as package

    def dequantize(*_: object) -> None:
        raise RuntimeError("dequantised")

    monkeypatch.setattr(package, "dequantize", dequantize)


def as_folder(folder: Path, family: str, numbers: dict[str, np.ndarray], **changes: object) -> Path:
    """The same numbers as a model folder, written by transformers from a config that stands here."""
    tokenizer = source_tokenizer()
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=gguf_files.LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32 if family == "qwen3" else 16,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings="lm_head.weight" not in numbers,
        **({"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}} | changes),
    )
    folder.mkdir()
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tensors = {name: torch.from_numpy(values.copy()) for name, values in numbers.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def logits(path: object) -> torch.Tensor:
    llm = LLM(str(path)).eval()
    with torch.no_grad():
        return llm.causal_lm(IDS).logits


# ---- what is read
@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_logits(family, untied, tmp_path):
    numbers = write_gguf(tmp_path / "model.gguf", family, untied=untied)
    llm = LLM(str(tmp_path / "model.gguf"))
    got = {name: tensor for name, tensor in llm.causal_lm.state_dict().items() if untied or name != "lm_head.weight"}
    assert got.keys() == numbers.keys() and len(got) >= 20
    for name, tensor in got.items():
        assert np.array_equal(tensor.numpy(), numbers[name]), name
    assert llm.causal_lm.config.model_type == family and llm.causal_lm.config.tie_word_embeddings is not untied
    wanted = logits(as_folder(tmp_path / "folder", family, numbers))
    assert torch.equal(logits(tmp_path / "model.gguf"), wanted) and wanted.std() > 0.5


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # of qwen3, it takes the width of a head for 128
def test_transformers_reads_the_same(family, tmp_path):
    write_gguf(tmp_path / "model.gguf", family)
    theirs = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file="model.gguf", dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.allclose(theirs(IDS).logits, logits(tmp_path / "model.gguf"), atol=1e-5)


def test_positions_of_llama_3(tmp_path):
    """The factors that Llama 3.1 divides its frequencies by are a tensor of the file."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    plain = 5000.0 ** -(np.arange(0, 16, 2) / 16)
    wave = 2 * np.pi / plain
    smooth = np.clip((32 / wave - 1) / 3, 0, 1)  # wave above 32: divided by 8; below 8: as it is
    factors = plain / ((1 - smooth) * plain / 8 + smooth * plain)
    numbers = write_gguf(tmp_path / "model.gguf", more={"rope_freqs.weight": factors})
    got = logits(tmp_path / "model.gguf")
    wanted = logits(as_folder(tmp_path / "folder", "llama", numbers, rope_parameters=rope))
    assert torch.allclose(got, wanted, atol=1e-4)
    assert not torch.allclose(got, logits(as_folder(tmp_path / "plain", "llama", numbers)), atol=1e-2)


def test_ids_round_trip(tmp_path):
    write_gguf(tmp_path / "model.gguf")
    tokenizer, source = LLM(str(tmp_path / "model.gguf")).tokenizer, source_tokenizer()
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids == source(text)["input_ids"] and ids[0] == 1
        assert tokenizer.decode(ids[1:]) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert tokenizer("a</s>")["input_ids"][-1] == 2  # a control token is one
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}])
    assert chat == "user: hello\n"


def test_digits_apart(tmp_path):
    """SmolLM cuts every digit off before it merges: white space in front of one then stands by itself."""
    write_gguf(tmp_path / "model.gguf", changes={"tokenizer.ggml.pre": "smollm"})
    tokenizer = LLM(str(tmp_path / "model.gguf")).tokenizer
    digits, plain = source_tokenizer(digits_apart=True), source_tokenizer().backend_tokenizer.pre_tokenizer
    cut = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("no  12\n\n3")
    assert [piece for piece, _ in cut] == ["no", "ĠĠ", "1", "2", "ĊĊ", "3"]
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == digits(text)["input_ids"]
    assert [piece for piece, _ in plain.pre_tokenize_str("no  12")] == ["no", "Ġ", "Ġ12"]


def test_qwen2_and_sentencepiece_tokenizers(tmp_path):
    write_gguf(tmp_path / "qwen.gguf", "qwen2", {"tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.add_bos_token": False})
    tokenizer = LLM(str(tmp_path / "qwen.gguf")).tokenizer
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    rows = len(source_tokenizer())
    pieces = ["▁", "a", "b", "ab", "▁ab"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    tokens += [f"[PAD{i}]" for i in range(rows - len(tokens))]
    changes = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [float(-i) for i in range(rows)],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 5 + [5] * (rows - 264),
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.add_bos_token": None,
    }
    write_gguf(tmp_path / "sentencepiece.gguf", changes=changes)
    tokenizer = LLM(str(tmp_path / "sentencepiece.gguf")).tokenizer
    assert tokenizer("ab")["input_ids"] == [1, tokens.index("▁ab")]
    assert tokenizer.decode(tokenizer("ab é")["input_ids"][1:]) == "ab é"


# ---- once, whole, and told apart
def test_a_file_is_dequantised_once(tmp_path, request):
    numbers = write_gguf(tmp_path / "model.gguf")
    first = LLM(str(tmp_path / "model.gguf"))
    request.getfixturevalue("no_dequantising")
    again = LLM(str(tmp_path / "model.gguf"))
    assert first.path == again.path == str(gguf.CACHE / f"{sha256_of(tmp_path / 'model.gguf')}-float32" / "model")
    with pytest.raises(ValueError, match="dequantised"):  # other weights on the disk
        LLM(str(tmp_path / "model.gguf"), dtype="bfloat16")
    assert not list(gguf.CACHE.glob("*bfloat16/*")) and not list(gguf.CACHE.glob("*.lock"))
    request.getfixturevalue("monkeypatch").undo()
    request.getfixturevalue("monkeypatch").chdir(tmp_path)
    half = LLM(str(tmp_path / "model.gguf"), dtype="bfloat16")
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(half.causal_lm.get_parameter(name), torch.from_numpy(numbers[name]).bfloat16())
    with safe_open(Path(half.path) / "model.safetensors", "pt") as stored:
        assert stored.get_tensor(name).dtype == torch.bfloat16
    assert first.fingerprint() == half.fingerprint() == sha256_of(tmp_path / "model.gguf")
    write_gguf(tmp_path / "model.gguf", changes={"llama.rope.freq_base": 6000.0})
    assert LLM(str(tmp_path / "model.gguf")).fingerprint() != first.fingerprint()


def test_what_a_killed_command_left_is_made_anew(tmp_path):
    numbers = write_gguf(tmp_path / "model.gguf")
    left = gguf.CACHE / f"{sha256_of(tmp_path / 'model.gguf')}-float32" / "model.partial"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{")
    got = LLM(str(tmp_path / "model.gguf")).causal_lm.get_parameter("model.norm.weight")
    assert np.array_equal(got.detach().numpy(), numbers["model.norm.weight"]) and not left.exists()


def test_found_as_a_file_a_folder_or_a_name(tmp_path):
    for folder in ("one", "runs/weights/small", "two"):
        (tmp_path / folder).mkdir(parents=True)
        write_gguf(tmp_path / folder / "a.gguf")
    write_gguf(tmp_path / "two" / "b.gguf")
    assert locate_language_model("one") == locate_language_model("one/a.gguf") == "one/a.gguf"
    assert locate_language_model("small") == "runs/weights/small/a.gguf"
    assert Path(LLM("small").path).name == "small"
    with pytest.raises(FileNotFoundError, match=r"two holds 2 models \(a.gguf, b.gguf.*--model.llm the path of one"):
        locate_language_model("two")
    with pytest.raises(FileNotFoundError, match="no language model at 'owner/none.gguf'"):
        locate_language_model("owner/none.gguf")


# ---- what is refused, before a block is decoded
ROWS = len(source_tokenizer())
TOKENS = [f"t{i}" for i in range(ROWS + 1)]


@pytest.mark.parametrize(
    "options, told",
    [
        ({"architecture": "phi3"}, r"holds a model of the family 'phi3'.*llama, qwen2, qwen3 can be read"),
        ({"architecture": "clip"}, r"holds a part for pictures or sound"),
        ({"more": {"v.blk.0.attn_q.weight": np.ones(4)}}, r"1 tensors that .*'v.blk.0.attn_q.weight'.*sees or hears"),
        ({"more": {"blk.0.ffn_gate_exps.weight": np.ones(4)}}, r"no place for: 'blk.0.ffn_gate_exps.weight'"),
        ({"more": {"../../escaped": np.ones(4)}}, r"no place for: '../../escaped'"),
        ({"more": {"blk.0/../../x.attn_q.weight": np.ones(4)}}, r"has no place for"),
        ({"changes": {"tokenizer.ggml.tokens": TOKENS}}, rf"tokenizer has {ROWS + 1} tokens, .*has {ROWS} rows"),
        ({"changes": {"tokenizer.ggml.tokens": TOKENS[:50]}}, rf"tokenizer has 50 tokens, .*has {ROWS} rows"),
        ({"changes": {"tokenizer.ggml.tokens": None}}, r"has no tokenizer"),
        ({"changes": {"tokenizer.ggml.model": None}}, r"has no tokenizer that can be read \('none'"),
        ({"changes": {"tokenizer.ggml.model": "no_vocab"}}, r"has no tokenizer that can be read \('no_vocab'"),
        ({"changes": {"tokenizer.ggml.pre": "unheard-of"}}, r"cuts text as 'unheard-of', which is not known"),
        ({"changes": {"tokenizer.ggml.pre": None}}, r"cuts text as None"),
        ({"changes": {"tokenizer.ggml.eos_token_id": 5000}}, r"eos_token_id is 5000, expected one of"),
        ({"changes": {"tokenizer.chat_template": 7}}, r"chat template is 7, expected a text"),
        ({"changes": {"llama.attention.head_count": None}}, r"llama.attention.head_count is None"),
        ({"changes": {"llama.block_count": 10**9}}, r"num_hidden_layers is 1000000000, expected 1 to"),
        ({"changes": {"llama.attention.head_count_kv": [2, 2]}}, r"head_count_kv is \[2, 2\]"),
        ({"changes": {"llama.attention.layer_norm_rms_epsilon": "small"}}, r"layer_norm_rms_epsilon is 'small'"),
        ({"changes": {"llama.rope.dimension_count": 8}}, r"turns 8 of 16 channels"),
        ({"changes": {"llama.rope.scaling.type": "yarn"}}, r"scales its positions \('yarn'\)"),
        ({"without": ["token_embd.weight"]}, r"no token_embd.weight.*divided"),
    ],
)
def test_refused(options, told, tmp_path, no_dequantising):
    write_gguf(tmp_path / "model.gguf", **options)
    with pytest.raises(ValueError, match=told) as caught:
        LLM(str(tmp_path / "model.gguf"))
    assert str(tmp_path / "model.gguf") in str(caught.value) and "\n" not in str(caught.value)
    assert not list(gguf.CACHE.glob("*/*")) and not list(tmp_path.rglob("escaped*"))


def test_a_missing_weight_is_named(tmp_path):
    write_gguf(tmp_path / "model.gguf", without=["blk.1.ffn_up.weight"])
    with pytest.raises(ValueError, match=r"do not fit its config.json: 1 missing keys: .*layers.1.mlp.up_proj.weight"):
        LLM(str(tmp_path / "model.gguf"))


def test_cut_off_anywhere(tmp_path, no_dequantising):
    write_gguf(tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    rng = np.random.default_rng(0)
    for length in (0, 3, 4, 20, 24, 100, len(whole) - 40, *rng.integers(100, len(whole) - 40, 20).tolist()):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut.gguf cannot be read as a GGUF file .*truncated") as caught:
            LLM(str(tmp_path / "cut.gguf"))
        assert "dequantised" not in str(caught.value)
    (tmp_path / "cut.gguf").write_bytes(b"something else" * 100)
    with pytest.raises(ValueError, match=r"cut.gguf cannot be read as a GGUF file"):
        LLM(str(tmp_path / "cut.gguf"))


@pytest.mark.parametrize("kind", [0, 4, 6, 7, 8, 9])
def test_an_array_without_end(kind, tmp_path):
    """gguf's own reader would count to what the file says."""
    key = b"general.tags"
    array = struct.pack("<QQQ", 0, 1, len(key)) + key + struct.pack("<IIQ", 9, kind, 1 << 60)
    (tmp_path / "endless.gguf").write_bytes(b"GGUF" + struct.pack("<I", 3) + array)
    with pytest.raises(ValueError, match="cannot be read as a GGUF file"):
        LLM(str(tmp_path / "endless.gguf"))


def test_a_template_that_reaches_for_python_is_refused(tmp_path):
    evil = "{{ messages.__class__.__mro__[-1].__subclasses__() }}"
    write_gguf(tmp_path / "model.gguf", changes={"tokenizer.chat_template": evil})
    llm = LLM(str(tmp_path / "model.gguf"))
    with pytest.raises(ValueError, match="the chat template of .* cannot be used"):
        llm.tokenizer.apply_chat_template([{"role": "user", "content": "hello"}])
    write_gguf(tmp_path / "plain.gguf", changes={"tokenizer.chat_template": None})
    assert LLM(str(tmp_path / "plain.gguf")).tokenizer.chat_template is None


def test_files_beside_the_file_are_not_read(tmp_path):
    """A GGUF file brings its own tokenizer; one beside it may be another model's."""
    write_gguf(tmp_path / "model.gguf")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "evil.Evil"}}')
    assert LLM(str(tmp_path / "model.gguf")).tokenizer("hello")["input_ids"] == source_tokenizer()("hello")["input_ids"]


def test_without_the_package(tmp_path, monkeypatch):
    write_gguf(tmp_path / "model.gguf")
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=re.escape("pip install 'emotion-zoo[gguf]'")):
        LLM(str(tmp_path / "model.gguf"))


def test_the_file_of_the_tests_is_not_the_codes_own_inverse():
    """`neighbours` as llama.cpp's converter writes it, from the definition of rotary pairs."""
    rows = np.arange(2 * 8)[:, None]
    assert gguf_files.neighbours(rows, 2)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
