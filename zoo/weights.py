"""The files that hold weights: a checkpoint of the zoo is read and checked here and nowhere else.

A ``.ckpt`` is a zip archive of tensors and plain values (torch.save), a ``weights.safetensors`` has the same contract
in its header. Nothing here unpickles code, builds a model, or knows a system.
"""

from __future__ import annotations

import itertools
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from packaging.version import InvalidVersion, Version
from safetensors import safe_open
from torch import Tensor

from zoo.storage import parse_json

FORMAT = 1  # of the contract inside a checkpoint
FORMAT_WITH_START = 2  # of one that needs another checkpoint, which releases that read 1 alone do not look for
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
        content: everything in the file, as Lightning reads it.
    """

    path: Path
    state: Mapping[str, Tensor]
    contract: Mapping[str, Any]
    global_step: int = 0
    content: Mapping[str, Any] = field(default_factory=dict, repr=False)


def look_into(path: Path) -> Checkpoint:
    """A checkpoint whose tensors are mapped into memory from the file; the checksums of everything in it are compared.

    Raises:
        ValueError: the file is damaged (truncated, or its bytes were changed), holds more than tensors and plain
            values, or is no checkpoint of the zoo; says which part of it is wrong.
    """
    if path.suffix == ".safetensors":
        return _checked(path, _safetensors(path))
    _check_bytes(path, tensors=True)
    return _checked(path, load_mapped(path))


def read_checkpoint(path: Path) -> Checkpoint:
    """The same of a checkpoint whose weights alone are wanted.

    Nothing else in the file is read: the optimizer's tensors, twice the size of the weights, cost neither memory nor
    time. While the tensors are used the file must not be written in place; `zoo.storage.replacing` does not.
    """
    if path.suffix == ".safetensors":
        return look_into(path)
    sums = _check_bytes(path, tensors=False)
    checkpoint = _checked(path, load_mapped(path))
    _check_tensors(checkpoint, sums)
    return checkpoint


def refuse_not_finite(state: Mapping[str, Tensor], path: object) -> None:
    """ValueError naming the tensors that hold NaN or infinity."""
    wrong = [k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if wrong:
        raise ValueError(
            f"{path} holds NaN or infinite values in {len(wrong)} tensors: {wrong[:3]}; training had diverged"
        )


def load_mapped(path: Path) -> Any:
    """The content of a .ckpt, whose tensors stay in the file until they are used. Where the file system maps no
    files it is read whole, with a warning. ValueError: it is truncated, or holds more than tensors and plain values."""
    try:
        try:
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except RuntimeError as error:
            if "unable to mmap" not in str(error):
                raise
            warnings.warn(f"{path} is read whole, which takes memory: it cannot be mapped ({error})", stacklevel=2)
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types; the cause stays chained
        raise _unreadable(path, error) from error


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            names, metadata = list(file.keys()), file.metadata() or {}
            state = {k: file.get_tensor(k) for k in names}
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


def _check_bytes(path: Path, tensors: bool) -> set[tuple[int, int]]:
    """Size and checksum of each part of a .ckpt. ValueError naming a part whose bytes are not those that were written:
    torch does not compare the checksums that it writes.

    Args:
        path: of the file.
        tensors: also read the parts that are tensors, of which a GB takes about a second.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            for entry in entries:
                if not tensors and "/data/" in entry.filename:
                    continue
                with archive.open(entry) as part:
                    while part.read(BLOCK):  # compares the CRC at its end
                        pass
            return {(entry.file_size, entry.CRC) for entry in entries}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _changed(path, f"{type(error).__name__}: {error}") from error


def _check_tensors(checkpoint: Checkpoint, sums: set[tuple[int, int]]) -> None:
    """ValueError naming a tensor whose bytes are those of no part of its file, by the checksums of these."""
    known: set[int] = set()  # tensors may share their bytes
    for name, tensor in checkpoint.state.items():
        storage = tensor.untyped_storage()
        if storage.data_ptr() in known:
            continue
        known.add(storage.data_ptr())
        # while a model is made, Lightning lets new tensors be on the accelerator
        values = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage).numpy()
        if (storage.nbytes(), zlib.crc32(values.data)) not in sums:
            raise _changed(checkpoint.path, f"bad checksum of {name!r}")


