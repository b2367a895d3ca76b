"""Faces that were found elsewhere and stand in a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.media import Unreadable
from zoo.models.emotion_qwen.face_types import Face, check_frames, clip_box

MAX_COORDINATE = 1_000_000  # pixels: beyond, a coordinate is a mistake


class PrecomputedFaces:
    """An analyzer whose findings stand in a file, one frame of one clip per line::

        {"clip": "meld/train/dia0_utt3", "frame": 3, "frames": 8, "size": [360, 640], "faces": [
            {"box": [left, top, right, bottom], "probabilities": {"angry": 0.01, ..., "neutral": 0.2}}]}

    (on one line). ``frame`` counts the frames that are analysed, not those of the video: of 8 frames spread over a
    clip, 0 to 7; ``frames`` says how many these are, so that faces of another choice of frames are refused. ``faces``
    is empty where there is none. ``size`` is (height, width) of the picture in which the boxes were measured; boxes are
    scaled to frames of another size. Without ``size``, frames must have the size they had. ``zoo prepare faces`` writes
    such files; ``clip`` is then the id of a sample.

    Args:
        file: path of the file (JSON lines, UTF-8).

    Raises:
        FileNotFoundError: no such file.
        ValueError: no rows, or a row that is not as above, naming its line.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.rows: dict[str, dict[int, tuple[tuple[int, int] | None, list[tuple[list[float], dict[str, float]]]]]] = {}
        self.counts: dict[str, int] = {}  # frames of a clip that were analysed, where the rows say so
        if not Path(file).is_file():
            raise FileNotFoundError(f"no file of precomputed faces at {file!r}; make one with zoo prepare faces")
        with Path(file).open(encoding="utf-8") as lines:
            try:
                for line, text in enumerate(lines, 1):
                    if text.strip():
                        self._add(line, text)
            except UnicodeDecodeError as error:
                raise ValueError(f"{file} is not UTF-8 ({error}); expected JSON lines, write the file again") from None
        if not self.rows:
            raise ValueError(f"{file} holds no rows; make it with face_lines, also for clips without faces")

    def _add(self, line: int, text: str) -> None:
        try:
            clip, frame, size, faces, count = parse_row(text)
            if count is not None and self.counts.setdefault(clip, count) != count:
                raise ValueError(f"{clip} has {count} frames here and {self.counts[clip]} in an earlier row")
            clips = self.rows.setdefault(clip, {})
            if frame in clips:
                raise ValueError(f"a second row about frame {frame} of {clip}")
        except ValueError as error:
            raise ValueError(f"{self.file} line {line}: {error}") from None
        clips[frame] = (size, faces)

    def analyse(
        self, frames: Tensor, clip: str | None = None, numbers: Sequence[int] | None = None
    ) -> list[list[Face]]:
        """Look up the faces of every frame; see `FaceAnalyzer`.

        An absent finding must not pass for an absent face.

        Raises:
            Unreadable: a clip without a row.
            ValueError: a frame without a row, or a box outside the picture.
        """
        height, width = check_frames(frames).shape[2:]
        if clip not in self.rows:
            raise Unreadable(
                self.file,
                f"no row about clip {clip!r}; the first one it knows is {next(iter(self.rows))!r}. Run zoo prepare "
                "faces on this corpus: it goes on with the clips that are new, or could not be read before",
            )
        if numbers is None and self.counts.get(clip, len(frames)) != len(frames):
            raise ValueError(
                f"{self.file} is about {self.counts[clip]} frames of {clip}, and {len(frames)} are shown; run zoo "
                "prepare faces with the same --frames, --fps, --max_frames and --frame_rule as the system has"
            )
        result = []
        for number in range(len(frames)) if numbers is None else numbers:
            if number not in self.rows[clip]:
                raise ValueError(
                    f"{self.file} has no row about frame {number} of {clip}, only about {sorted(self.rows[clip])}; a "
                    'frame without faces needs a row with "faces": []'
                )
            size, rows = self.rows[clip][number]
            y, x = (height / size[0], width / size[1]) if size else (1.0, 1.0)
            faces = []
            for (left, top, right, bottom), probabilities in rows:
                box = clip_box((left * x, top * y, right * x, bottom * y), height, width)
                if box is None:
                    raise ValueError(
                        f"{self.file}: the box {[left, top, right, bottom]} in frame {number} of {clip} lies outside "
                        f'the picture of {width}x{height}; was it measured at another size? Then give "size"'
                    )
                faces.append(Face(box, probabilities))
            result.append(faces)
        return result


