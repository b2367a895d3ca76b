"""What the words, the face and the voice of a clip say, each by itself, by what is installed here.

    labeler = PartsLabeler()
    (sample,) = read_samples(Request(clip=Path("clip.mp4"), text="Who took it?"), labeler.labels)
    answer = labeler(sample)
    answer.row             # for JSON: label, scores, parts
    answer.description     # faces, loudness, pauses, to draw

The words are read by the best published system that is here, the face by a published reader of expressions, the voice
is measured. The answers stand side by side. Nothing joins them: no rule or system that would was tested on real
clips, so `label` is what the text system says, the one of which a score is known, and None without words.
"""

from __future__ import annotations

import functools
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from zoo.backbones.hub import FETCHED
from zoo.checkpoints.listing import index
from zoo.data.table_rows import STILL
from zoo.label.installed import Installed, best_for_faces, best_for_text
from zoo.label.system import System, silence_lightning
from zoo.label.used_inputs import NOT_GIVEN, UsedInputs
from zoo.media import MAX_SECONDS, Media, Unreadable
from zoo.media.clips import RATE
from zoo.media.speech import LONGEST as MAX_UTTERANCE
from zoo.models.emotion_qwen.faces import DlibFaces
from zoo.models.emotion_qwen.sampling import FrameSampling, seconds_of
from zoo.prepare.describe import ClipDescriber, ClipDescription
from zoo.schema import Labels, Prediction, Sample, Turn

PARTS = ("text", "face", "voice")
FRAMES = 8  # in which a face is looked for, .15 s of one core each: an answer is waited for
SWITCHED_OFF = "switched off (--parts)"
NO_VOICE_SYSTEM = "no reader of voices has been tested on real ones here, so the voice is measured and not judged"
Part = dict[str, Any]


@dataclass(frozen=True)
class PartsAnswer:
    """What was found out about a sample.

    Attributes:
        row: for JSON: `label`, `label_from`, `scores`, `used`, `unused`, `parts`, `damaged`, `seconds`.
        description: what was seen and heard, to draw it; None if there was nothing to look at or listen to. Its times
            begin where the utterance does.
        error: why nothing could be used; None if something was.
    """

    row: dict[str, Any]
    description: ClipDescription | None
    error: str | None = None


