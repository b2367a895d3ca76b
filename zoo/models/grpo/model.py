"""A language model that answers a prompt, reinforced with rewards of your own (GRPO, Shao et al. 2024).

Not one of the papers: the loop itself, for another prompt, another corpus, another reward. A reward is a function of an
`Answer`; nothing else has to be written. See ``notebooks/your_own_reward.ipynb``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.module import PromptCollator, fitting_length, prompt_reads
from zoo.prompts import load_template
from zoo.reinforced import Reinforced


class GRPO(Reinforced):
    """Answers a prompt freely; its rewards say what a good answer is.

    Args:
        llm: folder, published name or hub id of the language model.
        template: ``instruction``, which names the labels, ``default``, which does not (for models that were trained on
            it), or a file, see `zoo.prompts`.
        window: earlier turns shown.
        descriptions: kinds of description shown.
        verbalizer: label -> word the model says, where it differs.
        max_length: longest prompt in tokens; longer ones lose old turns, then their beginning; counted.
    """

    templates = Path(__file__).parents[1] / "causal_lm" / "templates"

    def __init__(
        self,
        llm: str,
        template: str = "instruction",
        window: int = 0,
        descriptions: list[str] | None = None,
        verbalizer: dict[str, str] | None = None,
        max_length: int = 1024,
        **kwargs: Any,
    ) -> None:
        super().__init__(llm, **kwargs)
        if window < 0 or max_length < 2:
            raise ValueError(f"need window >= 0 and max_length >= 2; got {window} and {max_length}")
        if not self.functions:
            raise ValueError("GRPO needs at least one reward: --model.rewards+=my_module.my_reward")
        self.template, self.verbalizer = load_template(template, self.templates), verbalizer
        self.prompt = {
            "window": window,
            "kinds": tuple(descriptions or ()),
            "verbalizer": verbalizer,
            "max_length": max_length,
        }

    def build(self) -> None:
        super().build()
        self.prompt["max_length"] = fitting_length(self.llm, self.prompt["max_length"], self.max_new_tokens)

    @property
    def reads(self) -> tuple[str, ...]:
        return prompt_reads(self.template, self.prompt["window"], self.prompt["kinds"])

    def collator(self, training: bool) -> PromptCollator:
        return PromptCollator(
            self.llm.tokenizer,
            self.llm.pad_id,
            self.template,
            training=False,
            chat=self.chats,
            system=self.system,
            **self.prompt,
        )
