import pytest

from tests.builders import make_llm
from tests.data.miniature import write_csv
from tests.data.miniature_clips import clip, dfew_rows, write_dfew
from tests.runs_helper import fit_corpus, flags, metrics, refused, rows, zoo
from zoo.backbones.tiny import make_vit_folder
from zoo.data import DFEW
from zoo.metrics import evaluate, war_uar

TRAIN, TEST = (f"EmoLabel_DataSplit/{part}(single-labeled)/set_1.csv" for part in ("train", "test"))


@pytest.fixture
def corpus(tmp_path):
    return write_dfew(tmp_path, train=20, test=7, clips=None)


def test_labels_are_counted_from_one(corpus):
    reading = DFEW(root=corpus).reading("test")
    first = reading.samples[0]
    assert (first.id, first.dialogue, first.target.label) == ("dfew/test/01001", "dfew/test/01001", "happy")  # label 1
    assert {int(s.target.id) % 7: s.target.label for s in reading.samples} == dict(enumerate(DFEW.labels.names))
    assert (first.target.text, first.history, first.target.video) == ("", (), None)
    assert (reading.official, reading.notes["clips missing"], reading.excluded) == (2341, 7, {})


def test_development_clips_are_a_seeded_share_of_training(corpus):
    data, again, other = DFEW(root=corpus), DFEW(root=corpus), DFEW(root=corpus, dev_seed=1, dev_share=0.3)
    ids = {split: {s.target.id for s in data.samples(split)} for split in data.splits()}
    assert (len(ids["train"]), len(ids["dev"]), ids["train"] & ids["dev"]) == (18, 2, set())
    assert {s.target.id for s in again.samples("dev")} == ids["dev"] != {s.target.id for s in other.samples("dev")}
    assert len(other.samples("dev")) == 6
    write_csv(corpus / TRAIN, dfew_rows(range(20, 0, -1)))  # the order of the file does not matter
    assert {s.target.id for s in DFEW(root=corpus).samples("dev")} == ids["dev"]
    with pytest.raises(ValueError, match="dev_share is the share .* not 1"):
        DFEW(root=corpus, dev_share=1)


def test_folds(tmp_path):
    write_dfew(tmp_path, folds=(1, 3), clips=None)
    first, third = (DFEW(root=tmp_path, fold=k) for k in (1, 3))
    assert not {s.id for s in first.samples("test")} & {s.id for s in third.samples("test")}
    assert (first.protocol, third.protocol, third.reading("test").official) == ("fold_1_of_5", "fold_3_of_5", None)
    with pytest.raises(FileNotFoundError, match=r"no EmoLabel_DataSplit/test\(single-labeled\)/set_2.csv .*apply"):
        DFEW(root=tmp_path, fold=2).samples("test")
    with pytest.raises(ValueError, match="folds 1 to 5, got 0"):
        DFEW(root=tmp_path, fold=0)


@pytest.mark.parametrize("place", ["Clip/original", "Clip/clip_224x224_avi"])
def test_clips_with_and_without_leading_zeros(tmp_path, place):
    corpus = write_dfew(tmp_path, train=2, test=2, clips=place)
    (corpus / place / "note.mp4").touch()
    (corpus / place / "5000.mp4").touch()  # one without a single label, say
    (corpus / place / ("1001.mp4" if place == "Clip/original" else "01001.avi")).unlink()
    reading = DFEW(root=corpus).reading("test")
    assert [s.target.video is not None for s in reading.samples] == [False, True]
    assert {k: v for k, v in reading.notes.items() if v} == {
        "clips missing": 1,
        "clips in no list of this fold, not used": 1,
        "clips whose name is no number, not used": 1,
    }
    clip(corpus / place / ("part_2/01002.mp4" if place == "Clip/original" else "1002.avi"), 0)
    with pytest.raises(ValueError, match="are clip 1002; expected one"):
        DFEW(root=corpus).reading("test")


def test_folders_of_frames_are_named(corpus):
    (corpus / "Clip" / "clip_224x224" / "01001").mkdir(parents=True)
    notes = DFEW(root=corpus).reading("test").notes
    assert notes["only folders of frames, which are not read: make clips of them, see zoo.data.DFEW"] == 1


