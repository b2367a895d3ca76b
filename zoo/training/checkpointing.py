"""What a system's checkpoints hold, and how its weights are loaded: strictly, and without the frozen backbones."""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from zoo import weights
from zoo.backbones import LLM
from zoo.backbones.adapters import REFERENCE
from zoo.backbones.frozen import FrozenEncoder
from zoo.backbones.sentence import SentenceEncoder
from zoo.runs import find_checkpoint, portable_path

Backbone = LLM | FrozenEncoder | SentenceEncoder


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return ``state_dict`` and ``zoo`` (the contract) of a .ckpt or weights.safetensors file.

    Raises:
        ValueError: the file is damaged, holds more than tensors and plain values, or has no contract.
    """
    checkpoint = weights.read_checkpoint(path)
    return {"state_dict": dict(checkpoint.state), "zoo": dict(checkpoint.contract)}


def public_path(kind: type) -> str:
    """Return the import path of a class as its package exports it, e.g. ``zoo.models.farcer.FARCER``.

    This is what checkpoints and metrics.json name, so a paper's files can be divided anew.
    """
    module = kind.__module__
    if module.startswith("zoo.models."):
        module = ".".join(module.split(".")[:3])
    return f"{module}.{kind.__qualname__}"


class CheckpointedModule(LightningModule):
    """A module with pretrained backbones whose checkpoints hold only what training changed.

    Args:
        train: regular expressions; a parameter is trained if one matches the whole of its name. None trains whatever
            `build` left trainable (with LoRA: the adapters; else everything).
        start_from: run folder, checkpoint or published name whose weights to begin with. To *resume* a run use
            --ckpt_path.
    """

    owns_no_weights = False  # its weights all come from the runs that its arguments name; it needs no checkpoint
    # options that a published config does not hold: files of the run's machine that nobody else needs
    unpublished_options: ClassVar[tuple[str, ...]] = ("start_from", "cache")
    example_options: ClassVar[tuple[str, ...]] = ()  # those that say how many solved examples a prompt shows

    def __init__(self, train: list[str] | None = None, start_from: str | None = None) -> None:
        super().__init__()
        _check_patterns(train)
        self.train_patterns, self.start_from = train, start_from
        self._built = False
        self.will_load_checkpoint = False  # set by whoever loads a checkpoint later: `start_from` is not read then
        # names of the tensors that hold exactly what a backbone's folder holds
        self.untouched_backbone_tensors: set[str] = set()
        self.identities: dict[str, dict[str, str | None]] = {}  # of the backbones that something identifies

    # ---- what a system fills in
    @abstractmethod
    def build(self) -> None:
        """Make the parts with their pretrained weights, without adapters."""

    def add_adapters(self) -> None:
        """Add adapters, after ``start_from`` was loaded unless it has adapters itself (peft renames what it wraps)."""

    def on_model_complete(self) -> None:
        """React to the model being whole; in a new run it holds the weights of ``start_from``."""

    def backbones(self) -> Mapping[str, Backbone]:
        """Return the backbones by attribute name, whose frozen weights checkpoints leave out.

        A backbone that nothing identifies (`fingerprint` is None: random weights of a ``shape:``) exists nowhere else,
        so its weights are stored all the same.
        """
        return {}

    def shard(self, mesh: DeviceMesh) -> None:
        """Divide the weights over processes (FSDP2).

        Raises:
            ValueError: the system cannot.
        """
        raise ValueError(
            f"{type(self).__name__} does not divide its weights over processes; use --trainer.strategy ddp"
        )

    # ---- building
    def configure_model(self) -> None:
        """Build the model once, load ``start_from``, add adapters, and choose what is trained."""
        if self._built:
            return
        self._built = True
        self.build()
        self._identify_backbones()
        # a run that is resumed or evaluated has the earlier stage's weights in its own checkpoint
        start = None if self.start_from is None or self.will_load_checkpoint else find_checkpoint(self.start_from)
        earlier = read_checkpoint(start) if start is not None else {"state_dict": {}}
        has_adapters = any(".lora_" in name for name in earlier["state_dict"])  # then they are trained further
        if start is not None and not has_adapters:
            self._load_start(start, earlier)
        self._add_adapters()
        if start is not None and has_adapters:
            self._load_start(start, earlier)
        self.on_model_complete()
        self._choose_trained()
        if self.device_mesh is not None:  # Lightning's ModelParallelStrategy
            self._divide(self.device_mesh)

    def build_architecture(self) -> None:
        """Make all parts, adapters included, and choose what is trained; read no weights of an earlier stage.

        For backbones on the meta device, whose sizes are wanted alone.
        """
        self._built = True
        self.build()
        self.add_adapters()
        self.on_model_complete()
        self._choose_trained()

    def _identify_backbones(self) -> None:
        fingerprints = {name: backbone.fingerprint() for name, backbone in self.backbones().items()}
        self.identities = {
            name: {
                "path": portable_path(backbone.path),
                "revision": backbone.revision,
                "fingerprint": fingerprints[name],
            }
            for name, backbone in self.backbones().items()
            if fingerprints[name] is not None
        }
        self.untouched_backbone_tensors = {
            f"{name}.{key}" for name in self.identities for key in self.backbones()[name].state_dict()
        }

    def _add_adapters(self) -> None:
        """Add adapters and follow the names of the backbones' tensors, which peft changes."""
        before = self._parameter_names()
        self.add_adapters()
        after = self._parameter_names()
        renamed = {old: new for key, names in before.items() for old, new in zip(names, after[key], strict=True)}
        names = {renamed.get(name, name) for name in self.untouched_backbone_tensors}
        self.untouched_backbone_tensors = names & set(self.state_dict())

    def _choose_trained(self) -> None:
        if self.train_patterns is None:
            return
        parameters = dict(self.named_parameters())
        for pattern in self.train_patterns:
            if not any(re.fullmatch(pattern, name) for name in parameters):
                raise ValueError(
                    f"train pattern {pattern!r} matches no parameter; names are like {list(parameters)[:3]}"
                )
        for name, parameter in parameters.items():
            parameter.requires_grad_(any(re.fullmatch(p, name) for p in self.train_patterns))

    def _divide(self, mesh: DeviceMesh) -> None:
        if mesh["tensor_parallel"].size() > 1:
            raise ValueError(
                "weights are divided by FSDP2 alone, not by tensor parallelism: set "
                "--trainer.strategy.data_parallel_size to the number of processes, and tensor_parallel_size to 1"
            )
        self.strict_loading = False  # `on_load_checkpoint` is stricter: a checkpoint leaves out what never changed
        self.shard(mesh["data_parallel"])

    def _parameter_names(self) -> dict[int, list[str]]:
        """Return the names of every parameter by its identity; tied weights have several."""
        names: dict[int, list[str]] = {}
        for name, parameter in self.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        return names

    def _load_start(self, path: Path, content: dict[str, Any]) -> None:
        """Load every tensor of an earlier stage; each must have a place of the same shape here."""
        # the earlier stage's own reference is no part of what it learnt
        state = {k: v for k, v in content["state_dict"].items() if f".{REFERENCE}." not in k}
        model_state = self.state_dict()
        if any(".lora_" in k for k in state) and not self._adapters():
            raise ValueError(
                f"{path} holds adapters, this model has none; train them further with the same --model.lora, or merge "
                f"them first (zoo export --ckpt_path {path} --out FOLDER --merge) and start from --model.llm FOLDER"
            )
        self.check_backbones(content["zoo"], path)
        self._check_adapters(content["zoo"], path)
        _check_shapes(state, model_state, path)
        unknown = sorted(set(state) - set(model_state))
        if unknown:
            raise ValueError(f"{path} holds {len(unknown)} tensors that this model lacks: {unknown[:3]} ...")
        weights.refuse_not_finite(state, path)
        # published weights may be stored in half precision
        state = {k: v.to(model_state[k].dtype) for k, v in state.items()}
        changed = {k for k, v in state.items() if not torch.equal(v, model_state[k].cpu())}  # `model_state` is alive
        self.untouched_backbone_tensors -= changed
        self.load_state_dict(model_state | state)
        rank_zero_info(f"started from {path}: {len(state)} tensors")

    # ---- the contract
    def _adapters(self) -> dict[str, dict[str, Any]]:
        """Return the settings of each backbone's adapters, by the backbone's name."""
        lora = {name: getattr(backbone, "lora", None) for name, backbone in self.backbones().items()}
        return {name: asdict(settings) for name, settings in lora.items() if settings is not None}

    def pristine(self) -> set[str]:
        """Return the tensors that still hold exactly what a backbone's folder holds, because nothing trains them."""
        frozen = {n for n, p in self.named_parameters(remove_duplicate=False) if not p.requires_grad}
        return self.untouched_backbone_tensors & frozen

    def contract(self) -> dict[str, Any]:
        """Return what a checkpoint states about itself: class, exact names, and the base models of what it leaves out.

        ``pristine`` is a digest of the names of the tensors that are left out.
        """
        return {
            "format": weights.FORMAT,
            "class": public_path(type(self)),
            "bases": self.identities,
            "adapters": self._adapters(),
            "pristine": _digest(self.pristine()),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what never changed, and add the contract."""
        pristine = self.pristine()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in pristine}
        checkpoint["zoo"] = self.contract()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the checkpoint against this model and add the backbones' own tensors, so that Lightning loads strictly.

        Where weights are divided over processes, Lightning has loaded them already and does not show them.
        """
        path = self.trainer.ckpt_path if self._trainer is not None else "checkpoint"
        if "zoo" not in checkpoint:
            raise ValueError(
                f"{path} was not written by the zoo: it has no contract. Published weights are converted first"
            )
        contract = weights.checked_contract(checkpoint["zoo"], path)
        model_state, divided = self.state_dict(), self.device_mesh is not None
        state = read_checkpoint(Path(str(path)))["state_dict"] if divided else checkpoint["state_dict"]
        if not is_named(type(self), contract["class"]):
            raise ValueError(f"{path} holds a {contract['class']}, but the config builds a {public_path(type(self))}")
        self.check_backbones(contract, path)
        self._check_adapters(contract, path)
        _check_shapes(state, model_state, path)
        absent, unknown = set(model_state) - set(state), sorted(set(state) - set(model_state))
        missing = sorted(absent - self.pristine())
        if missing or unknown or contract["pristine"] != _digest(absent):
            raise ValueError(
                f"{path} does not fit this model: {len(missing)} tensors are missing and would stay at random values "
                f"{missing[:3]}, {len(unknown)} are unknown {unknown[:3]}. Were LoRA, train or the base model changed?"
            )
        weights.refuse_not_finite(state, path)
        self.untouched_backbone_tensors -= set(state)  # what was stored once is stored again
        if not divided:
            checkpoint["state_dict"] = {k: state.get(k, model_state[k]) for k in model_state}

    def check_backbones(self, contract: Mapping[str, Any], path: object) -> None:
        """Check that a checkpoint was trained on the same base models.

        Raises:
            ValueError: one has other weights or another config; it is named.
        """
        for name, present in self.identities.items():
            trained_on = contract["bases"].get(name)
            if trained_on and trained_on["fingerprint"] != present["fingerprint"]:
                raise ValueError(
                    f"{path} was trained on the base model {trained_on['path']!r} (revision {trained_on['revision']}), "
                    f"but {present['path']!r} holds other weights or another config; give its folder with "
                    f"--model.{name}"
                )

    def _check_adapters(self, contract: Mapping[str, Any], path: object) -> None:
        """Check the adapters' settings: their scale stands in no tensor, so a wrong one would pass unnoticed."""
        for name, trained in contract.get("adapters", {}).items():
            present = self._adapters().get(name, {})
            wrong = {
                k: (v, present[k]) for k, v in trained.items() if k in present and k != "dropout" and present[k] != v
            }
            if wrong:
                difference = "; ".join(f"{k} {a!r}, not {b!r}" for k, (a, b) in wrong.items())
                raise ValueError(
                    f"{path} was trained with another LoRA on {name}: {difference}; give the same --model.lora"
                )


def is_named(kind: type, path: str) -> bool:
    """Return whether a contract's class path means this class: its public path, or where an earlier release had it."""
    if path == public_path(kind) or path == f"{kind.__module__}.{kind.__qualname__}":
        return True
    package, _, name = path.rpartition(".")
    return public_path(kind) == f"{package.removesuffix('.model')}.{name}"


def _check_patterns(patterns: Sequence[str] | None) -> None:
    for pattern in patterns or ():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"train pattern {pattern!r} is no regular expression ({error}); correct it") from error


def _check_shapes(state: Mapping[str, Tensor], model_state: Mapping[str, Tensor], path: object) -> None:
    wrong = [
        f"{k} is {tuple(v.shape)}, expected {tuple(model_state[k].shape)}"
        for k, v in state.items()
        if k in model_state and v.shape != model_state[k].shape
    ]
    if wrong:
        raise ValueError(
            f"{path} has {len(wrong)} tensors of another shape (another LoRA rank or base model?): "
            + "; ".join(wrong[:3])
        )


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
