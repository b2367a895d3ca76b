"""A corpus with clips, and a reader of its faces that counts what it looks at and is killed at its third look."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders import make_corpus
from zoo.backbones.tiny import make_vit_folder
from zoo.data.meld import CLIPS
from zoo.models.emotion_qwen.faces import EMOTIONS, WholeFrame

KILLED_AT = 3


def make_home(home: Path) -> Path:
    """A corpus of which the first clip is broken and the second missing, and a reader of expressions."""
    make_corpus(home / "meld", (2, 1, 1), clips=True)
    sizes = {"size": 24, "patch": 8, "width": 32, "layers": 1, "heads": 2, "intermediate_size": 32}
    make_vit_folder(home / "head", EMOTIONS, **sizes)
    clip(home, 0).write_bytes(b"no clip")
    clip(home, 1).unlink()
    return home


def clip(home: Path, number: int) -> Path:
    """The clip of an utterance of the first training dialogue."""
    return home / "meld" / CLIPS["train"] / f"dia0_utt{number}.mp4"


def command(verb: str, home: Path, out: Path, *more: str) -> tuple[str, ...]:
    """``zoo prepare VERB`` of that corpus, by that reader."""
    return (
        *("prepare", verb, "--data=MELD", f"--data.root={home / 'meld'}", "--data.descriptions=[]"),
        *("--analyzer=WholeFrame", f"--analyzer.expression={home / 'head'}", f"--out={out}", *more),
    )


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
