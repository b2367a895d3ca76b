"""zoo.media on files made here: which frame, which sound, what is refused, and that no file holds up an epoch."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tests.media_files import clip, corners, grey, numbers, pitch, quarters, sine, write_clip
from zoo.media import Media, Unreadable, cache, read_frames, read_waveform, scan, worker
from zoo.media.worker import current_decoder


@pytest.fixture(scope="module")
def usual(tmp_path_factory) -> Path:
    """38 numbered frames at 25 fps (1.52 s), with B-frames, and 1.5 s of 440 Hz."""
    return clip(tmp_path_factory.mktemp("media") / "usual.mp4")


def children() -> list[tuple[int, str]]:
    """(pid, state) of the processes this one started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            except OSError:  # gone meanwhile
                continue
            if int(parent) == os.getpid():
                found.append((int(entry.name), state))
    return found


def gone(pid: int, within: float) -> bool:
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True  # dead; whoever inherited it has not looked yet
        except OSError:
            return True
        time.sleep(0.02)
    return False


# ---- which frame


def test_uniform_frames_are_those_at_the_centres_of_equal_parts(usual):
    for n in (1, 3, 8, 38):
        assert numbers(read_frames(usual, n)) == [int((i + 0.5) / n * 38) for i in range(n)]
    assert numbers(read_frames(usual)) == list(range(38))
    assert numbers(read_frames(usual, position="middle")) == [19]


def test_frame_at_a_time_is_the_one_shown_then(usual):
    for seconds, number in ((0, 0), (0.039, 0), (0.04, 1), (0.05, 1), (1 / 3, 8), (1.47, 36), (1.48, 37), (99, 37)):
        assert numbers(read_frames(usual, position=seconds)) == [number], seconds


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


# ---- how it looks


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
        ({"n": 3, "at": 1.0}, "leave n out"),
        ({"size": 0}, "height, width"),
        ({"size": (1, 2, 3)}, "height, width"),
    ],
)
def test_requests_that_make_no_sense(usual, arguments, says):
    for read in (read_frames, Media().frames):
        with pytest.raises(ValueError, match=says) as caught:
            read(usual, **arguments)
        assert not isinstance(caught.value, Unreadable)  # not the file's fault, and not remembered as such


# ---- how it sounds


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 44_101, 48_000, 96_000])
def test_resampling_keeps_pitch_length_and_loudness(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", sine(1000, 0.5, rate)[0], rate)
    sound = read_waveform(tmp_path / "a.wav")
    assert sound.dtype == np.float32 and sound.ndim == 1 and abs(len(sound) - 8000) <= 1
    assert abs(pitch(sound) - 1000) < 1
    assert abs(float(np.abs(sound[1000:-1000]).max()) - 0.5) < 0.01
    assert abs(len(read_waveform(tmp_path / "a.wav", rate=8_000)) - 4000) <= 1


def test_resampling_removes_what_the_new_rate_cannot_hold(tmp_path):
    soundfile.write(tmp_path / "high.wav", sine(12_000, 0.5, 48_000)[0], 48_000)  # would fold down to 4 kHz
    assert float(np.abs(read_waveform(tmp_path / "high.wav")[1000:-1000]).max()) < 0.01


def test_channels_are_averaged(tmp_path):
    tone = sine(500, 0.5, 44_100)[0]
    soundfile.write(tmp_path / "against.wav", np.stack([tone, -tone], 1), 44_100, subtype="FLOAT")
    assert float(np.abs(read_waveform(tmp_path / "against.wav")).max()) < 1e-6
    one = np.zeros((6, len(tone)), np.float32)
    one[0] = tone  # in the first of six channels
    write_clip(tmp_path / "surround.mka", sound=one, codecs=("", "flac"))
    assert abs(float(np.abs(read_waveform(tmp_path / "surround.mka")[1000:-1000]).max()) - 0.5 / 6) < 0.005
    write_clip(tmp_path / "surround.mp4", [grey(1)], one)
    sound = read_waveform(tmp_path / "surround.mp4")
    assert abs(pitch(sound) - 500) < 2 and 0.06 < float(np.abs(sound[1000:-1000]).max()) < 0.11


def test_sound_of_a_clip(usual):
    sound = read_waveform(usual)
    assert abs(pitch(sound) - 440) < 1 and abs(len(sound) - 24_000) < 400  # AAC comes in blocks of 23 ms
    assert abs(float(np.abs(sound[1000:20_000]).max()) - 0.5) < 0.02


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_wav_of_every_depth(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", sine(440, 0.5, 16_000)[0], 16_000, subtype=subtype)
    sound = read_waveform(tmp_path / "a.wav")
    assert np.abs(sound - sine(440, 0.5, 16_000)[0]).max() < (0.01 if subtype == "PCM_U8" else 1e-4)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp3", "libmp3lame"),
        ("a.flac", "flac"),
        ("a.m4a", "aac"),
        ("a.opus", "libopus"),
        ("a.webm", "libopus"),
        ("pcm.mov", "pcm_s16le"),
        ("pcm8.mkv", "pcm_u8"),
        ("pcm24.mkv", "pcm_s24le"),
    ],
)
def test_sound_formats(tmp_path, name, codec):
    write_clip(tmp_path / name, sound=sine(440, 1, 48_000), rate=48_000, codecs=("", codec))
    sound = read_waveform(tmp_path / name)
    assert abs(pitch(sound) - 440) < 1 and abs(len(sound) - 16_000) < 1300
    assert abs(float(sound[2000:14_000].std()) - 0.5 / 2**0.5) < 0.02


