"""zoo.media.frames: which frame is shown when, and how it looks."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from tests.media_files import corners, grey, numbers, quarters, write_clip
from zoo.media import Media, Unreadable, read_frames
from zoo.media.frames import PixelBudget


def test_uniform_frames_are_those_at_the_centres_of_equal_parts(usual):
    for n in (1, 3, 8, 38):
        assert numbers(read_frames(usual, n)) == [int((i + 0.5) / n * 38) for i in range(n)]
    assert numbers(read_frames(usual)) == list(range(38))
    assert numbers(read_frames(usual, position="middle")) == [19]


def test_frame_at_a_time_is_the_one_shown_then(usual):
    for seconds, number in ((0, 0), (0.039, 0), (0.04, 1), (0.05, 1), (1 / 3, 8), (1.47, 36), (1.48, 37), (99, 37)):
        assert numbers(read_frames(usual, position=seconds)) == [number], seconds


def test_frames_of_a_part_are_those_shown_at_the_centres_of_its_parts(usual):
    for start, end, n in ((0.2, 0.6, 4), (0.0, 1.52, 38), (1.0, 3.0, 5)):
        alone = [read_frames(usual, position=start + (end - start) * ((i + 0.5) / n)) for i in range(n)]
        assert numbers(read_frames(usual, n, (start, end))) == [numbers(frame)[0] for frame in alone]


def test_frames_from_the_first_to_the_last(usual):
    for n in (2, 4, 8, 38):
        assert numbers(read_frames(usual, n, "ends")) == [round(i * 37 / (n - 1)) for i in range(n)]
    assert numbers(Media().frames(usual, 4, "ends")) == [0, 12, 25, 37]
    with pytest.raises(ValueError, match="position='ends' needs n"):
        read_frames(usual, position="ends")


def test_a_short_clip_repeats_its_frames(tmp_path):
    path = write_clip(tmp_path / "short.mp4", [grey(i) for i in range(3)])
    assert numbers(read_frames(path, 7)) == [0, 0, 1, 1, 1, 2, 2]
    one = write_clip(tmp_path / "one.mp4", [grey(5)])
    assert numbers(read_frames(one, 4)) == [5, 5, 5, 5] and numbers(read_frames(one)) == [5]
    assert numbers(read_frames(one, position="middle")) == numbers(read_frames(one, position=3.0)) == [5]


def test_variable_frame_rate_goes_by_time_not_by_count(tmp_path):
    path = write_clip(tmp_path / "vfr.mkv", [grey(i) for i in range(5)], times=[0, 100, 200, 1000, 1040])
    assert [numbers(read_frames(path, position=t))[0] for t in (0.05, 0.15, 0.9, 1.0, 1.039, 1.04)] == [
        0,
        1,
        2,
        3,
        3,
        4,
    ]
    assert numbers(read_frames(path, 4)) == [1, 2, 2, 2]  # at 0.135, 0.405, 0.675, 0.945 s of 1.08 s


def test_avi_has_no_presentation_times_but_its_frames_are_in_order(tmp_path):
    path = write_clip(tmp_path / "b.avi", [grey(i) for i in range(20)], coder={"bf": "3"})
    assert numbers(read_frames(path)) == list(range(20))
    assert numbers(read_frames(path, 5)) == [2, 6, 10, 14, 18]


def test_clip_whose_clock_starts_late(tmp_path):
    path = write_clip(tmp_path / "late.ts", [grey(i) for i in range(25)], options={"output_ts_offset": "3"})
    with av.open(str(path)) as container:
        assert container.start_time >= 3_000_000  # us: the case is real
    assert numbers(read_frames(path, position=0.2)) == [5] and numbers(read_frames(path, 5)) == [2, 7, 12, 17, 22]


def test_frames_that_the_edit_list_hides_do_not_count(tmp_path):
    times = [40 * i - 400 for i in range(30)]  # the first ten lie before the clip's start
    options = {"avoid_negative_ts": "disabled"}
    path = write_clip(tmp_path / "edited.mp4", [grey(i) for i in range(30)], times=times, options=options)
    with av.open(str(path)) as container:
        assert sum(packet.is_discard for packet in container.demux(video=0)) == 10  # the case is real
    assert numbers(read_frames(path)) == list(range(10, 30)) and numbers(read_frames(path, 2)) == [15, 25]


def test_size_as_pair_and_as_shorter_side(tmp_path):
    path = write_clip(tmp_path / "wide.mp4", [quarters(64, 96)])
    for size, shape in ((None, (64, 96)), ((48, 40), (48, 40)), (32, (32, 48)), (128, (128, 192))):
        frames = read_frames(path, 2, size=size)
        assert frames.shape == (2, 3, *shape) and frames.dtype == np.uint8 and frames.flags.c_contiguous
        assert corners(frames[0]) == "rgbw"  # RGB, the first row on top


@pytest.mark.parametrize(
    ("turn", "shape", "seen"),
    [
        ({"degrees": -90}, (96, 64), "brwg"),  # clockwise: the lower left comes up
        ({"degrees": 180}, (64, 96), "wbgr"),
        ({"degrees": 90}, (96, 64), "gwrb"),
        ({"degrees": 0, "hflip": True}, (64, 96), "grwb"),
        ({"degrees": 0, "vflip": True}, (64, 96), "bwrg"),
    ],
)
def test_rotation_is_applied(tmp_path, turn, shape, seen):
    path = write_clip(tmp_path / "turned.mp4", [quarters()] * 2, turn=turn)
    frames = read_frames(path)
    assert frames.shape == (2, 3, *shape) and corners(frames[1]) == seen
    with av.open(str(path)) as container:
        assert corners(next(container.decode(video=0)).to_ndarray(format="rgb24").transpose(2, 0, 1)) == "rgbw"


def test_pixels_that_are_not_square(tmp_path):
    path = write_clip(tmp_path / "pal.mp4", [quarters(64, 72)], pixel=Fraction(4, 3))
    assert read_frames(path).shape == (1, 3, 64, 96) and read_frames(path, size=32).shape == (1, 3, 32, 48)
    assert read_frames(path, size=(64, 64)).shape == (1, 3, 64, 64)


def test_odd_sizes(tmp_path):
    path = write_clip(tmp_path / "odd.mp4", [quarters(63, 97)], pix_fmt="yuv444p")
    assert read_frames(path).shape == (1, 3, 63, 97) and corners(read_frames(path)[0]) == "rgbw"


def test_pictures_are_clips_of_one_frame_whatever_they_are_called(tmp_path):
    picture = Image.fromarray(quarters())
    for kind in ("JPEG", "PNG", "WEBP"):
        path = tmp_path / f"{kind}.mp4"
        picture.save(path, kind)
        frames = read_frames(path, 3)
        assert frames.shape == (3, 3, 64, 96) and [corners(f) for f in frames] == ["rgbw"] * 3
        assert read_frames(path, position=2.0, size=32).shape == (1, 3, 32, 48) and len(read_frames(path)) == 1


def test_picture_modes(tmp_path):
    Image.fromarray(np.full((8, 9), 77, np.uint8)).save(tmp_path / "grey.jpg", quality=95)
    assert np.abs(read_frames(tmp_path / "grey.jpg").astype(int) - 77).max() <= 1

    clear = np.dstack([quarters(), np.zeros((64, 96), np.uint8)])
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert corners(read_frames(tmp_path / "clear.png")[0]) == "rgbw"

    Image.fromarray(quarters()).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert corners(read_frames(tmp_path / "cmyk.jpg")[0]) == "rgbw"

    Image.fromarray(np.full((8, 9), 77 << 8, np.uint16)).save(tmp_path / "deep.png")
    assert (read_frames(tmp_path / "deep.png") == 77).all()

    Image.fromarray(quarters()).convert("P").save(tmp_path / "palette.png")
    assert corners(read_frames(tmp_path / "palette.png")[0]) == "rgbw"

    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    Image.fromarray(quarters()).save(tmp_path / "phone.jpg", exif=exif, quality=95)
    assert read_frames(tmp_path / "phone.jpg").shape == (1, 3, 96, 64)
    assert corners(read_frames(tmp_path / "phone.jpg")[0]) == "brwg"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"n": 0}, "1 or more"),
        ({"n": 2.5}, "1 or more"),
        ({"position": "start"}, "time in seconds"),
        ({"position": -1.0}, "0 or more"),
        ({"position": float("nan")}, "0 or more"),
        ({"n": 3, "position": 1.0}, "leave n out"),
        ({"position": (1.0, 2.0)}, "needs n"),
        ({"n": 2, "position": (2.0, 1.0)}, "from < to"),
        ({"n": 2, "position": (0.0, float("inf"))}, "from < to"),
        ({"size": 0}, "height, width"),
        ({"size": (1, 2, 3)}, "height, width"),
    ],
)
def test_requests_that_make_no_sense(usual, arguments, says):
    for read in (read_frames, Media().frames):
        with pytest.raises(ValueError, match=says) as caught:
            read(usual, **arguments)
        assert not isinstance(caught.value, Unreadable)  # not the file's fault, and not remembered as such


def test_too_many_bytes_are_refused(usual):
    with pytest.raises(Unreadable, match="38 frames of 4000x4000 are more than 512 MB"):
        Media().frames(usual, size=4000)
    with pytest.raises(Unreadable, match="100000 frames of 96x96"):
        Media().frames(usual, n=100_000)


def test_a_budget_reduces_what_is_twice_as_large_and_leaves_the_rest(tmp_path, monkeypatch):
    large = write_clip(tmp_path / "large.mp4", [quarters(120, 200)] * 4)
    small = write_clip(tmp_path / "small.mp4", [quarters(80, 96)] * 4)
    media = Media(tmp_path / "cache")
    budget = PixelBudget(14, 28 * 28, 64 * 64)
    own = media.frames(large, 2, size=budget)
    assert own.shape == (2, 3, 42, 70) and np.array_equal(own, Media().frames(large, 2, size=budget))
    assert np.array_equal(own, media.frames(large, 2, size=budget)) and corners(own[0]) == "rgbw"
    assert max(f.stat().st_size for f in (tmp_path / "cache").glob("??/*.npy")) < 2 * 3 * 42 * 70 + 500
    assert media.frames(large, 2, size=PixelBudget(14, 28 * 28, 128 * 128)).shape == (2, 3, 120, 200)
    assert media.frames(small, 2, size=PixelBudget(14, 90 * 90, 90 * 90)).shape == (2, 3, 80, 96)
    Image.fromarray(quarters(300, 1)).save(tmp_path / "thin.png")  # no budget fits it
    assert media.frames(tmp_path / "thin.png", size=PixelBudget(4, 16, 64)).shape == (1, 3, 300, 1)
    for wrong in (PixelBudget(14, 0, 400), PixelBudget(14, 300, 200), PixelBudget(20, 100, 300)):
        with pytest.raises(ValueError, match="a budget is a factor"):
            media.frames(large, 2, size=wrong)
    monkeypatch.setattr("zoo.media.frames.MAX_BYTES", 2 * 3 * 119 * 200)
    with pytest.raises(Unreadable, match="2 frames of 200x120 are more"):
        read_frames(large, 2)
    late = read_frames(large, 2, size=budget)  # too many bytes at once, so the decoder reduces each
    assert late.shape == own.shape and np.abs(late.astype(int) - own).max() <= 2
