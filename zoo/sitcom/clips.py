"""Pictures and sounds of the synthetic sitcom as mp4 files."""

from __future__ import annotations

import io
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from zoo.sitcom import faces, voices
from zoo.sitcom.settings import Dialogue, Utterance


def render(utterance: Utterance, place: faces.Scene, seed: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture and the sound of an utterance before they are encoded.

    Args:
        utterance: as generated.
        place: the scene of its dialogue.
        seed: of everything that says nothing about the label (light, motion, words): corpus, split and utterance.

    Returns:
        frames uint8 (T, 96, 96, 3) RGB at `faces.FPS`, and the waveform float32 (N,) at `voices.RATE`.
    """
    domain = utterance.settings.look
    wave = voices.speak(utterance.prosody, utterance.speaker, f"{seed}/voice", utterance.seconds, domain)
    frames = round(utterance.seconds * faces.FPS)
    # lips move to a voice at rest: the picture must not tell anything about the prosody
    rest = voices.speak((0.0,) * len(utterance.prosody), utterance.speaker, f"{seed}/voice", utterance.seconds, domain)
    loudness = voices.loudness(rest, frames)
    picture = faces.clip(utterance.expression, utterance.speaker, place, f"{seed}/face", frames, domain, loudness)
    return picture, wave


def encode(frames: np.ndarray, wave: np.ndarray) -> bytes:
    """Return an mp4 file (H.264 and AAC).

    Frames are uint8 (T, H, W, 3) at `faces.FPS`, the waveform is float32 (N,) at `voices.RATE`.

    Without lookahead, and in one thread: with it, x264's bytes depended on where in memory the pictures lay (4 clips of
    80 in 5 processes; 0 without).
    """
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=faces.FPS)
        video.width, video.height, video.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        video.options = {"crf": "18", "preset": "veryfast", "x264-params": "threads=1:rc-lookahead=0:mbtree=0"}
        audio = container.add_stream("aac", rate=voices.RATE, layout="mono", bit_rate=64_000)
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, faces.FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[None], np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = voices.RATE, 0, Fraction(1, voices.RATE)
        container.mux(audio.encode(sound))
        container.mux(audio.encode())
    return file.getvalue()


def write_clips(job: tuple[Dialogue, str, Path]) -> int:
    """Write the clips of one dialogue that are not there yet, and return how many they were.

    A clip is there whole or not at all.
    """
    dialogue, seed, folder = job
    written = 0
    for utterance in dialogue.utterances:
        path = folder / f"{utterance.id}.mp4"
        if path.exists():
            continue
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(encode(*render(utterance, dialogue.place, f"{seed}/{utterance.id}")))
        part.rename(path)
        written += 1
    return written
