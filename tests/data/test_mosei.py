import h5py
import numpy as np
import pytest

from tests.builders import make_llm
from tests.data.miniature import write_csv
from tests.data.miniature_clips import clip, mosei_rows, write_mosei, write_mosei_sdk
from tests.runs_helper import fit_corpus, metrics, zoo
from zoo.data import MOSEI

INTENSITIES = ("happy", "sad", "anger", "surprise", "disgust", "fear")


def row(clip_id=0, video="v", split="train", text="So it goes.", **given):
    values = dict.fromkeys(INTENSITIES, "0") | {name: str(value) for name, value in given.items()}
    return {"video_id": video, "clip_id": str(clip_id), "text": text, **values, "split": split}


def read(folder, rows, split="train", **options):
    write_csv(folder / "label.csv", rows)
    return MOSEI(root=folder, **options).reading(split)


def test_the_video_is_the_dialogue(tmp_path):
    data = MOSEI(root=write_mosei(tmp_path))
    assert [len(data.samples(split)) for split in data.splits()] == [12, 6, 6]
    third = data.samples("train")[2]
    assert (third.id, third.dialogue, third.target.label) == ("mosei/train/aB_3-x_2", "mosei/train/aB_3-x", "anger")
    assert [turn.id for turn in third.history] == ["aB_3-x_0", "aB_3-x_1"] and third.target.speaker == ""
    assert data.labels.names == ("happiness", "sadness", "anger", "surprise", "disgust", "fear")
    assert data.protocol == "single_most_intense" and data.reading("test").official is None


RULE = [
    row(0, happy=1, sad=2),  # the most intense
    row(1, anger=1, fear=1),  # equally intense: the first
    row(2),  # none
    row(3, disgust=0.3333),
    row(10, surprise=3),
]


@pytest.mark.parametrize(
    ("options", "labels", "counted"),
    [
        (
            {},
            ["sadness", "anger", "disgust", "surprise"],
            {
                "clips with several emotions, most intense taken": 2,
                "of these with several equally intense, first taken": 1,
                "clips with no emotion, left out": 1,
            },
        ),
        (
            {"multi_label_rule": "exclude"},
            ["disgust", "surprise"],
            {"clips with several emotions, left out": 2, "clips with no emotion, left out": 1},
        ),
        (
            {"no_emotion_rule": "neutral"},
            ["sadness", "anger", "neutral", "disgust", "surprise"],
            {
                "clips with several emotions, most intense taken": 2,
                "of these with several equally intense, first taken": 1,
                "clips with no emotion, neutral": 1,
            },
        ),
        ({"intensity_threshold": 1}, ["sadness", "surprise"], {"clips with no emotion, left out": 3}),
    ],
)
def test_one_emotion_per_clip(tmp_path, options, labels, counted):
    reading = read(tmp_path, RULE, **options)
    assert [s.target.label for s in reading.samples] == labels
    notes = {k: v for k, v in reading.notes.items() if v and "missing" not in k}
    assert notes == counted
    assert [turn.id for turn in reading.samples[-1].history] == ["v_0", "v_1", "v_2", "v_3"]  # 10 last; all remain


def test_protocol_says_the_rule(tmp_path):
    made = MOSEI(
        root=tmp_path,
        multi_label_rule="exclude",
        no_emotion_rule="neutral",
        intensity_threshold=0.5,
        folds=tmp_path / "merit_0.csv",
    )
    assert made.protocol == "single_exclude_above_0.5_or_neutral_merit_0" and made.labels.names[-1] == "neutral"
    for bad in ({"multi_label_rule": "x"}, {"no_emotion_rule": "x"}, {"intensity_threshold": 3}):
        with pytest.raises(
            ValueError, match="multi_label_rule is most_intense or|no_emotion_rule is exclude or|threshold is an"
        ):
            MOSEI(root=tmp_path, **bad)


def test_the_authors_files_say_the_same(tmp_path):
    csv, sdk = MOSEI(root=write_mosei(tmp_path / "a")), MOSEI(root=write_mosei_sdk(tmp_path / "b"))
    for split in csv.splits():
        assert sdk.samples(split) == csv.samples(split)