def _changed(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path} could not be read as weights ({what}); it is truncated, its bytes were "
        "changed after it was written, or it is no checkpoint: copy or fetch it again"
    )


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
        kinds = {
            "sparse": value.layout != torch.strided,
            "quantised": value.is_quantized,
            "conjugate": value.is_conj() or value.is_neg(),
            "meta": value.is_meta,
        }
        if kind := next((kind for kind, is_one in kinds.items() if is_one), None):
            raise wrong(f"{name!r} in its state_dict is a {kind} tensor, expected a dense one with its values")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise wrong(f"its global_step is {step!r}, expected a number of steps")
    contract = checked_contract(contract, path)
    return Checkpoint(path, state, contract, step, content)


def checked_contract(contract: Any, path: object) -> dict[str, Any]:
    """What a checkpoint says about itself, complete. ValueError naming the first field of another type."""

    def wrong(what: str) -> ValueError:
        return ValueError(f"{path} is not a checkpoint of the zoo: {what}")

    if not isinstance(contract, dict):
        raise wrong(f"its contract ('zoo') is a {type(contract).__name__}, expected a mapping")
    if contract.get("format") not in (FORMAT, FORMAT_WITH_START):
        if "format" in contract:
            raise ValueError(
                f"{path} has format {contract['format']!r:.40}, this version reads {FORMAT} and {FORMAT_WITH_START}"
            )
        raise wrong("its contract names no format")
    for key in ("class", "pristine"):
        if not isinstance(contract.get(key), str):
            raise wrong(f"the {key!r} of its contract is {contract.get(key)!r:.60}, expected a text")
    bases, adapters = contract.get("bases"), contract.get("adapters", {})
    if not isinstance(bases, dict) or not all(
        _is_identified(base) and isinstance(base.get("revision"), str | None) for base in bases.values()
    ):
        raise wrong("the 'bases' of its contract are no mapping of backbones with path, revision and fingerprint")
    if not isinstance(adapters, dict) or not all(
        isinstance(one, dict) and one.keys() == LORA.keys() and all(type(one[k]) in kinds for k, kinds in LORA.items())
        for one in adapters.values()
    ):
        raise wrong(f"the 'adapters' of its contract are no mapping of backbones to {', '.join(LORA)}")
    start = contract.get("start")
    if start is not None and not _is_identified(start):
        raise wrong("the 'start' of its contract is no mapping with path and fingerprint")
    bases = {k: {"revision": None, **v} for k, v in bases.items()}
    return {**contract, "bases": bases, "adapters": adapters, "start": start}


def _is_identified(what: Any) -> bool:
    """Whether a part of a contract says where something was, and by which fingerprint it is known."""
    return isinstance(what, dict) and isinstance(what.get("path"), str) and isinstance(what.get("fingerprint"), str)


# ------------------------------------------------------------------------------------------- what Lightning reads of it
def require_evaluable(checkpoint: Checkpoint) -> None:
    """ValueError naming the first field that Lightning reads in an evaluation and that is not as it writes it."""
    if checkpoint.path.suffix != ".safetensors":
        _refuse_fields(checkpoint.path, _wrong_in_evaluation(checkpoint.content), "Lightning cannot load it")


def require_resumable(checkpoint: Checkpoint, corpus: str | None = None) -> None:
    """ValueError naming the first field of a training run's state that is missing or not as it was written.

    Args:
        corpus: class of the data module, whose place in the data must be there.
    """
    path, content = checkpoint.path, checkpoint.content
    fields = itertools.chain(_wrong_in_evaluation(content), _wrong_in_training(content, corpus))
    so = "it holds weights but not the whole state of a training run, so no run can go on from it"
    last = path.with_name("last.ckpt")
    _refuse_fields(path, fields, f"{so} but from {last}" if path.name == "best.ckpt" and last.is_file() else so)


def _refuse_fields(path: Path, wrong: Iterator[str], so: str) -> None:
    first = next(wrong, None)
    if first is None:
        return
    config = (path.parent.parent if path.parent.name == "checkpoints" else path.parent) / "config.yaml"
    raise ValueError(
        f"{path}: {first}; {so}. Copy the file again or give another checkpoint, or begin a new run with these weights "
        f"(without --ckpt_path): zoo fit --config {config} --model.start_from {path}"
    )