def test_ogg_vorbis(tmp_path):
    soundfile.write(tmp_path / "a.ogg", sine(440, 1, 16_000)[0], 16_000)
    assert abs(pitch(read_waveform(tmp_path / "a.ogg")) - 440) < 1


def test_very_short_sound(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(440, 0.05, 8_000)[0], 8_000)
    assert len(read_waveform(tmp_path / "a.wav")) == 800
    soundfile.write(tmp_path / "b.wav", np.full(1, 0.25), 8_000)
    assert len(read_waveform(tmp_path / "b.wav")) == 2


def test_sound_that_starts_late_begins_with_silence_on_the_clock_of_the_frames(tmp_path):
    path = clip(tmp_path / "late.mp4", seconds=1.0, late=0.4)
    sound = read_waveform(path)
    onset = int(np.argmax(np.abs(sound) > 0.1))
    assert abs(onset / 16_000 - 0.4) < 0.03 and abs(len(sound) - 1.4 * 16_000) < 500
    assert not sound[:5000].any()


def test_odd_samples(tmp_path):
    tone = sine(440, 0.5, 16_000)[0]
    broken = tone.copy()
    broken[[5, 6, 7]] = np.nan, np.inf, -np.inf
    soundfile.write(tmp_path / "nan.wav", broken, 16_000, subtype="FLOAT")
    with pytest.raises(Unreadable, match="3 of 8000 samples that are NaN or infinite"):
        read_waveform(tmp_path / "nan.wav")
    soundfile.write(tmp_path / "unscaled.wav", tone * 32768, 16_000, subtype="FLOAT")
    with pytest.raises(Unreadable, match="expected \\[-1, 1\\]"):
        read_waveform(tmp_path / "unscaled.wav")
    soundfile.write(tmp_path / "hot.wav", tone * 3, 16_000, subtype="FLOAT")
    assert float(np.abs(read_waveform(tmp_path / "hot.wav")).max()) == 1.0
    soundfile.write(tmp_path / "silent.wav", tone * 0, 16_000)
    assert not read_waveform(tmp_path / "silent.wav").any()


# ---- what is refused


