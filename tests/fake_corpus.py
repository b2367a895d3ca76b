"""A corpus of given samples, and modules beside it as a Trainer would set them up."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import Precision

from zoo.schema import Labels, Sample, ScoredQuestion, Split

Module = TypeVar("Module", bound=LightningModule)


class FakeCorpus:
    """What a system may know of its data (`zoo.schema.CorpusView`), with the same samples in every split."""

    protocol = "all_utterances"
    is_ad_hoc = False
    eval_batch_size = 1
    max_unreadable = 0.05

    def __init__(self, samples: Sequence[Sample] = (), seed: int = 0) -> None:
        self.all, self.run_seed = list(samples), seed
        self.notes: dict[str, int] = {}

    @property
    def label_sets(self) -> dict[str, Labels]:
        return {s.labels.corpus: s.labels for s in self.all}

    @property
    def protocols(self) -> dict[str, str]:
        return dict.fromkeys(self.label_sets, self.protocol)

    def samples(self, split: Split) -> list[Sample]:
        return self.all

    def splits(self) -> tuple[Split, ...]:
        return ("train", "dev", "test")

    def splits_of(self, stage: str) -> tuple[Split, ...]:
        return ("train", "dev") if stage == "fit" else ("test",)

    def to_predict(self) -> list[Sample]:
        return self.all

    def population(self, split: Split) -> dict[str, Any]:
        return {"n_used": len(self.all), "notes": self.notes}

    def scored_questions(self, split: Split) -> dict[str, ScoredQuestion]:
        return {}

    def rows_without_file(self, split: Split) -> dict[str, str]:
        return {}

    def add_note(self, split: Split, what: str, count: int) -> None:
        self.notes[what] = count


def attach(module: Module, data: Any, **trainer: Any) -> Module:
    """Give a module its data, and a trainer with these attributes, without running anything."""
    defaults = {"ckpt_path": None, "world_size": 1, "precision": "32-true", "precision_plugin": Precision()}
    module._trainer = SimpleNamespace(datamodule=data, **defaults | trainer)
    module.data = data
    return module
