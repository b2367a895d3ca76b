"""Pretrained parts behind small interfaces. The only package that imports transformers, peft, timm and tokenizers."""

from zoo.backbones.adapters import LoRA
from zoo.backbones.audio import Audio
from zoo.backbones.decoding import Completions
from zoo.backbones.llm import LLM
from zoo.backbones.prefix import Prefix
from zoo.backbones.sampling import Sampling
from zoo.backbones.shapes import AUDIO_SHAPES, SHAPES, VISION_SHAPES
from zoo.backbones.vision import Vision

__all__ = [
    "LLM",
    "LoRA",
    "Prefix",
    "Sampling",
    "Completions",
    "Vision",
    "Audio",
    "SHAPES",
    "VISION_SHAPES",
    "AUDIO_SHAPES",
]
