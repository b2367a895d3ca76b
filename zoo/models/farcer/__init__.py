from zoo.models.farcer.model import FARCER

__all__ = ["FARCER"]
