"""Published architectures as numbers.

A paper-size system can be built from them (on the meta device, or with random weights) where its weights are not at
hand. The values are those of each model's public config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

Shape = TypeVar("Shape")

_QWEN2_7B: dict[str, Any] = {  # Qwen/Qwen2-7B: 7,615,616,512
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "tie_word_embeddings": False,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
}
_QWEN2_5_7B = _QWEN2_7B | {"max_position_embeddings": 32768, "eos_token_id": 151645}  # 7,615,616,512
_QWEN2_5_32B = _QWEN2_5_7B | {  # 32,763,876,352
    "hidden_size": 5120,
    "intermediate_size": 27648,
    "num_hidden_layers": 64,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
}

# name -> (transformers model_type, config values). Parameter counts in comments are asserted in the tests.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-2-7b": (
        "llama",
        {  # 6,738,415,616
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "llama-3-8b": (
        "llama",
        {  # 8,030,261,248
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
            "tie_word_embeddings": False,
            "bos_token_id": 128000,
            "eos_token_id": 128009,
        },
    ),
    "qwen2-7b": ("qwen2", _QWEN2_7B),
    "glm-4-9b": (  # THUDM/glm-4-9b-chat-hf
        "glm",
        {  # 9,399,951,360
            "vocab_size": 151552,
            "hidden_size": 4096,
            "intermediate_size": 13696,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "attention_bias": True,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1.5625e-07,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            "tie_word_embeddings": False,
            "pad_token_id": 151329,
            "eos_token_id": [151329, 151336, 151338],
        },
    ),
    "qwen2.5-7b": ("qwen2", _QWEN2_5_7B),
    "qwen2.5-32b": ("qwen2", _QWEN2_5_32B),
}

# `Vision("shape:NAME")`: name -> (class of transformers, config values, preprocessor_config).
VISION_SHAPES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "vit-base-face": (  # trpakov/vit-face-expression, ViT-B/16
        "ViTForImageClassification",
        {  # 85,804,039
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 224,
            "patch_size": 16,
            "layer_norm_eps": 1e-12,
            "id2label": dict(enumerate(("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"))),
        },
        {
            "image_processor_type": "ViTImageProcessor",
            "size": {"height": 224, "width": 224},
            "resample": 2,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    ),
    "clip-vit-large-patch14": (  # the vision tower of openai/clip-vit-large-patch14
        "CLIPVisionModel",
        {  # 303,179,776
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 224,
            "patch_size": 14,
            "projection_dim": 768,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 224},
            "crop_size": {"height": 224, "width": 224},
            "resample": 3,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    ),
}

# `Audio("shape:NAME")`: name -> (config values of HubertConfig, whether the waveform is normalised).
AUDIO_SHAPES: dict[str, tuple[dict[str, Any], bool]] = {
    "hubert-base": (  # facebook/hubert-base-ls960: 94,371,712, SpecAugment's mask vector of 768 included
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "feat_extract_norm": "group",
            "conv_bias": False,
            "do_stable_layer_norm": False,
        },
        True,
    ),
    "hubert-large": (  # facebook/hubert-large-ll60k: 315,438,720, mask vector of 1024 included
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "feat_extract_norm": "layer",
            "conv_bias": True,
            "do_stable_layer_norm": True,
        },
        True,
    ),
}

HUB_SHAPES = {  # hub id -> name of the shape of its weights, here or in `zoo.backbones.patch_vision`
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
    "meta-llama/Llama-2-7b-chat-hf": "llama-2-7b",
    "meta-llama/Meta-Llama-3-8B": "llama-3-8b",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama-3-8b",
    "Qwen/Qwen2-7B": "qwen2-7b",
    "Qwen/Qwen2.5-7B": "qwen2.5-7b",
    "Qwen/Qwen2.5-7B-Instruct": "qwen2.5-7b",
    "Qwen/Qwen2.5-32B": "qwen2.5-32b",
    "Qwen/Qwen2.5-32B-Instruct": "qwen2.5-32b",
    "THUDM/glm-4-9b-chat-hf": "glm-4-9b",
    "trpakov/vit-face-expression": "vit-base-face",
    "openai/clip-vit-large-patch14": "clip-vit-large-patch14",
    "facebook/hubert-base-ls960": "hubert-base",
    "facebook/hubert-large-ll60k": "hubert-large",
    "Qwen/Qwen2.5-VL-7B-Instruct": "qwen2.5-vl-vision",  # its vision tower
}


def shape_named(path: str, table: Mapping[str, Shape]) -> Shape:
    """Look up the shape that ``shape:NAME`` names. ValueError for an unknown name."""
    name = path.removeprefix("shape:")
    if name not in table:
        raise ValueError(f"unknown shape {name!r}; expected one of {', '.join(table)}")
    return table[name]
