"""Checkpoints of weights that processes divide (FSDP2): gathered tensor by tensor, into a file instead of memory.

The first process writes a checkpoint that holds everything whole, as a run without divided weights does. Lightning
would gather all of it into that process' memory first, frozen weights that no checkpoint holds included: with Adam's
moments three times the weights of a model that is trained fully, beside its own share.
"""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from zoo.runs import run_folder
from zoo.training.checkpointing import CheckpointedModule

SMALL = 2**16  # bytes of a tensor that stays in memory


class Gathering:
    """Makes divided tensors whole, one after another.

    Args:
        folder: of the file in which they lie, on whose disk they take their size once more until nobody uses them. It
            has no name there, so a process that is killed leaves nothing. None: this process only helps to gather.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file: IO[bytes] | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # what is mapped of it outlives this object

    @torch.no_grad()
    def whole(self, value: Any) -> Any:
        """Return a whole tensor on the CPU, or what is none as it is; None where this process only helps.

        All processes call it together, with their shares of one tensor.
        """
        gathered = value.full_tensor() if isinstance(value, DTensor) else value
        if self._file is None:
            return None
        return self._kept(gathered, self._file) if isinstance(gathered, Tensor) else gathered

    @staticmethod
    def _kept(value: Tensor, file: IO[bytes]) -> Tensor:
        size = value.numel() * value.element_size()
        if size < SMALL:
            return value.detach().cpu().clone()
        grain = mmap.ALLOCATIONGRANULARITY
        place = file.seek(-(-file.seek(0, 2) // grain) * grain)
        file.write(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        file.flush()
        try:
            # private, but nobody writes into it: its pages are those of the file, which the system may drop
            mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY, offset=place)
        except OSError:  # a file system that maps no files
            return value.detach().cpu().clone()
        return torch.frombuffer(mapped, dtype=value.dtype).view(value.shape)

    def weights(self, module: CheckpointedModule) -> dict[str, Tensor]:
        """Return the state of a module but for what its checkpoints leave out; nothing where this process helps."""
        pristine, made = module.pristine(), {}
        state: dict[str, Tensor] = {}
        for name, value in module.state_dict(keep_vars=True).items():
            if name not in pristine:
                if id(value) not in made:  # tied weights have several names
                    made[id(value)] = self.whole(value)
                state[name] = made[id(value)]
        return {} if self._file is None else state

    def optimizer(self, optimizer: Optimizer, module: CheckpointedModule) -> dict[str, Any]:
        """Return the state of an optimizer, its parameters named by their places in the module, as Lightning has it."""
        places = {id(p): place for place, p in enumerate(module.parameters())}
        state: dict[int, dict[str, Any]] = {}
        groups: list[dict[str, Any]] = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in optimizer.state:
                    values = optimizer.state[parameter].items()
                    state[places[id(parameter)]] = {name: self.whole(value) for name, value in values}
            groups.append({**group, "params": [places[id(p)] for p in group["params"]]})
        return {} if self._file is None else {"state": state, "param_groups": groups}


def gather_into_files(trainer: Trainer) -> None:
    """Let a trainer whose processes divide the weights gather its checkpoints into files; leave any other as it is."""
    strategy = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy) or strategy._save_distributed_checkpoint:
        return
    of_optimizer = strategy.optimizer_state

    def module() -> CheckpointedModule:
        return cast(CheckpointedModule, strategy.lightning_module)

    def gathering() -> Gathering:
        return Gathering(run_folder(trainer) / "checkpoints" if trainer.is_global_zero else None)

    def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        # before the first step there are no moments; Lightning makes them, since it cannot load a state without any
        return gathering().optimizer(inner, module()) if inner.state else of_optimizer(optimizer)

    methods = {"lightning_module_state_dict": lambda: gathering().weights(module()), "optimizer_state": optimizer_state}
    for name, method in methods.items():
        setattr(strategy, name, method)
