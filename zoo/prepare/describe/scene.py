"""The basics of a picture: how bright it is, where it is cut, how many faces it shows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CHANGE = 0.1  # of full scale: mean difference of two neighbouring frames from which there may be a cut
TIMES = 4.0  # how many times the clip's median difference it has to be: a panning camera changes every frame
SIDE = 16  # pixels of the squares of a frame that are compared
DARK, BRIGHT = 0.2, 0.8


class Scene(NamedTuple):
    """What a picture is like.

    Attributes:
        brightness: mean over pixels and frames of the grey value, 0 black to 1 white.
        cuts: seconds from the beginning, rising.
        faces: most persons seen at once.
    """

    brightness: float
    cuts: tuple[float, ...]
    faces: int


def grey(frames: np.ndarray) -> np.ndarray:
    """Return frames (T, 3, H, W) uint8 in grey, (T, H, W) uint8, by the weights of BT.601."""
    weights = np.array([299, 587, 114], np.uint32)
    grey_frames = np.empty((len(frames), *frames.shape[2:]), np.uint8)
    for i, frame in enumerate(frames):  # one by one: the whole clip in 32 bits would fill the memory
        grey_frames[i] = np.tensordot(weights, frame.astype(np.uint32), 1) // 1000
    return grey_frames


def find_cuts(frames: np.ndarray, times: np.ndarray) -> tuple[float, ...]:
    """Return when the picture changes at once, in seconds.

    A cut is where squares of the picture differ from those of the frame before by more than .1 of full scale in the
    mean, and four times as much as neighbouring frames of this clip do in the median. A cut between two pictures that
    are alike is missed, a flash of light counts as one.

    Args:
        frames: grey, (T, H, W) uint8.
        times: (T,) seconds.
    """
    if len(frames) < 3:
        return ()
    height, width = frames.shape[1:]
    rows, columns = (np.linspace(0, length, min(SIDE, length) + 1).astype(int)[:-1] for length in (height, width))
    squares = np.add.reduceat(np.add.reduceat(frames.astype(np.float32), rows, 1), columns, 2)
    counts = np.multiply.outer(np.diff(np.append(rows, height)), np.diff(np.append(columns, width)))
    changes = np.abs(np.diff(squares / counts, axis=0)).mean((1, 2)) / 255
    there = changes > max(CHANGE, TIMES * float(np.median(changes)))
    there[1:] &= ~there[:-1]  # what changes over several frames is one cut
    return tuple(float(time) for time in times[1:][there])


def scene_sentence(scene: Scene) -> str:
    """Say what is notable: a dark or a bright picture, cuts; empty if nothing is."""
    parts = []
    if scene.brightness < DARK or scene.brightness > BRIGHT:
        parts.append(f"The picture is {'dark' if scene.brightness < DARK else 'bright'}.")
    if scene.cuts:
        parts.append("There is one cut." if len(scene.cuts) == 1 else f"There are {len(scene.cuts)} cuts.")
    return " ".join(parts)
