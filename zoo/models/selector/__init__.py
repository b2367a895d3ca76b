from zoo.models.selector.model import ModalitySelector, SelectedClassifier, SelectorStart
from zoo.models.selector.parts import Downstream, Format, Response

__all__ = ["Downstream", "Format", "ModalitySelector", "Response", "SelectedClassifier", "SelectorStart"]
