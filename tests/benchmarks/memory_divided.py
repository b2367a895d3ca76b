"""Predicted and measured memory of training steps of small systems whose weights two processes divide by FSDP2.

    python -m tests.benchmarks.memory_divided

The systems and steps are those of `memory_small`, whole in one process there, here in each of two gloo processes on the
CPU. Measured are the most bytes of all storages that are alive at once in the first process, over the second step of a
run, with Adam's moments there; what gloo and kernels take for themselves is not seen.
"""

from __future__ import annotations

import socket
import tempfile
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.benchmarks.memory_small import CASES, LORA, MIB, dialogue, prediction_of, small_shapes
from zoo.training.language_model import LanguageModelModule

PROCESSES = 2
SHORT: dict[str, Any] = {"rows": 1, "tokens": 16}  # where weights, not activations, are most of the peak
LONG = (
    "SFT, LoRA on q and v",
    "SFT, LoRA on q and v, checkpointing",
    "SFT, LoRA on all, dropout, bfloat16, bf16-mixed",
    "SFT, full tuning",
    "SFT, full tuning, checkpointing, bf16-mixed",
    "GRPO, LoRA, checkpointing, 16384 words",
    "GRPO, full tuning",
)
COMPARED = {name: CASES[name] for name in LONG} | {
    "one short row, LoRA": dialogue(lora=LORA, **SHORT),
    "one short row, LoRA, bfloat16, bf16-mixed": dialogue("bf16-mixed", lora=LORA, dtype="bfloat16", **SHORT),
    "one short row, LoRA, 16384 words": dialogue(lora=LORA, llm="shape:small-wordy", **SHORT),
    "one short row, full tuning": dialogue(**SHORT),
    "one short row, full tuning, checkpointing": dialogue(gradient_checkpointing=True, **SHORT),
    "one short row, full tuning, bf16-mixed": dialogue("bf16-mixed", **SHORT),
    "one short row, full tuning, 16384 words": dialogue(llm="shape:small-wordy", **SHORT),
}


class LiveShares(TorchDispatchMode):
    """Counts the bytes of all storages that operations inside it saw and that are still alive, whatever size they have
    by now: those of gathered weights are emptied and filled again.

    Args:
        given: tensors that are there from the beginning.

    Attributes:
        peak: bytes.
    """

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, Any] = {}
        for tensor in given:
            self._see(tensor)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), options: Any = None) -> Any:
        result = function(*args, **(options or {}))
        for x in tree_leaves((args, options, result)):
            if isinstance(x, Tensor):
                self._see(x)
        self.peak = max(self.peak, sum(alive.nbytes() for seen in list(self._storages.values()) if (alive := seen())))
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = weakref.ref(storage, lambda _: self._storages.pop(key))


def measured_peak(system: LanguageModelModule, step: Callable[[], None]) -> int:
    """Return the most bytes that this process has alive in the second of two optimizer steps."""
    optimizer = torch.optim.AdamW([p for p in system.parameters() if p.requires_grad], lr=1e-4)
    with LiveShares([*system.parameters(), *system.buffers()]) as live:
        for _ in range(2):
            live.peak = 0
            step()
            optimizer.step()
    return live.peak


def process(rank: int, port: int, folder: str, names: Sequence[str]) -> None:
    """Measure some cases in one of the processes; the first one writes the bytes into a folder."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=PROCESSES)
    mesh = init_device_mesh("cpu", (PROCESSES, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    for i, name in enumerate(names):
        case = COMPARED[name]
        torch.manual_seed(0)
        with small_shapes():
            system = case.kind(**case.options)
            system.configure_model()
        system.shard(mesh["data_parallel"], case.precision)
        system.train()
        batch = case.make_batch()
        peak = measured_peak(system, lambda case=case, system=system, batch=batch: case.passes(system, batch))
        if rank == 0:
            (Path(folder) / str(i)).write_text(str(peak))
    distributed.destroy_process_group()


def measured(names: Sequence[str]) -> dict[str, int]:
    """Return the measured peak in bytes of some cases, all in the same two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        start_processes(process, (port, folder, names), nprocs=PROCESSES, start_method="fork", join=True)
        return {name: int((Path(folder) / str(i)).read_text()) for i, name in enumerate(names)}


def main() -> None:
    """Print a row for each case."""
    print("| step, in each of two processes | predicted MiB | measured MiB | predicted / measured |\n|---|---|---|---|")
    for name, peak in measured(tuple(COMPARED)).items():
        predicted = prediction_of(COMPARED[name], PROCESSES).peak
        print(f"| {name} | {predicted / MIB:.1f} | {peak / MIB:.1f} | {predicted / peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
