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
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zoo.models.emotion_qwen.model import EmotionQwen

# beginnings of names, theirs and ours. The first that fits counts; in `to_published` the last one of a pair of ours.
PARTS = (
    ("vpm.", "vision.model."),
    ("llm.model.", "llm.model.model."),
    ("llm.", "llm.model.model."),
    ("lm_head.", "llm.model.lm_head."),
    ("generalcompressor.", "compressor.general."),
    ("emotioncompressor.", "compressor.emotion."),
    ("gatenet.", "compressor.gate."),
)
EXPERTS, GATE = ("compressor.general.", "compressor.emotion."), "compressor.gate."
JOINED = f"{GATE}attention.in_proj_"  # what torch's attention keeps q, k, v in
WORDS = {  # what the name of a module may end in
    letter: re.compile(
        rf"(?:.*[._])?(?:{letter}|{word}|{letter}_(?:proj|linear)|{word}_proj|to_{letter}|w_?{letter}"
        rf"|(?:linear|proj)_{letter})",
        re.IGNORECASE,
    )
    for letter, word in (("q", "query"), ("k", "key"), ("v", "value"))
}
HINT = (
    "write a table, a YAML file with one line per tensor, 'regular expression of the whole name': our name (or null to "
    "leave it out), and give it as table= (see zoo.models.emotion_qwen.weights)"
)

Shape = tuple[int | str, ...]  # a word stands for a number that is not known but must be the same wherever it stands
Found = dict[str, str]  # our name -> theirs


# ---- reading
def read_published(
    folder: str | Path,
    table: str | Path | Mapping[str, str | None] | None = None,
    own: Mapping[str, Tensor] | None = None,
    merge: int = 2,
) -> dict[str, Tensor]:
    """The tensors of a published folder under our names, in the dtype of the files.

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
    return from_published(_read(Path(folder)), table, own, merge)


def load(folder: str | Path, module: EmotionQwen, table: str | Path | Mapping[str, str | None] | None = None) -> None:
    """Reads a published folder into a built model (`configure_model`) without LoRA, all of it; what equals the base
    models' own weights stays theirs, so a checkpoint of this model leaves it out. See `read_published` for the rest."""
    own = module.state_dict()
    state = read_published(folder, table, own, module.vision.merge)
    state = {name: tensor.to(own[name].dtype) for name, tensor in state.items()}
    module.from_hub -= {name for name, tensor in state.items() if not torch.equal(tensor, own[name].cpu())}
    module.load_state_dict(state)


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
            read = load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} could not be read ({error}); a truncated download? Fetch it again") from error
        if twice := sorted(read.keys() & state.keys()):
            raise ValueError(f"{twice[:3]} stand in more than one file of {folder}; which one counts?")
        state |= read
    return state


def from_published(
    state: Mapping[str, Tensor],
    table: str | Path | Mapping[str, str | None] | None = None,
    own: Mapping[str, Tensor] | None = None,
    merge: int = 2,
) -> dict[str, Tensor]:
    """Names of the authors -> ours; see `read_published` for everything."""
    told, left_out = _tell(state, _read_table(table))
    ours: Found = {}
    inner: dict[str, Found] = {begin: {} for begin in (*EXPERTS, GATE)}  # their whole names, by part
    for theirs in (name for name in state if name not in left_out and name not in told.values()):
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
            _add(ours, pair[1] + rest, theirs)
    for name, theirs in told.items():
        _add(ours, name, theirs)
    width, to = _sizes(state, ours)
    for begin in EXPERTS:
        _fill(ours, begin, _expert_roles(merge**2 * width, to), inner[begin], state, _EXPERT_HINTS)
    fused = any(tuple(state[t].shape) in ((3 * width, width), (3 * width,)) for t in inner[GATE].values())
    fused |= any(name.startswith(JOINED) for name in ours)
    _fill(ours, GATE, _gate_roles(width, fused), inner[GATE], state, _GATE_HINTS)
    out = {name: state[theirs] for name, theirs in ours.items()}
    if not fused:
        for leaf in ("weight", "bias"):
            out[JOINED + leaf] = torch.cat([out.pop(f"{GATE}attention.{letter}.{leaf}") for letter in WORDS])
    if own is not None:
        _compare(out, own)
    return out


def _add(ours: Found, name: str, theirs: str) -> None:
    if name in ours:
        raise ValueError(f"{ours[name]} and {theirs} would both be {name}; expected one of them. To choose, {HINT}")
    ours[name] = theirs


