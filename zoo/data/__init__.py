"""Corpora: one class per corpus, all `EmotionData`."""

from zoo.data.base import EmotionData, Reading
from zoo.data.goemotions import GoEmotions
from zoo.data.joint import Joint
from zoo.data.meld import MELD
from zoo.data.synthetic import Synthetic

__all__ = ["EmotionData", "Reading", "GoEmotions", "Joint", "MELD", "Synthetic"]
