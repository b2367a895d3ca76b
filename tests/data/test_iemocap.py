import json
import re
import shutil
from collections import Counter

import pytest

from tests.builders import make_llm
from tests.data.miniature_iemocap import (
    NAMES,
    TURN,
    brightness,
    utterances,
    write,
    write_dialogue,
    write_iemocap,
    write_media,
)
from tests.runs_helper import fit_corpus, metrics, parsed_data, rows, zoo
from zoo.data.iemocap import CLASSES, HAPPY_IN_THE_PAPERS, IEMOCAP, OFFICIAL
from zoo.data.iemocap_files import DIALOGUES, NAME
from zoo.media import read_frames, read_waveform

FIRST = "Ses05F_impro01"
SPOKEN, RATED = (f"Session5/dialog/{part}/{FIRST}.txt" for part in ("transcriptions", "EmoEvaluation"))
FEWER = {"dialogues of Session5 missing": 28}  # the miniature has three of 31


@pytest.fixture
def root(tmp_path):
    return write_iemocap(tmp_path / "iemocap")


def said(reading, *also_without):
    """The notes, without those every reading of the miniature has."""
    usual = (*FEWER, "sur is none of the 6 classes, context only", "xxx is none of the 6 classes, context only")
    return {k: v for k, v in reading.report()["notes"].items() if k not in (*usual, *also_without)}


def replaced(root, path, old, new):
    text = (root / path).read_text()
    assert old in text
    (root / path).write_text(text.replace(old, new, 1))


# ---- what comes out
def test_samples(root):
    reading = IEMOCAP(root=root).reading("test")
    assert len(reading.samples) == 3 * 6 and reading.excluded == {}
    second = reading.samples[1]
    assert (second.id, second.dialogue) == (f"iemocap6/test/{FIRST}_M000", f"iemocap6/test/{FIRST}")
    assert (second.target.speaker, second.target.label) == ("M", "angry")
    assert second.target.text == utterances(FIRST)[1][4]
    assert [turn.id for turn in second.history] == [f"{FIRST}_F000"]
    assert (second.target.video, second.target.audio, second.target.start, second.target.crop) == (None,) * 4
    assert reading.report()["notes"] == FEWER | {
        "xxx is none of the 6 classes, context only": 3,
        "sur is none of the 6 classes, context only": 3,
    }
    assert (reading.official, IEMOCAP.labels.names) == (1623, tuple(CLASSES[6]))


def test_class_sets(root):
    labels = ["neu", "ang", "sad", "hap", "exc", "fru", "sur"]  # of the miniature's dialogues, and one xxx
    expected = {
        4: ["neutral", "angry", "sad", "happy", "happy", None, None],
        6: ["neutral", "angry", "sad", "happy", "excited", "frustrated", None],
        8: ["neutral", "anger", "sadness", "joy", "excitement", "frustration", "surprise"],
        10: ["neutral", "anger", "sadness", "happiness", "excitement", "frustration", "surprise"],
    }
    for classes, words in expected.items():
        data = IEMOCAP(root=root, classes=classes)
        assert len(data.labels) == classes and data.labels.corpus == f"iemocap{classes}"
        by_id = {s.target.id: s.target.label for s in data.samples("test")}
        got = {code: by_id.get(key) for key, code, *_ in utterances(FIRST)}
        assert [got[code] for code in labels] == words and got["xxx"] is None
        assert all(s.label >= 0 for s in data.samples("test"))
    apart = IEMOCAP(root=root, classes=4, merge_excited=False)
    assert apart.labels.corpus == "iemocap4_without_excited" and len(apart.samples("test")) == 3 * 4


