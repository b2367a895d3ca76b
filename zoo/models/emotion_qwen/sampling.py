"""Which frames of a video Emotion-Qwen is shown, and in how many pixels."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import av
import numpy as np

from zoo.media import Media, Unreadable
from zoo.media.clips import STILL, utterance_frames
from zoo.media.container import first_stream, open_container, open_file
from zoo.media.frames import LONGEST, PixelBudget
from zoo.schema import Turn

AUTHORS_FRAMES = 768  # the authors' code: at most so many of a video,
AUTHORS_LEAST, AUTHORS_MOST = 128 * 28 * 28, 768 * 28 * 28  # each of so many pixels,
AUTHORS_TOTAL = int(0.9 * 128_000 * 28 * 28)  # and all of them so many, two by two


def seconds_of(path: Path) -> float:
    """Return how long a video is, as its header states; nothing is decoded.

    Raises:
        Unreadable: there is no video, or the header does not state it.
    """
    return _length_of(path)[0]


def _length_of(path: Path) -> tuple[float, int]:
    """Return seconds and number of frames of a video, as its header states; see `seconds_of`."""
    with open_file(path) as handle:
        status = os.fstat(handle)
    return _stated_length(path, (status.st_size, status.st_mtime_ns, status.st_ino))


@functools.lru_cache(maxsize=65536)
def _stated_length(path: Path, version: tuple[int, ...]) -> tuple[float, int]:
    """Read what the header states; once for each version of a file, which may be replaced."""
    with open_file(path) as handle, open_container(handle) as container:
        stream = first_stream(path, container, "video")
        if stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration:
            seconds = container.duration / av.time_base
        else:
            raise Unreadable(path, "its header states no length, so it has no frames per second; set --model.frames")
        return seconds, stream.frames or round(seconds * float(stream.average_rate or stream.guessed_rate or 25))


@dataclass(frozen=True)
class FrameSampling:
    """Which frames of a video are shown, and in how many pixels.

    Args:
        frames: evenly spaced; None: by ``fps``.
        fps: frames per second, up to ``max_frames``.
        rule: ``ours``: the middles of equal parts, at least one. ``authors``, as their code takes them: an even number,
            at least 4 if the video has so many, up to `AUTHORS_FRAMES` (``max_frames`` does not count), from the first
            frame to the last; each of at least `AUTHORS_LEAST` pixels and all within `AUTHORS_TOTAL`. Of a part of a
            film, which they do not read, the number alone is theirs.
    """

    frames: int | None = None
    fps: float = 2.0
    max_frames: int = 64
    rule: Literal["ours", "authors"] = "ours"

    def read(
        self, media: Media, turn: Turn, budgets: tuple[PixelBudget, PixelBudget] | None = None
    ) -> tuple[np.ndarray, float | None]:
        """Return the frames of an utterance's picture or video, and the seconds between two of them (None: a picture).

        Args:
            budgets: of a picture and of a video's frames, to which large ones are reduced; None: they stay as they are.

        Returns:
            uint8 (F, 3, H, W), RGB.

        Raises:
            Unreadable: nothing to be had, or over 200 times longer than wide.
        """
        path = turn.video
        if path is None:
            raise ValueError(f"{turn.id} has no picture or video to read")
        if path.suffix.lower() in STILL:
            n, seconds, turn = 1, None, replace(turn, start=None, end=None)
        elif turn.start is not None and turn.end is not None:
            n, seconds = self._spread(turn.end - turn.start)
        elif self.rule == "authors":
            n, seconds = self._spread(*_length_of(path))
        else:
            n, seconds = self._spread(seconds_of(path))
        side = None if budgets is None else budgets[0] if seconds is None else self.budget(budgets[1], n)
        frames = utterance_frames(media, turn, n, side=side, ends=self.rule == "authors" and seconds is not None)
        height, width = frames.shape[2:]
        if max(height, width) > LONGEST * min(height, width):
            raise Unreadable(path, f"{height} x {width} pixels: over {LONGEST} times longer than wide; crop it")
        return frames, seconds

    def _spread(self, length: float, available: int | None = None) -> tuple[int, float]:
        """Return the number of frames of a video, and the seconds between two of them.

        Args:
            length: in seconds.
            available: how many frames the video has; None: enough.
        """
        if self.rule == "ours":
            n = self.frames or min(self.max_frames, max(1, round(length * self.fps)))
        elif self.frames is not None:
            n = 2 * round(self.frames / 2)
        else:
            most = AUTHORS_FRAMES if available is None else min(AUTHORS_FRAMES, available)
            n = 2 * int(min(max(length * self.fps, 4), most) // 2)
        n = max(n, 2 if self.rule == "authors" else 1)  # of a single frame theirs ends the run; ours shows it twice
        return n, max(0.0, length) / n

    def budget(self, video: PixelBudget, n: int) -> PixelBudget:
        """Return the budget of each of n frames of a video.

        Args:
            video: as the options state it.
        """
        if self.rule == "ours":
            return video
        most = max(min(AUTHORS_MOST, 2 * AUTHORS_TOTAL / n), int(1.05 * AUTHORS_LEAST))
        most = min(video.most, int(most))
        return PixelBudget(video.factor, min(AUTHORS_LEAST, most), most)
