"""An image-text model on this machine that answers questions about pictures.

`zoo.backbones.llm_client.LocalText` does so about texts.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from zoo.backbones.llm_client import AbortRun, ChatModel, LocalText, QueryFailed


class LocalPictures:
    """An image-text model of `zoo.backbones`, greedy; on the GPU in bfloat16 if there is one. It hears no sound.

    Args:
        path: as of `zoo.backbones.image_text.ImageTextModel`.
        max_tokens: of the answer. An answer that is cut off there is used as it is.
    """

    local = True
    host = ""

    def __init__(self, path: str, max_tokens: int = 800) -> None:
        import torch

        from zoo.backbones.image_text import ImageTextModel

        has_gpu = torch.cuda.is_available()
        self.model = ImageTextModel(path, dtype="bfloat16" if has_gpu else "float32", option="local:").eval()
        self.model.to("cuda" if has_gpu else "cpu")
        self.max_tokens = max_tokens
        # by content, not by place: no path of this machine gets into a file, and other weights have other answers
        self.name = f"local:{Path(path).name}:{(self.model.fingerprint() or '')[:12]}"
        self._one = threading.Lock()

    def __call__(self, prompt: str, frames: np.ndarray | None = None, sound: np.ndarray | None = None) -> str:
        import torch

        if sound is not None:
            raise AbortRun(
                f"{self.name} sees pictures and reads text; it cannot be given sound. Name a model that hears"
            )
        pictures = [] if frames is None else list(torch.from_numpy(np.ascontiguousarray(frames)))
        chat = self.model.chat
        with self._one:
            text = self.model.write(chat.inputs(chat.text(prompt, len(pictures)), pictures), self.max_tokens)
        if not text:
            raise QueryFailed(f"{self.name}: an empty answer")
        return text


def local_model(path: str, max_tokens: int) -> ChatModel:
    """Return the model of ``local:PATH``: one of pictures if that is what its folder holds, else of texts."""
    from zoo.backbones.image_text import is_image_text

    return LocalPictures(path, max_tokens) if is_image_text(path) else LocalText(path, max_tokens)
