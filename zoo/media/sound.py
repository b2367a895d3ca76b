"""Sound of clips and audio files: one channel, float32, resampled.

Imported by the decoding process, which must start fast: no torch at the top, and nothing of the zoo.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from typing import Any

import av
import numpy as np
import soundfile

from zoo.media.container import (
    MAX_SECONDS,
    UNKNOWN_LENGTH,
    Unreadable,
    check_seconds,
    clip_start,
    cut_note,
    decode_stream,
    first_stream,
    missing_bytes,
    open_container,
    open_file,
    promised_seconds,
)

MAX_PEAK = 10.0  # +20 dB over full scale: beyond, a float file holds integers, not sound in [-1, 1]
RATES = range(1_000, 200_000)  # Hz: real sound; what lies outside would blow up in resampling
MAX_KERNEL_TAPS = 1_000_000  # of torchaudio's resampling: 44.1 -> 16 kHz needs 0.1 million, 44.101 kHz 700 million
SOUND_MAGIC = (b"RF64", b"fLaC", b"OggS")  # and RIFF....WAVE: read by libsndfile, the rest by FFmpeg


def read_waveform(path: str | os.PathLike[str], rate: int = 16_000, *, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """Decode the sound of a clip or an audio file in this process, without a time limit.

    Returns:
        float32 (N,) in [-1, 1], mono, at `rate` Hz.

    Raises:
        Unreadable: the file gives no sound, or more than max_seconds of it.
    """
    sound, original, _ = decode_waveform(path, max_seconds)
    return resample(sound, original, rate)


def decode_waveform(path: str | os.PathLike[str], max_seconds: float) -> tuple[np.ndarray, int, str | None]:
    """Decode sound at the file's own rate.

    Returns:
        float32 (N,); its rate in Hz; and what is wrong with a file that could be read, None for nothing.
    """
    with open_file(path) as fd:
        head = os.pread(fd, 12, 0)
        parts: list[np.ndarray] = []
        if head.startswith(SOUND_MAGIC) or (head[:4] == b"RIFF" and head[8:] == b"WAVE"):
            with contextlib.suppress(soundfile.LibsndfileError):  # a codec it does not know: FFmpeg may
                parts, rate, note = _decode_with_soundfile(path, fd, max_seconds)
        if not parts:
            parts, rate, note = _decode_with_ffmpeg(path, fd, max_seconds)
        if not sum(map(len, parts)):
            raise Unreadable(path, "has no audio samples; leave its audio out or replace it")
        sound = np.concatenate(parts)
        bad = len(sound) - np.count_nonzero(np.isfinite(sound))
        if bad:
            raise Unreadable(path, f"holds {bad} of {len(sound)} samples that are NaN or infinite; export it again")
        peak = float(np.abs(sound).max())
        if peak > MAX_PEAK:
            raise Unreadable(path, f"has samples up to {peak:g}, expected [-1, 1]; scale it and export it again")
        return np.clip(sound, -1, 1), rate, note


def _check_rate(path: str | os.PathLike[str], rate: int) -> None:
    """Raise Unreadable for a sampling rate that no sound has."""
    if rate not in RATES:
        raise Unreadable(path, f"has a sampling rate of {rate} Hz, expected {RATES.start} to {RATES.stop}; convert it")


def _decode_with_soundfile(
    path: str | os.PathLike[str], fd: int, max_seconds: float
) -> tuple[list[np.ndarray], int, str | None]:
    """Decode blocks of sound with libsndfile; returns as `decode_waveform`, in parts."""
    os.lseek(fd, 0, os.SEEK_SET)
    parts: list[np.ndarray] = []
    with soundfile.SoundFile(fd, closefd=False) as file:
        _check_rate(path, file.samplerate)
        read = 0
        while len(block := file.read(65536, dtype="float32", always_2d=True)):  # (n, channels)
            read += len(block)
            check_seconds(path, read / file.samplerate, max_seconds)
            parts.append(block.mean(axis=1))
        promised = _wav_seconds(fd) if file.format in ("WAV", "WAVEX", "RF64") else file.frames / file.samplerate
        short = read / file.samplerate < promised - 1e-3 or missing_bytes(fd) > 0 and file.format == "OGG"
        return parts, file.samplerate, cut_note(read / file.samplerate, promised, short, 1e-3, "sound")


def _decode_with_ffmpeg(
    path: str | os.PathLike[str], fd: int, max_seconds: float
) -> tuple[list[np.ndarray], int, str | None]:
    """Decode blocks of sound with FFmpeg; returns as `decode_waveform`, in parts."""
    parts: list[np.ndarray] = []
    lost, read, rate = [0], 0, 0
    with open_container(fd) as container:
        stream = first_stream(path, container, "audio")
        for frame in decode_stream(container, stream, lost):
            if not parts:
                rate = frame.sample_rate
                _check_rate(path, rate)
                late = 0 if frame.pts is None else round((frame.pts * frame.time_base - clip_start(container)) * rate)
                check_seconds(path, late / rate, max_seconds)
                parts.append(np.zeros(max(late, 0), np.float32))
                skip = max(-late, 0)
            if frame.sample_rate != rate:
                raise Unreadable(path, f"changes its sampling rate from {rate} to {frame.sample_rate} Hz; convert it")
            samples = _to_mono(frame)[skip:]
            skip = max(skip - frame.samples, 0)
            read += len(samples)
            check_seconds(path, read / rate, max_seconds)
            parts.append(samples)
        promised = promised_seconds(container, stream)
    if not read:
        return [], rate, None
    note = cut_note(read / rate, promised, missing_bytes(fd) > 0, 0.05 + 2048 / rate, "sound")
    if note is not None:
        return parts, rate, note
    return parts, rate, f"damaged: {lost[0]} packets of audio" if lost[0] else None


def _to_mono(frame: av.AudioFrame) -> np.ndarray:
    """Convert one frame to float32 (N,), full scale = 1."""
    samples = frame.to_ndarray()  # (channels, N), or (1, N * channels) when packed
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples / np.float64(2 ** (8 * samples.dtype.itemsize - 1))
    mono: np.ndarray = samples[0] if len(samples) == 1 else samples.mean(axis=0)
    return mono.astype(np.float32, copy=False)


def resample(sound: np.ndarray, original: int, rate: int) -> np.ndarray:
    """Convert float32 (N,) from one sampling rate in Hz to another."""
    if original == rate:
        return sound
    common = math.gcd(original, rate)
    if (original // common) * (rate // common) <= MAX_KERNEL_TAPS:
        import torch

        sound = _resampler(original, rate)(torch.from_numpy(sound)).numpy()
    else:  # torchaudio's kernel would fill the memory
        from scipy.signal import resample_poly

        sound = resample_poly(sound.astype(np.float64), rate // common, original // common).astype(np.float32)
    clipped: np.ndarray = np.clip(sound, -1, 1)
    return clipped


@functools.lru_cache(maxsize=8)
def _resampler(original: int, rate: int) -> Any:
    """Make torchaudio's resampler; kept, because its kernel takes longer to make than to use."""
    import torchaudio

    return torchaudio.transforms.Resample(original, rate)


def _wav_seconds(fd: int) -> float:
    """Return the seconds that the header of a WAV file promises; 0 where it does not say."""
    rate = length64 = 0
    offset = 12
    while len(chunk := os.pread(fd, 24, offset)) >= 8:
        length = int.from_bytes(chunk[4:8], "little")
        if chunk[:4] == b"ds64":
            length64 = int.from_bytes(chunk[16:24], "little")
        elif chunk[:4] == b"fmt ":
            rate = int.from_bytes(chunk[16:20], "little")  # bytes per second
        elif chunk[:4] == b"data":
            length = length64 or length
            return length / rate if rate and (length64 or 0 < length < UNKNOWN_LENGTH) else 0.0
        offset += 8 + length + length % 2
    return 0.0
