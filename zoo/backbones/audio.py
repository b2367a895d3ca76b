"""Audio encoder: HuBERT (Hsu et al. 2021) by torchaudio's model, with weights of transformers or of torchaudio.

    audio.hidden(waves, lengths)              one vector per 20 ms, and how many are true
    audio.pooled(waves, lengths, segments)    their means over equal parts of each clip
    audio.logits(waves, lengths)              class logits, where there is a head

Waves are float32 (B, N) at 16 kHz, padded on the right to any value; lengths (B,) int64 are the true samples. Padding
never changes the result of a clip, beyond floating-point rounding: what comes out is what the clip alone would give.
That is more than transformers and fairseq do for the "base" kind, whose first layer normalises over time: there they
take the padding into the mean and variance (and hubert-base was trained so). Here both run over true frames only.

SpecAugment, which transformers applies in training by default, is not applied.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any, cast

import torch
import torchaudio
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import HubertConfig, Wav2Vec2FeatureExtractor

from zoo.backbones import hubert_weights
from zoo.backbones.folders import check_folder
from zoo.backbones.frozen import FrozenEncoder
from zoo.backbones.hub import Dtype, new_model_folder, refuse_infinite
from zoo.backbones.shapes import AUDIO_SHAPES, shape_named
from zoo.storage import read_json

RATE = 16000
HEADS = ("projector", "classifier", "layer_weights")
KINDS = ("HubertModel", "HubertForSequenceClassification", "HubertForCTC")
RECOGNISER_HEAD = r"lm_head\."  # a recogniser's letters: its encoder alone is used


class Audio(FrozenEncoder):
    """HuBERT with its input normalisation and, where the weights have one, a classification head.

    Args:
        path: a folder of transformers (HubertModel, HubertForSequenceClassification, or the encoder of a
            HubertForCTC), a published name, a hub id, a file of torchaudio's own state dict (``.pt``, ``.pth`` or
            ``.safetensors``; hubert_base or hubert_large), or ``shape:NAME`` with a name of `AUDIO_SHAPES` for random
            weights.
        dtype: dtype of the weights.
        revision: hub revision (a commit hash) to pin.
        device: ``meta`` builds the architecture without weights.
        gradient_checkpointing: recompute each transformer layer in the backward pass.

    Attributes:
        width: numbers per frame.
        rate: samples per second it takes, 16000.
        stride: samples per frame, 320.
        shortest: samples of one frame, 400; a shorter clip is padded with silence to it.
        normalises: whether each clip is brought to mean 0, variance 1 first.
        labels: words of the head's classes, or None without a head or with nameless classes.

    Raises:
        FileNotFoundError: nothing at ``path``, or no weights or no preprocessor_config.json there.
        ValueError: another kind of model, or weights that do not fit or are not finite.
    """

    WHAT, OPTION = "audio encoder", "--model.audio"
    shapes = frozenset(AUDIO_SHAPES)
    passes = ("hidden", "logits", "classify")

    def __init__(
        self,
        path: str,
        dtype: Dtype = "float32",
        revision: str | None = None,
        device: str | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(path, dtype, revision, device=device, gradient_checkpointing=gradient_checkpointing)

    # ---- loading
    def load(self, path: str, dtype: torch.dtype, attention: str, device: str | None) -> None:
        """Make the modules, and read their weights from a folder or from a file of torchaudio's own."""
        state: dict[str, Tensor] | None = None
        if path.startswith("shape:"):
            values, self.normalises = shape_named(path, AUDIO_SHAPES)
            self.config = HubertConfig(architectures=["HubertModel"], **values)
        elif Path(self.path).is_file():
            state = hubert_weights.read_file(Path(self.path))
            self.config, self.normalises = hubert_weights.config_from_weights(state, self.path)
            state = {f"hubert.{hubert_weights.current_name(k)}": v for k, v in state.items()}
        else:
            if Path(self.path).is_dir():
                check_folder(self.path, known=False)
            self.config, self.normalises = self._read_configs()
            state = self._read_folder() if device != "meta" else None
        hubert_weights.refuse_config(self.config, self.path)
        self._build(dtype, device)
        if device != "meta":
            if state is not None:
                self._fill(state)
            refuse_infinite(self.state_dict(), self.path)
        self.width, self.rate = self.config.hidden_size, RATE
        self.stride, self.shortest = 1, 1
        for kernel, stride in reversed(list(zip(self.config.conv_kernel, self.config.conv_stride, strict=True))):
            self.shortest = (self.shortest - 1) * stride + kernel
            self.stride *= stride

    def _build(self, dtype: torch.dtype, device: str | None) -> None:
        """Make the modules that the config describes, with random weights."""
        c = self.config
        with torch.device(device or "cpu"):
            self.hubert = torchaudio.models.wav2vec2_model(
                extractor_mode=f"{c.feat_extract_norm}_norm",
                extractor_conv_layer_config=list(zip(c.conv_dim, c.conv_kernel, c.conv_stride, strict=True)),
                extractor_conv_bias=c.conv_bias,
                encoder_embed_dim=c.hidden_size,
                encoder_projection_dropout=c.feat_proj_dropout,
                encoder_pos_conv_kernel=c.num_conv_pos_embeddings,
                encoder_pos_conv_groups=c.num_conv_pos_embedding_groups,
                encoder_num_layers=c.num_hidden_layers,
                encoder_num_heads=c.num_attention_heads,
                encoder_attention_dropout=c.attention_dropout,
                encoder_ff_interm_features=c.intermediate_size,
                encoder_ff_interm_dropout=c.activation_dropout,
                encoder_dropout=c.hidden_dropout,
                encoder_layer_norm_first=c.do_stable_layer_norm,
                encoder_layer_drop=c.layerdrop,
                aux_num_out=None,
            )
            # SpecAugment's vector: unused here, a buffer so that no optimiser meets it, kept to be written back
            spec_augment = c.mask_time_prob > 0 or c.mask_feature_prob > 0
            self.hubert.register_buffer("masked_spec_embed", torch.rand(c.hidden_size) if spec_augment else None)
            self.projector: nn.Linear | None = None
            self.classifier: nn.Linear | None = None
            self.layer_weights: nn.Parameter | None = None
            if (c.architectures or [""])[0] == "HubertForSequenceClassification":
                self.projector = nn.Linear(c.hidden_size, c.classifier_proj_size)
                self.classifier = nn.Linear(c.classifier_proj_size, cast(int, c.num_labels))
                if c.use_weighted_layer_sum:
                    states = c.num_hidden_layers + 1
                    self.layer_weights = nn.Parameter(torch.full((states,), 1 / states))
        self.to(dtype)

    def _read_configs(self) -> tuple[HubertConfig, bool]:
        """Read the config, and whether the waveform is normalised first."""
        config_file = self.find_file("config.json")
        if config_file is None:
            raise FileNotFoundError(f"{self.path} has no config.json")
        config = read_json(config_file)
        kind = (config.get("architectures") or ["HubertModel"])[0]
        if config.get("model_type") != "hubert" or kind not in KINDS:
            raise ValueError(
                f"{self.path} holds a {kind} (model_type {config.get('model_type')!r}); expected one of "
                f"{', '.join(KINDS)}"
            )
        file = self.find_file("preprocessor_config.json")
        if file is None:
            raise FileNotFoundError(
                f"{self.path} has no preprocessor_config.json: whether the waveform is normalised would be a guess"
            )
        preparation = read_json(file)
        if preparation.get("sampling_rate", RATE) != RATE:
            raise ValueError(f"{self.path} takes {preparation['sampling_rate']} samples a second, expected {RATE}")
        return HubertConfig.from_dict(config), bool(preparation.get("do_normalize", True))

    def _read_folder(self) -> dict[str, Tensor]:
        """Read all tensors of a folder or hub model, under the names of this module."""
        index = self.find_file("model.safetensors.index.json")
        names = sorted(set(read_json(index)["weight_map"].values())) if index else ["model.safetensors"]
        files = [file for name in names if (file := self.find_file(name)) is not None]
        if len(files) < len(names) and not index:
            plain = self.find_file("pytorch_model.bin")  # hubert-base-ls960 is published in this form only
            files = [] if plain is None else [plain]
        if len(files) < len(names):
            raise FileNotFoundError(f"{self.path} has a config.json but lacks {names}, and pytorch_model.bin")
        state: dict[str, Tensor] = {}
        for file in files:
            state |= hubert_weights.read_file(file)
        heads = {k: v for k, v in state.items() if k.split(".")[0] in HEADS}
        encoder = {k: v for k, v in state.items() if k not in heads and not re.match(RECOGNISER_HEAD, k)}
        return {f"hubert.{k}": v for k, v in hubert_weights.from_transformers(encoder).items()} | heads

    def _fill(self, state: dict[str, Tensor]) -> None:
        """Load tensors strictly, under the names of this module."""
        # SpecAugment's vector is unused here: kept if the file has it, whatever the config says
        has_vector = "hubert.masked_spec_embed" in state
        self.hubert.masked_spec_embed = torch.empty(self.config.hidden_size).to(self.dtype) if has_vector else None
        hubert_weights.load_strictly(self, self.path, state)

    # ---- parts
    @property
    def labels(self) -> tuple[str, ...] | None:
        """Words of the head's classes; None without a head or with nameless classes."""
        if self.classifier is None:
            return None
        config: Any = self.config
        words = tuple(config.id2label[i] for i in range(config.num_labels))
        return None if all(re.fullmatch(r"LABEL_\d+", w) for w in words) else words

    def frames(self, lengths: Tensor) -> Tensor:
        """Count frames: (B,) samples -> (B,) int64 frames, at least one."""
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            lengths = (lengths.clamp(min=kernel) - kernel) // stride + 1
        return lengths

    def prepare(self, waves: Tensor, lengths: Tensor) -> Tensor:
        """Prepare waves as the network takes them.

        They get mean 0 and variance 1 over the true samples (where the preprocessing says so), zero after them, and at
        least the length of one frame.

        Args:
            waves: (B, N) float, 16 kHz.
            lengths: (B,) int64, 1..N.

        Returns:
            (B, max(N, shortest)) float32.

        Raises:
            ValueError: other shapes, lengths outside 1..N, or samples that are not finite.
        """
        if waves.ndim != 2 or not waves.is_floating_point() or lengths.shape != waves.shape[:1] or not len(lengths):
            raise ValueError(
                f"expected waves float (B, N) and lengths (B,), got {waves.dtype} {tuple(waves.shape)} and "
                f"{tuple(lengths.shape)}"
            )
        if lengths.is_floating_point() or lengths.min() < 1 or lengths.max() > waves.shape[1]:
            raise ValueError(f"lengths must be whole numbers of samples, 1..{waves.shape[1]}, got {lengths.tolist()}")
        true = torch.arange(waves.shape[1], device=waves.device) < lengths[:, None]
        waves = waves.float().masked_fill(~true, 0.0)
        if not torch.isfinite(waves).all():
            raise ValueError("samples must be finite; got NaN or infinity within the given lengths")
        if self.normalises:
            count = lengths[:, None].float()
            centred = (waves - waves.sum(1, keepdim=True) / count).masked_fill(~true, 0.0)
            waves = centred / (centred.square().sum(1, keepdim=True) / count + 1e-7).sqrt()
        return F.pad(waves, (0, max(0, self.shortest - waves.shape[1])))

    def _extract(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Extract features: (B, N) waves -> (B, T, conv_dim[-1]).

        As torchaudio's feature extractor, except that the norm over time of the "base" kind counts only the frames of
        each clip's own samples.
        """
        x = x[:, None]
        for layer in self.hubert.feature_extractor.conv_layers:
            x = layer.conv(x)
            lengths = (lengths - layer.kernel_size) // layer.stride + 1
            norm = layer.layer_norm
            if isinstance(norm, nn.GroupNorm):
                x = _norm_over_time(x, lengths, norm)
            elif norm is not None:
                x = norm(x)
            x = F.gelu(x)
        return x.transpose(1, 2)

    def _states(self, waves: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        """Compute states (B, T, width) before and after each transformer layer, and the true frames (B,)."""
        dtype, device = self.dtype, next(self.hubert.parameters()).device
        waves, lengths = waves.to(device), lengths.to(device)
        x = self.prepare(waves, lengths).to(dtype)
        lengths = lengths.clamp(min=self.shortest)
        frames = self.frames(lengths)
        x = self.hubert.encoder.feature_projection(self._extract(x, lengths))
        true = torch.arange(x.shape[1], device=device) < frames[:, None]
        x = x.masked_fill(~true[..., None], 0.0)  # as silence past the end to the positional convolution
        mask = None
        if not bool(true.all()):
            mask = torch.zeros(true.shape, dtype=dtype, device=device).masked_fill(~true, -torch.inf)
            mask = mask[:, None, None].expand(-1, 1, x.shape[1], -1)
        transformer = self.hubert.encoder.transformer
        x = x + transformer.pos_conv_embed(x)
        if transformer.layer_norm_first:  # torchaudio's name for: the norm stands before the layers, not after them
            x = transformer.layer_norm(x)
        states = [transformer.dropout(x)]
        for layer in transformer.layers:
            x = states[-1]
            if not (self.training and transformer.layer_drop and torch.rand(()).item() < transformer.layer_drop):
                if self.gradient_checkpointing and self.training:
                    x = checkpoint(layer, x, mask, use_reentrant=False)[0]
                else:
                    x = layer(x, mask)[0]
            states.append(x)
        return states, frames

    def blocks(self) -> list[nn.Module]:
        """Return the layers that may be divided; none if training skips some at random, in each process others."""
        transformer = self.hubert.encoder.transformer
        return [] if transformer.layer_drop else list(transformer.layers)

    # ---- verbs
    def hidden(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute one vector for each 20 ms: transformers' last_hidden_state of the clip alone.

        Args:
            waves: (B, N) float, 16 kHz.
            lengths: (B,) int64, 1..N. A clip shorter than one frame (400 samples) is padded with silence to one.

        Returns:
            (B, T, width), zero after each clip's end, and the true frames (B,) int64, each 1..T.
        """
        states, frames = self._states(waves, lengths)
        transformer, x = self.hubert.encoder.transformer, states[-1]
        if not transformer.layer_norm_first:
            x = transformer.layer_norm(x)
        true = torch.arange(x.shape[1], device=x.device) < frames[:, None]
        return x.masked_fill(~true[..., None], 0.0), frames

    def pooled(self, waves: Tensor, lengths: Tensor, segments: int = 1) -> Tensor:
        """Average `hidden` over equal parts of each clip's true frames.

        Part k of K covers frames floor(k T / K) up to ceil((k + 1) T / K): where T is no multiple of K, neighbours
        share a frame, and a clip of fewer frames than parts repeats them. No part is ever empty.

        Returns:
            (B, segments, width).
        """
        if segments < 1:
            raise ValueError(f"segments must be at least 1, got {segments}")
        hidden, frames = self.hidden(waves, lengths)
        k = torch.arange(segments, device=hidden.device)
        start = k * frames[:, None] // segments  # (B, K)
        end = -(-(k + 1) * frames[:, None] // segments)
        t = torch.arange(hidden.shape[1], device=hidden.device)
        inside = (t >= start[..., None]) & (t < end[..., None])  # (B, K, T)
        return (inside.to(hidden.dtype) @ hidden) / (end - start)[..., None].to(hidden.dtype)

    def logits(self, waves: Tensor, lengths: Tensor) -> Tensor:
        """Classify clips: (B, N) waves -> (B, classes) logits.

        By transformers' head: projector, mean over true frames, classifier. ValueError for weights without a head.
        """
        if self.classifier is None:
            raise ValueError(f"{self.path} has no classification head; train one on pooled(waves, lengths)")
        if self.layer_weights is None:
            x, frames = self.hidden(waves, lengths)
        else:  # as transformers 5: the last layer's state enters before the final norm of the "large" kind
            states, frames = self._states(waves, lengths)
            x = sum(w * state for w, state in zip(self.layer_weights.softmax(0), states, strict=True))
        return self.classify(x, frames)

    def classify(self, x: Tensor, frames: Tensor) -> Tensor:
        """Apply the head alone: (B, T, width) states and true frames (B,) -> (B, classes) logits."""
        true = torch.arange(x.shape[1], device=x.device) < frames[:, None]
        if self.projector is None or self.classifier is None:
            raise ValueError(f"{self.path} has no classification head; train one on hidden(waves, lengths)")
        x = self.projector(x).masked_fill(~true[..., None], 0.0).sum(1) / frames[:, None].to(x.dtype)
        return self.classifier(x)

    def save(self, folder: str | Path, dtype: Dtype = "float32") -> Path:
        """Write config.json, model.safetensors and preprocessor_config.json as transformers would.

        Both its `from_pretrained` and this class load them with the same outputs. FileExistsError if there is a model.
        """
        folder = new_model_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = self.state_dict()
        encoder = {k.removeprefix("hubert."): v for k, v in state.items() if k.startswith("hubert.")}
        encoder = hubert_weights.to_transformers(encoder)
        heads = {k: v for k, v in state.items() if not k.startswith("hubert.")}
        prefix = "hubert." if self.classifier is not None else ""
        tensors = {f"{prefix}{k}": v for k, v in encoder.items()} | heads
        tensors = {k: v.detach().to("cpu", getattr(torch, dtype)).contiguous() for k, v in tensors.items()}
        config = copy.deepcopy(self.config)
        config.architectures = ["HubertForSequenceClassification" if prefix else "HubertModel"]
        config.dtype = dtype
        if self.hubert.masked_spec_embed is None:
            config.mask_time_prob = config.mask_feature_prob = 0.0  # else transformers would expect the vector
        elif not config.mask_time_prob and not config.mask_feature_prob:
            del tensors[f"{prefix}masked_spec_embed"]  # and without these it would find it left over
        config.save_pretrained(folder)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        Wav2Vec2FeatureExtractor(
            do_normalize=self.normalises, return_attention_mask=config.feat_extract_norm == "layer"
        ).save_pretrained(folder)
        return folder

    def extra_repr(self) -> str:
        return f"{self.path}, width {self.width}, {self.rate} Hz, a frame per {self.stride} samples"


def _norm_over_time(x: Tensor, lengths: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Normalise over the first `lengths` frames of (B, C, T), a group per channel; what follows is padding."""
    if bool((lengths == x.shape[2]).all()):
        return norm(x)
    true = (torch.arange(x.shape[2], device=x.device) < lengths[:, None])[:, None]  # (B, 1, T)
    count = lengths[:, None, None].float()
    wide = x.float()
    mean = wide.masked_fill(~true, 0.0).sum(2, keepdim=True) / count
    variance = (wide - mean).masked_fill(~true, 0.0).square().sum(2, keepdim=True) / count
    scale = norm.weight.float()[:, None] * (variance + norm.eps).rsqrt()
    return ((wide - mean) * scale + norm.bias.float()[:, None]).to(x.dtype)
