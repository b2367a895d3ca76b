"""Emotion-Qwen (Huang et al. 2025): a vision tower, two experts and a gate between it and a language model."""

from zoo.models.emotion_qwen.adapters import EmotionQwenAdapters
from zoo.models.emotion_qwen.model import EmotionQwen

__all__ = ["EmotionQwen", "EmotionQwenAdapters"]
