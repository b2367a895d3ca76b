"""The adapters of a language model as an engine takes them: a PEFT folder under a name made of its content."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor

from zoo.backbones.adapters import DEFAULT
from zoo.backbones.llm import LLM

PREFIX = "zoo-"  # of the names of adapters
NOISE = 0.05  # deviation of what `shaken` adapters have in addition


def adapter_tensors(llm: LLM) -> dict[str, Tensor]:
    """Return the trained adapters by the names that PEFT gives them in a file."""
    return {
        name.replace(f".{DEFAULT}.", "."): parameter.detach().cpu().contiguous()
        for name, parameter in llm.model.named_parameters()
        if ".lora_" in name and f".{DEFAULT}." in name
    }


def adapter_version(llm: LLM) -> str:
    """Return a name that stands for the numbers of the trained adapters."""
    digest = hashlib.sha256(json.dumps(_adapter_config(llm), sort_keys=True).encode())
    for name, tensor in sorted(adapter_tensors(llm).items()):
        digest.update(name.encode() + tensor.float().numpy().tobytes())
    return f"{PREFIX}{digest.hexdigest()[:20]}"


def write_adapter(llm: LLM, folder: Path) -> None:
    """Write the trained adapters as a PEFT folder."""
    save_file(adapter_tensors(llm), folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(_adapter_config(llm), indent=1), encoding="utf-8")


def _adapter_config(llm: LLM) -> dict[str, Any]:
    """Return what adapter_config.json says. ValueError without adapters."""
    if not isinstance(llm.model, PeftModel):
        raise ValueError("there are no adapters to send to an engine; add --model.lora")
    config = cast(LoraConfig, llm.model.peft_config[DEFAULT])
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": Path(llm.path).name,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": config.target_modules,
        "inference_mode": True,
    }


@contextlib.contextmanager
def shaken(llm: LLM) -> Iterator[None]:
    """Add small random numbers to the adapters, the same in every process; they get their own back."""
    before = {n: p.detach().clone() for n, p in llm.model.named_parameters() if ".lora_B." in n and f".{DEFAULT}." in n}
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for name, values in before.items():
                noise = NOISE * torch.randn(values.shape, generator=generator)
                llm.model.get_parameter(name).add_(noise.to(values))
        yield
    finally:
        with torch.no_grad():
            for name, values in before.items():
                llm.model.get_parameter(name).copy_(values)