def test_what_does_not_fit_together_in_the_authors_files_is_counted(tmp_path):
    write_mosei_sdk(tmp_path)
    with h5py.File(tmp_path / "CMU_MOSEI_Labels.csd", "a") as file:
        data = file["All Labels/data"]
        data["c4Dd0/intervals"][0] = (100, 101)  # no such line: clip 5 is without a label
        data["c4Dd0/intervals"][1] = data["c4Dd0/intervals"][2]  # clip 3 twice, clip 4 without a label
        data["new/intervals"], data["new/features"] = np.zeros((2, 2)), np.zeros((2, 7))
    (tmp_path / "Raw/Transcript/Segmented/Combined/gH_66.txt").unlink()
    data = MOSEI(root=tmp_path)
    reading = data.reading("train")
    assert [s.target.id for s in reading.samples][6:] == ["c4Dd0_0", "c4Dd0_1", "c4Dd0_2"]
    assert reading.excluded == {"c4Dd0_3": "labelled twice, differently"}
    assert reading.notes["clips without a label, context only"] == 3
    assert reading.notes["whole corpus: labelled clips without a transcript line, left out"] == 1 + 6
    assert reading.notes["whole corpus: labelled clips in no fold, left out"] == 2
    assert reading.notes["whole corpus: videos of the folds without a transcript"] == 1
    with pytest.raises(ValueError, match="MOSEI has no test samples"):
        data.reading("test")


def break_sdk(folder, what):
    write_mosei_sdk(folder)
    folds, line = folder / "cmu_mosei_std_folds.py", folder / "Raw/Transcript/Segmented/Combined/gH_66.txt"
    if what == "code":
        folds.write_text("standard_train_fold = open('x').read()\n")
    elif what == "fold":
        folds.write_text(folds.read_text().replace("standard_valid_fold", "valid"))
    elif what == "shared":
        folds.write_text(folds.read_text().replace("'gH_66'", "'gH_66', 'c4Dd0'"))
    elif what == "line":
        line.write_text("gH_66___0___0.0___4.5\n")
    elif what == "hdf5":
        (folder / "CMU_MOSEI_Labels.csd").write_bytes(b"no HDF5")
    else:
        with h5py.File(folder / "CMU_MOSEI_Labels.csd", "a") as file:
            own = file["All Labels/data/gH_66"]
            if what == "shape":
                del own["features"]
                own["features"] = np.zeros((6, 6))
            elif what == "range":
                own["features"][0, 1] = 4
            else:
                file.move("All Labels", "Labels")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("code", "cannot be read as lists of video ids"),
        ("fold", "standard_valid_fold missing"),
        ("shared", "1 names stand both in .*train.* and in .*test.*: c4Dd0"),
        ("line", "gH_66.txt line 1 is .*; expected gH_66___CLIP___START___END___TEXT"),
        ("hdf5", "is no label file of CMU-MOSEI .OSError"),
        ("group", "is no label file of CMU-MOSEI .KeyError"),
        ("shape", r"gH_66 has intervals \(6, 2\) and features \(6, 6\); expected"),
        ("range", "gH_66 has intensities beyond 0..3"),
    ],
)
def test_damaged_files_of_the_authors_are_refused(tmp_path, what, message):
    break_sdk(tmp_path, what)
    with pytest.raises(ValueError, match=message):
        MOSEI(root=tmp_path).reading("test")


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="CMU-MOSEI: no CMU_MOSEI_Labels.csd .*or label.csv"):
        MOSEI(root=tmp_path).reading("test")
    with pytest.raises(FileNotFoundError, match="CMU-MOSEI needs its folder: give --data.root"):
        MOSEI().reading("test")
    write_mosei_sdk(tmp_path)
    (tmp_path / "cmu_mosei_std_folds.py").unlink()
    with pytest.raises(FileNotFoundError, match="no cmu_mosei_std_folds.py"):
        MOSEI(root=tmp_path).reading("test")
    write_mosei_sdk(tmp_path)
    (tmp_path / "Raw").rename(tmp_path / "Rar")
    with pytest.raises(FileNotFoundError, match="expected the transcripts there"):
        MOSEI(root=tmp_path).reading("test")
    write_mosei(tmp_path)
    with pytest.raises(ValueError, match="both label.csv and CMU_MOSEI_Labels.csd; expected one"):
        MOSEI(root=tmp_path).reading("test")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{k: v for k, v in row().items() if k != "fear"}], "expected each of .*fear, split once, and fear is not"),
        ([row(happy="")], "happy is '' in row 2; expected an intensity from 0 to 3"),
        ([row(happy="3.5")], "happy is '3.5' in row 2"),
        ([row(happy="nan")], "happy is 'nan' in row 2"),
        ([row(clip_id="1.0")], "clip_id is '1.0' in row 2; expected whole numbers"),
        ([row(split="all")], "split is 'all' in row 2; expected train, valid or test"),
        ([row(sad=1), row(sad=2)], "different contents for v_0"),
        ([row(sad=1), row(1, split="test", sad=1)], "1 names stand both in .*train.* and in .*test.*: v"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, rows)


