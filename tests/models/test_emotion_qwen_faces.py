"""Facial Emotion Capture: which frames and pixels stay, files of findings, class words, DeepFace's format (a fake), and
dlib on drawn, real and hostile pictures."""

import copy
import json
import pickle
import sys
import time
from types import ModuleType

import numpy as np
import pytest
import torch

from zoo.backbones.tiny import make_vit_folder
from zoo.media import Unreadable
from zoo.models.emotion_qwen.faces import (
    EMOTIONS,
    DeepFaceFaces,
    DlibFaces,
    Expression,
    Face,
    FaceCapture,
    PrecomputedFaces,
    WholeFrame,
    clip_box,
    face_lines,
)
from zoo.sitcom import faces as drawn

MELD_WORDS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
FER_OF_MELD = ("neutral", "surprise", "fear", "sad", "happy", "disgust", "angry")


def probabilities(emotion, top):
    rest = (1 - top) / 6
    return {e: top if e == emotion else rest for e in EMOTIONS}


def face(box, top=0.9, emotion="happy"):
    return Face(box, probabilities(emotion, top))


def noise(n=1, height=12, width=16, seed=0):
    """No pixel is 0, so that every blackened one shows."""
    return torch.randint(1, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(seed)).byte()


class Fake:
    """Answers what it is told to, and counts how often it is asked."""

    def __init__(self, *found):
        self.found, self.asked = [list(f) for f in found], []

    def analyse(self, frames, clip=None, numbers=None):
        self.asked.append((clip, numbers))
        return self.found


def make_head(folder, words):
    return str(make_vit_folder(folder, words, size=24, patch=8, width=32, layers=1, heads=2, intermediate_size=32))


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    return make_head(tmp_path_factory.mktemp("heads") / "meld", MELD_WORDS)


# ---- one face
def test_face_knows_its_surest_emotion():
    one = face((0, 0, 4, 4), 0.7, "sad")
    assert (one.emotion, one.confidence) == ("sad", 0.7)
    assert Face((0, 0, 1, 1), dict.fromkeys(reversed(EMOTIONS), 1 / 7)).emotion == "angry"  # ties: the first


@pytest.mark.parametrize("box", [(3, 0, 3, 4), (0, 4, 4, 4), (4, 0, 2, 4)])
def test_face_needs_an_area(box):
    with pytest.raises(ValueError, match="with an area, got"):
        face(box)


@pytest.mark.parametrize(
    "changed", [{"happy": 0.5}, {"happy": float("nan")}, {"happy": 1.9, "sad": -0.9}, {"joy": 0.0}]
)
def test_face_needs_a_distribution(changed):
    with pytest.raises(ValueError, match="expected probabilities"):
        Face((0, 0, 1, 1), probabilities("happy", 1.0) | changed)
    with pytest.raises(ValueError, match="got happy"):
        Face((0, 0, 1, 1), {"happy": 1.0})


@pytest.mark.parametrize(
    "box, expected",
    [
        ((2, 3, 5, 7), (2, 3, 5, 7)),
        ((-5, -5, 99, 99), (0, 0, 16, 12)),
        ((1.2, 1.8, 3.2, 3.0), (1, 1, 4, 3)),  # every pixel that is touched
        ((16, 0, 20, 5), None),
        ((-4, 2, 0, 5), None),
    ],
)
def test_clip_box(box, expected):
    assert clip_box(box, 12, 16) == expected


# ---- capture
def test_pixels_outside_the_face_are_black_and_inside_untouched():
    frames = noise()
    before = frames.clone()
    stream = FaceCapture(Fake([face((2, 3, 7, 9))]))(frames)
    expected = torch.zeros_like(frames)
    expected[0, :, 3:9, 2:7] = frames[0, :, 3:9, 2:7]
    assert stream.frames.dtype == torch.uint8 and torch.equal(stream.frames, expected)
    assert (stream.frames != 0).sum() == 3 * 6 * 5
    assert torch.equal(frames, before)


def test_frames_keep_their_order_and_unsure_or_empty_ones_go():
    box = (0, 0, 4, 4)
    frames = noise(6)
    found = [[face(box, 0.3)], [face(box, 0.8)], [], [face(box, 0.51)], [face(box, 0.49)], [face(box, 0.99)]]
    stream = FaceCapture(Fake(*found))(frames)
    assert stream.indices == (1, 3, 5)
    assert torch.equal(stream.frames[:, :, :4, :4], frames[[1, 3, 5], :, :4, :4])
    assert [f[0].confidence for f in stream.faces] == [0.8, 0.51, 0.99]


