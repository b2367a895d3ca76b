"""The language model inside the folder of a whole vision-language model: `zoo.backbones.LLM` reads it alone.

A folder of Qwen2.5-VL holds a vision tower, a merger and a language model. The language model is a Qwen2 whose tokens
may have three positions (`zoo.backbones.mrope`); its tensors have other names there, which transformers renames when it
reads the whole: ``model.*`` in the files of the hub, ``model.language_model.*`` in those that transformers 5 writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig, Qwen2Config

OTHER_PARTS = ("visual.", "model.visual.")  # beginnings of the names of what is no language model
RENAMED = {r"^model\.language_model\.": "model."}  # names of the files -> names of a Qwen2
NOT_OF_A_DECODER = ("model_type", "architectures", "transformers_version", "dtype", "rope_parameters")


@dataclass(frozen=True)
class InnerDecoder:
    """How the language model of a folder is read.

    Attributes:
        config: its own.
        options: what ``from_pretrained`` needs beside it.
        other_parts: beginnings of the names of tensors that belong to other parts of the folder's model.
        mrope: the sections of positions that the folder's config.json states; None: one position per token.
    """

    config: PreTrainedConfig
    options: Mapping[str, Any] = field(default_factory=dict)
    other_parts: tuple[str, ...] = ()
    mrope: tuple[int, int, int] | None = None

    def own(self, loading_info: Mapping[str, Any]) -> dict[str, Any]:
        """Return what did not fit when the weights were read, without the other parts of the folder's model."""
        left_over = {name for name in loading_info["unexpected_keys"] if not str(name).startswith(self.other_parts)}
        return {**loading_info, "unexpected_keys": left_over} if self.other_parts else dict(loading_info)


def inner_decoder(config: PreTrainedConfig) -> InnerDecoder:
    """Return how the language model of a folder with this config is read; most folders hold nothing else."""
    if config.model_type != "qwen2_5_vl":
        return InnerDecoder(config)
    text = config.get_text_config()
    values = {k: v for k, v in text.to_dict().items() if k not in NOT_OF_A_DECODER}
    rope = dict(text.rope_parameters)
    sections = rope.pop("mrope_section", None)
    values |= {"rope_parameters": rope, "tie_word_embeddings": config.tie_word_embeddings}
    decoder = Qwen2Config(**values)
    mrope = None if sections is None else tuple(sections)
    return InnerDecoder(decoder, {"config": decoder, "key_mapping": RENAMED}, OTHER_PARTS, mrope)


__all__ = ["InnerDecoder", "inner_decoder"]
