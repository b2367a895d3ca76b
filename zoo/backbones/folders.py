"""Checks of model folders before a library reads them, with errors that say what to do.

A folder may come from a stranger: its config.json may be a list, its numbers absurd, its files Git LFS pointers.
`reads_folder` is the one boundary to transformers, timm and safetensors: what they raise while a backbone is made from
a folder names the folder and no host.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ParamSpec

from transformers import CONFIG_MAPPING
from transformers.activations import ACT2FN

from zoo.errors import is_refusal, one_line
from zoo.storage import inside, read_json

POINTER = b"version https://git-lfs.github.com/spec/"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")
LARGEST = {  # numbers of a config.json beyond those of any model: a library would build it until memory ends
    "num_hidden_layers": 1000,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "vocab_size": 1 << 24,
    "head_dim": 1 << 14,
    "image_size": 1 << 14,
    "patch_size": 1 << 12,
    "num_channels": 64,
    "max_position_embeddings": 1 << 31,
    "num_labels": 1 << 20,
    "depth": 1000,
    "num_heads": 4096,
    "embed_dim": 1 << 17,
}
POSITIVE = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "head_dim",
    "image_size",
    "patch_size",
    "num_channels",
)
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "feat_extract_activation")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
READ = re.compile(r"config|(?:tokenizer|preprocessor|generation|special).*|.*\.index")  # JSON files of objects

Arguments = ParamSpec("Arguments")


def reads_folder(make: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Decorate the ``__init__`` of a backbone whose first argument is its path, so that errors name the folder.

    Raises:
        ValueError, FileNotFoundError: the folder is damaged, incomplete or of an unknown kind; names it.
    """
    names = list(inspect.signature(make).parameters)

    @functools.wraps(make)
    def checked(*args: Arguments.args, **options: Arguments.kwargs) -> None:
        path = args[1] if len(args) > 1 else options.get(names[1])  # the first is the backbone itself
        with refused_by_name(str(path)):
            make(*args, **options)

    return checked