@pytest.mark.parametrize("threshold, kept", [(0.0, True), (0.5, True), (0.5 + 1e-9, False), (1.0, False)])
def test_threshold_is_reached_not_exceeded(threshold, kept):
    stream = FaceCapture(Fake([face((0, 0, 4, 4), 0.5)]), threshold)(noise())
    assert (stream is not None) == kept


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_every_category_counts(emotion):
    assert FaceCapture(Fake([face((0, 0, 4, 4), 0.6, emotion)]))(noise()) is not None


@pytest.mark.parametrize("found", [[[], []], [[face((0, 0, 4, 4), 0.4)], []]])
def test_no_expressive_face_means_no_stream(found):
    assert FaceCapture(Fake(*found))(noise(2)) is None


@pytest.mark.parametrize("keep, visible", [("confident", [0, 2]), ("all", [0, 1, 2])])
def test_several_faces(keep, visible):
    boxes = [(0, 0, 3, 3), (5, 5, 9, 8), (7, 6, 12, 12)]  # the last two overlap
    tops = [0.9, 0.3, 0.6]
    frames = noise()
    stream = FaceCapture(Fake([face(b, t) for b, t in zip(boxes, tops, strict=True)]), keep=keep)(frames)
    mask = torch.zeros(12, 16, dtype=torch.bool)
    for i in visible:
        left, top, right, bottom = boxes[i]
        mask[top:bottom, left:right] = True
    assert torch.equal(stream.frames[0] != 0, mask.expand(3, -1, -1))
    assert [f.box for f in stream.faces[0]] == [boxes[i] for i in visible]


def test_keep_all_does_not_keep_frames_without_a_sure_face():
    found = [[face((0, 0, 3, 3), 0.2), face((4, 4, 8, 8), 0.3)], [face((0, 0, 3, 3), 0.2), face((4, 4, 8, 8), 0.7)]]
    assert FaceCapture(Fake(*found), keep="all")(noise(2)).indices == (1,)


def test_boxes_beyond_the_border():
    frames = noise()
    stream = FaceCapture(Fake([face((-9, -9, 3, 4)), face((13, 10, 99, 99))]))(frames)
    mask = torch.zeros(12, 16, dtype=torch.bool)
    mask[:4, :3] = mask[10:, 13:] = True
    assert torch.equal(stream.frames[0] != 0, mask.expand(3, -1, -1))
    assert FaceCapture(Fake([face((16, 0, 20, 4))]))(frames) is None  # wholly outside shows nothing


def test_many_faces():
    boxes = [(x, y, x + 1, y + 1) for y in range(0, 60, 2) for x in range(0, 60, 2)]
    stream = FaceCapture(Fake([face(b) for b in boxes]))(noise(1, 60, 60))
    assert (stream.frames[0, 0] != 0).sum() == len(boxes) == 900


def test_the_same_twice():
    frames, capture = noise(3), FaceCapture(Fake(*[[face((1, 1, 5, 5))]] * 3))
    first, second = capture(frames), capture(frames)
    assert torch.equal(first.frames, second.frames) and first.indices == second.indices == (0, 1, 2)


def test_named_clips_are_analysed_once():
    fake = Fake([face((1, 1, 5, 5))])
    capture = FaceCapture(fake)
    first = capture(noise(), "a.mp4")
    assert torch.equal(capture(noise(), "a.mp4").frames, first.frames) and len(fake.asked) == 1
    capture(noise(), "b.mp4")
    capture(noise(1, 13), "a.mp4")  # another size
    capture(noise(), "a.mp4", [4])  # another frame
    assert fake.asked[1:] == [("b.mp4", None), ("a.mp4", None), ("a.mp4", [4])]
    capture(noise())
    capture(noise())  # nameless: asked each time
    assert len(fake.asked) == 6
    forgetful = FaceCapture(fake, remember=False)
    forgetful(noise(), "a.mp4")
    forgetful(noise(), "a.mp4")
    assert len(fake.asked) == 8 and not forgetful.found


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(1, 3, 4, 4),
        torch.zeros(3, 4, 4).byte(),
        torch.zeros(1, 1, 4, 4).byte(),
        torch.zeros(0, 3, 4, 4).byte(),
        np.zeros((1, 3, 4, 4), np.uint8),
    ],
)
def test_other_frames_are_refused(frames):
    with pytest.raises(ValueError, match=r"expected frames as a tensor, uint8 \(F, 3, H, W\)"):
        FaceCapture(Fake([]))(frames)


