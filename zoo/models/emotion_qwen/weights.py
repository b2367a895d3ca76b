"""The authors' published tensors <-> ours.

    theirs               ours
    vpm.*                vision.model.*                  the tower, name for name
    llm.*, llm.model.*   llm.model.model.*               the decoder, name for name
    lm_head.*            llm.model.lm_head.*
    generalcompressor.*  compressor.general.*            inner names unknown: told by shape
    emotioncompressor.*  compressor.emotion.*            likewise
    gatenet.*            compressor.gate.*               likewise; q, k, v apart or in one

``zoo checkpoints convert emotion-qwen --from FOLDER --out OURS`` reads the unpacked archive so. The folder's code is
never run and nothing is unpickled: only safetensors are read. The names inside the compressors and the gate are stated
nowhere, so a tensor is recognised by its shape, then by standing beside its own bias, then by a number or a letter in
its name (``mlp.0`` before ``mlp.2``; ``q_proj``). What is still open after that is refused, never guessed. A table then
says it, in a YAML file (``--table``), or as a dict:

    # authors' name (a regular expression for the whole of it): our name (\\1 is the first group), null to leave it out
    'generalcompressor\\.proj_a\\.(weight|bias)': compressor.general.fc1.\\1
    'gatenet\\.w1': compressor.gate.attention.q.weight      # q, k, v are joined afterwards
    'vpm\\.merger\\..*': null
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zoo.backbones.hub import Dtype
from zoo.models.emotion_qwen.model import EmotionQwen
from zoo.models.emotion_qwen.tensor_roles import (
    EXPERTS,
    GATE,
    HINT,
    JOINED,
    PARTS,
    WORDS,
    NameMap,
    add_name,
    expert_part,
    gate_part,
)


# ---- reading
def read_published(
    folder: str | Path,
    table: str | Path | Mapping[str, str | None] | None = None,
    model_state: Mapping[str, Tensor] | None = None,
    merge: int = 2,
) -> dict[str, Tensor]:
    """Read the tensors of a published folder under our names, in the dtype of the files.

    Args:
        folder: holds ``*.safetensors`` (with model.safetensors.index.json, only the files it names).
        table: a YAML file or a dict, see above; it goes before everything else.
        own: the model's own ``state_dict()`` (tensors may be on the meta device): names and shapes are then held
            against it, tower and decoder included. Without it, only the compressors and the gate are.
        merge: side, in patches, of the group that becomes one token.

    Raises:
        FileNotFoundError: no such folder, or files that the index names are absent.
        ValueError: no safetensors; a table that cannot be used; tensors that are missing, left over, of another shape,
            or that cannot be told apart. Each says which.
    """
    return from_published(_read(Path(folder)), table, model_state, merge)


def load(folder: str | Path, module: EmotionQwen, table: str | Path | Mapping[str, str | None] | None = None) -> None:
    """Let a published folder be the weights of a built model (`configure_model`) without LoRA, all of them.

    They have the dtype of the files, tensor by tensor, and stay in the files until they are used: no copy is made.
    What equals the base models' own weights stays theirs, so a checkpoint of this model leaves it out. See
    `read_published` for the rest.
    """
    model_state = module.state_dict()
    state = read_published(folder, table, model_state, module.vision.merge)
    module.untouched_tensors -= {
        name
        for name, tensor in state.items()
        if not torch.equal(tensor.to(model_state[name].dtype), model_state[name].cpu())
    }
    module.load_state_dict(state, assign=True)


def dtypes(folder: str | Path) -> dict[str, str]:
    """Return the model options with which a model has the dtypes of a published folder.

    Those of the language model and of the tower are those of their first tensors; a part without one is left as it is.
    """
    state = _read(Path(folder))
    options = {}
    for option, begin in (("dtype", "llm."), ("vision_dtype", "vpm.")):
        kinds = [str(tensor.dtype).removeprefix("torch.") for name, tensor in state.items() if name.startswith(begin)]
        if kinds and kinds[0] in get_args(Dtype):
            options[option] = kinds[0]
    return options


def _read(folder: Path) -> dict[str, Tensor]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}; expected the unpacked published model")
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    if index.is_file():
        try:
            files = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
        except (json.JSONDecodeError, KeyError) as error:
            raise ValueError(f"{index} could not be read ({type(error).__name__}: {error}); fetch it again") from error
    if not files:
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"))
        if pickles:
            raise ValueError(
                f"{folder} holds no *.safetensors, only {pickles[:3]}; a pickle can run any code, so it is not opened: "
                "convert it to safetensors first"
            )
        raise ValueError(f"{folder} holds no *.safetensors; expected the unpacked published model")
    state: dict[str, Tensor] = {}
    for file in files:
        if file.parent != folder or not file.is_file():
            raise FileNotFoundError(f"{folder} lacks {file.name}, which model.safetensors.index.json names")
        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} could not be read ({error}); a truncated download? Fetch it again") from error
        if repeated := sorted(tensors.keys() & state.keys()):
            raise ValueError(f"{repeated[:3]} stand in more than one file of {folder}; which one counts?")
        state |= tensors
    return state


def from_published(
    state: Mapping[str, Tensor],
    table: str | Path | Mapping[str, str | None] | None = None,
    model_state: Mapping[str, Tensor] | None = None,
    merge: int = 2,
) -> dict[str, Tensor]:
    """Rename the authors' tensors to ours; see `read_published` for everything."""
    from_table, left_out = _apply_table(state, _read_table(table))
    skipped = left_out | set(from_table.values())
    ours, inner = _rename_known([name for name in state if name not in skipped])
    for name, theirs in from_table.items():
        add_name(ours, name, theirs)
    width, to = _sizes(state, ours)
    for begin in EXPERTS:
        expert_part(begin, merge**2 * width, to).fill(ours, inner[begin], state)
    fused = any(tuple(state[t].shape) in ((3 * width, width), (3 * width,)) for t in inner[GATE].values())
    fused |= any(name.startswith(JOINED) for name in ours)
    gate_part(width, fused).fill(ours, inner[GATE], state)
    out = {name: state[theirs] for name, theirs in ours.items()}
    if not fused:
        for leaf in ("weight", "bias"):
            out[JOINED + leaf] = torch.cat([out.pop(f"{GATE}attention.{letter}.{leaf}") for letter in WORDS])
    if model_state is not None:
        _compare(out, model_state)
    return out


