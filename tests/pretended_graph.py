"""CUDA graphs on the pretended GPU (`pretended_gpu`): operations are recorded once and replayed on the same memory.

As on CUDA, what is recorded is not carried out, replaying reads and writes the addresses of the recording, Python that
ran in between does not run again, and reading a result while recording is an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests import pretended_gpu


class PretendedGraph:
    """Stands in for ``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def replay(self) -> None:
        """Carry the recorded operations out again, with one launch."""
        with pretended_gpu.current().one_launch("graph"):
            for func, args, kwargs, made in self.operations:
                again = func(*args, **kwargs)
                for new, old in zip(tree_leaves(again), tree_leaves(made), strict=True):
                    if isinstance(old, Tensor) and new.data_ptr() != old.data_ptr():
                        old.copy_(new)


class _Recording(TorchDispatchMode):
    """Notes operations, and keeps what they overwrite."""

    def __init__(self, graph: PretendedGraph) -> None:
        super().__init__()
        self.graph, self.before = graph, {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):  # the last ones may be left to defaults
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.keep(value)
        if isinstance(kwargs.get("out"), Tensor):
            self.keep(kwargs["out"])
        made = func(*args, **kwargs)
        if not func.is_view:
            self.graph.operations.append((func, args, kwargs, made))
        return made

    def keep(self, tensor: Tensor) -> None:
        """Copy the whole memory behind a tensor, once."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.before:
            self.before[storage.data_ptr()] = (storage, storage.clone())


@contextlib.contextmanager
def pretended_graphs() -> Iterator[None]:
    """Inside, ``torch.cuda.CUDAGraph`` and ``torch.cuda.graph`` work on the pretended GPU."""

    @contextlib.contextmanager
    def recording(graph: PretendedGraph) -> Iterator[None]:
        gpu = pretended_gpu.current()
        reads = gpu.synchronizations
        with _Recording(graph) as recorder:
            yield
        if gpu.synchronizations != reads:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        for storage, kept in recorder.before.values():
            storage.copy_(kept)

    with mock.patch.object(torch.cuda, "CUDAGraph", PretendedGraph), mock.patch.object(torch.cuda, "graph", recording):
        yield
