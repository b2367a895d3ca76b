"""Model folders and the hub: find a model, identify its weights, read them without running code.

    path = locate("tiny-llama", what="language model", option="--model.llm")
    model, loading_info = read_weights(AutoModelForCausalLM, path, dtype=torch.float32)
    refuse_misfits(loading_info, path)

`zoo.backbones.folders` looks at the files of a folder before a library reads them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_utils import load_state_dict
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file
from transformers.utils.import_utils import is_flash_attn_2_available

from zoo.backbones.chat import with_limits
from zoo.backbones.folders import no_safetensors, refused_by_name
from zoo.errors import is_refusal
from zoo.shipped import SHIPPED
from zoo.storage import read_json

log = logging.getLogger(__name__)

FETCHED = Path("runs") / "weights"  # where zoo checkpoints pull puts folders, by name
Dtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal["sdpa", "eager", "flash_attention_2"]
NOT_PART_OF_A_MODEL = ("transformers_version", "_name_or_path", "torch_dtype", "dtype")  # keys of a config.json


def refuse_missing_attention(attention: str) -> None:
    """Raise ValueError for flash attention where it cannot run, before any weights are read."""
    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError(
            "attention flash_attention_2 needs a CUDA device and the package flash-attn (2.3.3 or newer); install it, "
            "or set --model.attention sdpa"
        )


# ---- where a model is
def locate(path: str, *, what: str, option: str, file_suffixes: Collection[str] = ()) -> str:
    """Find a model folder, a name of ``checkpoints/``, a name that was fetched, or a hub id, in this order.

    Args:
        path: as the user gave it.
        what: kind of model for the message, e.g. "language model".
        option: the option that sets the path, e.g. "--model.llm".
        file_suffixes: endings of single files that hold a whole model, e.g. (".hdf5",); empty: only folders do.

    Returns:
        The path of the folder or file, or the hub id. Of a folder without config.json that holds one file of
        ``file_suffixes``, the path of that file.

    Raises:
        FileNotFoundError: it is none of them, or a folder with several such files; the message says where was looked.
    """
    published = SHIPPED / "checkpoints"
    for candidate in (Path(path), SHIPPED / path, published / path, FETCHED / path):
        if (candidate / "config.json").is_file() or (file_suffixes and candidate.is_file()):
            return str(candidate)
        files = sorted(file for file in candidate.glob("*") if file.suffix in file_suffixes and file.is_file())
        if len(files) == 1:
            return str(files[0])
        if files:
            raise FileNotFoundError(
                f"{candidate} holds {len(files)} models ({', '.join(file.name for file in files[:3])}, ...) and no "
                f"config.json; give {option} the path of one of them"
            )
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", path) and Path(path).suffix not in file_suffixes
    if is_hub_id and not Path(path).exists():
        return path
    places, weights = "neither a folder", "*.safetensors"
    if file_suffixes:
        places, weights = "neither a file, nor a folder", "the weights"
    raise FileNotFoundError(
        f"no {what} at {path!r}: {places} with a config.json, nor a published name in {published}, nor one that "
        f"zoo checkpoints pull has put into {FETCHED} (zoo checkpoints list names what can be pulled), nor a hub id of "
        f"the form owner/name. Give {option} the folder that holds config.json and {weights}"
    )


def given_name(path: str) -> str:
    """Return what a user gives to get a model: of what was fetched, or converted into a cache, the published name."""
    place = Path(path)
    fetched = place.parts[-3:-1] == FETCHED.parts or "gguf-cache" in place.parts[:-1]
    return place.name if fetched else path


def find_file(path: str, name: str, revision: str | None = None) -> Path | None:
    """Return the path of one file of a model folder or of a hub model; None if the model has no such file."""
    if Path(path).is_dir():
        file = Path(path) / name
        return file if file.is_file() else None
    cached = cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return Path(cached) if cached else None


def new_model_folder(folder: str | Path) -> Path:
    """Return the folder as a Path if a model can be written there. FileExistsError if it already holds one."""
    folder = Path(folder)
    if (folder / "config.json").exists():
        raise FileExistsError(f"{folder} already holds a model; choose another folder or delete it first")
    return folder


# ---- which weights they are
def fingerprint(path: str, revision: str | None = None) -> str:
    """Return the identity of the weights in a model folder or of a hub model.

    It is the sha256 over config.json and, of every safetensors file, the header and 64 blocks of 4 KiB spread over the
    file (reading all of a 7B model would take a minute). It does not depend on the dtype the model is loaded in.
    """
    folder = _folder(path, revision)
    digest = hashlib.sha256()
    config = {k: v for k, v in read_json(folder / "config.json").items() if k not in NOT_PART_OF_A_MODEL}
    digest.update(json.dumps(config, sort_keys=True).encode())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as f:
            header = int.from_bytes(f.read(8), "little")
            digest.update(f.read(min(header, size)))
            for i in range(64):
                f.seek(8 + header + (size - 8 - header) * i // 64)
                digest.update(f.read(4096))
    return digest.hexdigest()


def stored_dtype(path: str, revision: str | None = None) -> torch.dtype | None:
    """Return the dtype of the weights in the files of a model folder or of a hub model; None if they have several.

    What config.json says is no answer: transformers believes it, and would round weights that are stored otherwise.
    """
    files = _folder(path, revision).glob("*.safetensors")
    tensors = (tensor for file in files for tensor in load_state_dict(str(file), map_location="meta").values())
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None


def _folder(path: str, revision: str | None) -> Path:
    """Return the folder of a model: itself, or where a hub model's files are."""
    if Path(path).is_dir():
        return Path(path)
    with refused_by_name(path):
        return Path(str(cached_file(path, "config.json", revision=revision))).parent


