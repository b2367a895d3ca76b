"""What a description was made from, as a picture: frames with faces, expressions over time, loudness with the voice."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from zoo.models.emotion_qwen.face_types import EMOTIONS
from zoo.prepare.describe.describer import ClipDescriber, ClipDescription
from zoo.schema import Turn
from zoo.storage import write_whole

COLOURS = dict(
    zip(EMOTIONS, ("#c8372d", "#8a7a1f", "#7b4fa3", "#3a9d4a", "#3b6fb6", "#e6a000", "#7f7f7f"), strict=True)
)
SHOWN = 6  # frames, evenly spaced
CHOSEN, OTHER = "#ff2fa0", "#b0b0b0"  # boxes


def write_picture(path: Path, describer: ClipDescriber, turn: Turn, description: ClipDescription) -> None:
    """Draw a description beside what it was made from, and write it (PNG).

    The frames with the boxes of the faces, that of the described one in pink with its likeliest expression; the
    probabilities of all expressions over time; the loudness, with what counts as voice shaded. The same description
    gives the same bytes with one version of matplotlib.

    Args:
        describer: which made the description; the frames are read again.
        turn: what was described.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: no display, no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7))
    FigureCanvasAgg(figure)
    text = [textwrap.fill(line, 150) for line in (description.video, description.audio)]
    figure.text(0.01, 0.99, "\n".join(text), fontsize=10, va="top")
    _draw_frames(figure, describer, turn, description)
    curves = figure.add_axes(
        (0.06, 0.34, 0.93, 0.2)
    )  # left, bottom, width, height; a layout engine is ten times slower
    sound = figure.add_axes((0.06, 0.08, 0.93, 0.22), sharex=curves)
    _draw_expressions(curves, description)
    _draw_loudness(sound, description)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80, metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, file.getvalue())


def _draw_frames(figure: Any, describer: ClipDescriber, turn: Turn, description: ClipDescription) -> None:
    if description.scene is None:
        figure.text(0.5, 0.7, "no picture", ha="center")
        return
    pixels = describer.read_frames(turn)[0]
    indices = np.unique(np.linspace(0, len(pixels) - 1, min(SHOWN, len(pixels))).round().astype(int))
    height, width = pixels.shape[2:]
    for place, i in enumerate(indices):
        axes = figure.add_axes((0.01 + 0.98 * place / len(indices), 0.58, 0.96 / len(indices), 0.3))
        time = description.frame_times[i]
        axes.imshow(pixels[i].transpose(1, 2, 0))
        axes.axis("off")
        title = f"{time:.2f} s"
        for face in (face for face in description.faces if face.time == time):
            left, top, right, bottom = np.multiply(face.box, (width, height, width, height)) - 0.5
            colour = CHOSEN if face.described else OTHER
            axes.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color=colour, linewidth=1.5)
            if face.described:
                best = max(EMOTIONS, key=face.probabilities.__getitem__)
                title += f": {best} {face.probabilities[best]:.2f}"
        axes.set_title(title, fontsize=9)


def _draw_expressions(axes: Any, description: ClipDescription) -> None:
    faces = [face for face in description.faces if face.described]
    for emotion in EMOTIONS if faces else ():
        values = [face.probabilities[emotion] for face in faces]
        axes.plot([face.time for face in faces], values, "o-", markersize=3, color=COLOURS[emotion], label=emotion)
    for cut in description.scene.cuts if description.scene else ():
        axes.axvline(cut, color="black", linestyle=":")
    if faces:
        axes.legend(loc="upper right", ncols=7, fontsize=7)
    else:
        axes.text(0.5, 0.5, "no face", transform=axes.transAxes, ha="center")
    axes.set(ylim=(0, 1.15), ylabel="probability")


def _draw_loudness(axes: Any, description: ClipDescription) -> None:
    axes.set(xlabel="seconds; dotted: a cut; shaded: voice", ylabel="loudness, dB")
    if description.loudness is None:
        axes.text(0.5, 0.5, "no sound", transform=axes.transAxes, ha="center")
        return
    axes.plot(*description.loudness, color="#3b6fb6", linewidth=1)
    axes.set_ylim(20, max(60.0, *description.loudness.decibels + 3))  # below it is silence
    for start, end in description.speech:
        axes.axvspan(start, end, color="#3a9d4a", alpha=0.25, linewidth=0)