@pytest.mark.parametrize(
    ("rows_", "message"),
    [
        ([{"video_name": "3", "label": "0"}], r"unknown label '0' in row 2 \(3\); expected one of 1, 2, 3, 4, 5, 6, 7"),
        ([{"video_name": "3", "label": ""}], r"unknown label '' in row 2 \(3\)"),
        ([{"video_name": "a", "label": "1"}], "video_name is 'a' in row 2; expected the clip's number"),
        ([{"video": "3", "label": "1"}], "video_name is not .closest to video_name: video"),
        ([{"video_name": "3", "label": "1"}, {"video_name": "003", "label": "2"}], "different contents for 3"),
        (dfew_rows([1001]), "1 names stand both in .*train.*set_1.csv and in .*test.*set_1.csv: 1001"),
    ],
)
def test_damaged_lists_are_refused(corpus, rows_, message):
    write_csv(corpus / TRAIN, rows_)
    with pytest.raises(ValueError, match=message):
        DFEW(root=corpus).reading("train")


def test_repeated_row_is_counted(corpus):
    write_csv(corpus / TEST, [*dfew_rows([1001, 1002]), {"video_name": "01001", "label": "1"}])
    reading = DFEW(root=corpus).reading("test")
    assert len(reading.samples) == 2 and reading.excluded == {"1001 (row 4)": "repeats an earlier row word for word"}


def test_uar_is_over_the_seven_classes_and_not_half_the_war():
    """Emotion-Qwen's published UARs are half the WARs: the recall of "right or wrong"."""
    names = DFEW.labels.names
    counts = dict(zip(names, (4, 2, 2, 2, 2, 1, 1), strict=True))  # always "happy", except one right "fear"
    answers = []
    for name in [name for name, n in counts.items() for _ in range(n)]:
        key = str(len(answers))
        said = "fear" if name == "fear" else "happy"
        answers.append({"id": key, "dialogue": key, "label": name, "predicted": said})
    got = war_uar(evaluate(answers, DFEW.labels, draws=10))
    assert got == pytest.approx({"war": 5 / 14, "uar": 2 / 7})


@pytest.mark.usefixtures("one_threaded", "elsewhere")
def test_a_face_model_learns_the_clips_and_counts_the_unreadable(tmp_path):
    corpus = write_dfew(tmp_path / "dfew", train=35, test=14)
    (corpus / "Clip/original/1002.mp4").unlink()
    (corpus / "Clip/original/1003.mp4").write_bytes(b"no clip")
    make_vit_folder(tmp_path / "vit", ("a", "b"), 32, 8, width=32, layers=2, heads=2, intermediate_size=64)
    run = fit_corpus(
        tmp_path,
        "FaceClassifier",
        "DFEW",
        corpus,
        14,
        model__vision=tmp_path / "vit",
        model__new_head=list(DFEW.labels.names),
        model__frames=1,
        model__size=32,
        model__cache=tmp_path / "cache",
        data__batch_size=8,
    )
    zoo("test", f"--ckpt_path={run}", "--data.max_unreadable=0.2")
    said = metrics(run)
    assert said["eval_protocol"] == "fold_1_of_5" and said["n"] == 14 == len(rows(run))
    assert said["population"]["notes"]["clips missing"] == 1 and said["events"]["no readable face"] == 2
    assert said["unparsed"] == pytest.approx(2 / 14) and said["accuracy"] >= 0.5  # chance is 1/7
    assert war_uar(said) == {"war": said["accuracy"], "uar": said["uar"]}


@pytest.mark.usefixtures("elsewhere")
def test_a_text_model_is_refused(tmp_path):
    """Every prompt would be the same."""
    root = write_dfew(tmp_path / "dfew")
    make_llm(tmp_path / "llm")
    said = refused("fit", *flags(model="CausalLM", model__llm=tmp_path / "llm", data="DFEW", data__root=root))
    assert "has words" in said and "pictures or voices" in said