def parse_row(
    text: str,
) -> tuple[str, int, tuple[int, int] | None, list[tuple[list[float], dict[str, float]]], int | None]:
    """Parse a line of a `PrecomputedFaces` file: clip, frame, size, box and probabilities of each face, and frames.

    Raises:
        ValueError: anything else, saying what.
    """
    try:
        row = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    check_fields(row, {"clip", "frame", "faces"}, {"size", "frames"}, "a row")
    if not isinstance(row["clip"], str) or not row["clip"]:
        raise ValueError(f"clip is {row['clip']!r}, expected its path")
    if not is_count(row["frame"]):
        raise ValueError(f"frame is {row['frame']!r}, expected a whole number, 0 or more")
    count = row.get("frames")
    if count is not None and not (is_count(count) and count > row["frame"]):
        raise ValueError(f"frames is {count!r}, expected how many frames there are, more than frame {row['frame']}")
    size = row.get("size")
    if size is not None:
        if not (isinstance(size, list) and len(size) == 2 and all(is_count(v) and v > 0 for v in size)):
            raise ValueError(f"size is {size!r}, expected [height, width] in pixels")
        size = (size[0], size[1])
    if not isinstance(row["faces"], list):
        raise ValueError(f"faces is {row['faces']!r}, expected a list, empty if there is none")
    return row["clip"], row["frame"], size, [_parse_face(face) for face in row["faces"]], count


def _parse_face(face: Any) -> tuple[list[float], dict[str, float]]:
    """Return box and probabilities of a face."""
    check_fields(face, {"box", "probabilities"}, set(), "a face")
    box, probabilities = face["box"], face["probabilities"]
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        raise ValueError(f"box is {box!r}, expected [left, top, right, bottom] in pixels")
    if not isinstance(probabilities, dict) or not all(map(is_number, probabilities.values())):
        raise ValueError(f"probabilities are {probabilities!r}, expected a number for each expression")
    Face(tuple(box), probabilities)  # checks the rest
    return box, probabilities


def is_number(value: Any) -> bool:
    """Whether a value is a number that a pixel may have; not NaN or infinity, which Python's JSON knows."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_COORDINATE


def is_count(value: Any) -> bool:
    """Whether a value is a whole number of at least 0."""
    return is_number(value) and isinstance(value, int) and value >= 0


def check_fields(value: Any, needed: set[str], allowed: set[str], what: str) -> None:
    """Raise ValueError unless a value is a dictionary with the needed fields and no others than the allowed."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {str(value)[:80]!r}, expected a dictionary")
    if missing := needed - value.keys():
        raise ValueError(f"{what} lacks {', '.join(sorted(missing))}")
    if unknown := value.keys() - needed - allowed:
        raise ValueError(f"{what} has unknown fields: {', '.join(sorted(unknown))}")


def face_lines(
    clip: str, frames: Tensor, faces_by_frame: Sequence[Sequence[Face]], numbers: Sequence[int] | None = None
) -> list[str]:
    """Return what an analyzer found in a clip, as lines for a `PrecomputedFaces` file (without line breaks).

    Args:
        clip, frames, numbers: as given to the analyzer.
        faces_by_frame: what it answered.
    """
    lines = []
    count = {"frames": len(frames)} if numbers is None else {}
    for number, faces in zip(range(len(frames)) if numbers is None else numbers, faces_by_frame, strict=True):
        rows = [{"box": list(f.box), "probabilities": dict(f.probabilities)} for f in faces]
        lines.append(
            json.dumps({"clip": clip, "frame": number, **count, "size": list(frames.shape[2:]), "faces": rows})
        )
    return lines