def _rename_known(names: Sequence[str]) -> tuple[NameMap, dict[str, NameMap]]:
    """Rename what has known names: our name -> theirs; and, by part, inner name -> whole name of the others."""
    ours: NameMap = {}
    inner: dict[str, NameMap] = {begin: {} for begin in (*EXPERTS, GATE)}
    for theirs in names:
        pair = next((p for p in PARTS if theirs.startswith(p[0])), None)
        if pair is None:
            raise ValueError(
                f"{theirs} belongs to none of the published parts ({', '.join(p[0] + '*' for p in PARTS)}); is this "
                f"the published model? If so, {HINT}"
            )
        rest = theirs.removeprefix(pair[0])
        if pair[1] in inner:
            inner[pair[1]][rest] = theirs
        else:
            add_name(ours, pair[1] + rest, theirs)
    return ours, inner


def _sizes(state: Mapping[str, Tensor], ours: NameMap) -> tuple[int, int]:
    """Return the width of the tower and of the language model."""
    first, words = "vision.model.patch_embed.proj.weight", "llm.model.model.embed_tokens.weight"
    for name, theirs, axes in ((first, "vpm.patch_embed.proj.weight", 5), (words, "llm.embed_tokens.weight", 2)):
        if name not in ours or state[ours[name]].ndim != axes:
            got = "there is none" if name not in ours else f"its shape is {tuple(state[ours[name]].shape)}"
            raise ValueError(f"expected {theirs} with {axes} axes, from which the widths are read, but {got}")
    if "llm.model.lm_head.weight" not in ours:
        raise ValueError("lm_head.weight is missing; expected the whole published model, every shard of it")
    return state[ours[first]].shape[0], state[ours[words]].shape[1]


def _compare(state: Mapping[str, Tensor], model_state: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(model_state.keys() - state.keys()), sorted(state.keys() - model_state.keys())
    shapes = [
        f"{k} is {tuple(v.shape)}, expected {tuple(model_state[k].shape)}"
        for k, v in state.items()
        if k in model_state and v.shape != model_state[k].shape
    ]
    if missing or extra or shapes:
        raise ValueError(
            f"the published weights do not fit this model: {len(missing)} missing {missing[:3]}, {len(extra)} left "
            f"over {extra[:3]}, {len(shapes)} of another shape {shapes[:3]}; are its sizes those of the published one?"
        )


# ---- the user's table
def _read_table(table: str | Path | Mapping[str, str | None] | None) -> Mapping[str, str | None]:
    if table is None:
        return {}
    content: Any = table
    if not isinstance(table, Mapping):
        try:
            content = yaml.safe_load(Path(table).read_text())
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(f"table {table} could not be read ({type(error).__name__}: {error})") from error
    if not isinstance(content, Mapping) or not all(
        isinstance(k, str) and (v is None or isinstance(v, str)) for k, v in content.items()
    ):
        raise ValueError(f"table {table} must map regular expressions to our names (or null), got {content!r:.200}")
    return content


def _apply_table(state: Mapping[str, Tensor], table: Mapping[str, str | None]) -> tuple[NameMap, set[str]]:
    """Apply the user's table: our names -> theirs, and theirs that are left out."""
    from_table: NameMap = {}
    left_out: set[str] = set()
    for pattern, name in table.items():
        try:
            hits = [(theirs, hit) for theirs in state if (hit := re.fullmatch(pattern, theirs))]
            names = [None if name is None else hit.expand(name) for _, hit in hits]
        except (re.error, IndexError) as error:
            raise ValueError(f"table: {pattern!r}: {name!r} is no regular expression and name ({error})") from error
        if not hits:
            raise ValueError(f"table: {pattern!r} is the name of no tensor; the names begin {sorted(state)[:5]}")
        for (theirs, _), ours in zip(hits, names, strict=True):
            if theirs in left_out or theirs in from_table.values():
                raise ValueError(f"table: {theirs} is named twice, the second time by {pattern!r}")
            if ours is None:
                left_out.add(theirs)
            elif not ours.startswith(tuple(p[1] for p in PARTS)):
                raise ValueError(
                    f"table: {ours!r} is none of our names; they begin with {', '.join(p[1] for p in PARTS)}"
                )
            else:
                add_name(from_table, ours, theirs)
    return from_table, left_out


# ---- writing
def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our tensors to the authors' tree.

    Inside the compressors and the gate our own inner names stay, since theirs are unknown. `from_published` gives the
    same back.

    Raises:
        ValueError: a tensor that the published model has no place for, such as a LoRA's (merge it first).
    """
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        pair = next((p for p in reversed(PARTS) if name.startswith(p[1])), None)
        if pair is None or ".lora_" in name:
            raise ValueError(
                f"{name} has no place in the published model, which has {', '.join(p[1] + '*' for p in PARTS)}"
                "; merge adapters into the language model first"
            )
        out[pair[0] + name.removeprefix(pair[1])] = tensor
    return out


__all__ = ["dtypes", "from_published", "load", "read_published", "to_published"]