def _make_broken(folder: Path) -> dict[str, tuple[Path, str, str]]:
    """name -> (path, what the frames' error says, what the sound's says); "" where it can be read."""
    whole = clip(folder / "whole.mp4").read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")  # nobody ever writes to it
    (folder / "text.mp4").write_text("not a film\n" * 100)
    (folder / "playlist.mp4").write_text(f"#EXTM3U\n#EXTINF:5,\nfile://{folder}/whole.mp4\n#EXT-X-ENDLIST\n")
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile whole.mp4\n")
    (folder / "noindex.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "zeros.mp4").write_bytes(bytes(5000))
    write_clip(folder / "silent.mp4", [grey(1)])
    write_clip(folder / "blind.mp4", sound=sine(440, 0.2, 44_100))
    soundfile.write(folder / "nothing.wav", np.zeros(0), 16_000)
    Image.fromarray(quarters()).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:100])
    said = {
        "missing.mp4": ("no such file", "no such file"),
        "empty.mp4": ("0 bytes", "0 bytes"),
        "folder.mp4": ("is a folder", "is a folder"),
        "pipe.mp4": ("is a pipe", "is a pipe"),
        "text.mp4": ("no video, sound or picture", "no video, sound or picture"),
        "playlist.mp4": ("no video, sound or picture", "no video, sound or picture"),
        "list.mp4": ("no video, sound or picture", "no video, sound or picture"),
        "noindex.mp4": ("moov", "moov"),
        "zeros.mp4": ("no video, sound or picture", "no video, sound or picture"),
        "silent.mp4": ("", "no audio stream"),
        "blind.mp4": ("no video stream", ""),
        "nothing.wav": ("no video", "no audio samples"),
        "cut.png": ("broken", "broken|no audio"),
        "whole.mp4": ("", ""),
    }
    return {name: (folder / name, *reasons) for name, reasons in said.items()}


def test_broken_files_say_what_is_wrong_and_leave_the_decoder_alive(tmp_path, capfd):
    broken = _make_broken(tmp_path)
    media = Media(tmp_path / "cache", timeout=10)
    decoder = current_decoder()
    for name, (path, frames, sound) in broken.items():
        for reads, says in (((read_frames, media.frames), frames), ((read_waveform, media.waveform), sound)):
            for read in reads:
                if says:
                    with pytest.raises(Unreadable, match=says) as caught:
                        read(path)
                    assert caught.value.path == path and "\n" not in caught.value.reason, name
                else:
                    assert read(path).size
    assert current_decoder() is decoder  # none of them took the process down
    assert capfd.readouterr() == ("", "")  # no library talks to the user's terminal


def test_a_file_cut_in_the_middle_gives_what_there_is_and_is_reported(tmp_path):
    data = clip(tmp_path / "whole.mp4", options={"movflags": "faststart"}, coder={"crf": "1", "g": "5"}).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 6 // 10])
    media = Media(tmp_path / "cache")
    frames = media.frames(tmp_path / "cut.mp4")
    assert 2 <= len(frames) < 38 and numbers(frames)[:2] == [0, 1]
    last = len(frames)
    assert numbers(media.frames(tmp_path / "cut.mp4", 4)) == [int((i + 0.5) / 4 * last) for i in range(4)]
    assert "cut short" in media.damaged[0]["reason"] and "of 1.52 s" in media.damaged[0]["reason"]
    assert media.unreadable == []
    assert scan([tmp_path / "cut.mp4"], media, frames={}).damaged[str(tmp_path / "cut.mp4")].startswith("cut short")


def test_a_hole_in_the_middle_is_bridged_and_reported(tmp_path):
    data = bytearray(clip(tmp_path / "whole.mp4", coder={"crf": "1", "g": "5"}).read_bytes())
    start = data.find(b"mdat")
    middle = start + (data.find(b"moov") - start) // 2
    data[middle : middle + 300] = bytes(300)
    (tmp_path / "hole.mp4").write_bytes(data)
    media = Media()
    frames = media.frames(tmp_path / "hole.mp4")
    assert len(frames) == 38 and numbers(frames)[0] == 0 and numbers(frames)[-1] == 37
    assert "damaged" in media.damaged[0]["reason"]