def _wrong_in_evaluation(content: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with each field that every verb of Lightning reads."""
    version = content.get("pytorch-lightning_version")
    if not isinstance(version, str) or not re.match(r"[2-9]\.\d+", version) or not _is_version(version):
        yield _is(content, "pytorch-lightning_version", "a version of Lightning, 2.0 or later")
    callbacks = content.get("callbacks") or {}
    if not isinstance(callbacks, dict) or not all(isinstance(k, str) for k in callbacks):
        yield _is(content, "callbacks", "a mapping of names to states")
    else:
        for name, state in callbacks.items():
            yield from _wrong_callback(re.split(r"\W", name, maxsplit=1)[0], state)
    if content.get("loops") is not None:
        yield from _wrong_loops(content)
    for name in ("MixedPrecision", "native_amp_scaling_state"):
        if name in content and not isinstance(content[name], dict):
            yield _is(content, name, "a mapping")


def _wrong_callback(kind: str, state: Any) -> Iterator[str]:
    if not isinstance(state, dict):
        yield f"the state of {kind} in its callbacks is {_brief(state)}, expected a mapping"
        return
    for key, kinds in CALLBACKS.get(kind, {}).items():
        if key not in state or not _fits(state[key], kinds):
            yield f"the {key} of {kind} in its callbacks {_value(state, key)}, expected {_words(kinds)}"


def _wrong_loops(content: Mapping[str, Any]) -> Iterator[str]:
    loops = content["loops"]
    if not isinstance(loops, dict):
        yield _is(content, "loops", "a mapping of the four loops")
        return
    for name in ("fit_loop", "validate_loop", "test_loop", "predict_loop"):
        if not isinstance(loops.get(name), dict):
            yield f"the {name} of its loops {_value(loops, name)}, expected a mapping"
            continue
        for key, state in loops[name].items():
            if not isinstance(key, str) or not isinstance(state, dict):
                yield f"{key!r:.60} in the {name} of its loops is {_brief(state)}, expected a mapping"
            elif key.endswith("progress"):
                ends = key.endswith("batch_progress") and name != "predict_loop"  # it knows whether a batch is the last
                wrong = _wrong_progress(key, state, ends)
                yield from (f"{key} in the {name} of its loops {what}" for what in wrong)
    steps = loops["fit_loop"].get("epoch_loop.state_dict", {})
    if not _fits(steps.get("_batches_that_stepped", 0), int):
        yield f"the _batches_that_stepped of its loops is {_brief(steps['_batches_that_stepped'])}, expected a number"


def _wrong_in_training(content: Mapping[str, Any], corpus: str | None) -> Iterator[str]:
    """What is wrong with each field that a resumed run goes on from."""
    if not _fits(content.get("epoch"), int):
        yield _is(content, "epoch", "a number of epochs")
    loops = content.get("loops")
    if loops is None:
        yield _is(content, "loops", "a mapping of the four loops")
    else:
        yield from (f"its loops have no {key} in the fit_loop" for key in LOOPS if key not in loops["fit_loop"])
    optimizers = content.get("optimizer_states")
    if not isinstance(optimizers, list) or not optimizers:
        yield _is(content, "optimizer_states", "a list with a state per optimizer")
    for state in optimizers if isinstance(optimizers, list) else ():
        yield from (f"{what} in its optimizer_states" for what in _wrong_optimizer(state))
    schedules = content.get("lr_schedulers")
    if not isinstance(schedules, list):
        yield _is(content, "lr_schedulers", "a list with a state per schedule")
    for state in schedules if isinstance(schedules, list) else ():
        yield from _wrong_schedule(state)
    if corpus is not None:
        yield from _wrong_place(content, corpus)


def _wrong_schedule(state: Any) -> Iterator[str]:
    if not isinstance(state, dict):
        yield f"a state in its lr_schedulers is {_brief(state)}, expected a mapping"
        return
    # a schedule without settings of its own is the zoo's; a scheduler that the user chose may lack some of these
    for key, kinds in SCHEDULE.items():
        if state.keys() <= SCHEDULE.keys() if key not in state else not _fits(state[key], kinds):
            yield f"the {key} in its lr_schedulers {_value(state, key)}, expected {_words(kinds)}"
    for key in ("base_lrs", "_last_lr"):
        if not all(_fits(rate, (int, float, Tensor)) for rate in state.get(key, ())):
            yield f"the {key} in its lr_schedulers is {_brief(state[key])}, expected numbers"


def _wrong_place(content: Mapping[str, Any], corpus: str) -> Iterator[str]:
    """What is wrong with the place in the data from which a resumed run goes on."""
    place = content.get(corpus)
    if not isinstance(place, dict):
        yield _is(content, corpus, "a mapping with the place in the data")
        return
    for key, kinds in PLACE.items():
        if key not in place or not _fits(place[key], kinds):
            yield f"the {key} in {corpus}, its place in the data, {_value(place, key)}, expected {_words(kinds)}"


SCORE = (Tensor, float, int, None)
CALLBACKS: dict[str, dict[str, Any]] = {  # callback -> field of its state -> its types
    "BestCheckpoint": {
        "best_model_path": str,
        "kth_best_model_path": str,
        "last_model_path": str,
        "dirpath": str,
        "best_k_models": {str: SCORE},
        "best_model_score": SCORE,
        "current_score": SCORE,
        "kth_value": SCORE,
    },
    "LastCheckpoint": {"metrics": {str: (float, int)}},
    "EarlyStopping": {"wait_count": int, "stopped_epoch": int, "patience": int, "best_score": (Tensor, float)},
}
LOOPS = (
    "epoch_progress",
    "epoch_loop.state_dict",
    "epoch_loop.batch_progress",
    "epoch_loop.scheduler_progress",
    "epoch_loop.automatic_optimization.optim_progress",
    "epoch_loop.manual_optimization.optim_step_progress",
    "epoch_loop.val_loop.batch_progress",
)
SCHEDULE = {
    "last_epoch": int,
    "_step_count": int,
    "base_lrs": list,
    "_last_lr": list,
    "lr_lambdas": list,
    "_is_initial": bool,
    "_get_lr_called_within_step": bool,
}
PLACE = {
    "epoch": int,
    "batches_done": int,
    "seed": int,
    "batch_size": int,
    "bucket": bool,
    "training samples": int,
    "processes": int,
}
NAMES = {
    int: "a number from 0 on",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    Tensor: "a tensor",
    None: "nothing",
}


def _wrong_progress(key: str, state: Mapping[str, Any], ends: bool) -> Iterator[str]:
    if key.endswith(".optim_progress") or key == "optim_progress":
        both = state.get("optimizer")
        for part in ("step", "zero_grad"):
            counts = both.get(part) if isinstance(both, dict) else None
            yield from (f"({part}) {what}" for what in _wrong_counts(counts))
    else:
        yield from _wrong_counts(state)
        if ends and not isinstance(state.get("is_last_batch"), bool):
            yield f"has {_brief(state.get('is_last_batch'))} as is_last_batch, expected true or false"


def _wrong_counts(counts: Any) -> Iterator[str]:
    for part in ("total", "current"):
        steps = counts.get(part) if isinstance(counts, dict) else None
        if not isinstance(steps, dict) or not {"ready", "completed"} <= steps.keys() or not _fits(steps, {str: int}):
            yield f"has {_brief(steps)} as {part}, expected numbers from 0 on"


def _wrong_optimizer(state: Any) -> Iterator[str]:
    """Of the state of one optimizer, as torch writes it."""
    if not isinstance(state, dict) or not isinstance(state.get("state"), dict) or not state.get("param_groups"):
        yield f"{_brief(state)} instead of state and param_groups is"
        return
    groups = state["param_groups"]
    if not isinstance(groups, list) or not all(
        isinstance(group, dict)
        and isinstance(group.get("params"), list)
        and _fits(group.get("lr"), (float, int, Tensor))
        for group in groups
    ):
        yield "a group in param_groups without params and lr is"
        return
    members = {member for group in groups for member in group["params"] if isinstance(member, int | str)}
    for member, values in state["state"].items():
        if member not in members or not isinstance(values, dict):
            yield f"the state of the parameter {member!r:.60}, which is {_brief(values)}, is"


def _fits(value: Any, kinds: Any) -> bool:
    """Whether a value has one of some types; a number of type int is at least 0, and true is no number."""
    if isinstance(kinds, dict):
        ((key, inner),) = kinds.items()
        return isinstance(value, dict) and all(isinstance(k, key) and _fits(v, inner) for k, v in value.items())
    if isinstance(kinds, tuple):
        return any(_fits(value, kind) for kind in kinds)
    if kinds is None:
        return value is None
    if isinstance(value, bool):
        return kinds is bool
    return isinstance(value, kinds) and not (kinds is int and value < 0)


def _words(kinds: Any) -> str:
    if isinstance(kinds, dict):
        return "a mapping of names to numbers"
    return " or ".join(NAMES[kind] for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))


def _is(content: Mapping[str, Any], key: str, expected: str) -> str:
    return f"its {key} {_value(content, key)}, expected {expected}"


def _value(content: Mapping[str, Any], key: str) -> str:
    return f"is {_brief(content[key])}" if key in content else "is missing"


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{value!r:.60}"


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True