def test_wrong_settings_and_answers_are_refused():
    for threshold in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="threshold is a probability"):
            FaceCapture(Fake(), threshold)
    with pytest.raises(ValueError, match="keep is 'confident' or 'all'; got 'some'"):
        FaceCapture(Fake(), keep="some")
    with pytest.raises(ValueError, match="Fake answered about 1 of 2 frames"):
        FaceCapture(Fake([]))(noise(2))
    with pytest.raises(ValueError, match="a number for each of the 2 frames, got 1"):
        FaceCapture(Fake([], []))(noise(2), "a.mp4", [0])


# ---- class words
def test_class_words_are_translated(head):
    expression = Expression(head)
    for column, emotion in enumerate(FER_OF_MELD):
        logits = torch.zeros(1, 7)
        logits[0, column] = 5.0
        expression.vision.logits = lambda pictures, logits=logits: logits
        (found,) = expression(noise())
        assert max(found, key=found.get) == emotion and found[emotion] == pytest.approx(0.9611, abs=1e-4)
        assert Face((0, 0, 1, 1), found).emotion == emotion


def test_own_class_words(tmp_path):
    words = (*EMOTIONS[:-1], "calm", "contempt")
    folder = make_head(tmp_path / "own", words)
    with pytest.raises(ValueError, match="classes calm, contempt, which are none of angry"):
        Expression(folder)
    with pytest.raises(ValueError, match="classes contempt, which"):
        Expression(folder, {"calm": "neutral", "contempt": "scorn"})
    with pytest.raises(ValueError, match="no class of .* means neutral"):
        Expression(folder, {"calm": "sad", "contempt": "disgust"})
    with pytest.raises(ValueError, match="words names joy, but the classes"):
        Expression(folder, {"calm": "neutral", "contempt": "disgust", "joy": "happy"})
    expression = Expression(folder, {"calm": "neutral", "contempt": "disgust"})
    expression.vision.logits = lambda pictures: torch.zeros(len(pictures), 8)
    (found,) = expression(noise())
    assert found["disgust"] == pytest.approx(2 / 8) and found["neutral"] == pytest.approx(1 / 8)


def test_nameless_heads_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no head with named classes"):
        Expression(make_head(tmp_path / "nameless", [f"LABEL_{i}" for i in range(7)]))


def test_whole_frames(head):
    frames = noise(3, 30, 20)
    found = WholeFrame(head).analyse(frames)
    assert [[f.box for f in faces] for faces in found] == [[(0, 0, 20, 30)]] * 3
    expected = WholeFrame(head).expression.vision.logits(frames).softmax(1)[:, MELD_WORDS.index("joy")]
    assert [f[0].probabilities["happy"] for f in found] == pytest.approx(expected.tolist(), abs=1e-6)
    stream = FaceCapture(WholeFrame(head), threshold=0)(frames)
    assert torch.equal(stream.frames, frames)


def test_the_encoder_is_frozen(head):
    vision = Expression(head).vision.train()
    assert not vision.training and not any(p.requires_grad for p in vision.parameters())


# ---- precomputed
def row(**changed):
    faces = [{"box": [1, 2, 5, 6], "probabilities": probabilities("happy", 0.9)}]
    made = {"clip": "train/a.mp4", "frame": 0, "faces": faces} | changed
    return json.dumps({k: v for k, v in made.items() if v != "absent"})


def one_face(**changed):
    return row(faces=[{"box": [1, 2, 5, 6], "probabilities": probabilities("happy", 0.9)} | changed])


def written(tmp_path, *lines):
    file = tmp_path / "faces.jsonl"
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(file)


