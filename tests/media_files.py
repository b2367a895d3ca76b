"""Small media files for tests, made with PyAV: pictures whose grey level is their number, sines of known pitch."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

LOWEST, STEP = 10, 6  # grey level of frame i is LOWEST + STEP * i: up to 40 frames, told apart after H.264


def grey(i: int, height: int = 96, width: int = 96) -> np.ndarray:
    """The picture of frame i, uint8 (H, W, 3)."""
    return np.full((height, width, 3), LOWEST + STEP * i, np.uint8)


def numbers(frames: np.ndarray) -> list[int]:
    """Which frames (T, 3, H, W) these are."""
    return [round((float(frame.mean()) - LOWEST) / STEP) for frame in frames]


def quarters(height: int = 64, width: int = 96) -> np.ndarray:
    """Red, green above blue, white: uint8 (H, W, 3)."""
    picture = np.zeros((height, width, 3), np.uint8)
    h, w = height // 2, width // 2
    picture[:h, :w], picture[:h, w:], picture[h:, :w], picture[h:, w:] = (
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 255),
    )
    return picture


def corners(frame: np.ndarray) -> str:
    """Colours of the quarters of a frame (3, H, W), row by row, as letters: "rgbw" for `quarters`."""
    _, height, width = frame.shape
    names = {(1, 0, 0): "r", (0, 1, 0): "g", (0, 0, 1): "b", (1, 1, 1): "w"}
    points = [(y, x) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    return "".join(names.get(tuple((frame[:, y, x] > 128).astype(int).tolist()), "?") for y, x in points)


def sine(hz: float, seconds: float, rate: int, height: float = 0.5) -> np.ndarray:
    """float32 (1, N)."""
    return (height * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)[None]


def pitch(sound: np.ndarray, rate: int = 16_000) -> float:
    """Loudest frequency of a waveform (N,), in Hz."""
    strength = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 1 << 18))
    return float(strength.argmax() * rate / (1 << 18))


def write_clip(
    path: Path,
    pictures: Sequence[np.ndarray] = (),
    sound: np.ndarray | None = None,
    *,
    fps: int = 25,
    times: Sequence[int] | None = None,
    rate: int = 44_100,
    late: float = 0.0,
    layout: str | None = None,
    codecs: tuple[str, str] = ("libx264", "aac"),
    pix_fmt: str = "yuv420p",
    pixel: Fraction | None = None,
    turn: dict | None = None,
    container: str | None = None,
    options: dict[str, str] | None = None,
    coder: dict[str, str] | None = None,
) -> Path:
    """A clip of pictures (H, W, 3) and of sound (channels, N).

    Args:
        times: when each picture is shown, in ms; None: `fps` a second.
        late: seconds before the sound begins.
        pixel: width / height of a pixel.
        turn: arguments of set_display_rotation.
        container: name of the format, where the suffix does not say it.
        options, coder: of the container and of the video encoder.
    """
    with av.open(str(path), "w", format=container, options=options or {}) as out:
        video = audio = None
        if len(pictures):
            video = out.add_stream(codecs[0], rate=fps, options={"crf": "8"} | (coder or {}))
            video.height, video.width = pictures[0].shape[:2]
            video.pix_fmt = pix_fmt
            if times is not None:
                video.codec_context.time_base = video.time_base = Fraction(1, 1000)
            if pixel is not None:
                video.codec_context.sample_aspect_ratio = pixel
            if turn:
                video.set_display_rotation(**turn)
        if sound is not None:
            layout = layout or {1: "mono", 2: "stereo", 6: "5.1"}[len(sound)]
            audio = out.add_stream(codecs[1], rate=rate, layout=layout)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = i if times is None else times[i]
            frame.time_base = Fraction(1, fps) if times is None else Fraction(1, 1000)
            out.mux(video.encode(frame))
        if video is not None:
            out.mux(video.encode())
        if audio is not None:
            coded = audio.codec_context.format.name  # fltp, s16p, ...: what this encoder wants
            for start in range(0, sound.shape[1], 1024):
                part = np.ascontiguousarray(sound[:, start : start + 1024])
                heard = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
                heard.sample_rate, heard.time_base = rate, Fraction(1, rate)
                heard.pts = start + round(late * rate)
                for piece in av.AudioResampler(coded, layout, rate).resample(heard) if coded != "fltp" else [heard]:
                    out.mux(audio.encode(piece))
            out.mux(audio.encode())
    return path


def clip(path: Path, count: int = 38, seconds: float = 1.5, hz: float = 440, **how) -> Path:
    """The usual one: 96 pixels, frames numbered by their grey, a sine."""
    return write_clip(path, [grey(i) for i in range(count)], sine(hz, seconds, how.get("rate", 44_100)), **how)
