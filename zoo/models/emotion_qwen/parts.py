"""Emotion-Qwen's Hybrid Compressor (Sec. 3.3, Eqs. 1-4), the two projectors of Table 7 (Sec. 6.2), Qwen2.5-VL's merger.

They stand between the vision tower and the language model, and all four are called alike:

    tokens, gates = compressor(features, grid, order)   # features and order as `PatchVision.hidden` gives them

Legend: N patches of all inputs of a call, M inputs (pictures or videos), D numbers per patch, m = merge, H numbers per
token of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Compressed(NamedTuple):
    """What a projector gives.

    Attributes:
        tokens: one (t * h * w / m^2, H) per input, in raster order.
        gates: (M, 2) float32, the weights of the first and second expert: of the Hybrid Compressor always emotion,
            general. None where there is no gate.
    """

    tokens: tuple[Tensor, ...]
    gates: Tensor | None


class Expert(nn.Module):
    """One expert, Eqs. 1-2: LayerNorm(W GELU(W' E + b') + b) over groups of merge^2 patches.

    Args:
        width: D.
        to: H.
        merge: m.
        inner: numbers between the two maps; None: m^2 D, as in Qwen2.5-VL's merger (paper: unstated).
    """

    def __init__(self, width: int, to: int, merge: int = 2, inner: int | None = None) -> None:
        super().__init__()
        self.merged = merge**2 * width
        self.fc1 = nn.Linear(self.merged, inner or self.merged)
        self.fc2 = nn.Linear(inner or self.merged, to)
        self.norm = nn.LayerNorm(to)

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N / m^2, H); merge^2 rows after one another make one token."""
        return self.norm(self.fc2(F.gelu(self.fc1(features.reshape(-1, self.merged)))))


