from zoo.models.unimodal.model import FaceClassifier, VoiceClassifier

__all__ = ["FaceClassifier", "VoiceClassifier"]
