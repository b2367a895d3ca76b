"""The picture of a confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from zoo.schema import Labels


def confusion_picture(
    evaluation: Mapping[str, Any], labels: Labels, path: str | PathLike[str], title: str | None = None
) -> None:
    """Write the confusion matrix as a PNG: colour = share of the true class, number = count, diagonal in bold.

    Args:
        evaluation: what `evaluate` returned.
        labels: label set of the corpus.
        path: file to write, ``.png``.
        title: first line of the picture; the corpus' name if None.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: no display, no global state
    from matplotlib.figure import Figure

    confusion = np.array(evaluation["confusion"])  # (C, C + 1)
    classes = len(labels)
    if confusion.shape != (classes, classes + 1):
        expected = f"{(classes, classes + 1)} for {labels.corpus}"
        raise ValueError(f"expected a confusion of shape {expected}, got {confusion.shape}")
    support = confusion.sum(1, keepdims=True)
    share = np.divide(confusion, support, out=np.zeros(confusion.shape), where=support > 0)
    unparsed = bool(confusion[:, -1].any())

    cell = 0.62 if classes <= 12 else 0.42  # inches
    side = cell * classes
    left, right, top, bottom = 1.75, 1.15 + 1.35 * cell * unparsed, 0.95, 1.45  # room for words; the file is cropped
    width, height = left + side + right, top + side + bottom
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)

    def panel(values: np.ndarray, counts: np.ndarray, x: float, columns: Sequence[str], cmap: str) -> Any:
        axes = figure.add_axes((x / width, bottom / height, cell * values.shape[1] / width, side / height))
        image = axes.imshow(values, cmap=cmap, vmin=0, vmax=1, aspect="auto")
        for (i, j), count in np.ndenumerate(counts):
            axes.text(
                j,
                i,
                f"{count}",
                ha="center",
                va="center",
                fontsize=9 if classes <= 12 else 6,
                fontweight="bold" if i == j and len(columns) > 1 else "normal",
                color="white" if values[i, j] > 0.5 else "#1f2933" if count else "#b8c2cc",
            )
        axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks([])
        axes.set_xticks(np.arange(1, len(columns)) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, classes) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5, solid_capstyle="projecting", clip_on=False)
        axes.tick_params(which="both", length=0, labelsize=9.5, labelcolor="#1f2933")
        axes.spines[:].set_visible(False)
        return axes, image

    axes, image = panel(share[:, :-1], confusion[:, :-1], left, labels.names, "Blues")
    axes.set_yticks(range(classes), [f"{name}  {n}" for name, n in zip(labels.names, support[:, 0], strict=True)])
    axes.set_ylabel("truth (number of samples)", fontsize=9.5, color="#52606d")
    axes.set_xlabel("answer", fontsize=9.5, color="#52606d")
    end = left + side
    if unparsed:
        panel(share[:, -1:], confusion[:, -1:], end + 0.35 * cell, ("unparsed",), "Oranges")
        end += 1.35 * cell
    bar = figure.add_axes(((end + 0.25) / width, bottom / height, 0.12 / width, side / height))
    figure.colorbar(image, cax=bar, ticks=[0, 0.5, 1]).outline.set_visible(False)
    bar.tick_params(length=0, labelsize=8.5, labelcolor="#52606d")
    bar.set_ylabel("share of the true class", fontsize=8.5, color="#52606d")

    line = "   ".join(
        f"{name} {evaluation[metric]:.3f}"
        for metric, name in (("weighted_f1", "weighted F1"), ("uar", "UAR"), ("accuracy", "accuracy"))
    )
    line += f"   unparsed {evaluation['unparsed']:.1%}" if unparsed else ""
    line += f"   n {evaluation['n']}"
    x, dark, grey = 0.55 / width, "#1f2933", "#52606d"
    figure.text(x, 1 - 0.2 / height, title or labels.corpus, fontsize=12.5, fontweight="bold", va="top", color=dark)
    figure.text(x, 1 - 0.5 / height, line, fontsize=9, va="top", color=grey)
    figure.savefig(path, format="png", bbox_inches="tight", pad_inches=0.15)
