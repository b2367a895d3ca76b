"""The picture of an utterance, and the faces that controls show in its place."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from zoo.media import Media, Unreadable
from zoo.media.clips import utterance_frames
from zoo.schema import Turn

Faces = Literal["own", "none", "constant", "another"]
KEPT_ROWS = (0.2, 0.8)  # height of a film of two people that is kept (C, IEMOCAP)


@dataclass
class PictureReader:
    """Read the one frame of an utterance: at half of its time (P), squeezed to the encoder's square.

    That is how the encoder's own preprocessing does it. Of a film of two people it is the speaker's half, without the
    top and bottom fifth (C, IEMOCAP).

    Args:
        size: side in pixels.
        faces: whose face is shown: the speaker's ``own``; in controls one ``constant`` face, or that of ``another``
            speaker in another dialogue.
        pool: (dialogue, turn) of the training split, from which the controls take their faces.
    """

    media: Media
    size: int
    faces: Faces = "own"
    pool: Sequence[tuple[str, Turn]] = ()

    def choose(self, turn: Turn, dialogue: str) -> Turn | None:
        """Return the turn whose picture is shown for a turn; None if it has none of its own."""
        if turn.video is None:
            return None
        if self.faces == "constant":
            return self.pool[0][1]
        if self.faces == "another":
            start = zlib.crc32(f"{dialogue}/{turn.id}".encode())
            ring = (self.pool[(start + i) % len(self.pool)] for i in range(len(self.pool)))
            return next(other for name, other in ring if name != dialogue and other.speaker != turn.speaker)
        return turn

    @staticmethod
    def key(turn: Turn) -> str:
        """Return what identifies the picture of a turn."""
        return f"{turn.video}|{turn.frame_at}|{turn.crop}"

    def read(self, turn: Turn) -> np.ndarray | None:
        """Return the picture, uint8 (3, S, S); None if the file gives none (`Media` notes why)."""
        try:
            return utterance_frames(self.media, turn, 1, side=(self.size, self.size), rows=KEPT_ROWS)[0]
        except Unreadable:
            return None
