"""What a face shows, how it moves, and where the head is during a clip."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

import numpy as np

from zoo.sitcom.cues import DISGUISE, LABELS, CueModel

SIZE = 96  # px
FPS = 10

EXPRESSION = CueModel(
    labels=LABELS,
    names=("brow_raise", "brow_slant", "lids", "nose", "mouth_curve", "mouth_open", "mouth_width", "gaze"),
    directions={
        "neutral": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        "surprise": (1.0, 0.1, 0.8, 0.0, 0.0, 1.0, -0.3, 0.0),
        "fear": (0.6, 0.8, 0.9, 0.0, -0.4, 0.4, 0.6, 0.2),
        "sadness": (0.1, 0.9, -0.5, 0.0, -0.9, 0.0, -0.2, -0.9),
        "joy": (0.1, 0.0, -0.4, 0.1, 1.0, 0.4, 0.7, 0.0),
        "disgust": (-0.3, -0.4, -0.6, 1.0, -0.5, 0.1, 0.0, -0.4),
        "anger": (-0.8, -1.0, 0.2, 0.3, -0.5, 0.1, -0.2, 0.0),
    },
    noise=(0.34,) * 8,
    absent=0.12,
    misleading=0.04,
    masks=DISGUISE,
)

REACH = 2.2  # parameters bend smoothly; at 1.8 a step still moves half as much as at 0
HOLD = 0.28  # the expression is held this far on both sides of the middle, as a share of the clip


@dataclass(frozen=True)
class Motion:
    """Where the head is, one number per frame."""

    x: np.ndarray  # (T,) px
    y: np.ndarray  # (T,) px
    roll: np.ndarray  # (T,) radians
    scale: float
    home: float  # x around which the head sways, where the body stays
    reach: tuple[float, float, float, float, float]  # smallest and largest x and y, and largest roll, of the whole clip
    grain: np.ndarray  # (T,) where each frame starts in the field of sensor noise

    @property
    def count(self) -> int:
        return len(self.x)

    def single_frame(self, i: int) -> Motion:
        part = slice(i, i + 1)
        return Motion(self.x[part], self.y[part], self.roll[part], self.scale, self.home, self.reach, self.grain[part])


def sample_motion(rng: random.Random, frames: int) -> Motion:
    """Draw a slow sway of at most 1.5 px and 2.5 degrees around a place of the clip."""
    seconds = np.arange(frames) / FPS
    home, level, lean = 48 + rng.uniform(-2.5, 2.5), 45.5 + rng.uniform(-2.0, 2.0), rng.gauss(0.0, 0.022)
    scale = rng.uniform(0.955, 1.045)

    def sway(size: float) -> np.ndarray:
        return size * rng.uniform(0.4, 1.0) * np.sin(2 * np.pi * (rng.uniform(0.15, 0.45) * seconds + rng.random()))

    x, y, roll = home + sway(1.5), level + sway(1.0), lean + sway(0.045)
    reach = (float(x.min()), float(x.max()), float(y.min()), float(y.max()), float(np.abs(roll).max()))
    grain = np.array([rng.randrange(SIZE) for _ in range(frames)])
    return Motion(x, y, roll, scale, home, reach, grain)


@dataclass(frozen=True)
class Pose:
    """The expression of every frame: the parameters of `EXPRESSION` after bending, each (T, 1, 1) float32."""

    brow_raise: np.ndarray
    brow_slant: np.ndarray
    lids: np.ndarray
    nose: np.ndarray
    mouth_curve: np.ndarray
    mouth_open: np.ndarray
    mouth_width: np.ndarray
    gaze: np.ndarray
    gap: np.ndarray  # between the lips, px
    wrinkle: np.ndarray  # strength of what shows only one way: wrinkles of the nose, about 0..1.5
    furrow: np.ndarray  # ... between lowered brows
    crease: np.ndarray  # ... on the forehead
    smile: np.ndarray  # ... of the cheeks
    blink: np.ndarray  # 0 open .. 1 shut

    def single_frame(self, i: int) -> Pose:
        return Pose(*(getattr(self, f.name)[i : i + 1] for f in fields(self)))


def sample_pose(rng: random.Random, values: np.ndarray, frames: int, loudness: np.ndarray | None) -> Pose:
    middle, half, time = frames // 2, HOLD * frames, np.arange(frames)
    first, last, blinks, blink_draw = rng.uniform(0.3, 0.6), rng.uniform(0.4, 0.8), rng.random() < 0.5, rng.random()

    def ease(x: np.ndarray) -> np.ndarray:
        x = np.clip(x, 0.0, 1.0)
        return x * x * (3 - 2 * x)

    rise = first + (1 - first) * ease(time / max(middle - half, 1e-6))
    fall = 1 + (last - 1) * ease((time - middle - half) / max(frames - 1 - middle - half, 1e-6))
    strength = np.where(time < middle, rise, np.where(time > middle, fall, 1.0))
    held = np.abs(time - middle) <= half
    blink = np.zeros(frames)
    if blinks and not held.all():
        free = np.flatnonzero(~held)
        blink[free[int(blink_draw * len(free))]] = 1.0
    bent = values * strength[:, None]  # (T, 8)
    if loudness is not None:
        bent[:, EXPRESSION.names.index("mouth_open")] += np.where(held, 0.0, 1.1 * loudness)
    bent = REACH * np.tanh(bent / REACH)

    def part(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float32).reshape(-1, 1, 1)

    def ramp(x: np.ndarray) -> np.ndarray:
        return np.logaddexp(0.0, 4 * x) / 4  # a smooth max(0, x)

    named = dict(zip(EXPRESSION.names, bent.T, strict=True))
    return Pose(
        **{name: part(x) for name, x in named.items()},
        gap=part(6.8 * ramp(named["mouth_open"])),
        wrinkle=part(ramp(named["nose"] - 0.1)),
        furrow=part(ramp(-0.6 * named["brow_slant"] - 0.4 * named["brow_raise"] - 0.1)),
        crease=part(ramp(named["brow_raise"] - 0.2)),
        smile=part(ramp(named["mouth_curve"])),
        blink=part(blink),
    )