def test_class_sets_are_the_papers():
    """The release's counts per code, as its users state them, add up to what is published per class set."""
    counts = {
        "xxx": 2507,
        "fru": 1849,
        "neu": 1708,
        "ang": 1103,
        "sad": 1084,
        "exc": 1041,
        "hap": 595,
        "sur": 107,
        "fea": 40,
        "oth": 3,
        "dis": 2,
    }
    sums = {n: sum(counts[code] for codes in words.values() for code in codes) for n, words in CLASSES.items()}
    assert sum(counts.values()) == 10039 and sums == {4: 5531, 6: 7380, 8: 7527, 10: 7532}
    assert sums[6] + len(HAPPY_IN_THE_PAPERS) == sum(OFFICIAL.values()) == 5163 + 647 + 1623 == 7433
    assert all(re.fullmatch(rf"{NAME}_[FM]\d\d\d", key) for key in HAPPY_IN_THE_PAPERS)
    assert Counter(key[4] for key in HAPPY_IN_THE_PAPERS) == {"1": 8, "2": 8, "3": 36, "5": 1}
    assert sum(DIALOGUES.values()) == 151 and DIALOGUES[5] == 31


def test_no_agreement(root, tmp_path):
    happy = "Ses05F_impro07"
    assert f"{happy}_M010" in HAPPY_IN_THE_PAPERS
    turns = {happy: [("M", "neu")] * 10 + [("M", "xxx"), ("M", "xxx")]}
    write_dialogue(root / "Session5", happy, turns[happy])
    own = [IEMOCAP(root=root, unagreed_labels=how).reading("test") for how in ("unlabelled", "papers", "drawn")]
    labels = [{s.target.id: s.target.label for s in r.samples} for r in own]
    assert f"{happy}_M010" not in labels[0] and labels[1][f"{happy}_M010"] == "happy"
    assert labels[1].keys() - labels[0].keys() == {f"{happy}_M010"}
    assert own[1].notes["xxx, happy as in the papers"] == 1
    drawn = {key: label for key, label in labels[2].items() if key not in labels[0]}
    assert len(drawn) == 5 and set(drawn.values()) <= {"angry", "frustrated", "sad", "neutral"}
    xxx = {key for key, code, *_ in utterances(FIRST) if code == "xxx"}
    for seed in range(20):  # never the actress' own opinion, surprise
        ten = IEMOCAP(root=root, classes=10, unagreed_labels="drawn", split_seed=seed).samples("test")
        assert {s.target.label for s in ten if s.target.id in xxx} < {"anger", "frustration", "sadness", "neutral"}
    assert own[2].notes["xxx, one of the annotators' words drawn"] == 5
    seeds = [IEMOCAP(root=root, unagreed_labels="drawn", split_seed=s).samples("test") for s in range(8)]
    assert len({tuple(s.target.label for s in samples) for samples in seeds}) > 1
    assert IEMOCAP(unagreed_labels="drawn").protocol == "all_utterances_xxx_drawn"


def test_unscored_utterances_stay_as_context_or_leave(root):
    last = IEMOCAP(root=root, classes=8).samples("test")[6]  # the dialogue's last, a surprise
    assert [turn.label for turn in last.history][-2:] == ["frustration", None]
    dropped = IEMOCAP(root=root, classes=8, out_of_set_utterances="drop").reading("test")
    assert [turn.label for turn in dropped.samples[6].history][-1] == "frustration"
    assert len(dropped.samples[6].history) == len(last.history) - 1
    assert dropped.notes["xxx is none of the 8 classes, left out"] == 3


def test_splits(root, tmp_path):
    def names(data, split):
        return {s.dialogue.split("/")[-1] for s in data.samples(split)}

    data = IEMOCAP(root=root)
    train, dev, test = (names(data, split) for split in data.splits())
    assert (len(train), len(dev), len(test)) == (11, 1, 3) and not train & dev and {n[4] for n in test} == {"5"}
    assert names(IEMOCAP(root=root), "dev") == dev
    assert {frozenset(names(IEMOCAP(root=root, split_seed=s), "dev")) for s in range(5)} != {frozenset(dev)}
    other = IEMOCAP(root=root, test_session=2)
    assert {n[4] for n in names(other, "test")} == {"2"} and "2" not in {n[4] for n in names(other, "train")}
    assert (other.protocol, other.reading("test").official) == ("all_utterances_session_2", None)
    (tmp_path / "dev.txt").write_text("Ses01F_impro01\nSes04F_script01_1\n")
    given = IEMOCAP(root=root, dev_dialogues=tmp_path / "dev.txt")
    assert names(given, "dev") == {"Ses01F_impro01", "Ses04F_script01_1"} and len(names(given, "train")) == 10
    (tmp_path / "dev.txt").write_text("Ses05F_impro01 Ses01F_impro09")
    with pytest.raises(ValueError, match="dev.txt names Ses01F_impro09, Ses05F_impro01; expected dialogues of the"):
        IEMOCAP(root=root, dev_dialogues=tmp_path / "dev.txt").reading("dev")


