"""What of a system is divided over processes (FSDP2), and what is refused; by the means of `zoo.backbones.divided`."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import LightningModule
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from zoo.backbones import LLM
from zoo.backbones.divided import blocks_of, blocks_of_language_model, divide, divide_language_model
from zoo.backbones.frozen import FrozenEncoder


class DividedModule(LightningModule):
    """A module whose parts Lightning's ModelParallelStrategy divides over processes."""

    def divide_over(self, mesh: DeviceMesh) -> None:
        """Divide the weights over the processes of a mesh of Lightning's.

        Raises:
            ValueError: the mesh asks for tensor parallelism, or as `shard`.
        """
        if mesh["tensor_parallel"].size() > 1:
            raise ValueError(
                "weights are divided by FSDP2 alone, not by tensor parallelism: set "
                "--trainer.strategy.data_parallel_size to the number of processes, and tensor_parallel_size to 1"
            )
        precision = "32-true" if self._trainer is None else str(self.trainer.precision)
        self.shard(mesh["data_parallel"], precision)

    def shard(self, mesh: DeviceMesh, precision: str) -> None:
        """Divide the weights over processes (FSDP2): those of the language model, and of every part with trained ones.

        Other frozen parts stay whole: what they make of a clip is kept, so processes ask for it at different times.

        Raises:
            ValueError: weights that are trained belong to no part, or as `divisible_parts`.
        """
        if precision == "16-mixed":
            raise ValueError("divided weights are trained in bf16-mixed or 32-true, not in 16-mixed; use ddp for it")
        for part, blocks in self.divisible_parts():
            if isinstance(part, LLM):
                divide_language_model(part, mesh, precision)
            else:
                divide(part, blocks, mesh, precision)
        left = [name for name, p in self.named_parameters() if p.requires_grad and not isinstance(p, DTensor)]
        if left:
            raise ValueError(
                f"{type(self).__name__} does not divide its weights over processes: {', '.join(left[:3])} belong to no "
                "part; use --trainer.strategy ddp"
            )

    def divisible_parts(self) -> list[tuple[nn.Module, Sequence[nn.Module]]]:
        """Return the parts whose weights `shard` divides, with the blocks of each that are gathered one by one.

        Raises:
            ValueError: the language model is quantised; or there is none, and no encoder of clips that is trained. What
                else may be trained is small, and not always used through one `forward`.
        """
        parts: list[tuple[nn.Module, Sequence[nn.Module]]] = []
        for name, part in self.named_children():
            if isinstance(part, LLM):
                if part.quantize:
                    raise ValueError(f"weights in {part.quantize} are not divided over processes; use ddp")
                parts.append((part, blocks_of_language_model(part)))
            elif any(p.requires_grad for p in part.parameters()):
                parts.append((part, self.blocks(name)))
        if not any(isinstance(part, LLM | FrozenEncoder) for part, _ in parts):
            raise ValueError(
                f"{type(self).__name__} has neither a language model nor an encoder of clips that is trained here, so "
                "its weights are not divided over processes; use --trainer.strategy ddp"
            )
        return parts

    def blocks(self, name: str) -> Sequence[nn.Module]:
        """Return the modules of a part that are divided and gathered one by one, in the order in which they compute."""
        part = getattr(self, name)
        return part.blocks() if isinstance(part, FrozenEncoder) else blocks_of(part)

    def finish_passes(self) -> None:
        """Where weights are divided: take part in the passes of other processes until all have come here."""
        for part in self.children():
            if isinstance(part, LLM) and part.turns is not None:
                part.turns.finish()