def _sizes(state: Mapping[str, Tensor], ours: Found) -> tuple[int, int]:
    """Width of the tower and of the language model."""
    first, words = "vision.model.patch_embed.proj.weight", "llm.model.model.embed_tokens.weight"
    for name, theirs, axes in ((first, "vpm.patch_embed.proj.weight", 5), (words, "llm.embed_tokens.weight", 2)):
        if name not in ours or state[ours[name]].ndim != axes:
            got = "there is none" if name not in ours else f"its shape is {tuple(state[ours[name]].shape)}"
            raise ValueError(f"expected {theirs} with {axes} axes, from which the widths are read, but {got}")
    if "llm.model.lm_head.weight" not in ours:
        raise ValueError("lm_head.weight is missing; expected the whole published model, every shard of it")
    return state[ours[first]].shape[0], state[ours[words]].shape[1]


def _compare(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{k} is {tuple(v.shape)}, expected {tuple(own[k].shape)}"
        for k, v in state.items()
        if k in own and v.shape != own[k].shape
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
    said = table
    if not isinstance(table, Mapping):
        try:
            said = yaml.safe_load(Path(table).read_text())
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(f"table {table} could not be read ({type(error).__name__}: {error})") from error
    if not isinstance(said, Mapping) or not all(
        isinstance(k, str) and (v is None or isinstance(v, str)) for k, v in said.items()
    ):
        raise ValueError(f"table {table} must map regular expressions to our names (or null), got {said!r:.200}")
    return said


def _tell(state: Mapping[str, Tensor], table: Mapping[str, str | None]) -> tuple[Found, set[str]]:
    """What the table says: our names -> theirs, and theirs that are left out."""
    told: Found = {}
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
            if theirs in left_out or theirs in told.values():
                raise ValueError(f"table: {theirs} is named twice, the second time by {pattern!r}")
            if ours is None:
                left_out.add(theirs)
            elif not ours.startswith(tuple(p[1] for p in PARTS)):
                raise ValueError(
                    f"table: {ours!r} is none of our names; they begin with {', '.join(p[1] for p in PARTS)}"
                )
            else:
                _add(told, ours, theirs)
    return told, left_out


# ---- recognising tensors
def _expert_roles(merged: int, to: int) -> dict[str, Shape]:
    return {
        "fc1.weight": ("inner", merged),
        "fc1.bias": ("inner",),
        "fc2.weight": (to, "inner"),
        "fc2.bias": (to,),
        "norm.weight": (to,),
        "norm.bias": (to,),
    }


def _gate_roles(width: int, fused: bool) -> dict[str, Shape]:
    if fused:
        parts = {"in_proj_weight": (3 * width, width), "in_proj_bias": (3 * width,)}
    else:
        parts = {
            f"{x}.{leaf}": (width, width)[: 2 if leaf == "weight" else 1] for x in WORDS for leaf in ("weight", "bias")
        }
    parts |= {"out_proj.weight": (width, width), "out_proj.bias": (width,)}
    return {f"attention.{k}": v for k, v in parts.items()} | {"linear.weight": (2, width), "linear.bias": (2,)}


def _split(name: str) -> tuple[str, str]:
    """``mlp.0.weight`` and ``in_proj_weight`` -> module and leaf; a name that ends otherwise is its own module."""
    hit = re.fullmatch(r"(?:(.*)[._])?(weight|bias)", name)
    return (hit[1] or "", hit[2]) if hit else (name, "")


def _beside(found: Found) -> bool:
    """Weights are called weights and biases biases, and the two of one module stand in one module."""
    modules: dict[str, set[str]] = {}
    for role, name in found.items():
        (module, leaf), (_, expected) = _split(name), _split(role)
        if leaf != expected:
            return False
        modules.setdefault(_split(role)[0], set()).add(module)
    return all(len(of) == 1 for of in modules.values())


def _numbered(found: Found) -> bool:
    """The first map has the lower number, in names that are otherwise the same."""
    if not {"fc1.weight", "fc2.weight"} <= found.keys():
        return False
    names = [_split(found[f"{fc}.weight"])[0] for fc in ("fc1", "fc2")]
    text = {re.sub(r"\d+", "#", name) for name in names}
    first, second = ([int(n) for n in re.findall(r"\d+", name)] for name in names)
    return len(text) == 1 and first < second


def _lettered(found: Found) -> bool:
    """q, k and v are called so."""
    return all(
        WORDS[_split(role)[0].rpartition(".")[2]].fullmatch(_split(name)[0])
        for role, name in found.items()
        if _split(role)[0].rpartition(".")[2] in WORDS
    )


_EXPERT_HINTS = (_beside, _numbered)
_GATE_HINTS = (_beside, _lettered)


def _assignments(roles: dict[str, Shape], shapes: Mapping[str, tuple[int, ...]]) -> list[Found]:
    """Every way to give each role a tensor of its own with the right shape."""
    found: list[Found] = []

    def go(open_roles: list[str], taken: Found, known: dict[str, int]) -> None:
        if not open_roles:
            found.append(dict(taken))
            return
        role, *later = open_roles
        for name, shape in shapes.items():
            if name in taken.values() or len(shape) != len(roles[role]):
                continue
            now, pairs = dict(known), zip(roles[role], shape, strict=True)
            if all((now.setdefault(said, n) if isinstance(said, str) else said) == n for said, n in pairs):
                go(later, taken | {role: name}, now)

    go(list(roles), {}, {})
    return found


def _fill(
    ours: Found,
    begin: str,
    roles: dict[str, Shape],
    names: Found,
    state: Mapping[str, Tensor],
    hints: tuple[Callable[[Found], bool], ...],
) -> None:
    """Finds the tensor of every role of one part that the table has not filled, and enters them in `ours`."""
    strangers = [n for n in ours if n.startswith(begin) and n.removeprefix(begin) not in roles]
    if strangers:
        raise ValueError(f"table: {strangers} are none of our names; {begin}* has {', '.join(roles)}")
    part = next(theirs for theirs, mine in PARTS if mine == begin)
    sizes: dict[str, int] = {}  # a free width that the table has settled
    for role, shape in roles.items():
        if begin + role not in ours:
            continue
        got = tuple(state[ours[begin + role]].shape)
        if len(got) != len(shape) or any(
            (sizes.setdefault(s, n) if isinstance(s, str) else s) != n for s, n in zip(shape, got, strict=True)
        ):
            raise ValueError(f"table: {ours[begin + role]} is {got}, but {begin + role} is {shape}")
    wanted = {
        role: tuple(sizes.get(s, s) if isinstance(s, str) else s for s in shape)
        for role, shape in roles.items()
        if begin + role not in ours
    }
    shapes = {name: tuple(state[theirs].shape) for name, theirs in names.items()}
    for said in list(wanted.values()):  # a free width is settled where only one matrix can have it, for better messages
        if len(said) == 2 and isinstance(said[0], str):
            seen = {shape[0] for shape in shapes.values() if len(shape) == 2 and shape[1] == said[1]}
            if len(seen) == 1:
                known = {said[0]: seen.pop()}
                wanted = {role: tuple(known.get(s, s) for s in shape) for role, shape in wanted.items()}
    found = _assignments(wanted, shapes) if len(shapes) == len(wanted) else []
    if not found:
        free = {s for shape in wanted.values() for s in shape if isinstance(s, str)}

        def fits(role: str, name: str) -> bool:
            said, got = wanted[role], shapes[name]
            return len(said) == len(got) and all(s in free or s == n for s, n in zip(said, got, strict=True))

        missing = [f"{role} {shape}" for role, shape in wanted.items() if not any(fits(role, n) for n in shapes)]
        extra = [f"{part}{n} {shape}" for n, shape in shapes.items() if not any(fits(r, n) for r in wanted)]
        raise ValueError(
            f"{part}* does not fit {begin}*: it has {len(shapes)} tensors, expected {len(wanted)}. Of a shape that "
            f"none of ours has (left over, or another architecture): {extra or 'none'}. Ours without a tensor of "
            f"their shape (missing): {missing or 'none'}. It has { {part + n: s for n, s in sorted(shapes.items())} }, "
            f"expected {wanted}. If one is to be left out, {HINT}"
        )
    for hint in hints:
        if len(found) > 1:
            found = [f for f in found if hint(f)] or found
    if len(found) > 1:
        open_ = {r: sorted({f[r] for f in found}) for r in wanted if len({f[r] for f in found}) > 1}
        raise ValueError(
            f"{part}*: shapes and names leave {len(found)} ways. Ambiguous: "
            + "; ".join(f"{begin}{role} may be {' or '.join(part + n for n in of)}" for role, of in open_.items())
            + f". To say which is which, {HINT}"
        )
    for role, name in found[0].items():
        _add(ours, begin + role, names[name])


# ---- writing
def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names -> the authors' tree; inside the compressors and the gate with our own inner names, since theirs are
    unknown. `from_published` gives the same back.

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


__all__ = ["from_published", "load", "read_published", "to_published"]
