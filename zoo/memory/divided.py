"""What a process keeps of weights that several divide by FSDP2, and what it gathers of them, from sizes alone.

A group of parameters (a block, the embeddings, and all the rest of a part together) is gathered as one buffer, from
which each parameter is copied. In the forward pass the buffer stays until the next group was copied, so that a block is
there three times at a time; in the backward pass the next group's buffer is there already: twice. What is in no block
stays gathered from the forward pass of a part to the end of its backward pass. Gradients of a block are whole, in the
dtype in which it was gathered, and once more in float32 as the buffer in which they are added up over processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from zoo.backbones import LLM
from zoo.backbones.divided import gathered_dtype
from zoo.memory.formula import FLOAT32
from zoo.training.module import EmotionModule


@dataclass(frozen=True)
class Group:
    """Bytes of parameters that are gathered together, whole.

    Attributes:
        weights: as they are gathered.
        gradients: of those that are trained.
        reduced: the same in float32, the buffer in which gradients are added up.
    """

    weights: int = 0
    gradients: int = 0
    reduced: int = 0


@dataclass(frozen=True)
class Gathered:
    """Bytes that a process gathers; all 0 where nothing is divided.

    Attributes:
        root: what is in no block, during a whole step.
        block: the largest.
        embeddings: those that are gathered by themselves.
    """

    root: Group = Group()
    block: Group = Group()
    embeddings: Group = Group()

    @property
    def forward(self) -> int:
        """Bytes in a forward pass, while a block is gathered."""
        return self.root.weights + 3 * self.block.weights

    @property
    def backward(self) -> int:
        """Bytes in the backward pass of a block."""
        return self.root.weights + 2 * self.block.weights + self.block.gradients + self.block.reduced

    @property
    def behind_the_blocks(self) -> int:
        """Bytes in the backward pass of the loss, which has the last block's buffer already."""
        return self.root.weights + self.block.weights

    @property
    def embedding(self) -> int:
        """Bytes while embeddings are gathered: first of all, just behind the root; and last, with gradients."""
        weights, gradients = self.embeddings.weights, self.embeddings.gradients
        first = self.root.weights + 2 * weights
        last = self.root.gradients + max(2 * weights, weights + gradients, gradients + self.embeddings.reduced)
        return self.root.weights + max(first, last) if weights else 0


class Division:
    """Weights of a system that some processes divide.

    Args:
        system: built, on the meta device.
        processes: that divide its weights; 1: nothing is divided.
        precision: of the trainer.

    Raises:
        ValueError: its weights are quantised, which are not divided.
    """

    def __init__(self, system: EmotionModule, processes: int, precision: str) -> None:
        self.processes, self.precision = processes, precision
        self.parts = system.divisible_parts() if processes > 1 else []
        self._divided = {id(p) for part, _ in self.parts for p in part.parameters()}

    def held(self, tensors: Iterable[Tensor]) -> int:
        """Return the bytes that the first process holds: FSDP2 divides rows, and rounds up."""
        return sum(self._held(tensor) for tensor in tensors)

    def _held(self, tensor: Tensor) -> int:
        if id(tensor) not in self._divided:
            return tensor.numel() * tensor.element_size()
        rows = math.ceil(tensor.shape[0] / self.processes)
        return rows * math.prod(tensor.shape[1:]) * tensor.element_size()

    def halves(self, block: nn.Module) -> bool:
        """Return whether a module is gathered by itself, in 16 bits: so autocast copies nothing of it."""
        by_itself = any(block is one for _, blocks in self.parts for one in blocks)
        return by_itself and gathered_dtype(block, self.precision) is not None

    def gathered(self) -> Gathered:
        """Return what is gathered of the part that gathers most, which is the language model if there is one."""
        return max(
            (self._of(part, blocks) for part, blocks in self.parts), key=lambda g: g.backward, default=Gathered()
        )

    def _of(self, part: nn.Module, blocks: Iterable[nn.Module]) -> Gathered:
        embeddings = part.causal_lm.get_input_embeddings() if isinstance(part, LLM) else None
        counted: set[int] = set()
        largest, apart = Group(), Group()
        for block in blocks:
            group = self._group((p for p in block.parameters() if id(p) not in counted), self.halves(block))
            counted |= {id(p) for p in block.parameters()}
            if block is embeddings:
                apart = group
            else:
                largest = max(largest, group, key=lambda g: (g.weights, g.reduced))
        root = self._group((p for p in part.parameters() if id(p) not in counted), False)
        return Gathered(root, largest, apart)

    @staticmethod
    def _group(parameters: Iterable[Tensor], halved: bool) -> Group:
        weights = gradients = reduced = 0
        for p in parameters:
            number = 2 if halved else p.element_size()
            weights += p.numel() * number
            gradients += p.numel() * number * p.requires_grad
            reduced += p.numel() * FLOAT32 * p.requires_grad
        return Group(weights, gradients, reduced)
