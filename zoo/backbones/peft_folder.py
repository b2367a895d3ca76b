"""Adapters in a PEFT folder, as peft, TRL and ms-swift write it: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from zoo.backbones.adapters import DEFAULT, LoRA
from zoo.storage import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# options of peft that let the same tensors do something else than ours, unless they are off
OTHER_ADAPTERS = (
    "use_dora",
    "use_rslora",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
)
PLAIN_STARTS = (None, True, False, "gaussian")  # of the adapters; others, as pissa, change the weights beneath them


def read_adapters(folder: Path, lora: LoRA) -> dict[str, Tensor]:
    """Return the tensors of a PEFT folder under the names that `LLM.add_lora` gives them.

    Args:
        folder: with both files; nothing in them is executed or unpickled.
        lora: the adapters of this model, whose rank and scale must be those of the folder.

    Raises:
        ValueError: other adapters than plain LoRA, of another rank or scale, or a damaged file.
    """
    config: Any = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"{folder} holds adapters of the kind {kind}, expected LORA")
    strange = [name for name in OTHER_ADAPTERS if config.get(name)]
    strange += ["bias"] if config.get("bias", "none") != "none" else []
    strange += ["init_lora_weights"] if config.get("init_lora_weights") not in PLAIN_STARTS else []
    if strange:
        values = ", ".join(f"{name} {config[name]!r}" for name in strange)
        raise ValueError(f"{folder} holds adapters with {values}, which plain LoRA does not have; merge them instead")
    stored = config.get("r"), config.get("lora_alpha")
    if stored != (lora.r, lora.alpha):
        raise ValueError(
            f"{folder} has LoRA of r {stored[0]} and alpha {stored[1]}, but this model has r {lora.r} and alpha "
            f"{lora.alpha:g}; give --model.lora.r {stored[0]} --model.lora.alpha {stored[1]}"
        )
    try:
        state = load_file(folder / WEIGHTS)
    except Exception as error:  # safetensors raises types of its own, and OSError; the cause stays chained
        raise ValueError(f"{folder / WEIGHTS} could not be read ({error}); is it truncated?") from error
    return {f"model.{name.removesuffix('.weight')}.{DEFAULT}.weight": tensor for name, tensor in state.items()}