def test_twelve_of_the_papers_120_dialogues_are_dev(tmp_path):
    numbers = [f"impro{i:02d}" for i in range(1, 31)]
    write_iemocap(tmp_path, numbers, {f"Ses0{k}F_{n}": [("F", "neu")] for k in range(1, 6) for n in numbers})
    data = IEMOCAP(root=tmp_path)
    assert [len(data.samples(split)) for split in data.splits()] == [108, 12, 30]


def test_speakers_names(root):
    data = IEMOCAP(root=root, speakers={"F": "Person A", "M": "Person B"})
    assert [turn.speaker for turn in data.samples("test")[2].history] == ["Person A", "Person B"]


def test_pieces(tmp_path):
    name = "Ses05F_impro01"
    sizes = {}
    for size in (3, 5, 14, 40):
        write_iemocap(tmp_path / str(size), ["impro01"], {name: [("F", "neu"), ("M", "sad")] * 20})
        write_dialogue(tmp_path / str(size) / "Session5", name, ([("F", "neu"), ("M", "sad")] * 20)[:size])
        for seed in range(20):
            data = IEMOCAP(
                root=tmp_path / str(size), subdialogue_lengths=(5, 14), protocol="last_utterance", split_seed=seed
            )
            samples = data.samples("test")
            lengths = [len(s.history) + 1 for s in samples]
            assert sum(lengths) == size and data.protocol == "last_utterance_of_pieces_5_14"
            first = lengths[0]
            assert all(n == first for n in lengths[:-1]) and (size < 14 or 5 <= first <= 14 + 13)
            assert first <= lengths[-1] < 2 * first and len({s.dialogue for s in samples}) == 1
            assert samples[-1].target.id.endswith(f"{(size - 1) // 2:03d}")
            sizes.setdefault(size, set()).add(tuple(lengths))
    assert sizes[3] == {(3,)} and len(sizes[40]) > 3  # a short dialogue is one piece; lengths are drawn
    every = IEMOCAP(root=tmp_path / "40", subdialogue_lengths=(5, 5)).samples("test")
    assert [len(s.history) for s in every] == [0, 1, 2, 3, 4] * 8  # nothing before the piece is seen
    whole = IEMOCAP(root=tmp_path / "40", protocol="last_utterance").reading("test")
    assert len(whole.samples) == 1 and whole.notes["not the last to be classified, context only"] == 39


def test_the_last_utterance_is_the_last_with_a_label(tmp_path):
    write_iemocap(tmp_path, ["impro01"], {FIRST: [*TURN, ("F", "xxx")]})
    (sample,) = IEMOCAP(root=tmp_path, protocol="last_utterance").samples("test")
    assert sample.target.label == "frustrated" and len(sample.history) == 5


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("classes", 7, "classes is 4 or 6 or 8 or 10, got 7"),
        ("unagreed_labels", "happy", "unagreed_labels is unlabelled or"),
        ("subdialogue_lengths", (9, 5), "shortest and the longest length"),
        ("speakers", {"F": "Eve"}, "speakers names F and M"),
        ("test_session", 6, "test_session is 1 or"),
        ("out_of_set_utterances", "no", "out_of_set_utterances is"),
        ("protocol", "last", "protocol is"),
    ],
)
def test_options_are_checked(option, value, message):
    with pytest.raises(ValueError, match=message):
        IEMOCAP(**{option: value})


