from zoo.models.instructerc.model import InstructERC

__all__ = ["InstructERC"]
