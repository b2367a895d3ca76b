"""What a fit asks of a cluster: machines, processes and a card, from its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.memory.cards import GIB, card_of
from zoo.memory.command import options_of, prediction_of
from zoo.memory.prediction import Unpredictable


@dataclass(frozen=True)
class Request:
    """What a fit asks for.

    Attributes:
        nodes: machines.
        processes: on each of them, every one with a GPU of its own if `gpu`.
        gpu: whether it runs on GPUs.
        peak: predicted bytes on each GPU; None if it is not known.
        note: the prediction in words, or why there is none.
    """

    nodes: int
    processes: int
    gpu: bool
    peak: int | None
    note: str

    def fits(self, size: float) -> bool:
        """Return whether the predicted peak fits on a card of so many GB; False if it is not known."""
        return self.peak is not None and self.peak <= card_of(size).usable


def request(args: Sequence[str]) -> Request:
    """Return what ``zoo fit ARGS`` asks for."""
    options = options_of(list(args))
    trainer: Mapping[str, Any] = options["trainer"]
    gpu = trainer.get("accelerator") != "cpu"
    nodes, processes = int(trainer.get("num_nodes") or 1), devices(trainer.get("devices"))
    if not gpu:
        return Request(nodes, processes, False, None, "runs on the CPU")
    try:
        peak = prediction_of(options).peak
    except (Unpredictable, FileNotFoundError) as error:
        return Request(nodes, processes, True, None, f"no prediction ({' '.join(str(error).split())})")
    return Request(nodes, processes, True, peak, f"expected peak {peak / GIB:.1f} GiB on each GPU")


def devices(value: object) -> int:
    """Return how many devices a machine needs for ``--trainer.devices``; 1 for as many as there are."""
    if isinstance(value, str) and "," in value:
        value = value.strip("[], ").split(",")
    if isinstance(value, list):
        return len(value)
    return max(1, int(value)) if isinstance(value, int | str) and str(value).lstrip("-").isdigit() else 1