# ---- pictures and sound
def test_the_frame_shows_the_speaker_in_the_middle_of_the_utterance(root):
    write_media(root, FIRST)
    reading = IEMOCAP(root=root).reading("test")
    turns = [s.target for s in reading.samples if s.dialogue.endswith(FIRST)]
    assert len(turns) == 6
    for turn, (key, _, start, end, _) in zip(turns, utterances(FIRST), strict=False):
        assert (turn.id, turn.start, turn.end, turn.video.name) == (key, start, end, f"{FIRST}.avi")
        assert turn.crop == ("left" if "_F0" in key else "right")  # the actress wears the markers
        (frame,) = read_frames(turn.video, position=turn.frame_at)  # (3, H, W)
        width = frame.shape[2] // 2
        half = frame[:, :, :width] if turn.crop == "left" else frame[:, :, width:]
        red, green, blue = half[:, 4:-4, 4:-4].reshape(3, -1).mean(1)
        shown, dark = (green, blue) if turn.crop == "left" else (blue, green)
        assert abs(shown - brightness((start + end) / 2)) < 7 and red < 25 and dark < 25  # a second is 15 brighter
        assert len(read_waveform(turn.audio)) == 16_000 and turn.audio.parent.name == FIRST
    others = {"Ses05F_impro02", "Ses05F_script01_1"}
    assert said(reading) == {f"{n}: film missing": 1 for n in others} | {
        f"{n}: utterances without their wav": 8 for n in others
    }


def test_who_wears_the_markers_is_on_the_left(tmp_path):
    root = write_iemocap(tmp_path)
    write_dialogue(root / "Session5", "Ses05M_impro01")
    write_media(root, "Ses05M_impro01", seconds=1)
    turns = [s.target for s in IEMOCAP(root=root).samples("test") if "Ses05M" in s.dialogue]
    assert {(turn.id[15], turn.crop) for turn in turns} == {("M", "left"), ("F", "right")}


# ---- damage
def test_missing_folders(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="IEMOCAP needs its folder: give --data.root"):
        IEMOCAP().reading("train")
    with pytest.raises(FileNotFoundError, match="nowhere lacks Session1/dialog/transcriptions, .* got no folder.*SAIL"):
        IEMOCAP(root=tmp_path / "nowhere").reading("train")
    inner = root.rename(tmp_path / "IEMOCAP_full_release")
    assert len(IEMOCAP(root=tmp_path).samples("test")) == 18
    shutil.rmtree(inner / "Session3")
    with pytest.raises(FileNotFoundError, match="lacks Session3/dialog/transcriptions, Session3/dialog/EmoEval.*; "):
        IEMOCAP(root=tmp_path).reading("test")  # even though it is not the test session: damage is damage


def test_extra_files_and_folders(root):
    for name in ("notes.txt", "Ses05F_impro01 (copy).txt", "Ses02F_impro01.txt", "._Ses05F_impro01.txt"):
        (root / "Session5/dialog/EmoEvaluation" / name).write_text("x")
    (root / "Session5/dialog/EmoEvaluation/Categorical").mkdir()
    (root / "Session6").mkdir()
    data = IEMOCAP(root=root)
    extra = [
        f"Session5/dialog/EmoEvaluation/{n} is not of the release, ignored"
        for n in ("Ses02F_impro01.txt", "Ses05F_impro01 (copy).txt", "notes.txt")
    ]
    assert said(data.reading("test")) == dict.fromkeys(extra, 1)
    assert data.reading("train").notes["Session6 is not of the release, ignored"] == 1


def test_a_dialogue_in_one_folder_only(root):
    (root / SPOKEN).unlink()
    (root / "Session5/dialog/EmoEvaluation/Ses05F_impro02.txt").unlink()
    reading = IEMOCAP(root=root).reading("test")
    assert reading.excluded == {
        FIRST: "labels, but no transcription",
        "Ses05F_impro02": "transcription, but no labels: context only, nothing to classify",
    }
    assert len(reading.samples) == 6


