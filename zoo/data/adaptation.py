"""Adaptation: a corpus' test split without its labels, to adapt to; and whether the report is on the same samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from zoo.data.base import EmotionData, Reading
from zoo.data.text import whole_number
from zoo.data.wrapped import WrappedCorpus
from zoo.schema import Sample, Split


class Adaptation(WrappedCorpus):
    """The unlabelled part of a corpus as training and validation split, in the words of test-time training.

    ``transductive``: adapt to the whole test split and report on it (MERIT, TTRL). ``inductive``: adapt to one half of
    its dialogues, report on the other. Either way the samples to adapt to carry no label, neither of the utterance nor
    of earlier turns; `truth` knows them, for the log. The protocol stands in ``metrics.json``, so that such a result is
    not ranked beside that of a system which never saw the test split.

    Args:
        corpus: where the samples come from.
        protocol: ``transductive`` or ``inductive``.
        half: which half is adapted to (``inductive``); the other is reported on.
        split_seed: of drawing the halves.
    """

    def __init__(
        self,
        corpus: EmotionData,
        protocol: Literal["transductive", "inductive"] = "transductive",
        half: Literal[0, 1] = 0,
        split_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(corpus, **kwargs)
        if protocol not in ("transductive", "inductive") or half not in (0, 1):
            raise ValueError(f"protocol is transductive or inductive and half 0 or 1, got {protocol!r} and {half!r}")
        self.half, self.split_seed = half, whole_number("split_seed", split_seed)
        self.transductive = protocol == "transductive"
        self.protocol = f"{corpus.protocol}, {protocol}"
        self._truth: dict[str, int] = {}

    def halves(self) -> tuple[set[str], set[str]]:
        """Draw the dialogues of the test split into two halves."""
        names = sorted({s.dialogue for s in self.corpus.samples("test")})
        order = np.random.default_rng(self.split_seed).permutation(len(names))
        middle = len(names) // 2
        return {names[i] for i in order[:middle]}, {names[i] for i in order[middle:]}

    def read(self, split: Split) -> Reading:
        whole = self.corpus.reading("test")
        adapt = [*self.halves()] if not self.transductive else [{s.dialogue for s in whole.samples}] * 2
        if split == "test":
            reported = adapt[1 - self.half]
            samples = [s for s in whole.samples if s.dialogue in reported]
            return replace(whole, samples=samples, excluded=dict(whole.excluded), notes=dict(whole.notes))
        samples = [s for s in whole.samples if s.dialogue in adapt[self.half]]
        self._truth |= {s.id: s.label for s in samples if s.label >= 0}
        bare = [without_labels(s) for s in samples]
        return replace(whole, samples=bare, excluded=dict(whole.excluded), notes=dict(whole.notes))

    @property
    def labelled(self) -> bool:
        """Whether the labels of all samples to adapt to are known."""
        return all(s.id in self._truth for s in self.samples("train"))

    def truth(self, sample_id: str) -> int | None:
        """Return the index of the true label of a sample to adapt to; only the log may use it."""
        return self._truth.get(sample_id)


def without_labels(sample: Sample) -> Sample:
    """Return the sample without any label of its dialogue, and without the answer it would be taught."""
    history, later = (tuple(replace(t, label=None) for t in turns) for turns in (sample.history, sample.later))
    return replace(sample, target=replace(sample.target, label=None), history=history, later=later, answer=None)