def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path):
    film = write_clip(
        tmp_path / "huge.mkv", [np.zeros((6000, 8000, 3), np.uint8)], codecs=("mjpeg", "aac"), pix_fmt="yuvj420p"
    )
    Image.new("L", (8000, 6000)).save(tmp_path / "huge.png")
    size = struct.pack(">4sIIBBBBB", b"IHDR", 60_000, 60_000, 8, 2, 0, 0, 0)  # 10 GB
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + size + struct.pack(">I", zlib.crc32(size))
    (tmp_path / "bomb.png").write_bytes(header + struct.pack(">I4s", 99, b"IDAT") + bytes(99))
    media = Media()
    before = _peak(current_decoder().process.pid)
    for path in (film, tmp_path / "huge.png", tmp_path / "bomb.png"):
        with pytest.raises(Unreadable, match="million pixels|exceeds limit"):
            media.frames(path, 1, size=32)
    assert _peak(current_decoder().process.pid) - before < 100_000  # kB; one such picture has 144 MB
    small = write_clip(tmp_path / "small.mp4", [quarters(64, 96)])
    with pytest.raises(Unreadable, match="pictures of 96x64"):
        Media(max_pixels=64 * 96 - 1).frames(small)
    assert Media(max_pixels=64 * 96).frames(small).shape == (1, 3, 64, 96)


