"""The moving parts of a face as ``studio`` draws them: shaded skin, lips and eyes."""

from __future__ import annotations

import numpy as np

from zoo.sitcom.faces.expression import Motion, Pose
from zoo.sitcom.faces.painting import Area, coverage, mix, mouth_line, stroke
from zoo.sitcom.faces.people import STUDIO_SKINS, Looks


def paint_face(canvas: np.ndarray, motion: Motion, pose: Pose, person: Looks, glasses: bool) -> None:
    skin = np.array(STUDIO_SKINS[person.skin], dtype=np.float32)
    shade, line = skin * np.float32(0.78), skin * np.float32(0.52)

    # cheeks and nose
    area = Area(canvas, motion, (-22, 22, -8, 23))
    u, v = area.u, area.v
    a = np.abs(u)
    cheek = np.sqrt(((a - 15.5) / 6.5) ** 2 + ((v - 11 + 1.5 * pose.smile) / 4.5) ** 2)
    area.paint(np.clip(1.1 - cheek, 0, 1) * (0.16 + 0.20 * pose.smile), mix(skin, (236, 92, 92), 0.6))
    tip, wing = 10.5 - 2.4 * pose.nose, 5.0 + 1.3 * pose.nose
    fold_end = 12.5 + 3.6 * pose.mouth_width
    along = np.clip((v - tip + 1.5) / (19.5 - 3.0 * pose.mouth_curve - tip), 0, 1)
    fold = wing + 1.2 + (fold_end - wing) * along * (2 - along) * 0.9
    inside = coverage(tip - 2 - v) * coverage(v - 19.5 + 3.0 * pose.mouth_curve)
    deep = np.clip(0.03 + 0.55 * pose.wrinkle + 0.22 * pose.smile, 0, 0.95)
    area.paint(stroke((a - fold) * 0.8, 0.85) * inside * deep, line)
    area.paint(stroke(u - 2.2 - 0.16 * (v + 6), 0.9) * coverage(-4 - v) * coverage(v - tip + 2) * 0.45, shade)
    ball = np.sqrt((u / wing) ** 2 + ((v - tip) / 3.3) ** 2)
    area.paint(coverage((ball - 1) * 3.3) * 0.75, mix(skin, (214, 120, 100), 0.28))
    area.paint(stroke((ball - 1) * 3.6, 0.75) * coverage(tip - 0.6 - v), line)
    hole = np.sqrt(((a - 0.5 * wing) / 1.5) ** 2 + ((v - tip - 1.6) / 1.0) ** 2)
    area.paint(coverage((hole - 1) * 1.1) * 0.85, line * np.float32(0.7))
    for i, level in enumerate((0.5, 3.0, 5.5)):  # wrinkles across the bridge
        chevron = v - (level - 4.5 - 1.2 * pose.nose) - 0.28 * a
        area.paint(stroke(chevron, 0.6) * coverage(a - (4.6 - 0.5 * i)) * np.clip(0.8 * pose.wrinkle, 0, 0.9), line)

    # eyes and brows
    area = Area(canvas, motion, (-23, 23, -28, 6))
    u, v = area.u, area.v
    a = np.abs(u)
    x = (a - 11.6) / 8.4
    bow = np.clip(1 - x * x, 0, 1)
    slope = np.sqrt(1 + x * x)
    open_ = 1 - 0.94 * pose.blink
    up, down = (4.8 + 2.5 * pose.lids) * open_, (3.3 + 1.3 * pose.lids) * open_
    top, low = -3.6 - up * bow, -3.6 + down * bow
    white = np.clip(coverage((top - v) / slope) * coverage((v - low) / slope) * coverage(np.abs(x * 8.4) - 8.4), 0, 1)
    area.paint(coverage((np.sqrt(x * x + ((v + 4.2) / 9.5) ** 2) - 1) * 8.4) * 0.35, shade)  # the socket
    area.paint(white, (250, 248, 244))
    iy = -3.8 - 3.3 * pose.gaze
    r = np.sqrt((a - 11.4) ** 2 + (v - iy) ** 2)
    area.paint(white * coverage(r - 4.3), person.eyes)
    area.paint(white * coverage(r - 2.2), (16, 12, 14))
    area.paint(
        white * coverage(np.sqrt((u - np.sign(u) * 11.4 + 1.4) ** 2 + (v - iy + 1.5) ** 2) - 1.0) * 0.9, (255,) * 3
    )
    ends = coverage(np.abs(x * 8.4) - 8.8)
    area.paint(stroke((v - top + 0.3) / slope, 1.0) * ends, (40, 28, 28))
    area.paint(stroke((v - low) / slope, 0.5) * ends * 0.7, line)
    area.paint(stroke((v - top + 2.8) / slope, 0.5) * ends * 0.55, line)  # the crease above the lid
    level = -16.2 - 4.4 * pose.brow_raise + 3.7 * pose.brow_slant * x
    between = np.abs(u) - 3.2 + 0.8 * pose.furrow
    area.paint(stroke(between, 0.6) * coverage(np.abs(v + 13.5) - 3.5) * np.clip(0.75 * pose.furrow, 0, 0.9), line)
    for lift in (3.9, 6.2):
        crease = v + 16.2 + 4.4 * pose.brow_raise + lift - 0.018 * (a - 12) ** 2
        below_hair = np.clip((v + 26) / 2, 0, 1)
        area.paint(stroke(crease, 0.5) * coverage(a - 14) * below_hair * np.clip(0.5 * pose.crease, 0, 0.7), line)
    beside = np.maximum(np.abs(x) * 8.4 - 8.2, 0)
    across = (v - level - 1.3 * x * x) / np.sqrt(1 + (0.44 * pose.brow_slant) ** 2)
    thick = person.brow * (1.05 - 0.28 * np.clip(x, -1, 1))
    area.paint(coverage(np.sqrt(beside * beside + across * across) - thick), mix(person.hair, (20, 14, 12), 0.35))
    if glasses:
        across, along = ((a - 11.7) / 10.2) ** 2, ((v + 3.4) / 8.6) ** 2
        rim = (np.sqrt(np.sqrt(across * across + along * along)) - 1) * 8.6  # squarer than an ellipse
        area.paint(stroke(rim, 0.6) * 0.9, (52, 40, 44))
        area.paint(stroke(v + 5, 0.6) * coverage(a - 1.8), (52, 40, 44))

    # mouth
    area = Area(canvas, motion, (-20, 20, 9, 35))
    u, v = area.u, area.v
    mouth = mouth_line(pose, u)
    half, q, bend, middle = mouth.half, mouth.q, mouth.bend, mouth.middle
    raised = 1.3 * pose.wrinkle * q  # disgust lifts the upper lip
    top, low = middle - 0.25 * pose.gap * q - raised, middle + 0.75 * pose.gap * q - 0.45 * raised
    slope = mouth.slope
    full = 1 / (1 + np.exp(-2.0 * (pose.mouth_open + 0.75)))  # pressed lips are thin
    upper, lower = (0.2 + 2.7 * full) * q, (0.2 + 3.5 * full) * q
    ends = coverage(np.abs(u) - half)
    lips = coverage((top - upper - v) / slope) * coverage((v - low - lower) / slope) * ends
    area.paint(lips, mix(skin, (176, 44, 60), 0.55))
    gap = coverage((top - v) / slope) * coverage((v - low) / slope) * ends
    area.paint(gap, (78, 18, 26))
    area.paint(gap * coverage(v - top - np.minimum(0.42 * (low - top), 3.2)), (246, 244, 238))
    tongue = np.sqrt((u / (0.62 * half)) ** 2 + ((v - low - 0.5) / (0.1 + 0.5 * pose.gap)) ** 2)
    area.paint(gap * coverage((tongue - 1) * 3), (206, 92, 98))
    area.paint(
        stroke((v - 0.5 * (top + low)) / slope, 0.5)
        * coverage(np.abs(u) - half - 0.6)
        * np.clip(1 - 0.5 * (low - top), 0, 1),
        (84, 24, 30),
    )
    corner = np.sqrt((np.abs(u) - half) ** 2 + (v - 19.6 + 0.62 * bend) ** 2)
    area.paint(coverage(corner - 1.1) * 0.8, line)
    area.paint(np.clip(1 - np.abs(v - low - lower - 2.6) / 1.6, 0, 1) * coverage(np.abs(u) - 0.5 * half) * 0.35, shade)
