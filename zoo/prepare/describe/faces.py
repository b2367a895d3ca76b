"""Whose face is described, and its expression over time as a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from zoo.models.emotion_qwen.face_types import EMOTIONS, Face
from zoo.prepare.describe.activity import Loudness

NO_FACE = "No face found."
ADJECTIVES = {"disgust": "disgusted", "fear": "afraid", "surprise": "surprised"}  # of the expressions that are nouns
OVERLAP = 0.2  # of two boxes, shared over joined area: from there on the same person in two frames
FEWEST = 2  # faces by whose mean an expression is said to turn
SURE = 0.4  # probability from which an expression is said plainly
ALSO = 0.2  # from which the second one is said, too
MOVES = 0.2  # least correlation of a mouth with the voice
AHEAD = 0.1  # by which it has to exceed every other mouth's
MOUTH = (0.6, 1.0, 0.2, 0.8)  # rows and columns of the box of a face, from and to
EYES = (0.1, 0.5, 0.2, 0.8)  # what moves there, too, is the head
SMOOTH = 0.25  # seconds over which movement and loudness are averaged

Fractions = tuple[float, float, float, float]


class SeenFace(NamedTuple):
    """One face of one frame.

    Attributes:
        time: seconds from the beginning of what is described.
        box: left, top, right, bottom, as fractions of the picture's width and height, 0 to 1.
        probabilities: of each of the seven `EMOTIONS`, together 1.
        person: number of the person, from 0 in the order in which they appear; a cut may make two of one.
        described: whether the sentence is about this person.
    """

    time: float
    box: Fractions
    probabilities: Mapping[str, float]
    person: int
    described: bool


def persons(faces_by_frame: Sequence[Sequence[Face]]) -> list[list[int]]:
    """Tell which faces belong to one person: each to whom it overlaps most of those last seen.

    Returns:
        the number of the person of every face.
    """
    last: list[tuple[int, ...]] = []  # person -> box
    numbers: list[list[int]] = []
    for faces in faces_by_frame:
        pairs = sorted(
            ((_overlap(face.box, box), i, p) for i, face in enumerate(faces) for p, box in enumerate(last)),
            key=lambda pair: (-pair[0], pair[1:]),
        )
        person_of: dict[int, int] = {}
        for overlap, i, person in pairs:
            if overlap >= OVERLAP and i not in person_of and person not in person_of.values():
                person_of[i] = person
        for i, face in enumerate(faces):
            if i not in person_of:
                person_of[i] = len(last)
                last.append(face.box)
            last[person_of[i]] = face.box
        numbers.append([person_of[i] for i in range(len(faces))])
    return numbers


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (areas - width * height)


def speaking_person(
    faces: Sequence[SeenFace], frames: np.ndarray, times: np.ndarray, loudness: Loudness
) -> tuple[int | None, dict[int, float]]:
    """Find whose mouth moves with the voice.

    Of each person who is seen twice or more: how much the picture changes from frame to frame in the lower part of the
    face, less that in the upper part (the head), over a quarter of a second; and its correlation with the loudness.

    Args:
        faces: of at least two persons.
        frames: grey, (T, H, W), many a second.
        times: (T,) seconds.
        loudness: of the sound.

    Returns:
        the person whose correlation is at least .2, and .1 above that of every other, else None; and the correlations.
    """
    if len(times) < 5 or not len(loudness.times):
        return None, {}
    step = float(np.median(np.diff(times)))
    wide = max(1, round(SMOOTH / step))
    heard = _smooth(np.interp(times[1:], loudness.times, loudness.decibels), wide)
    correlations = {}
    for person in sorted({face.person for face in faces}):
        theirs = [face for face in faces if face.person == person]
        if len(theirs) < 2:
            continue
        box = np.median([face.box for face in theirs], axis=0)
        first, last = theirs[0].time - step, theirs[-1].time + step
        inside = (times[1:] >= first) & (times[1:] <= last)
        moved = _movement(frames, box, MOUTH) - _movement(frames, box, EYES)
        moved = _smooth(moved, wide)
        if inside.sum() >= 4 and moved[inside].std() > 1e-9 and heard[inside].std() > 1e-9:
            correlations[person] = float(np.corrcoef(moved[inside], heard[inside])[0, 1])
    ranked = sorted(correlations.values(), reverse=True)
    if not ranked or ranked[0] < MOVES or (len(ranked) > 1 and ranked[0] - ranked[1] < AHEAD):
        return None, correlations
    return max(correlations, key=correlations.__getitem__), correlations


def _movement(frames: np.ndarray, box: np.ndarray, part: tuple[float, float, float, float]) -> np.ndarray:
    """Return the mean change from each frame to the next within a part of a box, (T - 1,), 0 to 255."""
    height, width = frames.shape[1:]
    left, top, right, bottom = box * (width, height, width, height)
    rows = [round(top + (bottom - top) * share) for share in part[:2]]
    columns = [round(left + (right - left) * share) for share in part[2:]]
    piece = frames[:, max(0, rows[0]) : max(rows[0] + 2, rows[1]), max(0, columns[0]) : max(columns[0] + 2, columns[1])]
    if 0 in piece.shape:
        return np.zeros(len(frames) - 1)
    changes: np.ndarray = np.abs(np.diff(piece.astype(np.int16), axis=0)).mean((1, 2))
    return changes


def _smooth(values: np.ndarray, wide: int) -> np.ndarray:
    """Average over so many neighbours; at the ends over those that there are."""
    window = np.ones(min(wide, len(values)))
    smooth: np.ndarray = np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
    return smooth


def largest_person(faces: Sequence[SeenFace]) -> int:
    """Return the person whose faces take the largest part of the frames together; the earlier one of two alike."""
    areas: dict[int, float] = {}
    for face in faces:
        left, top, right, bottom = face.box
        areas[face.person] = areas.get(face.person, 0.0) + (right - left) * (bottom - top)
    return max(sorted(areas), key=lambda person: areas[person])


def mean_expression(faces: Sequence[SeenFace]) -> dict[str, float] | None:
    """Return the mean probability of every expression; None without faces."""
    if not faces:
        return None
    return {emotion: float(np.mean([face.probabilities[emotion] for face in faces])) for emotion in EMOTIONS}


def face_sentence(faces: Sequence[SeenFace], frames: int, chosen_of: int = 1, speaking: bool = False) -> str:
    """Say in a sentence what a face shows: ``A face that turns from neutral to happy (0.80).``

    It turns where the likeliest expression of its first third is another than that of its last, both at .4 or more, and
    both of two frames or more: one frame is often misread.

    Args:
        faces: of the one person, in the order of time.
        frames: how many were looked at.
        chosen_of: how many persons are seen at once.
        speaking: whether this one was chosen by the movement of the mouth.
    """
    overall = mean_expression(faces)
    if overall is None:
        return NO_FACE
    who = "A face"
    if chosen_of > 1:
        which = "whose mouth moves with the voice" if speaking else "that is largest"
        who = f"Of {chosen_of} faces, the one {which}"
    third = len(faces) // 3
    begin, end = (_likeliest(part) for part in (faces[:third], faces[len(faces) - third :]))
    if third >= FEWEST and begin[0] != end[0] and min(begin[1], end[1]) >= SURE:
        text = f"turns from {_adjective(begin[0])} to {_adjective(end[0])} ({end[1]:.2f})"
    else:
        best, second = sorted(EMOTIONS, key=lambda emotion: -overall[emotion])[:2]
        text = f"looks {'' if overall[best] >= SURE else 'perhaps '}{_adjective(best)} ({overall[best]:.2f})"
        if overall[second] >= ALSO:
            text += f", or {_adjective(second)} ({overall[second]:.2f})"
    often = "" if len(faces) > frames / 2 else f", seen in {len(faces)} of {frames} frames"
    return f"{who}{' that' if chosen_of == 1 else ''} {text}{often}."


def _likeliest(faces: Sequence[SeenFace]) -> tuple[str, float]:
    """Return the likeliest expression over some faces and its probability; neutral at 0 without any."""
    mean = mean_expression(faces) or dict.fromkeys(EMOTIONS[::-1], 0.0)
    best = max(mean, key=mean.__getitem__)
    return best, mean[best]


def _adjective(emotion: str) -> str:
    return ADJECTIVES.get(emotion, emotion)
