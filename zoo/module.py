"""Old import path of `zoo.training`; it is read in this release only."""

import warnings

from zoo.training.batch import SampleBatch as Rows
from zoo.training.collator import PromptCollator
from zoo.training.language_model import LanguageModelModule as Prompted
from zoo.training.module import EmotionModule
from zoo.training.sft import SupervisedFineTuning as Supervised

__all__ = ["EmotionModule", "PromptCollator", "Prompted", "Rows", "Supervised"]

warnings.warn("zoo.module is now zoo.training; see CHANGELOG.md for the new names", FutureWarning, stacklevel=2)
