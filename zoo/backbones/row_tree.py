"""Rows of tokens whose common beginnings are computed once, with gradients.

The prompts of a batch begin alike: with the chat's system message and the instructions, and, where a prompt shows the
whole conversation, with all earlier turns of its dialogue. `share_rows` finds what is common by comparing token ids, so
it needs to know no template. A long row is a trunk, and rows that begin like it branch off where they differ.
Transformer layers then see every token once; `TreePlan` is their attention.

Losses, scores and gradients are those of the rows one by one, up to rounding. Source: ours; tree attention over
branches is known from speculative decoding (SpecInfer, arXiv 2305.09781).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from zoo.backbones.shared_prefix import repeat_heads

LEAST_SAVING = 0.1  # share of the work that a tree must save
PAIRS_PER_TOKEN = 2000  # pairs of tokens that attention compares in about the time a layer needs for a token
JOINED = (0.0, 0.5)  # shares of a row that must be common with a trunk for it to branch off there; each is tried


class RowTree(NamedTuple):
    """R rows of up to T tokens, padded on the left, of which M tokens are different.

    The M tokens are those of the B trunks, one after the other, then those of the R branches.
    """

    tokens: Tensor  # (M,) int64: place of each token in the flattened (R, T) rows
    places: Tensor  # (R, T) int64: token of each place in the rows; 0 at padding
    trunks: Tensor  # (B, P) int64: tokens of each trunk, -1 at padding on the right
    branches: Tensor  # (R, U) int64: tokens of each row behind its trunk, -1 at padding on the right
    trunk_of: Tensor  # (R,) int64
    shared: Tensor  # (R,) int64: tokens of its trunk that a row begins with


def share_rows(rows: Sequence[Sequence[int]], joined: Sequence[float] = JOINED) -> RowTree | None:
    """Find the tokens that rows begin with in common.

    Args:
        rows: token ids of each row.
        joined: see `JOINED`; (0,) makes one tree of all rows.

    Returns:
        None where less than `LEAST_SAVING` of the work would be saved.
    """
    if not all(rows):
        return None  # an empty row begins with nothing
    arrays = [np.asarray(row) for row in rows]
    length = max(map(len, rows))
    cost, trunk_rows, trunk_of, shared = min((_grow(arrays, least) for least in joined), key=lambda grown: grown[0])
    if cost > (1 - LEAST_SAVING) * (sum(map(len, rows)) + len(rows) * length**2 / PAIRS_PER_TOKEN):
        return None
    start = [length * (i + 1) - len(row) for i, row in enumerate(rows)]  # of each row in the flattened rows
    tokens: list[int] = []
    trunks: list[Sequence[int]] = []
    branches: list[Sequence[int]] = []
    for row in trunk_rows:
        trunks.append(range(len(tokens), len(tokens) + shared[row]))
        tokens += range(start[row], start[row] + shared[row])
    places = torch.zeros(len(rows), length, dtype=torch.int64)
    for i, begun in enumerate(shared):
        branches.append(range(len(tokens), len(tokens) + len(rows[i]) - begun))
        tokens += range(start[i] + begun, start[i] + len(rows[i]))
        places[i, length - len(rows[i]) :] = torch.tensor([*trunks[trunk_of[i]][:begun], *branches[-1]])
    return RowTree(
        torch.tensor(tokens), places, _padded(trunks), _padded(branches), torch.tensor(trunk_of), torch.tensor(shared)
    )


def _grow(rows: Sequence[np.ndarray], least: float) -> tuple[float, list[int], list[int], list[int]]:
    """Let each row, the longest first, branch off the trunk with which it has most in common, or become a trunk.

    A trunk is a row without its last token.

    Returns:
        the work, in tokens of a layer; the row of each trunk; of each row its trunk, and how many tokens it shares.
    """
    trunk_rows: list[int] = []
    trunk_of, shared = [0] * len(rows), [0] * len(rows)
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        common = [_common(rows[i], rows[trunk]) for trunk in trunk_rows]
        best = int(np.argmax(common)) if common else -1
        if best >= 0 and common[best] >= least * len(rows[i]):
            trunk_of[i], shared[i] = best, common[best]
        else:
            trunk_of[i], shared[i] = len(trunk_rows), len(rows[i]) - 1
            trunk_rows.append(i)
    trunk = max(shared[row] for row in trunk_rows)
    branch = max(len(row) - n for row, n in zip(rows, shared, strict=True))
    tokens = sum(len(row) - n for row, n in zip(rows, shared, strict=True)) + sum(shared[row] for row in trunk_rows)
    pairs = len(trunk_rows) * trunk**2 + len(rows) * branch * (trunk + branch)
    return tokens + pairs / PAIRS_PER_TOKEN, trunk_rows, trunk_of, shared


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Return how many tokens two rows begin with in common; the last token of each counts as its own."""
    most = min(len(one), len(other)) - 1
    different = one[:most] != other[:most]
    return int(different.argmax()) if different.any() else most


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *[-1] * (length - len(row))] for row in rows], dtype=torch.int64).view(
        len(rows), length
    )


