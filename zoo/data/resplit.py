"""Resplit: all labelled samples of a corpus, split anew by a named seed (MERIT trains on 80 % and gives no list)."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.data.base import EmotionData, Reading
from zoo.data.text import whole_number
from zoo.data.wrapped import WrappedCorpus
from zoo.schema import Sample, Split


class Resplit(WrappedCorpus):
    """A random split of whole dialogues (videos, sessions: whatever `Sample.dialogue` is), the same on every machine.

    Its results are a protocol of their own, which names share and seed: other papers' splits hold other samples.

    Args:
        corpus: where the samples come from; all of its splits are joined.
        train_share: share of the dialogues for training and validation; the rest is the test split (MERIT: .8).
        dev_share: share of those held out for validation (ours).
        split_seed: of the draw (ours).
    """

    def __init__(
        self, corpus: EmotionData, train_share: float = 0.8, dev_share: float = 0.1, split_seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(corpus, **kwargs)
        if not 0 < train_share < 1 or not 0 < dev_share < 1:
            raise ValueError(f"shares lie between 0 and 1, got train_share {train_share} and dev_share {dev_share}")
        self.train_share, self.dev_share = train_share, dev_share
        self.split_seed = whole_number("split_seed", split_seed)
        self.protocol = f"{corpus.protocol}, random {train_share:.0%} of dialogues, seed {split_seed}"
        self._parts: dict[Split, set[str]] = {}

    def parts(self) -> dict[Split, set[str]]:
        """Return the dialogues of each new split. ValueError if one would be empty."""
        if not self._parts:
            names = sorted({s.dialogue for s in self._all()})
            order = [names[i] for i in np.random.default_rng(self.split_seed).permutation(len(names))]
            trained = round(self.train_share * len(order))
            dev = max(1, round(self.dev_share * trained))
            if not 0 < trained - dev < trained < len(order):
                raise ValueError(
                    f"{len(order)} dialogues are too few for shares of {self.train_share:g} and "
                    f"{self.dev_share:g}: a split would be empty"
                )
            self._parts = {"dev": set(order[:dev]), "train": set(order[dev:trained]), "test": set(order[trained:])}
        return self._parts

    def _all(self) -> list[Sample]:
        return [s for split in self.corpus.splits() for s in self.corpus.samples(split)]

    def read(self, split: Split) -> Reading:
        chosen = self.parts()[split]
        excluded: dict[str, str] = {}
        for part in self.corpus.splits():
            excluded |= self.corpus.reading(part).excluded
        return Reading([s for s in self._all() if s.dialogue in chosen], None, excluded)
