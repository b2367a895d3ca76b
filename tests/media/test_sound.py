"""zoo.media.sound: how files sound."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from tests.media_files import clip, grey, pitch, sine, write_clip
from zoo.media import Unreadable, read_waveform


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


def test_absurd_sampling_rates_are_refused(tmp_path):
    for rate in (7, 4_000_000):
        soundfile.write(tmp_path / "a.wav", np.zeros(1000), rate)
        with pytest.raises(Unreadable, match=f"sampling rate of {rate} Hz"):
            read_waveform(tmp_path / "a.wav")
