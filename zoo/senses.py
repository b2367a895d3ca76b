"""Old import path of `zoo.training.multimodal`; it is read in this release only."""

import warnings

from zoo.training.feature_cache import FeatureCache as Remembered
from zoo.training.multimodal import MultimodalCollator as SensesCollator

__all__ = ["Remembered", "SensesCollator"]

warnings.warn("zoo.senses is now zoo.training.multimodal; see CHANGELOG.md", FutureWarning, stacklevel=2)
