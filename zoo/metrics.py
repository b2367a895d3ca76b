"""The metrics every system is judged by: accuracy, weighted and macro F1, UAR, the unparsed rate, and their intervals.

All of them are functions of one confusion matrix of shape (C, C + 1): rows are the truth, columns the answer, the last
column holds the unparsed answers. An unparsed answer is wrong for every class and is never a class of its own:

- accuracy: share of right answers over all samples.
- weighted_f1: F1 of each class weighted by how often it occurs in the truth.
- macro_f1: plain mean of F1 over the classes that occur in the truth or among the answers (scikit-learn's default set).
- uar: plain mean of recall over the classes that occur in the truth (unweighted average recall, balanced accuracy).
- war ("weighted average recall", as corpora of faces call it) is accuracy, see `war_uar`.
- unparsed: share of samples without a readable answer.

An F1 or recall with nothing to divide by is 0, as scikit-learn's ``zero_division=0``. Everything is in 0..1.

Free answers (EMER) are compared with a reference text by exact words, see `reason_overlap`.

Intervals are 95 % percentile bootstrap intervals over dialogues, not utterances: utterances of one dialogue are not
independent. They hold the trained weights fixed; they say nothing about how another training seed would do.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from zoo.schema import UNPARSED, Labels
from zoo.storage import split_lines

HEADLINE = ("accuracy", "weighted_f1", "macro_f1", "uar")
Row = Mapping[str, Any]  # a row of predictions.jsonl, see zoo.schema.Prediction


def scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of one confusion matrix, or of a stack of them.

    Args:
        confusion: counts (..., C, C + 1), last column = unparsed; at least one sample in each matrix.

    Returns:
        accuracy, weighted_f1, macro_f1, uar, unparsed of shape (...) and f1, recall, support of shape (..., C).
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    right = np.diagonal(confusion, axis1=-2, axis2=-1)  # (..., C); the unparsed column is off the diagonal
    support = confusion.sum(-1)  # (..., C)
    answered = confusion[..., :-1].sum(-2)  # (..., C)
    n = support.sum(-1)
    occurs = support + answered > 0
    f1 = np.divide(2 * right, support + answered, out=np.zeros_like(right), where=occurs)
    recall = np.divide(right, support, out=np.zeros_like(right), where=support > 0)
    return {
        "accuracy": right.sum(-1) / n,
        "weighted_f1": (f1 * support).sum(-1) / n,
        "macro_f1": f1.sum(-1) / occurs.sum(-1),  # F1 is 0 where the class does not occur
        "uar": recall.sum(-1) / (support > 0).sum(-1),
        "unparsed": confusion[..., -1].sum(-1) / n,
        "f1": f1,
        "recall": recall,
        "support": support,
    }


class EmotionMetrics(MulticlassConfusionMatrix):
    """The metrics of one corpus over an epoch; being a torchmetrics metric, it sums over processes before it computes.

    Args:
        labels: label set of the corpus.
    """

    def __init__(self, labels: Labels) -> None:
        super().__init__(num_classes=len(labels) + 1, validate_args=False)  # + 1: unparsed; checked in update instead
        self.labels = labels

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Counts a batch.

        Args:
            predicted: (B,) integer label indices, -1 = unparsed.
            target: (B,) integer label indices.

        Raises:
            ValueError: shapes differ, not integers, or an index out of range.
        """
        classes = len(self.labels)
        if predicted.shape != target.shape or predicted.ndim != 1:
            shapes = f"{tuple(predicted.shape)} and {tuple(target.shape)}"
            raise ValueError(f"expected predicted and target of one shape (B,), got {shapes}")
        for name, values, lowest in (("predicted", predicted, UNPARSED), ("target", target, 0)):
            if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
                raise ValueError(f"{name} must hold integer label indices, got {values.dtype}")
            wrong = values[(values < lowest) | (values >= classes)]
            if len(wrong):
                expected = f"{lowest}..{classes - 1} for {self.labels.corpus}"
                raise ValueError(f"{name} must lie in {expected}, got {wrong[0].item()}")
        if len(target):
            super().update(torch.where(predicted == UNPARSED, classes, predicted), target)

    def compute(self) -> dict[str, float]:
        """accuracy, weighted_f1, macro_f1, uar, unparsed, and f1/<label>, recall/<label> for every label.

        Raises:
            ValueError: nothing was counted.
        """
        confusion = super().compute()[:-1].cpu().numpy()  # (C, C + 1): no sample has the truth "unparsed"
        if not confusion.any():
            raise ValueError("no metrics without samples: compute() was called before any update()")
        result = scores(confusion)
        per_class = {
            f"{metric}/{name}": float(value)
            for metric in ("f1", "recall")
            for name, value in zip(self.labels.names, result[metric], strict=True)
        }
        return {metric: float(result[metric]) for metric in (*HEADLINE, "unparsed")} | per_class


