"""A language model in one GGUF file, as llama.cpp writes it: turned once into an ordinary model folder.

    folder = model_folder(Path("model.Q4_1.gguf"), sha256, "model", "bfloat16")

Everything that can be told without a weight is looked at first: the family, the sizes, the names of the tensors, the
tokenizer. Then the blocks are dequantised by the package `gguf` and written under transformers' names, into a folder
that later commands find again (`CACHE`). Nothing in the file is run: its chat template is text here, and has the limits
of every other (`zoo.backbones.chat`); names of its tensors are looked up in a table, and name no files.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.integrations.gguf.reader import read_gguf_metadata

from zoo.backbones.folders import LARGEST, check_vocabulary
from zoo.errors import is_refusal, one_line
from zoo.storage import locked, whole_folder, write_whole

log = logging.getLogger(__name__)

SUFFIX = ".gguf"
CACHE = Path("runs") / "gguf-cache"  # holds SHA256-DTYPE/NAME/, a model folder
FAMILIES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
PARTS = {  # llama.cpp's name of a tensor -> transformers'; * is the number of a layer
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "blk.*.attn_norm.weight": "model.layers.*.input_layernorm.weight",
    "blk.*.attn_q.weight": "model.layers.*.self_attn.q_proj.weight",
    "blk.*.attn_k.weight": "model.layers.*.self_attn.k_proj.weight",
    "blk.*.attn_v.weight": "model.layers.*.self_attn.v_proj.weight",
    "blk.*.attn_output.weight": "model.layers.*.self_attn.o_proj.weight",
    "blk.*.ffn_norm.weight": "model.layers.*.post_attention_layernorm.weight",
    "blk.*.ffn_gate.weight": "model.layers.*.mlp.gate_proj.weight",
    "blk.*.ffn_up.weight": "model.layers.*.mlp.up_proj.weight",
    "blk.*.ffn_down.weight": "model.layers.*.mlp.down_proj.weight",
}
PARTS_OF_A_FAMILY: dict[str, dict[str, str]] = {
    "llama": {},
    "qwen2": {f"blk.*.attn_{p}.bias": f"model.layers.*.self_attn.{p}_proj.bias" for p in "qkv"},
    "qwen3": {f"blk.*.attn_{p}_norm.weight": f"model.layers.*.self_attn.{p}_norm.weight" for p in "qk"},
}
FACTORS = "rope_freqs.weight"  # what Llama 3.1 and later divide the frequencies of positions by; no tensor of ours
SIZES = {  # key behind the family -> key of config.json
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
}
TOKENS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
PLAIN_SPLITS = ("gpt-2", "smollm")  # how text is cut before byte pairs are merged, besides what transformers knows
DIGITS_APART = ("smollm",)  # every digit is a piece of its own; transformers forgets it
STARTS_BY_DEFAULT = ("llama-bpe", "llama3", "llama-v3")  # files without add_bos_token that begin with the bos token


def model_folder(file: Path, sha256: str, name: str, dtype: str) -> Path:
    """Return the model folder of a GGUF file; the first call writes it, which takes as long as reading all weights.

    Args:
        file: the file; only its own folder's name for it matters to messages.
        sha256: of the file.
        name: of the folder, which is how exports call this model.
        dtype: float32, bfloat16 or float16: of the weights in the folder.

    Raises:
        ValueError: not a GGUF file or not a whole one, a family beside `FAMILIES`, tensors or a tokenizer that do not
            belong to it, or the package `gguf` is missing; names the file.
    """
    folder = CACHE / f"{sha256}-{dtype}" / name
    with locked(CACHE / f"{sha256}-{dtype}.lock", f"{folder}", wait=True):
        if not folder.is_dir():
            if find_spec("gguf") is None:
                raise ValueError(
                    f"{file} is a GGUF file, and the package that reads it is missing: pip install 'emotion-zoo[gguf]'"
                )
            with whole_folder(folder) as part:
                try:
                    _convert(file, part, dtype)
                except Exception as error:  # numpy, struct, tokenizers and gguf raise many types; the cause is chained
                    if is_refusal(error) or isinstance(error, MemoryError):
                        raise
                    raise ValueError(
                        f"{file} cannot be read as a GGUF file ({one_line(error)}); a truncated or damaged download? "
                        "Fetch it again"
                    ) from error
            log.info("%s: dequantised to %s, once, into %s", file, dtype, folder)
    return folder


def _convert(file: Path, out: Path, dtype: str) -> None:
    """Write config.json, the tokenizer and model.safetensors to ``out``."""
    # transformers' reader goes first: it stops at the end of the file, where that of gguf would count on for as long as
    # an array in a damaged file says
    metadata, names = read_gguf_metadata(str(file), ("tokenizer.ggml.tokens",))
    family = metadata["general.architecture"]
    if family not in FAMILIES:
        kind = "a part for pictures or sound" if family == "clip" else f"a model of the family {family!r:.60}"
        raise ValueError(f"{file} holds {kind}; of GGUF files, language models of {', '.join(FAMILIES)} can be read")
    table = PARTS | PARTS_OF_A_FAMILY[family]
    foreign = [n for n in names if n != FACTORS and re.sub(r"^blk\.\d+\.", "blk.*.", n) not in table]
    if foreign:
        raise ValueError(
            f"{file} holds {len(foreign)} tensors that a language model of {family} has no place for: "
            f"{', '.join(map(repr, sorted(foreign)[:3]))}; a model with experts, or one that sees or hears?"
        )
    from gguf import GGUFReader, dequantize

    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    if "token_embd.weight" not in tensors:
        raise ValueError(f"{file} has no token_embd.weight, the embedding; is it one part of a divided model?")
    rows = int(tensors["token_embd.weight"].shape[1])
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens or metadata.get("tokenizer.ggml.model") not in ("gpt2", "llama"):
        kind = metadata.get("tokenizer.ggml.model", "none")
        raise ValueError(
            f"{file} has no tokenizer that can be read ({kind!r:.60}, expected gpt2 or llama); take a "
            "file of this model that holds its tokenizer"
        )
    if len(tokens) != rows:
        raise ValueError(
            f"{file}: the tokenizer has {len(tokens)} tokens, but the embedding has {rows} rows; the two belong to "
            "different models"
        )
    config = _config(file, metadata, family, rows)
    config["tie_word_embeddings"] = "output.weight" not in tensors
    if FACTORS in tensors:
        factors = torch.from_numpy(dequantize(tensors[FACTORS].data, tensors[FACTORS].tensor_type).copy()).tolist()
        config["rope_parameters"] |= {  # of transformers' kinds, the one that takes factors as they are
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "original_max_position_embeddings": config["max_position_embeddings"],
            "attention_factor": 1.0,
        }
    write_whole(out / "config.json", json.dumps(config | {"dtype": dtype}, indent=2) + "\n")
    tokenizer = _tokenizer(file, out, metadata)
    check_vocabulary(tokenizer, rows, str(file))
    tokenizer.save_pretrained(out)

    def weights() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors.items():
            if name != FACTORS:
                layer = re.match(r"blk\.(\d+)\.", name)
                place = table[re.sub(r"^blk\.\d+\.", "blk.*.", name)].replace("*", layer[1] if layer else "")
                values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
                if family == "llama" and (turned := re.search(r"\.attn_([qk])\.weight$", name)):
                    heads = config["num_attention_heads" if turned[1] == "q" else "num_key_value_heads"]
                    values = _halves(values, heads)
                yield place, values.to(getattr(torch, dtype)).contiguous()

    save_file(dict(weights()), out / "model.safetensors", {"format": "pt"})


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Return rows (heads * D, width) in transformers' order: rotary pairs D/2 apart, where llama.cpp has neighbours."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _config(file: Path, metadata: Mapping[str, Any], family: str, rows: int) -> dict[str, Any]:
    """Return the config.json that the metadata describe.

    Raises:
        ValueError: a size that is missing or that of no model, a token that the vocabulary does not have, or positions
            that are scaled in a way which is not known here.
    """

    def number(key: str, kind: type[int] | type[float], default: Any = None) -> Any:
        value = metadata.get(f"{family}.{key}", default)
        if not isinstance(value, kind) or isinstance(value, bool) or value <= 0:
            raise ValueError(f"{file}: {family}.{key} is {value!r:.60}, expected a number above 0; fetch it again")
        return value

    config: dict[str, Any] = {place: number(key, int) for key, place in SIZES.items()}
    heads = config["num_attention_heads"]
    config["num_key_value_heads"] = number("attention.head_count_kv", int, heads)
    config["head_dim"] = number("attention.key_length", int, config["hidden_size"] // heads or None)
    config["vocab_size"] = rows
    for key, largest in LARGEST.items():
        if config.get(key, 0) > largest:
            raise ValueError(f"{file}: {key} is {config[key]}, expected 1 to {largest}; fetch it again")
    turned = number("rope.dimension_count", int, config["head_dim"])
    if turned != config["head_dim"]:
        raise ValueError(f"{file} turns {turned} of {config['head_dim']} channels of a head, which cannot be read here")
    scaling = metadata.get(f"{family}.rope.scaling.type", "none")
    if scaling != "none":
        raise ValueError(f"{file} scales its positions ({scaling!r:.60}), which cannot be read from GGUF here")
    for place, key in TOKENS.items():
        token = metadata.get(f"tokenizer.ggml.{key}")
        if token is not None and (not isinstance(token, int) or not 0 <= token < rows):
            raise ValueError(f"{file}: {key} is {token!r:.60}, expected one of {rows} tokens; fetch it again")
        config[place] = token
    return config | {
        "model_type": family,
        "architectures": [FAMILIES[family]],
        "hidden_act": "silu",
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon", float),
        "rope_parameters": {"rope_type": "default", "rope_theta": number("rope.freq_base", float, 10000.0)},
    }


def _tokenizer(file: Path, folder: Path, metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the file. ValueError for a way to cut text that is not known."""
    splits = metadata.get("tokenizer.ggml.pre")
    is_bytes = metadata["tokenizer.ggml.model"] == "gpt2"
    if is_bytes and splits not in (*GGUF_PRE_TOKENIZER_SPLITS, *PLAIN_SPLITS):
        raise ValueError(
            f"{file}: its tokenizer cuts text as {splits!r:.60}, which is not known here, so it would write other "
            "tokens than the model was trained with; take the model's own folder"
        )
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise ValueError(f"{file}: its chat template is {template!r:.60}, expected a text; fetch it again")
    link = folder / f"model{SUFFIX}"  # alone in its folder: beside the file may lie another model's tokenizer
    link.symlink_to(file.resolve())
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(str(folder), gguf_file=link.name)
    link.unlink()
    if splits in DIGITS_APART:
        inner = tokenizer.backend_tokenizer.pre_tokenizer
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), inner]
        )
    if is_bytes and "tokenizer.ggml.add_bos_token" not in metadata:
        tokenizer.add_bos_token = splits in STARTS_BY_DEFAULT  # type: ignore[misc]  # it has a setter, by another name
    return tokenizer
