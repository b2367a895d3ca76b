"""The base of every corpus whose samples come from another one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from zoo.data.base import EmotionData, Reading
from zoo.schema import Labels, Split


class WrappedCorpus(EmotionData, ABC):
    """A corpus whose samples come from another one, with its labels.

    Args:
        corpus: where the samples come from.

    Raises:
        ValueError: an option is given that belongs to the inner corpus.
    """

    def __init__(self, corpus: EmotionData, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for option, value in (("root", self.root), ("encoding", self.encoding)):
            if value is not None:
                raise ValueError(
                    f"{type(self).__name__} has no folder of its own, got {option} {value}; give --data.corpus.{option}"
                )
        self.corpus = corpus

    @property
    def labels(self) -> Labels:  # type: ignore[override]  # those of the inner corpus cannot be replaced
        return self.corpus.labels

    @property
    def label_sets(self) -> dict[str, Labels]:
        return self.corpus.label_sets

    @property
    def protocols(self) -> dict[str, str]:
        """Return the protocol of each inner corpus, with what this one's adds behind it."""
        added = self.protocol.removeprefix(self.corpus.protocol)
        return {name: f"{protocol}{added}" for name, protocol in self.corpus.protocols.items()}

    def corpora(self) -> list[EmotionData]:
        return self.corpus.corpora()

    def settle(self, section: Any) -> None:
        super().settle(section)
        self.corpus.settle(section["init_args"]["corpus"])

    @abstractmethod
    def read(self, split: Split) -> Reading:
        """Read one split; see `EmotionData.read`."""
