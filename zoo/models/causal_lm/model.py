"""A plain causal language model over labelled or unlabelled text.

Not a paper: the baseline every LLM paper is measured against (few-shot without training, or fine-tuned on text alone),
and the way the zoo's own small backbones are made. Training is next-token prediction over prompt and answer;
``prompt_loss`` weighs the prompt, so 1 is language modelling and 0 is classification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from zoo.prompts import load_template
from zoo.schema import Sample
from zoo.training.batch import PromptBatch
from zoo.training.collator import PromptCollator
from zoo.training.sft import SupervisedFineTuning


@dataclass(frozen=True)
class PromptFormat:
    """One way to write a sample down; see the options of the same names of `SupervisedFineTuning`."""

    template: str = "default"
    window: int = 0
    descriptions: tuple[str, ...] = ()
    shots: int = 0


class CausalLM(SupervisedFineTuning):
    """Next-token training over text or labelled samples; ``zoo test --zero_shot`` makes it the few-shot baseline.

    Args:
        llm: folder, published name (e.g. ``tiny-llama``) or hub id of the language model.
        prompt_loss: weight of the prompt's tokens; 1 = language modelling.
        template: ``default``, which only shows the utterance and ends in ``emotion:``; ``instruction``, which asks and
            names the labels; or a file. None: ``instruction`` in a chat, where nothing else says what is wanted, and
            ``default`` in plain text.
        formats: in training, every batch is written in one of these, evenly drawn, so that a backbone meets many
            prompts (ours). Evaluation keeps to ``template``, ``window``, ``descriptions`` and ``shots``; so
            does training if there are none.
    """

    templates = Path(__file__).parent / "templates"

    def __init__(
        self,
        *,
        prompt_loss: float = 1.0,
        template: str | None = None,
        formats: list[PromptFormat] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(prompt_loss=prompt_loss, template=template or "default", **kwargs)
        self.template_in_chat = load_template("instruction", self.templates) if template is None else self.template
        for f in formats or ():
            if f.window < 0 or f.shots < 0:
                raise ValueError(f"a format needs window >= 0 and shots >= 0, got {f}")
            load_template(f.template, self.templates)
        self.formats = tuple(formats or ())

    def collator(self, training: bool) -> PromptCollator:
        """Return what writes samples as prompts, in training in all `formats`."""
        collator = super().collator(training)
        if self.uses_chat:
            collator = replace(collator, template=self.template_in_chat)
        if not training or not self.formats:
            return collator
        variants = [
            replace(
                collator,
                template=load_template(f.template, self.templates),
                window=f.window,
                descriptions=tuple(f.descriptions),
                shots=f.shots,
                pool=self.data.samples("train") if f.shots else (),
            )
            for f in self.formats
        ]
        return collator.as_type(MixedCollator, variants=variants)


@dataclass(kw_only=True)
class MixedCollator(PromptCollator):
    """Write each batch in one of several formats, drawn anew: prompts of one batch stay about equally long."""

    variants: Sequence[PromptCollator] = field(default_factory=tuple)

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> PromptBatch:
        """Return the batch of some samples."""
        return self.variants[int(rng.integers(len(self.variants)))](samples, rng)
