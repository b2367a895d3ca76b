import hashlib
import json
import multiprocessing
import re
import subprocess
import time
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from tests.data.miniature import COLUMNS
from tests.runs_helper import refused, zoo
from zoo.data import MELD, Synthetic
from zoo.data.meld import CLIPS
from zoo.media import read_frames, read_waveform
from zoo.prepare.sitcom import share_out
from zoo.sitcom import clips, faces, questions, release, truth
from zoo.sitcom.cues import LABELS
from zoo.sitcom.posteriors import posterior
from zoo.sitcom.settings import Settings

SIZES = {"train": 2, "dev": 1, "test": 1}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("release") / "sitcom"
    release.write(out, SIZES, corpus_seed=3, workers=2)
    return out


def files(root):
    every_file = (p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in every_file}


def every(root, split):
    return [u for d in Synthetic(root=root).dialogues(split) for u in d.utterances]


# ---- the files
def test_same_seed_same_files(written, tmp_path):
    release.write(tmp_path / "again", SIZES, corpus_seed=3, workers=1)
    assert files(tmp_path / "again") == files(written)  # clips included, byte by byte


def test_another_seed_another_corpus(written, tmp_path):
    release.write(tmp_path / "other", SIZES, corpus_seed=4)
    other, own = files(tmp_path / "other"), files(written)
    shared = set(other) & set(own)
    assert not {name for name in shared if other[name] == own[name]} and len(shared) > 10


def test_wild_keeps_the_plot_and_changes_what_is_seen_and_heard(written, tmp_path):
    release.write(tmp_path / "wild", SIZES, corpus_seed=3, settings=Settings(domain="wild"))
    a, b = (pd.read_csv(root / "test_sent_emo.csv") for root in (written, tmp_path / "wild"))
    assert (a["Emotion"] == b["Emotion"]).all() and (a["Speaker"] == b["Speaker"]).all()
    assert not (a["Utterance"] == b["Utterance"]).any()
    clip = f"{CLIPS['test']}/dia0_utt0.mp4"
    studio, wild = (read_frames(root / clip).astype(float) for root in (written, tmp_path / "wild"))
    assert np.abs(studio - wild).mean() > 15


def test_layout(written):
    for split in SIZES:
        table = pd.read_csv(written / f"{split}_sent_emo.csv")
        assert list(table) == list(COLUMNS)
        assert table["StartTime"].str.fullmatch(r"\d\d:\d\d:\d\d,\d{3}").all()
        keys = {f"dia{d}_utt{u}" for d, u in zip(table["Dialogue_ID"], table["Utterance_ID"], strict=True)}
        assert {p.name for p in (written / CLIPS[split]).iterdir()} == {f"{k}.mp4" for k in keys}
        for kind in ("audio", "video"):
            assert set(json.loads((written / f"{kind}_description_{split}.json").read_text())) == keys


def test_clips_show_what_was_rendered(written):
    """What comes out of the decoder is what went in, but for compression: right frames, right length, sound in time."""
    corpus = Synthetic(root=written)
    dialogue = corpus.dialogues("test")[0]
    for u in dialogue.utterances[:4]:
        path = written / CLIPS["test"] / f"{u.id}.mp4"
        picture, wave = clips.render(u, dialogue.place, f"{release.split_seed(3, 'test')}/{u.id}")
        frames, sound = read_frames(path), read_waveform(path)
        assert frames.shape == (len(picture), 3, faces.SIZE, faces.SIZE) and len(picture) == round(10 * u.seconds)
        difference = np.abs(frames.transpose(0, 2, 3, 1).astype(float) - picture)
        assert difference.mean() < 4
        others = [np.abs(frames[0].transpose(1, 2, 0).astype(float) - p).mean() for p in picture]
        assert int(np.argmin(others)) == 0
        assert abs(len(sound) - len(wave)) <= 1024 and np.corrcoef(sound[: len(wave)], wave[: len(sound)])[0, 1] > 0.97


def test_the_picture_does_not_show_the_prosody(written):
    """Lips move to a voice at rest, so that the face alone has the ceiling that is stated."""
    dialogue = Synthetic(root=written).dialogues("test")[0]
    u = dialogue.utterances[0]
    other = type(u)(**vars(u) | {"choices": {**u.choices, "voice": (("prosody", (1.0,) * 6),)}})
    pictures, waves = zip(*(clips.render(x, dialogue.place, "seed") for x in (u, other)), strict=True)
    assert (pictures[0] == pictures[1]).all() and (waves[0] != waves[1]).any()


