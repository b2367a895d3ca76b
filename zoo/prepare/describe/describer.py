"""One clip in words: its face, its voice, its picture; measured or read by a face model, without asking an endpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.media import Media, Unreadable
from zoo.media.clips import RATE, utterance_frames, utterance_sound
from zoo.media.frames import PixelBudget
from zoo.media.speech import Bins, NotSpeech
from zoo.models.emotion_qwen.face_types import Box, FaceAnalyzer
from zoo.models.emotion_qwen.sampling import FrameSampling, seconds_of
from zoo.prepare.describe.activity import Loudness, Span, loudness_curve, pauses_between, voice_activity
from zoo.prepare.describe.faces import (
    NO_FACE,
    Fractions,
    SeenFace,
    face_sentence,
    largest_person,
    mean_expression,
    persons,
    speaking_person,
)
from zoo.prepare.describe.scene import Scene, find_cuts, grey, scene_sentence
from zoo.prepare.describe.voice import NO_SOUND, measure_voice, voice_sentence
from zoo.schema import Turn

BUDGET = PixelBudget(2, 4, 460_800)  # of a frame in which faces are looked for: 904 x 508 of a picture of 16 to 9
MOTION_FPS, MOST_FRAMES, MOTION_SIDE = (
    12.5,
    400,
    240,
)  # of the frames for cuts and mouths: a second, in all, shorter side
NO_PICTURE, NOT_LOOKED_FOR = "No picture.", "Faces were not looked for."
UNREADABLE = {"video": "The picture cannot be read.", "audio": "The sound cannot be read."}


@dataclass(frozen=True)
class ClipDescription:
    """What was seen and heard in a clip. Times are seconds from the beginning of what was described.

    Attributes:
        video, audio: sentences, always there; ``No face found.`` and ``Silence.`` are descriptions, too.
        faces: every face of every frame that was looked at; those with ``described`` are whom `video` is about.
        frame_times: of the frames in which faces were looked for; (0.0,) of a picture.
        expression: mean probability of each of the seven expressions of the described face; None without a face.
        chosen_by: why this face: ``only``, ``largest``, or ``mouth``, which moves with the voice; None without a face.
        voice: measures, in the units of `zoo.prepare.describe.UNITS`; empty without sound.
        loudness: curve of the sound; None without sound.
        speech: where somebody speaks, (from, to).
        pauses: between them.
        scene: brightness, cuts, number of faces; None without a picture.
        missing: ``video`` or ``audio`` -> why it could not be described, although it was given.
    """

    video: str
    audio: str
    faces: tuple[SeenFace, ...] = ()
    frame_times: tuple[float, ...] = ()
    expression: Mapping[str, float] | None = None
    chosen_by: str | None = None
    voice: Mapping[str, float] = field(default_factory=dict)
    loudness: Loudness | None = None
    speech: tuple[Span, ...] = ()
    pauses: tuple[Span, ...] = ()
    scene: Scene | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return the same ready for JSON, numbers rounded to four digits; what has names is an object."""
        row = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        row["faces"] = [face._asdict() for face in self.faces]
        row["scene"] = None if self.scene is None else self.scene._asdict()
        row["loudness"] = None if self.loudness is None else self.loudness._asdict()
        rounded: dict[str, Any] = _rounded(row)
        return rounded


