"""Small language models made in code: an ordinary model folder with a byte-level BPE tokenizer and random weights, so
that every system runs on two CPU cores without a download. Train one with `configs/causal_lm/tiny_llama.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SPECIAL = ("<pad>", "<s>", "</s>")


def make_tokenizer(
    texts: Iterable[str], vocab_size: int = 4096, lowercase: bool = True, min_frequency: int = 2
) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on ``texts``; nothing is ever unknown. ``<s>`` opens every text. Lower case by default: a
    small model has too few rows to learn a word twice."""
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
    """Writes config.json, model.safetensors (random, fp32) and the tokenizer to ``out``; embeddings are tied.

    Load the tokenizer through `LLM` or PreTrainedTokenizerFast: for qwen2, AutoTokenizer would build another one.

    With the defaults: 2,114,880 parameters at a full vocabulary of 4096. Raises FileExistsError if ``out`` already
        holds a model.
    """
    out = Path(out)
    if (out / "config.json").exists():
        raise FileExistsError(f"{out} already holds a model; choose another folder or delete it first")
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