def test_findings_are_looked_up_by_clip_and_frame(tmp_path):
    file = written(tmp_path, row(frame=3), "", row(frame=1, faces=[]), row(clip="b.mp4"), row(frame=0))
    analyzer = PrecomputedFaces(file)
    assert [[f.box for f in faces] for faces in analyzer.analyse(noise(2), "train/a.mp4")] == [[(1, 2, 5, 6)], []]
    (three,) = analyzer.analyse(noise(), "train/a.mp4", [3])
    assert three[0].emotion == "happy" and three[0].confidence == 0.9
    assert FaceCapture(analyzer)(noise(2), "train/a.mp4", [1, 3]).indices == (1,)
    with pytest.raises(ValueError, match=r"no row about frame 2 of train/a.mp4, only about \[0, 1, 3\]"):
        analyzer.analyse(noise(), "train/a.mp4", [2])
    for clip in ("c.mp4", None):
        with pytest.raises(Unreadable, match=f"no row about clip {clip!r}; the first one it knows is 'train/a.mp4'"):
            analyzer.analyse(noise(), clip)


def test_boxes_are_clipped_and_scaled(tmp_path):
    file = written(
        tmp_path,
        one_face(box=[-3, 2, 99, 6]),
        row(frame=1, size=[24, 32], faces=[{"box": [2, 4, 11, 12], "probabilities": probabilities("sad", 0.9)}]),
        row(frame=2, faces=[{"box": [100, 100, 120, 120], "probabilities": probabilities("sad", 0.9)}]),
    )
    analyzer = PrecomputedFaces(file)
    found = analyzer.analyse(noise(2), "train/a.mp4")
    assert [f[0].box for f in found] == [(0, 2, 16, 6), (1, 2, 6, 6)]
    with pytest.raises(ValueError, match=r"box \[100, 100, 120, 120\] in frame 2 .* outside the picture of 16x12"):
        analyzer.analyse(noise(3), "train/a.mp4")


MALFORMED = {
    "not JSON": "{",
    "expected a dictionary": "[1]",
    "a row lacks clip": row(clip="absent"),
    "a row lacks frame": row(frame="absent"),
    "a row lacks faces": row(faces="absent"),
    "unknown fields: sise": row(sise=[1, 2]),
    "clip is 3": row(clip=3),
    "clip is ''": row(clip=""),
    "frame is -1": row(frame=-1),
    "frame is 1.5": row(frame=1.5),
    "frame is True": row(frame=True),
    "frame is '0'": row(frame="0"),
    r"size is \[0, 4\]": row(size=[0, 4]),
    r"size is \[4\]": row(size=[4]),
    "faces is None": row(faces=None),
    "a face is '1', expected": row(faces=[1]),
    "a face lacks box": row(faces=[{"probabilities": {}}]),
    "unknown fields: score": one_face(score=1),
    r"box is \[1, 2, 3\]": one_face(box=[1, 2, 3]),
    r"box is \[nan": one_face(box=[float("nan"), 2, 3, 4]),
    r"box is \[1e\+300": one_face(box=[1e300, 2, 3, 4]),
    "box is '": one_face(box="1234"),
    "with an area": one_face(box=[5, 2, 1, 6]),
    r"probabilities are \[": one_face(probabilities=[1.0] * 7),
    "probabilities are {'angry': 'high'": one_face(probabilities={"angry": "high"}),
    "got happy": one_face(probabilities={"happy": 1.0}),
    "sum to 1": one_face(probabilities=dict.fromkeys(EMOTIONS, 0.9)),
    "a second row about frame 0 of train/a.mp4": row(),
}


@pytest.mark.parametrize("message", MALFORMED)
def test_malformed_rows_are_named(tmp_path, message):
    good = row() if message.startswith("a second") else row(clip="other.mp4")
    with pytest.raises(ValueError, match=f"faces.jsonl line 2: .*{message}"):
        PrecomputedFaces(written(tmp_path, good, MALFORMED[message]))


