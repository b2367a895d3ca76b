from zoo.models.speech_cue.model import SpeechCueLLM

__all__ = ["SpeechCueLLM"]