def test_truth(written):
    rows = [json.loads(line) for line in (written / "truth.jsonl").read_text().splitlines()]
    expected = {f"synthetic/{split}/{u.id}": u for split in SIZES for u in every(written, split)}
    assert [r["id"] for r in rows] == list(expected)
    for row in rows:
        u = expected[row["id"]]
        assert row["label"] == u.label and row["text_mode"] == u.truth.text_mode
        assert len(row["posteriors"]) == 15 + 2
        for given in (("text",), ("face", "voice"), ("text", "descriptions", "face", "voice")):
            name = " + ".join(g for g in truth.MODALITIES if g in given)
            np.testing.assert_allclose(row["posteriors"][name], posterior(u, given), atol=1e-6)
        assert row["labels"] == list(LABELS)
        assert row["expression"]["mouth_curve"] == pytest.approx(u.expression[4], abs=1e-6)


def test_rationales_say_what_is_true():
    seen = Counter()
    for d in Synthetic(test_dialogues=60).dialogues("test"):
        for u in d.utterances:
            said = truth.rationale(u)
            assert said.endswith(f"So the emotion is {u.label}.")
            assert ("which misleads" in said) == ("misleading" in (u.truth.face_state, u.truth.voice_state))
            for what in ("face", "voice"):
                state, shown = getattr(u.truth, f"{what}_state"), getattr(u.truth, f"{what}_shown")
                assert (f"The {what} shows nothing." in said) == (state == "absent")
                assert (shown in re.search(rf"The {what} [^.]*\.", said)[0]) == (state != "absent")
                seen[what, state] += 1
    assert len(seen) == 8


def test_questions(written):
    rows = [json.loads(line) for line in (written / "questions.jsonl").read_text().splitlines()]
    assert all(r["answer"] in r["choices"] and r["question"].endswith("?") for r in rows)
    places = {
        f"synthetic/{split}/{u.id}": d.place
        for split in SIZES
        for d in Synthetic(root=written).dialogues(split)
        for u in d.utterances
    }
    by_id = {}
    for r in rows:
        by_id.setdefault(r["id"], []).append(r["answer"])
    assert by_id == {key: [questions.NUMBERS[p.people], p.wall, p.object, p.place] for key, p in places.items()}


# ---- the readers
def test_both_readers_read_it(written):
    for corpus, name in ((Synthetic(root=written), "synthetic"), (MELD(root=written, descriptions=[written]), "meld")):
        samples = corpus.samples("train")
        utterances = every(written, "train")
        assert [s.id for s in samples] == [f"{name}/train/{u.id}" for u in utterances]
        assert [s.target.text for s in samples] == [u.text for u in utterances]
        assert [dict(s.target.descriptions) for s in samples] == [dict(u.descriptions) for u in utterances]
        assert all(s.target.video.is_file() and s.target.audio == s.target.video for s in samples)
    assert Synthetic(root=written).reading("train").report() == {
        "n_used": len(utterances),
        "n_official": len(utterances),
        "excluded": {},
        "notes": {},
    }


def test_written_and_in_memory_are_one_corpus(written):
    memory = Synthetic(corpus_seed=3, **{f"{split}_dialogues": n for split, n in SIZES.items()})
    for split in SIZES:
        assert memory.dialogues(split) == Synthetic(root=written).dialogues(split)
        assert [s.target.text for s in memory.samples(split)] == [
            s.target.text for s in Synthetic(root=written).samples(split)
        ]


def test_a_missing_clip_is_counted(written, tmp_path):
    subprocess.run(["cp", "-r", str(written), str(tmp_path / "copy")], check=True)
    (tmp_path / "copy" / CLIPS["test"] / "dia0_utt1.mp4").unlink()
    corpus = Synthetic(root=tmp_path / "copy")
    assert corpus.samples("test")[1].target.video is None
    assert corpus.reading("test").report()["notes"] == {"clips missing": 1}


