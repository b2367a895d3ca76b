"""mini-XCEPTION: a facial-expression network of 58,423 weights, and its published Keras files (HDF5) read with h5py.

Arriaga, Plöger, Valdenegro 2017, "Real-time Convolutional Neural Networks for Emotion and Gender Classification".

Only arrays and the JSON description are read: nothing in the file is executed or unpickled, and a file that describes
any other network is refused, naming the differences.

    grey (N, 1, 64, 64) in [-1, 1] -> two 3x3 convolutions, 62 then 60 px
    -> four blocks: two separable convolutions and max pooling, beside a 1x1 convolution -> (N, 128, 4, 4)
    -> 3x3 convolution to 7 maps -> mean over the map (the softmax is left to the caller)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")  # FER2013's order
SIZE = 64
WIDTHS = (16, 32, 64, 128)
KERAS_EPS, KERAS_MOMENTUM = 1e-3, 0.99  # Keras keeps 99 % of the running statistics; torch counts the other part


def batch_norm(width: int) -> nn.BatchNorm2d:
    """Make a batch norm with Keras' constants."""
    return nn.BatchNorm2d(width, eps=KERAS_EPS, momentum=1 - KERAS_MOMENTUM)


class Separable(nn.Module):
    """3x3 depthwise convolution, then 1x1; neither has a bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class Block(nn.Module):
    """(N, inputs, H, W) -> (N, outputs, ceil(H / 2), ceil(W / 2))."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.first_norm = Separable(inputs, outputs), batch_norm(outputs)
        self.second, self.second_norm = Separable(outputs, outputs), batch_norm(outputs)
        self.side, self.side_norm = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), batch_norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        side = self.side_norm(self.side(x))
        x = F.relu(self.first_norm(self.first(x)))
        x = self.second_norm(self.second(x))
        return max_pool_same(x) + side