def test_files_that_are_no_findings(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file of precomputed faces at"):
        PrecomputedFaces(str(tmp_path / "absent.jsonl"))
    with pytest.raises(ValueError, match="holds no rows"):
        PrecomputedFaces(written(tmp_path, "", " "))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not UTF-8"):
        PrecomputedFaces(str(tmp_path / "binary.jsonl"))


def test_findings_survive_being_written(tmp_path, head):
    frames = noise(3, 20, 30)
    found = WholeFrame(head).analyse(frames)
    found[1] = []
    clip = "Ümläut\u2028.mp4"  # a line break to str.splitlines
    lines = face_lines(clip, frames, found, [5, 6, 7])
    analyzer = PrecomputedFaces(written(tmp_path, *lines, row()))
    assert analyzer.analyse(frames, clip, [5, 6, 7]) == found
    ((half,),) = analyzer.analyse(frames[:1, :, :10, :15], clip, [5])
    assert half.box == (0, 0, 15, 10)


# ---- DeepFace, as a fake
@pytest.fixture
def deepface(monkeypatch):
    """A fake of the package: answers what `fake.answer` holds, and notes what it was asked."""
    fake, package = ModuleType("deepface.DeepFace"), ModuleType("deepface")
    fake.answer, fake.asked = [], []

    def analyze(img_path, actions, detector_backend, enforce_detection, silent):
        fake.asked.append((img_path, actions, detector_backend, enforce_detection))
        return fake.answer

    fake.analyze = package.analyze = analyze
    package.DeepFace = fake
    monkeypatch.setitem(sys.modules, "deepface", package)
    monkeypatch.setitem(sys.modules, "deepface.DeepFace", fake)
    return fake


def percent(x, y, w, h, emotion="happy", confidence=0.93):
    values = {e: np.float32(88.0 if e == emotion else 2.0) for e in EMOTIONS}
    region = {"x": x, "y": y, "w": w, "h": h, "left_eye": None, "right_eye": None}
    return {"region": region, "emotion": values, "dominant_emotion": emotion, "face_confidence": confidence}


def test_deepface_answers_are_translated(deepface):
    deepface.answer = [percent(2, 3, 5, 4), percent(10, 8, 50, 50, "sad", 0)]
    frames = noise()
    (found,) = DeepFaceFaces("mtcnn").analyse(frames)
    assert [f.box for f in found] == [(2, 3, 7, 7), (10, 8, 16, 12)]
    assert [f.emotion for f in found] == ["happy", "sad"] and found[0].confidence == pytest.approx(0.88)
    picture, actions, detector, enforce = deepface.asked[0]
    assert (actions, detector, enforce) == (["emotion"], "mtcnn", False)
    assert np.array_equal(picture, frames[0].permute(1, 2, 0).numpy()[..., ::-1])  # BGR
    assert FaceCapture(DeepFaceFaces())(frames).indices == (0,)


@pytest.mark.parametrize("less", [0, 1])  # releases differ in whether the last row and column belong to it
def test_deepface_says_the_whole_picture_when_there_is_no_face(deepface, less):
    deepface.answer = [percent(0, 0, 16 - less, 12 - less, confidence=0)]
    assert DeepFaceFaces().analyse(noise()) == [[]]
    deepface.answer = [percent(0, 0, 16 - less, 12 - less, confidence=0.9)]
    assert len(DeepFaceFaces().analyse(noise())[0]) == 1


@pytest.mark.parametrize(
    "answer",
    [
        percent(1, 1, 4, 4),
        [[percent(1, 1, 4, 4)]],
        [{"region": {"x": 1}}],
        [percent(1, 1, 4, 4) | {"emotion": None}],
        [percent(1, 1, 4, 4) | {"emotion": dict.fromkeys(EMOTIONS, 1 / 7)}],  # not in percent
        None,
    ],
)
def test_other_deepface_formats_are_refused(deepface, answer):
    deepface.answer = answer
    with pytest.raises(ValueError, match="expected of DeepFace.analyze a list of dictionaries"):
        DeepFaceFaces().analyse(noise())


@pytest.mark.parametrize(
    "package, make, message",
    [
        ("dlib", lambda head: DlibFaces(head), r"dlib is not installed .* pip install 'emotion-zoo\[faces\]'"),
        ("deepface", lambda head: DeepFaceFaces(), "DeepFace is not installed .* pip install deepface tf-keras"),
    ],
)
def test_absent_packages_say_how_to_install_them(monkeypatch, head, package, make, message):
    monkeypatch.setitem(sys.modules, package, None)  # as Python does it: importing then raises ImportError
    with pytest.raises(ImportError, match=message):
        make(head)


# ---- dlib
@pytest.fixture(scope="module")
def dlib_faces(head):
    return DlibFaces(head)


def drawing(speaker="Nina"):
    """A drawn face of the sitcom, which dlib finds: uint8 (3, 96, 96)."""
    place = drawn.Scene("blue", drawn.OBJECTS[0], drawn.PLACES[0], 0)
    return torch.from_numpy(drawn.clip([0.0] * 8, speaker, place, 1, 15, "studio", only=7)[0].copy()).permute(2, 0, 1)


def inside(box, outer):
    return all(a >= b for a, b in zip(box[:2], outer[:2], strict=True)) and all(
        a <= b for a, b in zip(box[2:], outer[2:], strict=True)
    )


def test_dlib_finds_faces_where_they_are(dlib_faces):
    canvas = torch.full((1, 3, 300, 400), 128, dtype=torch.uint8)
    canvas[0, :, 150:246, 40:136] = drawing("Nina")
    canvas[0, :, 20:116, 260:356] = drawing("Omar")
    (found,) = dlib_faces.analyse(canvas)
    assert len(found) == 2
    left, right = sorted(found, key=lambda f: f.box[0])
    assert inside(left.box, (40, 150, 136, 246)) and inside(right.box, (260, 20, 356, 116))
    x1, y1, x2, y2 = left.box
    assert left.probabilities == dlib_faces.expression(canvas[:, :, y1:y2, x1:x2])[0]
    stream = FaceCapture(dlib_faces, threshold=0)(canvas)
    assert torch.equal(stream.frames[0, :, y1:y2, x1:x2], canvas[0, :, y1:y2, x1:x2])
    assert (stream.frames[0, 0] != 0).sum() <= sum((f.box[2] - f.box[0]) * (f.box[3] - f.box[1]) for f in found)


def test_dlib_boxes_of_shrunken_frames_are_scaled_back(head):
    frame = torch.full((1, 3, 400, 800), 128, dtype=torch.uint8)
    frame[0, :, 100:292, 500:692] = drawing().repeat_interleave(2, 1).repeat_interleave(2, 2)
    found = DlibFaces(head, max_side=400).analyse(frame)[0]
    assert len(found) == 1 and inside(found[0].box, (500, 100, 692, 292))
    assert found[0].box[2] - found[0].box[0] > 70
    assert DlibFaces(head, max_side=100).analyse(frame) == [[]]  # a face of 24 px is too small


def test_a_higher_threshold_finds_less(head):
    assert DlibFaces(head).detect(drawing()) and not DlibFaces(head, adjust_threshold=9.0).detect(drawing())


def test_dlib_analyzer_is_copied_and_sent_to_workers(dlib_faces):
    frames = drawing()[None]
    expected = dlib_faces.analyse(frames)
    assert expected[0]
    # what is unpickled here was pickled here, as a loader sends it to its workers
    for twin in (pickle.loads(pickle.dumps(dlib_faces)), copy.deepcopy(dlib_faces)):
        (found,) = twin.analyse(frames)
        assert [face.box for face in found] == [face.box for face in expected[0]]
        for face, known in zip(found, expected[0], strict=True):  # some CPUs add up a copy's weights in another order
            assert face.probabilities == pytest.approx(known.probabilities, abs=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (2, 3), (8000, 8000)])
