"""Speech recognition by the package faster-whisper, for who has it; nothing else needs it.

Not run against the package itself: what it is asked and what it answers (`WhisperModel(name or folder).transcribe(
waveform)` -> segments with a ``text``, and an info with a ``language``) was proven against a fake of that contract.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from zoo.data.text import clean_text

PACKAGE = "faster_whisper"
INSTALL = "pip install 'emotion-zoo[transcribe]'"


class Transcriber:
    """A recogniser of speech, loaded once.

    Args:
        model: a folder with a converted Whisper model, or a name that faster-whisper knows and fetches by itself.

    Raises:
        ValueError: the package is not installed, or has no such model.
    """

    def __init__(self, model: str) -> None:
        try:
            package = importlib.import_module(PACKAGE)
        except ImportError as error:
            raise ValueError(f"--transcribe needs the package faster-whisper ({error}): {INSTALL}") from error
        self.model = model
        try:
            self.whisper = package.WhisperModel(model)
        except Exception as error:  # its engine and the hub's client raise many types; the cause stays chained
            raise ValueError(
                f"--transcribe {model}: faster-whisper could not load it ({type(error).__name__}: {error}); give the "
                "folder of a converted model, or one of its names, e.g. base"
            ) from error

    def __call__(self, wave: np.ndarray) -> str:
        """Return what is said in a waveform, float32 (N,) at 16 kHz; empty if it hears no words.

        Raises:
            ValueError: the package answers in another form.
        """
        segments: Any
        segments, _ = self.whisper.transcribe(wave)
        try:
            return clean_text(" ".join(segment.text for segment in segments))
        except (AttributeError, TypeError) as error:
            raise ValueError(
                f"expected of faster-whisper's transcribe segments with a text ({error!r}); install version 1"
            ) from error
