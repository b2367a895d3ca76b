"""A reader of faces that counts what it looks at, and is killed at its third look."""

from __future__ import annotations

import pytest

from zoo.models.emotion_qwen.faces import WholeFrame

KILLED_AT = 3


class Looks:
    """The looks of `WholeFrame` since the last `forget`; the `KILLED_AT`-th of all is a kill."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.all, self.forgotten = 0, 0
        looks, see = self, WholeFrame.analyse

        def analyse(self, frames, *rest):
            looks.all += 1
            if looks.all == KILLED_AT:
                raise KeyboardInterrupt
            return see(self, frames, *rest)

        monkeypatch.setattr(WholeFrame, "analyse", analyse)

    def __len__(self) -> int:
        return self.all - self.forgotten

    def forget(self) -> None:
        self.forgotten = self.all