def test_utterance_without_label_and_label_without_utterance(root):
    replaced(root, RATED, f"[0.5000 - 1.5000]\t{FIRST}_F000\tneu", f"[0.5000 - 1.5000]\t{FIRST}_F009\tneu")
    reading = IEMOCAP(root=root).reading("test")
    assert reading.excluded == {
        f"{FIRST}_F009": "label, but no line in the transcription",
        f"{FIRST}_F000": "no label: context only",
    }
    first = reading.samples[0]
    assert (first.target.id, [t.id for t in first.history]) == (f"{FIRST}_M000", [f"{FIRST}_F000"])


def test_film_without_sound_and_sound_without_film(root):
    for name in (FIRST, "Ses05F_impro02", "Ses05F_script01_1"):
        write_media(root, name, seconds=1)
    assert said(IEMOCAP(root=root).reading("test")) == {}
    (root / "Session5/sentences/wav" / FIRST / f"{FIRST}_M001.wav").rename(
        root / "Session5/sentences/wav" / FIRST / f"{FIRST}_M099.wav"
    )
    reading = IEMOCAP(root=root).reading("test")
    assert said(reading) == {f"{FIRST}: utterances without their wav": 1, f"{FIRST}: wavs of no utterance, not used": 1}
    assert [s.target.id for s in reading.samples if s.target.audio is None] == [f"{FIRST}_M001"]
    shutil.rmtree(root / "Session5/sentences")
    assert said(IEMOCAP(root=root).reading("test")) == {"Session5 has films, but no sentences/wav": 1}
    write_media(root, FIRST, seconds=1)
    shutil.rmtree(root / "Session5/dialog/avi")
    assert "Session5 has sentences/wav, but no dialog/avi/DivX" in said(IEMOCAP(root=root).reading("test"))


@pytest.mark.parametrize(
    "path, old, new, message",
    [
        (SPOKEN, " [000.5000-001.5000]:", ",0.5,1.5,", r"impro01.txt line 1 is .*F000,0.5,1.5,.*; expected lines of"),
        (
            SPOKEN,
            f"{FIRST}_M000",
            "Ses05F_impro02_M000",
            r"line 2 is .Ses05F_impro02_M.*expected lines of Ses05F_impro01",
        ),
        (SPOKEN, "[000.5000-001.5000]", "[002.5000-001.5000]", r"_F000 ends at 001.5000, but starts at 002.5000"),
        (
            SPOKEN,
            f"{FIRST}_F001",
            f"{FIRST}_F000",
            r"line 3: Ses05F_impro01_F000 stood before with another text or time",
        ),
        (
            RATED,
            "[0.5000 - 1.5000]\t",
            "0.5000\t1.5000\t",
            r"EmoEvaluation/Ses05F_impro01.txt line 3 is .*expected lines",
        ),
        (RATED, "\tneu\t", "\tbor\t", r"unknown label 'bor' \(Ses05F_impro01_F000\); expected one of ang, hap"),
        (RATED, f"{FIRST}_F001\tsad", f"{FIRST}_F000\tsad", r"Ses05F_impro01_F000 is sad, but neu before"),
    ],
)
def test_changed_lines(root, path, old, new, message):
    replaced(root, path, old, new)
    with pytest.raises(ValueError, match=message):
        IEMOCAP(root=root).reading("test")


@pytest.mark.parametrize("path", [SPOKEN, RATED])
def test_empty_or_foreign_files(root, path):
    for text in ("", "Who took it?\nNot me.\n"):
        (root / path).write_text(text)
        with pytest.raises(ValueError, match="Ses05F_impro01.txt holds no line like .*Use the released file"):
            IEMOCAP(root=root).reading("test")


def test_encodings(root):
    text = (root / SPOKEN).read_text()
    (root / SPOKEN).write_bytes(text.replace("Okay", "Ok’y").replace(".", "…", 0).encode("utf-16"))
    with pytest.raises(ValueError, match="zero bytes: UTF-16 or not a text file"):
        IEMOCAP(root=root).reading("test")
    (root / SPOKEN).write_bytes((text.splitlines()[0] + " It’s\n" + text.split("\n", 1)[1]).encode("cp1252"))
    reading = IEMOCAP(root=root).reading("test")
    assert reading.samples[0].target.text.endswith("It’s")
    assert said(reading) == {f"{FIRST}.txt is not UTF-8, read as cp1252": 1}