def test_empty_text_repeated_row_and_encoding(tmp_path):
    rows = [row(0, sad=1), row(0, sad=1), row(1, text=" ", fear=1), row(2, text="caf\x92 itâ€™s", fear=1)]
    reading = read(tmp_path, rows)
    assert reading.excluded == {"v_0 (row 3)": "repeats an earlier row word for word", "v_1": "empty utterance"}
    assert [(s.target.id, s.target.text) for s in reading.samples] == [("v_0", "So it goes."), ("v_2", "caf' it’s")]
    (tmp_path / "label.csv").write_text("x", encoding="utf-16")
    with pytest.raises(ValueError, match="UTF-16 or not a text file"):
        MOSEI(root=tmp_path).reading("train")


@pytest.mark.parametrize("form", [write_mosei, write_mosei_sdk])
def test_own_folds(tmp_path, form):
    form(tmp_path)
    write_csv(tmp_path / "mine.csv", [{"video_id": "gH_66", "split": "train"}, {"video_id": "-eF55", "split": "test"}])
    data = MOSEI(root=tmp_path, folds=tmp_path / "mine.csv")
    assert {s.dialogue for split in ("train", "test") for s in data.samples(split)} == {
        "mosei/train/gH_66",
        "mosei/test/-eF55",
    }
    assert data.reading("train").notes["whole corpus: labelled clips in no fold, left out"] == 12


@pytest.mark.parametrize("place", ["Videos/Segmented/Combined/gH_66_1.mp4", "Raw/gH_66/1.mp4"])
def test_clips(tmp_path, place):
    clip(write_mosei(tmp_path) / place, 1)
    reading = MOSEI(root=tmp_path).reading("test")
    assert [s.target.video for s in reading.samples] == [None, tmp_path / place] + [None] * 4
    assert reading.samples[1].target.audio == tmp_path / place and reading.notes["clips missing"] == 5
    assert reading.samples[2].history[1].video == tmp_path / place


@pytest.mark.usefixtures("one_threaded", "elsewhere")
def test_dialoguellm_reads_the_monologue_and_answers_in_the_corpus_labels(tmp_path):
    videos = {"train": [f"tr{i}" for i in range(30)], "valid": ["va0", "va1"], "test": ["te0", "te1"]}
    corpus = write_mosei_sdk(tmp_path / "mosei", mosei_rows(6, videos))
    make_llm(tmp_path / "llm")
    run = fit_corpus(
        tmp_path,
        "DialogueLLM",
        "MOSEI",
        corpus,
        6,
        model__llm=tmp_path / "llm",
        model__template="short",
        model__window=1,
        data__batch_size=6,
    )
    zoo("test", f"--ckpt_path={run}")
    said = metrics(run)
    assert (said["corpus"], said["eval_protocol"], said["n"]) == ("mosei", "single_most_intense", 12)
    assert set(said["per_class"]) == set(MOSEI.labels.names) and said["dialogues"] == 2
    assert said["population"]["notes"]["clips with several emotions, most intense taken"] == 4
    assert said["weighted_f1"] > 0.5  # chance is about 1/6
