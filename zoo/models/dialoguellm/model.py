"""DialogueLLM: context and emotion knowledge-tuned LLM for emotion recognition in conversations (Zhang et al. 2023).

Prompt (`templates/default.txt`): instruction with the corpus' label list; context = the one or two previous turns and
the video description of the target; input = the target utterance; response = the label word. LLaMA-2-7B with LoRA on q
and v.

Differs from the paper (P) and its published code (C):
- Prompt wording is ours, after the structure both share; C's own text can be given as a template file.
- Context composition: P says previous utterances plus video description, C's data is unpublished. Ours:
  ``speaker: text`` lines, then ``Video description: ...``.
- Loss on the answer alone (P leaves it open); C trains on the whole prompt: ``prompt_loss: 1``.
- Optimisation: P uses AdamW, cosine, batch 128, clip 1.0, 4096 tokens; C lr 3e-4, 100 warm-up steps, linear decay,
  batch 60, 256 tokens. Both are configs. Rank, alpha and dropout (8, 64, .05) are C's; P does not state them.
- The base is loaded in bfloat16; C loads it in 8 bits.
- Checkpoints are chosen by validation weighted F1 on the corpus' own dev split; C takes the loss on 500 random
  training samples.
- Answers are read strictly, and an unreadable one counts as wrong. C searches an ordered word list, then digits, and
  takes a *random* label if nothing is found: ``parser: code_literal`` (seeded by the sample's id).
- ``decode: score`` compares the label words' log-probabilities; C generates with 4 beams: ``decode: beam``.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

from zoo.backbones import LoRA
from zoo.schema import Labels, Sample
from zoo.training.sft import SupervisedFineTuning

# C's search order (evaluation script): the first word contained in the answer wins, then the digit of its place in C's
# label order.
CODE_WORDS = (
    ("happy", "joy"),
    ("joy", "joy"),
    ("neutral", "neutral"),
    ("sad", "sadness"),
    ("anger", "anger"),
    ("fear", "fear"),
    ("disgust", "disgust"),
    ("surprise", "surprise"),
)
CODE_DIGITS = ("neutral", "joy", "sadness", "anger", "fear", "disgust", "surprise")


class DialogueLLM(SupervisedFineTuning):
    """An LLM tuned with LoRA to name an emotion from the dialogue context and a video description as text.

    Args:
        llm: folder, published name or hub id of the language model; P: LLaMA-2-7B.
        lora: C: rank 8, alpha 64, dropout .05 on q and v (4,194,304 trainable parameters of LLaMA-2-7B); null trains
            all weights.
        template: ``default`` (the paper's structure), ``short`` (for small models), or a file.
        window: previous turns in the context; P: 1 or 2.
        descriptions: kinds of description in the context; P: ``[video]``.
        parser: how generated answers are read.
    """

    templates = Path(__file__).parent / "templates"

    def __init__(
        self,
        *,
        lora: LoRA | None = None,
        template: str = "default",
        window: int = 2,
        descriptions: list[str] | None = None,
        max_length: int = 4096,
        lr: float = 3e-4,
        parser: Literal["strict", "code_literal"] = "strict",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            lora=lora,
            template=template,
            window=window,
            descriptions=descriptions,
            max_length=max_length,
            lr=lr,
            **kwargs,
        )
        if parser != "strict" and self.decode == "score":
            raise ValueError(
                f"parser {parser} reads generated answers, but decode: score generates none; "
                "set decode to greedy or beam"
            )
        self.parser = parser

    def read_answer(self, sample: Sample, text: str) -> str | None:
        """Return the label that an answer names, as `parser` reads it; None if it is unreadable."""
        if self.parser == "strict":
            return super().read_answer(sample, text)
        return parse_code_literal(text, sample.labels, seed=sample.id)


def parse_code_literal(answer: str, labels: Labels, seed: str) -> str:
    """Read an answer as the authors do, for comparison only: an unreadable answer becomes a random label.

    Raises:
        ValueError: if the corpus lacks a label of the authors' list.
    """
    lacking = sorted({name for _, name in CODE_WORDS} - set(labels.names))
    if lacking:
        raise ValueError(
            f"parser code_literal knows MELD's labels only; {labels.corpus} lacks {lacking}. Use parser: strict"
        )
    text = answer.lower().split(".")[0].split("\n")[0]
    for word, name in CODE_WORDS:
        if word in text:
            return name
    for digit, name in enumerate(CODE_DIGITS):
        if str(digit) in text:
            return name
    return random.Random(seed).choice(labels.names)