def _peak(pid: int) -> int:
    """Most memory a process ever had, in kB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def test_the_memory_of_the_decoder_has_an_end(tmp_path, monkeypatch):
    code = BAD_DECODER.replace("worker.serve()", "worker.MAX_MEMORY = 50_000_000; worker.serve()")
    monkeypatch.setattr(worker, "CHILD", [sys.executable, "-P", "-c", code, CHILD_PROGRAM])
    monkeypatch.setattr(worker, "_local", threading.local())
    Image.new("RGB", (4000, 4000)).save(tmp_path / "large.png")
    with pytest.raises(Unreadable, match="too much memory"):
        Media().frames(tmp_path / "large.png", size=32)
    Image.new("RGB", (400, 400)).save(tmp_path / "small.png")
    assert Media().frames(tmp_path / "small.png", size=32).shape == (1, 3, 32, 32)


def test_too_many_bytes_are_refused(usual):
    with pytest.raises(Unreadable, match="38 frames of 4000x4000 are more than 512 MB"):
        Media().frames(usual, size=4000)
    with pytest.raises(Unreadable, match="100000 frames of 96x96"):
        Media().frames(usual, n=100_000)


def test_long_files_are_refused(tmp_path, usual):
    soundfile.write(tmp_path / "long.flac", np.zeros(700 * 8000, np.int16), 8000)
    with pytest.raises(Unreadable, match="longer than 600 s"):
        read_waveform(tmp_path / "long.flac")
    slow = write_clip(tmp_path / "slow.mkv", [grey(1), grey(2)], times=[0, 700_000])
    with pytest.raises(Unreadable, match="longer than 600 s"):
        read_frames(slow, 1)
    for read in (Media(max_seconds=1).frames, Media(max_seconds=1).waveform):
        with pytest.raises(Unreadable, match="longer than 1 s"):
            read(usual)


def test_absurd_sampling_rates_are_refused(tmp_path):
    for rate in (7, 4_000_000):
        soundfile.write(tmp_path / "a.wav", np.zeros(1000), rate)
        with pytest.raises(Unreadable, match=f"sampling rate of {rate} Hz"):
            read_waveform(tmp_path / "a.wav")


def test_any_name_will_do(tmp_path, usual, monkeypatch):
    monkeypatch.chdir(tmp_path)
    media = Media(tmp_path / "cache")
    expected = read_frames(usual, 2)
    names = ("größe 表情 😀.mp4", "a \"quoted' name.mp4", "http:", "-i", "a%03d.mp4", "clip.txt", "a\nb", "x.wav")
    for name in names:
        Path(name).write_bytes(usual.read_bytes())
        assert (media.frames(name, 2) == expected).all() and (read_frames(name, 2) == expected).all()
    raw = os.fsdecode(b"latin-\xe9.mp4")  # not UTF-8
    Path(raw).write_bytes(usual.read_bytes())
    assert len(Media().waveform(raw))
    with pytest.raises(Unreadable):
        read_frames("null\0byte")


def test_random_damage_is_read_or_refused(tmp_path, usual):
    rng = random.Random(0)
    soundfile.write(tmp_path / "a.wav", sine(440, 0.2, 16_000)[0], 16_000)
    Image.fromarray(quarters()).save(tmp_path / "a.png")
    Image.fromarray(quarters()).save(tmp_path / "a.jpg")
    avi = write_clip(tmp_path / "a.avi", [grey(i) for i in range(6)])
    media, refused, trial = Media(timeout=10), 0, tmp_path / "trial"
    sources = [p.read_bytes() for p in (usual, avi, tmp_path / "a.wav", tmp_path / "a.png", tmp_path / "a.jpg")]
    for i in range(120):
        data = bytearray(sources[i % len(sources)])
        if i % 3 == 0:
            del data[rng.randrange(1, len(data)) :]
        for _ in range(rng.choice((1, 20))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        trial.write_bytes(data)
        for read in (lambda: media.frames(trial, 3, size=32), lambda: media.waveform(trial)):
            try:
                assert len(read())
            except Unreadable:
                refused += 1
    assert 100 < refused < 220  # 96 of the 240 have no such stream to begin with


# ---- decoding once


def test_media_gives_what_the_functions_give_with_and_without_cache(tmp_path, usual):
    cached = Media(tmp_path / "cache")
    for _ in range(2):
        for media in (Media(), cached):
            frames, sound = media.frames(usual, 5, size=(40, 50)), media.waveform(usual, 8_000)
            assert frames.tobytes() == read_frames(usual, 5, size=(40, 50)).tobytes() and frames.shape[2:] == (40, 50)
            assert sound.tobytes() == read_waveform(usual, 8_000).tobytes() and sound.dtype == np.float32
            frames[0], sound[0] = 0, 0  # writable, and nobody else's


def _no_decoder(monkeypatch) -> None:
    def fail():
        raise AssertionError("decoded although it is in the cache")

    monkeypatch.setattr(worker, "current_decoder", fail)


def test_the_second_time_comes_from_the_cache_for_equal_bytes_and_equal_requests_only(tmp_path, usual, monkeypatch):
    path, twin = tmp_path / "a.mp4", tmp_path / "b.avi"
    path.write_bytes(usual.read_bytes())
    twin.write_bytes(usual.read_bytes())
    Media(tmp_path / "cache").frames(path, 4)
    with monkeypatch.context() as patch:
        _no_decoder(patch)
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


# ---- files that hang or crash


CHILD_PROGRAM = worker.CHILD[-1]
BAD_DECODER = """
import os, re, runpy, sys, time
runpy.run_path(sys.argv[1])  # makes the packages known, starts nothing
from zoo.media import worker
real = worker.decode_frames
def frames(path, *args, **kwargs):
    name = os.path.basename(path)
    if "asleep" in name:
        time.sleep(60)
    if "busy" in name:
        re.match(r"(a+)+$", "a" * 60 + "b")  # in C, for ever, without letting go of the interpreter
    if "crash" in name:
        os.kill(os.getpid(), 11)
    if "killed" in name:
        os.kill(os.getpid(), 9)
    if "mistake" in name:
        {}["no such key"]
    print("noise that is not part of the protocol", flush=True)
    return real(path, *args, **kwargs)
