"""Fixtures of the tests of zoo.media."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from tests.media.decoders import BAD_DECODER, CHILD_PROGRAM
from tests.media_files import clip
from zoo.media import worker


@pytest.fixture(scope="module")
def usual(tmp_path_factory) -> Path:
    """38 numbered frames at 25 fps (1.52 s), with B-frames, and 1.5 s of 440 Hz."""
    return clip(tmp_path_factory.mktemp("media") / "usual.mp4")


@pytest.fixture
def bad_decoder(monkeypatch):
    """Files of certain names hang, crash, ..."""
    monkeypatch.setattr(worker, "CHILD", [sys.executable, "-P", "-c", BAD_DECODER, CHILD_PROGRAM])
    monkeypatch.setattr(worker, "_local", threading.local())
