import pytest

from tests.builders import make_llm
from tests.data.miniature import write_csv
from tests.data.miniature_clips import clip, write_mer2024
from tests.runs_helper import fit_corpus, metrics, refused, rows, zoo
from zoo.data import MER2024
from zoo.data.mer2024 import OFFICIAL
from zoo.media import Unreadable, read_frames, read_waveform


@pytest.fixture
def corpus(tmp_path):
    return write_mer2024(tmp_path)


def names(*labels):
    return [{"name": f"s{i}", "discrete": label} for i, label in enumerate(labels)]


def test_tracks_are_test_splits_of_one_training_set(corpus):
    semi, noise = MER2024(root=corpus), MER2024(root=corpus, track="noise")
    first = semi.samples("test")[0]
    assert (first.id, first.target.label, first.label) == ("mer2024/test/samplenew3_00100000", "happy", 0)
    assert first.target.text.startswith("Hooray") and first.target.speaker == "" and first.history == ()
    assert not {s.id for s in semi.samples("test")} & {s.id for s in noise.samples("test")}
    assert semi.samples("train") == noise.samples("train")
    assert [len(semi.samples(split)) for split in semi.splits()] == [27, 3, 6]
    assert (semi.protocol, noise.protocol) == ("mer2024_semi", "mer2024_noise")
    assert (semi.reading("test").official, noise.reading("test").official) == (1169, 1170) == tuple(OFFICIAL.values())
    assert semi.reading("train").official is None
    with pytest.raises(ValueError, match="track is semi or noise or unlabeled, got 'ov'"):
        MER2024(root=corpus, track="ov")


def test_missing_words_and_clips_are_counted(corpus):
    write_csv(corpus / "label-transcription.csv", [{"name": "samplenew3_00100000", "chinese": "", "english": " "}])
    clip(corpus / "MER2024_semi/samplenew3_00100001.avi", 1)
    clip(corpus / "MER2024_semi/stray.mp4", 1)
    reading = MER2024(root=corpus).reading("test")
    assert len(reading.samples) == 6  # nothing is left out
    assert {k: v for k, v in reading.notes.items() if v} == {
        "clips missing": 5,
        "without words": 6,
        "neither clip nor words": 5,
        "clips without a row, not used": 1,
    }
    assert [s.target.video for s in reading.samples][:2] == [None, corpus / "MER2024_semi/samplenew3_00100001.avi"]


def test_the_challenge_s_own_folders(corpus):
    for place in ("video-unlabeled", "video-unlabeled-with-test2noise"):
        for name in ("samplenew3_00100000", "samplenew3_00200000", "samplenew3_00300000"):
            (corpus / place).mkdir(exist_ok=True)
            (corpus / place / f"{name}.mp4").touch()
    semi, noise = (MER2024(root=corpus, track=track).reading("test") for track in ("semi", "noise"))
    assert semi.samples[0].target.video.parent.name == "video-unlabeled"
    assert noise.samples[0].target.video.parent.name == "video-unlabeled-with-test2noise"  # the others are clean
    assert "clips without a row, not used" not in semi.notes  # the pool is larger than the track


def test_unlabelled_pool(corpus):
    with pytest.raises(FileNotFoundError, match="no clips in video-unlabeled-with-test2noise or video-unlabeled"):
        MER2024(root=corpus, track="unlabeled").samples("test")
    folder = corpus / "video-unlabeled"
    folder.mkdir()
    for name in ("b.mp4", "a.avi", ".hidden.mp4", "list.txt"):
        (folder / name).touch()
    samples = MER2024(root=corpus, track="unlabeled").samples("test")
    assert [(s.target.id, s.target.label, s.label) for s in samples] == [("a", None, -1), ("b", None, -1)]
    (folder / "a.mp4").touch()
    with pytest.raises(ValueError, match="holds both a.avi and a.mp4; expected one file per clip"):
        MER2024(root=corpus, track="unlabeled").samples("test")


