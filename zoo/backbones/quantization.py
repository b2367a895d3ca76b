"""Frozen linear layers in 4 or 8 bits, by bitsandbytes: a quarter or half of the memory of bfloat16.

``nf4`` are the 4-bit normal floats of QLoRA (Dettmers et al. 2023, section 3), with the scales of blocks of 64 numbers
quantised, too ("double quantisation"); ``int8`` keeps a scale per row of a matrix, and rounds what it multiplies in the
same way (Dettmers et al. 2022, section 2.1, without its treatment of outliers). Layers compute in the dtype in which
the model was read. Embeddings, norms and the head stay as they are. Nothing of a quantised layer enters a checkpoint:
it follows from the backbone's folder.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Quantization = Literal["nf4", "int8"]

NF4_BLOCK = 64  # numbers that share a scale
SCALE_BLOCK = 256  # scales that share a scale, and are bytes themselves


def check(kind: Quantization | None, merge_adapters: bool) -> None:
    """Refuse what cannot be.

    Raises:
        ValueError: bitsandbytes is not installed, or would run code from a model hub; adapters are to be merged.
    """
    if kind is None:
        return
    if merge_adapters:
        raise ValueError("merge_adapters adds adapters to weights, which quantised ones cannot take; leave it out")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"quantize {kind} needs the package bitsandbytes: pip install 'zoo[quantize]'")
    if importlib.util.find_spec("kernels") is not None:
        raise ValueError(
            f"quantize {kind}: the package kernels is installed, with which bitsandbytes downloads compiled code from "
            "a model hub and runs it; uninstall it (pip uninstall kernels)"
        )


def quantize(model: PreTrainedModel, kind: Quantization) -> None:
    """Freeze a language model and replace the linear layers of its decoder by quantised ones, one after another.

    Without weights, on the meta device, they are left as they are.

    Raises:
        ValueError: a layer's rows do not consist of whole blocks of 4-bit numbers.
    """
    for parent, name, linear in _linears(model):
        if kind == "nf4" and linear.in_features % NF4_BLOCK:  # bitsandbytes rounds such rows wrongly on a CPU
            raise ValueError(
                f"nf4 needs layers whose inputs are a multiple of {NF4_BLOCK}, and {name} in {type(parent).__name__} "
                f"has {linear.in_features}; use quantize int8"
            )
    model.requires_grad_(False)
    if model.device.type == "meta":
        return
    for parent, name, linear in list(_linears(model)):
        setattr(parent, name, _quantized(linear, kind))
    # what peft asks before it puts an adapter on such a layer
    setattr(model, {"nf4": "is_loaded_in_4bit", "int8": "is_loaded_in_8bit"}[kind], True)


def quantized_bytes(linear: nn.Linear, kind: Quantization) -> int:
    """Return the bytes of a linear layer's weight once it is quantised."""
    numbers = linear.in_features * linear.out_features
    if kind == "int8":
        return numbers + 4 * linear.out_features
    scales = -(-numbers // NF4_BLOCK)
    return -(-numbers // 2) + scales + 4 * -(-scales // SCALE_BLOCK)


def quantized_linears(model: PreTrainedModel) -> list[nn.Linear]:
    """Return the linear layers of a model that `quantize` replaces."""
    return [linear for _, _, linear in _linears(model)]


def _linears(model: PreTrainedModel) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Yield the linear layers of the decoder with the modules that hold them, and their names there."""
    for parent in model.get_decoder().modules():
        if isinstance(parent, nn.ModuleDict):  # where peft keeps adapters
            continue
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                yield parent, name, child


def _quantized(linear: nn.Linear, kind: Quantization) -> nn.Module:
    """Return a quantised layer with the weight and the bias of another one."""
    from bitsandbytes.nn.modules import Int8Params, Params4bit

    weight, bias = linear.weight.detach(), linear.bias
    sizes = (linear.in_features, linear.out_features, bias is not None)
    made: Any
    if kind == "nf4":
        made = _layer_kinds()[0](*sizes, compute_dtype=weight.dtype, quant_type="nf4", device="meta")
        # it would pack the weights anew in an evaluation, for a kernel of a model hub that rounds to bfloat16
        made.support_avx512bf16_for_cpu = False
        made.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", blocksize=NF4_BLOCK, module=made)
    else:
        made = _layer_kinds()[1](*sizes, has_fp16_weights=False, threshold=0.0, device="meta")
        made.weight = Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    made.bias = bias
    return made.to(weight.device)  # which quantises


@functools.cache
def _layer_kinds() -> tuple[type[nn.Module], type[nn.Module]]:
    """Return bitsandbytes' layers of 4 and of 8 bits, without their weights in the state of a model."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    class Frozen4bit(_NotStored, Linear4bit):
        pass

    class Frozen8bit(_NotStored, Linear8bitLt):
        pass

    return Frozen4bit, Frozen8bit


class _NotStored(nn.Module):
    """A layer whose weight is no part of its state; its bias is."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name, bias in self._biases():
            destination[prefix + name] = bias if keep_vars else bias.detach()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if prefix + "weight" in state_dict:
            error_msgs.append(f"{prefix}weight is quantised here and cannot be replaced; leave --model.quantize out")
        for name, bias in self._biases():
            if prefix + name not in state_dict:
                missing_keys.append(prefix + name)
                continue
            with torch.no_grad():
                bias.copy_(state_dict[prefix + name])

    def _biases(self) -> list[tuple[str, Tensor]]:
        return [(name, p) for name, p in self.named_parameters(recurse=False) if name == "bias"]
