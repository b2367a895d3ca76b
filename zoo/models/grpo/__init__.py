from zoo.models.grpo.model import GRPO

__all__ = ["GRPO"]
