"""What is behind the speaker, and the light on it; nothing here depends on the label."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from zoo.sitcom.faces.expression import SIZE
from zoo.sitcom.faces.painting import coverage
from zoo.sitcom.faces.people import HAIR, INK, SHIRTS, STUDIO_SKINS, WILD_SKINS, Colour, Looks

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
_LIGHTS = (
    (1.12, 0.84, 0.66),
    (0.70, 0.88, 1.16),
    (0.80, 1.06, 0.80),
    (1.10, 0.76, 1.02),
)  # lamp, night, neon tube, sign


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
    """Draw a scene, every fact uniform and independent of the others."""
    return Scene(rng.choice(WALLS), rng.choice(OBJECTS), rng.choice(PLACES), rng.choice(_COUNTS))


def sample_light(rng: random.Random, wild: bool) -> np.ndarray:
    """Draw the light: a factor for every pixel, (3, SIZE, SIZE) float32."""
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
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * 2 - 1
    field = level * (1 + strength * (np.float32(math.cos(angle)) * axis + np.float32(math.sin(angle)) * axis[:, None]))
    if not wild:
        warm = rng.uniform(-0.03, 0.03)
        return (field * np.array((1 + warm, 1.0, 1 - warm), dtype=np.float32)[:, None, None]).astype(np.float32)
    edge = side * (np.arange(SIZE) - shadow + tilt * (np.arange(SIZE)[:, None] - 48)) / 3  # a shadow over one side
    field = field * (1 - (1 - dark) * np.clip(0.5 + edge, 0, 1))
    return (field * (1 + share * (colour[:, None, None] - 1))).astype(np.float32)


def draw_background(rng: random.Random, person: Looks, scene: Scene, home: float, wild: bool) -> np.ndarray:
    """Draw wall, object, people and the body of the speaker, (3, SIZE, SIZE) float32."""
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
    thing = draw_sprite(scene.object, wild)
    left = 2 + shift if scene.place == "left" else SIZE - 2 - thing.shape[1] + shift
    lay_sprite(picture, thing, left, 1 + drop)
    for (number, dx, dy), on_left in zip(folks[: scene.people], (mirror, not mirror), strict=False):
        body = draw_sprite(f"person{number}", wild)
        lay_sprite(picture, body, dx + (1 if on_left else SIZE - 1 - body.shape[1]), 36 + dy)

    # the body
    shirt, skin = np.array(person.shirt), np.array((WILD_SKINS if wild else STUDIO_SKINS)[person.skin])
    rows = slice(66, SIZE)
    down = np.arange(66, SIZE, dtype=np.float32)[:, None] + 0.5
    a = np.abs(np.arange(SIZE, dtype=np.float32) + 0.5 - np.float32(home))
    shoulders = np.maximum(82.5 + 0.0075 * a * a - down, a - 40)
    neck = np.maximum(a - 8.5, down - 89 + 0.55 * a)
    for distance, colour in ((a - 8.5 + 0 * down, skin * 0.80), (shoulders, shirt), (neck, skin * 0.80)):
        if wild:
            picture[rows] += coverage(distance - 1.1)[..., None] * (np.array(INK, dtype=np.float32) - picture[rows])
        picture[rows] += coverage(distance)[..., None] * (colour.astype(np.float32) - picture[rows])
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


def lay_sprite(picture: np.ndarray, sprite: np.ndarray, left: int, top: int) -> None:
    """Put a sprite (H, W, 4), 0..255, into a picture (SIZE, SIZE, 3); what sticks out is cut off."""
    x0, x1, y0, y1 = max(left, 0), min(left + sprite.shape[1], SIZE), max(top, 0), min(top + sprite.shape[0], SIZE)
    sprite = sprite[y0 - top : y1 - top, x0 - left : x1 - left]
    part = picture[y0:y1, x0:x1]
    part += sprite[..., 3:] / 255 * (sprite[..., :3] - part)


@lru_cache(maxsize=32)
def draw_sprite(name: str, wild: bool) -> np.ndarray:
    """Draw an object of `OBJECTS` or one of six people, (H, W, 4) float32, 0..255."""
    zoom = 6
    width, height = (16, 62) if name.startswith("person") else (21, 28)
    image = Image.new("RGBA", (width * zoom, height * zoom))
    pen = ImageDraw.Draw(image)
    ink, stroke = (*INK, 255), int((1.2 if wild else 0.6) * zoom)

    def box(*edges: float) -> list[float]:
        return [edge * zoom for edge in edges]

    def shape(kind: str, corners: Sequence[float], fill: Sequence[int], line: bool = True) -> None:
        edge = {"outline": ink, "width": stroke} if line else {}
        rounding = {"radius": 5.5 * zoom} if kind == "rounded_rectangle" else {}
        getattr(pen, kind)(box(*corners), fill=(*fill, 255), **edge, **rounding)

    if name == "lamp":
        shape("rectangle", (9.6, 12, 11.4, 25), (120, 84, 48))
        shape("ellipse", (5, 23, 16, 27), (120, 84, 48))
        pen.polygon(box(6, 1.5, 15, 1.5, 20, 13, 1, 13), fill=(255, 236, 150, 255), outline=ink, width=stroke)
    elif name == "plant":
        for *corners, green in (
            (1, 6, 8, 17, 120),
            (13, 6, 20, 17, 120),
            (7, 0.6, 14, 13, 156),
            (3.5, 9, 11, 19, 140),
            (10, 9, 17.5, 19, 130),
        ):
            shape("ellipse", corners, (green // 3, green, green // 2))
        pen.polygon(box(5, 17, 16, 17, 14, 27, 7, 27), fill=(188, 98, 60, 255), outline=ink, width=stroke)
    elif name == "clock":
        shape("ellipse", (1, 3, 20, 22), (60, 50, 52))
        shape("ellipse", (3, 5, 18, 20), (252, 250, 240))
        pen.line(box(10.5, 12.5, 10.5, 7), fill=ink, width=int(1.3 * zoom))
        pen.line(box(10.5, 12.5, 14.5, 14.5), fill=ink, width=int(1.3 * zoom))
        for x, y in ((10.5, 6), (10.5, 19), (4, 12.5), (17, 12.5)):
            shape("ellipse", (x - 0.7, y - 0.7, x + 0.7, y + 0.7), INK, False)
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
        skin, hair, shirt = rng.choice(WILD_SKINS if wild else STUDIO_SKINS), rng.choice(HAIR), rng.choice(SHIRTS)
        shape("rectangle", (6.4, 12, 9.6, 17), skin)
        shape("rounded_rectangle", (0.8, 15.5, 15.2, 70), shirt)
        shape("ellipse", (2.5, 1, 13.5, 13), hair)
        shape("ellipse", (3.6, 3.6, 12.4, 14.6), skin)
        for x in (6, 10):
            shape("ellipse", (x - 0.8, 7.6, x + 0.8, 9.4), INK, False)
    image = image.resize((width, height), Image.Resampling.BOX)
    return np.asarray(image).astype(np.float32)