def test_peculiarities_of_the_release(root):
    """Remarks without a name, utterances that were never segmented, lines out of order, empty and repeated ones."""
    lines = (root / SPOKEN).read_text().splitlines()
    extra = [
        "M: [LAUGHTER]",
        "",
        f"{FIRST}_MXX0 [003.6000-003.7000]: Hm.",
        f"{FIRST}_FXX1: (breathes)",
        f"{FIRST}_F020 [013.0000-013.5000]:  ",
        lines[0],
    ]
    write(root / SPOKEN, [lines[1], lines[0], *lines[2:], *extra])
    reading = IEMOCAP(root=root).reading("test")
    plain = IEMOCAP(root=write_iemocap(root.parent / "plain")).reading("test")
    assert [s.id for s in reading.samples] == [s.id for s in plain.samples]
    assert [t.text for t in reading.samples[2].history] == [t.text for t in plain.samples[2].history]
    assert "Hm." in [t.text for t in reading.samples[3].history]
    assert reading.excluded == {
        f"{FIRST}_F020": "empty utterance",
        f"{FIRST}_F000 (line 14)": "repeats an earlier line word for word",
    }
    assert said(reading, "no label, context only") == {
        "lines without an utterance's name, not used": 2,
        "lines of XX utterances in another form, not used": 1,
        "utterances out of order in time, sorted": 8,
        "utterances the release has no rating of (XX in their names)": 1,
    }


def test_one_file_of_descriptions_for_all_sessions(root, tmp_path):
    keys = [key for k in range(1, 6) for n in NAMES for key, *_ in utterances(f"Ses0{k}F_{n}")]
    path = tmp_path / "multimodal_description.json"
    path.write_text(json.dumps({key: f"heard in {key}" for key in keys}))
    data = IEMOCAP(root=root, descriptions=[path])
    for split in data.splits():
        assert all(s.target.descriptions == {"multimodal": f"heard in {s.target.id}"} for s in data.samples(split))
        assert data.reading(split).notes["multimodal descriptions missing"] == 0
    path.write_text('{"dia0_utt0": "x", "dia0_utt1": "y"}')
    with pytest.raises(ValueError, match="2 of 2 keys are not in the corpus' test split"):
        IEMOCAP(root=root, descriptions=[path]).reading("test")


# ---- from the command line
def test_options_reach_the_command_line(root):
    data = parsed_data(
        "--data=zoo.data.iemocap.IEMOCAP",
        f"--data.root={root}",
        "--data.classes=10",
        "--data.subdialogue_lengths=[5, 14]",
        "--data.speakers={F: Person A, M: Person B}",
        "--data.protocol=last_utterance",
    )
    assert data.labels.corpus == "iemocap10" and data.speakers["M"] == "Person B"
    assert len(data.samples("test")) == 3


@pytest.mark.usefixtures("elsewhere")
def test_fit_and_test(root, tmp_path):
    model = {"model__template": "short", "model__window": 1, "model__lr": 0.01}
    data = {"data__classes": 8, "data__speakers": "{F: Eve, M: Sam}", "data__batch_size": 8}
    run = fit_corpus(
        tmp_path, "DialogueLLM", "IEMOCAP", root, 1, model__llm=make_llm(tmp_path / "llm"), **model, **data
    )
    zoo("test", f"--ckpt_path={run}")
    answers, result = rows(run), metrics(run)
    assert {r["label"] for r in answers} <= set(CLASSES[8]) and len(answers) == result["n"] == 3 * 7
    assert all(set(r["scores"]) == set(CLASSES[8]) for r in answers)
    assert answers[0]["id"] == f"iemocap8/test/{FIRST}_F000" and set(result["per_class"]) == set(CLASSES[8])
