"""Image encoders behind four verbs, whatever library or file their weights come from.

    vision.prepare(frames)          uint8 frames of any size -> the model's own input
    vision.hidden(frames)           one vector per token, before the final norm (`normed=True`: after it)
    vision.cls(frames)              the CLS token's vector
    vision.logits(frames)           class logits, where there is a head

Frames are uint8 (N, 3, H, W), RGB. Transformers' ViT and CLIP, timm models, and mini-XCEPTION are known.
"""

from __future__ import annotations

import copy
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from zoo.backbones import mini_xception
from zoo.backbones.folders import check_folder
from zoo.backbones.frozen import FrozenEncoder
from zoo.backbones.hub import Dtype, new_model_folder, read_weights, refuse_infinite, refuse_misfits, without_key_report
from zoo.backbones.preprocessing import GREY, Preparation
from zoo.backbones.shapes import VISION_SHAPES, shape_named

CLASSES = {  # of transformers; those with an inner tower: its attribute
    "ViTModel": "",
    "ViTForImageClassification": "vit",
    "CLIPVisionModel": "",
    "CLIPVisionModelWithProjection": "vision_model",
    "CLIPForImageClassification": "vision_model",
}
# keys that a folder may hold beyond the tower: the text half of a CLIP and its projections
TEXT_HALF = r"text_model\..*|(vision_model\.)?embeddings\.position_ids|(visual|text)_projection\.weight|logit_scale"


