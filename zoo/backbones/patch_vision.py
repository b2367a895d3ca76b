"""An image encoder that keeps a picture's own shape: the vision tower of Qwen2.5-VL (Bai et al. 2025), no merger.

    patches, grid = to_patches(frames)               a picture or a video of any size -> what the tower reads
    features, order = vision.hidden(patches, grid)   one vector per patch, in the tower's window order
    compress(features)[order]                        one vector per merge x merge patches, back in raster order

The tower reads merge x merge neighbouring patches one after another, and moves these groups so that those of one
attention window stand together. What comes out is still in that order: rows k * merge^2 to (k + 1) * merge^2 - 1 belong
to one token, and `order` says where each token belongs. Forgetting it scrambles every picture larger than a window.

Layers and position rules are transformers' own; the merger is left out because papers put their own there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as pictures
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.utils import logging as transformers_logging
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from zoo.backbones.folders import no_safetensors
from zoo.backbones.frozen import FrozenEncoder
from zoo.backbones.hub import (
    Dtype,
    new_model_folder,
    refuse_infinite,
    refuse_misfits,
    unreadable_weights,
    without_key_report,
)
from zoo.backbones.shapes import shape_named
from zoo.media.frames import LONGEST, PixelBudget
from zoo.storage import read_json

# name -> values of its config. `PatchVision("shape:NAME")` builds it.
PATCH_SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-vl-vision": {  # Qwen/Qwen2.5-VL-7B-Instruct: 631,975,680 without the merger
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "out_hidden_size": 3584,
        "tokens_per_second": 2,
    },
    "tiny-patch-vision": {  # ours, random: 483,968; a frame of 64 x 64 has 16 tokens
        "depth": 4,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_heads": 4,
        "patch_size": 8,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "window_size": 48,
        "fullatt_block_indexes": [1, 3],
        "out_hidden_size": 96,
        "initializer_range": 96**-0.5,
    },
}
PREFIXES = ("", "visual.", "model.visual.")  # of a bare tower, and of whole models (hub and transformers 5's tree)
MERGER = "merger."
MERGER_TENSORS = ("ln_q.weight", "mlp.0.bias", "mlp.0.weight", "mlp.2.bias", "mlp.2.weight")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's


# ---- input processing
def to_patches(
    frames: Tensor,
    min_pixels: int = 56 * 56,
    max_pixels: int = 1280 * 28 * 28,
    patch: int = 14,
    merge: int = 2,
    temporal: int = 2,
    normalise: bool = True,
) -> tuple[Tensor, Tensor]:
    """Cut a picture or a video into patches, as the tower reads it.

    It is resized (bicubic, antialiased) to whole groups of patches within the pixel budget at nearly its own
    proportions, and normalised as CLIP's pictures are.

    Equal to transformers' Qwen2-VL image and video processors. Their size rule is kept to the letter: where one side
    would be shorter than a group of patches it becomes one group, which can exceed ``max_pixels``.

    Args:
        frames: uint8 (F, 3, H, W), RGB. One frame is a picture. A number of frames that is no multiple of ``temporal``
            is filled up with copies of the last.
        min_pixels: a smaller frame is enlarged to at least this area.
        max_pixels: a larger frame is reduced to at most this area, each frame of a video alike. 1280 * 28 * 28 gives
            up to 1280 tokens per picture (paper: "1280 x 784").
        patch: side of a patch, in pixels.
        merge: side of the group that becomes one token, in patches.
        temporal: frames per patch.
        normalise: give normalised pixels; False: uint8, which `PatchVision.hidden` normalises on its device.

    Returns:
        patches, float32 or uint8 (t * h * w, 3 * temporal * patch^2), group after group, and the grid, int64 (1, 3): t,
            h, w in patches. Concatenate several of both for one call of `PatchVision.hidden`.

    Raises:
        ValueError: frames of another type or shape, one side over 200 times the other, or an impossible budget.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ValueError(
            f"expected frames uint8 (F, 3, H, W) in RGB, got {frames.dtype} {tuple(frames.shape)}; convert grey "
            "pictures and those with an alpha channel to RGB first"
        )
    factor, (height, width) = patch * merge, frames.shape[-2:]
    if not factor**2 <= max_pixels or not 0 < min_pixels <= max_pixels:
        raise ValueError(
            f"min_pixels {min_pixels} and max_pixels {max_pixels}: expected 0 < min_pixels <= max_pixels, and room for "
            f"one token ({factor} x {factor} = {factor**2} pixels)"
        )
    if max(height, width) > LONGEST * min(height, width):
        raise ValueError(
            f"a frame of {height} x {width} pixels is over {LONGEST} times longer than wide, which the tower's size "
            "rule does not allow; crop or pad it first"
        )
    size = PixelBudget(factor, min_pixels, max_pixels).size(height, width)
    # channels last: the same values, ten times faster for huge pictures
    x = frames.contiguous(memory_format=torch.channels_last)
    x = pictures.resize(x, list(size), InterpolationMode.BICUBIC, antialias=True)
    x = torch.cat([x, x[-1:].expand(-len(x) % temporal, -1, -1, -1)])
    t, h, w = len(x) // temporal, size[0] // patch, size[1] // patch
    x = x.reshape(t, temporal, 3, h // merge, merge, patch, w // merge, merge, patch)
    x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # t, row of groups, column, row within, column; channel, frame, y, x
    x = x.reshape(t * h * w, -1)
    return _normalised(x) if normalise else x, torch.tensor([[t, h, w]])


def _normalised(patches: Tensor) -> Tensor:
    """Normalise patches as CLIP's pictures are: uint8 (N, 3 * temporal * patch^2) -> float32, channel by channel."""
    mean, std = (torch.tensor(v, device=patches.device).view(1, 3, 1) for v in (MEAN, STD))
    channels = patches.view(len(patches), 3, -1).float()
    return ((channels / 255 - mean) / std).flatten(1)


# ---- the tower
class _Tower(Qwen2_5_VisionTransformerPretrainedModel):
    """transformers' tower without its merger, so that no file needs one and none is trained."""

    def __init__(self, config: Qwen2_5_VLVisionConfig) -> None:
        super().__init__(config)
        self.merger = nn.Identity()  # type: ignore[assignment]  # takes and gives patches as the merger does


class PatchVision(FrozenEncoder):
    """The vision tower of Qwen2.5-VL.

    Args:
        path: a folder with config.json and safetensors of the tower alone or of a whole Qwen2.5-VL (from which only the
            tower is read, and only the files that hold it), a published name, a hub id, or ``shape:NAME`` with a name
            of `PATCH_SHAPES` for random weights.
        dtype: dtype of the weights.
        revision: hub revision (a commit hash) to pin.
        attention: ``sdpa`` or ``eager``.
        device: ``meta`` builds the architecture without weights.
        gradient_checkpointing: recompute each block in the backward pass.

    Attributes:
        width: numbers per patch.
        patch: side of a patch, in pixels.
        temporal: frames per patch.
        merge: side, in patches, of the group that becomes one token.
        tokens_per_second: positions in time per second of a video (`zoo.backbones.mrope`).

    Raises:
        FileNotFoundError: nothing at ``path``, or no safetensors there.
        ValueError: another kind of model, or weights that do not fit or are not finite.
    """

    WHAT, OPTION = "vision tower", "--model.vision"
    shapes = frozenset(PATCH_SHAPES)

    # ---- loading
    def load(self, path: str, dtype: torch.dtype, attention: str, device: str | None) -> None:
        """Make the tower, or read it from its folder."""
        options = {"dtype": dtype, "attn_implementation": attention}
        if path.startswith("shape:"):
            config = Qwen2_5_VLVisionConfig(**shape_named(path, PATCH_SHAPES))
        else:
            if Path(self.path).is_file():
                raise ValueError(f"{path} is a file; expected the folder that holds config.json and *.safetensors")
            config = self._read_config()
        _check_config(config, self.path)
        if path.startswith("shape:") or device == "meta":
            with torch.device(device or "cpu"):
                self.model = _Tower._from_config(config, **options)  # type: ignore[no-untyped-call]  # transformers has no types for it
        else:
            self.model = self._read_weights(config, options)
            refuse_infinite(self.model.state_dict(), self.path)
        self.width, self.merge = config.hidden_size, config.spatial_merge_size
        self.tokens_per_second = config.tokens_per_second
        # whole numbers, see `_check_config`
        self.patch, self.temporal = cast(int, config.patch_size), cast(int, config.temporal_patch_size)

    def enable_checkpointing(self) -> None:
        """Recompute each block in the backward pass."""
        self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def _read_config(self) -> Qwen2_5_VLVisionConfig:
        """Read the tower's part of config.json."""
        file = self.find_file("config.json")
        if file is None:
            raise FileNotFoundError(f"{self.path} has no config.json")
        config = read_json(file)
        kind = config.get("model_type")
        if kind not in ("qwen2_5_vl", "qwen2_5_vl_vision"):
            raise ValueError(
                f"{self.path} holds a model of type {kind!r}; expected qwen2_5_vl (a whole Qwen2.5-VL) or "
                "qwen2_5_vl_vision (its vision tower)"
            )
        values = config["vision_config"] if kind == "qwen2_5_vl" else config
        return Qwen2_5_VLVisionConfig.from_dict(values)

    def _read_weights(self, config: Qwen2_5_VLVisionConfig, options: dict[str, Any]) -> _Tower:
        """Read the weights, strictly."""
        state = self._read_tower()
        transformers_logging.disable_progress_bar()
        with without_key_report():
            loaded: Any = _Tower.from_pretrained(
                None,
                config=config,
                state_dict=state,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the second value, and refused with their names
                **options,
            )
        model, info = loaded
        refuse_misfits(info, self.path)
        return model

    def _read_tower(self) -> dict[str, Tensor]:
        """Read the tensors of the tower under its own names, whatever else the files hold, without its merger."""
        return self._read_part(lambda name: not name.startswith(MERGER))

    def read_merger(self) -> dict[str, Tensor]:
        """Read the tensors of the merger that stands behind the tower in a folder of a whole Qwen2.5-VL.

        Returns:
            ``ln_q.weight`` (width,), and ``mlp.0`` and ``mlp.2``, weights and biases: two linear maps, of
            merge^2 * width numbers to as many, and to those of a token of its language model.

        Raises:
            ValueError: the folder holds a tower alone, or `path` names no folder.
        """
        there = {} if self.path.startswith("shape:") else self._read_part(lambda name: name.startswith(MERGER))
        state = {name.removeprefix(MERGER): tensor for name, tensor in there.items()}
        if set(state) != set(MERGER_TENSORS):
            raise ValueError(
                f"{self.path} holds {', '.join(sorted(state)) or 'nothing'} of a merger; expected "
                f"{', '.join(MERGER_TENSORS)}: give the folder of a whole Qwen2.5-VL"
            )
        refuse_infinite(state, self.path)
        return state

    def _read_part(self, is_wanted: Callable[[str], bool]) -> dict[str, Tensor]:
        """Read some tensors of the tower and its merger, by the names that they have there.

        Args:
            is_wanted: name -> whether it is read.
        """
        try:
            index, single = self.find_file("model.safetensors.index.json"), self.find_file("model.safetensors")
            if index is not None:
                where = read_json(index)["weight_map"]
            elif single is not None:
                with safe_open(single, "pt") as file:
                    where = dict.fromkeys(file.keys(), "model.safetensors")
            else:
                raise no_safetensors(self.path)
            begins = [p for p in PREFIXES if f"{p}patch_embed.proj.weight" in where]
            if len(begins) != 1:
                raise ValueError(
                    f"the weights in {self.path} hold {len(begins)} vision towers; expected one "
                    f"patch_embed.proj.weight, bare or behind {' or '.join(PREFIXES[1:])}; the names begin with "
                    f"{sorted({name.split('.')[0] for name in where})[:8]}"
                )
            wanted = {
                name: place
                for name, place in where.items()
                if name.startswith(begins[0]) and is_wanted(name.removeprefix(begins[0]))
            }
            state: dict[str, Tensor] = {}
            for place in sorted(set(wanted.values())):
                shard = self.find_file(place)
                if shard is None:
                    raise FileNotFoundError(f"{self.path} lacks {place}, which model.safetensors.index.json names")
                with safe_open(shard, "pt") as file:
                    there = [name for name, p in wanted.items() if p == place]
                    if absent := sorted(set(there) - set(file.keys())):
                        raise ValueError(f"{self.path}: {place} lacks {absent[:3]}, which the index says it holds")
                    state |= {name.removeprefix(begins[0]): file.get_tensor(name) for name in there}
            return state
        except (SafetensorError, KeyError) as error:
            raise unreadable_weights(self.path, error) from error

    # ---- verbs
    def prepare(
        self, frames: Tensor, min_pixels: int = 56 * 56, max_pixels: int = 1280 * 28 * 28
    ) -> tuple[Tensor, Tensor]:
        """Call `to_patches` with this tower's own patch, merge and temporal sizes."""
        return to_patches(frames, min_pixels, max_pixels, self.patch, self.merge, self.temporal)

    def hidden(self, patches: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the last block's output for every patch.

        Pictures and videos of one call do not see each other, nor do the steps of one video (each is attended to on its
        own, as Qwen2.5-VL does).

        Args:
            patches: (N, 3 * temporal * patch^2), float, or uint8 not normalised, of all inputs one after another
                (`to_patches`).
            grid: int64 (M, 3), the t, h, w of each input, in patches.

        Returns:
            features, (N, width) in the dtype of the weights and in window order: merge^2 rows after one another
                belong to one token; and order, int64 (N / merge^2,): ``tokens[order]`` brings what was made of these
                groups to raster order (input by input; in each by t, row, column).

        Raises:
            ValueError: a grid that is none, or that does not fit the patches or the merge.
        """
        self._check_input(patches, grid)
        device, grid = self.device, grid.cpu()  # lengths on the CPU: no waits per block
        patches = patches.to(device)
        patches = _normalised(patches) if patches.dtype == torch.uint8 else patches
        index, windows = get_vision_window_index(grid, self.merge, self.model.window_size, self.patch)
        out = self.model(
            patches.to(self.dtype),
            grid_thw=grid,
            window_index=index.to(device),
            cu_window_seqlens=windows,
            position_ids=get_vision_position_ids(grid, self.merge).to(device),
        )
        return out.last_hidden_state, index.argsort().to(device)

    def _check_input(self, patches: Tensor, grid: Tensor) -> None:
        """Raise ValueError for a grid that is none, or that does not fit the patches."""
        if grid.ndim != 2 or grid.shape[1] != 3 or not len(grid) or grid.is_floating_point() or grid.min() < 1:
            raise ValueError(
                f"expected a grid of whole numbers (M, 3) from 1 up: t, h, w of every input; got {grid.dtype} "
                f"{tuple(grid.shape)} {grid.tolist()[:3]}"
            )
        if (grid[:, 1:] % self.merge).any():
            raise ValueError(f"h and w of the grid must be multiples of merge {self.merge}, got {grid.tolist()}")
        expected = (int(grid.prod(1).sum()), 3 * self.temporal * self.patch**2)
        if tuple(patches.shape) != expected or not (patches.is_floating_point() or patches.dtype == torch.uint8):
            raise ValueError(
                f"the grid {grid.tolist()} is of float patches {expected}, got {patches.dtype} {tuple(patches.shape)}; "
                f"were they made with patch {self.patch}, merge {self.merge} and temporal {self.temporal}?"
            )

    def save(self, folder: str | Path, dtype: Dtype = "float32") -> Path:
        """Write config.json and model.safetensors of the tower alone.

        This class and transformers' own tower (which then draws a merger at random) load it with the same outputs.
        FileExistsError if the folder holds a model.
        """
        folder = new_model_folder(folder)
        config = copy.deepcopy(self.model.config)
        config.architectures, config.dtype = ["Qwen2_5_VisionTransformerPretrainedModel"], dtype
        state = {
            k: v.detach().to("cpu", getattr(torch, dtype)).contiguous() for k, v in self.model.state_dict().items()
        }
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(folder)
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        return folder

    def extra_repr(self) -> str:
        return f"{self.path}, {self.width} wide, patch {self.patch} px x {self.temporal} frames, merge {self.merge}"


def _check_config(config: Qwen2_5_VLVisionConfig, path: str) -> None:
    """Raise ValueError for sizes that do not go together."""
    sizes = (config.patch_size, config.temporal_patch_size)
    if not all(isinstance(size, int) for size in sizes) or config.in_channels != 3:
        raise ValueError(
            f"{path}: expected square patches of 3 channels, got patch_size {config.patch_size}, temporal_patch_size "
            f"{config.temporal_patch_size}, in_channels {config.in_channels}"
        )
    if config.hidden_size % (4 * config.num_heads):
        raise ValueError(
            f"{path}: hidden_size {config.hidden_size} must be a multiple of 4 x num_heads ({config.num_heads}): each "
            "head turns pairs of numbers by row and by column"
        )
    group = cast(int, config.patch_size) * config.spatial_merge_size
    if config.window_size < group:
        raise ValueError(f"{path}: window_size {config.window_size} px is smaller than a group of patches, {group} px")


def small_patch_vision(
    folder: str | Path,
    depth: int = 4,
    width: int = 96,
    heads: int = 4,
    intermediate_size: int = 256,
    patch: int = 8,
    window: int = 48,
    full_attention: tuple[int, ...] = (1, 3),
    temporal: int = 2,
    merge: int = 2,
    seed: int = 0,
) -> Path:
    """Write a tower with random weights (fp32), of deviation 1/sqrt(width).

    With the defaults: 483,968 parameters; a picture of 96 x 96 has 36 tokens in 4 windows.

    Args:
        window: side of an attention window, in pixels.
        full_attention: blocks (from 0) that see the whole picture.

    Raises:
        FileExistsError: ``folder`` already holds a model.
        ValueError: sizes that do not go together.
    """
    folder = new_model_folder(folder)
    config = Qwen2_5_VLVisionConfig(
        depth=depth,
        hidden_size=width,
        intermediate_size=intermediate_size,
        num_heads=heads,
        patch_size=patch,
        temporal_patch_size=temporal,
        spatial_merge_size=merge,
        window_size=window,
        fullatt_block_indexes=list(full_attention),
        out_hidden_size=width,
        tokens_per_second=2,
        initializer_range=width**-0.5,
        architectures=["Qwen2_5_VisionTransformerPretrainedModel"],
    )
    _check_config(config, str(folder))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _Tower._from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]  # transformers has no types for it
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


__all__ = ["PATCH_SHAPES", "PatchVision", "small_patch_vision", "to_patches"]
