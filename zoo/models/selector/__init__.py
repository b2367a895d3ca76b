from zoo.models.selector.classifier import SelectedClassifier
from zoo.models.selector.model import ModalitySelector
from zoo.models.selector.parts import Downstream, Format, Response
from zoo.models.selector.start import SelectorStart

__all__ = ["Downstream", "Format", "ModalitySelector", "Response", "SelectedClassifier", "SelectorStart"]