def test_subtitles_of_a_recogniser(corpus):
    table = [{"name": "samplenew3_00100000", "sentence": "What a fence"}, {"name": "x", "sentence": "never asked for"}]
    write_csv(corpus / "asr.csv", table)
    data = MER2024(root=corpus, subtitles=[corpus / "asr.csv"], subtitle_column="sentence")
    assert [s.target.text for s in data.samples("test")] == ["What a fence"] + [""] * 5
    with pytest.raises(ValueError, match="asr.csv has the columns .*english is not"):
        MER2024(root=corpus, subtitles=[corpus / "asr.csv"]).samples("test")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (names("happy", "afraid"), r"unknown label 'afraid' in row 3 \(s1\); expected one of happy, sad, neutral"),
        (names(""), r"unknown label '' in row 2 \(s0\)"),
        ([{"name": " ", "discrete": "sad"}], "the column name is empty in row 2"),
        ([{"names": "s0", "discrete": "sad"}], "name is not .closest to name: names"),
        ([*names("sad"), *names("happy")], "several rows with different contents for s0"),
        ([{"name": "sample_00000003", "discrete": "sad"}], "1 names stand both in .*disdim.csv and in .*semi.csv: s"),
    ],
)
def test_damaged_lists_are_refused(corpus, table, message):
    write_csv(corpus / "reference-semi.csv", table)
    with pytest.raises(ValueError, match=message):
        MER2024(root=corpus).samples("test")


def test_missing_list_other_case_repeated_row_and_encoding(corpus):
    (corpus / "reference-noise.csv").unlink()
    with pytest.raises(FileNotFoundError, match="MER2024: no reference-noise.csv .*apply with the agreement"):
        MER2024(root=corpus, track="noise").samples("test")
    write_csv(corpus / "reference-semi.csv", [*names("Happy", " sad "), *names("Happy")], encoding="utf-8-sig")
    write_csv(corpus / "label-transcription.csv", [{"name": "s0", "english": "It’s here"}], encoding="cp1252")
    reading = MER2024(root=corpus).reading("test")
    assert [s.target.label for s in reading.samples] == ["happy", "sad"]
    assert reading.excluded == {"s0 (row 4)": "repeats an earlier row word for word"}
    assert reading.notes["labels written in another case or padded"] == 3
    assert reading.samples[0].target.text == "It’s here"
    assert reading.notes["label-transcription.csv is not UTF-8, read as cp1252"] == 1
    (corpus / "reference-semi.csv").write_text("name,discrete\ns0,happy\n", encoding="utf-16")
    with pytest.raises(ValueError, match="holds zero bytes: UTF-16"):
        MER2024(root=corpus).samples("test")


def test_a_clip_without_sound_is_a_matter_of_the_decoder(corpus):
    clip(corpus / "MER2024_semi/samplenew3_00100000.mp4", 0, sound=False)
    turn = MER2024(root=corpus).samples("test")[0].target
    assert turn.audio == turn.video and read_frames(turn.video, n=1).shape[0] == 1
    with pytest.raises(Unreadable):
        read_waveform(turn.audio)


@pytest.mark.usefixtures("one_threaded", "elsewhere")
def test_a_language_model_reads_the_words_and_answers_in_the_corpus_labels(tmp_path):
    corpus = write_mer2024(tmp_path / "mer", sizes=(180, 12, 6))
    (corpus / "video-unlabeled").mkdir()
    (corpus / "video-unlabeled" / "one.mp4").touch()
    make_llm(tmp_path / "llm")
    run = fit_corpus(tmp_path, "CausalLM", "MER2024", corpus, 6, model__llm=tmp_path / "llm", data__batch_size=6)
    zoo("test", f"--ckpt_path={run}")
    said = metrics(run)
    assert (said["corpus"], said["eval_protocol"], said["n"]) == ("mer2024", "mer2024_semi", 12)
    assert said["population"]["n_official"] == 1169 and said["population"]["notes"]["clips missing"] == 12
    assert set(said["per_class"]) == set(MER2024.labels.names) and said["weighted_f1"] > 0.5
    zoo("test", f"--ckpt_path={run}", "--data.track=noise")
    assert (metrics(run)["eval_protocol"], metrics(run)["n"]) == ("mer2024_noise", 6)
    zoo("predict", f"--ckpt_path={run}", "--data.track=unlabeled")
    assert [(r["id"], r["label"]) for r in rows(run)] == [("mer2024/test/one", None)]
    assert "1 of 1 rows have no label to score" in refused("test", f"--ckpt_path={run}", "--data.track=unlabeled")