@contextlib.contextmanager
def refused_by_name(path: str) -> Iterator[None]:
    """Turn what a library raises over a model folder, or a model of the hub, into an error that names it."""
    try:
        yield
    except (MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:  # transformers, tokenizers, timm and safetensors raise many types; the cause is chained
        if is_refusal(error) or type(error).__name__ == "OutOfMemoryError":
            raise
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if _concerns_the_hub(path, error):
            why = "the network is switched off (HF_HUB_OFFLINE)" if _is_offline() else "it could not be fetched"
            raise FileNotFoundError(
                f"{path} is no folder here and not among the models that were fetched before, and {why}. Give a folder "
                "with config.json, tokenizer and *.safetensors, or fetch it once where there is a network: hf download "
                f"{path}"
            ) from error
        raise ValueError(
            f"{path} cannot be used as a model folder ({_without_hosts(one_line(error))}); is a file of it damaged, "
            "missing or of another model? Fetch or copy the folder again"
        ) from error


def _concerns_the_hub(path: str, error: Exception) -> bool:
    """Tell whether an error is about a model of the hub, rather than about a folder."""
    library = type(error).__module__.partition(".")[0]
    return not Path(path).exists() and (
        isinstance(error, OSError) or library in ("huggingface_hub", "httpx", "httpx2", "requests")
    )


def _is_offline() -> bool:
    """Tell whether the network is switched off."""
    return os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")


def _without_hosts(text: str) -> str:
    """Replace addresses in a message."""
    return re.sub(r"'?https?://\S+", "the hub", text)


def check_folder(folder: str | Path, known: bool = True) -> dict[str, Any]:
    """Check every file of a model folder that a library would read, and return its config.json.

    Args:
        known: the model type must be one of transformers.

    Raises:
        ValueError: naming the file and what is wrong with it.
        FileNotFoundError: naming a file that an index names and that is missing.
    """
    folder = Path(folder)
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors", ".model", ".bin", ".txt", ".jinja") and file.is_file():
            with file.open("rb") as opened:
                if opened.read(len(POINTER)) == POINTER:
                    raise ValueError(f"{file} is a Git LFS pointer, not the file itself; run: git lfs pull")
    for file in sorted(folder.glob("*.json")):
        if READ.fullmatch(file.stem):
            content = read_json(file)
            if not isinstance(content, dict):
                raise ValueError(f"{file} holds a {type(content).__name__}, expected a JSON object; fetch it again")
            if file.name.endswith(".index.json"):
                _check_index(file, content)
    config = read_json(folder / "config.json")
    _check_config(config, folder / "config.json", known)
    if known:  # else it writes no tokens
        text = config.get("text_config")
        rows = config.get("vocab_size") or (text.get("vocab_size") if isinstance(text, dict) else None)
        _check_tokens(config, folder / "config.json", rows)
        if (file := folder / "generation_config.json").is_file():
            _check_tokens(read_json(file), file, rows)
    return config


def _check_tokens(content: Mapping[str, Any], file: Path, rows: int | None) -> None:
    """Raise ValueError for a token that the model has no row for; -1 as padding is an old word for none."""
    for key in TOKENS:
        value = content.get(key)
        for token in value if isinstance(value, list) else [value]:
            if token is None or (key == "pad_token_id" and token == -1 and not isinstance(token, bool)):
                continue
            if not isinstance(token, int) or isinstance(token, bool):
                raise ValueError(f"{file}: {key} is {value!r:.60}, expected the number of a token; fetch it again")
            if token < 0 or (rows is not None and token >= rows):
                raise ValueError(
                    f"{file}: {key} is {value!r:.60}, but the vocabulary has the tokens 0 to {(rows or 0) - 1}; "
                    "correct it, or fetch the file again"
                )


def _check_index(file: Path, content: Mapping[str, Any]) -> None:
    """Raise ValueError or FileNotFoundError for an index of weight files that names none, or a missing one."""
    where = content.get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{file} has no weight_map (tensor -> file); fetch it again")
    for name, place in where.items():
        if not inside(file.parent, place, f"{file}: {name}").is_file():
            raise FileNotFoundError(f"{file.parent} lacks {place}, which {file.name} names; fetch the folder again")


def _check_config(config: Mapping[str, Any], file: Path, known: bool) -> None:
    """Raise ValueError for a config.json that describes no model, or none that could be built."""
    if known:
        _check_model_type(config, file)
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise _wrong(file, f"architectures is {names!r:.60}, expected a list of names")
    sections = (config, *(value for value in config.values() if isinstance(value, dict)))
    for section in sections:
        _check_sizes(section, file)
    for section in sections:
        _check_activations(section, file)
    _check_heads(config, file)


def _wrong(file: Path, what: str) -> ValueError:
    """Return the error for a file with a wrong value."""
    return ValueError(f"{file}: {what}; fetch it again")


def _check_model_type(config: Mapping[str, Any], file: Path) -> None:
    """Raise ValueError for a model type that transformers does not have."""
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ValueError(f"{file} names no model_type (got {kind!r:.60}); is it the config of a model?")
    if kind not in CONFIG_MAPPING:
        foreign_code = " It brings code of its own (auto_map), which is never run." if "auto_map" in config else ""
        raise ValueError(
            f"{file} names the model type {kind!r:.80}, which the installed transformers does not "
            f"know.{foreign_code} Use another model, or a newer transformers if it is a new kind"
        )


def _check_sizes(section: Mapping[str, Any], file: Path) -> None:
    """Raise ValueError for sizes that are no numbers, or those of no model."""
    for key, largest in LARGEST.items():
        value = section.get(key)
        if value is None or isinstance(value, list):
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong(file, f"{key} is {value!r:.60}, expected a whole number")
        if value > largest or (key in POSITIVE and value < 1):
            raise _wrong(file, f"{key} is {value!r:.60}, expected 1 to {largest}")


def _check_activations(section: Mapping[str, Any], file: Path) -> None:
    """Raise ValueError for an activation function that transformers does not have."""
    for key in ACTIVATIONS:
        if isinstance(section.get(key), str) and section[key] not in ACT2FN:
            near = difflib.get_close_matches(section[key], list(ACT2FN), 1)
            raise ValueError(
                f"{file}: {key} is {section[key]!r:.60}, which the installed transformers does not know"
                f"{f'; did it mean {near[0]}?' if near else ''}; correct it, or fetch the file "
                "again"
            )


def _check_heads(config: Mapping[str, Any], file: Path) -> None:
    """Raise ValueError for numbers of attention heads that do not divide each other."""
    width, heads, groups = (config.get(k) for k in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    if isinstance(width, int) and isinstance(heads, int):
        if width % heads and config.get("head_dim") is None:
            raise _wrong(file, f"hidden_size {width} is no multiple of num_attention_heads {heads}")
        if isinstance(groups, int) and heads % groups:
            raise _wrong(file, f"num_attention_heads {heads} is no multiple of num_key_value_heads {groups}")


def check_tokenizer_files(folder: str | Path) -> None:
    """Raise ValueError or FileNotFoundError for a folder without a tokenizer, or whose tokenizer.json is none."""
    folder = Path(folder)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise FileNotFoundError(
            f"{folder} has no tokenizer (tokenizer.json or tokenizer.model); copy the tokenizer files of the model "
            "that it was made from into it"
        )
    file = folder / "tokenizer.json"
    if file.is_file():
        content = read_json(file)
        model = content.get("model") if isinstance(content, dict) else None
        if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
            raise ValueError(f"{file} holds no tokenizer (no model with a vocab); fetch it again")


def check_vocabulary(tokenizer: Any, rows: int, path: str) -> None:
    """Raise ValueError for a tokenizer that writes tokens which the model has no row for.

    Added tokens that no text has (a [PAD] beyond the embedding, as in some copies of Llama-2) are never written.
    """
    added = set(tokenizer.get_added_vocab())
    beyond = [repr(token) for token, index in tokenizer.get_vocab().items() if index >= rows and token not in added]
    needed = {"eos_token": tokenizer.eos_token_id, "bos_token": tokenizer.bos_token_id}
    beyond += [f"{name} {index}" for name, index in needed.items() if index is not None and index >= rows]
    if beyond:
        raise ValueError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, but the model's embedding has {rows} rows, too few "
            f"for {len(beyond)} of them ({', '.join(beyond[:3])}); the two belong to different models"
        )


def no_safetensors(folder: str | Path) -> FileNotFoundError:
    """Return the error for a folder whose weights are missing, or are pickles; the command in it was tried."""
    folder = Path(folder)
    pickled = sorted(p.name for ending in ("*.bin", "*.pth") for p in folder.glob(ending))
    if not pickled:
        return FileNotFoundError(f"{folder} has a config.json but no *.safetensors; copy the model's weights into it")
    return FileNotFoundError(
        f"{folder} has a config.json but no *.safetensors: its weights are in {pickled[0]}, a kind of file that can "
        "run code. If you trust where it comes from, write them anew once: "
        f'python -c "import torch, safetensors.torch as s; s.save_file({{k: v.clone().contiguous() for k, v in '
        f"torch.load('{folder / pickled[0]}', weights_only=True).items()}}, '{folder / 'model.safetensors'}', "
        "{'format': 'pt'})\""
    )
