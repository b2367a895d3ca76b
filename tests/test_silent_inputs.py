"""What would make a result mean nothing is refused, and what was not whole is listed: clips, prompts, numbers."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import sys

import numpy as np
import pytest
import soundfile

from tests.builders import make_corpus, make_ears, make_eyes, make_llm
from tests.media_files import clip
from tests.runs_helper import QUIET, fit, flags, metrics, refused, rows, zoo
from zoo.data import MELD, MER2024
from zoo.data.clips import files_below, find_clips
from zoo.data.meld import CLIPS
from zoo.models.causal_lm import CausalLM
from zoo.models.farcer import FARCER
from zoo.models.grpo import GRPO
from zoo.models.instructerc import InstructERC
from zoo.models.merit import Merit, MeritRLVR
from zoo.models.selector import ModalitySelector
from zoo.rl.rewards import Correct

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("silent")
    make_eyes(home / "eyes")
    make_ears(home / "ears")
    make_llm(home / "llm")
    make_corpus(home / "meld", (2, 1, 1), clips=True)
    make_corpus(home / "text", (2, 1, 1))
    return home


SYSTEMS = {
    "face": {"model": "FaceClassifier", "model__vision": "eyes", "model__size": 32},
    "voice": {"model": "VoiceClassifier", "model__audio": "ears"},
    "merit": {
        "model": "Merit",
        "model__llm": "llm",
        "model__vision": "eyes",
        "model__audio": "ears",
        "model__template": "plain",
        "model__frames": 2,
        "model__audio_tokens": 2,
        "model__lora__r": 4,
    },
}


def options(home, system, **more):
    made = ("eyes", "ears", "llm")
    base = {name: home / value if value in made else value for name, value in SYSTEMS[system].items()}
    base |= {"data": "MELD", "data__root": home / "meld", "data__batch_size": 4, "trainer__max_steps": 1}
    return flags(**base | {"trainer__limit_val_batches": 0} | more)


@pytest.fixture(scope="module")
def runs(home):
    return {system: fit(home / system, *options(home, system)) for system in SYSTEMS}


def test_corpus(home, folder, **files):
    """A copy of the text corpus with some test clips."""
    shutil.copytree(home / "text", folder)
    for name, content in files.items():
        place = folder / CLIPS["test"] / name.replace("__", ".")
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(content)
    return folder


test_corpus.__test__ = False  # a helper


# ---- clips
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("verb", ["test", "validate", "predict"])
def test_without_a_single_clip_nothing_is_scored(runs, home, system, verb, tmp_path):
    message = refused(
        verb,
        *QUIET,
        f"--ckpt_path={runs[system]}/checkpoints/last.ckpt",
        f"--data.root={home / 'text'}",
        f"--trainer.default_root_dir={tmp_path}",
    )
    split = "dev" if verb == "validate" else "test"
    assert f"no {split} sample of MELD has a clip" in message and "would read nothing" in message
    assert str(home / "text") in message and "give the folder" not in message  # it was given


@pytest.mark.parametrize("system", SYSTEMS)
def test_without_a_single_readable_clip_nothing_is_scored(runs, home, system, tmp_path):
    broken = {f"dia0_utt{i}__mp4": b"no clip" * 9 for i in range(9)}
    corpus = test_corpus(home, tmp_path / "broken", **broken)
    for verb in ("test", "predict"):
        message = refused(
            verb,
            *QUIET,
            f"--ckpt_path={runs[system]}/checkpoints/last.ckpt",
            f"--data.root={corpus}",
            "--data.max_unreadable=1",
            f"--trainer.default_root_dir={tmp_path}",
        )
        assert "not one of the" in message and "could read" in message and "zoo prepare media" in message
    assert not list(tmp_path.rglob("metrics.json"))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_could_not_be_read_or_not_whole_is_listed(runs, home, workers, tmp_path):
    whole = clip(tmp_path / "whole.mp4", options={"movflags": "faststart"}).read_bytes()
    files = {"dia0_utt0__mp4": whole, "dia0_utt1__mp4": whole[: len(whole) // 2], "dia0_utt2__mp4": b"no clip" * 9}
    corpus = test_corpus(home, tmp_path / "some", **files)
    zoo(
        "test",
        *QUIET,
        f"--ckpt_path={runs['voice']}/checkpoints/last.ckpt",
        f"--data.root={corpus}",
        f"--data.num_workers={workers}",
        "--data.max_unreadable=1",
        f"--trainer.default_root_dir={tmp_path}",
    )
    (file,) = (
        tmp_path.rglob("metrics.json")
        if not list(runs["voice"].glob("metrics.json"))
        else [runs["voice"] / "metrics.json"]
    )
    scores = json.loads(file.read_text())
    listed = scores["problems"]["test"]["listed"]
    folder = CLIPS["test"].rpartition("/")[2]
    assert {what: [name.rpartition(f"{folder}/")[2] for name in names] for what, names in listed.items()} == {
        "damaged": ["dia0_utt1.mp4"],
        "missing": [f"meld/test/dia0_utt{i}" for i in range(3, scores["n"])],
        "unreadable": ["dia0_utt2.mp4"],
    }
    assert "cut off after" in next(iter(listed["damaged"].values()))
    assert scores["problems"]["test"]["lost"] == scores["n"] - 2
    assert scores["population"]["listed"]["clips missing"] == [f"dia0_utt{i}" for i in range(3, scores["n"])]
    assert scores["events"]["no readable voice"] == scores["n"] - 2


def test_a_label_says_what_part_of_a_clip_it_rests_on(runs, tmp_path, capsys):
    whole = clip(tmp_path / "whole.mp4", options={"movflags": "faststart"}).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    zoo("label", tmp_path / "cut.mp4", "--ckpt_path", runs["merit"])
    printed = capsys.readouterr()
    row = json.loads(printed.out.strip().split("\n")[-1])
    assert row["label"] and len(row["damaged"]) == 2 and all("cut off after" in text for text in row["damaged"])
    assert printed.err.count("cut off after") == 2
    zoo("label", tmp_path / "whole.mp4", "--ckpt_path", runs["merit"])
    assert "damaged" not in json.loads(capsys.readouterr().out.strip().split("\n")[-1])


def test_the_limit_that_a_message_names_lifts_it(runs, tmp_path, capsys):
    soundfile.write(tmp_path / "long.wav", np.full(610 * 2000, 0.1, "f4"), 2000)
    message = refused("label", tmp_path / "long.wav", "--ckpt_path", runs["voice"])
    assert "longer than 600 s" in message and "--model.max_clip_seconds" in message
    zoo("label", tmp_path / "long.wav", "--ckpt_path", runs["voice"], "--model.max_clip_seconds", "700")
    assert json.loads(capsys.readouterr().out.strip().split("\n")[-1])["used"] == ["sound"]
    assert "see above" in refused("prepare", "media", "--root", tmp_path)
    zoo("prepare", "media", "--root", tmp_path, "--max_clip_seconds", "700")


# ---- where files lie
@pytest.mark.parametrize("ending", [".avi", ".mkv", ".mov", ".webm", ".MP4", ".Mkv"])
def test_meld_takes_clips_of_any_ending(home, tmp_path, ending):
    corpus = test_corpus(home, tmp_path / "m", **{f"dia0_utt0{ending.replace('.', '__')}": b"x"})
    samples = MELD(root=corpus).read("test").samples
    assert samples[0].target.video == corpus / CLIPS["test"] / f"dia0_utt0{ending}"


@pytest.mark.parametrize(
    "folder", [CLIPS["test"], "test_splits_wav", "test/test_wav", "wav/test", "audio/test", f"{CLIPS['test']}_wav"]
)
def test_meld_takes_sound_that_was_extracted(home, tmp_path, folder):
    corpus = test_corpus(home, tmp_path / "m")
    (corpus / folder).mkdir(parents=True)
    (corpus / folder / "dia0_utt0.WAV").write_bytes(b"x")
    reading = MELD(root=corpus).read("test")
    turn = reading.samples[0].target
    assert turn.video is None and turn.audio == corpus / folder / "dia0_utt0.WAV"
    assert reading.notes["sounds missing"] == len(reading.samples) - 1
    (corpus / CLIPS["test"]).mkdir(exist_ok=True)
    (corpus / CLIPS["test"] / "dia0_utt0.mp4").write_bytes(b"x")
    turn = MELD(root=corpus).read("test").samples[0].target
    assert turn.video.suffix == ".mp4" and turn.audio.suffix == ".WAV"


def no_permission(monkeypatch, folder):
    """As for a user who may not look into a folder; the tests may run as root, who may."""
    real = os.scandir

    def scandir(path="."):
        if str(path) == str(folder):
            raise PermissionError(13, "Permission denied", str(folder))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_a_folder_that_cannot_be_looked_into_is_listed(tmp_path, monkeypatch, caplog):
    root = tmp_path / "video-labeled"
    for name in ("a/one.mp4", "b/two.mp4", "top.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    (tmp_path / "elsewhere").mkdir()
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    no_permission(monkeypatch, root / "b")
    unlisted = {}
    assert [p.name for p in files_below(root, unlisted)] == ["one.mp4", "top.mp4"]
    assert unlisted.keys() == {root / "b", root / "linked"} and "Permission denied" in unlisted[root / "b"]
    assert find_clips(tmp_path, ["video-labeled"]).keys() == {"one", "top"}
    assert "video-labeled/b cannot be read (Permission denied)" in caplog.text
    with (tmp_path / "label-disdim.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("name", "discrete"), *((name, "happy") for name in ("one", "two", "three"))])
    reading = MER2024(root=tmp_path, dev_share=0.4).read("train")
    assert any("video-labeled/b cannot be read" in note for note in reading.notes)
    assert "two" not in {s.target.id for s in reading.samples if s.target.video}
    assert reading.listed["clips without a row, not used"] == ["top"]


def test_prepare_media_and_label_list_what_they_did_not_look_at(runs, tmp_path, monkeypatch, capsys):
    soundfile.write(tmp_path / "a.wav", np.full(8000, 0.1, "f4"), 8000)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "closed").mkdir()
    no_permission(monkeypatch, tmp_path / "closed")
    assert "1 requests failed" in refused("prepare", "media", "--root", tmp_path)
    assert "closed: cannot be read (Permission denied)" in capsys.readouterr().out
    zoo("label", tmp_path, "--ckpt_path", runs["voice"])
    printed = capsys.readouterr().err
    assert "closed: cannot be read (Permission denied)" in printed and "notes.txt" in printed


# ---- prompts
@pytest.fixture(scope="module")
def short(home):
    """The language model with 64 positions."""
    shutil.copytree(home / "llm", home / "short")
    config = json.loads((home / "short" / "config.json").read_text()) | {"max_position_embeddings": 64}
    (home / "short" / "config.json").write_text(json.dumps(config))
    return str(home / "short")


@pytest.mark.parametrize(
    ("system", "how", "limit"),
    [
        (CausalLM, {}, 48),
        (CausalLM, {"max_length": 40}, 40),
        (CausalLM, {"shots": 5, "decode": "greedy", "max_new_tokens": 24}, 40),
        (InstructERC, {}, 48),
        (Merit, {"template": "plain"}, 48),
        (FARCER, {"faces": "none", "vision": None, "template": "plain"}, 48),
        (GRPO, {"reward_funcs": [Correct()], "max_new_tokens": 24}, 40),
        (MeritRLVR, {"reward_funcs": [Correct()], "max_new_tokens": 24, "template": "plain"}, 40),
        (ModalitySelector, {"max_new_tokens": 30}, 34),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_prompts_end_where_the_positions_of_the_model_do(short, system, how, limit):
    model = system(llm=short, **how)
    model.build()
    assert model.max_length == limit
    with pytest.raises(ValueError, match="leaves no room for a prompt; lower --model.max_new_tokens"):
        system(llm=short, **how | {"max_new_tokens": 64}).build()


def test_prompts_that_were_cut_for_want_of_positions_are_counted(home, short, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        run = fit(
            tmp_path,
            *flags(
                model="CausalLM",
                model__llm=short,
                model__shots=4,
                data="MELD",
                data__batch_size=4,
                data__root=home / "text",
                trainer__max_steps=1,
                trainer__limit_val_batches=0,
            ),
        )
    assert "has 64 positions: prompts of more than 48 tokens are cut" in caplog.text
    zoo("test", f"--ckpt_path={run}/checkpoints/last.ckpt")
    scores = metrics(run)
    assert scores["events"]["prompts cut to max_length"] > 0 and scores["tokens_per_sample"] <= 48
    assert len(rows(run)) == scores["n"]


# ---- numbers
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("limit", -1),
        ("limit", 0),
        ("num_workers", -1),
        ("batch_size", 0),
        ("batch_size", -4),
        ("eval_batch_size", 0),
        ("seed", -1),
        ("predict_splits", []),
        ("predict_splits", ["test", "test"]),
        ("predict_splits", ["all"]),
        ("limit", 1.5),
        ("limit", True),
        ("batch_size", float("nan")),
    ],
)
def test_numbers_of_a_corpus_that_mean_nothing_are_refused(home, option, value):
    with pytest.raises(ValueError, match="got"):
        MELD(root=home / "text", **{option: value})


@pytest.mark.parametrize(
    "args",
    [
        ["media", "--root", ".", "--frames", "0"],
        ["media", "--root", ".", "--workers", "-1"],
        ["media", "--root", ".", "--size", "-3"],
        ["media", "--root", ".", "--timeout", "nan"],
        ["media", "--root", ".", "--max_clip_seconds", "-1"],
        ["leaks", "--synthetic", "-1"],
        ["leaks", "--synthetic", "3", "--min_words", "-1"],
        ["synthetic", "--out", "x", "--workers", "-1"],
        ["synthetic", "--out", "x", "--seed", "-1"],
        ["synthetic", "--out", "x", "--inertia", "3"],
        ["tiny", "--out", "x", "--vocab_size", "-5"],
        ["tiny", "--out", "x", "--layers", "0"],
        ["tiny", "--out", "x", "--synthetic", "-3"],
        ["ver", "--collect", "--out", ".", "--min_rating", "-1"],
    ],
    ids=" ".join,
)
def test_numbers_of_a_preparation_that_mean_nothing_are_refused(args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", np.zeros(80, "f4"), 8000)
    assert "got" in refused("prepare", *args) and sys.argv


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"window": -1},
        {"max_length": 0},
        {"max_new_tokens": -1},
        {"num_generations": 0},
        {"log_completions_steps": -1},
        {"reward_weights": [float("inf")]},
    ],
    ids=str,
)
def test_numbers_of_grpo_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="got"):
        GRPO(llm="any", reward_funcs=[Correct()], **wrong)