class PartsLabeler:
    """Answers samples part by part. What it needs is loaded when it is first needed, and kept; one call at a time.

    Args:
        parts: which of `PARTS` are used.
        max_seconds: a longer film is refused.

    Raises:
        ValueError: no part, or one that is unknown.
        FileNotFoundError: there is no list of published systems.
    """

    def __init__(self, parts: Sequence[str] = PARTS, max_seconds: float = MAX_SECONDS) -> None:
        if not parts or (unknown := sorted(set(parts) - set(PARTS))):
            raise ValueError(f"parts are some of {', '.join(PARTS)}; got {', '.join(unknown) if parts else 'none'}")
        silence_lightning()
        self.parts = tuple(part for part in PARTS if part in parts)
        self.media = Media(max_seconds=max_seconds)
        self.text_system, self.face_reader = best_for_text(), best_for_faces()
        self._lock = threading.Lock()
        # of the film that is cut: which file, its sound, what is damaged of it
        self._wave: tuple[Any, np.ndarray, str | None] | None = None

    @functools.cached_property
    def labels(self) -> Labels:
        """The label words of the text system; none if there is no such system."""
        return Labels("asked", ()) if self.text_system.name is None else self._system.labels()

    @functools.cached_property
    def _system(self) -> System:
        return System(str(self.text_system.name))

    @functools.cached_property
    def _describer(self) -> ClipDescriber:
        name = self.face_reader.name if "face" in self.parts else None
        face = None if name is None else DlibFaces(_file_of(name))
        return ClipDescriber(face, media=self.media, sampling=FrameSampling(fps=4.0, max_frames=FRAMES))

    @property
    def systems(self) -> dict[str, str | None]:
        """Which system answers about each part that has one; None: it is not installed."""
        names = {"text": self.text_system.name, "face": self.face_reader.name}
        return {part: name for part, name in names.items() if part in self.parts}

    def load(self) -> None:
        """Load everything now, so that the first answer takes no longer than the next."""
        if "text" in self.parts and self.text_system.name is not None:
            _ = self._system.module
        _ = self._describer

    def __call__(self, sample: Sample) -> PartsAnswer:
        """Answer a sample."""
        with self._lock:
            started = time.perf_counter()
            parts: dict[str, Part] = {"text": self._read(sample)}
            description, missing = self._look(sample.target)
            parts["face"] = self._face(description, missing)
            parts["voice"] = self._voice(description, missing)
            parts |= {part: {"used": False, "why": SWITCHED_OFF} for part in PARTS if part not in self.parts}
            row = _row({part: parts[part] for part in PARTS})
            damaged = [f"{p['file']}: {p['reason']}" for p in self.media.new_problems() if p["problem"] == "damaged"]
            row |= {"damaged": damaged} if damaged else {}
            row["seconds"] = round(time.perf_counter() - started, 4)
        reasons = "; ".join(f"{part}: {why}" for part, why in row["unused"].items())
        return PartsAnswer(row, description, None if row["used"] else f"nothing of it could be used ({reasons})")

    # ---- words
    def _read(self, sample: Sample) -> Part:
        """Return what the text system says; it is shown the words alone."""
        if "text" not in self.parts:
            return {}
        if not sample.target.text and not sample.target.descriptions:
            return {"used": False, "why": "no words given (--text, --subtitles or --transcribe)"}
        if self.text_system.name is None:
            return {"used": False, "why": _not_installed(self.text_system)}
        words = replace(sample, target=_words(sample.target), history=tuple(map(_words, sample.history)))
        answers: list[tuple[Prediction, UsedInputs]] = []
        with tempfile.TemporaryDirectory() as folder:
            failed = self._system.answer([words], Path(folder), lambda s, p, used, _: answers.append((p, used)))
        if not answers:
            return {"used": False, "why": failed.get(sample.id, "it gave no answer")}
        ((prediction, inputs),) = answers
        unused = {part: why for part, why in inputs.unused.items() if why != NOT_GIVEN}
        return {
            "used": True,
            "label": prediction.predicted,
            "scores": _falling(prediction.scores or {}),
            "said": sample.target.text,
            "system": self.text_system.name,
            "measured": self.text_system.measured,
            **({"unused": unused} if unused else {}),
            **({"better": _better(self.text_system)} if self.text_system.commands else {}),
        }

    # ---- face and voice
    def _look(self, turn: Turn) -> tuple[ClipDescription | None, dict[str, str]]:
        """Describe the clip of a turn; and say why what was given could not be described, by video and audio."""
        turn = replace(
            turn,
            video=turn.video if "face" in self.parts else None,
            audio=turn.audio if "voice" in self.parts else None,
        )
        missing: dict[str, str] = {}
        late = 0.0
        with tempfile.TemporaryDirectory() as folder:
            if turn.start is not None and turn.end is not None:
                turn, late = self._cut(turn, Path(folder), missing)
            elif turn.video is not None and (length := _seconds(turn.video)) > MAX_UTTERANCE:
                limit = f"lasts {length:.0f} s, and an utterance at most {MAX_UTTERANCE} s"
                why = f"{limit}; give --segments or --subtitles"
                return None, {"video": why, "audio": why}
            if turn.video is None and turn.audio is None:
                return None, missing
            try:
                description = self._describer.describe_turn(turn)
            except Unreadable as error:
                return None, {"video": error.reason, "audio": error.reason} | missing
        return _shifted(description, late), missing | dict(description.missing)

    def _cut(self, turn: Turn, folder: Path, missing: dict[str, str]) -> tuple[Turn, float]:
        """Return a turn whose files hold its seconds of the film and little else, so that no film is read to its end.

        The picture is copied (`Media.piece`), the sound is that of the whole film, decoded once. Also returned is by
        how many seconds the picture begins later than the turn: that of a film may begin after its sound.
        """
        start, end = float(turn.start or 0), float(turn.end or 0)
        video, audio, begin = turn.video, turn.audio, start
        if video is not None:
            try:
                piece, begin = self.media.piece(video, start, end)
                video = folder / video.name  # by which damage is reported
                video.write_bytes(piece)
            except Unreadable as error:
                missing["video"], video = error.reason, None
        if audio is not None:
            try:
                part = self._sound(audio)[round(start * RATE) : round(end * RATE)]
                if not len(part):
                    raise Unreadable(audio, f"has no sound from {start:g} to {end:g} s")
                audio = folder / "sound.wav"
                soundfile.write(audio, part, RATE, subtype="FLOAT")
            except Unreadable as error:
                missing["audio"], audio = error.reason, None
        if video is None:
            return replace(turn, video=None, audio=audio, start=None, end=None), 0.0
        inside = max(0.0, start - begin)
        return replace(turn, video=video, audio=audio, start=inside, end=end - begin), max(0.0, begin - start)

    def _sound(self, film: Path) -> np.ndarray:
        """Return the sound of a film at 16 kHz, which is kept until another film is asked for."""
        try:
            state = film.stat()
        except OSError:
            return self.media.waveform(film, RATE)  # which says what is wrong
        key = film, state.st_size, state.st_mtime_ns, state.st_ino
        if self._wave is None or self._wave[0] != key:
            self._wave = key, self.media.waveform(film, RATE), self.media.damage(film)
        _, wave, damage = self._wave
        if damage is not None:  # of every utterance that is cut out of it
            self.media.report(film, damage, "damaged")
        return wave

    def _face(self, description: ClipDescription | None, missing: Mapping[str, str]) -> Part:
        """Return what the face says."""
        if description is None or description.scene is None:
            return {"used": False, "why": missing.get("video", "no picture given")}
        if self.face_reader.name is None:
            return {"used": False, "why": _not_installed(self.face_reader), "seen": description.video}
        if description.expression is None:
            return {"used": False, "why": "no face found", "seen": description.video}
        scores = _falling(description.expression)
        return {
            "used": True,
            "label": next(iter(scores)),
            "scores": scores,
            "seen": description.video,
            "faces": description.scene.faces,
            "chosen_by": description.chosen_by,
            "system": self.face_reader.name,
            "measured": self.face_reader.measured,
        }

    def _voice(self, description: ClipDescription | None, missing: Mapping[str, str]) -> Part:
        """Return what the voice was measured as."""
        if description is None or "audio" in missing or description.loudness is None:
            return {"used": False, "why": missing.get("audio", "no sound given")}
        if not description.voice.get("speech"):
            why = "silence" if "loudness" not in description.voice else "nobody is heard to speak"
            return {"used": False, "why": why, "heard": description.audio}
        measures = {name: round(value, 4) for name, value in description.voice.items()}
        return {
            "used": True,
            "label": None,
            "why_no_label": NO_VOICE_SYSTEM,
            "heard": description.audio,
            "measures": measures,
        }


