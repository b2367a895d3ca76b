"""What the encoders of pictures and sound have in common."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import nn

from zoo.backbones import hub
from zoo.backbones.divided import blocks_of
from zoo.backbones.folders import reads_folder
from zoo.backbones.hub import Attention, Dtype, refuse_missing_attention

WEIGHT_FILES = (".hdf5", ".h5", ".safetensors", ".pt", ".pth")  # endings of single files that hold a whole encoder


class FrozenEncoder(nn.Module):
    """A pretrained encoder that can be frozen for good.

    Args:
        path: where its weights come from: ``shape:NAME`` for random ones, ``timm:NAME``, or a folder, file, published
            name or hub id, which is searched for.
        dtype: dtype of the weights.
        revision: hub revision (a commit hash) to pin.
        attention: ``sdpa``, ``eager`` or ``flash_attention_2``.
        device: ``meta`` builds the architecture without weights.
        gradient_checkpointing: recompute activations in the backward pass.

    Attributes:
        path: where the weights were found.
        revision: as given.
        frozen: whether `freeze` was called.

    Raises:
        FileNotFoundError: nothing at ``path``.
    """

    NOT_FILES: ClassVar[tuple[str, ...]] = ("shape:",)  # beginnings of paths that name no file
    WHAT: ClassVar[str]  # kind of encoder, for messages
    OPTION: ClassVar[str]  # the option that sets the path
    shapes: ClassVar[frozenset[str]] = frozenset()  # names of ``shape:``
    passes: ClassVar[tuple[str, ...]] = ("hidden",)  # methods that use the weights

    @reads_folder
    def __init__(
        self,
        path: str,
        dtype: Dtype = "float32",
        revision: str | None = None,
        attention: Attention = "sdpa",
        device: str | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        refuse_missing_attention(attention)
        self.revision, self.frozen, self.gradient_checkpointing = revision, False, gradient_checkpointing
        if path.startswith(self.NOT_FILES):
            self.path = path
        else:
            self.path = hub.locate(path, what=self.WHAT, option=self.OPTION, file_suffixes=WEIGHT_FILES)
        self.load(path, getattr(torch, dtype), attention, device)
        self.train()  # transformers loads in eval mode, in which dropout and checkpointing would silently do nothing
        if gradient_checkpointing:
            self.enable_checkpointing()

    def load(self, path: str, dtype: torch.dtype, attention: str, device: str | None) -> None:
        """Make the modules and read their weights.

        Args:
            path: as given; `path` says where it was found.
            dtype: dtype of the weights.
            attention: ``sdpa``, ``eager`` or ``flash_attention_2``.
            device: ``meta`` builds the architecture without weights.
        """
        raise NotImplementedError

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward pass, where the modules have a switch for it."""

    def blocks(self) -> list[nn.Module]:
        """Return the layers that may be divided over processes one by one, in the order in which they compute."""
        return blocks_of(self)

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def freeze(self) -> Self:
        """Switch gradients off, and set eval mode for good.

        `train` leaves a frozen encoder as it is, so that dropout, layer drop and running statistics do not move under a
        model that is trained around it.
        """
        self.requires_grad_(False).eval()
        self.frozen = True
        return self

    def train(self, mode: bool = True) -> Self:
        """Set training or eval mode; a frozen encoder stays in eval mode."""
        return super().train(mode and not self.frozen)

    def fingerprint(self) -> str | None:
        """Return the identity of the weights that `path` names.

        It is that of the folder (`hub.fingerprint`) together with its pytorch_model.bin, if it has one; of a file, the
        sha256 of all of it; of ``timm:NAME``, of the name alone; None for the random weights of ``shape:NAME``.
        """
        if self.path.startswith("shape:"):
            return None
        if self.path.startswith("timm:"):
            return hashlib.sha256(self.path.encode()).hexdigest()
        if Path(self.path).is_file():
            digest, file = hashlib.sha256(), Path(self.path)
        else:
            digest = hashlib.sha256(hub.fingerprint(self.path, self.revision).encode())
            file = Path(self.path) / "pytorch_model.bin"
        if file.is_file():
            with file.open("rb") as f:
                digest.update(hashlib.file_digest(f, "sha256").digest())
        return digest.hexdigest()

    def weights_hash(self) -> str:
        """Return the sha256 of the weights and buffers as they are now, wherever they come from.

        Unlike `fingerprint` it also tells random weights apart, and those that a checkpoint has replaced.
        """
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def find_file(self, name: str) -> Path | None:
        """Return the path of one file of the model; None if it has no such file."""
        return hub.find_file(self.path, name, self.revision)