class TreePlan:
    """Plan of one pass over the M tokens of a tree, and over answers behind its rows.

    Args:
        tree: the rows.
        answers: (K, A) bool, right-padded: K answers behind every row, the same for all; their R K A tokens stand
            behind the M of the tree, row by row. None: there are none.
    """

    def __init__(self, tree: RowTree, answers: Tensor | None = None) -> None:
        trunks, branches, shared = tree.trunks, tree.branches, tree.shared
        device, (r, u) = trunks.device, branches.shape
        p, m = trunks.shape[1], len(tree.tokens)
        real = branches >= 0
        step = torch.arange(u, device=device)
        sees = ((step <= step[:, None]) & real[:, None]).expand(r, u, u)  # of the row behind its trunk
        positions = shared[:, None] + step
        if answers is not None:
            k, a = answers.shape
            behind = torch.arange(r * k * a, device=device).view(r, k * a)
            branches = torch.cat([branches, (m + behind).masked_fill(~answers.reshape(1, k * a), -1)], 1)
            token = torch.arange(k * a, device=device)
            same = (token[:, None] // a == token // a) & (token <= token[:, None]) & answers.reshape(1, k * a)
            above = torch.cat([sees, sees.new_zeros(r, u, k * a)], 2)
            below = torch.cat([real[:, None].expand(r, k * a, u), same.expand(r, k * a, k * a)], 2)
            sees = torch.cat([above, below], 1)
            following = (shared + real.sum(1))[:, None] + torch.arange(a, device=device)
            positions = torch.cat([positions, following.repeat(1, k)], 1)
        in_trunk = torch.arange(p, device=device) < shared[:, None]  # (R, P)
        width = branches.shape[1]
        sees = sees | torch.eye(width, dtype=torch.bool, device=device)  # a row without any key would be NaN
        self.branch_sees = torch.cat([in_trunk[:, None].expand(r, width, p), sees], 2)[:, None]
        self.trunks, self.branches, self.trunk_of = trunks.clamp(min=0), branches.clamp(min=0), tree.trunk_of
        filled = torch.cat([(trunks >= 0).flatten(), (branches >= 0).flatten()])
        order = torch.cat([trunks.flatten(), branches.flatten()])
        total = m if answers is None else m + r * answers.numel()
        # where each token stands among the padded trunks and branches; a padded answer is given some place
        self.back = torch.zeros(total + 1, dtype=torch.int64, device=device)
        self.back[torch.where(filled, order, total)] = torch.arange(len(order), device=device)
        self.back = self.back[:total]
        counted = torch.arange(p, device=device).expand(len(trunks), p)
        self.positions = torch.cat([counted.flatten(), positions.flatten()])[self.back][None]  # (1, M)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        """Attend: (1, H, M, hd) queries, (1, Hkv, M, hd) keys and values -> (1, H, M, hd)."""
        options: dict[str, Any] = {"scale": scaling, "dropout_p": dropout, "enable_gqa": query.shape[1] != key.shape[1]}
        if not key.is_cpu:
            key, value = (repeat_heads(x, query.shape[1]) for x in (key, value))
            options["enable_gqa"] = False
        trunk_query, trunk_key, trunk_value = (_take(x, self.trunks) for x in (query, key, value))
        trunk = scaled_dot_product_attention(trunk_query, trunk_key, trunk_value, is_causal=True, **options)
        branch_query, branch_key, branch_value = (_take(x, self.branches) for x in (query, key, value))
        branch_key, branch_value = (
            torch.cat([of_trunk.index_select(0, self.trunk_of), x], 2)
            for of_trunk, x in ((trunk_key, branch_key), (trunk_value, branch_value))
        )
        branch = scaled_dot_product_attention(branch_query, branch_key, branch_value, self.branch_sees, **options)
        padded = torch.cat([x.transpose(0, 1).flatten(1, 2) for x in (trunk, branch)], 1)
        return padded.index_select(1, self.back)[None]


def _take(x: Tensor, tokens: Tensor) -> Tensor:
    """Take (B, S) tokens of (1, H, M, hd): (B, H, S, hd)."""
    return x[0].index_select(1, tokens.flatten()).unflatten(1, tokens.shape).transpose(0, 1)