def evaluate(rows: Sequence[Row], labels: Labels, *, draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Everything a report says about one set of predictions, JSON-ready.

    Args:
        rows: predictions: ``id``, ``dialogue``, ``label`` (a word) and ``predicted`` (a word, or None = unparsed).
        labels: label set of the corpus.
        draws: bootstrap resamples.
        seed: of the resampling.

    Returns:
        n, dialogues, accuracy, weighted_f1, macro_f1, uar, unparsed; per_class {label: F1}, per_class_recall, support;
        confusion, C rows of C + 1 counts, the last one unparsed; ci95 {metric: [low, high]} of the first four metrics.
        A single dialogue gives intervals of no width.

    Raises:
        ValueError: no rows, a repeated id, a row without label, or a word that is not a label.
    """
    per_dialogue = _count(rows, labels)
    confusion = per_dialogue.sum(0)
    result = scores(confusion)
    drawn = _bootstrap(per_dialogue[None], draws, seed)
    return {
        "n": int(confusion.sum()),
        "dialogues": len(per_dialogue),
        **{metric: float(result[metric]) for metric in (*HEADLINE, "unparsed")},
        "per_class": dict(zip(labels.names, result["f1"].tolist(), strict=True)),
        "per_class_recall": dict(zip(labels.names, result["recall"].tolist(), strict=True)),
        "support": dict(zip(labels.names, result["support"].astype(int).tolist(), strict=True)),
        "confusion": confusion.tolist(),
        "ci95": {metric: _interval(drawn[metric][0]) for metric in HEADLINE},
    }


def paired_difference(
    runs_a: Sequence[Sequence[Row]],
    runs_b: Sequence[Sequence[Row]],
    labels: Labels,
    metric: str = "weighted_f1",
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """How much better a is than b on the same samples: every resample of dialogues is given to both.

    Args:
        runs_a, runs_b: predictions of two systems, a list per training seed (``[rows]`` for a single run); their means
            over seeds are compared.
        metric: accuracy, weighted_f1, macro_f1, uar or unparsed.

    Returns:
        difference (a - b), its ci95 [low, high], and p: two-sided, twice the share of resamples on the other side of 0
        (counted with one more, so it is never 0; 1 at most).

    Raises:
        ValueError: no runs, or they do not hold the same samples with the same labels, or what `evaluate` raises.
    """
    if not runs_a or not runs_b:
        raise ValueError("expected the predictions of at least one run of each system")
    counts, k = _count_together([*runs_a, *runs_b], labels), len(runs_a)
    values = scores(counts.sum(1))[_known(metric)]
    drawn = _bootstrap(counts, draws, seed)[metric]
    difference = float(values[:k].mean() - values[k:].mean())
    resampled = drawn[:k].mean(0) - drawn[k:].mean(0)
    beyond = min((resampled <= 0).sum(), (resampled >= 0).sum())
    p = min(1.0, 2 * (int(beyond) + 1) / (draws + 1))
    return {"difference": difference, "ci95": _interval(resampled), "p": p}


def mean_over_seeds(
    runs: Sequence[Sequence[Row]], labels: Labels, metric: str = "weighted_f1", draws: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Mean of a metric over runs that differ in their training seed only.

    Each draw resamples the dialogues once for all runs, so the interval is that of the mean over *these* runs: it
    covers the choice of dialogues, not the spread over training seeds (`values` shows that one).

    Args:
        runs: predictions of each run on the same samples.
        metric: accuracy, weighted_f1, macro_f1, uar or unparsed.

    Returns:
        mean, ci95 [low, high], and values, one per run.

    Raises:
        ValueError: no runs, or the runs do not hold the same samples, or what `evaluate` raises.
    """
    if not runs:
        raise ValueError("expected the predictions of at least one run, got none")
    counts = _count_together(runs, labels)
    values = scores(counts.sum(1))[_known(metric)]
    drawn = _bootstrap(counts, draws, seed)[metric]
    return {"mean": float(values.mean()), "ci95": _interval(drawn.mean(0)), "values": values.tolist()}


def war_uar(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """WAR and UAR, as corpora of faces (DFEW) report them, from what `evaluate` returned.

    Both are over the classes of the truth. A published UAR of exactly half the WAR is the recall of "right or wrong"
    with "wrong" as a class that never occurs, and no UAR.
    """
    return {"war": evaluation["accuracy"], "uar": evaluation["uar"]}


# ---- free answers against a reference explanation
FUNCTION_WORDS = frozenset(
    """
    a an the and or but nor so if as than then that this these those there here it its he him his she her hers they them
    their we us our you your i me my who whom whose which what when where while how why of in on at by for from to into
    with without about over under between through during after before up down out off is are was were be been being am
    do does did has have had will would can could may might shall should must not no also very more most some any all
    both each other such only just too
    """.split()  # noqa: SIM905
)
# An emotion's word and its other forms. No synonyms: who says "joy" for "happy" shares no label.
_FORMS = """
    happy happily happiness, joy joyful joyfully joyous, delighted delight delightful, pleased pleasure,
    cheerful cheerfully cheerfulness, excited excitedly excitement, satisfied satisfaction, proud proudly pride,
    grateful gratefully gratitude, hopeful hopefully hope, relieved relief, relaxed relaxation, calm calmly calmness,
    neutral neutrally, surprised surprise surprising surprisingly, astonished astonishment, curious curiously curiosity,
    confused confusion, doubtful doubtfully doubt doubts, shy shyly shyness, embarrassed embarrassment, ashamed shame,
    guilty guilt, regretful regret, sad sadly sadness, sorrowful sorrow, grieving grief, lonely loneliness,
    helpless helplessly helplessness, disappointed disappointment, dissatisfied dissatisfaction,
    frustrated frustration, impatient impatiently impatience, angry angrily anger, furious furiously fury,
    annoyed annoyance, resentful resentment, disgusted disgust, contemptuous contempt, jealous jealousy,
    worried worry, anxious anxiously anxiety, nervous nervously nervousness, tense tension, fearful fear, afraid,
    scared, panicked panic, desperate despair desperation
"""
EMOTION_WORDS = {words.split()[0]: frozenset(words.split()) for words in _FORMS.split(",")}


def clues(text: str) -> set[str]:
    """The different words of a text, lower case, without FUNCTION_WORDS. A word is a run of letters, with apostrophes
    inside (``don't``); numbers and punctuation are none."""
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text.lower().replace("’", "'"))
    return set(words) - FUNCTION_WORDS


def emotions(text: str) -> set[str]:
    """The emotions of EMOTION_WORDS that a text names, by exact words. Who feels them, and "not angry", are not
    understood."""
    found = clues(text)
    return {word for word, forms in EMOTION_WORDS.items() if forms & found}


def overlap(reference: Collection[str], answer: Collection[str]) -> dict[str, float]:
    """How much of two sets is shared: precision (of the answer), recall (of the reference), F1; 0 where there is
    nothing to divide by. Exchanging the two exchanges precision and recall."""
    reference, answer = set(reference), set(answer)
    both = len(reference & answer)
    precision = both / len(answer) if answer else 0.0
    recall = both / len(reference) if reference else 0.0
    return {"precision": precision, "recall": recall, "f1": 2 * both / (len(reference) + len(answer)) if both else 0.0}


class Judge(Protocol):
    """Whoever scores an answer against a reference: usually a language model behind a service of yours.

    Attributes:
        name: of the scores, e.g. ``"gpt-3.5-turbo-16k, clue overlap, prompt 2"``. Scores of judges with different names
            are never the same metric.
    """

    name: str

    def __call__(self, reference: str, answer: str) -> float: ...


class CachedJudge:
    """Asks a judge once per (judge, reference, answer); the scores are kept in a JSON-lines file.

    A row holds the judge's name, a hash of the two texts and the score; no text, as a corpus may not be passed on. An
    unfinished last row, as an interrupted run leaves it, is asked again.

    Args:
        judge: any `Judge`.
        path: the file; made when first needed.
    """

    def __init__(self, judge: Judge, path: str | PathLike[str]) -> None:
        self.judge, self.name, self.path = judge, judge.name, Path(path)
        self.asked = 0  # questions that the file had no answer to
        self._known: dict[str, float] = {}
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        for number, line in enumerate(split_lines(whole), 1):
            try:
                row = json.loads(line)
                if row["judge"] == self.name:
                    self._known[row["texts"]] = float(row["score"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.path} line {number} is no row of this cache ({error}); expected "
                    '{"judge": ..., "texts": ..., "score": ...}. Delete the line, or the file'
                ) from None
        if whole != text:
            self.path.write_text(whole, encoding="utf-8")

    def __call__(self, reference: str, answer: str) -> float:
        texts = hashlib.sha256(json.dumps([reference, answer]).encode()).hexdigest()
        if texts not in self._known:
            score = float(self.judge(reference, answer))
            if not math.isfinite(score):
                raise ValueError(f"the judge {self.name} gave {score}; expected a finite number")
            self.asked += 1
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"judge": self.name, "texts": texts, "score": score}) + "\n")
            self._known[texts] = score
        return self._known[texts]


