"""Several corpora fitted together; every sample keeps its own corpus' label list."""

from __future__ import annotations

from collections import Counter
from typing import Any

from zoo.data.base import EmotionData, Reading
from zoo.schema import Labels, Sample, Split


class Joint(EmotionData):
    """Concatenates corpora, e.g. for DialogueLLM's joint fit.

    Every sample carries its corpus' labels, so prompts and scores use those; results are reported per corpus, each with
    its own protocol and number of samples. Where the protocols differ, a test gives no score over all corpora;
    a validation still takes the plain mean, which chooses the checkpoint.

    Args:
        parts: the corpora. Of a part only what decides its samples counts (root, captions, limit, ...); batch sizes,
            seed, workers and bucketing are the ones given here.
    """

    def __init__(self, parts: list[EmotionData], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        names = [name for part in parts for name in part.label_sets]
        if not parts or len(set(names)) != len(names):
            raise ValueError(
                f"Joint got the corpora {', '.join(names) or 'none'}; expected at least one, and each once. "
                "Correct --data.parts"
            )
        for option, value in (("root", self.root), ("limit", self.limit), ("encoding", self.encoding)):
            if value is not None:
                raise ValueError(f"Joint got {option} {value}; expected it on each part, Joint has none of its own")
        self.parts = parts

    @property
    def protocol(self) -> str:  # type: ignore[override]  # that of the parts
        """The protocol of all parts; where they differ, that of each behind its corpus' name."""
        if len(set(self.protocols.values())) == 1:
            return next(iter(self.protocols.values()))
        return ", ".join(f"{name}: {protocol}" for name, protocol in self.protocols.items())

    @property
    def protocols(self) -> dict[str, str]:
        return {name: protocol for part in self.parts for name, protocol in part.protocols.items()}

    @property
    def label_sets(self) -> dict[str, Labels]:
        return {name: labels for part in self.parts for name, labels in part.label_sets.items()}

    def corpora(self) -> list[EmotionData]:
        return [corpus for part in self.parts for corpus in part.corpora()]

    def settle(self, section: Any) -> None:
        super().settle(section)
        for part, inner in zip(self.parts, section["init_args"]["parts"], strict=True):
            part.settle(inner)

    def splits(self) -> tuple[Split, ...]:
        return tuple(split for split in ("train", "dev", "test") if any(split in part.splits() for part in self.parts))

    def read(self, split: Split) -> Reading:
        samples: list[Sample] = []
        official: list[int | None] = []
        excluded: dict[str, str] = {}
        notes: Counter[str] = Counter()
        listed: dict[str, list[str]] = {}
        without_file: set[str] = set()
        for part in self.parts:
            name = "+".join(part.label_sets)
            if split not in part.splits():
                notes[f"{name}: has no {split} split"] = 1
                continue
            reading = part.reading(split)
            samples += reading.samples
            official.append(reading.official)
            excluded |= {f"{name}/{key}": reason for key, reason in reading.excluded.items()}
            notes[f"{name}: used"] = len(reading.samples)
            notes |= {f"{name}: {what}": n for what, n in reading.notes.items()}
            listed |= {f"{name}: {what}": names for what, names in reading.listed.items()}
            without_file |= {f"{name}/{key}" for key in reading.without_file}
        stated = [n for n in official if n is not None]
        total = sum(stated) if len(stated) == len(official) else None
        return Reading(samples, total, excluded, dict(notes), listed, without_file)
