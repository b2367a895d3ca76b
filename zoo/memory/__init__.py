"""What fits where: the GPU memory of a fit, predicted from its config before any weights are read."""

from zoo.memory.command import main
from zoo.memory.prediction import Prediction, predict
from zoo.memory.request import Request, request
from zoo.memory.start import check_fit

__all__ = ["Prediction", "Request", "check_fit", "main", "predict", "request"]
