"""What metrics.json says about Emotion-Qwen's answers, beyond the scores of labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zoo.metrics import evaluate, reason_overlap
from zoo.prompts import label_words
from zoo.schema import Labels
from zoo.training.evaluation import rows_of_corpus

if TYPE_CHECKING:
    from zoo.models.emotion_qwen.model import EmotionQwen

Row = Mapping[str, Any]


def summarise(module: EmotionQwen, rows: Sequence[Row], label_summary: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the scores of every corpus: of labels, gates, explanations, and the authors' way of counting.

    Args:
        label_summary: what metrics.json says where every answer has a label.
    """
    by_corpus = {corpus: rows_of_corpus(rows, corpus) for corpus in module.data.label_sets}
    if all(part and all(r["label"] is not None for r in part) for part in by_corpus.values()):
        summary = label_summary()
    else:  # some answers have no label: conversations
        evaluations = _evaluate_labelled(by_corpus, module.data.label_sets)
        summary = module.join_evaluations(evaluations, len(rows))
    references = {s.id: s.answer for s in module.data.samples("test") if s.answer is not None}
    for corpus, part in by_corpus.items():
        scores = summary["corpora"][corpus] if "corpora" in summary else summary
        scores |= _scores_beside_labels(module, part, module.data.label_sets[corpus], references)
    return summary


def _scores_beside_labels(
    module: EmotionQwen, rows: Sequence[Row], labels: Labels, references: Mapping[str, str]
) -> dict[str, Any]:
    """Return what is measured of a corpus' answers beside their labels: gates, explanations, the authors' ways."""
    scores: dict[str, Any] = {}
    gates = [r["details"]["gate_emotion"] for r in rows if "gate_emotion" in (r.get("details") or {})]
    if gates:
        scores["gate_emotion"] = sum(gates) / len(gates)
    explained = [r for r in rows if r["id"] in references]
    if explained:
        reasons = {r["id"]: references[r["id"]] for r in explained}
        scores["reasons"] = reason_overlap(explained, reasons, module.ratings)
    if module.gold_in_answer:
        scores |= gold_in_answer(rows, labels, module.verbalizer)
    if module.last_in_answer:
        scores |= last_in_answer(rows, labels, module.verbalizer)
    return scores


def _evaluate_labelled(
    by_corpus: Mapping[str, Sequence[Row]], label_sets: Mapping[str, Labels]
) -> dict[str, dict[str, Any]]:
    """Return corpus -> the scores of those of its answers that have a label, or their number alone."""
    parts: dict[str, dict[str, Any]] = {}
    for corpus, part in by_corpus.items():
        labelled = [r for r in part if r["label"] is not None]
        parts[corpus] = evaluate(labelled, label_sets[corpus]) if labelled else {"n": len(part)}
    return parts


def gold_in_answer(rows: Sequence[Row], labels: Labels, verbalizer: Mapping[str, str] | None) -> dict[str, float]:
    """Count as the authors do: the true word occurs in the answer, alone or not."""
    words = dict(zip(labels.names, label_words(labels, verbalizer), strict=True))
    texts = [(words[r["label"]], r["text"]) for r in rows if r["label"] is not None and "text" in r]
    hits = [re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None for word, text in texts]
    return {"accuracy_gold_in_answer": sum(hits) / len(hits)} if hits else {}


def last_in_answer(rows: Sequence[Row], labels: Labels, verbalizer: Mapping[str, str] | None) -> dict[str, float]:
    """Score as the authors' code for MER2024 does: of the label words in an answer the last one of the alphabet counts.

    A word counts inside of another one, too ("unhappy" holds "happy"); of an answer without any the last of all is
    taken, which is "worried" for MER2024.
    """
    words = dict(zip(labels.names, label_words(labels, verbalizer), strict=True))
    answered = [r for r in rows if r["label"] is not None and "text" in r]
    if not answered:
        return {}

    def take(text: str) -> str:
        return max(words, key=lambda name: (words[name].lower() in text.lower(), words[name]))

    chosen = [{**r, "predicted": take(r["text"])} for r in answered]
    result = evaluate(chosen, labels, draws=1)
    return {f"{score}_last_in_answer": result[score] for score in ("accuracy", "weighted_f1")}
