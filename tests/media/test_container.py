"""zoo.media.container: what is refused, and what is said of damaged files."""

from __future__ import annotations

import contextlib
import os
import random
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.media_files import clip, grey, numbers, quarters, sine, write_clip
from zoo.media import Media, Unreadable, cache, read_frames, read_waveform, scan
from zoo.media.worker import current_decoder


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
    assert media.damaged == [] and media.new_problems() == []
    cut = _cut(whole, 0.6)
    media.frames(cut, 4), media.waveform(cut)
    met = {row["reason"].split(" of ")[-1].split()[-1]: row for row in media.new_problems()}
    assert met.keys() == {"video", "sound"} and media.new_problems() == []
    for row in met.values():
        assert row["problem"] == "damaged" and row["file"] == cut.name
        decoded, promised = map(float, re.search(r"cut off after ([\d.]+) of ([\d.]+) s", row["reason"]).groups())
        assert 0.5 < decoded < 1.2 and decoded < promised <= 1.6


def test_a_sliver_that_is_missing_at_the_end_is_noticed(tmp_path):
    whole = clip(tmp_path / "a.mp4", options={"movflags": "faststart"})
    media = Media()
    media.waveform(_cut(whole, 0.9))
    assert "cut off after" in media.new_problems()[0]["reason"]


@pytest.mark.parametrize(
    ("name", "form"), [("a.wav", "WAV"), ("a64.wav", "RF64"), ("a.flac", "FLAC"), ("a.mp3", "MP3")]
)
def test_a_sound_file_that_was_cut_off_says_so(tmp_path, name, form):
    whole, media = tmp_path / name, Media()
    soundfile.write(whole, sine(440, 2, 16_000)[0], 16_000, format=form)
    assert abs(len(media.waveform(whole)) - 32_000) < 1200 and media.new_problems() == []
    media.waveform(_cut(whole, 0.6))
    assert re.search(r"cut off after 1\.\d\d of 2\.0\d s of sound", media.new_problems()[0]["reason"])


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
        assert [row["problem"] for row in media.new_problems()] == ["damaged"]
        with pytest.raises(Unreadable):
            media.waveform(tmp_path / "gone.mp4")
        assert [row["problem"] for row in media.new_problems()] == ["unreadable"]


def test_every_option_that_a_message_names_exists():
    """`--model.max_clip_seconds` of the systems that read clips, `--max_clip_seconds` of the prepare commands."""
    sources = Path(cache.__file__).parent.glob("*.py")
    source = "".join(file.read_text(encoding="utf-8") for file in sources)
    named = set(re.findall(r"--(?:model\.)?[a-z_]+(?:\.[a-z_]+)*", source))
    assert named == {"--model.max_clip_seconds", "--max_clip_seconds", "--model.timeout", "--clip_timeout"}