worker.decode_frames = frames
worker.serve()
"""


@pytest.fixture
def bad_decoder(monkeypatch):
    """Files of certain names hang, crash, ..."""
    monkeypatch.setattr(worker, "CHILD", [sys.executable, "-P", "-c", BAD_DECODER, CHILD_PROGRAM])
    monkeypatch.setattr(worker, "_local", threading.local())


@pytest.mark.parametrize("how", ["asleep", "busy"])
def test_a_file_that_hangs_costs_its_time_limit_once(tmp_path, usual, bad_decoder, how):
    path, fine = tmp_path / f"{how}.mp4", tmp_path / "fine.mp4"
    path.write_bytes(clip(path, count=5).read_bytes())
    fine.write_bytes(usual.read_bytes())
    media = Media(tmp_path / "cache", timeout=0.5)
    first = current_decoder().process.pid

    start = time.perf_counter()
    with pytest.raises(Unreadable, match="longer than 0.5 s to decode"):
        media.frames(path, 4)
    assert time.perf_counter() - start > 0.4
    assert gone(first, 60) and first not in dict(children())  # dead and buried

    assert numbers(media.frames(fine, 4)) == [4, 14, 23, 33]  # the next file works
    second = current_decoder()
    for again in (media, Media(tmp_path / "cache", timeout=0.5)):  # also in the next epoch's workers
        with pytest.raises(Unreadable, match="longer than 0.5 s to decode"):
            again.frames(path, 4)
        assert current_decoder() is second  # it was not tried once more, which would have ended the decoder
    with pytest.raises(Unreadable, match="longer than 0.6 s to decode"):  # another limit: tried again
        Media(tmp_path / "cache", timeout=0.6).frames(path, 4)
    path.write_bytes(usual.read_bytes())  # repaired: read again (its bytes are in the cache by now)
    assert numbers(media.frames(path, 4)) == [4, 14, 23, 33]


def test_a_file_that_crashes_the_decoder(tmp_path, usual, bad_decoder):
    for name in ("crash", "mistake", "killed", "fine"):
        (tmp_path / f"{name}.mp4").write_bytes(usual.read_bytes())
    media = Media()
    with pytest.raises(RuntimeError, match="a mistake in zoo.media"):
        media.frames(tmp_path / "mistake.mp4", 4)
    with pytest.raises(ProcessLookupError, match="was killed"):
        media.frames(tmp_path / "killed.mp4", 4)
    assert media.unreadable == []  # neither is the file's fault
    assert numbers(media.frames(tmp_path / "fine.mp4", 4)) == [4, 14, 23, 33]
    with pytest.raises(Unreadable, match="crashed the decoder \\(exit code -11\\)"):
        media.frames(tmp_path / "crash.mp4", 4)
    with pytest.raises(Unreadable, match="crashed"):  # same bytes
        media.frames(tmp_path / "fine.mp4", 4)


def test_an_interrupted_answer_is_not_taken_for_the_next_file(tmp_path, usual, monkeypatch):
    other = write_clip(tmp_path / "other.mp4", [grey(9)])
    media = Media()
    decoder = current_decoder()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(decoder, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        media.frames(usual, 1)
    assert numbers(media.frames(other, 1)) == [9] and current_decoder() is not decoder


def test_a_decoder_that_died_between_two_files_is_replaced(usual):
    current_decoder().process.kill()
    assert numbers(Media().frames(usual, 1)) == [19]


def test_a_decoder_that_cannot_start_says_so(monkeypatch, usual):
    monkeypatch.setattr(worker, "CHILD", [sys.executable, "-c", "raise SystemExit(3)"])
    monkeypatch.setattr(worker, "_local", threading.local())
    with pytest.raises(RuntimeError, match="did not start.*exit code 3"):
        Media().frames(usual, 1)


ORPHAN = """
import os, sys, threading
from zoo.media import worker
if len(sys.argv) > 2:
    worker.CHILD = [sys.executable, "-P", "-c", sys.argv[2], worker.CHILD[-1]]
    decoder = worker.current_decoder()
    threading.Thread(target=decoder.decode, args=("asleep", 2.0), kwargs={"kind": "frames"}).start()
    while decoder.idle:
        pass
