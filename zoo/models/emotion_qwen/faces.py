"""Facial Emotion Capture (Emotion-Qwen, Sec. 3.2): frames -> the masked stream of those with an expressive face.

    capture = FaceCapture(DlibFaces("fer2013_mini_XCEPTION.102-0.66.hdf5"))
    stream = capture(frames)          # None: no expressive face, the stream is off
    stream.frames, stream.indices     # uint8 (K, 3, H, W), black outside the faces; which of the frames these are

Per frame: find the faces, give each the probabilities of seven expressions, keep the frame if a face is sure of one,
blacken what is no face. Frames keep their order.

Differs from the paper, which uses DeepFace (TensorFlow, weights downloaded at first use), names no detector and no
threshold, and does not say what becomes of an unsure face beside a sure one: the default here is dlib's detector with
any image encoder that has a head of seven expressions; the threshold is .5; an unsure face is background (`keep`). Who
has DeepFace uses `DeepFaceFaces`, or runs it elsewhere, writes its findings down (`face_lines`) and reads them with
`PrecomputedFaces`.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from zoo.backbones import Vision

EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")  # DeepFace's and FER2013's
SYNONYMS = {"anger": "angry", "joy": "happy", "happiness": "happy", "sadness": "sad"}
SLACK = 0.01  # probabilities that went through percentages or a text file do not sum to 1 exactly
LARGEST = 1_000_000  # pixels: beyond, a coordinate is a mistake

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Face:
    """One face of one frame.

    Attributes:
        box: (left, top, right, bottom) in pixels; right and bottom are the first column and row outside.
        probabilities: of each of the seven `EMOTIONS`, 0 to 1, together 1.

    Raises:
        ValueError: a box without area, or other probabilities.
    """

    box: Box
    probabilities: Mapping[str, float]

    def __post_init__(self) -> None:
        left, top, right, bottom = self.box
        if not (left < right and top < bottom):
            raise ValueError(f"expected a box (left, top, right, bottom) with an area, got {tuple(self.box)}")
        if set(self.probabilities) != set(EMOTIONS):
            raise ValueError(f"expected probabilities of {', '.join(EMOTIONS)}; got {', '.join(self.probabilities)}")
        values = list(self.probabilities.values())
        if not (all(0 <= p <= 1 + SLACK for p in values) and abs(sum(values) - 1) <= SLACK):
            raise ValueError(f"expected probabilities from 0 to 1 that sum to 1, got {values}")

    @property
    def emotion(self) -> str:
        """The most probable expression; the first in the order of `EMOTIONS` if several are."""
        return max(EMOTIONS, key=self.probabilities.__getitem__)

    @property
    def confidence(self) -> float:
        """Its probability."""
        return self.probabilities[self.emotion]


class FaceAnalyzer(Protocol):
    """Whatever finds faces and reads their expressions."""

    def analyse(
        self, frames: Tensor, clip: str | None = None, numbers: Sequence[int] | None = None
    ) -> list[list[Face]]:
        """Faces of every frame, boxes clipped to the picture; an empty list for a frame without any.

        Args:
            frames: uint8 (F, 3, H, W), RGB.
            clip: name of the clip, for analyzers that look findings up.
            numbers: the F frames' numbers in that clip; 0 to F - 1 if not given.
        """
        ...


def check_frames(frames: Tensor) -> Tensor:
    """The same frames. ValueError unless they are uint8 (F, 3, H, W), none of these 0."""
    if (
        not isinstance(frames, Tensor)
        or frames.dtype != torch.uint8
        or frames.ndim != 4
        or frames.shape[1] != 3
        or 0 in frames.shape
    ):
        got = f"{frames.dtype} {tuple(frames.shape)}" if isinstance(frames, Tensor) else type(frames).__name__
        raise ValueError(f"expected frames as a tensor, uint8 (F, 3, H, W) in RGB; got {got}")
    return frames


def clip_box(box: Sequence[float], height: int, width: int) -> Box | None:
    """The pixels a box touches, clipped to the picture; None if it lies outside."""
    left, top = (max(0, math.floor(v)) for v in box[:2])
    right, bottom = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
    return (left, top, right, bottom) if left < right and top < bottom else None


# ---- expression
class Expression:
    """Reads an expression from a picture that is a face.

    Args:
        path: an image encoder with a head of seven expressions, as `Vision` reads it: a mini-XCEPTION .hdf5, a folder,
            a published name.
        words: class word of that head -> one of `EMOTIONS`, for words other than these and `SYNONYMS`. Several words
            may mean the same one; their probabilities are added.

    Raises:
        ValueError: no head, a word that is not understood, or an expression that no class means.
    """

    def __init__(self, path: str, words: Mapping[str, str] | None = None) -> None:
        self.vision = Vision(path).freeze()
        labels = self.vision.labels
        if labels is None:
            raise ValueError(f"{path} has no head with named classes; expected one for {', '.join(EMOTIONS)}")
        meaning = {e: e for e in EMOTIONS} | SYNONYMS | dict(words or {})
        if strange := sorted(set(words or {}) - set(labels)):
            raise ValueError(f"words names {', '.join(strange)}, but the classes of {path} are {', '.join(labels)}")
        if unknown := [word for word in labels if meaning.get(word) not in EMOTIONS]:
            raise ValueError(
                f"{path} has the classes {', '.join(unknown)}, which are none of {', '.join(EMOTIONS)}; say in words "
                "which of these each means"
            )
        if missing := [e for e in EMOTIONS if e not in {meaning[word] for word in labels}]:
            raise ValueError(f"no class of {path} means {', '.join(missing)}; its classes are {', '.join(labels)}")
        self.columns = torch.tensor([EMOTIONS.index(meaning[word]) for word in labels])

    def __call__(self, pictures: Tensor) -> list[dict[str, float]]:
        """uint8 (N, 3, h, w) -> the probabilities of each of the N pictures."""
        with torch.inference_mode():
            found = self.vision.logits(pictures).double().softmax(1).cpu()
            summed = torch.zeros(len(found), len(EMOTIONS), dtype=torch.float64).index_add_(1, self.columns, found)
        return [dict(zip(EMOTIONS, row, strict=True)) for row in summed.tolist()]


# ---- analyzers
class DlibFaces:
    """dlib's HOG detector of frontal faces, whose model is inside its package, and an `Expression`. Works offline.

    Finds upright faces seen from the front, of 80 px upwards; each ``upsample`` halves that. It also finds the drawn
    faces of the sitcom, but an encoder that was trained on whole frames misreads the boxes: use `WholeFrame` there.

    Args:
        expression, words: see `Expression`.
        upsample: how often the picture is doubled first, 0 to 3; each makes it about four times slower. 1, as in dlib's
            own example.
        adjust_threshold: score a detection must exceed; dlib's 0. Above: fewer false alarms, fewer faces.
        max_side: a frame with a longer side is shrunk to it before detection, which bounds the time (ours).

    Raises:
        ImportError: dlib is not installed.
        ValueError: see `Expression`; or the numbers make no sense.
    """

    def __init__(
        self,
        expression: str,
        words: Mapping[str, str] | None = None,
        upsample: int = 1,
        adjust_threshold: float = 0.0,
        max_side: int = 1024,
    ) -> None:
        if upsample not in range(4) or max_side < 1 or not math.isfinite(adjust_threshold):
            raise ValueError(
                "expected upsample 0 to 3, max_side 1 or more and a finite adjust_threshold; got "
                f"{upsample}, {max_side} and {adjust_threshold}"
            )
        self.detector = imported("dlib", "dlib", "pip install 'emotion-zoo[faces]'").get_frontal_face_detector()
        self.expression = Expression(expression, words)
        self.upsample, self.adjust_threshold, self.max_side = upsample, adjust_threshold, max_side

    def detect(self, frame: Tensor) -> list[Box]:
        """uint8 (3, H, W) -> boxes, in the order of dlib (surest first)."""
        height, width = frame.shape[1:]
        shrink = max(1.0, max(height, width) / self.max_side)
        small = frame
        if shrink > 1:
            small = resize(frame, [max(1, round(side / shrink)) for side in (height, width)], antialias=True)
        picture = np.ascontiguousarray(small.permute(1, 2, 0).cpu().numpy())
        found, _, _ = self.detector.run(picture, self.upsample, self.adjust_threshold)
        x, y = width / picture.shape[1], height / picture.shape[0]
        # dlib's right and bottom are inside
        boxes = ((b.left() * x, b.top() * y, (b.right() + 1) * x, (b.bottom() + 1) * y) for b in found)
        return [box for b in boxes if (box := clip_box(b, height, width)) is not None]

    def analyse(
        self, frames: Tensor, clip: str | None = None, numbers: Sequence[int] | None = None
    ) -> list[list[Face]]:
        """See `FaceAnalyzer`; clip and numbers are not used."""
        found = []
        for frame in check_frames(frames):
            faces = []
            for left, top, right, bottom in self.detect(frame):
                (probabilities,) = self.expression(frame[None, :, top:bottom, left:right])
                faces.append(Face((left, top, right, bottom), probabilities))
            found.append(faces)
        return found


class WholeFrame:
    """Every frame is one face (ours): for clips that were cropped to faces, as DFEW's are, and for encoders that were
    trained on whole frames, as the sitcom's.

    Nothing is masked then: the stream consists of the frames with a sure expression.

    Args:
        expression, words: see `Expression`.
    """

    def __init__(self, expression: str, words: Mapping[str, str] | None = None) -> None:
        self.expression = Expression(expression, words)

    def analyse(
        self, frames: Tensor, clip: str | None = None, numbers: Sequence[int] | None = None
    ) -> list[list[Face]]:
        """See `FaceAnalyzer`; clip and numbers are not used."""
        height, width = check_frames(frames).shape[2:]
        return [[Face((0, 0, width, height), p)] for p in self.expression(frames)]


class DeepFaceFaces:
    """The DeepFace package (the paper's; Sec. 3.2), which needs TensorFlow and downloads weights at first use.

    Not run against the package itself: the translation of `DeepFace.analyze` (version 0.0.93: one dictionary per face
    with `region` and `emotion` in percent) was proven against a fake that answers in that format only. Where no face is
    found, DeepFace answers with the whole picture and a confidence of 0; that is no face here.

    Args:
        detector: DeepFace's ``detector_backend``. The paper names none; the authors' requirements list retina-face.

    Raises:
        ImportError: deepface is not installed.
        ValueError: it answers in another format.
    """

    def __init__(self, detector: str = "retinaface") -> None:
        what = "pip install deepface tf-keras, or run it elsewhere and use PrecomputedFaces"
        self.package = imported("deepface.DeepFace", "DeepFace", what)
        self.detector = detector

    def analyse(
        self, frames: Tensor, clip: str | None = None, numbers: Sequence[int] | None = None
    ) -> list[list[Face]]:
        """See `FaceAnalyzer`; clip and numbers are not used."""
        found = []
        for frame in check_frames(frames):
            picture = np.ascontiguousarray(frame.cpu().numpy().transpose(1, 2, 0)[..., ::-1])  # it takes BGR
            answer = self.package.analyze(
                picture,
                actions=["emotion"],
                detector_backend=self.detector,
                enforce_detection=False,  # else a frame without a face is an exception
                silent=True,
            )
            found.append(self._faces(answer, *frame.shape[1:]))
        return found

    def _faces(self, answer: Any, height: int, width: int) -> list[Face]:
        faces = []
        try:
            for one in answer:
                x, y, w, h = (int(one["region"][k]) for k in "xywh")
                if not one["face_confidence"] and x <= 0 and y <= 0 and w >= width - 1 and h >= height - 1:
                    continue
                box = clip_box((x, y, x + w, y + h), height, width)
                if box is not None:
                    faces.append(Face(box, {k: float(v) / 100 for k, v in one["emotion"].items()}))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(
                "expected of DeepFace.analyze a list of dictionaries with region (x, y, w, h), emotion and "
                f"face_confidence; got {str(answer)[:200]} ({error!r}). Install deepface 0.0.93"
            ) from error
        return faces


class PrecomputedFaces:
    """Findings that stand in a file, one frame of one clip per line:

        {"clip": "train/dia0_utt3.mp4", "frame": 3, "size": [360, 640], "faces": [
            {"box": [left, top, right, bottom], "probabilities": {"angry": 0.01, ..., "neutral": 0.2}}]}

    (on one line). ``frame`` counts the frames that are analysed, not those of the video: of 8 frames spread over a
    clip, 0 to 7. ``faces`` is empty where there is none. ``size`` is (height, width) of the picture in which the boxes
    were measured; boxes are scaled to frames of another size. Without ``size``, frames must have the size they had.

    Args:
        file: path of the file (JSON lines, UTF-8).

    Raises:
        FileNotFoundError: no such file.
        ValueError: no rows, or a row that is not as above, naming its line.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.rows: dict[str, dict[int, tuple[tuple[int, int] | None, list[tuple[list[float], dict[str, float]]]]]] = {}
        if not Path(file).is_file():
            raise FileNotFoundError(f"no file of precomputed faces at {file!r}; make one with face_lines")
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
            clip, frame, size, faces = read_row(text)
            clips = self.rows.setdefault(clip, {})
            if frame in clips:
                raise ValueError(f"a second row about frame {frame} of {clip}")
        except ValueError as error:
            raise ValueError(f"{self.file} line {line}: {error}") from None
        clips[frame] = (size, faces)

    def analyse(
        self, frames: Tensor, clip: str | None = None, numbers: Sequence[int] | None = None
    ) -> list[list[Face]]:
        """See `FaceAnalyzer`. ValueError for a clip or a frame without a row, and for a box outside the picture: an
        absent finding must not pass for an absent face."""
        height, width = check_frames(frames).shape[2:]
        if clip not in self.rows:
            raise ValueError(
                f"{self.file} has no row about clip {clip!r}; the first one it knows is {next(iter(self.rows))!r}"
            )
        found = []
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
            found.append(faces)
        return found


def read_row(text: str) -> tuple[str, int, tuple[int, int] | None, list[tuple[list[float], dict[str, float]]]]:
    """A line of a `PrecomputedFaces` file -> clip, frame, size, and box and probabilities of each face.

    Raises:
        ValueError: anything else, saying what.
    """
    try:
        row = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    fields(row, {"clip", "frame", "faces"}, {"size"}, "a row")
    if not isinstance(row["clip"], str) or not row["clip"]:
        raise ValueError(f"clip is {row['clip']!r}, expected its path")
    if not is_count(row["frame"]):
        raise ValueError(f"frame is {row['frame']!r}, expected a whole number, 0 or more")
    size = row.get("size")
    if size is not None:
        if not (isinstance(size, list) and len(size) == 2 and all(is_count(v) and v > 0 for v in size)):
            raise ValueError(f"size is {size!r}, expected [height, width] in pixels")
        size = (size[0], size[1])
    if not isinstance(row["faces"], list):
        raise ValueError(f"faces is {row['faces']!r}, expected a list, empty if there is none")
    faces = []
    for face in row["faces"]:
        fields(face, {"box", "probabilities"}, set(), "a face")
        box, probabilities = face["box"], face["probabilities"]
        if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
            raise ValueError(f"box is {box!r}, expected [left, top, right, bottom] in pixels")
        if not isinstance(probabilities, dict) or not all(map(is_number, probabilities.values())):
            raise ValueError(f"probabilities are {probabilities!r}, expected a number for each expression")
        Face(tuple(box), probabilities)  # checks the rest
        faces.append((box, probabilities))
    return row["clip"], row["frame"], size, faces


def is_number(value: Any) -> bool:
    """Also false for NaN and infinity, which Python's JSON knows, and for numbers that no pixel has."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def is_count(value: Any) -> bool:
    return is_number(value) and isinstance(value, int) and value >= 0


def fields(given: Any, needed: set[str], allowed: set[str], what: str) -> None:
    """ValueError unless `given` is a dictionary with the needed fields and no others than the allowed."""
    if not isinstance(given, dict):
        raise ValueError(f"{what} is {str(given)[:80]!r}, expected a dictionary")
    if missing := needed - given.keys():
        raise ValueError(f"{what} lacks {', '.join(sorted(missing))}")
    if strange := given.keys() - needed - allowed:
        raise ValueError(f"{what} has unknown fields: {', '.join(sorted(strange))}")


def face_lines(
    clip: str, frames: Tensor, found: Sequence[Sequence[Face]], numbers: Sequence[int] | None = None
) -> list[str]:
    """What an analyzer found in a clip, as lines for a `PrecomputedFaces` file (without line breaks).

    Args:
        clip, frames, numbers: as given to the analyzer.
        found: what it answered.
    """
    lines = []
    for number, faces in zip(range(len(frames)) if numbers is None else numbers, found, strict=True):
        rows = [{"box": list(f.box), "probabilities": dict(f.probabilities)} for f in faces]
        lines.append(json.dumps({"clip": clip, "frame": number, "size": list(frames.shape[2:]), "faces": rows}))
    return lines


def imported(module: str, name: str, install: str) -> ModuleType:
    """A module of an optional package. ImportError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{name} is not installed or does not work here ({error}); {install}") from error


# ---- capture
@dataclass(frozen=True)
class Captured:
    """The stream of expressive faces.

    Attributes:
        frames: uint8 (K, 3, H, W), K >= 1, black outside the boxes of `faces`, in the order of time.
        indices: which of the given frames these are; rising.
        faces: the K lists of faces that are visible.
    """

    frames: Tensor
    indices: tuple[int, ...]
    faces: tuple[tuple[Face, ...], ...]


class FaceCapture:
    """Facial Emotion Capture. Deterministic.

    Args:
        analyzer: finds faces and reads expressions.
        threshold: a face is expressive if its most probable expression reaches it (>=), neutral included ("any emotion
            category", Sec. 3.2). The paper gives no number; .5 is ours.
        keep: which faces of a kept frame stay visible: the ``confident`` ones, or ``all`` as soon as one is (ours; the
            paper says "extraneous background").
        remember: keep the findings about named clips in memory, a few hundred bytes per face.

    Raises:
        ValueError: a threshold outside 0 to 1, or an unknown keep.
    """

    def __init__(
        self,
        analyzer: FaceAnalyzer,
        threshold: float = 0.5,
        keep: Literal["confident", "all"] = "confident",
        remember: bool = True,
    ) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is a probability, 0 to 1; got {threshold}")
        if keep not in ("confident", "all"):
            raise ValueError(f"keep is 'confident' or 'all'; got {keep!r}")
        self.analyzer, self.threshold, self.keep, self.remember = analyzer, threshold, keep, remember
        self.found: dict[tuple[Any, ...], list[list[Face]]] = {}

    def analyse(
        self, frames: Tensor, clip: str | None = None, numbers: Sequence[int] | None = None
    ) -> list[list[Face]]:
        """What the analyzer finds; asked once per clip, size and choice of frames if the clip has a name.

        The pixels are not compared: give another name to another version of a clip (augmented, cropped).

        Raises:
            ValueError: frames of another type, more or fewer numbers than frames, or an analyzer that does not answer
                about every frame.
        """
        check_frames(frames)
        if numbers is not None and len(numbers) != len(frames):
            raise ValueError(f"expected a number for each of the {len(frames)} frames, got {len(numbers)}")
        key = (clip, tuple(frames.shape), None if numbers is None else tuple(numbers))
        if key in self.found:
            return self.found[key]
        found = self.analyzer.analyse(frames, clip, numbers)
        if len(found) != len(frames):
            raise ValueError(
                f"{type(self.analyzer).__name__} answered about {len(found)} of {len(frames)} frames; expected a list "
                "of faces for each, empty if it has none"
            )
        if clip is not None and self.remember:
            self.found[key] = found
        return found

    def __call__(
        self, frames: Tensor, clip: str | None = None, numbers: Sequence[int] | None = None
    ) -> Captured | None:
        """The stream, or None if no frame has an expressive face.

        Args:
            frames: uint8 (F, 3, H, W), RGB, in the order of time. They are not changed.
            clip: name under which findings are remembered and, by `PrecomputedFaces`, looked up.
            numbers: the frames' numbers in the clip, for `PrecomputedFaces`; 0 to F - 1 if not given.

        Raises:
            ValueError: see `analyse`.
        """
        height, width = check_frames(frames).shape[2:]
        indices, visible = [], []
        for i, faces in enumerate(self.analyse(frames, clip, numbers)):
            inside = [f for f in faces if clip_box(f.box, height, width) is not None]
            sure = [f for f in inside if f.confidence >= self.threshold]
            if sure:
                indices.append(i)
                visible.append(tuple(sure if self.keep == "confident" else inside))
        if not indices:
            return None
        stream = torch.zeros_like(frames[indices])
        for masked, i, faces in zip(stream, indices, visible, strict=True):
            for face in faces:
                left, top, right, bottom = clip_box(face.box, height, width)
                masked[:, top:bottom, left:right] = frames[i, :, top:bottom, left:right]
        return Captured(stream, tuple(indices), tuple(visible))