class Gate(nn.Module):
    """Eq. 3: softmax(W Attention(E) + b), one pair of weights per input.

    Args:
        width: D.
        heads: heads of the self-attention (paper: unstated).
        pool: ``before``: the mean over an input's patches is taken first, and attention sees that one vector (the
            shapes of the published weights); ``after``: attention over the patches, then their mean (closer to the
            paper's text).
    """

    def __init__(self, width: int, heads: int = 8, pool: Literal["before", "after"] = "before") -> None:
        super().__init__()
        if pool not in ("before", "after"):
            raise ValueError(f"gate_pool is {pool!r}; expected 'before' or 'after'")
        if width % heads:
            raise ValueError(f"heads {heads} do not divide the width {width} of the tower; choose another number")
        self.pool = pool
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear = nn.Linear(width, 2)

    def _attend(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """One (n, D) per input -> (M, 2) float32, in the order of the linear map's outputs."""
        if self.pool == "before":
            pooled = torch.stack([x.mean(0) for x in features])  # (M, D)
            attended = self._attend(pooled[:, None])[:, 0]
        else:  # input by input: padding could not leak, and patches of a long video need no mask
            attended = torch.stack([self._attend(x[None])[0].mean(0) for x in features])
        return self.linear(attended).float().softmax(-1)


class _Projector(nn.Module):
    """What the projectors share: inputs of different sizes in one call."""

    def __init__(self, width: int, merge: int) -> None:
        super().__init__()
        self.width, self.merge = width, merge

    def sizes(self, features: Tensor, grid: Tensor, order: Tensor) -> list[int]:
        """Patches of each input. ValueError if the three do not belong together."""
        sizes = grid.prod(1).tolist() if grid.ndim == 2 and grid.shape[1] == 3 else []
        group = self.merge**2
        if features.ndim != 2 or features.shape[1] != self.width or sum(sizes) != len(features) or not sizes:
            raise ValueError(
                f"expected features (N, {self.width}) with N the sum of t * h * w over the rows of the grid (M, 3), "
                f"got {tuple(features.shape)} and a grid {tuple(grid.shape)} {grid.tolist()[:4]}"
            )
        if any(n % group for n in sizes) or tuple(order.shape) != (len(features) // group,):
            raise ValueError(
                f"{len(features)} patches make {len(features) / group:g} tokens of {group}, but order is "
                f"{tuple(order.shape)} and the inputs have {sizes[:4]} patches; is merge {self.merge} the tower's?"
            )
        return sizes

    def rastered(self, tokens: Tensor, sizes: list[int], order: Tensor) -> tuple[Tensor, ...]:
        """(N / m^2, H) in window order -> one (n / m^2, H) per input, in raster order."""
        return tokens[order].split([n // self.merge**2 for n in sizes])

    def mixed(self, gates: Tensor, first: Tensor, second: Tensor, sizes: list[int]) -> Tensor:
        """gates[:, 0] * first + gates[:, 1] * second, each input with its own pair; (N / m^2, H)."""
        counts = torch.tensor(sizes, device=gates.device) // self.merge**2
        weights = gates.to(first.dtype).repeat_interleave(counts, 0, output_size=len(first))
        return weights[:, :1] * first + weights[:, 1:] * second


class HybridCompressor(_Projector):
    """Two experts and a gate (Sec. 3.3): out = g_emo V_emo + g_gen V_gen, one pair of weights per input.

    Eq. 4 writes G * V_emo + (1 - G) * V_gen; with g_emo + g_gen = 1 that is the same.

    Args:
        width: D.
        to: H.
        merge: m.
        inner: inner width of each expert; None: m^2 D.
        heads: of the gate's attention.
        gate_pool: see `Gate`.
        gate_order: which expert the gate's first output belongs to (published weights: unstated).
        force_gate: ``emotion`` or ``general``: that expert alone, which the other's training stage needs while one of
            them is still random (ours; paper: unstated). The other expert and the gate are not computed and get no
            gradients.
    """

    def __init__(
        self,
        width: int,
        to: int,
        merge: int = 2,
        inner: int | None = None,
        heads: int = 8,
        gate_pool: Literal["before", "after"] = "before",
        gate_order: tuple[Literal["emotion", "general"], Literal["emotion", "general"]] = ("emotion", "general"),
        force_gate: Literal["none", "emotion", "general"] = "none",
    ) -> None:
        super().__init__(width, merge)
        if sorted(gate_order) != ["emotion", "general"]:
            raise ValueError(f"gate_order is {gate_order!r}; expected emotion and general, each once")
        if force_gate not in ("none", "emotion", "general"):
            raise ValueError(f"force_gate is {force_gate!r}; expected 'none', 'emotion' or 'general'")
        self.gate_order, self.force_gate = tuple(gate_order), force_gate
        self.emotion = Expert(width, to, merge, inner)
        self.general = Expert(width, to, merge, inner)
        self.gate = Gate(width, heads, gate_pool)

    def forward(self, features: Tensor, grid: Tensor, order: Tensor) -> Compressed:
        """Return the tokens and gates of some inputs.

        Args:
            features: (N, D) in window order.
            grid: (M, 3) int64, the t, h, w of each input, in patches.
            order: (N / m^2,) int64, the place of each token.

        Raises:
            ValueError: the three do not belong together.
        """
        sizes = self.sizes(features, grid, order)
        if self.force_gate != "none":
            emotion = self.force_gate == "emotion"
            gates = torch.tensor([[float(emotion), float(not emotion)]], device=features.device).repeat(len(sizes), 1)
            expert = self.emotion if emotion else self.general
            return Compressed(self.rastered(expert(features), sizes, order), gates)
        gates = self.gate(features.split(sizes))
        if self.gate_order[0] == "general":
            gates = gates.flip(1)
        tokens = self.mixed(gates, self.emotion(features), self.general(features), sizes)
        return Compressed(self.rastered(tokens, sizes, order), gates)


# ---- ablations, Table 7
class MLP(nn.Module):
    """Two linear layers with a ReLU between (Sec. 6.2) over groups of merge^2 patches; no norm."""

    def __init__(self, width: int, to: int, merge: int = 2, inner: int | None = None) -> None:
        super().__init__()
        self.merged = merge**2 * width
        self.fc1 = nn.Linear(self.merged, inner or self.merged)
        self.fc2 = nn.Linear(inner or self.merged, to)

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N / m^2, H)."""
        return self.fc2(F.relu(self.fc1(features.reshape(-1, self.merged))))


class MLPProjector(_Projector):
    """The "MLP projector" of Table 7.

    `inner_to_match` gives the ``inner`` at which it has as many parameters as another projector; with the default it
    has less than half of the Hybrid Compressor's.
    """

    def __init__(self, width: int, to: int, merge: int = 2, inner: int | None = None) -> None:
        super().__init__(width, merge)
        self.mlp = MLP(width, to, merge, inner)

    def forward(self, features: Tensor, grid: Tensor, order: Tensor) -> Compressed:
        """As `HybridCompressor.forward`, without gates."""
        sizes = self.sizes(features, grid, order)
        return Compressed(self.rastered(self.mlp(features), sizes, order), None)


class FusionProjector(_Projector):
    """The "Fusion projector" of Table 7: two equal projectors and an MLP for the ratio at which they are fused.

    That MLP (ours: D to ``gate_inner``, ReLU, to 2, softmax) sees the mean of an input's patches.
    """

    def __init__(
        self, width: int, to: int, merge: int = 2, inner: int | None = None, gate_inner: int | None = None
    ) -> None:
        super().__init__(width, merge)
        self.first = MLP(width, to, merge, inner)
        self.second = MLP(width, to, merge, inner)
        self.gate = nn.Sequential(nn.Linear(width, gate_inner or width), nn.ReLU(), nn.Linear(gate_inner or width, 2))

    def forward(self, features: Tensor, grid: Tensor, order: Tensor) -> Compressed:
        """As `HybridCompressor.forward`; gates are of the first and second projector."""
        sizes = self.sizes(features, grid, order)
        pooled = torch.stack([x.mean(0) for x in features.split(sizes)])  # (M, D)
        gates = self.gate(pooled).float().softmax(-1)
        tokens = self.mixed(gates, self.first(features), self.second(features), sizes)
        return Compressed(self.rastered(tokens, sizes, order), gates)


# ---- what Qwen2.5-VL has in this place
class MergerProjector(_Projector):
    """The merger of Qwen2.5-VL (arXiv 2502.13923, Sec. 2.1.1): W GELU(W' RMSNorm(E) + b') + b over merge^2 patches.

    Its tensors have the names that they have there. The inner width is m^2 D.
    """

    def __init__(self, width: int, to: int, merge: int = 2) -> None:
        super().__init__(width, merge)
        merged = merge**2 * width
        self.ln_q = nn.RMSNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(merged, merged), nn.GELU(), nn.Linear(merged, to))

    def forward(self, features: Tensor, grid: Tensor, order: Tensor) -> Compressed:
        """As `HybridCompressor.forward`, without gates."""
        sizes = self.sizes(features, grid, order)
        tokens = self.mlp(self.ln_q(features).reshape(-1, self.merge**2 * self.width))
        return Compressed(self.rastered(tokens, sizes, order), None)


def expert_of_merger(merger: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what an `Expert` takes over from a merger: its two maps.

    An expert has no norm in front (Eqs. 1-2): the scale of the merger's, number by number, goes into the first map, its
    division by the size of a patch is left out. The expert's own LayerNorm behind stays as it is.

    Args:
        merger: its tensors, as `zoo.backbones.patch_vision.PatchVision.read_merger` returns them.
    """
    first, scale = merger["mlp.0.weight"], merger["ln_q.weight"]
    return {
        "fc1.weight": first * scale.repeat(first.shape[1] // len(scale)),
        "fc1.bias": merger["mlp.0.bias"],
        "fc2.weight": merger["mlp.2.weight"],
        "fc2.bias": merger["mlp.2.bias"],
    }


def take_merger(part: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
    """Give a projector or an expert these tensors of a merger.

    Args:
        path: where the merger was read, for the message.

    Raises:
        ValueError: they have other shapes.
    """
    present = part.state_dict()
    wrong = [
        f"{k} {tuple(v.shape)}, not {tuple(present[k].shape)}" for k, v in state.items() if v.shape != present[k].shape
    ]
    if wrong:
        raise ValueError(
            f"the merger in {path} does not fit: it has {'; '.join(wrong)}. Take the language model of the same folder "
            "(--model.llm), and leave --model.inner out"
        )
    part.load_state_dict(present | dict(state))


def inner_to_match(parameters: int, width: int, to: int, merge: int = 2) -> int:
    """Return the ``inner`` at which an `MLPProjector` has this number of parameters, to the nearest whole one.

    Raises:
        ValueError: the nearest is more than 0.1 % away.
    """
    per_inner = merge**2 * width + 1 + to  # one more row of the first map, with its bias, and one column of the second
    inner = max(1, round((parameters - to) / per_inner))
    if abs(inner * per_inner + to - parameters) > 1e-3 * parameters:
        raise ValueError(
            f"no inner width gives an MLP projector {parameters} parameters to within 0.1 %: {inner} gives "
            f"{inner * per_inner + to}, and each more adds {per_inner}"
        )
    return inner


__all__ = [
    "Compressed",
    "Expert",
    "FusionProjector",
    "Gate",
    "HybridCompressor",
    "MLPProjector",
    "MergerProjector",
    "expert_of_merger",
    "inner_to_match",
    "take_merger",
]