print(worker.current_decoder().process.pid if len(sys.argv) < 3 else decoder.process.pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("hanging", [False, True])
def test_the_decoder_dies_with_its_parent(hanging):
    command = [sys.executable, "-c", ORPHAN, "x", *([BAD_DECODER] if hanging else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert gone(int(done.stdout), within=60)


FORKED = """
import os, time
from zoo.media import worker
decoder = worker.current_decoder()
if os.fork() == 0:
    os.close(1)
    time.sleep(20)  # a worker that outlives its parent
    os._exit(0)
time.sleep(0.3)
print(decoder.process.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_forked_process_does_not_keep_its_parents_decoder_alive():
    command = [sys.executable, "-c", FORKED]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=30, cwd=Path(__file__).parents[2])
    assert gone(int(done.stdout), within=60)


def test_the_decoder_starts_without_torch(tmp_path):
    """Nor anything of the zoo but what decodes, from any working directory, and with no path to the zoo."""
    (tmp_path / "zoo").mkdir()  # a folder that a decoder must not take for the package
    (tmp_path / "zoo" / "__init__.py").write_text("raise SystemExit(9)")
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1]); from zoo.media.worker import serve;"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('torch', 'torchaudio', 'scipy', 'zoo')))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-I", "-c", code, CHILD_PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    parts = ("", ".container", ".frames", ".sound", ".worker")
    assert done.stdout.strip() == str(["zoo", *(f"zoo.media{part}" for part in parts)]), done.stderr


def test_a_worker_that_is_spawned_decodes_too(tmp_path, usual, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loader = DataLoader(Clips([usual], Media()), num_workers=1, batch_size=1, multiprocessing_context="spawn")
    ((frames, _, _, decoder),) = list(loader)
    assert numbers(frames[0].numpy()) == numbers(read_frames(usual, 2)) and gone(int(decoder[0]), within=60)


# ---- the record of problems


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
    _no_decoder(monkeypatch)
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


# ---- in a DataLoader


class Clips(Dataset):
    def __init__(self, paths: list[Path], media: Media) -> None:
        self.paths, self.media = paths, media

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int, int, int]:
        frames = torch.from_numpy(self.media.frames(self.paths[i], 2, size=32))
        return frames, len(self.media.waveform(self.paths[i])), os.getpid(), current_decoder().process.pid


def test_in_a_dataloader_with_two_workers(tmp_path, usual):
    paths = [clip(tmp_path / f"{i}.mp4", count=10 + i, seconds=0.2) for i in range(8)]
    media = Media(tmp_path / "cache")
    media.frames(usual, 1)  # a decoder of the main process, which the workers must not use
    mine = current_decoder().process.pid
    rows = list(DataLoader(Clips(paths, media), num_workers=2, batch_size=2))
    frames = torch.cat([row[0] for row in rows])
    assert [numbers(f.numpy()) for f in frames] == [numbers(read_frames(p, 2)) for p in paths]
    workers = {int(pid) for row in rows for pid in row[2]}
    decoders = {int(pid) for row in rows for pid in row[3]}
    assert len(workers) == 2 and len(decoders) == 2 and not decoders & {mine, *workers}
    assert all(gone(pid, within=60) for pid in decoders)
    assert current_decoder().process.pid == mine and numbers(media.frames(usual, 1)) == [19]  # still works
    assert not [pid for pid, state in children() if state == "Z"]
    (tmp_path / "0.mp4").write_text("broken now")
    with pytest.raises(Unreadable, match="0.mp4: is broken"):
        list(DataLoader(Clips(paths, media), num_workers=2))


# ---- files that were cut off
def _cut(path, share):
    data = path.read_bytes()
    shorter = path.with_name(f"cut_{path.name}")
    shorter.write_bytes(data[: int(len(data) * share)])
    return shorter


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("fast.mp4", {"options": {"movflags": "faststart"}}),
        ("fast.mov", {"options": {"movflags": "faststart"}}),
        ("a.mkv", {}),
        ("a.webm", {"codecs": ("libvpx", "libopus"), "rate": 48_000}),
        ("a.avi", {"codecs": ("mpeg4", "mp3")}),
    ],
)
def test_a_clip_that_was_cut_off_says_after_how_many_seconds(tmp_path, name, how):
    whole, media = clip(tmp_path / name, **how), Media()
    media.frames(whole, 4), media.waveform(whole)
    assert media.damaged == [] and media.met() == []
    cut = _cut(whole, 0.6)
    media.frames(cut, 4), media.waveform(cut)
    met = {row["reason"].split(" of ")[-1].split()[-1]: row for row in media.met()}
    assert met.keys() == {"video", "sound"} and media.met() == []
    for row in met.values():
        assert row["problem"] == "damaged" and row["file"] == cut.name
        decoded, promised = map(float, re.search(r"cut off after ([\d.]+) of ([\d.]+) s", row["reason"]).groups())
        assert 0.5 < decoded < 1.2 and decoded < promised <= 1.6


def test_a_sliver_that_is_missing_at_the_end_is_noticed(tmp_path):
    whole = clip(tmp_path / "a.mp4", options={"movflags": "faststart"})
    media = Media()
    media.waveform(_cut(whole, 0.9))
    assert "cut off after" in media.met()[0]["reason"]


@pytest.mark.parametrize(
    ("name", "form"), [("a.wav", "WAV"), ("a64.wav", "RF64"), ("a.flac", "FLAC"), ("a.mp3", "MP3")]
)
def test_a_sound_file_that_was_cut_off_says_so(tmp_path, name, form):
    whole, media = tmp_path / name, Media()
    soundfile.write(whole, sine(440, 2, 16_000)[0], 16_000, format=form)
    assert abs(len(media.waveform(whole)) - 32_000) < 1200 and media.met() == []
    media.waveform(_cut(whole, 0.6))
    assert re.search(r"cut off after 1\.\d\d of 2\.0\d s of sound", media.met()[0]["reason"])


def test_lengths_that_the_writer_did_not_know_are_no_promise(tmp_path):
    """A WAV that went through a pipe says 4 GB, or 0."""
    soundfile.write(tmp_path / "a.wav", sine(440, 1, 16_000)[0], 16_000)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    offset = data.find(b"data") + 4
    for length in (0xFFFF_FFFF, 0x7FFF_FFFF, 0):
        data[offset : offset + 4] = struct.pack("<I", length)
        (tmp_path / "b.wav").write_bytes(data)
        media = Media()
        with contextlib.suppress(Unreadable):
            media.waveform(tmp_path / "b.wav")
        assert media.damaged == []


def test_headers_that_are_slightly_wrong_and_streams_of_different_length_are_no_cut(tmp_path):
    times = [0, 40, 500, 540, 600, 900, 950, 1000, 1400, 1410]
    files = [
        write_clip(tmp_path / "variable.mp4", [grey(i) for i in range(10)], sine(440, 1.5, 44_100), times=times),
        write_clip(tmp_path / "short_video.mkv", [grey(i) for i in range(10)], sine(440, 3, 44_100)),
        write_clip(tmp_path / "short_sound.mp4", [grey(i % 40) for i in range(75)], sine(440, 1, 44_100)),
        write_clip(tmp_path / "late.mp4", [grey(i % 40) for i in range(75)], sine(440, 1, 44_100), late=1.0),
        clip(tmp_path / "fragments.mp4", options={"movflags": "frag_keyframe+empty_moov"}),
    ]
    media = Media()
    for file in files:
        media.frames(file, 4), media.waveform(file)
    assert media.damaged == []


def test_what_comes_from_the_cache_is_still_said_to_be_cut(tmp_path):
    cut = _cut(clip(tmp_path / "a.mp4", options={"movflags": "faststart"}), 0.6)
    for _ in range(2):
        media = Media(tmp_path / "cache")
        media.waveform(cut)
        assert [row["problem"] for row in media.met()] == ["damaged"]
        with pytest.raises(Unreadable):
            media.waveform(tmp_path / "gone.mp4")
        assert [row["problem"] for row in media.met()] == ["unreadable"]


def test_every_option_that_a_message_names_exists():
    """`--model.max_clip_seconds` of the systems that read clips, `--max_clip_seconds` of the prepare commands."""
    sources = Path(cache.__file__).parent.glob("*.py")
    source = "".join(file.read_text(encoding="utf-8") for file in sources)
    named = set(re.findall(r"--(?:model\.)?[a-z_]+(?:\.[a-z_]+)*", source))
    assert named == {"--model.max_clip_seconds", "--max_clip_seconds", "--model.timeout", "--clip_timeout"}