def reason_overlap(
    rows: Sequence[Row], reasons: Mapping[str, str], judges: Sequence[Judge] = ()
) -> dict[str, float | int]:
    """Free answers against reference explanations (EMER), means over samples.

    Exact words, our own definition; EMER's published clue and label overlap are scores a language model gives from 0 to
    10, and cannot be compared with these.

    - clue_overlap: of all words but function words (`clues`), over all samples.
    - label_overlap: of the emotions named (`emotions`), over the samples whose reference names one.
    - judge/NAME: mean score of each judge, on its own scale.

    A sample without an answer has an empty one: it counts with 0 overlap, and the judges are asked about it.

    Args:
        rows: predictions with ``id`` and ``text``, the answer.
        reasons: sample id -> reference (see `zoo.data.EMER.reasons`).
        judges: any number, with different names; see `CachedJudge`.

    Returns:
        n, unanswered, references_without_emotion; clue_overlap/{precision,recall,f1}, label_overlap/{...} (absent if no
        reference names an emotion), judge/NAME.

    Raises:
        ValueError: no rows, or not one row for each reference, or two judges of one name.
    """
    ids = [row["id"] for row in rows]
    if not ids or len(set(ids)) != len(ids) or set(ids) != set(reasons):
        raise ValueError(
            f"got {len(ids)} rows of {len(set(ids))} samples and {len(reasons)} references, "
            f"{len(set(ids) & set(reasons))} in common; expected one row for each reference. Use the predictions of "
            "the whole test split"
        )
    if len({judge.name for judge in judges}) != len(judges):
        raise ValueError(f"judges need different names, got {[judge.name for judge in judges]}")
    pairs = [(reasons[row["id"]], row.get("text") or "") for row in rows]
    named = [(emotions(reference), emotions(answer)) for reference, answer in pairs]
    kinds = {
        "clue_overlap": [overlap(clues(reference), clues(answer)) for reference, answer in pairs],
        "label_overlap": [overlap(reference, answer) for reference, answer in named if reference],
    }
    result: dict[str, float | int] = {
        "n": len(pairs),
        "unanswered": sum(not answer.strip() for _, answer in pairs),
        "references_without_emotion": sum(not reference for reference, _ in named),
    }
    for kind, scored in kinds.items():
        for part in ("precision", "recall", "f1") if scored else ():
            result[f"{kind}/{part}"] = float(np.mean([one[part] for one in scored]))
    for judge in judges:
        result[f"judge/{judge.name}"] = float(np.mean([judge(*pair) for pair in pairs]))
    return result


