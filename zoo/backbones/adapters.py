"""LoRA adapters (Hu et al. 2022) of a language model: add them, choose among them, compare with a frozen reference."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

DEFAULT = "default"  # peft's name of the adapter that is trained
REFERENCE = "reference"  # name of the frozen copy of adapters


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (Hu et al. 2022).

    Args:
        r: rank.
        alpha: scale; the update is multiplied by alpha / r.
        dropout: on the adapter's input.
        targets: regular expression that must match the *whole* name of a module of the language model, e.g.
            ``model\\.layers\\.\\d+\\.self_attn\\.(q|v)_proj``; vision and audio encoders can therefore never be
            adapted by accident.
    """

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str = r"model\.layers\.\d+\.self_attn\.(q|v)_proj"

    def __post_init__(self) -> None:
        if self.r < 1 or not 0 < self.alpha < float("inf") or not 0 <= self.dropout < 1:
            raise ValueError(
                f"lora.r {self.r}, lora.alpha {self.alpha}, lora.dropout {self.dropout}: expected r of at least 1, "
                "alpha above 0 and dropout from 0 to below 1"
            )
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(f"lora.targets {self.targets!r} is no regular expression ({error}); correct it") from error


class AdaptedModel(nn.Module):
    """A causal language model of transformers whose linear layers may carry LoRA adapters.

    Attributes:
        model: the transformers model, or peft's wrapper around it once there are adapters.
        lora: settings of the trained adapters; None without any.
        adapter_state: which adapters are in use: "" for the trained ones, "reference", "none", or "use NAME". What was
            computed in one state must not be used in another.
    """

    model: PreTrainedModel | PeftModel

    def __init__(self) -> None:
        super().__init__()
        self.lora: LoRA | None = None
        self.adapter_state = ""

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model itself, adapters inside."""
        if isinstance(self.model, PeftModel):
            return cast(PreTrainedModel, self.model.get_base_model())
        return self.model

    @property
    def _adapter_names(self) -> list[str]:
        """Names of all adapters, the trained ones and the reference included."""
        return list(self.model.peft_config) if isinstance(self.model, PeftModel) else []

    def add_lora(self, lora: LoRA) -> None:
        """Freeze the model and add adapters to every module whose full name matches. ValueError if none does."""
        linears = [name for name, module in self.model.named_modules() if isinstance(module, nn.Linear)]
        names = [name for name in linears if re.fullmatch(lora.targets, name)]
        if not names:
            patterns = sorted({re.sub(r"\.\d+\.", r".N.", name) for name in linears})
            raise ValueError(
                f"no linear layer's full name matches lora.targets {lora.targets!r}; the names are {patterns}"
            )
        self.model = get_peft_model(self.model, _lora_config(lora, names))
        self.lora = lora

    def add_adapter(self, name: str, lora: LoRA, state: Mapping[str, Tensor]) -> None:
        """Add trained adapters under a name of their own; only `use` switches them on.

        Args:
            name: letters, digits, _ and -.
            lora: their settings.
            state: their tensors, by the names that `add_lora` gives them (``....lora_A.default.weight``).

        Raises:
            ValueError: a name that is taken or has dots, no such layers, or tensors that are missing, left over or of
                another shape.
        """
        taken = self._adapter_names
        if name in (*taken, DEFAULT, REFERENCE) or not re.fullmatch(r"[\w-]+", name):
            raise ValueError(
                f"adapters need names of their own, of letters, digits, _ and -; got {name!r}, there are {taken}"
            )
        layers = self.adaptable_layers(lora.targets)
        if not layers:
            raise ValueError(f"no linear layer's full name matches the targets {lora.targets!r} of adapter {name}")
        if isinstance(self.model, PeftModel):
            self.model.add_adapter(name, _lora_config(lora, layers))
        else:
            self.model = get_peft_model(self.model, _lora_config(lora, layers), adapter_name=name)
        self._fill_adapter(name, {n.replace(f".{DEFAULT}.", f".{name}."): tensor for n, tensor in state.items()})
        for module in self.model.modules():  # peft would use the first one everywhere
            if isinstance(module, BaseTunerLayer):
                module._active_adapter = [adapter for adapter in module.active_adapters if adapter == DEFAULT]

    def adaptable_layers(self, targets: str) -> list[str]:
        """Return full names of linear layers that match, whether or not they already carry adapters."""
        return [
            name
            for name, module in self.causal_lm.named_modules()
            if isinstance(module, nn.Linear | BaseTunerLayer)
            and not re.search(r"\.(?:lora_|base_layer)", name)
            and re.fullmatch(targets, name)
        ]

    def _fill_adapter(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Copy trained tensors into an adapter and freeze it. ValueError if they do not fit."""
        parameters = {n: p for n, p in self.named_parameters() if f".{name}." in n and ".lora_" in n}
        misshapen = [n for n in parameters if n in state and state[n].shape != parameters[n].shape]
        if parameters.keys() != state.keys() or misshapen:
            missing, unknown = sorted(parameters.keys() - state.keys()), sorted(state.keys() - parameters.keys())
            raise ValueError(
                f"the tensors of adapter {name} do not fit: missing {missing[:2]}, unknown {unknown[:2]}, of another "
                f"shape {misshapen[:2]}; is it of this language model?"
            )
        for n, parameter in parameters.items():
            parameter.requires_grad_(False).data.copy_(state[n])

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that `use` knows."""
        return tuple(name for name in self._adapter_names if name not in (DEFAULT, REFERENCE))

    @contextlib.contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """Use the adapters that `add_adapter` added under this name; None: no adapters at all.

        A `Prefix` that was computed under others computes its prompt again. ValueError for an unknown name.
        """
        if name is not None and name not in self.adapters:
            raise ValueError(f"no adapter {name!r}; there are {', '.join(self.adapters) or 'none'}")
        with self._in_state("none" if name is None else f"use {name}"), _active_adapter(self.model, name):
            yield

    def keep_reference(self) -> None:
        """Freeze a copy of the adapters as they are now, and make it what `reference` uses.

        For a stage that trains the adapters of an earlier one further. ValueError without LoRA.
        """
        if not isinstance(self.model, PeftModel):
            raise ValueError("keep_reference() needs LoRA: there are no adapters to keep")
        if REFERENCE not in self.model.peft_config:
            self.model.add_adapter(REFERENCE, self.model.peft_config[DEFAULT])
        for name, parameter in self.model.named_parameters():
            if f".{REFERENCE}." in name:
                original = self.model.get_parameter(name.replace(f".{REFERENCE}.", f".{DEFAULT}."))
                parameter.requires_grad_(False)
                if not original.is_meta:  # a model without weights has nothing to copy
                    parameter.data.copy_(original.data)

    @torch.no_grad()
    def mix_into_reference(self, alpha: float) -> None:
        """Move the copy of `keep_reference` towards the trained adapters, by this share of the way, tensor by tensor.

        The product of A and B, which is what adapters add, moves along a curve then. ValueError without the copy.
        """
        copies = {n: p for n, p in self.model.named_parameters() if f".{REFERENCE}." in n}
        if not copies:
            raise ValueError("mix_into_reference() needs the copy that keep_reference() makes")
        for name, copy in copies.items():
            copy.mul_(1 - alpha).add_(
                self.model.get_parameter(name.replace(f".{REFERENCE}.", f".{DEFAULT}.")), alpha=alpha
            )

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Use the model as it was before training: without adapters, or with the copy of `keep_reference`.

        Dropout is off: the copy would answer twice with two distributions else.

        Raises:
            ValueError: without LoRA.
        """
        if not isinstance(self.model, PeftModel):
            raise ValueError("reference() needs LoRA: a fully trained model has no second set of weights to refer to")
        has_copy = REFERENCE in self.model.peft_config
        adapter_off = _active_adapter(self.model, REFERENCE) if has_copy else self.model.disable_adapter()
        training = self.training
        self.eval()
        try:
            with self._in_state(REFERENCE), adapter_off:
                yield
        finally:
            self.train(training)

    @contextlib.contextmanager
    def _in_state(self, adapter_state: str) -> Iterator[None]:
        """Set `adapter_state`, and restore it afterwards."""
        before, self.adapter_state = self.adapter_state, adapter_state
        try:
            yield
        finally:
            self.adapter_state = before


def _lora_config(lora: LoRA, names: Sequence[str]) -> LoraConfig:
    """Return peft's config for adapters on the modules of these names."""
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft divides it by r, so it may be any number
        lora_dropout=lora.dropout,
        target_modules="|".join(map(re.escape, names)),  # a list would match every name that ends like one of them
        bias="none",
        task_type="CAUSAL_LM",
    )


@contextlib.contextmanager
def _active_adapter(model: nn.Module, name: str | None) -> Iterator[None]:
    """Make another adapter the active one, or none. Not peft's `set_adapter`: that also decides what is trained."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer.active_adapters for layer in layers]
    try:
        for layer in layers:
            layer._active_adapter = [] if name is None else [name]
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer._active_adapter = active
