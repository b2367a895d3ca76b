"""Small image-text models made in code: every part of a whole folder, with random weights.

They let what reads a folder of Qwen2.5-VL or of LLaVA run on two CPU cores without a download. The tokenizer is that of
the published tiny-llama, with the tokens that stand for pictures, and those of a chat.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from zoo.backbones.hub import locate, new_model_folder

PATCH, SIDE = 8, 32  # pixels: a patch; a picture that LLaVA sees, and the side of the largest that Qwen2.5-VL does
SPECIAL = ("<|im_start|>", "<|im_end|>")
QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT = (
    "{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n"
    "{{% if m.content is string %}}{{{{ m.content }}}}{{% else %}}{{% for part in m.content %}}"
    "{{% if part.type == 'image' %}}{picture}{{% else %}}{{{{ part.text }}}}{{% endif %}}{{% endfor %}}{{% endif %}}"
    "<|im_end|>\n{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
)


def _tokenizer(tokens: tuple[str, ...], picture: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer of tiny-llama with these tokens, and a chat format in which ``picture`` is a picture."""
    file = Path(locate("tiny-llama", what="tokenizer", option="tiny-llama")) / "tokenizer.json"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(file)),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        additional_special_tokens=[*SPECIAL, *tokens],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT.format(picture=picture)
    return tokenizer


def _text_config(kind: str, tokenizer: PreTrainedTokenizerFast, width: int) -> dict[str, Any]:
    """Return the sizes of a decoder with four heads."""
    return {
        "model_type": kind,
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": width**-0.5,  # larger than usual: so small a model learns within some steps
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _qwen2_5_vl(width: int) -> tuple[Any, Any]:
    """Return the config and the processor of a Qwen2.5-VL of two layers each."""
    tokenizer = _tokenizer(QWEN, "<|vision_start|><|image_pad|><|vision_end|>")
    sections = [width // 32, *[(width // 8 - width // 32) // 2] * 2]  # of the pairs of channels of a head
    text = _text_config("qwen2_5_vl_text", tokenizer, width)
    names = ("vision_start", "vision_end", "image", "video")
    ids: Any = {f"{n}_token_id": tokenizer.convert_tokens_to_ids(t) for n, t in zip(names, QWEN, strict=True)}
    config = Qwen2_5_VLConfig(
        text_config=text | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}},
        vision_config={
            "depth": 2,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_heads": 4,
            "patch_size": PATCH,
            "window_size": 2 * PATCH,
            "fullatt_block_indexes": [1],
            "out_hidden_size": width,
            "tokens_per_second": 2,
            "initializer_range": width**-0.5,
        },
        tie_word_embeddings=False,
        **ids,
    )
    sizes: dict[str, Any] = {"size": {"shortest_edge": (2 * PATCH) ** 2, "longest_edge": SIDE**2}, "patch_size": PATCH}
    pictures, videos = Qwen2VLImageProcessor(**sizes), Qwen2VLVideoProcessor(**sizes)
    return config, Qwen2_5_VLProcessor(pictures, tokenizer, videos, chat_template=tokenizer.chat_template)


def _llava(width: int) -> tuple[Any, Any]:
    """Return the config and the processor of a LLaVA of two layers each: CLIP, and a LLaMA."""
    tokenizer = _tokenizer(("<image>",), "<image>")
    config = LlavaConfig(
        text_config=_text_config("llama", tokenizer, width),
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": PATCH,
            "projection_dim": width,
        },
        image_token_index=cast(int, tokenizer.convert_tokens_to_ids("<image>")),
        vision_feature_layer=-1,
    )
    square = {"height": SIDE, "width": SIDE}
    processor = LlavaProcessor(
        CLIPImageProcessor(size=square, crop_size=square),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    return config, processor


Family = tuple[Callable[[int], tuple[Any, Any]], type[PreTrainedModel]]
# name -> what makes its config and processor, and its class
TINY_IMAGE_TEXT: dict[str, Family] = {
    "tiny-qwen2.5-vl": (_qwen2_5_vl, Qwen2_5_VLForConditionalGeneration),
    "tiny-llava": (_llava, LlavaForConditionalGeneration),
}


def tiny_image_text(name: str, width: int = 64) -> tuple[PreTrainedModel, Any]:
    """Return a random image-text model and its processor.

    Args:
        name: of `TINY_IMAGE_TEXT`.
        width: numbers per token and per patch, a multiple of 32.
    """
    make, kind = TINY_IMAGE_TEXT[name]
    config, processor = make(width)
    return kind(config), processor


def make_image_text_folder(out: Path, name: str = "tiny-qwen2.5-vl", width: int = 64, seed: int = 0) -> Path:
    """Write a random image-text model, its processor and its chat format as transformers itself would.

    Args:
        name, width: as of `tiny_image_text`.

    Raises:
        FileExistsError: ``out`` already holds a model.
    """
    out = new_model_folder(out)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, processor = tiny_image_text(name, width)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return out


__all__ = ["TINY_IMAGE_TEXT", "make_image_text_folder", "tiny_image_text"]
