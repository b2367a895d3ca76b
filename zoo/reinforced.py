"""Old import path of `zoo.training.grpo`; it is read in this release only."""

import warnings

from zoo.training.grpo import GRPOModule as Reinforced
from zoo.training.grpo import RewardBatch as Gathered

__all__ = ["Gathered", "Reinforced"]

warnings.warn("zoo.reinforced is now zoo.training.grpo; see CHANGELOG.md", FutureWarning, stacklevel=2)
