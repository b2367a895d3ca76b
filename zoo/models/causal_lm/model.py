"""A plain causal language model over labelled or unlabelled text.

Not a paper: the baseline every LLM paper is measured against (few-shot without training, or fine-tuned on text alone),
and the way the zoo's own small backbones are made. Training is next-token prediction over prompt and answer;
``prompt_loss`` weighs the prompt, so 1 is language modelling and 0 is classification.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.module import Supervised


class CausalLM(Supervised):
    """Next-token training over text or labelled samples; ``zoo test --zero_shot`` makes it the few-shot baseline.

    Args:
        llm: folder, published name (e.g. ``tiny-llama``) or hub id of the language model.
        prompt_loss: weight of the prompt's tokens; 1 = language modelling.
        template: ``default``, or a file.
    """

    templates = Path(__file__).parent / "templates"

    def __init__(self, llm: str, prompt_loss: float = 1.0, template: str = "default", **kwargs: Any) -> None:
        super().__init__(llm, prompt_loss=prompt_loss, template=template, **kwargs)