def _row(parts: dict[str, Part]) -> dict[str, Any]:
    """Return what is said about all parts together: the label is that of the text system, or none."""
    text = parts["text"]
    named = (
        {"label": text["label"], "label_from": "text", "scores": text["scores"]}
        if text["used"]
        else {
            "label": None,
            "why_no_label": "only the words have a system whose answers were tested: "
            f"{text['why']}; the parts say what they found by themselves",
        }
    )
    return {
        **named,
        "used": [part for part in PARTS if parts[part]["used"]],
        "unused": {part: parts[part]["why"] for part in PARTS if not parts[part]["used"]},
        "parts": parts,
    }


def _shifted(description: ClipDescription, seconds: float) -> ClipDescription:
    """Return a description with what is seen so much later."""
    faces = tuple(face._replace(time=face.time + seconds) for face in description.faces)
    return replace(description, faces=faces, frame_times=tuple(time + seconds for time in description.frame_times))


def _words(turn: Turn) -> Turn:
    """Return a turn without its clip."""
    return replace(turn, video=None, audio=None, start=None, end=None, crop=None)


def _falling(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: round(p, 6) for name, p in sorted(scores.items(), key=lambda item: -item[1])}


def _file_of(name: str) -> str:
    """Return the path of the one file of a pulled reader of faces."""
    (file,) = index()[name]["files"]
    return str(FETCHED / name / file)


def _seconds(video: Path) -> float:
    """Return how long a film is by its header; 0 for a picture, or where it cannot be told."""
    try:
        return 0.0 if video.suffix.lower() in STILL else seconds_of(video)
    except Unreadable:
        return 0.0  # the describer says what is wrong with it


def _not_installed(one: Installed) -> str:
    return f"not installed: {' and '.join(one.commands)}" if one.commands else "not installed, and nothing is published"


def _better(one: Installed) -> str:
    return f"{one.best}, after {' and '.join(one.commands)}"
