"""zoo.media.clips: which frames and which sound are an utterance's, and which part of the picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.media_files import sine, write_clip
from zoo.media import Media, Unreadable
from zoo.media.clips import RATE, middle_of_sound, utterance_frames, utterance_key, utterance_sound
from zoo.media.frames import PixelBudget
from zoo.schema import Turn


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Media:
    return Media(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """Two seconds of 80 x 40 pixels; frame i is i * 10 bright on the left, 250 - i * 10 on the right."""
    frames = np.zeros((20, 40, 80, 3), np.uint8)
    for i in range(20):
        frames[i, :, :40], frames[i, :, 40:] = i * 10, 250 - i * 10
    return write_clip(tmp_path_factory.mktemp("clips") / "film.mp4", list(frames), fps=10)


def turn_of(film, **options):
    return Turn("x", "", "hi", video=film, **options)


def test_a_clip_of_its_own_is_spread_over(media, film):
    own = utterance_frames(media, turn_of(film), 4, side=32, square=True)
    direct = media.frames(film, n=4, size=32)
    assert own.shape == (4, 3, 32, 32) and direct.shape == (4, 3, 32, 64)
    assert np.array_equal(own, direct[..., 16:48])  # its middle square
    middle = utterance_frames(media, turn_of(film), 2, side=32, square=True, middle=0.5)
    assert np.array_equal(middle, direct[1:3, ..., 16:48])


def test_an_utterance_within_a_film(media, film):
    """Four frames in the middles of four equal parts of its seconds."""
    own = utterance_frames(media, turn_of(film, start=0.8, end=1.6), 4, side=32, square=True)
    direct = [media.frames(film, position=t, size=32)[0][..., 16:48] for t in (0.9, 1.1, 1.3, 1.5)]
    assert np.array_equal(own, np.stack(direct)) and not np.array_equal(own[0], own[1])
    part = utterance_frames(media, turn_of(film, start=0.8, end=1.6), 2, side=32, square=True, middle=0.5)
    assert np.array_equal(part, np.stack(direct[1:3]))


@pytest.mark.parametrize("crop, level", [("left", 90), ("right", 160)])
def test_the_half_of_a_speaker(media, film, crop, level):
    for turn in (turn_of(film, start=0.8, end=1.1, crop=crop), turn_of(film, crop=crop)):
        own = utterance_frames(media, turn, 1, side=32, square=True)
        assert own.shape == (1, 3, 32, 32) and own.dtype == np.uint8
    inside = utterance_frames(media, turn_of(film, start=0.85, end=1.05, crop=crop), 1, side=32, square=True)
    assert abs(float(inside[..., 4:28, 4:28].mean()) - level) < 6  # frame 9


def test_sound_is_cut_to_its_middle(media, film, tmp_path):
    path = write_clip(
        tmp_path / "sound.mp4", [np.zeros((32, 32, 3), np.uint8)] * 5, sine(300, 0.9, 16_000), rate=16_000
    )
    turn = Turn("x", "", "hi", audio=path)
    wave = media.waveform(path)
    assert np.array_equal(utterance_sound(media, turn), wave)
    own, cut = middle_of_sound(wave, 8000)
    start = (len(wave) - 8000) // 2
    assert cut and np.array_equal(own, wave[start : start + 8000])
    own, cut = middle_of_sound(wave, len(wave))
    assert not cut and np.array_equal(own, wave)
    (tmp_path / "broken.mp4").write_bytes(b"no clip")
    with pytest.raises(Unreadable):
        utterance_sound(media, Turn("x", "", "hi", audio=tmp_path / "broken.mp4"))


def test_a_film_whose_sound_ends_before_the_utterance_is_unreadable_there(media, tmp_path):
    path = write_clip(
        tmp_path / "film.mp4", [np.zeros((32, 32, 3), np.uint8)] * 50, sine(300, 0.5, 16_000), rate=16_000
    )
    media.new_problems()
    assert len(utterance_sound(media, Turn("x", "", "hi", video=path, audio=path, start=0.1, end=0.3))) == 3200
    with pytest.raises(Unreadable, match="s of sound, so none from 1.5 to 2 s"):
        utterance_sound(media, Turn("x", "", "hi", video=path, audio=path, start=1.5, end=2.0))
    (row,) = media.new_problems()
    assert (row["problem"], row["path"]) == ("unreadable", str(path)) and "none from 1.5 to 2 s" in row["reason"]


def test_what_is_not_there_is_not_read(media):
    with pytest.raises(ValueError, match="x has no clip"):
        utterance_frames(media, Turn("x", "", "hi"), 1)
    with pytest.raises(ValueError, match="x has no sound"):
        utterance_sound(media, Turn("x", "", "hi"))


def test_parts_of_one_film_are_told_apart(film):
    turns = [
        turn_of(film),
        turn_of(film, start=0.0, end=1.0),
        turn_of(film, start=1.0, end=2.0),
        turn_of(film, start=0.0, end=1.0, crop="left"),
        turn_of(film, start=0.0, end=1.0, crop="right"),
    ]
    assert len({utterance_key(t, t.video) for t in turns}) == 5
    assert utterance_key(turns[0], film) == utterance_key(replace(turns[0], id="y", text="other"), film)


def test_a_part_of_a_file():
    """An utterance inside a longer clip: only its own frames, its half of the picture and its sound."""
    video = np.zeros((10, 3, 4, 6), np.uint8)
    video[:] = np.arange(10, dtype=np.uint8)[:, None, None, None] * 10
    video[..., 3:] += 1

    class Ten:
        """A frame per second."""

        def frames(self, path, n=None, position="uniform", size=None):
            if position == "uniform":
                return video[:n]
            return video[[int(position[0] + (position[1] - position[0]) * (i + 0.5) / n) for i in range(n)]]

        def waveform(self, path, rate):
            return np.repeat(np.arange(10, dtype=np.float32), rate)

    turn = Turn("u", "", "", video=Path("v.mp4"), audio=Path("v.mp4"), start=4.0, end=8.0, crop="right")
    frames = utterance_frames(Ten(), turn, 2, side=4)
    assert frames.shape == (2, 3, 5, 4)  # the half of 4 x 3 pixels is resized, not the whole picture
    assert frames[:, 0, 0, 0].tolist() == [51, 71]
    sound = utterance_sound(Ten(), turn)
    assert len(sound) == 4 * RATE and set(sound.tolist()) == {4.0, 5.0, 6.0, 7.0}
    own = Turn("u", "", "", video=Path("v.mp4"), audio=Path("own.wav"), start=4.0, end=8.0)  # a file of its own: whole
    assert len(utterance_sound(Ten(), own)) == 10 * RATE
    rows = utterance_frames(Ten(), turn, 2, side=(8, 8), rows=(0.25, 0.75))
    assert rows.shape == (2, 3, 8, 8) and rows[:, 0, 0, 0].tolist() == [51, 71]
    assert utterance_frames(Ten(), turn, 2).shape == (2, 3, 4, 3)  # as in the file


def test_a_budget_leaves_what_is_cropped(media, film):
    budget = PixelBudget(4, 16, 400)
    assert utterance_frames(media, turn_of(film), 2, side=budget).shape == (2, 3, 12, 28)
    assert utterance_frames(media, turn_of(film, start=0.8, end=1.6), 2, side=budget).shape == (2, 3, 12, 28)
    assert utterance_frames(media, turn_of(film, crop="left"), 2, side=budget).shape == (2, 3, 40, 40)