class ClipDescriber:
    """Describes clips. Deterministic; may be pickled where the analyzer may.

    Args:
        face: finds faces and reads their expressions (`zoo.models.emotion_qwen.faces`); None: no face is looked for.
        bins: thresholds by which a voice is called loud or low, those of a corpus (`read_bins`); None: numbers instead.
        media: decoder and cache; one with the usual limits if not given.
        sampling: the frames in which faces are looked for; 4 a second, at most 12, if not given.
    """

    def __init__(
        self,
        face: FaceAnalyzer | None,
        bins: Bins | None = None,
        media: Media | None = None,
        sampling: FrameSampling | None = None,
    ) -> None:
        self.face, self.bins = face, bins
        self.media = media or Media()
        self.sampling = sampling or FrameSampling(fps=4.0, max_frames=12)

    def describe(
        self, video: Path | None, audio: Path | None, start: float | None = None, end: float | None = None
    ) -> ClipDescription:
        """Describe a clip, or its seconds ``start`` to ``end``.

        Args:
            video: file with the picture, moving or still; None: there is none.
            audio: file with the sound, mostly the same one; None: there is none. Of another file than ``video``, all
                is heard.

        Raises:
            Unreadable: nothing that was given can be read.
            ValueError: nothing was given, or start and end make no sense.
        """
        if (start is None) != (end is None) or (start is not None and end is not None and not 0 <= start < end):
            raise ValueError(f"expected start and end in seconds, 0 <= start < end, or neither; got {start} and {end}")
        return self.describe_turn(Turn("clip", "", "", video=video, audio=audio, start=start, end=end))

    def describe_turn(self, turn: Turn) -> ClipDescription:
        """Describe the clip of an utterance, its half of the picture where it has one; see `describe`.

        The speaker's own thresholds are used, if there are some.
        """
        if turn.video is None and turn.audio is None:
            raise ValueError(f"{turn.id} has neither a video nor an audio file to describe; expected one of them")
        sound: dict[str, Any] = {"audio": NO_SOUND}
        picture: dict[str, Any] = {"video": NO_PICTURE}
        missing: dict[str, str] = {}
        last: Unreadable | None = None
        if turn.audio is not None:
            try:
                sound = self._hear(utterance_sound(self.media, turn), turn.speaker, missing)
            except Unreadable as error:
                sound, missing["audio"], last = {"audio": UNREADABLE["audio"]}, error.reason, error
        if turn.video is not None:
            try:
                picture = self._see(turn, sound.get("loudness"), bool(sound.get("speech")))
            except Unreadable as error:
                picture, missing["video"], last = {"video": UNREADABLE["video"]}, error.reason, error
        if last is not None and "scene" not in picture and "loudness" not in sound:
            raise last
        return ClipDescription(**sound, **picture, missing=missing)

    def read_frames(self, turn: Turn) -> tuple[np.ndarray, float | None]:
        """Read the frames in which faces are looked for, uint8 (F, 3, H, W), and the seconds between two of them.

        There are none between the frames of a still picture: None.

        Raises:
            Unreadable: there are none.
        """
        return self.sampling.read(self.media, turn, (BUDGET, BUDGET))

    def _hear(self, wave: np.ndarray, speaker: str, missing: dict[str, str]) -> dict[str, Any]:
        """Return the fields that are about the sound (N,)."""
        loudness = loudness_curve(wave, RATE)
        try:
            values, speech = measure_voice(wave)
        except NotSpeech as error:
            missing["audio"] = str(error)
            speech = voice_activity(wave, RATE)
            text = f"The voice was not measured: the sound {error}."
            return {"audio": text, "loudness": loudness, "speech": tuple(speech), "pauses": _pauses(speech)}
        return {
            "audio": voice_sentence(values, self.bins, speaker.strip()),
            "voice": values,
            "loudness": loudness,
            "speech": tuple(speech),
            "pauses": _pauses(speech),
        }

    def _see(self, turn: Turn, loudness: Loudness | None, voice: bool) -> dict[str, Any]:
        """Return the fields that are about the picture."""
        pixels, step = self.read_frames(turn)
        times = tuple(0.0 if step is None else (i + 0.5) * step for i in range(len(pixels)))
        faces_by_frame = self._look(pixels, times)
        motion, motion_times = (grey(pixels), np.zeros(1)) if step is None else self._motion(turn)
        at_once = max(map(len, faces_by_frame))
        faces = [face for frame in faces_by_frame for face in frame]
        chosen_by = None
        if faces and at_once == 1:  # never two at once: whoever is seen, in one shot or in several
            chosen_by, faces = "only", [face._replace(described=True) for face in faces]
        elif faces:
            speaking = None
            if voice and loudness is not None:
                speaking, _ = speaking_person(faces, motion, motion_times, loudness)
            chosen_by = "largest" if speaking is None else "mouth"
            person = largest_person(faces) if speaking is None else speaking
            faces = [face._replace(described=face.person == person) for face in faces]
        described = [face for face in faces if face.described]
        scene = Scene(float(motion.mean() / 255), find_cuts(motion, motion_times), at_once)
        text = NOT_LOOKED_FOR
        if self.face is not None:
            text = face_sentence(described, len(times), at_once, chosen_by == "mouth")
        return {
            "video": f"{text} {scene_sentence(scene)}".strip(),
            "faces": tuple(faces),
            "frame_times": times,
            "expression": mean_expression(described),
            "chosen_by": chosen_by,
            "scene": scene,
        }

    def _look(self, pixels: np.ndarray, times: Sequence[float]) -> list[list[SeenFace]]:
        """Return the faces of each frame, uint8 (F, 3, H, W), none of them described yet."""
        if self.face is None:
            return [[] for _ in times]
        faces_by_frame = self.face.analyse(torch.from_numpy(pixels))
        height, width = pixels.shape[2:]

        def fractions(box: Box) -> Fractions:
            return box[0] / width, box[1] / height, box[2] / width, box[3] / height

        return [
            [
                SeenFace(time, fractions(f.box), dict(f.probabilities), p, False)
                for f, p in zip(faces, numbers, strict=True)
            ]
            for time, faces, numbers in zip(times, faces_by_frame, persons(faces_by_frame), strict=True)
        ]

    def _motion(self, turn: Turn) -> tuple[np.ndarray, np.ndarray]:
        """Read many small frames of a video, grey (T, H, W), and their times (T,)."""
        if turn.start is not None and turn.end is not None:
            seconds = turn.end - turn.start
        else:
            seconds = seconds_of(turn.video or Path())
        n = min(MOST_FRAMES, max(2, round(seconds * MOTION_FPS)))
        # small at once: of a half of the picture, every frame would leave the decoder in full size
        frames = grey(utterance_frames(self.media, replace(turn, crop=None), n, side=MOTION_SIDE))
        if turn.crop is not None:
            half = frames.shape[2] // 2
            frames = frames[..., :half] if turn.crop == "left" else frames[..., half:]
        return frames, (np.arange(n) + 0.5) * seconds / n


def _pauses(speech: Sequence[Span]) -> tuple[Span, ...]:
    return tuple(pauses_between(list(speech)))


def _rounded(value: Any) -> Any:
    """Return a value with lists for tuples and arrays, and numbers of four digits after the point."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value


__all__ = ["NO_FACE", "ClipDescriber", "ClipDescription"]
