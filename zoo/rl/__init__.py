"""Reinforcement from groups of sampled answers: rewards, advantages, objectives, and the two passes of a step."""

from zoo.rl.batch_rewards import BatchReward
from zoo.rl.grpo import Objective, group_advantages, kl_divergence, token_weights
from zoo.rl.rewards import Answer, Reward
from zoo.rl.rollout import Rollout, accumulate_gradients, roll_out

__all__ = [
    "Answer",
    "BatchReward",
    "Objective",
    "Reward",
    "Rollout",
    "accumulate_gradients",
    "group_advantages",
    "kl_divergence",
    "roll_out",
    "token_weights",
]