class Vision(FrozenEncoder):
    """An image encoder with its preprocessing.

    Args:
        path: a folder of transformers (ViTModel, ViTForImageClassification, CLIPModel, CLIPVisionModel,
            CLIPVisionModelWithProjection, CLIPForImageClassification) or of timm, a published name, a hub id of either,
            ``timm:NAME`` for timm's pretrained weights, a mini-XCEPTION ``.hdf5``, or ``shape:NAME`` with a name of
            `VISION_SHAPES` for random weights.
        dtype: dtype of the weights. Always explicit, because a folder's own dtype would be taken otherwise.
        revision: hub revision (a commit hash) to pin.
        attention: ``sdpa`` or ``eager``; for transformers only.
        device: ``meta`` builds the architecture without weights.
        gradient_checkpointing: recompute activations in the backward pass.

    Attributes:
        width: numbers per token.
        tokens: tokens per frame, the CLS token included.
        size: side in pixels of the square the model sees.
        has_cls: whether token 0 is a CLS token.
        labels: words of the head's classes, or None without a head or with nameless classes.

    Raises:
        FileNotFoundError: nothing at ``path``, or no weights or no preprocessor_config.json there.
        ValueError: another kind of model, or weights that do not fit or are not finite.
    """

    NOT_FILES = ("shape:", "timm:")
    WHAT, OPTION = "image encoder", "--model.vision"
    shapes = frozenset(VISION_SHAPES)
    passes = ("hidden", "logits")

    # ---- loading
    def load(self, path: str, dtype: torch.dtype, attention: str, device: str | None) -> None:
        """Make or load a model of one of three libraries; see `kind`."""
        self.processor: Any = None  # transformers' own, to be saved again
        self.model: Any  # of one of three libraries, see `kind`
        self.width: int
        self.tokens: int
        self.size: int | None
        self.labels: tuple[str, ...] | None
        if path.startswith("shape:"):
            self._from_shape(dtype, attention, device)
        elif path.startswith("timm:"):
            self._from_timm(path.removeprefix("timm:"), dtype, device)
        else:
            if Path(self.path).is_dir():
                check_folder(self.path, known=False)
            if Path(self.path).is_file():
                self._from_keras(dtype, device)
            elif self._is_timm():
                source = "local-dir" if Path(self.path).is_dir() else "hf-hub"
                pinned = f"@{self.revision}" if self.revision and source == "hf-hub" else ""
                self._from_timm(f"{source}:{self.path}{pinned}", dtype, device)
            else:
                self._from_transformers(dtype, attention, device)
        if device != "meta":
            refuse_infinite(self.model.state_dict(), self.path)

    def _from_shape(self, dtype: torch.dtype, attention: str, device: str | None) -> None:
        """Make a model of transformers with random weights."""
        kind, values, preprocessing = shape_named(self.path, VISION_SHAPES)
        config = getattr(transformers, "ViTConfig" if kind.startswith("ViT") else "CLIPVisionConfig")(**values)
        processor = getattr(transformers, preprocessing["image_processor_type"])
        self.processor = processor(**{k: v for k, v in preprocessing.items() if k != "image_processor_type"})
        with torch.device(device or "cpu"):
            model = getattr(transformers, kind)._from_config(config, dtype=dtype, attn_implementation=attention)
        self._adopt_transformers(model)

    def _from_transformers(self, dtype: torch.dtype, attention: str, device: str | None) -> None:
        """Load a folder or hub model of transformers."""
        config = AutoConfig.from_pretrained(self.path, revision=self.revision)
        kind = (config.architectures or [""])[0]
        if config.model_type == "clip" and kind != "CLIPForImageClassification":
            kind, config = "CLIPVisionModel", config.vision_config  # a whole CLIP: its image half
        if kind not in CLASSES:
            raise ValueError(
                f"{self.path} holds a {kind or config.model_type}; image encoders of transformers known here: "
                f"{', '.join(CLASSES)}, CLIPModel"
            )
        try:
            self.processor = AutoImageProcessor.from_pretrained(self.path, revision=self.revision)
        except OSError as error:
            raise FileNotFoundError(
                f"{self.path} has no preprocessor_config.json: size, mean and deviation of the pixels would be a guess"
            ) from error
        if device == "meta":
            with torch.device("meta"):
                model = getattr(transformers, kind)._from_config(config, dtype=dtype, attn_implementation=attention)
        else:
            model = self._read_weights(getattr(transformers, kind), config, dtype, attention)
        self._adopt_transformers(model)

    def _read_weights(self, kind: type, config: Any, dtype: torch.dtype, attention: str) -> PreTrainedModel:
        """Read the weights of a model of transformers, strictly."""
        with without_key_report():
            model, info = read_weights(
                kind, self.path, config=config, dtype=dtype, revision=self.revision, attn_implementation=attention
            )
        if kind.__name__ == "ViTModel" and set(info["missing_keys"]) == {"pooler.dense.weight", "pooler.dense.bias"}:
            model.pooler = None  # type: ignore[assignment]  # torch takes it for "no module"
            info["missing_keys"] = set()  # it was made without one; nothing here reads it
        info["unexpected_keys"] = {k for k in info["unexpected_keys"] if not re.fullmatch(TEXT_HALF, k)}
        refuse_misfits(info, self.path)
        return model

    def _adopt_transformers(self, model: PreTrainedModel) -> None:
        """Set the attributes for a model of transformers."""
        self.kind, self.model = "transformers", model
        config = self.tower.config
        self.width, self.size, self.has_cls = config.hidden_size, config.image_size, True
        self.tokens = (config.image_size // config.patch_size) ** 2 + 1
        self.preparation = Preparation.of_transformers(self.processor)
        whole: Any = model.config
        words = tuple(whole.id2label[i] for i in range(whole.num_labels)) if self._has_head() else None
        self.labels = None if words is None or all(re.fullmatch(r"LABEL_\d+", w) for w in words) else words
        if self.preparation.size != self.size:
            raise ValueError(
                f"{self.path}: preprocessor_config.json makes {self.preparation.size or 'frames of unequal'} pixels, "
                f"but the model takes {self.size}; one of the two belongs to another model"
            )

    def _is_timm(self) -> bool:
        """Tell whether config.json is one of timm's."""
        file = Path(self.path) / "config.json"
        if not file.is_file():
            file = Path(str(cached_file(self.path, "config.json", revision=self.revision)))
        return '"architecture"' in file.read_text() and '"model_type"' not in file.read_text()

    def _from_timm(self, name: str, dtype: torch.dtype, device: str | None) -> None:
        """Load a model of timm."""
        import timm  # here, because it imports wandb, too: a tenth of the start of every command

        try:
            with torch.device(device or "cpu"):
                model: Any = timm.create_model(name, pretrained=device != "meta")
        except Exception as error:  # unknown names, no network, keys that do not fit: timm raises many types
            raise ValueError(f"timm could not make {name!r} ({type(error).__name__}: {error})") from error
        if not callable(getattr(model, "forward_intermediates", None)):
            raise ValueError(f"timm's {name} gives no feature maps (no forward_intermediates); choose another")
        self.kind, self.model = "timm", model.to(dtype).eval()  # asked below; running statistics must not move
        self.preparation = Preparation.of_timm(model)
        self.size, self.width = self.preparation.size, model.num_features
        self.has_cls = bool(getattr(model, "cls_token", None) is not None)
        words = model.pretrained_cfg.get("label_names")
        self.labels = tuple(words) if words and model.num_classes else None
        with torch.no_grad():  # the number of tokens stands nowhere; asked of one empty picture
            side = cast(int, self.size)  # `Preparation.of_timm` always cuts a square
            model_device = next(model.parameters()).device  # not the default one, which Lightning sets to the card
            empty = torch.zeros(1, 3, side, side, dtype=dtype, device=model_device)
            self.tokens = self._hidden(empty, normed=False).shape[1]

    def _from_keras(self, dtype: torch.dtype, device: str | None) -> None:
        """Load a mini-XCEPTION."""
        if Path(self.path).suffix not in (".hdf5", ".h5"):
            raise ValueError(
                f"{self.path} is a file, but no .hdf5 of mini-XCEPTION; give the folder of any other model"
            )
        state = mini_xception.read_keras(self.path)
        with torch.device(device or "cpu"):
            model = mini_xception.MiniXception()
        if device != "meta":
            model.load_state_dict(state)
        self.kind, self.model, self.preparation = "mini_xception", model.to(dtype), GREY
        self.width, self.size, self.has_cls = mini_xception.WIDTHS[-1], mini_xception.SIZE, False
        self.tokens, self.labels = (self.size // 16) ** 2, mini_xception.LABELS

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward pass, where the model can."""
        if self.kind == "transformers":
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        elif self.kind == "timm":
            self.model.set_grad_checkpointing(True)

    # ---- parts
    @property
    def tower(self) -> Any:
        """The encoder without its head."""
        inner = CLASSES[type(self.model).__name__] if self.kind == "transformers" else ""
        return getattr(self.model, inner) if inner else self.model

    def _has_head(self) -> bool:
        """Tell whether there is a classification head."""
        if self.kind == "transformers":
            return isinstance(getattr(self.model, "classifier", None), nn.Linear)
        return self.kind == "mini_xception" or self.model.num_classes > 0

    # ---- verbs
    def prepare(self, frames: Tensor) -> Tensor:
        """Prepare frames as the model's own preprocessing does: uint8 (N, 3, H, W) RGB -> float32 (N, 3, S, S).

        They are resized, rescaled and normalised; for mini-XCEPTION to (N, 1, 64, 64) in [-1, 1].

        Equal to transformers' torchvision image processors. Beside those that resize with PIL (timm's transform,
        transformers 4), pixels may differ by one step of 255, and by some more where bicubic noise leaves 0..255.
        """
        return self.preparation(frames)

    def _pixels(self, frames: Tensor) -> Tensor:
        """Prepare frames on the device and in the dtype of the weights."""
        return self.prepare(frames.to(self.device)).to(self.dtype)

    def _hidden(self, pixels: Tensor, normed: bool) -> Tensor:
        """Compute every token of the last layer from prepared frames."""
        if self.kind == "mini_xception":
            return self.model.features(pixels).flatten(2).transpose(1, 2)
        if self.kind == "timm":
            prefix = {"return_prefix_tokens": True} if getattr(self.model, "num_prefix_tokens", 0) else {}
            (features,) = self.model.forward_intermediates(
                pixels, indices=1, norm=normed, output_fmt="NCHW", intermediates_only=True, **prefix
            )
            if not prefix:
                return features.flatten(2).transpose(1, 2)
            return torch.cat([features[1], features[0].flatten(2).transpose(1, 2)], 1)
        out = self.tower(pixel_values=pixels, output_hidden_states=True)
        if not normed:
            return out.hidden_states[-1]
        # ViT's last state is normed, CLIP's is not: there only the pooled token passes the norm
        return (
            out.last_hidden_state
            if hasattr(self.tower, "layernorm")
            else self.tower.post_layernorm(out.last_hidden_state)
        )

    def hidden(self, frames: Tensor, normed: bool = False) -> Tensor:
        """Compute every token of the last layer.

        Args:
            frames: (N, 3, H, W) uint8.
            normed: after the model's final norm instead of before it. Models without one (convolutional ones) give
                the same for both.

        Returns:
            (N, tokens, width) in the dtype of the weights; CLS first where there is one, then row by row.
        """
        return self._hidden(self._pixels(frames), normed)

    def cls(self, frames: Tensor, normed: bool = False) -> Tensor:
        """Compute the CLS token of `hidden`: (N, 3, H, W) uint8 -> (N, width). ValueError for a model without one."""
        if not self.has_cls:
            raise ValueError(f"{self.path} has no CLS token; take the mean over its tokens: hidden(frames).mean(1)")
        return self.hidden(frames, normed)[:, 0]

    def logits(self, frames: Tensor) -> Tensor:
        """Classify frames: (N, 3, H, W) uint8 -> (N, classes) logits, in the order of `labels`.

        ValueError for a model without a head.
        """
        if not self._has_head():
            raise ValueError(f"{self.path} has no classification head; train one on hidden(frames) or cls(frames)")
        out = self.model(self._pixels(frames))
        return out.logits if self.kind == "transformers" else out

    def save(self, folder: str | Path, dtype: Dtype = "float32") -> Path:
        """Write config.json, model.safetensors and the preprocessing, as transformers (or timm) itself would.

        Both their `from_pretrained` and this class load it with the same outputs.

        Raises:
            FileExistsError: the folder already holds a model.
            ValueError: mini-XCEPTION, for which there is no such format.
        """
        folder = new_model_folder(folder)
        if self.kind == "mini_xception":
            raise ValueError("mini-XCEPTION has no folder format; its trained weights are in the run's checkpoint")
        model = copy.deepcopy(self.model).to("cpu", getattr(torch, dtype)).requires_grad_(True)
        if self.kind == "timm":
            from timm.models import save_for_hf

            save_for_hf(model, str(folder), safe_serialization=True)
        else:
            transformers_logging.disable_progress_bar()
            model.save_pretrained(folder)
            self.processor.save_pretrained(folder)
        return folder

    def extra_repr(self) -> str:
        return f"{self.path}, {self.tokens} tokens x {self.width}, {self.size} px, {asdict(self.preparation)}"