# ---- reading weights
@contextlib.contextmanager
def without_key_report() -> Iterator[None]:
    """Silence transformers' report of the keys that did not fit: the caller judges them by name (`refuse_misfits`)."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def read_weights(kind: Any, path: str, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Call ``kind.from_pretrained`` on safetensors alone.

    Returns:
        The model, and the keys that did not fit, for `refuse_misfits`.

    Raises:
        FileNotFoundError: a folder without safetensors.
        ValueError: files that cannot be read.
    """
    if Path(path).is_dir() and not list(Path(path).glob("*.safetensors")):
        raise no_safetensors(path)
    transformers_logging.disable_progress_bar()
    try:
        return kind.from_pretrained(
            path,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the second value, and refused with their names
            **options,
        )
    except Exception as error:  # transformers and safetensors raise many types; the cause stays chained
        if is_refusal(error):
            raise
        if isinstance(error, ImportError):
            needs = " ".join(str(error).split())
            raise ValueError(f"the config.json of {path} asks for a package that is missing: {needs}") from error
        raise unreadable_weights(path, error) from error


def unreadable_weights(path: str, error: Exception) -> ValueError:
    """Return the error for weight files that a library could not read."""
    return ValueError(
        f"the weights in {path} could not be read ({type(error).__name__}: {error}); "
        "a truncated or damaged download? Fetch the folder again"
    )


def refuse_misfits(loading_info: Mapping[str, Any], path: str) -> None:
    """Raise ValueError naming the keys that are missing, left over or of another shape."""
    problems = [f"{len(v)} {k.replace('_', ' ')}: {sorted(map(str, v))[:3]}" for k, v in loading_info.items() if v]
    if problems:
        raise ValueError(f"the weights in {path} do not fit its config.json: {'; '.join(problems)}")


def refuse_infinite(tensors: Mapping[str, Tensor], path: str) -> None:
    """Raise ValueError naming the tensors that hold NaN or infinity."""
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ValueError(f"the weights in {path} are not finite (NaN or infinity) in {len(bad)} tensors: {bad[:3]} ...")


# ---- tokenizers
def load_tokenizer(path: str, revision: str | None) -> Any:
    """Load the tokenizer of a model folder or hub model, with limits on its chat template.

    AutoTokenizer is used except where a folder names the plain class: for Qwen2, transformers 5 would replace what
    tokenizer.json says (its normaliser, for one) by the published Qwen2's, and add a token beyond the embedding.
    """
    class_name = get_tokenizer_config(path, revision=revision).get("tokenizer_class")
    is_plain = class_name in ("TokenizersBackend", "PreTrainedTokenizerFast")
    kind: Any = PreTrainedTokenizerFast if is_plain else AutoTokenizer
    return with_limits(kind.from_pretrained(path, revision=revision), path)


def padding_id(tokenizer: Any, vocabulary_size: int) -> int:
    """Return a token for padding that the model has an embedding for.

    Padding is always masked, so any valid id serves: the tokenizer's own, else unk, else end of text (Llama-2's has
    none; some of its copies carry a [PAD] one beyond the embedding).
    """
    candidates = [] if tokenizer is None else [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id]
    for i, candidate in enumerate(candidates):
        if candidate is not None and candidate < vocabulary_size:
            if i > 0:
                log.info(
                    "the tokenizer has no usable pad token; padding with %r (masked)",
                    tokenizer.convert_ids_to_tokens(candidate),
                )
            return candidate
    return 0