@pytest.mark.parametrize("kind", ["black", "grey"])
def test_dlib_survives_hostile_frames(dlib_faces, size, kind):
    """Black, and one channel three times, as of a grey picture; not contiguous."""
    if kind == "black" or size == (8000, 8000):  # one number in memory
        one = torch.full((1, 1, 1, 1), 77 if kind == "grey" else 0, dtype=torch.uint8)
    else:
        one = noise(1, *size)[:, :1]
    frames = one.expand(1, 3, *size)
    start = time.process_time()
    assert dlib_faces.analyse(frames) == [[]]
    assert time.process_time() - start < 5  # measured: below 1 s


def test_dlib_settings(head):
    for wrong in ({"upsample": -1}, {"upsample": 9}, {"max_side": 0}, {"adjust_threshold": float("nan")}):
        with pytest.raises(ValueError, match="expected upsample 0 to 3"):
            DlibFaces(head, **wrong)


def test_dlib_finds_a_real_face(head):
    """Eileen Collins, in front of a flag and a model of the shuttle; her face spans about (170, 60, 280, 210)."""
    picture = pytest.importorskip("skimage.data").astronaut()
    found = DlibFaces(head, upsample=0).detect(torch.from_numpy(picture).permute(2, 0, 1))
    assert len(found) == 1
    left, top, right, bottom = found[0]
    assert 160 < left < 200 and 60 < top < 110 and 240 < right < 290 and 150 < bottom < 200
