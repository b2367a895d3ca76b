"""Weight files of HuBERT: names of torchaudio's model and of transformers', configs, strict loading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import HubertConfig

from zoo.backbones.frozen import WEIGHT_FILES
from zoo.backbones.shapes import AUDIO_SHAPES

# what torchaudio's model is, so what a config must say; a missing value is transformers' default
FIXED = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
    "layer_norm_eps": 1e-5,
}

# ---- one key map, both directions: names in our `hubert` (torchaudio's) <-> names in a transformers folder
_RENAMED = (  # (torchaudio, transformers), beginnings of names; the rest is the same in both
    ("feature_extractor.", "feature_extractor."),
    ("encoder.feature_projection.", "feature_projection."),
    ("encoder.transformer.", "encoder."),
    ("masked_spec_embed", "masked_spec_embed"),
)
# weight norm of the positional convolution: torch's old names (most published files) and its present ones
_WEIGHT_NORM = (("weight_g", "parametrizations.weight.original0"), ("weight_v", "parametrizations.weight.original1"))


def current_name(name: str) -> str:
    """Return a name with the present names of weight norm."""
    for old, new in _WEIGHT_NORM:
        if name.endswith(f"pos_conv_embed.conv.{old}"):
            return name.removesuffix(old) + new
    return name


def to_transformers(state: dict[str, Tensor], old_weight_norm: bool = False) -> dict[str, Tensor]:
    """Rename tensors of torchaudio's model to those of transformers' HubertModel, without the prefix ``hubert.``.

    Args:
        old_weight_norm: write ``weight_g`` and ``weight_v``, as files of transformers 4 before 2023 have them.
    """
    renamed = _rename(state, _RENAMED)
    if old_weight_norm:
        for old, new in _WEIGHT_NORM:
            renamed = {k.removesuffix(new) + old if k.endswith(new) else k: v for k, v in renamed.items()}
    return renamed


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors of transformers' HubertModel to those of torchaudio's model.

    They may have the prefix ``hubert.`` and either weight norm's names. Names that are not known stay as they are, for
    the strict loader to refuse.
    """
    bare = {k.removeprefix("hubert."): v for k, v in state.items()}
    return _rename({current_name(k): v for k, v in bare.items()}, [(b, a) for a, b in _RENAMED])


def _rename(state: dict[str, Tensor], table: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Replace the first beginning of each name that the table has."""
    out = {}
    for name, tensor in state.items():
        old, new = next(((old, new) for old, new in table if name.startswith(old)), ("", ""))
        out[new + name.removeprefix(old)] = tensor
    return out


def read_file(file: Path) -> dict[str, Tensor]:
    """Read a state dict, without unpickling anything but tensors.

    Raises:
        ValueError: a file that cannot be read, or that is no plain state dict.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        if file.suffix not in (*WEIGHT_FILES, ".bin"):
            raise ValueError(f"known files end in .pt, .pth or .safetensors, got {file.name}")
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise many types; the cause stays chained
        raise ValueError(f"the weights in {file} could not be read ({type(error).__name__}: {error})") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{file} holds no plain state dict (name -> tensor); save model.state_dict() alone")
    return state


def config_from_weights(state: dict[str, Tensor], path: str) -> tuple[HubertConfig, bool]:
    """Tell torchaudio's hubert_base and hubert_large apart by their width.

    Returns:
        the config, and whether the waveform is normalised first.

    Raises:
        ValueError: the weights are of neither.
    """
    bias = state.get("encoder.feature_projection.projection.bias")
    width = None if bias is None else len(bias)
    name = {None: None, 768: "hubert-base", 1024: "hubert-large"}.get(width)
    if name is None:
        raise ValueError(
            f"{path} is no state dict of torchaudio's hubert_base (768 wide) or hubert_large (1024): got "
            f"{'no encoder.feature_projection.projection.bias' if width is None else f'width {width}'}"
        )
    values, _ = AUDIO_SHAPES[name]
    conv_bias = "feature_extractor.conv_layers.0.conv.bias" in state
    values = values | {"conv_bias": conv_bias, "mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    return HubertConfig(architectures=["HubertModel"], **values), name == "hubert-large"  # torchaudio's bundles


def refuse_config(config: HubertConfig, path: str) -> None:
    """Raise ValueError for a HuBERT that torchaudio's model cannot be."""
    wrong = {k: getattr(config, k, v) for k, v in FIXED.items() if getattr(config, k, v) != v}
    if getattr(config, "adapter_attn_dim", None) is not None:
        wrong["adapter_attn_dim"] = config.adapter_attn_dim
    if wrong:
        raise ValueError(f"{path}: torchaudio's HuBERT has no {wrong}; expected {FIXED} and no adapters")


def load_strictly(module: nn.Module, path: str, state: dict[str, Tensor]) -> None:
    """Load a state dict. ValueError naming what is missing, left over or of another shape."""
    expected = module.state_dict()
    missing, left_over = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = [
        f"{k}: {tuple(state[k].shape)} in the file, {tuple(v.shape)} in the model"
        for k, v in expected.items()
        if k in state and state[k].shape != v.shape
    ]
    misfits = {"missing": missing, "left over": left_over, "of another shape": shapes}
    problems = [f"{len(names)} {what}: {names[:3]}" for what, names in misfits.items() if names]
    if problems:
        raise ValueError(f"the weights in {path} do not fit: {'; '.join(problems)}")
    module.load_state_dict(state)
