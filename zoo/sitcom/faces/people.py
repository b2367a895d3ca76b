"""Who is in the synthetic sitcom: looks that stay the same and tell nothing about the emotion."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

Domain = Literal["studio", "wild"]
Colour = tuple[int, int, int]  # red, green, blue, 0..255

INK = (34, 28, 38)
STUDIO_SKINS: tuple[Colour, ...] = ((250, 218, 192), (240, 196, 162), (222, 170, 128), (186, 130, 92), (136, 90, 62))
WILD_SKINS: tuple[Colour, ...] = ((196, 178, 236), (150, 206, 190), (246, 168, 150), (226, 216, 130), (150, 184, 232))
HAIR: tuple[Colour, ...] = ((38, 30, 30), (84, 54, 36), (140, 92, 50), (218, 178, 96), (168, 70, 40), (150, 150, 156))
SHIRTS: tuple[Colour, ...] = (
    (54, 92, 140),
    (170, 62, 70),
    (62, 124, 96),
    (226, 172, 70),
    (112, 80, 140),
    (70, 76, 88),
    (218, 220, 224),
)
EYES: tuple[Colour, ...] = ((92, 58, 34), (56, 104, 156), (70, 124, 78), (104, 100, 96))
_STYLES = ("short", "side", "spiky", "bob", "long", "curly", "bun", "bald")


Beard = Literal["", "stubble", "beard"]


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
    beard: Beard
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
    """Return the looks of a person; a name that is not in the cast has its own too, drawn once from the name."""
    if speaker in _CAST:
        skin, hair, style, width, jaw, brow, eyes, beard, glasses, shirt = _CAST[speaker]
    else:
        rng = random.Random(f"looks of {speaker}")
        skin, hair, style = rng.randrange(5), rng.randrange(len(HAIR)), rng.choice(_STYLES)
        width, jaw, brow = rng.uniform(23.5, 25.5), rng.uniform(0.2, 0.36), rng.uniform(1.5, 2.3)
        eyes, beard = rng.randrange(len(EYES)), rng.choice(("", "", "", "stubble", "beard"))
        glasses, shirt = rng.random() < 0.2, rng.randrange(len(SHIRTS))
    return Looks(skin, HAIR[hair], style, width, jaw, brow, EYES[eyes], cast(Beard, beard), glasses, SHIRTS[shirt])
