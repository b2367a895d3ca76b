"""Distances between the labels of a corpus, answers by vote, and how consistent answers are."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.backbones import Prefix
from zoo.backbones.sentence import embed_sentences
from zoo.models.merit.parts import (
    cosine_distances,
    gold_consistency,
    majority,
    plutchik,
    self_consistency,
    vote_accuracy,
    vote_agreement,
)
from zoo.prompts import label_words
from zoo.schema import Labels, Prediction
from zoo.training.batch import SampleBatch
from zoo.training.language_model import LanguageModelModule

Distance = Literal["plutchik", "lm", "sentence"]
CONSISTENCY_SCORES = ("consistency_gold", "consistency_self", "pass@k", "majority_ratio")


class LabelDistances:
    """Distances between the labels of a corpus, W of Sec. 3.4.1.

    Args:
        kind: from ``plutchik``'s wheel, or from embeddings of the label words in the language model (``lm``) or a
            ``sentence`` encoder (`zoo.backbones.sentence`).
        neutral: of neutral, the wheel's centre, to all other labels.
        angles: degrees of labels that the wheel lacks (None: the centre).
    """

    def __init__(self, kind: Distance, neutral: float, angles: Mapping[str, float | None] | None) -> None:
        if not neutral >= 0:
            raise ValueError(f"need neutral_distance >= 0, got {neutral}")
        self.kind, self.neutral, self.angles = kind, neutral, angles
        self._matrices: dict[Labels, Tensor] = {}

    @torch.no_grad()
    def matrix(self, labels: Labels, module: LanguageModelModule) -> Tensor:
        """Return the (C, C) distances between the labels of a corpus.

        Args:
            module: the system, whose label words and language model are asked.
        """
        if labels not in self._matrices:
            if self.kind == "plutchik":
                self._matrices[labels] = plutchik(labels, self.neutral, self.angles)
            elif self.kind == "sentence":
                self._matrices[labels] = cosine_distances(embed_sentences(label_words(labels, module.verbalizer)))
            else:
                ids = [torch.tensor(candidate, device=module.device) for candidate in module.candidates(labels)]
                vectors = torch.stack([module.llm.embed(x).mean(0) for x in ids])
                self._matrices[labels] = cosine_distances(vectors).cpu()
        return self._matrices[labels]

    def check(self, module: LanguageModelModule) -> None:
        """Refuse a label without a place before any work; distances in the language model need its weights first."""
        if self.kind != "lm":
            for labels in module.data.label_sets.values():
                self.matrix(labels, module)


class VotedAnswers:
    """Answers by the majority of several drawn ones.

    Args:
        votes: answers drawn per sample.
        temperature: of drawing them.
    """

    def __init__(self, votes: int, temperature: float) -> None:
        if votes < 2 or not temperature > 0:
            raise ValueError(f"need votes >= 2 and vote_temperature > 0, got {votes} and {temperature}")
        self.votes, self.temperature = votes, temperature

    def predict(self, module: LanguageModelModule, prefix: Prefix, samples: SampleBatch) -> list[Prediction]:
        """Return the majority answer to each prompt; the draw depends on the run's seed and the batch."""
        seed = zlib.crc32("\n".join([str(module.data.run_seed), *samples.ids()]).encode())
        drawn = module.writer.sample(
            prefix,
            self.votes,
            max_new_tokens=module.max_new_tokens,
            temperature=self.temperature,
            generator=torch.Generator(module.device).manual_seed(seed),
        )
        predictions = []
        for sample, ids, masks in zip(samples, drawn.ids, drawn.mask, strict=True):
            texts = [
                module.llm.tokenizer.decode(i[m], skip_special_tokens=True) for i, m in zip(ids, masks, strict=True)
            ]
            votes = [module.read_label(sample, text) for text in texts]
            winner, names = majority(votes), sample.labels.names
            voted_labels = [None if v is None else names[v] for v in votes]
            predicted = None if winner is None else names[winner]
            predictions.append(Prediction.of(sample, predicted, details={"answers": voted_labels}))
        return predictions


def add_consistency(
    summary: dict[str, Any], rows: Sequence[Mapping[str, Any]], module: LanguageModelModule, distances: LabelDistances
) -> dict[str, Any]:
    """Add the consistency of the labelled rows of every corpus to what metrics.json says; return it."""
    for corpus, labels in module.data.label_sets.items():
        labelled = [r for r in rows if r["id"].startswith(f"{corpus}/") and r["label"] is not None]
        scores = summary["corpora"][corpus] if "corpora" in summary else summary
        if labelled:
            scores.update(_consistency(labelled, labels, distances.matrix(labels, module)))
    return summary


def _consistency(rows: Sequence[Mapping[str, Any]], labels: Labels, distances: Tensor) -> dict[str, float]:
    index: dict[str | None, int | None] = {name: i for i, name in enumerate(labels.names)}
    index[None] = None
    gold = [labels.index(r["label"]) for r in rows]
    scores = {"consistency_gold": gold_consistency([index[r["predicted"]] for r in rows], gold, distances)}
    if not all("answers" in (r.get("details") or {}) for r in rows):
        return scores
    groups = [[index[a] for a in r["details"]["answers"]] for r in rows]
    winners = [index[r["predicted"]] for r in rows]
    return scores | {
        "consistency_self": sum(self_consistency(g, distances) for g in groups) / len(groups),
        "votes": len(groups[0]),
        "pass@k": vote_accuracy(groups, winners, gold)["pass@k"],
        "majority_ratio": vote_agreement(groups, winners)["majority_ratio"],
    }
