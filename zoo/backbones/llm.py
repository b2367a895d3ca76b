"""A causal language model with adapters behind four verbs.

    prefix = llm.encode(ids, mask)            the prompt, computed once
    llm.sample(prefix, n, ...)                n completions of each prompt
    llm.logprobs(prefix, answers, mask)       per-token log-probabilities of given answers, with gradients
    llm.score(prefix, candidates)             log-probability of each candidate answer
    with llm.reference(): ...                 the same weights with the adapter off

Prompts are token ids or embeddings (images and audio enter as embeddings). Prompts are padded on the left, answers on
the right; positions count real tokens, so padding never changes a result beyond floating-point rounding. With
`LLM(mrope=...)`, prompts may bring three positions per token instead (`zoo.backbones.mrope`).
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from zoo.backbones import shared_prefix
from zoo.backbones.chat import with_limits
from zoo.backbones.folders import (
    check_folder,
    check_tokenizer_files,
    check_vocabulary,
    no_safetensors,
    reads_folder,
    refused_by_name,
)
from zoo.backbones.mrope import SectionedRotary
from zoo.backbones.shapes import SHAPES
from zoo.backbones.shared_prefix import Decoding, Packed
from zoo.errors import is_refusal
from zoo.storage import read_json

log = logging.getLogger(__name__)

LOGITS_AT_ONCE = 2**22  # numbers (16 MiB in fp32)
WORTH_LEAVING = 0.75  # finished answers leave the batch when at most this share of it is left

REFERENCE = "reference"  # name of the frozen copy of adapters
REPOSITORY = Path(__file__).resolve().parents[2]  # where `checkpoints/` lies in a clone
Dtype = Literal["float32", "bfloat16", "float16"]


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


class Completions(NamedTuple):
    """Sampled answers. B prompts, n answers each, up to T tokens."""

    ids: Tensor  # (B, n, T) int64, pad after the end
    mask: Tensor  # (B, n, T) bool: True on answer tokens, the end token included
    logprobs: Tensor  # (B, n, T) float32: log-probability under the sampling distribution; 0 where masked
    finished: Tensor  # (B, n) bool: False if cut off at max_new_tokens
    entropy: Tensor  # (B, n, T) float32: of the distribution each token was drawn from, in nats; 0 where masked


@dataclass
class Kept:
    """A fixed beginning that many prompts share, e.g. instructions and solved examples: computed when it is first used,
    and again after the weights have changed (see `LLM.keep`)."""

    ids: Tensor  # (S,) int64
    state: Any = None  # of the weights, when `values` was computed
    values: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # keys and values per layer, (1, Hkv, S, hd)


@dataclass
class Prefix:
    """An encoded prompt batch.

    Attributes:
        embeddings: (B, P, D), left-padded; without the S tokens of `behind`.
        mask: (B, S + P) bool.
        behind: fixed beginning in front of every prompt; None: S is 0.
        cache: keys and values of the S + P tokens; None until a verb needs it.
        logits: (B, V) float32, next-token logits after the prompt; None until a verb needs it.
        reference: whether cache and logits were computed with the adapter off, or with which one of `LLM.use`.
        positions: (3, B, S + P) int64: time, height and width of every token, 0 at padding; None: they are counted.
    """

    embeddings: Tensor
    mask: Tensor
    behind: Kept | None = None
    cache: DynamicCache | None = None
    logits: Tensor | None = None
    reference: bool | str = False
    positions: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """(B,) true prompt lengths, `behind` included."""
        return self.mask.sum(1)

    @property
    def own(self) -> Tensor:
        """(B, P) bool: the mask without `behind`."""
        return self.mask[:, self.mask.shape[1] - self.embeddings.shape[1] :]

    @property
    def after(self) -> Tensor | None:
        """(B,) int64, position of an answer's first token: behind the largest of the prompt's; None: it is counted."""
        return None if self.positions is None else self.positions.amax((0, 2)) + 1

    def following(self, count: int) -> Tensor:
        """(B, T) int64, of an answer's tokens. Needs `positions`."""
        return self.after[:, None] + torch.arange(count, device=self.mask.device)

    def rows(self, index: Tensor) -> Prefix:
        """Some of the prompts, without the padding that only the others needed, nothing computed yet."""
        own = self.own[index]
        first = int(own.any(0).int().argmax())
        start = self.mask.shape[1] - own.shape[1]
        fixed, at = self.mask[index, :start], self.positions
        if at is not None:
            at = torch.cat([at[:, index, :start], at[:, index, start + first :]], 2)
        return Prefix(self.embeddings[index, first:], torch.cat([fixed, own[:, first:]], 1), self.behind, positions=at)

    @staticmethod
    def join(parts: Sequence[Prefix]) -> Prefix:
        """Several batches as one; where only some have `positions`, those of the others are counted. ValueError if they
        do not stand behind the same fixed beginning."""
        if any(part.behind is not parts[0].behind for part in parts):
            raise ValueError("prompts can be joined only behind the same fixed beginning")
        longest = max(part.embeddings.shape[1] for part in parts)
        given = any(part.positions is not None for part in parts)
        embeddings, masks, positions = [], [], []
        for part in parts:
            b, p, _ = part.embeddings.shape
            start = part.mask.shape[1] - p
            fixed = part.mask[:, :start]
            embeddings.append(nn.functional.pad(part.embeddings, (0, 0, longest - p, 0)))
            masks.append(torch.cat([fixed, part.mask.new_zeros(b, longest - p), part.own], 1))
            if given:
                at = counted(part.mask).expand(3, -1, -1) if part.positions is None else part.positions
                positions.append(torch.cat([at[..., :start], at.new_zeros(3, b, longest - p), at[..., start:]], 2))
        at = torch.cat(positions, 1) if given else None
        return Prefix(torch.cat(embeddings), torch.cat(masks), parts[0].behind, positions=at)


