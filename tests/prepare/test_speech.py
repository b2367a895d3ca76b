"""Voices in words: known waveforms land in the right bins, and the test split never moves a threshold."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.builders import make_corpus
from tests.runs_helper import refused, zoo
from zoo.data import MELD
from zoo.data.meld import CLIPS
from zoo.media.speech import MEASURES, Bins, NotSpeech, fit_bins, measure
from zoo.sitcom.clips import encode

RATE = 16_000


def voice(hertz: float = 150, amplitude: float = 0.1, syllables: float = 4, seconds: float = 2.0) -> np.ndarray:
    """A buzz with harmonics whose level rises and falls."""
    time = np.arange(round(seconds * RATE)) / RATE
    buzz = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 8))
    return (amplitude * 0.5 * (1 - np.cos(2 * np.pi * syllables * time)) * buzz).astype(np.float32)


# ---- measurements
@pytest.mark.parametrize("hertz", [80, 110, 160, 233, 340, 470])
def test_pitch(hertz):
    got = measure(voice(hertz))
    assert got["pitch"] == pytest.approx(hertz, rel=0.005) and got["pitch variation"] < 1
    noisy = voice(hertz) + 0.003 * np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32)
    assert measure(noisy)["pitch"] == pytest.approx(hertz, rel=0.02)


def test_a_pitch_that_moves():
    time = np.arange(2 * RATE) / RATE
    phase = 2 * np.pi * (200 * time + 40 / (2 * np.pi * 2) * np.sin(2 * np.pi * 2 * time))  # 200 +- 40 Hz
    wave = 0.1 * sum(np.sin(k * phase) / k for k in range(1, 8))
    got = measure(wave.astype(np.float32))
    assert got["pitch"] == pytest.approx(200, rel=0.02) and got["pitch variation"] == pytest.approx(28, rel=0.1)


def test_loudness_is_in_decibels():
    quiet, loud = measure(voice(amplitude=0.02)), measure(voice(amplitude=0.2))
    assert loud["loudness"] - quiet["loudness"] == pytest.approx(20, abs=0.1)
    tone = 0.1 * np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE)
    got = measure(tone.astype(np.float32))
    assert got["loudness"] == pytest.approx(20 * np.log10(0.1 / np.sqrt(2) / 2e-5), abs=0.1)
    assert got["loudness variation"] < 0.1 < 3 < loud["loudness variation"]


@pytest.mark.parametrize("syllables", [2, 4, 6])
def test_rate(syllables):
    assert measure(voice(syllables=syllables))["rate"] == pytest.approx(syllables, abs=0.5)


def test_what_has_no_pitch():
    hiss = 0.1 * np.random.default_rng(0).standard_normal(RATE)
    assert set(measure(hiss.astype(np.float32))) == {"loudness", "loudness variation"}
    for wave, why in ((np.zeros(RATE), "silent"), (voice(seconds=0.05), "lasts 0.05 s"), (voice(seconds=61), "61")):
        with pytest.raises(NotSpeech, match=why):
            measure(wave.astype(np.float32))


# ---- bins
def test_words_and_thresholds():
    train = [("Ann", {"pitch": float(p)}) for p in range(100, 201)] + [("Bob", {"pitch": 50.0})] * 4
    bins = fit_bins(train, least=101)
    assert bins.speakers.keys() == {"Ann"} and bins.spoken["Ann"] == {"pitch": 101} and bins.n == {"pitch": 105}
    assert bins.speakers["Ann"]["pitch"] == (110, 125, 175, 190)
    words = [bins.word("Ann", "pitch", v) for v in (109, 110, 124, 125, 175, 176, 190, 191)]
    assert words == ["very low", "low", "low", "medium", "medium", "high", "high", "very high"]
    assert bins.word("Bob", "pitch", 109) == bins.word("Somebody new", "pitch", 109) == "low"  # by all speakers
    constant = fit_bins([("", {"rate": 3.0})] * 5, least=1)
    assert [constant.word("", "rate", v) for v in (2, 3, 4)] == ["very slow", "medium", "very fast"]
    assert constant.speakers == {}  # nobody has no name
    with pytest.raises(ValueError, match="no training utterance"):
        fit_bins([], 1)


def test_sentences():
    flat = Bins(dict.fromkeys(MEASURES, (1.0, 2.0, 3.0, 4.0)), {}, {}, {})
    assert flat.sentence("", dict.fromkeys(MEASURES, 2.5)) == (
        "normally loud voice, normally even; medium pitch, normally lively; medium pace"
    )
    assert flat.sentence("", {"loudness": 9.0, "rate": 0.0}) == "very loud voice; very slow pace"


# ---- the command
@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """MELD's layout; every utterance of train a little higher than the one before, five of test special."""
    root = make_corpus(tmp_path_factory.mktemp("speech") / "meld", (3, 1, 2))
    picture = np.zeros((5, 32, 32, 3), np.uint8)
    for split, place in CLIPS.items():
        (root / place).mkdir()
        for i, s in enumerate(MELD(root=root).samples(split)):
            wave = voice(100 + 10 * i, 0.05, seconds=1.0)
            special = dict(enumerate((voice(450, 0.3), voice(80, 0.01), np.zeros(RATE, np.float32))))
            if split == "test":
                wave = special.get(i, wave)
            (root / place / f"{s.target.id}.mp4").write_bytes(encode(picture, wave))
    ids = [s.target.id for s in MELD(root=root).samples("test")]
    (root / CLIPS["test"] / f"{ids[3]}.mp4").write_bytes(b"no clip")
    (root / CLIPS["test"] / f"{ids[4]}.mp4").unlink()
    return root


