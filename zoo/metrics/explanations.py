"""Free answers against a reference explanation (EMER): overlap of exact words, and scores of judges."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Protocol

import numpy as np

from zoo.metrics.scores import Row
from zoo.storage import split_lines

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
    """Return the different words of a text, lower case, without FUNCTION_WORDS.

    A word is a run of letters, with apostrophes inside (``don't``); numbers and punctuation are none.
    """
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text.lower().replace("’", "'"))
    return set(words) - FUNCTION_WORDS


def emotions(text: str) -> set[str]:
    """Return the emotions of EMOTION_WORDS that a text names, by exact words.

    Who feels them, and "not angry", are not understood.
    """
    words = clues(text)
    return {emotion for emotion, forms in EMOTION_WORDS.items() if forms & words}


def overlap(reference: Collection[str], answer: Collection[str]) -> dict[str, float]:
    """Return how much of two sets is shared: precision (of the answer), recall (of the reference), F1.

    They are 0 where there is nothing to divide by. Exchanging the two sets exchanges precision and recall.
    """
    reference, answer = set(reference), set(answer)
    both = len(reference & answer)
    precision = both / len(answer) if answer else 0.0
    recall = both / len(reference) if reference else 0.0
    return {"precision": precision, "recall": recall, "f1": 2 * both / (len(reference) + len(answer)) if both else 0.0}


class Unscored(ValueError):
    """A judge gave this answer no score; it may give the next one."""


class Judge(Protocol):
    """A judge that scores an answer against a reference: usually a language model behind a service of yours.

    Attributes:
        name: of the scores, e.g. ``"gpt-3.5-turbo-16k, clue overlap, prompt 2"``. Scores of judges with different names
            are never the same metric.
    """

    name: str

    def __call__(self, reference: str, answer: str) -> float:
        """Return the score of an answer. `Unscored` without one."""
        ...


class CachedJudge:
    """A judge that is asked once per (judge, reference, answer); the scores are kept in a JSON-lines file.

    A row holds the judge's name, a hash of the two texts and the score; no text, as a corpus may not be passed on. What
    got no score, or has an unfinished last row, as an interrupted run leaves it, is asked again.

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
    """Compare free answers with reference explanations (EMER): means over samples.

    Exact words, our own definition; EMER's published clue and label overlap are scores a language model gives from 0 to
    10, and cannot be compared with these.

    - clue_overlap: of all words but function words (`clues`), over all samples.
    - label_overlap: of the emotions named (`emotions`), over the samples whose reference names one.
    - judge/NAME: mean of a judge's scores, on its own scale, over the samples that it scored; absent if it scored none.
    - unscored/NAME: samples that it gave no score.

    A sample without an answer has an empty one: it counts with 0 overlap, and the judges are asked about it.

    Args:
        rows: predictions with ``id`` and ``text``, the answer.
        reasons: sample id -> reference (see `zoo.data.EMER.reasons`).
        judges: any number, with different names; see `CachedJudge`.

    Returns:
        n, unanswered, references_without_emotion; clue_overlap/{precision,recall,f1}, label_overlap/{...} (absent if no
        reference names an emotion), judge/NAME, unscored/NAME.

    Raises:
        ValueError: no rows, or not one row for each reference, or two judges of one name.
    """
    _check_references(rows, reasons, judges)
    pairs = [(reasons[row["id"]], row.get("text") or "") for row in rows]
    emotion_pairs = [(emotions(reference), emotions(answer)) for reference, answer in pairs]
    kinds = {
        "clue_overlap": [overlap(clues(reference), clues(answer)) for reference, answer in pairs],
        "label_overlap": [overlap(reference, answer) for reference, answer in emotion_pairs if reference],
    }
    result: dict[str, float | int] = {
        "n": len(pairs),
        "unanswered": sum(not answer.strip() for _, answer in pairs),
        "references_without_emotion": sum(not reference for reference, _ in emotion_pairs),
    }
    for kind, scored in kinds.items():
        for part in ("precision", "recall", "f1") if scored else ():
            result[f"{kind}/{part}"] = float(np.mean([one[part] for one in scored]))
    for judge in judges:
        scores = _scores_of(judge, pairs)
        if scores:
            result[f"judge/{judge.name}"] = float(np.mean(scores))
        result[f"unscored/{judge.name}"] = len(pairs) - len(scores)
    return result


def _scores_of(judge: Judge, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Return a judge's scores of pairs of reference and answer, without those that it did not score."""
    scores = []
    for pair in pairs:
        with contextlib.suppress(Unscored):
            scores.append(judge(*pair))
    return scores


def _check_references(rows: Sequence[Row], reasons: Mapping[str, str], judges: Sequence[Judge]) -> None:
    """Raise ValueError unless there is one row for each reference, and every judge has a name of its own."""
    ids = [row["id"] for row in rows]
    if not ids or len(set(ids)) != len(ids) or set(ids) != set(reasons):
        raise ValueError(
            f"got {len(ids)} rows of {len(set(ids))} samples and {len(reasons)} references, "
            f"{len(set(ids) & set(reasons))} in common; expected one row for each reference. Use the predictions of "
            "the whole test split"
        )
    if len({judge.name for judge in judges}) != len(judges):
        raise ValueError(f"judges need different names, got {[judge.name for judge in judges]}")
