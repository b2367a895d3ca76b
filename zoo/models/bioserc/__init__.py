from zoo.models.bioserc.model import BiosERC

__all__ = ["BiosERC"]