@pytest.fixture(scope="module")
def described(corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    zoo("prepare", "speech", "--data=MELD", f"--data.root={corpus}", f"--out={out}", "--least=1000")
    return out


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_clips_become_descriptions(corpus, described):
    samples = MELD(root=corpus, descriptions=[described]).samples("test")  # the corpus' own reader takes the files
    said = [s.target.descriptions.get("speech") for s in samples]
    assert said[0].startswith("very loud voice") and "very high pitch" in said[0]
    assert said[1].startswith("very quiet voice") and "very low pitch" in said[1]
    assert said[2:5] == [None, None, None] and all(said[5:])


def test_what_is_left_out_is_counted_and_listed(corpus, described):
    record, ids = read(described / "speech_bins.json"), [s.target.id for s in MELD(root=corpus).samples("test")]
    listed = record["left out"]["test"]
    assert set(listed) == set(ids[2:5]) and record["left out"]["train"] == {}
    assert "silent" in listed[ids[2]] and "broken" in listed[ids[3]] and listed[ids[4]] == "no clip"
    counts = record["counts"]
    assert counts["test"]["used"] == len(ids) - 3 and counts["test"]["left out"] == 3
    assert record["all"]["pitch"]["n"] == counts["train"]["used"] == counts["train"]["utterances"]


def test_the_other_splits_never_move_a_threshold(corpus, described, tmp_path):
    with (described / "speech_features.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    before = read(described / "speech_bins.json")
    train = [float(r["avg_pitch"]) for r in rows if r["split"] == "train"]
    assert before["all"]["pitch"]["thresholds"] == pytest.approx(np.percentile(train, [10, 25, 75, 90]), abs=1e-3)
    for row in rows:
        if row["split"] != "train":
            row |= {column: str(1000 + float(row[column] or 0)) for column, _ in MEASURES.values()}
    after = _described(corpus, rows, tmp_path / "moved")
    assert _close(after["all"], before["all"])
    said = read(tmp_path / "moved" / "speech_description_test.json").values()
    assert said and all("very loud" in text and "very high" in text and "very fast" in text for text in said)
    rows[0] |= {"avg_pitch": "nan", "pitch_std": "0.0"}  # train, though, does
    other = _described(corpus, rows, tmp_path / "train")["all"]
    assert not _close(other, before["all"])
    assert other["pitch"]["n"] == other["pitch variation"]["n"] == before["all"]["pitch"]["n"] - 1


def _close(a: dict, b: dict) -> bool:
    return all(np.allclose(a[m]["thresholds"], b[m]["thresholds"], atol=1e-3) and a[m]["n"] == b[m]["n"] for m in b)


def _described(corpus: Path, rows: list[dict], out: Path) -> dict:
    """speech_bins.json from a table instead of clips."""
    table = out.with_suffix(".csv")
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    zoo(
        "prepare",
        "speech",
        "--data=MELD",
        f"--data.root={corpus}",
        f"--features={table}",
        f"--out={out}",
        "--least=1000",
    )
    return read(out / "speech_bins.json")


def test_a_table_gives_what_the_clips_gave(corpus, described, tmp_path):
    with (described / "speech_features.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    record = _described(corpus, rows, tmp_path / "again")
    for split in ("train", "dev", "test"):
        name = f"speech_description_{split}.json"
        assert read(tmp_path / "again" / name) == read(described / name)
    assert set(record["left out"]["test"].values()) == {"no row in again.csv"}


@pytest.mark.parametrize(
    "change, said",
    [
        ({"avg_pitch": "high"}, "avg_pitch is 'high'; expected a number"),
        ({"id": "dia99_utt0"}, "keys are not in the corpus' train split"),
        (None, "has the columns"),
    ],
)
def test_a_wrong_table_is_refused(corpus, described, tmp_path, change, said):
    with (described / "speech_features.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0] |= change or {}
    if change is None:
        rows = [{k: v for k, v in row.items() if k != "avg_pitch"} for row in rows]
    table = tmp_path / "t.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    options = ("--data=MELD", f"--data.root={corpus}", f"--features={table}", f"--out={tmp_path / 'o'}")
    assert said in refused("prepare", "speech", *options)
    assert not (tmp_path / "o").exists()
