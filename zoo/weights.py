"""The files that hold weights: a checkpoint of the zoo is read and checked here and nowhere else.

A ``.ckpt`` is a zip archive of tensors and plain values (torch.save), a ``weights.safetensors`` has the same contract
in its header. Nothing here unpickles code, builds a model, or knows a system.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from zoo.storage import parse_json

FORMAT = 1  # of the contract inside a checkpoint
BLOCK = 1 << 22
LORA = {"r": (int,), "alpha": (int, float), "dropout": (int, float), "targets": (str,)}  # of an adapter


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose parts have the types they must have.

    Attributes:
        path: its file.
        state: name -> tensor; without their values if the file was only looked into.
        contract: what it says about itself, see `EmotionModule.contract`; every field is there.
        global_step: of the training that wrote it.
        resumable: it also holds what a training run goes on from (optimizer, place in the data, Lightning's version).
        content: everything in the file, as Lightning reads it.
    """

    path: Path
    state: Mapping[str, Tensor]
    contract: Mapping[str, Any]
    global_step: int = 0
    resumable: bool = False
    content: Mapping[str, Any] = field(default_factory=dict, repr=False)


def look_into(path: Path) -> Checkpoint:
    """A checkpoint whose tensors have shapes but no values. Takes no time, but for the checksums of a .ckpt.

    Raises:
        ValueError: the file is damaged (truncated, or its bytes were changed), holds more than tensors and plain
            values, or is no checkpoint of the zoo; says which part of it is wrong.
    """
    return _read(path, values=False)


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint with its tensors in memory; see `look_into`."""
    return _read(path, values=True)


def refuse_not_finite(state: Mapping[str, Tensor], path: object) -> None:
    """ValueError naming the tensors that hold NaN or infinity."""
    wrong = [k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if wrong:
        raise ValueError(
            f"{path} holds NaN or infinite values in {len(wrong)} tensors: {wrong[:3]}; training had diverged"
        )


def _read(path: Path, values: bool) -> Checkpoint:
    if path.suffix == ".safetensors":
        content = _safetensors(path, values)
    else:
        _check_bytes(path)
        try:
            where: dict[str, Any] = {"map_location": "cpu"} if values else {"map_location": "meta", "mmap": True}
            content = torch.load(path, weights_only=True, **where)
        except Exception as error:  # torch raises many types; the cause stays chained
            raise _unreadable(path, error) from error
    return _checked(path, content)


def _safetensors(path: Path, values: bool) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            names, metadata = list(file.keys()), file.metadata() or {}
            state = {k: file.get_tensor(k) if values else torch.empty(file.get_slice(k).get_shape(), device="meta")
                     for k in names}  # fmt: skip
    except Exception as error:  # safetensors raises types of its own, and OSError; the cause stays chained
        raise _unreadable(path, error) from error
    if "zoo" not in metadata:
        raise ValueError(f"{path} is not a checkpoint of the zoo: it has no 'zoo'")
    tied = parse_json(metadata.get("tied", "{}"), f"the tied tensors in {path}")
    if not isinstance(tied, dict) or not all(isinstance(first, str) and first in state for first in tied.values()):
        raise ValueError(f"{path} is not a checkpoint of the zoo: it ties tensors that it lacks; fetch it again")
    state |= {name: state[first] for name, first in tied.items()}  # tied tensors are stored once
    return {"state_dict": state, "zoo": parse_json(metadata["zoo"], f"the contract in {path}"), "global_step": 0}


def _unreadable(path: Path, error: Exception) -> ValueError:
    first = re.sub(r"\s+", " ", str(error)).strip()[:200]
    return ValueError(
        f"{path} could not be read as weights ({type(error).__name__}: {first}); is it truncated, or a pickle of more "
        "than tensors?"
    )


def _check_bytes(path: Path) -> None:
    """ValueError naming the part of a .ckpt whose bytes are not those that were written: torch does not compare the
    checksums that it writes. A GB takes about a second."""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as part:
                    while part.read(BLOCK):  # compares the CRC at its end
                        pass
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(
            f"{path} could not be read as weights ({type(error).__name__}: {error}); it is truncated, its bytes were "
            "changed after it was written, or it is no checkpoint: copy or fetch it again"
        ) from error


def _checked(path: Path, content: Any) -> Checkpoint:
    """Every part of a checkpoint has its type. ValueError naming the first that has not."""
    def wrong(what: str) -> ValueError:
        return ValueError(f"{path} is not a checkpoint of the zoo: {what}")

    if not isinstance(content, dict):
        raise wrong(f"it holds a {type(content).__name__}, expected a mapping")
    for key in ("zoo", "state_dict", "global_step"):
        if key not in content:
            raise wrong(f"it has no {key!r}")
    state, contract, step = content["state_dict"], content["zoo"], content["global_step"]
    if not isinstance(state, dict):
        raise wrong(f"its state_dict is a {type(state).__name__}, expected tensors by name")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise wrong(f"{name!r} in its state_dict is a {type(value).__name__}, expected a tensor")
        if value.layout != torch.strided or value.is_quantized:
            raise wrong(f"{name!r} in its state_dict is a sparse or quantised tensor, expected a dense one")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise wrong(f"its global_step is {step!r}, expected a number of steps")
    contract = checked_contract(contract, path)
    optimizers = content.get("optimizer_states")
    resumable = (
        isinstance(optimizers, list) and bool(optimizers) and all(isinstance(one, dict) for one in optimizers)
        and isinstance(content.get("lr_schedulers"), list) and isinstance(content.get("loops"), dict)
        and isinstance(content.get("epoch"), int) and isinstance(content.get("pytorch-lightning_version"), str)
    )  # fmt: skip
    return Checkpoint(path, state, contract, step, resumable, content)


def checked_contract(contract: Any, path: object) -> dict[str, Any]:
    """What a checkpoint says about itself, complete. ValueError naming the first field of another type."""
    def wrong(what: str) -> ValueError:
        return ValueError(f"{path} is not a checkpoint of the zoo: {what}")

    if not isinstance(contract, dict):
        raise wrong(f"its contract ('zoo') is a {type(contract).__name__}, expected a mapping")
    if contract.get("format") != FORMAT:
        if "format" in contract:
            raise ValueError(f"{path} has format {contract['format']!r:.40}, this version reads {FORMAT}")
        raise wrong("its contract names no format")
    for key in ("class", "pristine"):
        if not isinstance(contract.get(key), str):
            raise wrong(f"the {key!r} of its contract is {contract.get(key)!r:.60}, expected a text")
    bases, adapters = contract.get("bases"), contract.get("adapters", {})
    if not isinstance(bases, dict) or not all(
        isinstance(base, dict) and isinstance(base.get("path"), str) and isinstance(base.get("fingerprint"), str)
        and isinstance(base.get("revision"), str | None) for base in bases.values()
    ):  # fmt: skip
        raise wrong("the 'bases' of its contract are no mapping of backbones with path, revision and fingerprint")
    if not isinstance(adapters, dict) or not all(
        isinstance(one, dict) and one.keys() == LORA.keys() and all(type(one[k]) in kinds for k, kinds in LORA.items())
        for one in adapters.values()
    ):
        raise wrong(f"the 'adapters' of its contract are no mapping of backbones to {', '.join(LORA)}")
    return {**contract, "bases": {k: {"revision": None, **v} for k, v in bases.items()}, "adapters": adapters}


def require_resumable(checkpoint: Checkpoint) -> None:
    """ValueError for a checkpoint without the state of a training run."""
    if not checkpoint.resumable:
        raise ValueError(
            f"{checkpoint.path} holds weights but not the whole state of a training run (optimizer_states, "
            "lr_schedulers, loops, epoch, pytorch-lightning_version), so no run can go on from it. To begin a new run "
            f"with these weights, give --model.start_from {checkpoint.path}"
        )