def confusion_picture(
    evaluation: Mapping[str, Any], labels: Labels, path: str | PathLike[str], title: str | None = None
) -> None:
    """Writes the confusion matrix as a PNG: colour = share of the true class, number = count, diagonal in bold.

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

    def panel(values: np.ndarray, counts: np.ndarray, x: float, columns: Sequence[str], cmap: str):
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


# ---- counting
def _count(rows: Sequence[Row], labels: Labels) -> np.ndarray:
    """Counts (D, C, C + 1) per dialogue, dialogues sorted by name, so that the order of rows never matters."""
    if not rows:
        raise ValueError("no metrics without samples: expected at least one prediction row, got none")
    unlabelled = [row["id"] for row in rows if row.get("label") is None]
    if unlabelled:
        raise ValueError(f"{len(unlabelled)} of {len(rows)} rows have no label to score against: first {unlabelled[0]}")
    repeated = len(rows) - len({row["id"] for row in rows})
    if repeated:
        raise ValueError(f"{repeated} of {len(rows)} rows repeat the id of another row; expected one row per sample")
    truth = {name: i for i, name in enumerate(labels.names)}
    answer = truth | {None: len(labels)}
    dialogue = {name: i for i, name in enumerate(sorted({row["dialogue"] for row in rows}))}
    counts = np.zeros((len(dialogue), len(labels), len(labels) + 1), dtype=np.int64)
    for row in rows:
        for word, known in ((row["label"], truth), (row["predicted"], answer)):
            if word not in known:
                raise ValueError(
                    f"row {row['id']} holds {word!r}, which is no label of {labels.corpus}; "
                    f"expected one of {', '.join(labels.names)}, or null for an unreadable answer"
                )
        counts[dialogue[row["dialogue"]], truth[row["label"]], answer[row["predicted"]]] += 1
    return counts


def _count_together(runs: Sequence[Sequence[Row]], labels: Labels) -> np.ndarray:
    """Counts (S, D, C, C + 1) of S sets of predictions, which must be of the same samples."""
    first = {row["id"]: row for row in runs[0]}
    for number, rows in enumerate(runs[1:], start=2):
        ids = {row["id"] for row in rows}
        if ids != first.keys():
            raise ValueError(
                f"predictions 1 and {number} are not of the same samples: {len(first.keys() - ids)} ids only in 1, "
                f"{len(ids - first.keys())} only in {number}"
            )
        for key in ("label", "dialogue"):
            differ = [row["id"] for row in rows if row[key] != first[row["id"]][key]]
            if differ:
                which = f"{len(differ)} of {len(rows)} samples, first {differ[0]}"
                raise ValueError(f"predictions 1 and {number} differ in the {key} of {which}")
    return np.stack([_count(rows, labels) for rows in runs])


# ---- resampling
def _resamples(dialogues: int, draws: int, seed: int, block: int = 1_000_000) -> Iterator[np.ndarray]:
    """How often each dialogue was drawn, (B, D) blocks that add up to (draws, D); `block` bounds B * D."""
    if draws < 1:
        raise ValueError(f"a bootstrap needs at least one draw, got {draws}")
    rng = np.random.default_rng(seed)
    size = max(1, block // dialogues)
    for start in range(0, draws, size):
        b = min(size, draws - start)
        drawn = rng.integers(dialogues, size=(b, dialogues)) + dialogues * np.arange(b)[:, None]
        yield np.bincount(drawn.ravel(), minlength=b * dialogues).reshape(b, dialogues)


def _bootstrap(counts: np.ndarray, draws: int, seed: int) -> dict[str, np.ndarray]:
    """Metrics (S, draws) of resampled dialogues; all S systems get the same resamples.

    Not scipy.stats.bootstrap: it gathers every drawn dialogue; 5427 samples with 28 labels took minutes, not 1 s.
    """
    systems, dialogues, *matrix = counts.shape
    per_dialogue = counts.swapaxes(0, 1).reshape(dialogues, -1).astype(np.float64)
    blocks: list[dict[str, np.ndarray]] = []
    for times in _resamples(dialogues, draws, seed):
        summed = (times @ per_dialogue).reshape(len(times), systems, *matrix)
        blocks.append({k: v for k, v in scores(summed).items() if v.ndim == 2})
    return {metric: np.concatenate([block[metric] for block in blocks]).T for metric in blocks[0]}


def _interval(drawn: np.ndarray) -> list[float]:
    return np.quantile(drawn, [0.025, 0.975]).tolist()


def _known(metric: str) -> str:
    if metric not in (*HEADLINE, "unparsed"):
        raise ValueError(f"unknown metric {metric!r}; expected one of {', '.join((*HEADLINE, 'unparsed'))}")
    return metric
