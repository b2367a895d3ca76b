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

import random
from collections.abc import Sequence
from typing import get_args

import numpy as np

from zoo.sitcom.faces.cartoon import paint_cartoon
from zoo.sitcom.faces.expression import EXPRESSION, FPS, SIZE, sample_motion, sample_pose
from zoo.sitcom.faces.head import draw_head, place_head
from zoo.sitcom.faces.people import Domain, looks
from zoo.sitcom.faces.scenery import OBJECTS, PLACES, WALLS, Scene, draw_background, sample_light, scene
from zoo.sitcom.faces.studio import paint_face

__all__ = ["EXPRESSION", "FPS", "OBJECTS", "PLACES", "SIZE", "WALLS", "Scene", "clip", "looks", "scene"]


def clip(
    values: Sequence[float],
    speaker: str,
    scene: Scene,
    seed: str | int,
    frames: int,
    domain: Domain,
    loudness: np.ndarray | None = None,
    only: int | None = None,
) -> np.ndarray:
    """Draw a clip; the same arguments give the same pixels.

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
        only: draw this frame alone (T is 1 then); it is the same as in the whole clip.

    Returns:
        (T, SIZE, SIZE, 3) uint8, RGB.
    """
    expression = np.asarray(values, dtype=np.float64)
    if expression.shape != (len(EXPRESSION.names),) or not np.isfinite(expression).all():
        raise ValueError(f"values must be {len(EXPRESSION.names)} finite numbers {EXPRESSION.names}, got {expression}")
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
    motion = sample_motion(rng, frames)
    pose = sample_pose(rng, expression, frames, loudness)
    hat = wild and rng.random() < 0.4
    glasses = rng.random() < (0.35 if wild else 0.0) or person.glasses
    light = sample_light(rng, wild)
    behind = draw_background(rng, person, scene, motion.home, wild)
    if only is not None:
        motion, pose = motion.single_frame(only), pose.single_frame(only)

    canvas = np.empty((3, motion.count, SIZE, SIZE), dtype=np.float32)
    canvas[:] = behind[:, None]
    place_head(canvas, draw_head(speaker, domain, hat), motion)
    paint = paint_cartoon if wild else paint_face
    paint(canvas, motion, pose, person, glasses)
    canvas *= light[:, None]
    if wild:
        noise = np.random.default_rng(rng.getrandbits(64)).standard_normal((2 * SIZE, SIZE), dtype=np.float32) * 8
        for i, start in enumerate(motion.grain):
            canvas[:, i] += noise[start : start + SIZE]
    np.clip(canvas, 0, 255, out=canvas)
    return np.ascontiguousarray(canvas.astype(np.uint8).transpose(1, 2, 3, 0))
