"""Which published tensor is which of ours, where names are unknown: told by shape, then by neighbours, then by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

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
NameMap = dict[str, str]  # our name -> theirs


def add_name(ours: NameMap, name: str, theirs: str) -> None:
    """Enter a name of ours; ValueError if it is taken."""
    if name in ours:
        raise ValueError(f"{ours[name]} and {theirs} would both be {name}; expected one of them. To choose, {HINT}")
    ours[name] = theirs


@dataclass(frozen=True)
class Part:
    """A part of the published model whose inner names are unknown.

    Attributes:
        begin: beginning of our names.
        roles: the rest of our names -> shape.
        hints: what tells apart tensors of one shape, strongest first.
    """

    begin: str
    roles: Mapping[str, Shape]
    hints: tuple[Callable[[NameMap], bool], ...]

    @property
    def prefix(self) -> str:
        """Beginning of the authors' names."""
        return next(theirs for theirs, ours in PARTS if ours == self.begin)

    def fill(self, ours: NameMap, names: NameMap, state: Mapping[str, Tensor]) -> None:
        """Find the tensor of every role that the table has not filled, and enter them in ``ours``.

        Args:
            ours: our name -> theirs, as far as it is known.
            names: their inner name -> whole name, of the tensors of this part that the table does not name.
            state: their tensors.

        Raises:
            ValueError: a table that does not fit, tensors that are missing or left over, or that cannot be told apart.
        """
        unknown = [n for n in ours if n.startswith(self.begin) and n.removeprefix(self.begin) not in self.roles]
        if unknown:
            raise ValueError(f"table: {unknown} are none of our names; {self.begin}* has {', '.join(self.roles)}")
        shapes = {name: tuple(state[theirs].shape) for name, theirs in names.items()}
        wanted = _settle_free_width(self._open_roles(ours, state), shapes)
        candidates = _assignments(wanted, shapes) if len(shapes) == len(wanted) else []
        if not candidates:
            raise self._mismatch(wanted, shapes)
        for hint in self.hints:
            if len(candidates) > 1:
                candidates = [c for c in candidates if hint(c)] or candidates
        if len(candidates) > 1:
            raise self._ambiguity(candidates, wanted)
        for role, name in candidates[0].items():
            add_name(ours, self.begin + role, names[name])

    def _open_roles(self, ours: NameMap, state: Mapping[str, Tensor]) -> dict[str, Shape]:
        """Return the roles that the table has not filled, with the free widths that it has settled."""
        sizes: dict[str, int] = {}
        for role, shape in self.roles.items():
            if self.begin + role not in ours:
                continue
            name = ours[self.begin + role]
            if not _bind(shape, tuple(state[name].shape), sizes):
                raise ValueError(f"table: {name} is {tuple(state[name].shape)}, but {self.begin + role} is {shape}")
        return {role: _substitute(shape, sizes) for role, shape in self.roles.items() if self.begin + role not in ours}

    def _mismatch(self, wanted: Mapping[str, Shape], shapes: Mapping[str, tuple[int, ...]]) -> ValueError:
        """Return the error about tensors that are missing, left over or of another shape."""
        free = {size for shape in wanted.values() for size in shape if isinstance(size, str)}

        def fits(role: str, name: str) -> bool:
            shape, actual = wanted[role], shapes[name]
            return len(shape) == len(actual) and all(s in free or s == n for s, n in zip(shape, actual, strict=True))

        part = self.prefix
        missing = [f"{role} {shape}" for role, shape in wanted.items() if not any(fits(role, n) for n in shapes)]
        extra = [f"{part}{n} {shape}" for n, shape in shapes.items() if not any(fits(r, n) for r in wanted)]
        return ValueError(
            f"{part}* does not fit {self.begin}*: it has {len(shapes)} tensors, expected {len(wanted)}. Of a shape "
            f"that none of ours has (left over, or another architecture): {extra or 'none'}. Ours without a tensor of "
            f"their shape (missing): {missing or 'none'}. It has { {part + n: s for n, s in sorted(shapes.items())} }, "
            f"expected {dict(wanted)}. If one is to be left out, {HINT}"
        )

    def _ambiguity(self, candidates: Sequence[NameMap], wanted: Mapping[str, Shape]) -> ValueError:
        """Return the error about tensors that neither shapes nor names tell apart."""
        choices = {role: sorted({candidate[role] for candidate in candidates}) for role in wanted}
        open_roles = {role: names for role, names in choices.items() if len(names) > 1}
        return ValueError(
            f"{self.prefix}*: shapes and names leave {len(candidates)} ways. Ambiguous: "
            + "; ".join(
                f"{self.begin}{role} may be {' or '.join(self.prefix + name for name in names)}"
                for role, names in open_roles.items()
            )
            + f". To say which is which, {HINT}"
        )


