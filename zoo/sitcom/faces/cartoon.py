"""The moving parts of a face as ``wild`` draws them: ink lines, round eyes with heavy lids."""

from __future__ import annotations

import numpy as np

from zoo.sitcom.faces.expression import Motion, Pose
from zoo.sitcom.faces.painting import Area, coverage, mix, mouth_line, stroke
from zoo.sitcom.faces.people import INK, WILD_SKINS, Looks


def paint_cartoon(canvas: np.ndarray, motion: Motion, pose: Pose, person: Looks, glasses: bool) -> None:
    skin = np.array(WILD_SKINS[person.skin], dtype=np.float32)
    lid, ink = skin * np.float32(0.74), np.array(INK, dtype=np.float32)

    # nose: a hook whose wings flare, ink wrinkles, folds
    area = Area(canvas, motion, (-20, 20, -8, 23))
    u, v = area.u, area.v
    a = np.abs(u)
    tip, wing = 10.5 - 2.4 * pose.nose, 4.6 + 1.4 * pose.nose
    ball = np.sqrt((u / wing) ** 2 + ((v - tip) / 3.6) ** 2)
    area.paint(coverage((ball - 1) * 3.6), mix(skin, (255, 120, 110), 0.35))
    area.paint(stroke((ball - 1) * 3.6, 0.7), ink)
    for level in (-1.0, 2.2):
        chevron = v - (level - 3.2 - 1.2 * pose.nose) + 0.35 * a
        area.paint(stroke(chevron, 0.7) * coverage(a - 4.2) * np.clip(0.9 * pose.wrinkle, 0, 1), ink)
    fold_end = 12.5 + 3.6 * pose.mouth_width
    along = np.clip((v - tip + 1) / (19 - 3.0 * pose.mouth_curve - tip), 0, 1)
    fold = wing + 1.8 + (fold_end - wing) * along * along * 0.8
    inside = coverage(tip - 1.5 - v) * coverage(v - 19 + 3.0 * pose.mouth_curve)
    area.paint(
        stroke((a - fold) * 0.8, 0.75) * inside * np.clip(0.05 + 0.6 * pose.wrinkle + 0.2 * pose.smile, 0, 1), ink
    )

    # eyes: balls with flat lids; brows: bars
    area = Area(canvas, motion, (-22, 22, -28, 8))
    u, v = area.u, area.v
    a = np.abs(u)
    radius = 7.6 + 0.9 * pose.lids
    ball = np.sqrt((a - 10.2) ** 2 + (v + 3.4) ** 2) - radius
    inside = coverage(ball)
    area.paint(inside, lid)
    open_ = 1 - 0.96 * pose.blink
    top, low = -3.4 - (4.6 + 2.6 * pose.lids) * open_, -3.4 + (4.4 + 1.5 * pose.lids) * open_
    white = inside * coverage(top - v) * coverage(v - low)
    area.paint(white, (255, 255, 250))
    iris = np.sqrt((a - 9.6) ** 2 + ((v + 3.4 + 3.4 * pose.gaze) / 1.15) ** 2)
    area.paint(white * coverage(iris - 2.7), ink)
    area.paint(inside * stroke(v - top, 0.7), ink)
    area.paint(inside * stroke(v - low, 0.45), ink)
    area.paint(stroke(ball, 0.6), ink)
    x = (a - 11.0) / 8.0
    level = -17.0 - 4.3 * pose.brow_raise + 3.9 * pose.brow_slant * x
    steep = np.sqrt(1 + (0.49 * pose.brow_slant) ** 2)
    bar = np.maximum(np.abs((v - level) / steep) - person.brow - 0.3, np.abs(x) * 8.0 - 7.8)
    area.paint(coverage(bar), mix(person.hair, ink, 0.75))
    area.paint(stroke(a - 2.6, 0.6) * coverage(np.abs(v + 14) - 3) * np.clip(0.8 * pose.furrow, 0, 1), ink)
    if glasses:
        rim = np.maximum(np.abs(a - 10.6) - 9.6, np.abs(v + 3) - 8.8)
        area.paint(stroke(rim, 0.7) * 0.85, (190, 40, 60))
        area.paint(stroke(v + 4, 0.7) * coverage(a - 1.2), (190, 40, 60))

    # mouth: an ink line around a dark hole
    area = Area(canvas, motion, (-20, 20, 9, 35))
    u, v = area.u, area.v
    mouth = mouth_line(pose, u)
    half, q, middle = mouth.half, mouth.q, mouth.middle
    raised = 1.5 * pose.wrinkle * q
    top, low = middle - 0.25 * pose.gap * q - raised, middle + 0.75 * pose.gap * q - 0.3 * raised
    slope = mouth.slope
    pressed = 1 / (1 + np.exp(-2.0 * (pose.mouth_open + 0.75)))
    edge = 0.45 + 1.25 * pressed  # a pressed mouth is a thin line
    ends = coverage(np.abs(u) - half - 0.8)
    area.paint(coverage((top - v) / slope - edge) * coverage((v - low) / slope - edge) * ends, ink)
    gap = coverage((top - v) / slope + 0.2) * coverage((v - low) / slope + 0.2) * coverage(np.abs(u) - half)
    area.paint(gap, (150, 30, 44))
    area.paint(gap * coverage(v - top - 0.38 * (low - top)), (252, 250, 236))
    area.paint(stroke(v - low - edge * 2 - 3, 0.5) * coverage(np.abs(u) - 0.3 * half) * 0.6, ink)
