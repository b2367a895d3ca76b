"""Multimodal rotary positions (M-RoPE; Qwen2-VL, arXiv 2409.12191, Sec. 2.1).

A token has a time, a height and a width, and each of the three turns its own section of the channels. A text token has
three equal positions, so that text alone is rotated as without M-RoPE.

`mrope_positions` counts the positions of a prompt; `SectionedRotary` rotates by them, in the layout of Qwen2-VL and
Qwen2.5-VL (contiguous sections; Qwen3-VL interleaves them, which this does not do).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Segment = int | tuple[int, int, int] | tuple[int, int, int, float]


def mrope_positions(segments: Sequence[Segment], tokens_per_second: float = 2.0) -> Tensor:
    """Count the positions of one prompt's tokens.

    The tokens of a grid run over its width first, then its height, then its time. What follows a segment goes on after
    its largest position, of whichever of the three, as in the paper and in transformers 4. (transformers 5 goes on
    after the larger side of the picture alone, so that text behind a video longer than that overlaps with it.)

    Args:
        segments: in the order of the prompt: ``n`` text tokens; ``(t, h, w)``, the tokens of an image as the language
            model gets them, that is after merging patches; or ``(t, h, w, seconds)``, those of a video, with the
            seconds between two of its steps in time.
        tokens_per_second: positions in time per second of a video: 2 in the published Qwen2.5-VL. A position is rounded
            down.

    Returns:
        (3, P) int64: time, height, width; from 0 on.

    Raises:
        ValueError: a segment of another form, or without tokens.
    """
    parts, start = [], 0
    for segment in segments:
        size = (segment,) if isinstance(segment, int) else tuple(segment)
        if len(size) not in (1, 3, 4) or not all(isinstance(n, int) and n > 0 for n in size[:3]):
            raise ValueError(f"a segment is n, (t, h, w) or (t, h, w, seconds), of at least one token, got {segment!r}")
        if len(size) == 4 and not 0 <= size[3] < float("inf"):
            raise ValueError(f"the seconds between two steps of a video are 0 or more, got {segment!r}")
        if len(size) == 1:
            part = torch.arange(size[0]).expand(3, -1)
        else:
            time, height, width = (torch.arange(n) for n in size[:3])
            if len(size) == 4:  # float32, as transformers multiplies: the last bit decides what is rounded down
                time = (time * (tokens_per_second * torch.tensor(size[3], dtype=torch.float32))).long()
            part = torch.cartesian_prod(time, height, width).T
        parts.append(start + part)
        start = int(parts[-1].max()) + 1
    return torch.cat(parts, 1) if parts else torch.zeros(3, 0, dtype=torch.int64)


def checked_positions(positions: Tensor, mask: Tensor, sections: tuple[int, int, int] | None) -> Tensor:
    """Return positions (3, B, P) of prompts, 0 at padding.

    Args:
        positions: (3, B, P) int64; what padding holds does not matter.
        mask: (B, P) bool, True on real tokens.
        sections: those of the model that is to take them; None: it takes one position per token.

    Raises:
        ValueError: the model takes none such, or they have another shape or dtype, or are below 0.
    """
    if sections is None:
        raise ValueError("three positions per token need LLM(..., mrope=(time, height, width)); this one has none")
    if positions.shape != (3, *mask.shape) or positions.dtype != torch.int64:
        raise ValueError(
            f"positions must be int64 of shape {(3, *mask.shape)} (time, height, width; prompts; tokens), got "
            f"{positions.dtype} of shape {tuple(positions.shape)}"
        )
    positions = positions.masked_fill(~mask, 0)
    if positions.min() < 0:
        raise ValueError(f"positions must be 0 or more, got {int(positions.min())}")
    return positions


class SectionedRotary(nn.Module):
    """A decoder's rotary module that also takes three positions per token.

    It has no parameters, and no buffers of its own; one position per token goes to the decoder's module as it is.

    Args:
        rotary: the decoder's module: (.., .., D) and positions (B, S) -> cosines and sines, (B, S, head_dim) each.
        sections: pairs of channels that turn by time, height and width.

    Raises:
        ValueError: a module of another kind, or sections that do not add up to its pairs of channels.
    """

    def __init__(self, rotary: nn.Module | None, sections: Sequence[int]) -> None:
        super().__init__()
        frequencies = getattr(rotary, "inv_freq", None)
        if rotary is None or not isinstance(frequencies, Tensor):
            raise ValueError("mrope needs a decoder with one rotary module for all layers, as LLaMA, Qwen2 and Qwen3")
        if len(sections) != 3 or min(sections) < 0 or sum(sections) != len(frequencies):
            raise ValueError(
                f"mrope needs three sections (time, height, width) that add up to the {len(frequencies)} pairs of "
                f"channels of a head, got {tuple(sections)}"
            )
        if not frequencies.is_meta:
            cos = rotary(frequencies, torch.ones(1, 1, dtype=torch.int64, device=frequencies.device))[0]
            if not torch.equal(cos, cos[..., : len(frequencies)].repeat(1, 1, 2)):
                raise ValueError("mrope needs a rotary module that pairs channel i with channel i + head_dim / 2")
        self.rotary, self.sections = rotary, tuple(sections)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Compute cosines and sines, (B, S, head_dim) each, of positions (B, S) or (3, B, S)."""
        if position_ids.ndim == 2:
            return self.rotary(x, position_ids)
        cos, sin = self.rotary(x, position_ids.flatten(0, 1))  # (3 B, S, head_dim)
        return self._mix(cos), self._mix(sin)

    def _mix(self, values: Tensor) -> Tensor:
        """Take each section from its own position: (3 B, S, head_dim) -> (B, S, head_dim)."""
        pieces = values.unflatten(0, (3, -1)).split(self.sections * 2, -1)  # both channels of a pair turn alike
        return torch.cat([piece[i % 3] for i, piece in enumerate(pieces)], -1)
