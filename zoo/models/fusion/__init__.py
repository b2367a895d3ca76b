from zoo.models.fusion.model import FeatureFusion

__all__ = ["FeatureFusion"]
