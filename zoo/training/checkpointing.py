"""What a system's checkpoints hold, and how its weights are loaded: strictly, and without the frozen backbones."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from zoo import weights
from zoo.backbones import LLM, peft_folder
from zoo.backbones.adapters import DEFAULT, REFERENCE
from zoo.backbones.frozen import FrozenEncoder
from zoo.backbones.hub import given_name
from zoo.backbones.image_text import ImageTextModel
from zoo.backbones.sentence import SentenceEncoder
from zoo.runs import find_checkpoint, portable_path
from zoo.training.dividing import DividedModule
from zoo.training.given_features import GivenFeatures
from zoo.training.starts import Start, files_of, fingerprint, place_of, read_chain, read_starts, state_of

Backbone = LLM | ImageTextModel | FrozenEncoder | SentenceEncoder | GivenFeatures


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


class CheckpointedModule(DividedModule):
    """A module with pretrained backbones whose checkpoints hold only what training changed.

    Args:
        train: regular expressions; a parameter is trained if one matches the whole of its name. None trains whatever
            `build` left trainable (with LoRA: the adapters; else everything).
        start_from: run folder, checkpoint or published name whose weights to begin with, or a PEFT folder of adapters
            (of peft, TRL or ms-swift). To *resume* a run use --ckpt_path.
    """

    owns_no_weights = False  # its weights all come from the runs that its arguments name; it needs no checkpoint
    # options that a published config does not hold: files of the run's machine that nobody else needs
    unpublished_options: ClassVar[tuple[str, ...]] = ("start_from", "cache", "feature_folder")
    weightless_options: ClassVar[tuple[str, ...]] = ()  # objects without weights of the model: `zoo memory` makes none
    example_options: ClassVar[tuple[str, ...]] = ()  # those that say how many solved examples a prompt shows

    def __init__(self, train: list[str] | None = None, start_from: str | None = None) -> None:
        super().__init__()
        _check_patterns(train)
        self.train_patterns, self.start_from = train, start_from
        self._built = False
        self.will_load_checkpoint = False  # set by whoever loads a checkpoint later: `start_from` is not read then
        # names of the tensors that hold exactly what a backbone's folder or the start holds
        self.untouched_tensors: set[str] = set()
        self.began_with: Start | None = None  # what the weights came from, if some of them are those of another run
        self.checkpoint_file = Path("checkpoint")  # set by whoever loads one without a trainer
        self._renamed: dict[str, str] = {}  # names before adapters were added -> now
        self.identities: dict[str, dict[str, Any]] = {}  # of the backbones that something identifies

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

    # ---- building
    def configure_model(self) -> None:
        """Build the model once, load ``start_from``, add adapters, and choose what is trained."""
        if self._built:
            return
        self._built = True
        self.build()
        self._identify_backbones()
        # a run that is resumed or evaluated has its weights from its checkpoint, which says what else it needs
        begins = self.start_from is not None and not self.will_load_checkpoint
        file = find_checkpoint(str(self.start_from)) if begins else None
        adapters = file if file is not None and file.name == peft_folder.WEIGHTS else None
        chain = read_chain(file) if file is not None and adapters is None else []
        has_adapters = any(".lora_" in name for earlier in chain for name in earlier.state)  # they are trained further
        if chain and not has_adapters:
            self._load_start(chain)
        self._add_adapters()
        if chain and has_adapters:
            self._load_start(chain)
        if adapters is not None:
            self._load_adapters(adapters.parent)
        self.on_model_complete()
        self._choose_trained()
        if self.device_mesh is not None:  # Lightning's ModelParallelStrategy
            self.strict_loading = False  # `on_load_checkpoint` is stricter: a checkpoint leaves out what never changed
            self.divide_over(self.device_mesh)

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
                **({"quantize": quantize} if (quantize := getattr(backbone, "quantize", None)) else {}),
                **({"features": backbone.record()} if isinstance(backbone, GivenFeatures) else {}),
            }
            for name, backbone in self.backbones().items()
            if fingerprints[name] is not None
        }
        self.untouched_tensors = {
            f"{name}.{key}" for name in self.identities for key in self.backbones()[name].state_dict()
        }

    def _add_adapters(self) -> None:
        """Add adapters and follow the names of the backbones' tensors, which peft changes."""
        before = self._tensor_names()
        self.add_adapters()
        after = self._tensor_names()
        self._renamed = {old: new for key, names in before.items() for old, new in zip(names, after[key], strict=True)}
        names = {self._renamed.get(name, name) for name in self.untouched_tensors}
        self.untouched_tensors = names & set(self.state_dict())
        if self.began_with is not None:
            names = {self._renamed.get(name, name) for name in self.began_with.names}
            self.began_with = dataclasses.replace(self.began_with, names=frozenset(names))

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
            trained = any(re.fullmatch(p, name) for p in self.train_patterns)
            if trained and not parameter.is_floating_point():
                raise ValueError(f"train names {name}, which is quantised; train adapters, or leave quantize out")
            parameter.requires_grad_(trained)

    def _tensor_names(self) -> dict[Tensor, list[str]]:
        """Return the names of every parameter and buffer; tied ones have several."""
        names: dict[Tensor, list[str]] = {}
        parameters, buffers = (find(remove_duplicate=False) for find in (self.named_parameters, self.named_buffers))
        for name, tensor in (*parameters, *buffers):
            names.setdefault(tensor, []).append(name)
        return names

    def _earlier_state(self, chain: Sequence[weights.Checkpoint]) -> dict[str, Tensor]:
        """Return the tensors of an earlier stage, its own starts included, by the names that they have here."""
        # the earlier stage's own reference is no part of what it learnt
        state = state_of(chain).items()
        return {self._renamed.get(k, k): v for k, v in state if f".{REFERENCE}." not in k}

    def _load_start(self, chain: Sequence[weights.Checkpoint]) -> None:
        """Load every tensor of an earlier stage; each must have a place of the same shape here."""
        path, contract, state = chain[0].path, chain[0].contract, self._earlier_state(chain)
        model_state = self.state_dict()
        if any(".lora_" in k for k in state) and not self._adapters():
            raise ValueError(
                f"{path} holds adapters, this model has none; train them further with the same --model.lora, or merge "
                f"them first (zoo export --ckpt_path {path} --out FOLDER --merge) and start from --model.llm FOLDER"
            )
        self.check_backbones(contract, path)
        self._check_adapters(contract, path)
        _check_shapes(state, model_state, path)
        unknown = sorted(set(state) - set(model_state))
        if unknown:
            raise ValueError(f"{path} holds {len(unknown)} tensors that this model lacks: {unknown[:3]} ...")
        weights.refuse_not_finite(state, path)
        # tensor by tensor: published weights may be stored in half precision, and a copy of all of them be too large
        changed = {k for k, v in state.items() if self._differ(k, v, model_state[k].cpu())}
        of_start = frozenset(changed | (set(state) - self.untouched_tensors))
        identity = fingerprint(chain[0])
        self.began_with = Start(place_of(path), identity, of_start, files_of(chain, identity))
        self.untouched_tensors |= of_start
        self.take(state)
        rank_zero_info(f"started from {path}: {len(state)} tensors")

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Give tensors the values of an earlier stage, before they are divided; mapped ones keep those of its file."""
        mapped = {k: v for k, v in state.items() if self._dtype_to_come(k) is not None}
        for name, value in mapped.items():
            self.get_parameter(name).data = value  # stays in its file, too, in the dtype that it has there
        _fill(self.state_dict(), {k: v for k, v in state.items() if k not in mapped})

    def _dtype_to_come(self, name: str) -> torch.dtype | None:
        """Return the dtype that a weight will have once it is divided; None if it has it already."""
        backbone = self.backbones().get(name.partition(".")[0])
        if not isinstance(backbone, LLM) or not backbone.mapped or ".lora_" in name:
            return None
        return backbone.dtype  # a language model has no other tensors in its state

    def _differ(self, name: str, earlier: Tensor, present: Tensor) -> bool:
        """Return whether a tensor of an earlier stage is another one than the model has, in the model's dtype."""
        dtype = self._dtype_to_come(name) or present.dtype
        return not torch.equal(earlier.to(dtype), present.to(dtype))

    def _load_adapters(self, folder: Path) -> None:
        """Load the adapters of a PEFT folder, which must be those of this model, layer by layer.

        Checkpoints hold them whole: the folder is not needed again.
        """
        parts = self.backbones().items()
        adapted = [(name, lora) for name, part in parts if (lora := getattr(part, "lora", None)) is not None]
        if len(adapted) != 1:
            raise ValueError(f"{folder} holds adapters, this model has none; train them further with --model.lora")
        ((backbone, lora),) = adapted
        state = {f"{backbone}.{k}": v for k, v in peft_folder.read_adapters(folder, lora).items()}
        model_state = self.state_dict()
        wanted = {k for k in model_state if k.startswith(f"{backbone}.") and ".lora_" in k and f".{DEFAULT}." in k}
        missing, unknown = sorted(wanted - set(state)), sorted(set(state) - wanted)
        if missing or unknown:
            raise ValueError(
                f"{folder} has adapters on other layers than --model.lora.targets names: {len(missing)} tensors are "
                f"missing {missing[:2]}, {len(unknown)} are left over {unknown[:2]}; give targets that match its layers"
            )
        _check_shapes(state, model_state, folder)
        weights.refuse_not_finite(state, folder)
        _fill(model_state, state)
        rank_zero_info(f"started from the adapters in {folder}: {len(state)} tensors")

    # ---- the contract
    def _adapters(self) -> dict[str, dict[str, Any]]:
        """Return the settings of each backbone's adapters, by the backbone's name."""
        lora = {name: getattr(backbone, "lora", None) for name, backbone in self.backbones().items()}
        return {name: asdict(settings) for name, settings in lora.items() if settings is not None}

    def pristine(self) -> set[str]:
        """Return the tensors that hold exactly what a backbone's folder or the start holds: nothing trains them."""
        frozen = {n for n, p in self.named_parameters(remove_duplicate=False) if not p.requires_grad}
        return self.untouched_tensors & frozen

    def needed_start(self) -> Start | None:
        """Return the start if checkpoints leave out some of what it holds."""
        start = self.began_with
        return start if start is not None and self.pristine() & start.names else None

    def contract(self) -> dict[str, Any]:
        """Return what a checkpoint states about itself: class, exact names, and where what it leaves out is found.

        ``pristine`` is a digest of the names of the tensors that are left out; ``start`` stands there if some of them
        are those of the run that this one started from.
        """
        start = self.needed_start()
        contract = {
            "format": weights.FORMAT if start is None else weights.FORMAT_WITH_START,
            "class": public_path(type(self)),
            "bases": self.identities,
            "adapters": self._adapters(),
            "pristine": _digest(self.pristine()),
        }
        if start is not None:
            contract["start"] = {"path": start.path, "fingerprint": start.fingerprint}
        return contract

    def store_whole(self) -> None:
        """Let checkpoints hold what came from the start, too, so that they stand on the backbones alone."""
        if self.began_with is not None:
            self.untouched_tensors -= self.began_with.names
            self.began_with = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what never changed, and add the contract."""
        pristine = self.pristine()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in pristine}
        checkpoint["zoo"] = self.contract()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the checkpoint against this model and add what it leaves out, so that Lightning loads strictly.

        That is the backbones' own tensors, and those of the run that it started from. Where weights are divided over
        processes, Lightning has loaded the checkpoint's already and does not show them.
        """
        path = Path(str(self.trainer.ckpt_path)) if self._trainer is not None else self.checkpoint_file
        if "zoo" not in checkpoint:
            raise ValueError(
                f"{path} was not written by the zoo: it has no contract. Published weights are converted first"
            )
        contract = weights.checked_contract(checkpoint["zoo"], path)
        model_state, divided = self.state_dict(), self.device_mesh is not None
        state = read_checkpoint(path)["state_dict"] if divided else checkpoint["state_dict"]
        if not is_named(type(self), contract["class"]):
            raise ValueError(f"{path} holds a {contract['class']}, but the config builds a {public_path(type(self))}")
        self.check_backbones(contract, path)
        self._check_adapters(contract, path)
        _check_shapes(state, model_state, path)
        earlier = self._read_start(contract, path)
        absent, unknown = set(model_state) - set(state), sorted(set(state) - set(model_state))
        missing = sorted(absent - self.pristine())
        if missing or unknown or contract["pristine"] != _digest(absent):
            raise ValueError(
                f"{path} does not fit this model: {len(missing)} tensors are missing and would stay at random values "
                f"{missing[:3]}, {len(unknown)} are unknown {unknown[:3]}. Were LoRA, train or the base model changed?"
            )
        weights.refuse_not_finite(state, path)
        self.untouched_tensors -= set(state)  # what was stored once is stored again
        earlier = {k: v for k, v in earlier.items() if k in absent}
        if divided:
            _fill(model_state, earlier)
        else:
            checkpoint["state_dict"] = model_state | earlier | dict(state)

    def _read_start(self, contract: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
        """Return what the run that a checkpoint started from holds; nothing if the checkpoint needs none."""
        chain = read_starts(contract["start"], path, self.start_from, "--model.start_from RUN")
        earlier = self._earlier_state(chain)
        self.store_whole()
        if chain:
            _check_shapes(earlier, self.state_dict(), chain[0].path)
            named, identity = contract["start"]["path"], contract["start"]["fingerprint"]
            self.began_with = Start(named, identity, frozenset(earlier), files_of(chain, identity))
            self.untouched_tensors |= set(earlier)
        return earlier

    def check_backbones(self, contract: Mapping[str, Any], path: object) -> None:
        """Check that a checkpoint was trained on the same base models.

        Raises:
            ValueError: one has other weights or another config, or other features were given; it is named.
        """
        for name, present in self.identities.items():
            trained_on = contract["bases"].get(name)
            if trained_on and trained_on.get("quantize") != present.get("quantize"):
                wanted, got = trained_on.get("quantize"), present.get("quantize")
                raise ValueError(
                    f"{path} was trained on the base model {given_name(trained_on['path'])!r} with quantize {wanted}, "
                    f"but here it is {got}; give --model.quantize {wanted or 'null'}"
                )
            backbone = self.backbones()[name]
            if isinstance(backbone, GivenFeatures) and trained_on and "features" in trained_on:
                backbone.require_same(trained_on["features"], path)
            if trained_on and trained_on["fingerprint"] != present["fingerprint"]:
                base, revision = given_name(trained_on["path"]), trained_on["revision"]
                raise ValueError(
                    f"{path} was trained on the base model {base!r} (revision {revision}), but "
                    f"{given_name(present['path'])!r} holds other weights or another config; give --model.{name} {base}"
                )

    def _check_adapters(self, contract: Mapping[str, Any], path: object) -> None:
        """Check the adapters' settings: their scale stands in no tensor, so a wrong one would pass unnoticed."""
        for name, trained in contract.get("adapters", {}).items():
            present = self._adapters().get(name, {})
            known = {k: v for k, v in trained.items() if k in present and k != "dropout"}
            wrong = {k: (v, present[k]) for k, v in known.items() if present[k] != v}
            if wrong:
                difference = "; ".join(f"{k} {a!r}, not {b!r}" for k, (a, b) in wrong.items())
                raise ValueError(
                    f"{path} was trained with another LoRA on {name}: {difference}; give the same --model.lora"
                )


def _fill(model_state: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write whole tensors into those of a model, in its dtype; each process its own part where they are divided."""
    with torch.no_grad():
        for name, value in values.items():
            target = model_state[name]
            if isinstance(target, DTensor):
                whole = value.to(target.device, target.dtype)
                target.copy_(distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None))
            else:
                target.copy_(value)


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
