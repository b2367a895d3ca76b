"""Small models made in code: ordinary model folders with random weights.

They let every system run on two CPU cores without a download. Language models come with a byte-level BPE tokenizer;
train one with `configs/causal_lm/tiny_llama.yaml`. The image encoder (ViT) and the audio encoder (HuBERT) come with a
classification head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    HubertConfig,
    HubertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    Wav2Vec2FeatureExtractor,
)

from zoo.backbones.hub import new_model_folder

SPECIAL = ("<pad>", "<s>", "</s>")


def make_tokenizer(
    texts: Iterable[str], vocab_size: int = 4096, lowercase: bool = True, min_frequency: int = 2
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on ``texts``; nothing is ever unknown. ``<s>`` opens every text.

    Lower case by default: a small model has too few rows to learn a word twice.
    """
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=list(SPECIAL),
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def make_folder(
    out: Path,
    texts: Iterable[str],
    family: Literal["llama", "qwen2"] = "llama",
    vocab_size: int = 4096,
    hidden_size: int = 192,
    layers: int = 3,
    heads: int = 6,
    kv_heads: int | None = None,
    intermediate_size: int = 512,
    max_length: int = 1024,
    seed: int = 0,
) -> Path:
    """Write config.json, model.safetensors (random, fp32) and the tokenizer to ``out``; embeddings are tied.

    Load the tokenizer through `LLM` or PreTrainedTokenizerFast: for qwen2, AutoTokenizer would build another one.

    With the defaults: 2,114,880 parameters at a full vocabulary of 4096. Raises FileExistsError if ``out`` already
    holds a model.
    """
    out = new_model_folder(out)
    tokenizer = make_tokenizer(texts, vocab_size)
    config_class, model_class = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}[
        family
    ]
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def make_vit_folder(
    out: Path,
    labels: Sequence[str],
    size: int = 96,
    patch: int = 12,
    width: int = 144,
    layers: int = 5,
    heads: int = 4,
    intermediate_size: int = 432,
    dropout: float = 0.0,
    seed: int = 0,
) -> Path:
    """Write a ViTForImageClassification with random weights (fp32), its preprocessing and its labels.

    Pictures are resized to the square (bilinear), and scaled to [-1, 1].

    Weights are drawn with deviation 1/sqrt(width) and positions start as sines and cosines of row and column: with
    transformers' usual 0.02 and random positions, a model this small took more than twice the steps to tell a mouth
    curved up from one curved down.

    With the defaults and seven labels: 1,118,599 parameters, 64 tokens and CLS; ``patch=16`` has 36 and trains about
    twice as fast. Raises FileExistsError if ``out`` already holds a model, ValueError if ``size`` is no multiple of
    ``patch``.
    """
    if size % patch:
        raise ValueError(f"size {size} is no multiple of patch {patch}; the rest of the picture would not be seen")
    config = ViTConfig(
        image_size=size,
        patch_size=patch,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate_size,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=width**-0.5,
        id2label=dict(enumerate(labels)),
        label2id={word: i for i, word in enumerate(labels)},
    )
    positions = {"vit.embeddings.position_embeddings": _sines(size // patch, width)}
    processor = ViTImageProcessor(size={"height": size, "width": size})
    return _write(out, ViTForImageClassification, config, seed, processor, positions)


def _sines(side: int, width: int) -> torch.Tensor:
    """Make position embeddings (1, 1 + side^2, width): CLS at zero; half of the others' numbers tell the row."""
    frequencies = 100.0 ** -torch.linspace(0, 1, width // 4)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (row, column)]
    waves = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], 1)
    positions = torch.zeros(1, 1 + side**2, width)  # a width that is no multiple of 4 keeps zeros at its end
    positions[0, 1:, : waves.shape[1]] = 0.5 * waves
    return positions


def make_hubert_folder(
    out: Path,
    labels: Sequence[str],
    width: int = 144,
    layers: int = 4,
    heads: int = 4,
    intermediate_size: int = 432,
    conv_dim: Sequence[int] = (32, 32, 32, 64, 64, 128, 128),
    dropout: float = 0.0,
    seed: int = 0,
) -> Path:
    """Write a HubertForSequenceClassification with random weights (fp32) and its preprocessing.

    HuBERT's own seven convolutions (400 samples seen, one frame per 320), with few channels: the first of them run at
    3200 frames a second and are most of the cost. One norm over time in front ("base" kind: norms over channels at
    every frame, the "large" kind, would take away how loud a frame is), and norms before the layers ("large" kind:
    trained from scratch, the other needs a long warm-up). A positional convolution of 32 frames
    (640 ms) instead of 128, no SpecAugment and no layer drop, which a small model on clean voices does not survive.

    With the defaults and seven labels: 990,695 parameters. Raises FileExistsError if ``out`` already holds a model.
    """
    config = HubertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate_size,
        conv_dim=tuple(conv_dim),
        conv_bias=False,
        feat_extract_norm="group",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=16,
        hidden_dropout=dropout,
        attention_dropout=dropout,
        activation_dropout=dropout,
        feat_proj_dropout=dropout,
        layerdrop=0.0,
        apply_spec_augment=False,
        mask_time_prob=0.0,
        classifier_proj_size=128,
        id2label=dict(enumerate(labels)),
        label2id={word: i for i, word in enumerate(labels)},
    )
    processor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
    return _write(out, HubertForSequenceClassification, config, seed, processor)


def _write(
    out: Path,
    kind: type,
    config: ViTConfig | HubertConfig,
    seed: int,
    processor: Any,
    tensors: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Write a model with random weights, except those that are given."""
    out = new_model_folder(out)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
    for name, tensor in (tensors or {}).items():
        model.get_parameter(name).data.copy_(tensor)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return out
