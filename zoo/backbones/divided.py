"""Weights divided over processes (FSDP2): each holds its share of every block, and gathers one block while it computes.

A part that is divided is gathered by all processes together, so every process must ask for it equally often. With
gradients that is up to whoever trains. Without them `Turns` sees to it for a language model: before each of its passes
a process says which one it is about to make, and those that need another one make it along, with a single token. So
answers may end at different tokens, and batches need not be answered by the same passes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from zoo.backbones.llm import LLM

EMBED, DECODE, HEAD = range(3)  # what passes of a language model gather, in the order in which processes wait
PASSES = {  # method -> what it gathers
    "embed": EMBED,
    "hidden": DECODE,
    "forward_with_plan": DECODE,
    "head": HEAD,
    "token_logprobs": HEAD,
    "token_entropies": HEAD,
    "beam": None,  # ends on all processes together by itself
}


def is_divided(module: nn.Module) -> bool:
    """Return whether the weights of a module are divided over processes."""
    return getattr(module, "divided", False)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Return the layers of a module: the members of its outermost lists of modules."""
    blocks: list[nn.Module] = []
    for child in module.children():
        blocks += list(child) if isinstance(child, nn.ModuleList) else blocks_of(child)
    return blocks


def divide(
    part: nn.Module, blocks: Sequence[nn.Module], mesh: DeviceMesh, precision: str, dtype: torch.dtype | None = None
) -> None:
    """Divide a part: each block by itself, and together what is in none of them.

    Weights, gradients and moments keep their dtypes. In ``bf16-mixed`` a block is gathered in bfloat16, half of what
    travels, as autocast multiplies in it anyway; but blocks with adapters are gathered as they are, and so are
    embeddings and what stands between blocks: the residual stream has the dtype of the embeddings.

    Args:
        part: used through `forward`, or through the methods that its attribute ``passes`` names.
        blocks: in the order in which they compute.
        precision: of the trainer.
        dtype: of the weights but for adapters, if it is not the one that they have: they are converted block by block,
            so that no process holds more than one block beside its share of those before.
    """
    for block in blocks:
        with _converted(block, dtype):
            policy = _policy(gathered_dtype(block, precision))
            fully_shard(block, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    with _converted(part, dtype):
        fully_shard(part, mesh=mesh, mp_policy=_policy(None))
    for name in getattr(part, "passes", ()):
        register_fsdp_forward_method(part, name)
    part.divided = True  # type: ignore[assignment]  # a module may hold any attribute


@contextlib.contextmanager
def _converted(part: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, what is not divided yet has a dtype; what still holds it afterwards holds no memory."""
    whole = [(name, p) for name, p in part.named_parameters() if not isinstance(p, DTensor)]
    for name, parameter in whole:
        if dtype is not None and parameter.is_floating_point() and ".lora_" not in name:
            parameter.data = parameter.data.to(dtype)
    yield
    for _, parameter in whole:
        parameter.data = parameter.data.new_empty(0)


def gathered_dtype(block: nn.Module, precision: str) -> torch.dtype | None:
    """Return the dtype in which a block is gathered (see `divide`); None: each of its weights in its own."""
    adapted = any(".lora_" in name for name, _ in block.named_parameters())
    halved = precision == "bf16-mixed" and not adapted and not isinstance(block, nn.Embedding)
    return torch.bfloat16 if halved else None


def _policy(dtype: torch.dtype | None) -> MixedPrecisionPolicy:
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)


def blocks_of_language_model(llm: LLM) -> list[nn.Module]:
    """Return what of a language model is gathered one by one. Embeddings that are input and output in one are not:
    they are gathered with the last norm."""
    embeddings, head = llm.causal_lm.get_input_embeddings(), llm.causal_lm.get_output_embeddings()
    apart = [] if embeddings.weight is head.weight else [embeddings]
    return [*apart, *blocks_of(llm.causal_lm)]


def divide_language_model(llm: LLM, mesh: DeviceMesh, precision: str) -> None:
    """Divide a language model."""
    divide(llm, blocks_of_language_model(llm), mesh, precision, llm.dtype)
    llm.turns = Turns(llm, mesh)


class Turns:
    """Lets processes make unequal numbers of passes without gradients through one language model.

    Args:
        llm: divided.
        mesh: of the processes that share it.
    """

    def __init__(self, llm: LLM, mesh: DeviceMesh) -> None:
        self.llm, self.group = llm, mesh.get_group()
        self._passes = (llm.embed, llm.hidden, llm.head)
        for name, kind in PASSES.items():
            if kind is not None:
                setattr(llm, name, self._in_turn(getattr(llm, name), kind))

    def _in_turn(self, method: Callable[..., Tensor], kind: int) -> Callable[..., Tensor]:
        @functools.wraps(method)
        def wrapped(*args: Any, **kwargs: Any) -> Tensor:
            if not torch.is_grad_enabled():
                self._take(kind)
            return method(*args, **kwargs)

        return wrapped

    def _take(self, kind: int) -> None:
        """Make the passes that other processes need along with them, until this kind is what all wait for."""
        device = next(self.llm.parameters()).device
        while True:
            waiting = torch.zeros(len(self._passes) + 1, device=device)
            waiting[kind] = 1
            distributed.all_reduce(waiting, group=self.group)
            turn = next(i for i, n in enumerate(waiting.tolist()) if n)
            if turn == kind:
                return
            self._make_along(turn, device)

    @torch.no_grad()
    def _make_along(self, kind: int, device: torch.device) -> None:
        token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        embed, decode, head = self._passes
        if kind == EMBED:
            embed(token)
            return
        state = torch.zeros(1, 1, self.llm.width, dtype=self.llm.causal_lm.dtype, device=device)
        if kind == DECODE:
            decode(state, torch.ones_like(token, dtype=torch.bool))
        else:
            head(state)

    def finish(self) -> None:
        """Go on until all processes have come here."""
        self._take(len(self._passes))
        self.llm.reshard()  # type: ignore[operator]  # of FSDP2: the embeddings, which stay gathered between passes
