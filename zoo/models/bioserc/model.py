"""BiosERC (Xue et al. 2024): a language model reads who a speaker is, and both sides of an utterance.

arXiv 2407.04279; text alone. A large language model first writes a biography of every speaker of every dialogue, from
the words of that dialogue: ``zoo prepare biographies`` asks it, and keeps the answers as descriptions of kind
``biography``. The system reads the speaker's, turns on both sides of the utterance, and the utterance.

It sees **later turns**: of an utterance that was just said there are none yet, and its scores do not compare with those
of systems that read the past alone (`reads` says so). The biography knows the whole dialogue, too.

Differs from the paper (P) and its published code (C):
- Wording of both prompts is ours, after their structure: biography, conversation, question with the labels. P asks
  Llama-2-70B-chat for at most 250 words; whom to ask is an option of the command.
- C writes prompts as chats in ChatML. Here a model without a chat format of its own reads plain text.
- Settings of C are the defaults: lr 3e-4 with linear decay, five turns on each side, NEFTune noise of 5. LLaMA-2-7B
  with LoRA r 32, alpha 128, dropout .05 on all linear layers, 3 epochs of batch 16: ``configs/bioserc/meld.yaml``.
- Answers are compared by the log-probabilities of the label words (``decode: score``); C generates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from zoo.backbones import LoRA
from zoo.training.sft import SupervisedFineTuning


class BiosERC(SupervisedFineTuning):
    """A language model tuned to name the emotion of an utterance from both sides of it and its speaker's biography.

    Args:
        llm: folder, published name or hub id of the language model; P: LLaMA-2-7B.
        lora: C: rank 32, alpha 128, dropout .05 on all linear layers; null trains all weights.
        template: ``default``, ``short`` (for small models), or a file; its variable ``later`` are the later turns.
        window: earlier turns shown.
        later_window: later turns shown; 0 makes it a system that reads the past alone, but for the biographies.
        descriptions: kinds of description shown; P: ``[biography]``, which ``zoo prepare biographies`` writes.
        embedding_noise: of NEFTune.
    """

    templates = Path(__file__).parent / "templates"

    def __init__(
        self,
        *,
        lora: LoRA | None = None,
        template: str = "default",
        window: int = 5,
        later_window: int = 5,
        descriptions: list[str] | None = None,
        embedding_noise: float = 5.0,
        max_length: int = 2048,
        lr: float = 3e-4,
        schedule: Literal["cosine", "linear", "constant"] = "linear",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            lora=lora,
            template=template,
            window=window,
            descriptions=descriptions,
            embedding_noise=embedding_noise,
            max_length=max_length,
            lr=lr,
            schedule=schedule,
            **kwargs,
        )
        if later_window < 0:
            raise ValueError(f"need later_window >= 0, got {later_window}")
        self.later_window = later_window
