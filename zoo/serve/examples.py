"""Clips of the embedded sitcom to try the page with: nobody's face and nobody's voice."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo.sitcom.clips import write_clips
from zoo.sitcom.script import generate
from zoo.sitcom.settings import Dialogue

SEED = 4711  # of a dialogue that no published system was trained on
SHOWN = 4


class Examples:
    """A few lines of one dialogue, each with its clip, made when they are first asked for; deleted with the object."""

    @functools.cached_property
    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        folder = tempfile.TemporaryDirectory(prefix="zoo-examples-")
        write_clips((self._dialogue, str(SEED), Path(folder.name)))
        return folder

    @functools.cached_property
    def _dialogue(self) -> Dialogue:
        (dialogue,) = generate(SEED, 1)
        return replace(dialogue, utterances=dialogue.utterances[:SHOWN])

    def rows(self) -> list[dict[str, Any]]:
        """Return number, speaker, words and true label of each."""
        _ = self._folder
        lines = enumerate(self._dialogue.utterances)
        return [{"number": i, "speaker": u.speaker, "text": u.text, "label": u.label} for i, u in lines]

    def clip(self, number: int) -> Path | None:
        """Return the film of an example; None if there is no such."""
        lines = self._dialogue.utterances
        return Path(self._folder.name) / f"{lines[number].id}.mp4" if number < len(lines) else None
