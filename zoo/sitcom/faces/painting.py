"""Painting with coverage: how much of a pixel lies inside of a smooth edge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zoo.sitcom.faces.expression import SIZE, Motion, Pose

_MARGIN = 1.5  # px around an area for the width of soft edges


def coverage(distance: np.ndarray) -> np.ndarray:
    """Return how much of a pixel is inside of an edge at this signed distance (px, negative inside), 0..1."""
    return np.clip(0.5 - distance, 0, 1)


def stroke(distance: np.ndarray, half: float | np.ndarray) -> np.ndarray:
    """Return the coverage of a stroke of half thickness ``half`` along the zeros of ``distance``.

    Thin strokes fade and do not vanish.
    """
    return np.clip(half + 0.5 - np.abs(distance), 0, np.minimum(2 * half, 1))


def mix(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, share: float) -> np.ndarray:
    """Mix ``share`` of colour ``b`` into colour ``a``, (3,) float32."""
    return (np.asarray(a, dtype=np.float32) * (1 - share) + np.asarray(b, dtype=np.float32) * share).astype(np.float32)


class Area:
    """A rectangle of all frames of a canvas, with the head coordinates of its pixels.

    Args:
        canvas: (3, T, SIZE, SIZE) float32, painted in place.
        motion: where the head is.
        box: left, right, top and bottom in head coordinates, px.
    """

    def __init__(self, canvas: np.ndarray, motion: Motion, box: tuple[float, float, float, float]) -> None:
        left, right, top, bottom = (edge * motion.scale for edge in box)
        x0, x1, y0, y1, roll = motion.reach  # of the whole clip, so that a single frame has the same rectangle
        tilt_x, tilt_y = max(abs(top), abs(bottom)) * roll + _MARGIN, max(abs(left), abs(right)) * roll + _MARGIN
        cols = slice(max(0, int(x0 + left - tilt_x)), min(SIZE, math.ceil(x1 + right + tilt_x)))
        rows = slice(max(0, int(y0 + top - tilt_y)), min(SIZE, math.ceil(y1 + bottom + tilt_y)))
        self.pixels = canvas[:, :, rows, cols]
        cos = (np.cos(motion.roll) / motion.scale).astype(np.float32)[:, None, None]
        sin = (np.sin(motion.roll) / motion.scale).astype(np.float32)[:, None, None]
        x = np.arange(cols.start, cols.stop, dtype=np.float32) + np.float32(0.5)
        y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + np.float32(0.5)
        x = x - motion.x.astype(np.float32)[:, None, None]
        y = y - motion.y.astype(np.float32)[:, None, None]
        self.u = x * cos + y * sin  # (T, H, W)
        self.v = y * cos - x * sin  # (T, H, W)

    def paint(self, cover: np.ndarray, colour: Sequence[float] | np.ndarray) -> None:
        """Lay a colour over the pixels; ``cover`` (T, H, W) is its opacity, 0..1."""
        for plane, value in zip(self.pixels, colour, strict=True):
            plane += cover * (np.float32(value) - plane)


class MouthLine(NamedTuple):
    """The line between the lips, for every pixel of an area; arrays that broadcast to (T, H, W).

    Attributes:
        half: half width of the mouth, px.
        q: 1 in the middle of the mouth, 0 at its corners.
        bend: how far the corners are lifted, px.
        middle: where the line lies, v in px.
        slope: length of the line per pixel of width.
    """

    half: np.ndarray
    q: np.ndarray
    bend: np.ndarray
    middle: np.ndarray
    slope: np.ndarray


def mouth_line(pose: Pose, u: np.ndarray) -> MouthLine:
    """Compute the line between the lips at the head coordinates u."""
    half = 10.8 + 4.4 * pose.mouth_width
    s = np.clip(np.abs(u) / half, 0, 1)
    bend = 0.8 + 7.4 * pose.mouth_curve  # mouths at rest look sad when they are straight
    slope = np.sqrt(1 + (2 * bend * s / half) ** 2)
    return MouthLine(half, np.sqrt(1 - s * s), bend, 19.6 + bend * (0.38 - s * s), slope)
