"""Stage 2 of the modality selector: an emotion classifier that reads descriptions only where they were kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
from lightning.fabric.utilities.apply_func import move_data_to_device

from zoo.models.selector.parts import TEMPLATES, read_decisions
from zoo.schema import Prediction, Sample
from zoo.training.batch import SampleBatch
from zoo.training.collator import PromptCollator
from zoo.training.sft import SupervisedFineTuning


class SelectedClassifier(SupervisedFineTuning):
    """Stage 2: the emotion, from a prompt with or without descriptions.

    Args:
        template: ``classifier`` (P's structure), ``causal_lm/default`` (short, for small models), or a file.
        window: earlier turns shown; P: 12.
        selection: ``always``, ``never``, ``random`` (half, by sample), or a file ``decisions.jsonl`` or the run folder
            that holds one.
        on_unparsable: what an unreadable decision means.
        compare: predictions also hold the label distribution with and without descriptions (``details.with`` and
            ``details.without``), which `Downstream` reads.
    """

    templates = TEMPLATES

    def __init__(
        self,
        *,
        template: str = "classifier",
        window: int = 12,
        selection: str = "always",
        on_unparsable: Literal["keep", "discard"] = "keep",
        compare: bool = False,
        lr: float = 5e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(template=template, window=window, lr=lr, **kwargs)
        if compare and self.decode != "score":
            raise ValueError(f"compare needs the distribution over labels: decode must be score, not {self.decode}")
        self.selection, self.compare = selection, compare
        self.keep: Mapping[str, bool] | str = selection
        if selection not in ("always", "never", "random"):
            decisions = read_decisions(selection)
            self.keep = {i: on_unparsable == "keep" if d is None else d for i, d in decisions.items()}

    @property
    def reads(self) -> tuple[str, ...] | None:
        """Where a selector decides, the descriptions count as read, also if it discards them all: it has read them."""
        return tuple(part for part in super().reads or () if part != "descriptions" or self.selection != "never")

    def setup(self, stage: str) -> None:
        """Check that there is a decision about every sample, beside what every prompted system checks."""
        super().setup(stage)
        if isinstance(self.keep, str):
            return
        for split in self.splits_read(stage):
            samples = self.data.samples(split)
            missing = [s.id for s in samples if s.id not in self.keep]
            if missing:
                raise ValueError(
                    f"{self.selection} decides nothing about {len(missing)} of {len(samples)} {split} "
                    f"samples: {missing[:3]}. Write it with zoo predict --data.predict_splits [train,dev,test]"
                )

    def collator(self, training: bool) -> SelectedCollator:
        """Return what writes samples as prompts, with descriptions where they are kept."""
        return super().collator(training).as_type(SelectedCollator, keep=self.keep)

    def predict(self, batch: Any) -> list[Prediction]:
        """Return the answers, with the decision in ``details`` and, with `compare`, both label distributions."""
        samples = batch["samples"]
        decisions = self.collator(False).decisions(samples)
        details: list[dict[str, Any]] = [{"decision": "keep" if keep else "discard"} for keep in decisions]
        if self.compare:
            full, bare = (self._predict_with(choice, samples) for choice in ("always", "never"))
            for detail, with_them, without in zip(details, full, bare, strict=True):
                detail |= {"with": with_them.scores, "without": without.scores}
            answers = [f if keep else b for keep, f, b in zip(decisions, full, bare, strict=True)]
        else:
            answers = super().predict(batch)
        return [replace(p, details=detail) for p, detail in zip(answers, details, strict=True)]

    def _predict_with(self, selection: str, samples: SampleBatch) -> list[Prediction]:
        collator = replace(self.collator(False), keep=selection)
        batch = collator(list(samples), np.random.default_rng(0))  # evaluation draws nothing
        return super().predict(move_data_to_device(batch, self.device))


@dataclass(kw_only=True)
class SelectedCollator(PromptCollator):
    """Write prompts with descriptions only where they are kept.

    Args:
        keep: sample id -> keep; or always, never, random.
    """

    keep: Mapping[str, bool] | str = "always"
    _bare: PromptCollator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Make the collator of prompts without descriptions."""
        settings = {f.name: getattr(self, f.name) for f in fields(PromptCollator) if f.init}
        self._bare = PromptCollator(**settings | {"descriptions": ()})

    def decisions(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> list[bool]:
        """Return whether descriptions are kept, of each sample.

        Random decisions depend on the generator in training, on seed and sample in evaluation.
        """
        if self.keep == "random":
            if self.training and rng is not None:
                return (rng.random(len(samples)) < 0.5).tolist()
            return [hashlib.sha256(f"{self.examples_seed}/{s.id}".encode()).digest()[0] % 2 == 0 for s in samples]
        return [self.keep == "always" if isinstance(self.keep, str) else self.keep[s.id] for s in samples]

    def prompt_ids(
        self, sample: Sample, rng: np.random.Generator, variables: Mapping[str, str] | None = None
    ) -> tuple[list[int], bool]:
        """Return the token ids of the prompt, and whether anything had to be left out."""
        (keep,) = self.decisions([sample], rng)
        return super().prompt_ids(sample, rng, variables) if keep else self._bare.prompt_ids(sample, rng, variables)