# ---- what is refused
def test_root_and_options_must_agree(written):
    assert Synthetic(root=written, corpus_seed=3, train_dialogues=2, domain="studio").corpus_seed == 3
    for options, said in (
        ({"corpus_seed": 0}, "corpus_seed 3, not 0"),
        ({"domain": "wild"}, "domain studio, not wild"),
        ({"test_dialogues": 9}, "test_dialogues 1, not 9"),
    ):
        with pytest.raises(ValueError, match=said):
            Synthetic(root=written, **options)


def test_no_corpus_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="zoo prepare synthetic"):
        Synthetic(root=tmp_path)
    (tmp_path / "corpus.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="format 0"):
        Synthetic(root=tmp_path)


def test_nothing_is_overwritten(written, tmp_path):
    before = files(written)
    with pytest.raises(FileExistsError, match="not empty"):
        release.write(written, SIZES)
    assert files(written) == before
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial" / "corpus.json").write_text("{}")
    with pytest.raises(FileExistsError, match="other settings"):
        release.write(tmp_path / "x", SIZES)


def test_a_stopped_run_goes_on(written, tmp_path):
    """Killed in the middle of the clips: started again it makes what is missing, and the result is the same."""
    options = {"corpus_seed": 3, "workers": 1}
    context = multiprocessing.get_context("fork")  # a new Python would import everything again
    process = context.Process(target=release.write, args=(tmp_path / "out", SIZES), kwargs=options)
    process.start()
    partial = tmp_path / "out.partial"
    while len(list(partial.rglob("*.mp4"))) < 3 and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    made = {p: p.stat().st_mtime_ns for p in partial.rglob("*.mp4")}
    assert made and not (tmp_path / "out").exists()
    release.write(tmp_path / "out", SIZES, corpus_seed=3)
    assert files(tmp_path / "out") == files(written)
    release.write(tmp_path / "out", SIZES, corpus_seed=3)  # stopped after that: there is nothing more to write
    assert files(tmp_path / "out") == files(written)
    kept = {p: (tmp_path / "out" / p.relative_to(partial)).stat().st_mtime_ns for p in made}
    assert kept == made  # not made again


@pytest.mark.parametrize(
    "dialogues, shares, sizes",
    [
        (100, (0.7, 0.1, 0.2), {"train": 70, "dev": 10, "test": 20}),
        (3, (0.7, 0.1, 0.2), {"train": 1, "dev": 1, "test": 1}),
        (5, (0.1, 0.1, 0.8), {"train": 1, "dev": 1, "test": 3}),
        (10, (7, 1, 2), {"train": 7, "dev": 1, "test": 2}),
    ],
)
def test_share_out(dialogues, shares, sizes):
    assert share_out(dialogues, shares) == sizes


# ---- the command
def test_command(tmp_path, capsys):
    zoo("prepare", "synthetic", "--seed", "1", "--dialogues", "4", "--out", tmp_path / "s", "--report")
    said = capsys.readouterr().out
    assert re.search(r"train \d+ \(2 dialogues\), dev \d+ \(1 dialogues\), test \d+ \(1 dialogues\)", said)
    assert re.search(r"text \+ descriptions \+ face \+ voice +│ +\d", said) and "Best reachable" in said
    from PIL import Image

    sheet = Image.open(tmp_path / "s" / "contact_sheet.png")
    assert sheet.width > 1000 and len(set(sheet.convert("L").resize((50, 50)).get_flattened_data())) > 20
    assert "not empty" in refused("prepare", "synthetic", "--dialogues", "4", "--out", tmp_path / "s")
    assert "at least 3 dialogues" in refused("prepare", "synthetic", "--dialogues", "2", "--out", tmp_path / "t")
    assert "sum to 1" in refused("prepare", "synthetic", "--text_modes", ".5", ".5", ".5", "--out", tmp_path / "t")
    assert not (tmp_path / "t").exists()

    zoo("prepare", "media", "--root", tmp_path / "s", "--cache", tmp_path / "cache", "--frames", "2")
    assert re.search(r"video: \d+ files", capsys.readouterr().out) and list((tmp_path / "cache").rglob("*.npy"))
    (tmp_path / "s" / CLIPS["test"] / "dia0_utt0.mp4").write_bytes(b"")
    assert "2 requests failed" in refused("prepare", "media", "--root", tmp_path / "s", "--cache", tmp_path / "cache")
    assert re.search(r"unreadable: .*dia0_utt0\.mp4.*empty", capsys.readouterr().out)
