"""zoo.media.cache: files are decoded once, problems are remembered."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.media.decoders import no_decoder
from tests.media_files import clip, grey, numbers, write_clip
from zoo.media import Media, Unreadable, cache, read_frames, read_waveform


def test_media_gives_what_the_functions_give_with_and_without_cache(tmp_path, usual):
    cached = Media(tmp_path / "cache")
    for _ in range(2):
        for media in (Media(), cached):
            frames, sound = media.frames(usual, 5, size=(40, 50)), media.waveform(usual, 8_000)
            assert frames.tobytes() == read_frames(usual, 5, size=(40, 50)).tobytes() and frames.shape[2:] == (40, 50)
            assert sound.tobytes() == read_waveform(usual, 8_000).tobytes() and sound.dtype == np.float32
            frames[0], sound[0] = 0, 0  # writable, and nobody else's


def test_the_second_time_comes_from_the_cache_for_equal_bytes_and_equal_requests_only(tmp_path, usual, monkeypatch):
    path, twin = tmp_path / "a.mp4", tmp_path / "b.avi"
    path.write_bytes(usual.read_bytes())
    twin.write_bytes(usual.read_bytes())
    Media(tmp_path / "cache").frames(path, 4)
    with monkeypatch.context() as patch:
        no_decoder(patch)
        media = Media(tmp_path / "cache")
        assert numbers(media.frames(path, 4)) == numbers(media.frames(twin, 4)) == [4, 14, 23, 33]
        for arguments in ({"n": 5}, {"n": 4, "size": 32}, {"position": 0.3}, {}):
            with pytest.raises(AssertionError, match="decoded"):
                media.frames(path, **arguments)
        with pytest.raises(AssertionError, match="decoded"):
            media.waveform(path)
    entries = list((tmp_path / "cache").glob("??/*.npy"))
    assert len(entries) == 1 and np.load(entries[0], allow_pickle=False).shape == (4, 3, 96, 96)
    write_clip(path, [grey(30)])  # another file under the same name
    assert numbers(media.frames(path, 4)) == [30] * 4 and numbers(media.frames(twin, 4)) == [4, 14, 23, 33]


def test_a_file_is_hashed_once_until_it_changes(tmp_path, usual, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(usual.read_bytes())
    os.utime(path, (1e9, 1e9))  # last changed long ago: only then is its hash remembered
    hashed = []
    digest = cache.hashlib.file_digest
    monkeypatch.setattr(cache.hashlib, "file_digest", lambda file, name: hashed.append(1) or digest(file, name))
    media = Media(tmp_path / "cache")
    for _ in range(3):
        media.frames(path, 2)
    pickle.loads(pickle.dumps(media)).frames(path, 2)
    Media(tmp_path / "cache").frames(path, 2)  # another process: from the cache
    assert len(hashed) == 1
    os.utime(path, (1e9, 1e9 + 1))
    assert numbers(media.frames(path, 2)) == [9, 28] and len(hashed) == 2
    path.write_bytes(write_clip(tmp_path / "c.mp4", [grey(7)]).read_bytes())  # just written: not remembered
    for _ in range(2):
        assert numbers(media.frames(path, 2)) == [7, 7]
    assert len(hashed) == 4


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "text"])
def test_a_damaged_cache_entry_is_made_again(tmp_path, usual, damage):
    media = Media(tmp_path / "cache")
    expected = media.waveform(usual)
    (entry,) = (tmp_path / "cache").glob("??/*.npy")
    whole = entry.read_bytes()
    bad = {"cut": whole[:-1000], "flipped": whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:]}
    entry.write_bytes(bad.get(damage, b"" if damage == "emptied" else b"not an array at all" * 9))
    assert media.waveform(usual).tobytes() == expected.tobytes()
    assert entry.read_bytes() == whole


FILL = """
import sys
from zoo.media import Media
media = Media(sys.argv[1])
for path in sys.argv[2:]:
    print(media.frames(path, 4).sum(), media.waveform(path).tobytes().hex()[:80])
"""


def test_two_processes_fill_one_cache(tmp_path):
    paths = [clip(tmp_path / f"{i}.mp4", count=20 + i, seconds=0.3, rate=16_000) for i in range(6)]
    command = [sys.executable, "-c", FILL, str(tmp_path / "cache"), *map(str, paths)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) for _ in "ab"]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert said[0] == said[1] and len(said[0].splitlines()) == 6
    assert [process.returncode for process in both] == [0, 0]
    assert len(list((tmp_path / "cache").glob("??/*.npy"))) == 12
    assert not list((tmp_path / "cache").rglob("*.part"))  # no half-written file is left


def test_problems_are_written_down_without_paths_of_this_machine(tmp_path, usual, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    Path("sub/text.mp4").write_text("no film")
    Path("other.mp4").write_text("no film either")
    media = Media(Path("cache"))
    for path in ("sub/text.mp4", tmp_path / "other.mp4", "../" + tmp_path.name + "/sub/text.mp4", "missing.mp4"):
        for _ in range(2):
            with pytest.raises(Unreadable):
                media.frames(path, 2)
    media.frames(usual, 2)
    rows = [json.loads(line) for line in Path("cache/problems.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == ["sub/text.mp4", "other.mp4"]  # each once; the missing one has no hash
    assert all(len(row["sha256"]) == 64 and "no video" in row["reason"] for row in rows)
    assert rows[0].keys() == {"file", "sha256", "request", "problem", "reason", "limits"}
    assert [row["file"] for row in media.unreadable] == ["sub/text.mp4", "other.mp4", "missing.mp4"]
    assert Media(Path("cache")).unreadable == rows  # another process
    for file in Path("cache").rglob("*"):
        assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes()


def test_a_line_taken_out_of_the_record_is_tried_again_and_a_torn_line_does_no_harm(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(f"no film {name}")
    media, record = Media(tmp_path / "cache"), tmp_path / "cache" / "problems.jsonl"
    for name in "ab":
        with pytest.raises(Unreadable):
            media.waveform(tmp_path / name)
    record.write_bytes(record.read_bytes().splitlines(True)[1] + b'{"torn\n["odd"]\n')
    assert [row["file"] for row in media.unreadable] == ["b"]
    with pytest.raises(Unreadable):
        media.waveform(tmp_path / "a")
    assert [row["file"] for row in media.unreadable] == ["b", "a"]
    record.unlink()
    assert media.unreadable == []