def max_pool_same(x: Tensor) -> Tensor:
    """Pool by 3x3, stride 2, with TensorFlow's "same" padding: unlike torch's, after the end of an even side only."""
    padding = []
    for side in (x.shape[-1], x.shape[-2]):
        missing = max((-(-side // 2) - 1) * 2 + 3 - side, 0)
        padding += [missing // 2, missing - missing // 2]
    return F.max_pool2d(F.pad(x, padding, value=-torch.inf), 3, 2)


class MiniXception(nn.Module):
    """The network. `features` gives (N, 128, 4, 4), `forward` the logits (N, 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 8, 3, bias=False), batch_norm(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, bias=False), batch_norm(8)
        self.blocks = nn.ModuleList([Block(i, o) for i, o in zip((8, *WIDTHS), WIDTHS, strict=False)])
        self.head = nn.Conv2d(WIDTHS[-1], len(LABELS), 3, padding=1)

    def features(self, grey: Tensor) -> Tensor:
        """Compute the maps before the head: (N, 1, 64, 64) in [-1, 1] -> (N, 128, 4, 4)."""
        x = F.relu(self.norm1(self.conv1(grey)))
        x = F.relu(self.norm2(self.conv2(x)))
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, grey: Tensor) -> Tensor:
        return self.head(self.features(grey)).mean((2, 3))


# ---- the Keras file
CONVOLUTION = {
    "kernel_size": [3, 3],
    "strides": [1, 1],
    "padding": "valid",
    "dilation_rate": [1, 1],
    "activation": "linear",
    "data_format": "channels_last",
    "use_bias": False,
}
NORM = {"axis": -1, "epsilon": KERAS_EPS, "momentum": KERAS_MOMENTUM, "center": True, "scale": True}
POOL = {"pool_size": [3, 3], "strides": [2, 2], "padding": "same", "data_format": "channels_last"}


def keras_layers() -> dict[str, tuple[str, tuple[str, ...], dict[str, Any], str]]:
    """Describe the network as Keras does: layer name -> (class, names of its inputs, settings, our module's name).

    The numbers in the names are in the order in which the layers were made: the side branch of a block comes first.
    """
    layers: dict[str, tuple[str, tuple[str, ...], dict[str, Any], str]] = {
        "input_1": ("InputLayer", (), {"batch_input_shape": [None, SIZE, SIZE, 1]}, "")
    }
    activations = 0

    def add(kind: str, name: str, inputs: tuple[str, ...], settings: dict[str, Any], ours: str = "") -> str:
        layers[name] = (kind, inputs, settings, ours)
        return name

    def relu(source: str) -> str:
        nonlocal activations
        activations += 1
        return add("Activation", f"activation_{activations}", (source,), {"activation": "relu"})

    def conv(number: int, source: str, ours: str, **settings: Any) -> str:
        return add("Conv2D", f"conv2d_{number}", (source,), CONVOLUTION | settings, ours)

    def separable(number: int, source: str, filters: int, ours: str) -> str:
        settings = CONVOLUTION | {"padding": "same", "filters": filters, "depth_multiplier": 1}
        return add("SeparableConv2D", f"separable_conv2d_{number}", (source,), settings, ours)

    def norm(number: int, source: str, ours: str) -> str:
        return add("BatchNormalization", f"batch_normalization_{number}", (source,), NORM, ours)

    x = relu(norm(1, conv(1, "input_1", "conv1", filters=8), "norm1"))
    x = relu(norm(2, conv(2, x, "conv2", filters=8), "norm2"))
    for i, width in enumerate(WIDTHS):
        block, number = f"blocks.{i}", 3 * i + 3
        options = {"filters": width, "kernel_size": [1, 1], "strides": [2, 2], "padding": "same"}
        side = norm(number, conv(i + 3, x, f"{block}.side", **options), f"{block}.side_norm")
        y = relu(norm(number + 1, separable(2 * i + 1, x, width, f"{block}.first"), f"{block}.first_norm"))
        y = norm(number + 2, separable(2 * i + 2, y, width, f"{block}.second"), f"{block}.second_norm")
        y = add("MaxPooling2D", f"max_pooling2d_{i + 1}", (y,), POOL)
        x = add("Add", f"add_{i + 1}", (y, side), {})
    x = conv(7, x, "head", filters=len(LABELS), padding="same", use_bias=True)
    x = add("GlobalAveragePooling2D", "global_average_pooling2d_1", (x,), {"data_format": "channels_last"})
    add("Activation", "predictions", (x,), {"activation": "softmax"})
    return layers


def keras_arrays(layers: dict[str, tuple[str, tuple[str, ...], dict[str, Any], str]]) -> dict[str, tuple[str, str]]:
    """Map each array of the file, ``layer/array``, to (name in our state dict, how its axes turn)."""
    parts = {
        "Conv2D": {"kernel": ("weight", "dense")},
        "SeparableConv2D": {
            "depthwise_kernel": ("depthwise.weight", "depthwise"),
            "pointwise_kernel": ("pointwise.weight", "dense"),
        },
        "BatchNormalization": {
            "gamma": ("weight", ""),
            "beta": ("bias", ""),
            "moving_mean": ("running_mean", ""),
            "moving_variance": ("running_var", ""),
        },
    }
    arrays = {}
    for name, (kind, _, settings, ours) in layers.items():
        for array, (ending, turn) in parts.get(kind, {}).items():
            arrays[f"{name}/{array}"] = (f"{ours}.{ending}", turn)
        if settings.get("use_bias"):
            arrays[f"{name}/bias"] = (f"{ours}.bias", "")
    return arrays


def read_keras(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict of `MiniXception` (float32) from a Keras 2 file.

    Raises:
        ValueError: not an HDF5 file of Keras, another network, or arrays that are missing, left over, of another shape
            or not finite; each is named.
    """
    import h5py  # here, because nothing else needs it

    try:
        with h5py.File(path, "r") as file:
            if "model_config" not in file.attrs or "model_weights" not in file:
                raise ValueError(f"{path} lacks model_config or model_weights; expected a whole model saved by Keras 2")
            text = file.attrs["model_config"]
            description = json.loads(text.decode() if isinstance(text, bytes) else text)
            file_arrays: dict[str, np.ndarray] = {}

            def take(name: str, item: h5py.Dataset | h5py.Group) -> None:
                if isinstance(item, h5py.Dataset):  # conv2d_1/conv2d_1_1/kernel:0
                    file_arrays[f"{name.split('/')[0]}/{name.split('/')[-1].split(':')[0]}"] = np.asarray(item)

            file["model_weights"].visititems(take)
    except OSError as error:
        raise ValueError(f"{path} is not a readable HDF5 file ({error}); truncated or damaged?") from error
    layers = keras_layers()
    _check_description(path, description, layers)
    arrays = keras_arrays(layers)
    _refuse(path, "arrays", arrays.keys() - file_arrays.keys(), file_arrays.keys() - arrays.keys())
    state, problems = {}, []
    shapes = {k: tuple(v.shape) for k, v in MiniXception().state_dict().items()}
    for name, (ours, turn) in arrays.items():
        array = file_arrays[name]
        if array.ndim == 4:  # (H, W, in, out) -> (out, in, H, W); a depthwise kernel is (H, W, channels, 1)
            array = array.transpose((2, 3, 0, 1) if turn == "depthwise" else (3, 2, 0, 1))
        if array.shape != shapes[ours]:
            problems.append(f"{name} is {array.shape}, expected {shapes[ours]}")
        elif not np.isfinite(array).all():
            problems.append(f"{name} is not finite")
        else:
            state[ours] = torch.from_numpy(np.ascontiguousarray(array, np.float32))
    if problems:
        raise ValueError(f"{path} does not fit mini-XCEPTION: {'; '.join(problems[:4])}")
    for ours in shapes:
        if ours.endswith("num_batches_tracked"):  # torch's own counter; Keras has none
            state[ours] = torch.zeros((), dtype=torch.int64)
    return state


def _check_description(path: str | Path, description: dict[str, Any], layers: dict[str, Any]) -> None:
    """Raise ValueError for a file that describes another network."""
    described = {layer["name"]: layer for layer in description.get("config", {}).get("layers", [])}
    _refuse(path, "layers", layers.keys() - described.keys(), described.keys() - layers.keys())
    problems = []
    for name, (kind, inputs, settings, _) in layers.items():
        layer = described[name]
        nodes = layer["inbound_nodes"]
        sources = tuple(sorted(node[0] for node in nodes[0])) if nodes else ()
        if layer["class_name"] != kind:
            problems.append(f"{name} is a {layer['class_name']}, expected {kind}")
        elif sources != tuple(sorted(inputs)):
            problems.append(f"{name} reads {sources}, expected {inputs}")
        for key, value in settings.items():
            if layer["config"].get(key) != value:
                problems.append(f"{name}.{key} is {layer['config'].get(key)!r}, expected {value!r}")
    if problems:
        raise ValueError(f"{path} is not mini-XCEPTION as published: {'; '.join(problems[:4])}")


def _refuse(path: str | Path, what: str, missing: set[str], left_over: set[str]) -> None:
    """Raise ValueError if anything is missing or left over."""
    if missing or left_over:
        raise ValueError(
            f"{path} is not mini-XCEPTION as published: {len(missing)} {what} missing: {sorted(missing)[:3]}; "
            f"{len(left_over)} left over: {sorted(left_over)[:3]}"
        )
