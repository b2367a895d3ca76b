"""zoo.media.scan: many files at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.media.decoders import children, no_decoder
from tests.media_files import clip, grey, write_clip
from zoo.media import Media, scan


def test_scan_decodes_everything_once_and_lists_what_failed(tmp_path, monkeypatch):
    good = [clip(tmp_path / f"{i}.mp4", count=10 + i, seconds=0.2) for i in range(5)]
    (tmp_path / "bad.mp4").write_text("no film")
    silent = write_clip(tmp_path / "silent.mp4", [grey(1)])
    paths = [*good, tmp_path / "bad.mp4", silent, tmp_path / "missing.mp4"]
    media = Media(tmp_path / "cache")
    before = len(children())
    found = scan(paths, media, workers=2, frames={"n": 3, "size": 32}, waveform={})
    assert (found.files, found.arrays, len(found.unreadable), found.damaged) == (8, 11, 5, {})
    assert [(Path(e.path).name, e.reason[:8]) for e in found.unreadable] == [
        ("bad.mp4", "is broke"),
        ("bad.mp4", "is broke"),
        ("silent.mp4", "has no a"),
        ("missing.mp4", "no such "),
        ("missing.mp4", "no such "),
    ]
    assert len(children()) == before  # its decoders went with its threads
    no_decoder(monkeypatch)
    assert scan(paths, media, frames={"n": 3, "size": 32}, waveform={}).arrays == 11
    with pytest.raises(ValueError, match="decodes nothing"):
        scan(paths, media)


def test_a_mistake_ends_a_scan_at_once(tmp_path, usual, bad_decoder):
    paths = [tmp_path / "mistake.mp4", *(tmp_path / f"{i}.mp4" for i in range(200))]
    for i, path in enumerate(paths):
        path.write_bytes(usual.read_bytes() + bytes([i]))
    with pytest.raises(RuntimeError, match="a mistake in zoo.media"):
        scan(paths, Media(tmp_path / "cache"), frames={"n": 1})
    assert len(list((tmp_path / "cache").glob("??/*.npy"))) < 150
