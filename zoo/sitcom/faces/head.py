"""The still part of a head (hair, ears, an empty face), drawn once and turned into every frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

from zoo.sitcom.faces.expression import SIZE, Motion
from zoo.sitcom.faces.people import INK, SHIRTS, STUDIO_SKINS, WILD_SKINS, Domain, Looks, looks

_FINE = 2  # the still part of a head is drawn once at this resolution and then turned
_HEAD_U, _HEAD_V = 38, 44  # half width and half height of its picture, px


class _HeadPainter:
    """A picture of a head, painted shape by shape from the back to the front.

    Attributes:
        u, v: head coordinates of the pixels, px.
        a: distance of the pixels from the middle line, px.
        picture: red, green, blue and opacity, premultiplied, 0..255.
        outline: signed distance to the edge of the face, px.
        cap: signed distance to the edge of the hair, px.
    """

    def __init__(self, person: Looks, wild: bool) -> None:
        self.person, self.wild = person, wild
        self.u, self.v = np.meshgrid(
            (np.arange(2 * _HEAD_U * _FINE) + 0.5) / _FINE - _HEAD_U,
            (np.arange(2 * _HEAD_V * _FINE) + 0.5) / _FINE - _HEAD_V,
        )
        u, v = self.u, self.v
        self.a = np.abs(u)
        self.skin = np.array((WILD_SKINS if wild else STUDIO_SKINS)[person.skin], dtype=np.float64)
        self.hair = np.array(person.hair, dtype=np.float64)
        self.picture = np.zeros((*u.shape, 4))
        narrow = 1 - person.jaw * np.clip(v / 34, 0, 1) ** 2
        if wild:  # squarer heads
            self.outline = (
                (np.abs(u / (narrow * (person.width + 0.5))) ** 3 + np.abs(v / 34) ** 3) ** (1 / 3) - 1
            ) * 24
        else:
            self.outline = (np.sqrt((u / (narrow * person.width)) ** 2 + (v / 34) ** 2) - 1) * 24
        self.cap = self.ellipse(0, -7, person.width + 3.2, 31)
        strands = 1 + 0.10 * np.sin(u * 1.1 + 0.05 * v * np.sin(u * 0.2)) if not wild else np.ones_like(u)
        self.hair_colour = np.clip(self.hair * strands[..., None], 0, 255)

    def paint(
        self, distance: np.ndarray, colour: np.ndarray | Sequence[float], opacity: float | np.ndarray = 1.0
    ) -> None:
        """Paint a shape, given the signed distance of every pixel to its edge (px, negative inside)."""
        if self.wild and np.ndim(opacity) == 0 and opacity == 1:  # every shape of a cartoon has an ink line
            self.lay(np.clip(0.5 - (distance - 1.1) * _FINE, 0, 1), INK)
        self.lay(np.clip(0.5 - distance * _FINE, 0, 1) * opacity, colour)

    def lay(self, cover: np.ndarray, colour: np.ndarray | Sequence[float]) -> None:
        """Lay a colour over the pixels; ``cover`` is its opacity, 0..1."""
        colour = np.broadcast_to(np.asarray(colour, dtype=np.float64), (*self.u.shape, 3))
        self.picture[..., :3] += cover[..., None] * (colour - self.picture[..., :3])
        self.picture[..., 3] += cover * (255 - self.picture[..., 3])

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, across: np.ndarray | None = None) -> np.ndarray:
        """Return the signed distance of every pixel to an ellipse; ``across`` replaces u, for a pair of them."""
        u = self.u if across is None else across
        return (np.sqrt(((u - cx) / rx) ** 2 + ((self.v - cy) / ry) ** 2) - 1) * min(rx, ry)

    def back_hair(self) -> None:
        """Paint the hair behind the face."""
        a, v, style = self.a, self.v, self.person.style
        if style == "long":
            self.paint(
                np.maximum(
                    a - 27.3 + 0.02 * np.abs(v - 8) + 0.004 * np.clip(v - 26, 0, None) ** 3, np.maximum(-v - 4, v - 43)
                ),
                self.hair_colour,
            )
            self.paint(self.ellipse(0, -7, 28, 32), self.hair_colour)
        elif style == "bob":
            self.paint(
                np.maximum(a - 28 + 0.006 * np.clip(v - 6, 0, None) ** 3, np.maximum(-v - 8, v - 20)), self.hair_colour
            )
            self.paint(self.ellipse(0, -7, 28.2, 32), self.hair_colour)
        elif style == "curly":
            for i in range(15):
                angle = math.pi * (1.12 - 1.24 * i / 14)
                self.paint(self.ellipse(24.5 * math.cos(angle), -9 - 23 * math.sin(angle), 7.2, 7.2), self.hair_colour)
        elif style == "bun":
            self.paint(self.ellipse(0, -35, 9, 8), self.hair_colour)
        if style != "bald":
            self.paint(self.cap, self.hair_colour)

    def ears(self) -> None:
        """Paint the ears."""
        self.paint(self.ellipse(self.person.width - 0.3, 0, 4, 6, self.a), self.skin * 0.92)
        if not self.wild:
            self.paint(self.ellipse(self.person.width, 0, 2, 3.6, self.a), self.skin * 0.74, 0.6)

    def face(self) -> None:
        """Paint the skin of the face and the beard."""
        v, outline, beard = self.v, self.outline, self.person.beard
        light = np.clip(1.02 - 0.20 * np.clip((outline + 9) / 9, 0, 1) ** 2 - 0.0022 * np.clip(v, -20, 34), 0, 1.1)
        self.paint(outline, self.skin * light[..., None] if not self.wild else self.skin)
        if beard and not self.wild:
            jaw = np.clip((v - 4) / 10, 0, 1) * np.clip((outline + (9 if beard == "stubble" else 6.5)) / 3, 0, 1)
            self.paint(outline, self.hair, jaw * (0.28 if beard == "stubble" else 0.85))
        elif beard:
            self.paint(outline, self.hair, ((outline > -5) & (v > 6)).astype(float) * 0.8)

    def front_hair(self) -> None:
        """Paint the hair in front of the face, down to the hairline of the style."""
        u, v, a, person = self.u, self.v, self.a, self.person
        hairline = {
            "short": -28 + 0.012 * a**2,
            "side": -29.5 + 0.010 * (u + 14) ** 2,
            "spiky": -28.5 + 0.8 * np.abs((u % 8) - 4),
            "bob": -27.5 + 0.5 * np.clip(a - 17, 0, None) ** 1.6,
            "long": -29 + 0.030 * a**2,
            "curly": -28.5 + 1.8 * np.abs(np.sin(u * 0.45)),
            "bun": -28 + 0.018 * a**2,
            "bald": np.full_like(u, -60.0),
        }[person.style]
        temples = np.where(
            a > person.width - 4.5, np.minimum(hairline + (a - person.width + 4.5) * 4.5, -3.0), hairline
        )
        front = np.maximum(v - temples, np.minimum(self.cap, self.outline - 1))
        if person.style != "bald":
            self.lay(np.clip(0.5 - front * _FINE, 0, 1), self.hair_colour)
            if self.wild:
                self.lay(np.clip(1.0 - np.abs(front) * _FINE * 0.7, 0, 1) * (self.outline < 0), INK)
        if person.style == "spiky":
            for i in range(7):
                cx = -21 + 7 * i
                spike = np.abs(u - cx) - (v + 45 - 0.018 * cx * cx) * 0.42
                self.paint(np.maximum(spike, v + 27), self.hair_colour)
        if person.style == "bald" and not self.wild:
            self.paint(self.ellipse(-8, -25, 6, 3), (255, 255, 255), 0.22)

    def hat(self) -> None:
        """Paint a hat, above the highest brows."""
        crown = np.maximum(self.ellipse(0, -28, self.person.width + 1.5, 15), self.v + 28.5)
        cloth = np.array(SHIRTS[(self.person.skin * 3 + 1) % len(SHIRTS)], dtype=np.float64)
        self.paint(crown, cloth)
        self.paint(np.maximum(np.abs(self.v + 28.5) - 1.7, self.a - self.person.width - 2.5), cloth * 0.7)


@lru_cache(maxsize=64)
def draw_head(speaker: str, domain: Domain, hat: bool) -> Image.Image:
    """Draw hair, ears and an empty face, with premultiplied transparency.

    The picture has (2 _HEAD_V, 2 _HEAD_U) px at `_FINE` per px.
    """
    painter = _HeadPainter(looks(speaker), wild=domain == "wild")
    painter.back_hair()
    painter.ears()
    painter.face()
    painter.front_hair()
    if hat:
        painter.hat()
    data = np.clip(painter.picture + 0.5, 0, 255).astype(np.uint8)
    return Image.frombytes("RGBa", (data.shape[1], data.shape[0]), data.tobytes())


def place_head(canvas: np.ndarray, head: Image.Image, motion: Motion) -> None:
    """Turn and move the still head into every frame."""
    x0, x1, y0, y1, _ = motion.reach
    left, right = max(0, int(x0 - _HEAD_U - 2)), min(SIZE, math.ceil(x1 + _HEAD_U + 2))
    top, bottom = max(0, int(y0 - _HEAD_V - 2)), min(SIZE, math.ceil(y1 + _HEAD_V + 2))
    layers = np.empty((motion.count, bottom - top, right - left, 4), dtype=np.uint8)
    for i, (x, y, roll) in enumerate(zip(motion.x, motion.y, motion.roll, strict=True)):
        cos, sin = _FINE * math.cos(roll) / motion.scale, _FINE * math.sin(roll) / motion.scale
        x, y = left - float(x), top - float(y)
        place = (cos, sin, x * cos + y * sin + _HEAD_U * _FINE, -sin, cos, y * cos - x * sin + _HEAD_V * _FINE)
        layer = head.transform((right - left, bottom - top), Image.Transform.AFFINE, place, Image.Resampling.BILINEAR)
        layers[i] = np.asarray(layer)
    layers = np.ascontiguousarray(layers.transpose(3, 0, 1, 2)).astype(np.float32)
    part = canvas[:, :, top:bottom, left:right]
    part *= 1 - layers[3] / 255
    part += layers[:3]
