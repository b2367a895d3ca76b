"""How frames become the input of an image encoder: resized, cropped, rescaled and normalised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as pictures

from zoo.backbones import mini_xception

# PIL's numbers, as preprocessor_config.json has them
RESAMPLE = {0: InterpolationMode.NEAREST_EXACT, 2: InterpolationMode.BILINEAR, 3: InterpolationMode.BICUBIC}


@dataclass(frozen=True)
class Preparation:
    """Preprocessing of an image encoder.

    Attributes:
        resize: (height, width) whatever the shape of the frame was, or the length of its shorter side, or None.
        crop: side of the square then cut from the middle, or None.
        resample: PIL's number: 0 nearest, 2 bilinear, 3 bicubic; both of these antialiased.
        scale: factor from 0..255.
        mean, std: per channel, after scaling.
        grey: to one channel first (ITU-R 601 luma, as PIL's "L" and OpenCV).
        crop_rounds: torchvision's centre crop rounds half a pixel, transformers' cuts it off.
    """

    resize: tuple[int, int] | int | None
    crop: int | None
    resample: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    grey: bool = False
    crop_rounds: bool = False

    @classmethod
    def of_transformers(cls, processor: Any) -> Preparation:
        """Read the preprocessing of an image processor. ValueError for a step that is not known here."""
        settings = processor.to_dict()
        resample = int(settings.get("resample") if settings.get("resample") is not None else 2)
        if resample not in RESAMPLE:
            raise ValueError(f"resample is {resample}; known are 0 (nearest), 2 (bilinear), 3 (bicubic)")
        normalise = settings.get("do_normalize", True)
        return cls(
            _resize_setting(settings),
            _crop_setting(settings),
            resample,
            settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0,
            tuple(settings["image_mean"]) if normalise else (0.0, 0.0, 0.0),
            tuple(settings["image_std"]) if normalise else (1.0, 1.0, 1.0),
        )

    @classmethod
    def of_timm(cls, model: nn.Module) -> Preparation:
        """Read the preprocessing of timm's evaluation transform. ValueError for one that is not known here."""
        from timm.data.config import resolve_model_data_config  # here, see Vision._from_timm

        settings = resolve_model_data_config(model)
        _, height, width = settings["input_size"]
        enlarged = (int(height / settings["crop_pct"]), int(width / settings["crop_pct"]))
        resample = {"nearest": 0, "bilinear": 2, "bicubic": 3}.get(settings["interpolation"])
        if resample is None or height != width or settings["crop_mode"] not in ("center", "squash"):
            raise ValueError(
                f"timm's preprocessing {settings} is not known here: expected a square, bilinear or bicubic"
            )
        resize = enlarged if settings["crop_mode"] == "squash" else enlarged[0]
        return cls(resize, height, resample, 1 / 255, tuple(settings["mean"]), tuple(settings["std"]), crop_rounds=True)

    @property
    def size(self) -> int | None:
        """Side of the square that comes out; None if it depends on the frame."""
        if self.crop is not None:
            return self.crop
        if isinstance(self.resize, tuple) and self.resize[0] == self.resize[1]:
            return self.resize[0]
        return None

    def __call__(self, frames: Tensor) -> Tensor:
        """Prepare frames: uint8 (N, 3, H, W) -> float32 (N, 3 or 1, S, S), on the same device.

        Raises:
            ValueError: frames of another type or shape, or none at all.
        """
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
            raise ValueError(f"expected frames uint8 (N, 3, H, W) in RGB, got {frames.dtype} {tuple(frames.shape)}")
        x = pictures.rgb_to_grayscale(frames) if self.grey else frames
        if self.resize is not None:
            size = list(self.resize) if isinstance(self.resize, tuple) else [self.resize]
            x = pictures.resize(x, size, RESAMPLE[self.resample], antialias=True)
        if self.crop is not None:
            x = self._crop(x, self.crop)
        mean, std = (torch.tensor(v, device=x.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return (x.float() * self.scale - mean) / std

    def _crop(self, x: Tensor, side: int) -> Tensor:
        """Cut the square out of the middle."""
        if self.crop_rounds or min(x.shape[-2:]) < side:
            return pictures.center_crop(x, [side])
        top, left = ((length - side) // 2 for length in x.shape[-2:])
        return x[..., top : top + side, left : left + side]


def _resize_setting(settings: dict[str, Any]) -> tuple[int, int] | int | None:
    """Return `Preparation.resize` of an image processor. ValueError for a rule that is not known here."""
    size = settings.get("size") if settings.get("do_resize") else None
    if size is None:
        return None
    sides = {name: value for name, value in dict(size).items() if value is not None}
    if set(sides) == {"height", "width"}:
        return sides["height"], sides["width"]
    if set(sides) == {"shortest_edge"}:
        return sides["shortest_edge"]
    raise ValueError(f"cannot resize to {sides}; expected height and width, or shortest_edge")


def _crop_setting(settings: dict[str, Any]) -> int | None:
    """Return `Preparation.crop` of an image processor. ValueError for anything but a square."""
    if not settings.get("do_center_crop"):
        return None
    sides = {value for value in dict(settings["crop_size"]).values() if value is not None}
    if len(sides) != 1:
        raise ValueError(f"cannot crop to {settings['crop_size']}; expected a square")
    return sides.pop()


GREY = Preparation((mini_xception.SIZE,) * 2, None, 2, 1 / 255, (0.5,), (0.5,), grey=True)  # squashed, to [-1, 1]
