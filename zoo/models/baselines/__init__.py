from zoo.models.baselines.model import Majority, SentenceClassifier, TfidfLogistic

__all__ = ["Majority", "SentenceClassifier", "TfidfLogistic"]
