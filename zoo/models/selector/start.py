"""Before stage 1 (ours): a small model learns the form of the selector's answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zoo.models.selector.parts import DISCARD, KEEP, TEMPLATES, Format, read_decision, read_rows
from zoo.prompts import load_template
from zoo.rl import Answer
from zoo.schema import Sample
from zoo.training.collator import PromptCollator
from zoo.training.prompting import answer_ids
from zoo.training.sft import SupervisedFineTuning


class SelectorStart(SupervisedFineTuning):
    """Supervised answers in the selector's form, for small models that cannot follow the prompt (ours).

    The thoughts are the classifier's two answers and the decision is drawn evenly, so that the policy begins with
    valid answers and no preference.

    Args:
        comparisons: run folder of a `SelectedClassifier` that was run with ``compare``, or its predictions.jsonl.
        template, window, descriptions, system_template: as the selector will have them.
    """

    templates = TEMPLATES

    def __init__(
        self,
        *,
        comparisons: str,
        template: str = "decision",
        system_template: str = "system",
        max_new_tokens: int = 96,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            template=template, decode="greedy", max_new_tokens=max_new_tokens, system_prompt=None, **kwargs
        )
        self.system_prompt = load_template(system_template, self.templates).render()
        self.comparisons: dict[str, tuple[str, str]] = {}
        for row in read_rows(comparisons, "predictions.jsonl"):
            bare, full = row["details"]["without"], row["details"]["with"]
            self.comparisons[row["id"]] = (max(bare, key=bare.get), max(full, key=full.get))

    def collator(self, training: bool) -> StartCollator:
        """Return what writes samples as prompts, with answers in the selector's form."""
        return super().collator(training).as_type(StartCollator, comparisons=self.comparisons)

    def read_answer(self, sample: Sample, text: str) -> str | None:
        """Return what the captions are thought to say, of an answer that also decides; else None."""
        thought = re.search(r"captions: (\w+)", text)
        valid = Format("paper")(Answer(text, 0, True, sample)) and read_decision(text) is not None
        return thought[1] if thought and valid and thought[1] in sample.labels.names else None


@dataclass(kw_only=True)
class StartCollator(PromptCollator):
    """Write the prompts and answers of `SelectorStart`.

    Args:
        comparisons: sample id -> the classifier's answer without and with descriptions.
    """

    comparisons: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def target_ids(self, sample: Sample, rng: np.random.Generator) -> list[int]:
        """Return the tokens of thoughts and a decision drawn evenly."""
        bare, full = self.comparisons[sample.id]
        decision = (KEEP, DISCARD)[int(rng.integers(2))]
        text = f"<think>\nwords: {bare}, captions: {full}\n</think>\n<answer>\n{decision}\n</answer>"
        return answer_ids(self.tokenizer, text, self.chat) + [self.tokenizer.eos_token_id]
