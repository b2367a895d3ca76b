"""Which parts of a sample reach a system: those without which its input changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from zoo.media import Media, Unreadable
from zoo.schema import Sample

NOT_GIVEN = "not given"


@dataclass(frozen=True)
class UsedInputs:
    """Parts of a sample that reached the system, why the others did not, and which were not whole.

    Attributes:
        used: names of the parts.
        unused: name of a part -> reason.
        damaged: what was not used whole, each with what is wrong: files that were cut off, clips without room.
    """

    used: tuple[str, ...]
    unused: Mapping[str, str]
    damaged: tuple[str, ...] = ()

    def __str__(self) -> str:
        reasons = [f"{part}: {reason}" for part, reason in self.unused.items() if reason != NOT_GIVEN]
        return "; ".join(reasons) or "nothing was given"

    def with_selection(self, selection: Mapping[str, Any] | None) -> UsedInputs:
        """Return the same, with the selector's own reason if it discarded the descriptions."""
        if selection is None or selection.get("decision") != "discard":
            return self
        thoughts = f": {selection['text']})" if selection.get("text") else ")"
        discarded = f"discarded by the selector ({selection['system']}{thoughts}"
        return replace(
            self,
            unused={
                part: discarded if part.endswith(" description") and reason != NOT_GIVEN else reason
                for part, reason in self.unused.items()
            },
        )


def ablations(sample: Sample) -> dict[str, Sample | None]:
    """Return the sample without each of its parts, under the name of the part; None for a part it does not have."""
    target = sample.target

    def without(**change: Any) -> Sample:
        return replace(sample, target=replace(target, **change))

    descriptions = {
        f"{kind} description": without(descriptions={k: v for k, v in target.descriptions.items() if k != kind})
        for kind in target.descriptions
    }
    return {
        "words": without(text="") if target.text else None,
        "picture": without(video=None) if target.video is not None else None,
        "sound": without(audio=None) if target.audio is not None else None,
        **(descriptions or {"descriptions": None}),
        "earlier turns": replace(sample, history=()) if sample.history else None,
    }


def batch_tensors(content: Any) -> list[Any]:
    """Collect everything in a batch that can be computed with, in order."""
    if isinstance(content, torch.Tensor | np.ndarray):
        return [torch.as_tensor(content)]
    if isinstance(content, Mapping):
        return [(str(key), inner) for key, value in content.items() if (inner := batch_tensors(value))]
    return [inner for x in content if (inner := batch_tensors(x))] if isinstance(content, list | tuple) else []


def equal_inputs(a: Any, b: Any) -> bool:
    """Whether two inputs, as `batch_tensors` collects them, are the same to the last bit."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal_inputs, a, b))
    return bool(a == b)


def unused_reason(sample: Sample, part: str) -> str:
    """Return why a part that was given changed nothing."""
    try:
        if part == "picture" and sample.target.video is not None:
            Media().frames(sample.target.video, n=1)
        elif part == "sound" and sample.target.audio is not None:
            Media().waveform(sample.target.audio)
    except Unreadable as error:
        return error.reason
    return "given, but this system does not read it, or its prompt had no room for it"
