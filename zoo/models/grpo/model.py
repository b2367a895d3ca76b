"""A language model that answers a prompt, reinforced with rewards of your own (GRPO, Shao et al. 2024).

Not one of the papers: the loop itself, for another prompt, another corpus, another reward. A reward is a function of an
`Answer`; nothing else has to be written. See ``notebooks/your_own_reward.ipynb``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.training.grpo import GRPOModule


class GRPO(GRPOModule):
    """A language model that answers freely; its rewards say what a good answer is.

    Args:
        template: ``instruction``, which names the labels, ``default``, which does not (for models that were trained on
            it), or a file, see `zoo.prompts`.
    """

    templates = Path(__file__).parents[1] / "causal_lm" / "templates"

    def __init__(self, *, template: str = "instruction", **kwargs: Any) -> None:
        super().__init__(template=template, **kwargs)
        if not self.reward_funcs:
            raise ValueError("GRPO needs at least one reward: --model.reward_funcs+=my_module.my_reward")
