from zoo.models.dialoguellm.model import DialogueLLM

__all__ = ["DialogueLLM"]
