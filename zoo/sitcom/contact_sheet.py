"""A picture of a few dialogues of the sitcom: frames, waveforms, texts, hidden truth and exact posteriors."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.media import read_frames, read_waveform
from zoo.schema import Split
from zoo.sitcom import voices
from zoo.sitcom.cues import LABELS
from zoo.sitcom.posteriors import posterior
from zoo.sitcom.release import CLIP_FOLDERS
from zoo.sitcom.settings import Dialogue

COLOURS = dict(zip(LABELS, ("#7f7f7f", "#e6a000", "#7b4fa3", "#3b6fb6", "#3a9d4a", "#8a7a1f", "#c8372d"), strict=True))
MOMENTS = 4  # pictures per utterance


def contact_sheet(root: Path, dialogues: Sequence[Dialogue], split: Split, path: Path) -> None:
    """Draw the dialogues from their clips in ``root``, a row per utterance, and writes ``path`` (PNG).

    A row shows frames of the clip, the waveform (first two seconds), the text with both descriptions, the truth, and
    the exact posterior of each modality as bars in the colours of the labels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [(d, u) for d in dialogues for u in d.utterances]
    figure = Figure(figsize=(17, 1.25 * len(rows) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), 5, width_ratios=(4.2, 2.2, 6, 2.9, 2.6), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for (dialogue, u), (picture, sound, words, truth, bars) in zip(rows, grid, strict=True):
        clip = root / CLIP_FOLDERS[split] / f"{u.id}.mp4"
        picture.imshow(np.concatenate(list(read_frames(clip, n=MOMENTS).transpose(0, 2, 3, 1)), axis=1))
        wave = read_waveform(clip)[: 2 * voices.RATE]
        sound.plot(np.arange(len(wave)) / voices.RATE, wave, linewidth=0.4, color="#444444")
        sound.set(xlim=(0, 2), ylim=(-0.6, 0.6))

        first = u is dialogue.utterances[0]
        place = f"[{dialogue.id}: {dialogue.place.wall} wall, {dialogue.place.object} on the {dialogue.place.place}]\n"
        spoken = textwrap.fill(f"{u.speaker}: {u.text}", 78)
        described = textwrap.fill(f"({u.descriptions['audio']} {u.descriptions['video']})", 92)
        words.text(0, 0.95, (place if first else "") + spoken, va="top", fontsize=9, transform=words.transAxes)
        words.text(0, 0.02, described, va="bottom", fontsize=7, color="#666666", transform=words.transAxes)

        t = u.truth
        hidden = (
            f"text {t.text_mode}\nface {t.face_state}: {t.face_shown}\nvoice {t.voice_state}: {t.voice_shown}\n"
            f"descriptions {t.description_state}, {t.effect}"
        )
        truth.text(
            0, 0.95, u.label, va="top", fontsize=11, weight="bold", color=COLOURS[u.label], transform=truth.transAxes
        )
        truth.text(0, 0.02, hidden, va="bottom", fontsize=7, color="#444444", transform=truth.transAxes)

        modalities = ("text", "face", "voice", "descriptions")
        for y, modality in enumerate(modalities):
            left = 0.0
            for label, p in zip(LABELS, posterior(u, (modality,)), strict=True):
                bars.barh(-y, p, left=left, height=0.8, color=COLOURS[label])
                left += p
            bars.text(-0.02, -y, modality, ha="right", va="center", fontsize=6)
        bars.set_xlim(-0.45, 1)
    for i, (label, colour) in enumerate(COLOURS.items()):
        figure.text(0.02 + 0.07 * i, 0.06 / figure.get_figheight(), label, color=colour, fontsize=9)
    layout: Any = figure.get_layout_engine()
    layout.set(rect=(0, 0.3 / figure.get_figheight(), 1, 1 - 0.3 / figure.get_figheight()))
    figure.savefig(path, dpi=90)
