"""The faces of the synthetic sitcom: short clips of drawn people whose expression carries an emotion.

What a face shows is eight numbers with an exact likelihood (`EXPRESSION`); `clip` draws them. Brows, lids, nose and
mouth are large and every edge is a smooth function of the parameters (coverage of a pixel = its distance to the edge),
so a shift of a tenth of a pixel can be seen and a small network can read the parameters back. Who speaks, light,
motion and background do not depend on the label, and what differs between people (colours, hair, the shape of the head,
how thick the brows are) moves no feature: the posterior of `EXPRESSION` is the ceiling for any classifier of a clip.

What is behind the speaker (`Scene`) answers questions that have nothing to do with emotion: the colour of the wall, an
object, its side, the number of people.

The domain ``wild`` shows the same parameters in another drawing: a cartoon with ink lines, other skins, round eyes with
heavy lids, dark coloured light, hats and glasses, clutter and sensor noise.

Lengths are pixels of a picture of `SIZE` x `SIZE`; head coordinates are u to the right of and v below the middle of
the head. Shapes: T frames, H rows, W columns. Source: ours. Only numpy and Pillow are used.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

from zoo.data.synthetic.cues import DISGUISE, LABELS, CueModel

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

Domain = Literal["studio", "wild"]
Colour = tuple[int, int, int]  # red, green, blue, 0..255

WALLS = ("red", "yellow", "green", "blue", "purple", "white")
OBJECTS = ("lamp", "plant", "clock", "window", "picture")
PLACES = ("left", "right")
MOST_PEOPLE = 2

_WALL: dict[str, Colour] = {
    "red": (196, 74, 70),
    "yellow": (232, 200, 84),
    "green": (98, 166, 96),
    "blue": (88, 136, 204),
    "purple": (146, 100, 180),
    "white": (232, 230, 226),
}
_INK = (34, 28, 38)
_STUDIO_SKINS: tuple[Colour, ...] = ((250, 218, 192), (240, 196, 162), (222, 170, 128), (186, 130, 92), (136, 90, 62))
_WILD_SKINS: tuple[Colour, ...] = ((196, 178, 236), (150, 206, 190), (246, 168, 150), (226, 216, 130), (150, 184, 232))
_HAIR: tuple[Colour, ...] = ((38, 30, 30), (84, 54, 36), (140, 92, 50), (218, 178, 96), (168, 70, 40), (150, 150, 156))
_SHIRTS: tuple[Colour, ...] = (
    (54, 92, 140),
    (170, 62, 70),
    (62, 124, 96),
    (226, 172, 70),
    (112, 80, 140),
    (70, 76, 88),
    (218, 220, 224),
)
_EYES: tuple[Colour, ...] = ((92, 58, 34), (56, 104, 156), (70, 124, 78), (104, 100, 96))
_STYLES = ("short", "side", "spiky", "bob", "long", "curly", "bun", "bald")
_LIGHTS = (
    (1.12, 0.84, 0.66),
    (0.70, 0.88, 1.16),
    (0.80, 1.06, 0.80),
    (1.10, 0.76, 1.02),
)  # lamp, night, neon tube, sign

REACH = 2.2  # parameters bend smoothly; at 1.8 a step still moves half as much as at 0
HOLD = 0.28  # the expression is held this far on both sides of the middle, as a share of the clip
_MARGIN = 1.5  # px around an area for the width of soft edges


# ------------------------------------------------------------------------------------------------------------ the scene
@dataclass(frozen=True)
class Scene:
    """What is behind the speaker; independent of the label.

    Attributes:
        wall: colour of the wall, one of `WALLS`.
        object: thing in an upper corner, one of `OBJECTS`.
        place: side of the picture where the object is, one of `PLACES`.
        people: how many other people stand in the background, 0..`MOST_PEOPLE`.
    """

    wall: str
    object: str
    place: str
    people: int

    def __post_init__(self) -> None:
        for name, known in (("wall", WALLS), ("object", OBJECTS), ("place", PLACES), ("people", _COUNTS)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r} of a scene; expected one of {known}")


_COUNTS = tuple(range(MOST_PEOPLE + 1))


def scene(rng: random.Random) -> Scene:
    """A scene, every fact uniform and independent of the others."""
    return Scene(rng.choice(WALLS), rng.choice(OBJECTS), rng.choice(PLACES), rng.choice(_COUNTS))


# ----------------------------------------------------------------------------------------------------------- the people
@dataclass(frozen=True)
class Looks:
    """What stays the same about a person. Nothing here moves a feature of the face.

    Attributes:
        skin: index of the skin in the palette of the domain, 0..4.
        hair: colour of hair and brows.
        style: one of `_STYLES`.
        width: half width of the face, px.
        jaw: how much narrower the chin is than the cheeks, 0..1.
        brow: half thickness of the brows, px.
        eyes: colour of the iris.
        beard: none, stubble or a beard along the jaw.
        glasses: worn in every clip.
        shirt: colour of the shirt.
    """

    skin: int
    hair: Colour
    style: str
    width: float
    jaw: float
    brow: float
    eyes: Colour
    beard: Literal["", "stubble", "beard"]
    glasses: bool
    shirt: Colour


_CAST = {  # name -> skin, hair, style, width, jaw, brow, eyes, beard, glasses, shirt
    "Nina": (1, 1, "long", 23.5, 0.34, 1.6, 2, "", False, 1),
    "Omar": (3, 0, "short", 24.5, 0.26, 2.3, 0, "beard", False, 0),
    "Greta": (0, 3, "bob", 24.0, 0.36, 1.5, 1, "", False, 2),
    "Felix": (0, 4, "spiky", 24.0, 0.30, 1.8, 2, "", False, 3),
    "Priya": (2, 0, "bun", 23.5, 0.36, 1.8, 0, "", False, 4),
    "Marcus": (4, 0, "bald", 25.0, 0.22, 2.2, 0, "stubble", False, 6),
    "Lucia": (2, 1, "curly", 23.5, 0.34, 1.7, 0, "", False, 3),
    "Teddy": (1, 2, "side", 25.5, 0.20, 2.0, 1, "", True, 5),
    "Joan": (4, 0, "curly", 24.0, 0.32, 1.6, 0, "", True, 1),
    "Walt": (0, 5, "side", 24.5, 0.24, 2.1, 3, "stubble", False, 5),
}


@lru_cache(maxsize=256)
def looks(speaker: str) -> Looks:
    """The looks of a person; a name that is not in the cast has its own too, drawn once from the name."""
    if speaker in _CAST:
        skin, hair, style, width, jaw, brow, eyes, beard, glasses, shirt = _CAST[speaker]
    else:
        rng = random.Random(f"looks of {speaker}")
        skin, hair, style = rng.randrange(5), rng.randrange(len(_HAIR)), rng.choice(_STYLES)
        width, jaw, brow = rng.uniform(23.5, 25.5), rng.uniform(0.2, 0.36), rng.uniform(1.5, 2.3)
        eyes, beard = rng.randrange(len(_EYES)), rng.choice(("", "", "", "stubble", "beard"))
        glasses, shirt = rng.random() < 0.2, rng.randrange(len(_SHIRTS))
    return Looks(skin, _HAIR[hair], style, width, jaw, brow, _EYES[eyes], beard, glasses, _SHIRTS[shirt])


# ------------------------------------------------------------------------------------------------------------- the clip
def clip(
    values: Sequence[float],
    speaker: str,
    scene: Scene,
    seed: str | int,
    frames: int,
    domain: Domain,
    loudness: np.ndarray | None = None,
) -> np.ndarray:
    """Draws a clip; the same arguments give the same pixels.

    The expression rises to ``values``, is held over the middle half of the clip and relaxes. Eyes blink and lips speak
    only outside of the held part.

    Args:
        values: the parameters of `EXPRESSION`, (8,); the useful range is about -1.8..1.8.
        speaker: name of the person; ten of them are the cast, any other has looks too.
        scene: what is behind the speaker.
        seed: decides light, place and motion of the head, blinks and clutter.
        frames: number T of frames at `FPS` per second, at least 1.
        domain: ``studio`` or ``wild``.
        loudness: how loud the voice is during each frame, (T,), 0..1; it moves the lips.

    Returns:
        (T, SIZE, SIZE, 3) uint8, RGB.
    """
    return _draw(values, speaker, scene, seed, frames, domain, loudness, None)


def frame(
    values: Sequence[float],
    speaker: str,
    scene: Scene,
    seed: str | int,
    frames: int,
    domain: Domain,
    loudness: np.ndarray | None = None,
) -> np.ndarray:
    """The middle frame alone, equal to ``clip(...)[frames // 2]``, (SIZE, SIZE, 3) uint8; it shows ``values``."""
    return _draw(values, speaker, scene, seed, frames, domain, loudness, frames // 2)[0]


def _draw(
    values: Sequence[float],
    speaker: str,
    scene: Scene,
    seed: str | int,
    frames: int,
    domain: Domain,
    loudness: np.ndarray | None,
    only: int | None,
) -> np.ndarray:
    """All frames of a clip, or the frame ``only``; (T, SIZE, SIZE, 3) uint8."""
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (len(EXPRESSION.names),) or not np.isfinite(values).all():
        raise ValueError(f"values must be {len(EXPRESSION.names)} finite numbers {EXPRESSION.names}, got {values}")
    if frames < 1:
        raise ValueError(f"a clip needs at least 1 frame, got {frames}")
    if domain not in get_args(Domain):
        raise ValueError(f"unknown domain {domain!r}; expected one of {get_args(Domain)}")
    if loudness is not None:
        loudness = np.asarray(loudness, dtype=np.float64)
        if loudness.shape != (frames,) or not ((loudness >= 0) & (loudness <= 1)).all():
            raise ValueError(f"loudness must be {frames} numbers in 0..1, one per frame, got {loudness}")

    # everything random is drawn before anything is painted, so a frame does not depend on how many are painted
    rng = random.Random(f"face {domain} {seed}")
    person, wild = looks(speaker), domain == "wild"
    motion = _motion(rng, frames)
    pose = _pose(rng, values, frames, loudness)
    hat = wild and rng.random() < 0.4
    glasses = rng.random() < (0.35 if wild else 0.0) or person.glasses
    light = _light(rng, wild)
    behind = _background(rng, person, scene, motion.home, wild)
    if only is not None:
        motion, pose = motion.at(only), pose.at(only)

    canvas = np.empty((3, motion.count, SIZE, SIZE), dtype=np.float32)
    canvas[:] = behind[:, None]
    _place_head(canvas, _head(speaker, domain, hat), motion)
    paint = _paint_cartoon if wild else _paint_face
    paint(canvas, motion, pose, person, glasses)
    canvas *= light[:, None]
    if wild:
        noise = np.random.default_rng(rng.getrandbits(64)).standard_normal((2 * SIZE, SIZE), dtype=np.float32) * 8
        for i, start in enumerate(motion.grain):
            canvas[:, i] += noise[start : start + SIZE]
    np.clip(canvas, 0, 255, out=canvas)
    return np.ascontiguousarray(canvas.astype(np.uint8).transpose(1, 2, 3, 0))


# ------------------------------------------------------------------------------------------------------ motion and pose
@dataclass(frozen=True)
class _Motion:
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

    def at(self, i: int) -> _Motion:
        part = slice(i, i + 1)
        return _Motion(self.x[part], self.y[part], self.roll[part], self.scale, self.home, self.reach, self.grain[part])


def _motion(rng: random.Random, frames: int) -> _Motion:
    """Slow sway of at most 1.5 px and 2.5 degrees around a place of the clip."""
    seconds = np.arange(frames) / FPS
    home, level, lean = 48 + rng.uniform(-2.5, 2.5), 45.5 + rng.uniform(-2.0, 2.0), rng.gauss(0.0, 0.022)
    scale = rng.uniform(0.955, 1.045)

    def sway(size: float) -> np.ndarray:
        return size * rng.uniform(0.4, 1.0) * np.sin(2 * np.pi * (rng.uniform(0.15, 0.45) * seconds + rng.random()))

    x, y, roll = home + sway(1.5), level + sway(1.0), lean + sway(0.045)
    reach = (x.min(), x.max(), y.min(), y.max(), np.abs(roll).max())
    grain = np.array([rng.randrange(SIZE) for _ in range(frames)])
    return _Motion(x, y, roll, scale, home, tuple(map(float, reach)), grain)


@dataclass(frozen=True)
class _Pose:
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

    def at(self, i: int) -> _Pose:
        return _Pose(*(getattr(self, f.name)[i : i + 1] for f in fields(self)))


def _pose(rng: random.Random, values: np.ndarray, frames: int, loudness: np.ndarray | None) -> _Pose:
    middle, half, at = frames // 2, HOLD * frames, np.arange(frames)
    first, last, blinks, when = rng.uniform(0.3, 0.6), rng.uniform(0.4, 0.8), rng.random() < 0.5, rng.random()

    def ease(x: np.ndarray) -> np.ndarray:
        x = np.clip(x, 0.0, 1.0)
        return x * x * (3 - 2 * x)

    rise = first + (1 - first) * ease(at / max(middle - half, 1e-6))
    fall = 1 + (last - 1) * ease((at - middle - half) / max(frames - 1 - middle - half, 1e-6))
    strength = np.where(at < middle, rise, np.where(at > middle, fall, 1.0))
    held = np.abs(at - middle) <= half
    blink = np.zeros(frames)
    if blinks and not held.all():
        free = np.flatnonzero(~held)
        blink[free[int(when * len(free))]] = 1.0
    shown = values * strength[:, None]  # (T, 8)
    if loudness is not None:
        shown[:, EXPRESSION.names.index("mouth_open")] += np.where(held, 0.0, 1.1 * loudness)
    shown = REACH * np.tanh(shown / REACH)

    def part(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float32).reshape(-1, 1, 1)

    def ramp(x: np.ndarray) -> np.ndarray:
        return np.logaddexp(0.0, 4 * x) / 4  # a smooth max(0, x)

    named = dict(zip(EXPRESSION.names, shown.T, strict=True))
    return _Pose(
        **{name: part(x) for name, x in named.items()},
        gap=part(6.8 * ramp(named["mouth_open"])),
        wrinkle=part(ramp(named["nose"] - 0.1)),
        furrow=part(ramp(-0.6 * named["brow_slant"] - 0.4 * named["brow_raise"] - 0.1)),
        crease=part(ramp(named["brow_raise"] - 0.2)),
        smile=part(ramp(named["mouth_curve"])),
        blink=part(blink),
    )


# ----------------------------------------------------------------------------------------------- painting with coverage
def _cover(distance: np.ndarray) -> np.ndarray:
    """How much of a pixel is inside of an edge at this signed distance (px, negative inside), 0..1."""
    return np.clip(0.5 - distance, 0, 1)


def _line(distance: np.ndarray, half: float | np.ndarray) -> np.ndarray:
    """Coverage of a stroke of half thickness ``half`` along the zeros of ``distance``; thin ones fade, not vanish."""
    return np.clip(half + 0.5 - np.abs(distance), 0, np.minimum(2 * half, 1))


def _mix(a: Sequence[float], b: Sequence[float], share: float) -> np.ndarray:
    """``share`` of colour ``b`` in colour ``a``, (3,) float32."""
    return (np.asarray(a, dtype=np.float32) * (1 - share) + np.asarray(b, dtype=np.float32) * share).astype(np.float32)


class _Area:
    """A rectangle of all frames of a canvas, with the head coordinates of its pixels.

    Args:
        canvas: (3, T, SIZE, SIZE) float32, painted in place.
        motion: where the head is.
        box: left, right, top and bottom in head coordinates, px.
    """

    def __init__(self, canvas: np.ndarray, motion: _Motion, box: tuple[float, float, float, float]) -> None:
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

    def paint(self, cover: np.ndarray, colour: Sequence[float]) -> None:
        """Lays a colour over the pixels; ``cover`` (T, H, W) is its opacity, 0..1."""
        for plane, value in zip(self.pixels, colour, strict=True):
            plane += cover * (np.float32(value) - plane)


# -------------------------------------------------------------------------------------------------------- faces, studio
def _paint_face(canvas: np.ndarray, motion: _Motion, pose: _Pose, person: Looks, glasses: bool) -> None:
    skin = np.array(_STUDIO_SKINS[person.skin], dtype=np.float32)
    shade, line = skin * np.float32(0.78), skin * np.float32(0.52)

    # cheeks and nose
    area = _Area(canvas, motion, (-22, 22, -8, 23))
    u, v = area.u, area.v
    a = np.abs(u)
    cheek = np.sqrt(((a - 15.5) / 6.5) ** 2 + ((v - 11 + 1.5 * pose.smile) / 4.5) ** 2)
    area.paint(np.clip(1.1 - cheek, 0, 1) * (0.16 + 0.20 * pose.smile), _mix(skin, (236, 92, 92), 0.6))
    tip, wing = 10.5 - 2.4 * pose.nose, 5.0 + 1.3 * pose.nose
    fold_end = 12.5 + 3.6 * pose.mouth_width
    along = np.clip((v - tip + 1.5) / (19.5 - 3.0 * pose.mouth_curve - tip), 0, 1)
    fold = wing + 1.2 + (fold_end - wing) * along * (2 - along) * 0.9
    inside = _cover(tip - 2 - v) * _cover(v - 19.5 + 3.0 * pose.mouth_curve)
    deep = np.clip(0.03 + 0.55 * pose.wrinkle + 0.22 * pose.smile, 0, 0.95)
    area.paint(_line((a - fold) * 0.8, 0.85) * inside * deep, line)
    area.paint(_line(u - 2.2 - 0.16 * (v + 6), 0.9) * _cover(-4 - v) * _cover(v - tip + 2) * 0.45, shade)
    ball = np.sqrt((u / wing) ** 2 + ((v - tip) / 3.3) ** 2)
    area.paint(_cover((ball - 1) * 3.3) * 0.75, _mix(skin, (214, 120, 100), 0.28))
    area.paint(_line((ball - 1) * 3.6, 0.75) * _cover(tip - 0.6 - v), line)
    hole = np.sqrt(((a - 0.5 * wing) / 1.5) ** 2 + ((v - tip - 1.6) / 1.0) ** 2)
    area.paint(_cover((hole - 1) * 1.1) * 0.85, line * np.float32(0.7))
    for i, level in enumerate((0.5, 3.0, 5.5)):  # wrinkles across the bridge
        chevron = v - (level - 4.5 - 1.2 * pose.nose) - 0.28 * a
        area.paint(_line(chevron, 0.6) * _cover(a - (4.6 - 0.5 * i)) * np.clip(0.8 * pose.wrinkle, 0, 0.9), line)

    # eyes and brows
    area = _Area(canvas, motion, (-23, 23, -28, 6))
    u, v = area.u, area.v
    a = np.abs(u)
    x = (a - 11.6) / 8.4
    bow = np.clip(1 - x * x, 0, 1)
    slope = np.sqrt(1 + x * x)
    open_ = 1 - 0.94 * pose.blink
    up, down = (4.8 + 2.5 * pose.lids) * open_, (3.3 + 1.3 * pose.lids) * open_
    top, low = -3.6 - up * bow, -3.6 + down * bow
    white = np.clip(_cover((top - v) / slope) * _cover((v - low) / slope) * _cover(np.abs(x * 8.4) - 8.4), 0, 1)
    area.paint(_cover((np.sqrt(x * x + ((v + 4.2) / 9.5) ** 2) - 1) * 8.4) * 0.35, shade)  # the socket
    area.paint(white, (250, 248, 244))
    iy = -3.8 - 3.3 * pose.gaze
    r = np.sqrt((a - 11.4) ** 2 + (v - iy) ** 2)
    area.paint(white * _cover(r - 4.3), person.eyes)
    area.paint(white * _cover(r - 2.2), (16, 12, 14))
    area.paint(
        white * _cover(np.sqrt((u - np.sign(u) * 11.4 + 1.4) ** 2 + (v - iy + 1.5) ** 2) - 1.0) * 0.9, (255,) * 3
    )
    ends = _cover(np.abs(x * 8.4) - 8.8)
    area.paint(_line((v - top + 0.3) / slope, 1.0) * ends, (40, 28, 28))
    area.paint(_line((v - low) / slope, 0.5) * ends * 0.7, line)
    area.paint(_line((v - top + 2.8) / slope, 0.5) * ends * 0.55, line)  # the crease above the lid
    level = -16.2 - 4.4 * pose.brow_raise + 3.7 * pose.brow_slant * x
    between = np.abs(u) - 3.2 + 0.8 * pose.furrow
    area.paint(_line(between, 0.6) * _cover(np.abs(v + 13.5) - 3.5) * np.clip(0.75 * pose.furrow, 0, 0.9), line)
    for lift in (3.9, 6.2):
        crease = v + 16.2 + 4.4 * pose.brow_raise + lift - 0.018 * (a - 12) ** 2
        below_hair = np.clip((v + 26) / 2, 0, 1)
        area.paint(_line(crease, 0.5) * _cover(a - 14) * below_hair * np.clip(0.5 * pose.crease, 0, 0.7), line)
    beside = np.maximum(np.abs(x) * 8.4 - 8.2, 0)
    across = (v - level - 1.3 * x * x) / np.sqrt(1 + (0.44 * pose.brow_slant) ** 2)
    thick = person.brow * (1.05 - 0.28 * np.clip(x, -1, 1))
    area.paint(_cover(np.sqrt(beside * beside + across * across) - thick), _mix(person.hair, (20, 14, 12), 0.35))
    if glasses:
        across, along = ((a - 11.7) / 10.2) ** 2, ((v + 3.4) / 8.6) ** 2
        rim = (np.sqrt(np.sqrt(across * across + along * along)) - 1) * 8.6  # squarer than an ellipse
        area.paint(_line(rim, 0.6) * 0.9, (52, 40, 44))
        area.paint(_line(v + 5, 0.6) * _cover(a - 1.8), (52, 40, 44))

    # mouth
    area = _Area(canvas, motion, (-20, 20, 9, 35))
    u, v = area.u, area.v
    half = 10.8 + 4.4 * pose.mouth_width
    s = np.clip(np.abs(u) / half, 0, 1)
    q = np.sqrt(1 - s * s)
    bend = 0.8 + 7.4 * pose.mouth_curve  # mouths at rest look sad when they are straight
    middle = 19.6 + bend * (0.38 - s * s)
    raised = 1.3 * pose.wrinkle * q  # disgust lifts the upper lip
    top, low = middle - 0.25 * pose.gap * q - raised, middle + 0.75 * pose.gap * q - 0.45 * raised
    slope = np.sqrt(1 + (2 * bend * s / half) ** 2)
    full = 1 / (1 + np.exp(-2.0 * (pose.mouth_open + 0.75)))  # pressed lips are thin
    upper, lower = (0.2 + 2.7 * full) * q, (0.2 + 3.5 * full) * q
    ends = _cover(np.abs(u) - half)
    lips = _cover((top - upper - v) / slope) * _cover((v - low - lower) / slope) * ends
    area.paint(lips, _mix(skin, (176, 44, 60), 0.55))
    gap = _cover((top - v) / slope) * _cover((v - low) / slope) * ends
    area.paint(gap, (78, 18, 26))
    area.paint(gap * _cover(v - top - np.minimum(0.42 * (low - top), 3.2)), (246, 244, 238))
    tongue = np.sqrt((u / (0.62 * half)) ** 2 + ((v - low - 0.5) / (0.1 + 0.5 * pose.gap)) ** 2)
    area.paint(gap * _cover((tongue - 1) * 3), (206, 92, 98))
    area.paint(
        _line((v - 0.5 * (top + low)) / slope, 0.5)
        * _cover(np.abs(u) - half - 0.6)
        * np.clip(1 - 0.5 * (low - top), 0, 1),
        (84, 24, 30),
    )
    corner = np.sqrt((np.abs(u) - half) ** 2 + (v - 19.6 + 0.62 * bend) ** 2)
    area.paint(_cover(corner - 1.1) * 0.8, line)
    area.paint(np.clip(1 - np.abs(v - low - lower - 2.6) / 1.6, 0, 1) * _cover(np.abs(u) - 0.5 * half) * 0.35, shade)


# ---------------------------------------------------------------------------------------------------------- faces, wild
def _paint_cartoon(canvas: np.ndarray, motion: _Motion, pose: _Pose, person: Looks, glasses: bool) -> None:
    skin = np.array(_WILD_SKINS[person.skin], dtype=np.float32)
    lid, ink = skin * np.float32(0.74), np.array(_INK, dtype=np.float32)

    # nose: a hook whose wings flare, ink wrinkles, folds
    area = _Area(canvas, motion, (-20, 20, -8, 23))
    u, v = area.u, area.v
    a = np.abs(u)
    tip, wing = 10.5 - 2.4 * pose.nose, 4.6 + 1.4 * pose.nose
    ball = np.sqrt((u / wing) ** 2 + ((v - tip) / 3.6) ** 2)
    area.paint(_cover((ball - 1) * 3.6), _mix(skin, (255, 120, 110), 0.35))
    area.paint(_line((ball - 1) * 3.6, 0.7), ink)
    for level in (-1.0, 2.2):
        chevron = v - (level - 3.2 - 1.2 * pose.nose) + 0.35 * a
        area.paint(_line(chevron, 0.7) * _cover(a - 4.2) * np.clip(0.9 * pose.wrinkle, 0, 1), ink)
    fold_end = 12.5 + 3.6 * pose.mouth_width
    along = np.clip((v - tip + 1) / (19 - 3.0 * pose.mouth_curve - tip), 0, 1)
    fold = wing + 1.8 + (fold_end - wing) * along * along * 0.8
    inside = _cover(tip - 1.5 - v) * _cover(v - 19 + 3.0 * pose.mouth_curve)
    area.paint(
        _line((a - fold) * 0.8, 0.75) * inside * np.clip(0.05 + 0.6 * pose.wrinkle + 0.2 * pose.smile, 0, 1), ink
    )

    # eyes: balls with flat lids; brows: bars
    area = _Area(canvas, motion, (-22, 22, -28, 8))
    u, v = area.u, area.v
    a = np.abs(u)
    radius = 7.6 + 0.9 * pose.lids
    ball = np.sqrt((a - 10.2) ** 2 + (v + 3.4) ** 2) - radius
    inside = _cover(ball)
    area.paint(inside, lid)
    open_ = 1 - 0.96 * pose.blink
    top, low = -3.4 - (4.6 + 2.6 * pose.lids) * open_, -3.4 + (4.4 + 1.5 * pose.lids) * open_
    white = inside * _cover(top - v) * _cover(v - low)
    area.paint(white, (255, 255, 250))
    iris = np.sqrt((a - 9.6) ** 2 + ((v + 3.4 + 3.4 * pose.gaze) / 1.15) ** 2)
    area.paint(white * _cover(iris - 2.7), ink)
    area.paint(inside * _line(v - top, 0.7), ink)
    area.paint(inside * _line(v - low, 0.45), ink)
    area.paint(_line(ball, 0.6), ink)
    x = (a - 11.0) / 8.0
    level = -17.0 - 4.3 * pose.brow_raise + 3.9 * pose.brow_slant * x
    steep = np.sqrt(1 + (0.49 * pose.brow_slant) ** 2)
    bar = np.maximum(np.abs((v - level) / steep) - person.brow - 0.3, np.abs(x) * 8.0 - 7.8)
    area.paint(_cover(bar), _mix(person.hair, ink, 0.75))
    area.paint(_line(a - 2.6, 0.6) * _cover(np.abs(v + 14) - 3) * np.clip(0.8 * pose.furrow, 0, 1), ink)
    if glasses:
        rim = np.maximum(np.abs(a - 10.6) - 9.6, np.abs(v + 3) - 8.8)
        area.paint(_line(rim, 0.7) * 0.85, (190, 40, 60))
        area.paint(_line(v + 4, 0.7) * _cover(a - 1.2), (190, 40, 60))

    # mouth: an ink line around a dark hole
    area = _Area(canvas, motion, (-20, 20, 9, 35))
    u, v = area.u, area.v
    half = 10.8 + 4.4 * pose.mouth_width
    s = np.clip(np.abs(u) / half, 0, 1)
    q = np.sqrt(1 - s * s)
    bend = 0.8 + 7.4 * pose.mouth_curve  # mouths at rest look sad when they are straight
    middle = 19.6 + bend * (0.38 - s * s)
    raised = 1.5 * pose.wrinkle * q
    top, low = middle - 0.25 * pose.gap * q - raised, middle + 0.75 * pose.gap * q - 0.3 * raised
    slope = np.sqrt(1 + (2 * bend * s / half) ** 2)
    pressed = 1 / (1 + np.exp(-2.0 * (pose.mouth_open + 0.75)))
    edge = 0.45 + 1.25 * pressed  # a pressed mouth is a thin line
    ends = _cover(np.abs(u) - half - 0.8)
    area.paint(_cover((top - v) / slope - edge) * _cover((v - low) / slope - edge) * ends, ink)
    gap = _cover((top - v) / slope + 0.2) * _cover((v - low) / slope + 0.2) * _cover(np.abs(u) - half)
    area.paint(gap, (150, 30, 44))
    area.paint(gap * _cover(v - top - 0.38 * (low - top)), (252, 250, 236))
    area.paint(_line(v - low - edge * 2 - 3, 0.5) * _cover(np.abs(u) - 0.3 * half) * 0.6, ink)


# ------------------------------------------------------------------------------------------------------ the head itself
_FINE = 2  # the still part of a head is drawn once at this resolution and then turned
_HEAD_U, _HEAD_V = 38, 44  # half width and half height of its picture, px


@lru_cache(maxsize=64)
def _head(speaker: str, domain: Domain, hat: bool) -> Image.Image:
    """Hair, ears and an empty face, with premultiplied transparency; (2 _HEAD_V, 2 _HEAD_U) px at `_FINE` per px."""
    person, wild = looks(speaker), domain == "wild"
    u, v = np.meshgrid(
        (np.arange(2 * _HEAD_U * _FINE) + 0.5) / _FINE - _HEAD_U,
        (np.arange(2 * _HEAD_V * _FINE) + 0.5) / _FINE - _HEAD_V,
    )
    a = np.abs(u)
    skin = np.array((_WILD_SKINS if wild else _STUDIO_SKINS)[person.skin], dtype=np.float64)
    hair = np.array(person.hair, dtype=np.float64)
    picture = np.zeros((*u.shape, 4))

    def paint(distance: np.ndarray, colour: np.ndarray | Sequence[float], opacity: float | np.ndarray = 1.0) -> None:
        if wild and np.ndim(opacity) == 0 and opacity == 1:  # every shape of a cartoon has an ink line
            lay(np.clip(0.5 - (distance - 1.1) * _FINE, 0, 1), _INK)
        lay(np.clip(0.5 - distance * _FINE, 0, 1) * opacity, colour)

    def lay(cover: np.ndarray, colour: np.ndarray | Sequence[float]) -> None:
        colour = np.broadcast_to(np.asarray(colour, dtype=np.float64), (*u.shape, 3))
        picture[..., :3] += cover[..., None] * (colour - picture[..., :3])
        picture[..., 3] += cover * (255 - picture[..., 3])

    def ellipse(cx: float, cy: float, rx: float, ry: float, of: np.ndarray = u) -> np.ndarray:
        return (np.sqrt(((of - cx) / rx) ** 2 + ((v - cy) / ry) ** 2) - 1) * min(rx, ry)

    narrow = 1 - person.jaw * np.clip(v / 34, 0, 1) ** 2
    if wild:  # squarer heads
        face = ((np.abs(u / (narrow * (person.width + 0.5))) ** 3 + np.abs(v / 34) ** 3) ** (1 / 3) - 1) * 24
    else:
        face = (np.sqrt((u / (narrow * person.width)) ** 2 + (v / 34) ** 2) - 1) * 24
    cap = ellipse(0, -7, person.width + 3.2, 31)
    strands = 1 + 0.10 * np.sin(u * 1.1 + 0.05 * v * np.sin(u * 0.2)) if not wild else np.ones_like(u)
    hair_colour = np.clip(hair * strands[..., None], 0, 255)

    # behind the face
    if person.style == "long":
        paint(
            np.maximum(
                a - 27.3 + 0.02 * np.abs(v - 8) + 0.004 * np.clip(v - 26, 0, None) ** 3, np.maximum(-v - 4, v - 43)
            ),
            hair_colour,
        )
        paint(ellipse(0, -7, 28, 32), hair_colour)
    elif person.style == "bob":
        paint(np.maximum(a - 28 + 0.006 * np.clip(v - 6, 0, None) ** 3, np.maximum(-v - 8, v - 20)), hair_colour)
        paint(ellipse(0, -7, 28.2, 32), hair_colour)
    elif person.style == "curly":
        for i in range(15):
            angle = math.pi * (1.12 - 1.24 * i / 14)
            paint(ellipse(24.5 * math.cos(angle), -9 - 23 * math.sin(angle), 7.2, 7.2), hair_colour)
    elif person.style == "bun":
        paint(ellipse(0, -35, 9, 8), hair_colour)
    if person.style != "bald":
        paint(cap, hair_colour)
    paint(ellipse(person.width - 0.3, 0, 4, 6, a), skin * 0.92)
    if not wild:
        paint(ellipse(person.width, 0, 2, 3.6, a), skin * 0.74, 0.6)

    # the face
    light = np.clip(1.02 - 0.20 * np.clip((face + 9) / 9, 0, 1) ** 2 - 0.0022 * np.clip(v, -20, 34), 0, 1.1)
    paint(face, skin * light[..., None] if not wild else skin)
    if person.beard and not wild:
        jaw = np.clip((v - 4) / 10, 0, 1) * np.clip((face + (9 if person.beard == "stubble" else 6.5)) / 3, 0, 1)
        paint(face, hair, jaw * (0.28 if person.beard == "stubble" else 0.85))
    elif person.beard:
        paint(face, hair, ((face > -5) & (v > 6)).astype(float) * 0.8)

    # in front of the face
    line = {
        "short": -28 + 0.012 * a**2,
        "side": -29.5 + 0.010 * (u + 14) ** 2,
        "spiky": -28.5 + 0.8 * np.abs((u % 8) - 4),
        "bob": -27.5 + 0.5 * np.clip(a - 17, 0, None) ** 1.6,
        "long": -29 + 0.030 * a**2,
        "curly": -28.5 + 1.8 * np.abs(np.sin(u * 0.45)),
        "bun": -28 + 0.018 * a**2,
        "bald": np.full_like(u, -60.0),
    }[person.style]
    temples = np.where(a > person.width - 4.5, np.minimum(line + (a - person.width + 4.5) * 4.5, -3.0), line)
    front = np.maximum(v - temples, np.minimum(cap, face - 1))
    if person.style != "bald":
        lay(np.clip(0.5 - front * _FINE, 0, 1), hair_colour)
        if wild:
            lay(np.clip(1.0 - np.abs(front) * _FINE * 0.7, 0, 1) * (face < 0), _INK)
    if person.style == "spiky":
        for i in range(7):
            cx = -21 + 7 * i
            spike = np.abs(u - cx) - (v + 45 - 0.018 * cx * cx) * 0.42
            paint(np.maximum(spike, v + 27), hair_colour)
    if person.style == "bald" and not wild:
        paint(ellipse(-8, -25, 6, 3), (255, 255, 255), 0.22)
    if hat:  # above the highest brows
        crown = np.maximum(ellipse(0, -28, person.width + 1.5, 15), v + 28.5)
        cloth = np.array(_SHIRTS[(person.skin * 3 + 1) % len(_SHIRTS)], dtype=np.float64)
        paint(crown, cloth)
        paint(np.maximum(np.abs(v + 28.5) - 1.7, a - person.width - 2.5), cloth * 0.7)
    data = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    return Image.frombytes("RGBa", (data.shape[1], data.shape[0]), data.tobytes())


def _place_head(canvas: np.ndarray, head: Image.Image, motion: _Motion) -> None:
    """Turns and moves the still head into every frame."""
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


# --------------------------------------------------------------------------------------------- light and what is behind
def _light(rng: random.Random, wild: bool) -> np.ndarray:
    """Factors of every pixel, (3, SIZE, SIZE) float32."""
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0.12, 0.32) if wild else rng.uniform(0.02, 0.16)
    level = rng.uniform(0.55, 0.88) if wild else rng.uniform(0.88, 1.06)
    colour = np.array(rng.choice(_LIGHTS), dtype=np.float32)
    share, shadow, tilt, dark = (
        rng.uniform(0.3, 0.8),
        rng.uniform(20, 76),
        rng.uniform(-0.6, 0.6),
        rng.uniform(0.66, 0.85),
    )
    side = rng.choice((-1, 1))
    at = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * 2 - 1
    field = level * (1 + strength * (np.float32(math.cos(angle)) * at + np.float32(math.sin(angle)) * at[:, None]))
    if not wild:
        warm = rng.uniform(-0.03, 0.03)
        return (field * np.array((1 + warm, 1.0, 1 - warm), dtype=np.float32)[:, None, None]).astype(np.float32)
    edge = side * (np.arange(SIZE) - shadow + tilt * (np.arange(SIZE)[:, None] - 48)) / 3  # a shadow over one side
    field = field * (1 - (1 - dark) * np.clip(0.5 + edge, 0, 1))
    return (field * (1 + share * (colour[:, None, None] - 1))).astype(np.float32)


def _background(rng: random.Random, person: Looks, scene: Scene, home: float, wild: bool) -> np.ndarray:
    """Wall, object, people and the body of the speaker, (3, SIZE, SIZE) float32."""
    wall = np.array(_WALL[scene.wall], dtype=np.float32)
    picture = np.empty((SIZE, SIZE, 3), dtype=np.float32)
    picture[:] = wall * (1.04 - 0.0016 * np.arange(SIZE, dtype=np.float32))[:, None, None]
    shift, drop, mirror = rng.randrange(-1, 2), rng.randrange(0, 4), rng.random() < 0.5
    folks = [(rng.randrange(6), rng.randrange(-1, 2), rng.randrange(-4, 5)) for _ in range(MOST_PEOPLE)]
    if wild:  # clutter in darker and lighter shades of the wall, a few coloured spots
        for _ in range(7):
            x, y, w, h = rng.randrange(-8, SIZE), rng.randrange(-8, SIZE), rng.randrange(6, 30), rng.randrange(4, 26)
            picture[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] *= rng.uniform(0.74, 1.16)
        for _ in range(5):
            x, y, size = rng.randrange(SIZE), rng.randrange(SIZE), rng.randrange(1, 4)
            picture[max(y, 0) : y + size, max(x, 0) : x + size] = [rng.randrange(40, 230) for _ in range(3)]
    thing = _sprite(scene.object, wild)
    left = 2 + shift if scene.place == "left" else SIZE - 2 - thing.shape[1] + shift
    _lay(picture, thing, left, 1 + drop)
    for (who, dx, dy), on_left in zip(folks[: scene.people], (mirror, not mirror), strict=False):
        body = _sprite(f"person{who}", wild)
        _lay(picture, body, dx + (1 if on_left else SIZE - 1 - body.shape[1]), 36 + dy)

    # the body
    shirt, skin = np.array(person.shirt), np.array((_WILD_SKINS if wild else _STUDIO_SKINS)[person.skin])
    rows = slice(66, SIZE)
    y = np.arange(66, SIZE, dtype=np.float32)[:, None] + 0.5
    a = np.abs(np.arange(SIZE, dtype=np.float32) + 0.5 - np.float32(home))
    shoulders = np.maximum(82.5 + 0.0075 * a * a - y, a - 40)
    neck = np.maximum(a - 8.5, y - 89 + 0.55 * a)
    for distance, colour in ((a - 8.5 + 0 * y, skin * 0.80), (shoulders, shirt), (neck, skin * 0.80)):
        if wild:
            picture[rows] += _cover(distance - 1.1)[..., None] * (np.array(_INK, dtype=np.float32) - picture[rows])
        picture[rows] += _cover(distance)[..., None] * (colour.astype(np.float32) - picture[rows])
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


def _lay(picture: np.ndarray, sprite: np.ndarray, left: int, top: int) -> None:
    """Puts a sprite (H, W, 4), 0..255, into a picture (SIZE, SIZE, 3); what sticks out is cut off."""
    x0, x1, y0, y1 = max(left, 0), min(left + sprite.shape[1], SIZE), max(top, 0), min(top + sprite.shape[0], SIZE)
    sprite = sprite[y0 - top : y1 - top, x0 - left : x1 - left]
    part = picture[y0:y1, x0:x1]
    part += sprite[..., 3:] / 255 * (sprite[..., :3] - part)


@lru_cache(maxsize=32)
def _sprite(name: str, wild: bool) -> np.ndarray:
    """An object of `OBJECTS` or one of six people, (H, W, 4) float32, 0..255."""
    zoom = 6
    width, height = (16, 62) if name.startswith("person") else (21, 28)
    image = Image.new("RGBA", (width * zoom, height * zoom))
    pen = ImageDraw.Draw(image)
    ink, stroke = (*_INK, 255), int((1.2 if wild else 0.6) * zoom)

    def box(*edges: float) -> list[float]:
        return [edge * zoom for edge in edges]

    def shape(kind: str, at: Sequence[float], fill: Sequence[int], line: bool = True) -> None:
        edge = {"outline": ink, "width": stroke} if line else {}
        rounding = {"radius": 5.5 * zoom} if kind == "rounded_rectangle" else {}
        getattr(pen, kind)(box(*at), fill=(*fill, 255), **edge, **rounding)

    if name == "lamp":
        shape("rectangle", (9.6, 12, 11.4, 25), (120, 84, 48))
        shape("ellipse", (5, 23, 16, 27), (120, 84, 48))
        pen.polygon(box(6, 1.5, 15, 1.5, 20, 13, 1, 13), fill=(255, 236, 150, 255), outline=ink, width=stroke)
    elif name == "plant":
        for *at, green in (
            (1, 6, 8, 17, 120),
            (13, 6, 20, 17, 120),
            (7, 0.6, 14, 13, 156),
            (3.5, 9, 11, 19, 140),
            (10, 9, 17.5, 19, 130),
        ):
            shape("ellipse", at, (green // 3, green, green // 2))
        pen.polygon(box(5, 17, 16, 17, 14, 27, 7, 27), fill=(188, 98, 60, 255), outline=ink, width=stroke)
    elif name == "clock":
        shape("ellipse", (1, 3, 20, 22), (60, 50, 52))
        shape("ellipse", (3, 5, 18, 20), (252, 250, 240))
        pen.line(box(10.5, 12.5, 10.5, 7), fill=ink, width=int(1.3 * zoom))
        pen.line(box(10.5, 12.5, 14.5, 14.5), fill=ink, width=int(1.3 * zoom))
        for x, y in ((10.5, 6), (10.5, 19), (4, 12.5), (17, 12.5)):
            shape("ellipse", (x - 0.7, y - 0.7, x + 0.7, y + 0.7), _INK, False)
    elif name == "window":
        shape("rectangle", (0.6, 0.6, 20.4, 27), (250, 250, 250))
        for x in (2.5, 11.5):
            for y in (2.5, 14.6):
                shape("rectangle", (x, y, x + 7, y + 10.4), (150, 208, 244))
    elif name == "picture":
        shape("rectangle", (0.6, 2, 20.4, 23), (150, 104, 44))
        shape("rectangle", (3, 4.5, 18, 20.5), (250, 226, 190), False)
        shape("ellipse", (12, 6, 16, 10), (240, 120, 60), False)
        pen.polygon(box(3, 20.5, 8.5, 10, 14, 20.5), fill=(70, 110, 120, 255))
        pen.polygon(box(9, 20.5, 14, 14, 18, 20.5), fill=(50, 84, 96, 255))
    else:
        rng = random.Random(name)
        skin, hair, shirt = rng.choice(_WILD_SKINS if wild else _STUDIO_SKINS), rng.choice(_HAIR), rng.choice(_SHIRTS)
        shape("rectangle", (6.4, 12, 9.6, 17), skin)
        shape("rounded_rectangle", (0.8, 15.5, 15.2, 70), shirt)
        shape("ellipse", (2.5, 1, 13.5, 13), hair)
        shape("ellipse", (3.6, 3.6, 12.4, 14.6), skin)
        for x in (6, 10):
            shape("ellipse", (x - 0.8, 7.6, x + 0.8, 9.4), _INK, False)
    image = image.resize((width, height), Image.Resampling.BOX)
    return np.asarray(image).astype(np.float32)