def expert_part(begin: str, merged: int, to: int) -> Part:
    """Return a compressor's expert, from ``merged`` tower features to ``to`` features of the language model."""
    return Part(begin, _expert_roles(merged, to), (_beside, _numbered))


def gate_part(width: int, fused: bool) -> Part:
    """Return the gate on tower features; ``fused``: q, k and v are joined."""
    return Part(GATE, _gate_roles(width, fused), (_beside, _lettered))


def _bind(shape: Shape, actual: tuple[int, ...], sizes: dict[str, int]) -> bool:
    """Whether a tensor has a role's shape; its free widths are entered in ``sizes``."""
    return len(shape) == len(actual) and all(
        (sizes.setdefault(size, n) if isinstance(size, str) else size) == n
        for size, n in zip(shape, actual, strict=True)
    )


def _substitute(shape: Shape, sizes: Mapping[str, int]) -> Shape:
    return tuple(sizes.get(size, size) if isinstance(size, str) else size for size in shape)


def _settle_free_width(wanted: dict[str, Shape], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Shape]:
    """Settle a free width where only one matrix can have it, for better messages."""
    for shape in list(wanted.values()):
        if len(shape) == 2 and isinstance(shape[0], str):
            widths = {s[0] for s in shapes.values() if len(s) == 2 and s[1] == shape[1]}
            if len(widths) == 1:
                sizes = {shape[0]: widths.pop()}
                wanted = {role: _substitute(shape, sizes) for role, shape in wanted.items()}
    return wanted


def _assignments(roles: Mapping[str, Shape], shapes: Mapping[str, tuple[int, ...]]) -> list[NameMap]:
    """List every way to give each role a tensor of its own with the right shape."""
    complete: list[NameMap] = []

    def extend(open_roles: list[str], chosen: NameMap, sizes: dict[str, int]) -> None:
        if not open_roles:
            complete.append(dict(chosen))
            return
        role, *later = open_roles
        for name, shape in shapes.items():
            extended = dict(sizes)
            if name not in chosen.values() and _bind(roles[role], shape, extended):
                extend(later, chosen | {role: name}, extended)

    extend(list(roles), {}, {})
    return complete


# ---- hints
def _split(name: str) -> tuple[str, str]:
    """Split ``mlp.0.weight`` and ``in_proj_weight`` into module and leaf; any other name is its own module."""
    hit = re.fullmatch(r"(?:(.*)[._])?(weight|bias)", name)
    return (hit[1] or "", hit[2]) if hit else (name, "")


def _beside(names: NameMap) -> bool:
    """Whether weights are called weights, biases biases, and the two of one module stand in one module."""
    modules: dict[str, set[str]] = {}
    for role, name in names.items():
        (module, leaf), (_, expected) = _split(name), _split(role)
        if leaf != expected:
            return False
        modules.setdefault(_split(role)[0], set()).add(module)
    return all(len(group) == 1 for group in modules.values())


def _numbered(names: NameMap) -> bool:
    """Whether the first map has the lower number, in names that are otherwise the same."""
    if not {"fc1.weight", "fc2.weight"} <= names.keys():
        return False
    modules = [_split(names[f"{fc}.weight"])[0] for fc in ("fc1", "fc2")]
    text = {re.sub(r"\d+", "#", name) for name in modules}
    first, second = ([int(n) for n in re.findall(r"\d+", name)] for name in modules)
    return len(text) == 1 and first < second


def _lettered(names: NameMap) -> bool:
    """Whether q, k and v are called so."""
    return all(
        WORDS[_split(role)[0].rpartition(".")[2]].fullmatch(_split(name)[0])
        for role, name in names.items()
        if _split(role)[0].rpartition(".")[2] in WORDS
    )


# ---- roles
def _expert_roles(merged: int, to: int) -> dict[str, Shape]:
    """Return the roles of an expert: two maps and a norm."""
    return {
        "fc1.weight": ("inner", merged),
        "fc1.bias": ("inner",),
        "fc2.weight": (to, "inner"),
        "fc2.bias": (to,),
        "norm.weight": (to,),
        "norm.bias": (to,),
    }


def _gate_roles(width: int, fused: bool) -> dict[str, Shape]:
    """Return the roles of the gate: attention and a linear map to two weights."""
    parts: dict[str, Shape]
    if fused:
        parts = {"in_proj_weight": (3 * width, width), "in_proj_bias": (3 * width,)}
    else:
        parts = {
            f"{x}.{leaf}": (width, width)[: 2 if leaf == "weight" else 1] for x in WORDS for leaf in ("weight", "bias")
        }
    parts |= {"out_proj.weight": (width, width), "out_proj.bias": (width,)}
    return {f"attention.{k}": v for k, v in parts.items()} | {"linear.weight": (2, width), "linear.bias": (2,)}
