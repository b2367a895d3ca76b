"""Corpora: one class per corpus, all `EmotionData`."""

from zoo.data.adaptation import Adaptation
from zoo.data.base import EmotionData, Reading
from zoo.data.conversations import Conversations
from zoo.data.dfew import DFEW
from zoo.data.emer import EMER
from zoo.data.emorynlp import EmoryNLP
from zoo.data.emoset import EmoSet
from zoo.data.general import General
from zoo.data.goemotions import GoEmotions
from zoo.data.iemocap import IEMOCAP
from zoo.data.joint import Joint
from zoo.data.meld import MELD
from zoo.data.mer2024 import MER2024
from zoo.data.mosei import MOSEI
from zoo.data.resplit import Resplit
from zoo.data.synthetic import Synthetic
from zoo.data.synthetic_questions import NamedSynthetic, SyntheticQuestions, SyntheticReasons
from zoo.data.table import Table

__all__ = ["EmotionData", "Reading", "GoEmotions", "Joint", "MELD", "Synthetic"]
__all__ += ["DFEW", "EMER", "EmoSet", "MER2024", "MOSEI"]
__all__ += ["EmoryNLP", "IEMOCAP", "Adaptation", "Resplit"]
__all__ += ["Conversations", "NamedSynthetic", "SyntheticQuestions", "SyntheticReasons"]
__all__ += ["General", "Table"]