def counted(mask: Tensor) -> Tensor:
    """(B, P) bool -> (B, P) int64 positions that count real tokens; padding on the left gets 0."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def locate(path: str) -> str:
    """A model folder, a published name of ``checkpoints/``, or a hub id, in this order.

    Raises:
        FileNotFoundError: if it is none of them, saying where was looked.
    """
    if (Path(path) / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"{path} is a PEFT adapter, not a language model; export with --merge, or use the run itself by --ckpt_path"
        )
    published = REPOSITORY / "checkpoints" / path
    for folder in (Path(path), REPOSITORY / path, published):
        if (folder / "config.json").is_file():
            return str(folder)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not Path(path).exists():
        return path
    raise FileNotFoundError(
        f"no language model at {path!r}: neither a folder with a config.json, nor a published name in "
        f"{published.parent}, "
        "nor a hub id of the form owner/name. Give --model.llm the folder that holds config.json and *.safetensors"
    )


def fingerprint(path: str, revision: str | None = None) -> str:
    """Identity of a base model: sha256 over its config.json and, of every safetensors file, the header and 64 blocks of
    4 KiB spread over it (the whole file of a 7B model would take a minute). Independent of the dtype it is loaded
    in."""
    folder = Path(path)
    if not folder.is_dir():
        with refused_by_name(path):
            folder = Path(cached_file(path, "config.json", revision=revision)).parent
    digest = hashlib.sha256()
    config = read_json(folder / "config.json")
    for key in ("transformers_version", "_name_or_path", "torch_dtype", "dtype"):
        config.pop(key, None)
    digest.update(json.dumps(config, sort_keys=True).encode())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as f:
            header = int.from_bytes(f.read(8), "little")
            digest.update(f.read(min(header, size)))
            for i in range(64):
                f.seek(8 + header + (size - 8 - header) * i // 64)
                digest.update(f.read(4096))
    return digest.hexdigest()


def read_weights(kind: Any, path: str, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """``kind.from_pretrained`` on safetensors alone -> the model, and which keys did not fit (see `refuse_misfits`).

    Raises:
        FileNotFoundError: a folder without safetensors.
        ValueError: files that cannot be read.
    """
    if Path(path).is_dir() and not list(Path(path).glob("*.safetensors")):
        raise no_safetensors(path)
    transformers_logging.disable_progress_bar()
    try:
        return kind.from_pretrained(
            path,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the second value, and refused with their names
            **options,
        )
    except Exception as error:  # transformers and safetensors raise many types; the cause stays chained
        if is_refusal(error):
            raise
        if isinstance(error, ImportError):
            needs = " ".join(str(error).split())
            raise ValueError(f"the config.json of {path} asks for a package that is missing: {needs}") from error
        raise ValueError(
            f"the weights in {path} could not be read ({type(error).__name__}: {error}); "
            "a truncated or damaged download? Fetch the folder again"
        ) from error


def refuse_misfits(info: dict[str, Any], path: str) -> None:
    """ValueError naming the keys that are missing, left over or of another shape."""
    problems = [f"{len(v)} {k.replace('_', ' ')}: {sorted(map(str, v))[:3]}" for k, v in info.items() if v]
    if problems:
        raise ValueError(f"the weights in {path} do not fit its config.json: {'; '.join(problems)}")


def refuse_infinite(tensors: dict[str, Tensor], path: str) -> None:
    """ValueError naming the tensors that hold NaN or infinity."""
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ValueError(f"the weights in {path} are not finite (NaN or infinity) in {len(bad)} tensors: {bad[:3]} ...")


class LLM(nn.Module):
    """A causal LM of transformers, its tokenizer, and optionally LoRA.

    Args:
        path: folder, published name or hub id (see `locate`); or ``shape:NAME`` with a name of `SHAPES` for a model of
            that
            architecture with random weights and no tokenizer.
        dtype: dtype of the weights. Always explicit, because a folder's own dtype would be taken otherwise.
        revision: hub revision (a commit hash) to pin.
        attention: ``sdpa`` or ``eager``; with the first, answers share their prompt (see `zoo.backbones.shared_prefix`)
            in LLaMA, Qwen2 and Qwen3; `plain_because` says why not in others.
        device: ``meta`` builds the architecture without weights.
        gradient_checkpointing: recompute activations in the backward pass.
        mrope: lets prompts bring three positions per token (see `encode`): pairs of channels of a head that turn by
            time, height and width, together half its width, e.g. 16, 24, 24 for one of 128. It is not part of the
            model's config.json: whoever loads exported weights gives it again.

    Raises:
        FileNotFoundError: nothing at ``path``, or no safetensors weights there.
        ValueError: weights that do not fit the config, or that are not finite; ``mrope`` does not fit the model.
    """

    @reads_folder
    def __init__(
        self,
        path: str,
        dtype: Dtype = "float32",
        revision: str | None = None,
        attention: Literal["sdpa", "eager"] = "sdpa",
        device: str | None = None,
        gradient_checkpointing: bool = False,
        mrope: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        self.path, self.revision, self.mrope = path, revision, mrope
        self.lora: LoRA | None = None
        self.adapter_off: bool | str = False  # True inside `reference`; inside `use`, which adapter is on
        torch_dtype = getattr(torch, dtype)
        if path.startswith("shape:"):
            name = path.removeprefix("shape:")
            if name not in SHAPES:
                raise ValueError(f"unknown shape {name!r}; expected one of {', '.join(SHAPES)}")
            kind, values = SHAPES[name]
            config = AutoConfig.for_model(kind, **values)
            self.tokenizer = None
        else:
            path = self.path = locate(path)
            if Path(path).is_dir():
                check_folder(path)
                check_tokenizer_files(path)
            config = AutoConfig.from_pretrained(path, revision=revision)
            self.tokenizer = _load_tokenizer(path, revision)
            check_vocabulary(self.tokenizer, config.get_text_config().vocab_size, path)
        self.pad_id = _pad_id(self.tokenizer, config.vocab_size)
        self.plain_because = shared_prefix.unsupported(config) if attention == "sdpa" else f"attention is {attention}"
        if self.plain_because is None:
            attention = shared_prefix.NAME
        else:
            log.info("%s: every answer computes its prompt again, because %s", self.path, self.plain_because)
        if device == "meta" or self.tokenizer is None:
            with torch.device(device or "cpu"):
                self.model = AutoModelForCausalLM.from_config(config, dtype=torch_dtype, attn_implementation=attention)
        else:
            self.model = self._load(path, torch_dtype, attention)
        self.model.generation_config.pad_token_id = self.pad_id
        if mrope is not None:
            decoder = self.model.get_decoder()
            decoder.rotary_emb = SectionedRotary(getattr(decoder, "rotary_emb", None), mrope)
        self.train()  # transformers loads in eval mode, in which dropout would silently do nothing
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def _load(self, path: str, dtype: torch.dtype, attention: str) -> nn.Module:
        model, info = read_weights(
            AutoModelForCausalLM, path, dtype=dtype, revision=self.revision, attn_implementation=attention
        )
        refuse_misfits(info, path)
        refuse_infinite(dict(model.named_parameters()), path)
        return model

    # ---- adapters
    def add_lora(self, lora: LoRA) -> None:
        """Freezes the model and adds adapters to every module whose full name matches. ValueError if none does."""
        names = [n for n, m in self.model.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(lora.targets, n)]
        if not names:
            linears = sorted(
                {re.sub(r"\.\d+\.", r".N.", n) for n, m in self.model.named_modules() if isinstance(m, nn.Linear)}
            )
            raise ValueError(
                f"no linear layer's full name matches lora.targets {lora.targets!r}; the names are {linears}"
            )
        self.model = get_peft_model(self.model, _lora_config(lora, names))
        self.lora = lora

    def add_adapter(self, name: str, lora: LoRA, state: Mapping[str, Tensor]) -> None:
        """Adds trained adapters under a name of their own; they are used inside `use` alone.

        Args:
            lora: their settings.
            state: their tensors, by the names that `add_lora` gives them (``....lora_A.default.weight``).

        Raises:
            ValueError: a name that is taken or has dots, no such layers, or tensors that are missing, left over or of
                another shape.
        """
        taken = list(self.model.peft_config) if isinstance(self.model, PeftModel) else []
        if name in (*taken, "default", REFERENCE) or not re.fullmatch(r"[\w-]+", name):
            raise ValueError(
                f"adapters need names of their own, of letters, digits, _ and -; got {name!r}, there are {taken}"
            )
        names = [
            n
            for n, m in self.causal_lm.named_modules()
            if isinstance(m, nn.Linear | BaseTunerLayer)
            and not re.search(r"\.(?:lora_|base_layer)", n)
            and re.fullmatch(lora.targets, n)
        ]
        if not names:
            raise ValueError(f"no linear layer's full name matches the targets {lora.targets!r} of adapter {name}")
        if isinstance(self.model, PeftModel):
            self.model.add_adapter(name, _lora_config(lora, names))
        else:
            self.model = get_peft_model(self.model, _lora_config(lora, names), adapter_name=name)
        own = {n: p for n, p in self.named_parameters() if f".{name}." in n and ".lora_" in n}
        given = {n.replace(".default.", f".{name}."): v for n, v in state.items()}
        wrong = [n for n in own if n in given and given[n].shape != own[n].shape]
        if set(own) != set(given) or wrong:
            raise ValueError(
                f"the tensors of adapter {name} do not fit: missing {sorted(set(own) - set(given))[:2]}, unknown "
                f"{sorted(set(given) - set(own))[:2]}, of another shape {wrong[:2]}; is it of this language model?"
            )
        for n, parameter in own.items():
            parameter.requires_grad_(False).data.copy_(given[n])
        for layer in self.model.modules():  # peft would use the first one everywhere
            if isinstance(layer, BaseTunerLayer):
                layer._active_adapter = [a for a in layer.active_adapters if a == "default"]

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that `use` knows."""
        names = self.model.peft_config if isinstance(self.model, PeftModel) else ()
        return tuple(n for n in names if n not in ("default", REFERENCE))

    @contextlib.contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """Inside, the adapters of `add_adapter` under this name are in use; None: none are. A `Prefix` that was made
        under others computes its prompt again. ValueError for an unknown name."""
        if name is not None and name not in self.adapters:
            raise ValueError(f"no adapter {name!r}; there are {', '.join(self.adapters) or 'none'}")
        before, self.adapter_off = self.adapter_off, True if name is None else f"use {name}"
        try:
            with _adapter(self.model, name):
                yield
        finally:
            self.adapter_off = before

    def keep_reference(self) -> None:
        """From now on `reference` is the model with its adapters as they are now (a frozen copy), not without them: for
        a stage that trains the adapters of an earlier one further. ValueError without LoRA."""
        if not isinstance(self.model, PeftModel):
            raise ValueError("keep_reference() needs LoRA: there are no adapters to keep")
        if REFERENCE not in self.model.peft_config:
            self.model.add_adapter(REFERENCE, self.model.peft_config["default"])
        for name, parameter in self.model.named_parameters():
            if f".{REFERENCE}." in name:
                original = self.model.get_parameter(name.replace(f".{REFERENCE}.", ".default."))
                parameter.requires_grad_(False).data.copy_(original.data)

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the adapter is off, or is the one of `keep_reference`: the model as it was before training. Needs
        LoRA (ValueError otherwise)."""
        if not isinstance(self.model, PeftModel):
            raise ValueError("reference() needs LoRA: a fully trained model has no second set of weights to refer to")
        before, self.adapter_off = self.adapter_off, True
        try:
            kept = REFERENCE in self.model.peft_config
            with _adapter(self.model, REFERENCE) if kept else self.model.disable_adapter():
                yield
        finally:
            self.adapter_off = before

    # ---- parts
    def fingerprint(self) -> str | None:
        """Identity of the weights `path` names (see `fingerprint`); None for random weights of a ``shape:``."""
        return None if self.tokenizer is None else fingerprint(self.path, self.revision)

    @property
    def causal_lm(self) -> nn.Module:
        """The transformers model itself, adapters inside."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def width(self) -> int:
        return self.causal_lm.config.hidden_size

    @property
    def eos_ids(self) -> list[int]:
        """Tokens that end an answer: the tokenizer's and the generation config's."""
        eos = self.causal_lm.generation_config.eos_token_id
        ids = set(eos if isinstance(eos, list) else [eos]) | {self.tokenizer.eos_token_id if self.tokenizer else None}
        return sorted(i for i in ids if i is not None)

    def embed(self, ids: Tensor) -> Tensor:
        """(...,) token ids -> (..., D)."""
        return self.causal_lm.get_input_embeddings()(ids)

    def head(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V) float32 logits."""
        return self.causal_lm.get_output_embeddings()(hidden).float()

    def hidden(
        self, embeddings: Tensor, mask: Tensor, cache: DynamicCache | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Last hidden states.

        Args:
            embeddings: (B, T, D).
            mask: (B, C + T) bool over cached and new tokens, True on real ones.
            cache: C cached tokens; extended in place.
            positions: (B, T or more) or, with `mrope`, (3, B, T or more) int64, the last T of which are those of the
                new tokens; None: real tokens are counted.

        Returns:
            (B, T, D).
        """
        positions = (counted(mask) if positions is None else positions)[..., -embeddings.shape[1] :]
        with contextlib.nullcontext() if cache is None else _no_checkpointing(self.causal_lm):
            return self.causal_lm.get_decoder()(
                inputs_embeds=embeddings,
                attention_mask=mask.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state

    # ---- verbs
    def keep(self, ids: Tensor) -> Kept:
        """(S,) int64 -> a fixed beginning for `encode`: its keys and values are computed once and used, un-copied where
        possible, by every prompt behind it, until weights or adapter switch change. ValueError if it is empty."""
        if ids.ndim != 1 or not len(ids):
            raise ValueError(f"a fixed beginning is a row of at least one token id, got a tensor of {tuple(ids.shape)}")
        return Kept(ids)

    def encode(
        self, prompt: Tensor, mask: Tensor, behind: Kept | None = None, positions: Tensor | None = None
    ) -> Prefix:
        """Prompt ids (B, P) int64 or embeddings (B, P, D), left-padded, with mask (B, P) -> Prefix.

        Args:
            behind: a fixed beginning in front of every prompt (`keep`).
            positions: (3, B, P) int64, time, height and width of every token (`zoo.backbones.mrope`), 0 being the first
                position behind `behind`; what padding holds does not matter. An answer goes on after the largest. None:
                real tokens are counted, which is three equal positions.

        Raises:
            ValueError: if a prompt is empty or not padded on the left; positions without `mrope`, of another shape or
                dtype, or below 0.
        """
        mask = mask.bool()
        if not mask[:, -1].all():
            raise ValueError("prompts must be padded on the left and hold at least one token")
        if positions is not None:
            positions = self._checked(positions, mask)
        if behind is not None:
            fixed = mask.new_ones(len(mask), len(behind.ids))
            mask = torch.cat([fixed, mask], 1)
            if positions is not None:
                positions = torch.cat([counted(fixed).expand(3, -1, -1), positions + len(behind.ids)], 2)
        embeddings = prompt if prompt.is_floating_point() else self.embed(prompt)
        return Prefix(embeddings, mask, behind, positions=positions)

    def _checked(self, positions: Tensor, mask: Tensor) -> Tensor:
        """(3, B, P) positions, 0 at padding."""
        if self.mrope is None:
            raise ValueError("three positions per token need LLM(..., mrope=(time, height, width)); this one has none")
        if positions.shape != (3, *mask.shape) or positions.dtype != torch.int64:
            raise ValueError(
                f"positions must be int64 of shape {(3, *mask.shape)} (time, height, width; prompts; tokens), got "
                f"{positions.dtype} of shape {tuple(positions.shape)}"
            )
        positions = positions.masked_fill(~mask, 0)
        if positions.min() < 0:
            raise ValueError(f"positions must be 0 or more, got {int(positions.min())}")
        return positions

    def _weights(self) -> tuple:
        """Changes whenever a weight, the adapter switch or the device does."""
        versions = sum(0 if p.is_inference() else p._version for p in self.parameters())
        return self.adapter_off, versions, next(self.parameters()).device

    def _values(self, kept: Kept) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of a fixed beginning, per layer."""
        state = self._weights()
        if kept.state != state:
            with torch.inference_mode(False), torch.no_grad(), _evaluating(self):
                ids = kept.ids.to(state[-1])[None].clone()
                cache = DynamicCache(config=self.causal_lm.config)
                self.hidden(self.embed(ids), torch.ones_like(ids, dtype=torch.bool), cache)
            kept.values, kept.state = [(layer.keys, layer.values) for layer in cache.layers], state
        return kept.values

    @torch.no_grad()
    def prefill(self, prefix: Prefix) -> None:
        """Computes keys, values and next-token logits of the prompts, unless they are there. The verbs do it where they
        need it; `score` does without, so call this before it if several verbs follow."""
        if prefix.cache is None or prefix.reference != self.adapter_off:
            prefix.reference = self.adapter_off
            prefix.cache = DynamicCache(config=self.causal_lm.config)
            if prefix.behind is not None:
                for layer, (key, value) in enumerate(self._values(prefix.behind)):
                    b = len(prefix.mask)
                    prefix.cache.update(key.expand(b, -1, -1, -1), value.expand(b, -1, -1, -1), layer)
            hidden = self.hidden(prefix.embeddings, prefix.mask, prefix.cache, prefix.positions)
            prefix.logits = self.head(hidden[:, -1])

    def _whole(self, prefix: Prefix) -> Tensor:
        """(B, S + P, D) embeddings of prompts with their fixed beginning."""
        if prefix.behind is None:
            return prefix.embeddings
        fixed = self.embed(prefix.behind.ids.to(prefix.embeddings.device))
        return torch.cat([fixed.expand(len(prefix.embeddings), -1, -1), prefix.embeddings], 1)

    def _follow(self, embeddings: Tensor, plan: Packed | Decoding) -> Tensor:
        """Last hidden states of tokens (B, S, D) that attend as a plan says."""
        return self.causal_lm.get_decoder()(
            inputs_embeds=embeddings,
            attention_mask=embeddings.new_ones(shared_prefix.NO_MASK),
            position_ids=plan.positions,
            use_cache=False,
            plan=plan,
        ).last_hidden_state

    @torch.no_grad()
    def sample(
        self,
        prefix: Prefix,
        n: int = 1,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Completions:
        """n answers of each prompt, until an end token or ``max_new_tokens``; ``temperature`` 0 is greedy.

        Dropout is off. A prompt's keys and values serve its n answers without being copied, and finished answers leave
        the batch.
        """
        with _evaluating(self):
            self.prefill(prefix)
            b, device = prefix.mask.shape[0], prefix.mask.device
            step = (_PlainStep if self.plain_because else _SharedStep)(self, prefix, n, max_new_tokens)
            ids = torch.full((b * n, max_new_tokens), self.pad_id, device=device)
            mask = torch.zeros_like(ids, dtype=torch.bool)
            logprobs = torch.zeros_like(ids, dtype=prefix.logits.dtype)
            entropy = torch.zeros_like(logprobs)
            eos = torch.tensor(self.eos_ids, device=device)
            rows = torch.arange(b * n, device=device)  # the answers in the batch, grouped by prompt
            alive = torch.ones_like(rows, dtype=torch.bool)
            logits = prefix.logits.repeat_interleave(n, 0)
            for t in range(max_new_tokens):
                logp = torch.log_softmax(logits / temperature if temperature else logits, -1)
                p = logp.exp()
                token = torch.multinomial(p, 1, generator=generator)[:, 0] if temperature else logp.argmax(-1)
                written = rows[alive]
                ids[written, t], mask[written, t] = token[alive], True
                logprobs[written, t] = logp.gather(1, token[:, None])[alive, 0]
                entropy[written, t] = -(p * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(1)[alive]
                alive = alive & ~torch.isin(token, eos)
                if not alive.any() or t + 1 == max_new_tokens:
                    break
                kept = step.keep(alive)
                rows, alive, token = rows[kept], alive[kept], token[kept]
                logits = self.head(step(token))
        finished = torch.ones(b * n, dtype=torch.bool, device=device)
        finished[rows] = ~alive
        t = int(mask.any(0).sum())
        ids, mask, logprobs, entropy = (x[:, :t].reshape(b, n, t) for x in (ids, mask, logprobs, entropy))
        return Completions(ids, mask, logprobs, finished.view(b, n), entropy)

    def logprobs(
        self, prefix: Prefix, answers: Tensor, mask: Tensor, temperature: float = 1.0, targets: Tensor | None = None
    ) -> Tensor:
        """Per-token log-probabilities of given answers, with gradients.

        A prompt is computed once for all its answers (`zoo.backbones.shared_prefix`), and only the states before answer
        tokens reach the vocabulary.

        Args:
            answers: (B, n, T) int64, right-padded.
            mask: (B, n, T) bool.
            temperature: of the distribution, as in `sample`; above 0.
            targets: (B, n, T) int64: the tokens whose log-probabilities are wanted, where they are not the answers that
                were read before them (training on a model's own answers).

        Returns:
            (B, n, T) float32; 0 where masked.
        """
        b, n, t = answers.shape
        embedded = self.embed(answers.view(b, n * t))
        if self.plain_because is None:
            if prefix.behind is not None and not any(p.requires_grad for p in self.parameters()):
                before, prompt = prefix.mask[:, : -prefix.own.shape[1]], prefix.embeddings  # a frozen model: as kept
                plan = Packed(prefix.own, mask, before, self._values(prefix.behind), prefix.positions)
            else:
                prompt, plan = self._whole(prefix), Packed(prefix.mask, mask, at=prefix.positions)
            hidden = self._follow(torch.cat([prompt, embedded], 1), plan)
            p = prompt.shape[1]
            first = hidden[:, None, p - 1 : p].expand(b, n, 1, -1)  # the state behind the prompt predicts every first
            before = torch.cat([first, hidden[:, p:].view(b, n, t, -1)[:, :, :-1]], 2)
        else:
            rows = torch.cat([self._whole(prefix).repeat_interleave(n, 0), embedded.view(b * n, t, -1)], 1)
            real = torch.cat([prefix.mask.repeat_interleave(n, 0), mask.view(b * n, t)], 1)
            at = prefix.positions
            if at is not None:
                at = torch.cat([at, prefix.following(t).expand(3, -1, -1)], 2).repeat_interleave(n, 1)
            before = self.hidden(rows, real, positions=at)[:, -t - 1 : -1].view(b, n, t, -1)
        found = self._token_logprobs(before[mask], (answers if targets is None else targets)[mask], temperature)
        return found.new_zeros(b, n, t).masked_scatter(mask, found)

    def _token_logprobs(self, hidden: Tensor, ids: Tensor, temperature: float) -> Tensor:
        """(N, D) states and (N,) tokens -> (N,) float32 log-probabilities, some rows at a time: the logits of all of
        them would be the largest tensor of a step. They are not kept for the backward pass either: through a frozen
        head their slopes are (`_Slopes`), through a trained one they are computed again."""

        def some(hidden: Tensor, ids: Tensor) -> Tensor:
            logits = self.head(hidden) / temperature
            return logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(1)

        size = max(1, LOGITS_AT_ONCE // self.causal_lm.config.vocab_size)
        parts = list(zip(hidden.split(size), ids.split(size), strict=True))
        frozen = not any(p.requires_grad for p in self.causal_lm.get_output_embeddings().parameters())
        if torch.is_grad_enabled() and frozen and hidden.requires_grad:
            return _Slopes.apply(hidden, some, parts)
        if len(parts) <= 1 or not torch.is_grad_enabled():
            return torch.cat([some(*part) for part in parts]) if parts else hidden.new_zeros(0, dtype=torch.float32)
        return torch.cat([checkpoint(some, *part, use_reentrant=False) for part in parts])

    @torch.no_grad()
    def check_sharing(self) -> float | None:
        """Compares answers that share their prompt with answers that each have their own, once, on this machine in this
        dtype: a backend that drops the mask would train on wrong gradients without an error.

        Returns:
            largest difference of a log-probability; None if this model does not share.

        Raises:
            RuntimeError: the difference is of the size of what a dropped mask makes.
        """
        if self.plain_because is not None:
            return None
        device = next(self.parameters()).device
        ids = (torch.arange(2 * 24, device=device).view(2, 24) * 7919 + 11) % self.causal_lm.config.vocab_size
        prompt, answers = ids[:, :12], ids[:, 12:].view(2, 2, 6)
        real, mask = torch.ones_like(prompt, dtype=torch.bool), torch.ones_like(answers, dtype=torch.bool)
        real[1, :5], mask[0, 0, 4:] = False, False  # a shorter prompt, a shorter answer

        def alone(b: int, n: int, before: Tensor) -> Tensor:
            return self.logprobs(
                self.encode(before[None], torch.ones_like(before[None])),
                answers[b : b + 1, n : n + 1],
                mask[b : b + 1, n : n + 1],
            )[0, 0]

        with _evaluating(self):
            shared = self.logprobs(self.encode(prompt, real), answers, mask)
            own = [prompt[b][real[b]] for b in range(2)]
            plain = torch.stack([alone(b, n, own[b]) for b in range(2) for n in range(2)]).view_as(shared)
            leaking = [alone(b, 1, torch.cat([own[b], answers[b, 0][mask[b, 0]]])) for b in range(2)]
        off, dropped = (shared - plain).abs().max(), (torch.stack(leaking) - plain[:, 1]).abs().max()
        if not off <= 0.2 * dropped:
            raise RuntimeError(
                f"answers that share a prompt differ by {off:.3g} nats from answers with their own, where a dropped "
                f"mask would make {dropped:.3g}: this build of torch or this device does not apply the attention mask. "
                "Use --model.attention eager, which computes every answer with its own prompt, and report it"
            )
        return float(off)

    @torch.no_grad()
    def score(self, prefix: Prefix, candidates: Sequence[Sequence[int]]) -> Tensor:
        """Log-probability of each candidate answer after each prompt, without gradients (`logprobs` has them).

        Prompt and candidates are one pass, of which nothing is kept (see `prefill`).

        Args:
            candidates: token ids of L answers, without end token; shared by all prompts. They form a trie, so the first
                token of every candidate costs nothing beyond the prompt, and common beginnings are computed once.

        Returns:
            (B, L) float32, summed over tokens.

        Raises:
            ValueError: if a candidate is empty, repeated, or the beginning of another (the comparison would be unfair).
        """
        tuples = [tuple(c) for c in candidates]
        for i, c in enumerate(tuples):
            if not c or any(o[: len(c)] == c for o in tuples[:i] + tuples[i + 1 :]):
                raise ValueError(f"candidates must be non-empty and none the beginning of another, got {tuples}")
        inner = {c[:i] for c in tuples for i in range(1, len(c))}
        paths = sorted(p for p in inner if not any(o[: len(p)] == p and o != p for o in inner))  # longest only
        if not paths:  # all candidates are single tokens
            self.prefill(prefix)
            root, logp = prefix.logits, {}
        else:
            ids = torch.full((len(paths), max(map(len, paths))), self.pad_id, device=prefix.mask.device)
            real = torch.zeros_like(ids, dtype=torch.bool)
            for i, p in enumerate(paths):
                ids[i, : len(p)] = torch.tensor(p, device=ids.device)
                real[i, : len(p)] = True
            root, hidden = self._continue(prefix, ids, real)
            after = torch.log_softmax(self.head(hidden), -1)
            logp = {p[: j + 1]: after[:, i, j] for i, p in enumerate(paths) for j in range(len(p))}
        logp[()] = torch.log_softmax(root, -1)  # trie node -> (B, V) log-probabilities of the next token
        return torch.stack([sum(logp[c[:i]][:, c[i]] for i in range(len(c))) for c in tuples], 1)

    def _continue(self, prefix: Prefix, ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Next-token logits (B, V) after the prompts, and last hidden states (B, K, T, D) of K continuations, the same
        for every prompt: ids (K, T), right-padded, with mask (K, T)."""
        b, (k, t) = len(prefix.mask), ids.shape
        if self.plain_because is not None:
            self.prefill(prefix)
            cache = copy.deepcopy(prefix.cache)
            cache.batch_repeat_interleave(k)
            mask = torch.cat([prefix.mask.repeat_interleave(k, 0), real.repeat(b, 1)], 1)
            at = None if prefix.positions is None else prefix.following(t).repeat_interleave(k, 0)
            return prefix.logits, self.hidden(self.embed(ids.repeat(b, 1)), mask, cache, at).view(b, k, t, -1)
        rows, own = real.expand(b, k, t), self.embed(ids.view(1, -1).expand(b, -1))
        if prefix.cache is not None and prefix.reference == self.adapter_off:
            kept = [(layer.keys, layer.values) for layer in prefix.cache.layers]
            plan = Packed(prefix.mask[:, :0], rows, prefix.mask, kept, prefix.positions)
            return prefix.logits, self._follow(own, plan).view(b, k, t, -1)
        fixed = (None, None)
        if prefix.behind is not None:
            fixed = (prefix.mask[:, : -prefix.own.shape[1]], self._values(prefix.behind))
        plan = Packed(prefix.own, rows, *fixed, prefix.positions)
        hidden = self._follow(torch.cat([prefix.embeddings, own], 1), plan)
        return self.head(hidden[:, -k * t - 1]), hidden[:, -k * t :].view(b, k, t, -1)

    @torch.no_grad()
    def beam(
        self, prompt: Tensor, mask: Tensor, *, beams: int, max_new_tokens: int, repetition_penalty: float = 1.0
    ) -> list[str]:
        """Beam search over prompt ids (B, P), left-padded, whose positions are counted; the text of the best beam of
        each (transformers' `generate`)."""
        out = self.model.generate(
            input_ids=prompt,
            attention_mask=mask.long(),
            num_beams=beams,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            repetition_penalty=repetition_penalty,
            eos_token_id=self.eos_ids,
            pad_token_id=self.pad_id,
        )
        return self.tokenizer.batch_decode(out[:, prompt.shape[1] :], skip_special_tokens=True)


class _SharedStep:
    """Decoding one token of every answer: the prompt's keys and values once, finished answers left out."""

    def __init__(self, llm: LLM, prefix: Prefix, n: int, longest: int) -> None:
        self.llm = llm
        kept = [(layer.keys, layer.values) for layer in prefix.cache.layers]
        self.plan = Decoding(prefix.mask, kept, n, longest, prefix.after)

    def keep(self, alive: Tensor) -> Tensor:
        """Indices of the rows that go on: the unfinished ones, and some finished where prompts have unequal numbers."""
        by_prompt = alive.view(-1, self.plan.n)
        count = by_prompt.sum(1)
        prompts, n = count.nonzero()[:, 0], int(count.max())
        if len(prompts) * n > WORTH_LEAVING * len(alive):
            return torch.arange(len(alive), device=alive.device)
        first = by_prompt[prompts].to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :n].sort(1)[0]
        rows = (prompts[:, None] * self.plan.n + first).flatten()
        self.plan.keep(rows, prompts, n)
        return rows

    def __call__(self, token: Tensor) -> Tensor:
        hidden = self.llm._follow(self.llm.embed(token)[:, None], self.plan)[:, -1]
        self.plan.done += 1
        return hidden


class _PlainStep:
    """The same for a model that cannot share: every answer has its own copy of the prompt's keys and values."""

    def __init__(self, llm: LLM, prefix: Prefix, n: int, longest: int) -> None:
        self.llm, self.cache, self.mask = llm, copy.deepcopy(prefix.cache), prefix.mask.repeat_interleave(n, 0)
        self.cache.batch_repeat_interleave(n)
        self.after = None if prefix.after is None else prefix.after.repeat_interleave(n)[:, None]

    def keep(self, alive: Tensor) -> Tensor:
        return torch.arange(len(alive), device=alive.device)

    def __call__(self, token: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        at = self.after
        if at is not None:
            self.after = at + 1
        return self.llm.hidden(self.llm.embed(token)[:, None], self.mask, self.cache, at)[:, -1]


class _Slopes(torch.autograd.Function):
    """Numbers that each depend on one row of states, some rows at a time: their slopes, as wide as the states, are
    taken in the forward pass, so that neither the logits are kept nor computed again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, some: Any, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        values, slopes = [], []
        for rows, ids in parts:
            with torch.enable_grad():
                rows = rows.detach().requires_grad_()
                value = some(rows, ids)
                slopes += torch.autograd.grad(value.sum(), rows)
            values.append(value.detach())
        ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return (gradient[:, None] * slopes).to(slopes.dtype), None, None


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, dropout is off; every module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _lora_config(lora: LoRA, names: Sequence[str]) -> LoraConfig:
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="|".join(map(re.escape, names)),  # a list would match every name that ends like one of them
        bias="none",
        task_type="CAUSAL_LM",
    )


@contextlib.contextmanager
def _adapter(model: nn.Module, name: str | None) -> Iterator[None]:
    """Inside, another adapter is in use, or none. Not peft's `set_adapter`, which also decides what is trained."""
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    before = [layer.active_adapters for layer in layers]
    try:
        for layer in layers:
            layer._active_adapter = [] if name is None else [name]
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer._active_adapter = own


@contextlib.contextmanager
def _no_checkpointing(model: nn.Module) -> Iterator[None]:
    """Inside, activations are not recomputed: with that, transformers drops the cache in training mode and goes on."""
    layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    for layer in layers:
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = True


def _load_tokenizer(path: str, revision: str | None) -> Any:
    """AutoTokenizer, except where a folder names the plain class: for Qwen2, transformers 5 would replace what
    tokenizer.json says (its normaliser, for one) by the published Qwen2's, and add a token beyond the embedding."""
    plain = get_tokenizer_config(path, revision=revision).get("tokenizer_class")
    kind = PreTrainedTokenizerFast if plain in ("TokenizersBackend", "PreTrainedTokenizerFast") else AutoTokenizer
    return with_limits(kind.from_pretrained(path, revision=revision), path)


def _pad_id(tokenizer: Any, rows: int) -> int:
    """A token for padding that the model has a row for. Padding is always masked, so any valid id does: the
    tokenizer's own, else unk, else end of text (Llama-2's has none; some of its copies carry a [PAD] one beyond the
    embedding)."""
    candidates = [] if tokenizer is None else [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id]
    for i, candidate in enumerate(candidates):
        if candidate is not None and candidate < rows:
            if i > 0:
                log.info(
                    "the tokenizer has no usable pad token; padding with %r (masked)",
                    tokenizer.convert_ids_to_tokens(candidate),
                )
            return candidate
    return 0
