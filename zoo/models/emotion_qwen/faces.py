"""Facial Emotion Capture (Emotion-Qwen, Sec. 3.2): frames -> the masked stream of those with an expressive face.

    capture = FaceCapture(DlibFaces("fer2013_mini_XCEPTION.102-0.66.hdf5"))
    stream = capture(frames)          # None: no expressive face, the stream is off
    stream.frames, stream.indices     # uint8 (K, 3, H, W), black outside the faces; which of the frames these are

Per frame: find the faces, give each the probabilities of seven expressions, keep the frame if a face is sure of one,
blacken what is no face. Frames keep their order.

Differs from the paper, which uses DeepFace (TensorFlow, weights downloaded at first use), names no detector and no
threshold, and does not say what becomes of an unsure face beside a sure one: the default here is dlib's detector with
any image encoder that has a head of seven expressions; the threshold is .5; an unsure face is background (`keep`). If
DeepFace is installed, use `DeepFaceFaces`; otherwise run it elsewhere, save the results with `face_lines`, and load
them with `PrecomputedFaces`, as what `zoo prepare faces` has found in a whole corpus.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from zoo.backbones import Vision
from zoo.models.emotion_qwen.face_types import EMOTIONS, SYNONYMS, Box, Face, FaceAnalyzer, check_frames, clip_box
from zoo.models.emotion_qwen.precomputed_faces import PrecomputedFaces, face_lines


# ---- expression
class Expression:
    """A reader of the expression in a picture of a face.

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
        if unused := sorted(set(words or {}) - set(labels)):
            raise ValueError(f"words names {', '.join(unused)}, but the classes of {path} are {', '.join(labels)}")
        if unknown := [word for word in labels if meaning.get(word) not in EMOTIONS]:
            raise ValueError(
                f"{path} has the classes {', '.join(unknown)}, which are none of {', '.join(EMOTIONS)}; say in words "
                "which of these each means"
            )
        if missing := [e for e in EMOTIONS if e not in {meaning[word] for word in labels}]:
            raise ValueError(f"no class of {path} means {', '.join(missing)}; its classes are {', '.join(labels)}")
        self.columns = torch.tensor([EMOTIONS.index(meaning[word]) for word in labels])

    def __call__(self, pictures: Tensor) -> list[dict[str, float]]:
        """Return the probabilities of each of the N pictures, uint8 (N, 3, h, w)."""
        with torch.inference_mode():
            classes = self.vision.logits(pictures).cpu().double().softmax(1)
            summed = torch.zeros(len(classes), len(EMOTIONS), dtype=torch.float64).index_add_(1, self.columns, classes)
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
        self.detector = import_optional("dlib", "dlib", "pip install 'emotion-zoo[faces]'").get_frontal_face_detector()
        self.expression = Expression(expression, words)
        self.upsample, self.adjust_threshold, self.max_side = upsample, adjust_threshold, max_side

    def detect(self, frame: Tensor) -> list[Box]:
        """Find the faces of a frame, uint8 (3, H, W): boxes in the order of dlib (surest first)."""
        height, width = frame.shape[1:]
        shrink = max(1.0, max(height, width) / self.max_side)
        small = frame
        if shrink > 1:
            small = resize(frame, [max(1, round(side / shrink)) for side in (height, width)], antialias=True)
        picture = np.ascontiguousarray(small.permute(1, 2, 0).cpu().numpy())
        detections, _, _ = self.detector.run(picture, self.upsample, self.adjust_threshold)
        x, y = width / picture.shape[1], height / picture.shape[0]
        # dlib's right and bottom are inside
        boxes = ((b.left() * x, b.top() * y, (b.right() + 1) * x, (b.bottom() + 1) * y) for b in detections)
        return [box for b in boxes if (box := clip_box(b, height, width)) is not None]

    def analyse(
        self, frames: Tensor, clip: str | None = None, numbers: Sequence[int] | None = None
    ) -> list[list[Face]]:
        """See `FaceAnalyzer`; clip and numbers are not used."""
        faces_by_frame = []
        for frame in check_frames(frames):
            faces = []
            for left, top, right, bottom in self.detect(frame):
                (probabilities,) = self.expression(frame[None, :, top:bottom, left:right])
                faces.append(Face((left, top, right, bottom), probabilities))
            faces_by_frame.append(faces)
        return faces_by_frame


class WholeFrame:
    """Every frame is one face (ours).

    For clips that were cropped to faces, as DFEW's are, and for encoders that were trained on whole frames, as the
    sitcom's.

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
        self.package = import_optional("deepface.DeepFace", "DeepFace", what)
        self.detector = detector

    def analyse(
        self, frames: Tensor, clip: str | None = None, numbers: Sequence[int] | None = None
    ) -> list[list[Face]]:
        """See `FaceAnalyzer`; clip and numbers are not used."""
        faces_by_frame = []
        for frame in check_frames(frames):
            picture = np.ascontiguousarray(frame.cpu().numpy().transpose(1, 2, 0)[..., ::-1])  # it takes BGR
            answer = self.package.analyze(
                picture,
                actions=["emotion"],
                detector_backend=self.detector,
                enforce_detection=False,  # else a frame without a face is an exception
                silent=True,
            )
            faces_by_frame.append(self._faces(answer, *frame.shape[1:]))
        return faces_by_frame

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


def import_optional(module: str, name: str, install: str) -> ModuleType:
    """Import a module of an optional package. ImportError that says how to install it."""
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
        """Return what the analyzer finds; asked once per clip, size and choice of frames if the clip has a name.

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
        faces_by_frame = self.analyzer.analyse(frames, clip, numbers)
        if len(faces_by_frame) != len(frames):
            raise ValueError(
                f"{type(self.analyzer).__name__} answered about {len(faces_by_frame)} of {len(frames)} frames; "
                "expected a list of faces for each, empty if it has none"
            )
        if clip is not None and self.remember:
            self.found[key] = faces_by_frame
        return faces_by_frame

    def __call__(
        self, frames: Tensor, clip: str | None = None, numbers: Sequence[int] | None = None
    ) -> Captured | None:
        """Return the stream, or None if no frame has an expressive face.

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
        for masked, i, expressive in zip(stream, indices, visible, strict=True):
            for box in (clip_box(face.box, height, width) for face in expressive):
                if box is None:
                    continue
                left, top, right, bottom = box
                masked[:, top:bottom, left:right] = frames[i, :, top:bottom, left:right]
        return Captured(stream, tuple(indices), tuple(visible))


__all__ = [
    "EMOTIONS",
    "SYNONYMS",
    "Captured",
    "DeepFaceFaces",
    "DlibFaces",
    "Expression",
    "Face",
    "FaceAnalyzer",
    "FaceCapture",
    "PrecomputedFaces",
    "WholeFrame",
    "face_lines",
]
