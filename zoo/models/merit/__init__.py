from zoo.models.merit.model import Merit, MeritRLVR, MeritTTRL

__all__ = ["Merit", "MeritRLVR", "MeritTTRL"]
