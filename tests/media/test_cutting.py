"""A piece of a film shows what the film shows then, to the last bit, and does not take the film's time."""

from __future__ import annotations

import numpy as np
import pytest

from tests.media_files import sine, write_clip
from zoo.media import Media, Unreadable
from zoo.media.clips import utterance_frames
from zoo.schema import Turn

FPS, SECONDS = 25, 6
CLIPS = {
    "short groups": ("film.mp4", {"coder": {"g": "12", "bf": "2"}}),
    "one group": ("film.mp4", {"coder": {"bf": "2"}}),
    "turned": ("film.mp4", {"coder": {"g": "12"}, "turn": {"degrees": 90}}),
    "no stored order": ("film.mkv", {"coder": {"g": "25", "bf": "2"}}),
    "another coder": ("film.webm", {"codecs": ("libvpx", "libopus"), "rate": 48_000}),
    "begins late": ("film.ts", {"coder": {"g": "12"}}),
}


def film(path, sound=True, **how):
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    pictures = [np.roll(noise, 3 * i, 1) for i in range(FPS * SECONDS)]
    return write_clip(path, pictures, sine(200, SECONDS, how.get("rate", 44_100)) if sound else None, **how)


def frames(media, path, start, end):
    return utterance_frames(media, Turn("film", "", "", video=path, start=start, end=end), 5)


@pytest.mark.parametrize("what", CLIPS)
def test_a_piece_shows_what_the_film_shows(tmp_path, what):
    name, how = CLIPS[what]
    media, path = Media(), film(tmp_path / name, **how)
    for start, end in ((0.04, 1.0), (2.51, 3.9), (5.2, 5.9)):
        data, begin = media.piece(path, start, end)
        (tmp_path / "piece").write_bytes(data)
        assert begin <= start and len(data) < path.stat().st_size
        inside = start - begin
        got = frames(media, tmp_path / "piece", inside, inside + end - start)
        assert np.array_equal(got, frames(media, path, start, end))


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
def test_a_picture_that_begins_after_the_sound(tmp_path, name):
    pictures = [np.full((64, 96, 3), 5 * i, np.uint8) for i in range(50)]
    times = [1500 + 40 * i for i in range(50)]  # seconds 1.5 to 3.5
    media, path = Media(), write_clip(tmp_path / name, pictures, sine(200, 4, 44_100), times=times)
    data, begin = media.piece(path, 0.5, 2.5)
    assert begin == pytest.approx(1.5, abs=0.03)
    (tmp_path / "piece").write_bytes(data)
    assert np.array_equal(frames(media, tmp_path / "piece", 0.0, 2.5 - begin), frames(media, path, begin, 2.5))
    with pytest.raises(Unreadable, match="no frames from 0.2 to 1 s"):
        media.piece(path, 0.2, 1.0)


def test_what_cannot_be_cut(tmp_path):
    media = Media()
    with pytest.raises(Unreadable, match="no frames from 60 to 61 s"):
        media.piece(film(tmp_path / "film.mp4"), 60.0, 61.0)
    with pytest.raises(Unreadable, match="stores no times"):
        media.piece(film(tmp_path / "film.avi", codecs=("mpeg4", "mp3")), 1.0, 2.0)
    with pytest.raises(Unreadable, match="no video stream"):
        media.piece(write_clip(tmp_path / "sound.mp4", sound=sine(200, 2, 44_100)), 0.5, 1.0)
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(Unreadable, match="is broken, or no video"):
        media.piece(tmp_path / "text.mp4", 0.5, 1.0)
    with pytest.raises(Unreadable, match="no such file"):
        media.piece(tmp_path / "none.mp4", 0.5, 1.0)
    assert frames(media, film(tmp_path / "whole.mp4"), 1.0, 2.0).shape[0] == 5  # the decoder lives on
