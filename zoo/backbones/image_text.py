"""A whole image-text model of transformers, with its processor and chat format: Qwen2.5-VL, LLaVA, Idefics3, others.

    model = ImageTextModel("Qwen/Qwen2.5-VL-7B-Instruct")
    chat = model.chat                                  what needs no weights: to be used in a loader's processes
    text = chat.text("Which emotion?", pictures=2)     the question in the model's own chat format
    inputs = chat.inputs(text, frames)                 what the model takes, of one question
    model.score(inputs, candidates)                    log-probability of each candidate answer
    model.write(inputs, max_new_tokens=8)              its own answer
    model.answer_logits(inputs, answer)                logits of a given answer's tokens, with gradients

Questions are computed one by one, without padding: families differ in how they pad pictures and count positions, and so
the answer to one never depends on another. Code of a model folder is never run, and pickles are never read.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from zoo.backbones import gguf
from zoo.backbones.adapters import AdaptedModel
from zoo.backbones.chat import render_chat
from zoo.backbones.decoding import longest_beginnings, refuse_unfair
from zoo.backbones.folders import check_folder, check_tokenizer_files, reads_folder, refused_by_name
from zoo.backbones.hub import (
    Attention,
    Dtype,
    fingerprint,
    locate,
    read_weights,
    refuse_infinite,
    refuse_misfits,
    refuse_missing_attention,
    without_key_report,
)
from zoo.backbones.tiny_image_text import TINY_IMAGE_TEXT, tiny_image_text
from zoo.templates import BadTemplate

Inputs = dict[str, Tensor]  # of one question
PLAIN = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "temperature": None,
    "top_p": None,
    "top_k": None,
}


def is_image_text(path: str) -> bool:
    """Return whether a folder, a name or a hub model holds an image-text model, as its config.json says.

    Raises:
        FileNotFoundError: nothing at ``path``.
    """
    if path.startswith("shape:"):
        return path.removeprefix("shape:") in TINY_IMAGE_TEXT
    place = locate(path, what="model", option="local:", file_suffixes=(gguf.SUFFIX,))
    if Path(place).is_file():
        return False
    with refused_by_name(place):
        return type(AutoConfig.from_pretrained(place, trust_remote_code=False)) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


class PictureChat:
    """Writes questions about pictures in a model's own chat format, and makes the model's inputs of them.

    Args:
        processor: of transformers.
        path: of the model, for messages.

    Raises:
        ValueError: the folder has no chat format, or no end-of-text token.
    """

    def __init__(self, processor: Any, path: str) -> None:
        self.processor, self.path = processor, path
        self.tokenizer: Any = processor.tokenizer
        template = getattr(processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)
        if not isinstance(template, str):
            raise ValueError(
                f"{path} has no chat format (chat_template.jinja), so a question about a picture has no known form; "
                "take a model that was made for chats (Instruct, -it, -hf)"
            )
        self.template = template
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer in {path} names no end-of-text token, so no answer could end; set eos_token in its "
                "tokenizer_config.json"
            )
        named = {value for name, value in vars(processor).items() if name.endswith("_token") and isinstance(value, str)}
        self.control = sorted(t for t in named | set(self.tokenizer.all_special_tokens) if len(t) > 2)

    def text(self, question: str, pictures: int, system_prompt: str | None = None) -> str:
        """Return a question as text, up to where the answer begins; control tokens in it are written apart.

        Args:
            question: what the user says, behind the pictures.
            pictures: how many.
            system_prompt: system message in front; None: what the chat format has by itself.

        Raises:
            ValueError: the chat format cannot be used.
        """
        for token in self.control:
            question = question.replace(token, f"{token[0]} {token[1:-1]} {token[-1]}")
        images: list[dict[str, str]] = [{"type": "image"}] * pictures
        messages = [{"role": "user", "content": [*images, {"type": "text", "text": question}]}]
        if system_prompt is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system_prompt}]})
        try:
            return render_chat(self.template, messages, True, self.tokenizer.special_tokens_map)
        except (BadTemplate, ValueError) as error:
            raise ValueError(
                f"the chat format of {self.path} cannot be used: {error}; correct its chat_template.jinja"
                + ("" if system_prompt is None else ", or leave the system prompt out")
            ) from error

    def inputs(self, text: str, pictures: Sequence[Tensor]) -> Inputs:
        """Return what the model takes of one question: ids (1, P), and of the pictures whatever its family wants.

        Args:
            text: of `text`.
            pictures: uint8 (3, H, W), RGB, as many as the text has.

        Raises:
            ValueError: the processor of the folder refuses them.
        """
        begins = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        images = {"images": [list(pictures)]} if pictures else {}
        try:
            made = self.processor(text=[text], return_tensors="pt", add_special_tokens=not begins, **images)
        except Exception as error:  # processors of many families raise many types; the cause stays chained
            raise ValueError(
                f"the processor of {self.path} could not make inputs of {len(pictures)} pictures and a text of "
                f"{len(text)} characters ({type(error).__name__}: {error})"
            ) from error
        return {name: value for name, value in made.items() if isinstance(value, Tensor)}

    def answer_ids(self, word: str) -> list[int]:
        """Return the tokens of an answer behind a question; a chat format that ends in a colon wants a space."""
        ids: list[int] = self.tokenizer(word, add_special_tokens=False)["input_ids"]
        if not self.text("?", 0).endswith(":"):
            return ids
        before, whole = (self.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (":", f": {word}"))
        return whole[len(before) :] if whole[: len(before)] == before else ids


class ImageTextModel(AdaptedModel):
    """A model of transformers' AutoModelForImageTextToText, its processor, and optionally LoRA.

    Args:
        path: folder, name that was fetched or hub id; or ``shape:NAME`` with a name of
            `zoo.backbones.tiny_image_text.TINY_IMAGE_TEXT` for a small one with random weights.
        dtype: dtype of the weights.
        revision: hub revision (a commit hash) to pin.
        attention: ``sdpa``, ``eager`` or ``flash_attention_2``.
        device: ``meta`` builds the architecture without weights.
        gradient_checkpointing: recompute activations in the backward pass.
        option: the option that sets the path, for messages.

    Attributes:
        chat: its processor and chat format.

    Raises:
        FileNotFoundError: nothing at ``path``, or no safetensors weights there.
        ValueError: another kind of model; no chat format; weights that do not fit or are not finite.
    """

    @reads_folder
    def __init__(
        self,
        path: str,
        dtype: Dtype = "float32",
        revision: str | None = None,
        attention: Attention = "sdpa",
        device: str | None = None,
        gradient_checkpointing: bool = False,
        option: str = "--model.vlm",
    ) -> None:
        super().__init__()
        refuse_missing_attention(attention)
        self.revision, self.dtype = revision, getattr(torch, dtype)
        self.is_random = path.startswith("shape:")
        if self.is_random:
            self.path = path
            with torch.device(device or "cpu"):
                self.model, processor = self._shape(path.removeprefix("shape:"))
            self.model.to(self.dtype)
        else:
            self.path = locate(path, what="image-text model", option=option)
            config = self._read_config()
            processor = AutoProcessor.from_pretrained(self.path, revision=revision, trust_remote_code=False)
            options = {"dtype": self.dtype, "attn_implementation": attention, "trust_remote_code": False}
            if device == "meta":
                with torch.device(device):
                    self.model = AutoModelForImageTextToText.from_config(config, **options)
            else:
                self.model = self._load(options)
        self.chat = PictureChat(processor, self.path)
        options_of_a_pass = inspect.signature(type(self.causal_lm).forward).parameters
        self._keeps_last_logits = "logits_to_keep" in options_of_a_pass
        self.train()  # transformers loads in eval mode, in which dropout would silently do nothing
        if gradient_checkpointing:
            self.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})

    @staticmethod
    def _shape(name: str) -> tuple[Any, Any]:
        """Return the random model of a name."""
        if name not in TINY_IMAGE_TEXT:
            raise ValueError(f"unknown shape {name!r}; expected one of {', '.join(TINY_IMAGE_TEXT)}")
        return tiny_image_text(name)

    def _read_config(self) -> Any:
        """Read the config. ValueError for a folder that holds no image-text model."""
        if Path(self.path).is_dir():
            check_folder(self.path)
            check_tokenizer_files(self.path)
        config = AutoConfig.from_pretrained(self.path, revision=self.revision, trust_remote_code=False)
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise ValueError(
                f"{self.path} holds a model of type {config.model_type!r}, which transformers does not list among the "
                "image-text models; take e.g. Qwen2.5-VL, LLaVA or Idefics3"
            )
        return config

    def _load(self, options: Mapping[str, Any]) -> PreTrainedModel:
        """Read the weights, strictly and checked."""
        with without_key_report():
            model, info = read_weights(AutoModelForImageTextToText, self.path, revision=self.revision, **options)
        refuse_misfits(info, self.path)
        refuse_infinite(dict(model.named_parameters()), self.path)
        return model

    # ---- parts
    def fingerprint(self) -> str | None:
        """Return the identity of the weights that were given (`hub.fingerprint`); None for a ``shape:``."""
        return None if self.is_random else fingerprint(self.path, self.revision)

    def _ready(self, inputs: Mapping[str, Tensor]) -> Inputs:
        """Return inputs on the model's device, pixels in its dtype."""
        device = next(self.parameters()).device
        return {k: v.to(device, self.dtype if v.is_floating_point() else v.dtype) for k, v in inputs.items()}

    # ---- answers
    def answer_logits(self, inputs: Mapping[str, Tensor], answer: Tensor) -> Tensor:
        """Compute the logits (T, V) float32 that predict each token of an answer (T,) int64, with gradients.

        Raises:
            ValueError: inputs of this family that hold something per token which an answer cannot go on.
        """
        ready = longer(self._ready(inputs), answer[:-1].to(next(self.parameters()).device), self.path)
        wanted = {"logits_to_keep": len(answer)} if self._keeps_last_logits else {}
        logits: Tensor = self.causal_lm(**ready, use_cache=False, **wanted).logits
        return logits[0, -len(answer) :].float()

    @torch.no_grad()
    def score(self, inputs: Mapping[str, Tensor], candidates: Sequence[Sequence[int]]) -> Tensor:
        """Compute the log-probability (L,) of each candidate answer, summed over its tokens.

        The whole question is computed once for every different beginning of more than one token's candidates: once for
        all that are single tokens.

        Args:
            candidates: token ids of L answers, without end token.

        Raises:
            ValueError: a candidate is empty, repeated, or the beginning of another.
        """
        answers = [tuple(candidate) for candidate in candidates]
        refuse_unfair(answers)
        logp: dict[tuple[int, ...], Tensor] = {}  # what was answered so far -> (V,) log-probabilities of the next token
        for path in longest_beginnings(answers) or [()]:
            logits = self.answer_logits(inputs, torch.tensor([*path, 0]))
            logp |= {path[:i]: row for i, row in enumerate(torch.log_softmax(logits, -1))}
        return torch.stack([torch.stack([logp[a[:i]][a[i]] for i in range(len(a))]).sum() for a in answers])

    @torch.no_grad()
    def write(self, inputs: Mapping[str, Tensor], max_new_tokens: int) -> str:
        """Write the answer to a question greedily; without special tokens and white space around it."""
        settings = copy.deepcopy(self.causal_lm.generation_config)
        settings.update(**PLAIN, max_new_tokens=max_new_tokens, pad_token_id=self.chat.tokenizer.pad_token_id)
        ready, generate = self._ready(inputs), getattr(self.causal_lm, "generate")  # noqa: B009 - mypy knows no generate
        ids = generate(**ready, generation_config=settings)[0, ready["input_ids"].shape[1] :]
        text: str = self.chat.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    def extra_repr(self) -> str:
        return f"{self.path}, {type(self.causal_lm).__name__}"


def longer(inputs: Inputs, more: Tensor, path: str) -> Inputs:
    """Return the inputs of a question with tokens (T,) of its answer behind it.

    Raises:
        ValueError: something per token that is neither ids, mask nor types, such as the cross attention of Llama 3.2.
    """
    before = inputs["input_ids"].shape[1]
    row, grown = more[None], {}
    for name, value in inputs.items():
        if name == "input_ids":
            grown[name] = torch.cat([value, row], 1)
        elif name == "attention_mask":
            grown[name] = torch.cat([value, torch.ones_like(row, dtype=value.dtype)], 1)
        elif name.endswith("token_type_ids"):
            grown[name] = torch.cat([value, torch.zeros_like(row, dtype=value.dtype)], 1)
        elif value.ndim > 1 and name.endswith("mask") and value.shape[:2] == (1, before):
            raise ValueError(
                f"{path}: its inputs hold {name} for every token, which is not known here; take another model"
            )
        else:
            grown[name] = value
    return grown


__all__ = ["ImageTextModel", "Inputs", "PictureChat", "is_image_text", "longer"]
