"""Pretrained parts behind small interfaces. The only package that imports transformers, peft, timm and tokenizers."""

from zoo.backbones.llm import LLM, Completions, LoRA, Prefix
from zoo.backbones.shapes import SHAPES

__all__ = ["LLM", "LoRA", "Prefix", "Completions", "SHAPES"]
