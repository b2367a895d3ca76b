"""Nothing in the data ends a run: a broken row of each kind, at batch size 1, in every system that reads clips. It is
counted and listed; beyond the share that may be lost the run is refused or stopped with the list."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.builders import make_corpus, make_home, make_patch_vision
from tests.media_files import clip, grey, write_clip
from tests.runs_helper import TRACE, checkpoint, fit, flags, metrics, newest, refused, rows, trace, zoo
from tests.test_processes import DIVIDED, TWO
from tests.test_processes import zoo as zoo_in_two
from zoo.data.meld import CLIPS

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")

QWEN = (
    "--model=EmotionQwen",
    "--model.llm={home}/llm",
    "--model.vision={home}/tower",
    "--model.template=plain",
    "--model.min_pixels=64",
    "--model.max_pixels=1024",
    "--model.video_max_pixels=256",
    "--model.frames=1",
)
STAGES = {  # what each stage of Emotion-Qwen trains
    "stage1": (r"--model.train=['vision\..*','compressor\.general\..*']", "--model.force_gate=general"),
    "stage2": (r"--model.train=['compressor\.emotion\..*','compressor\.gate\..*']",),
    "stage3": (r"--model.train=['llm\..*']",),
    "tuning": ("--model.lora.r=4",),
}
FARCER = (
    "--model=FARCER",
    "--model.llm={home}/llm",
    "--model.vision={home}/vision",
    "--model.template=plain",
    "--model.window=0",
    "--model.train_shots=0",
    "--model.shots=0",
    "--model.max_length=60",
)
SENSES = (
    "--model.llm={home}/llm",
    "--model.vision={home}/vision",
    "--model.audio={home}/audio",
    "--model.template=plain",
    "--model.frames=1",
    "--model.audio_tokens=1",
    "--model.max_length=60",
    "--model.lora.r=4",
)
REINFORCED = (*SENSES, "--model.num_generations=2", "--model.max_new_tokens=4")
SYSTEMS = {
    "farcer": FARCER,
    "farcer_lora": (*FARCER, "--model.lora.r=4"),
    **{stage: (*QWEN, *what) for stage, what in STAGES.items()},
    "merit": ("--model=Merit", *SENSES),
    "merit_rlvr": ("--model=MeritRLVR", "--model.reward_funcs+=tests.runs_helper.checksum", *REINFORCED),
    "merit_ttrl": ("--model=MeritTTRL", *REINFORCED),
    "face": ("--model=FaceClassifier", "--model.vision={home}/vision", "--model.size=32"),
    "voice": ("--model=VoiceClassifier", "--model.audio={home}/audio", "--model.acoustic_loss=0.1"),
}
HEARS = ("merit", "merit_rlvr", "merit_ttrl", "voice")


def of(system: str, home: Path) -> list[str]:
    return [option.format(home=home) for option in SYSTEMS[system]]


def spoil(corpus: Path, split: str, **contents: bytes | None) -> Path:
    """Replace clips of a split by other bytes, or take them away."""
    for name, content in contents.items():
        path = corpus / CLIPS[split] / f"{name}.mp4"
        path.unlink() if content is None else path.write_bytes(content)
    return corpus


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = make_home(tmp_path_factory.mktemp("broken"), (2, 1, 1), clips=True)
    make_patch_vision(home / "tower")
    whole = clip(home / "whole.mp4", count=5, seconds=0.3, options={"movflags": "faststart"}).read_bytes()
    mute = write_clip(home / "mute.mp4", [grey(i) for i in range(5)], np.zeros((1, 0), np.float32)).read_bytes()
    broken = {
        "dia0_utt0": None,  # missing
        "dia0_utt1": b"no clip" * 9,
        "dia0_utt2": b"",
        "dia0_utt3": mute,  # a track of sound without a sample
        "dia0_utt4": whole[: whole.index(b"mdat") + 8],  # its index promises frames of which none is there
    }
    corpus = make_corpus(home / "all", (2, 1, 1), clips=True)
    spoil(corpus, "train", **broken)
    spoil(corpus, "dev", dia0_utt0=None, dia0_utt1=b"no clip" * 9)
    spoil(corpus, "test", **broken)
    lengthen(corpus / "train_sent_emo.csv")
    shutil.copytree(corpus, home / "few")
    table = (corpus / "dev_sent_emo.csv").read_text().splitlines(keepends=True)
    (home / "few" / "dev_sent_emo.csv").write_text(table[0] + table[2])
    # an even number: of an odd one two processes would both get the last
    spoil(make_corpus(home / "one", (2, 1, 1), clips=True), "train", dia0_utt3=b"no clip" * 9)
    return home


def lengthen(table: Path) -> None:
    """Make the sixth utterance longer than any prompt may be."""
    with table.open(newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    written[5]["Utterance"] = "the door is open " * 40
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, written[0].keys())
        writer.writeheader()
        writer.writerows(written)


def data(corpus: Path, **more: object) -> list[str]:
    base = {"data": "MELD", "data__root": corpus, "data__batch_size": 1, "data__max_unreadable": 1}
    return [*flags(**base | {"model__lr": 1e-3, "trainer__max_epochs": 1} | more)]


def adapting(corpus: Path) -> list[str]:
    """As `data`, without labels: the test split is what is trained on."""
    inner = {"data": "Adaptation", "data__corpus": "MELD", "data__corpus__root": corpus}
    outer = {"data__batch_size": 1, "data__max_unreadable": 1, "model__lr": 1e-3, "trainer__max_epochs": 1}
    return [*flags(**inner | outer)]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_broken_row_of_each_kind_is_listed_and_ends_no_run(system, home, tmp_path):
    corpus, files = home / "all", adapting if system == "merit_ttrl" else data
    run = fit(tmp_path, TRACE, *of(system, home), *files(corpus))
    losses = [e["loss"] for e in trace(run)]
    assert len(losses) == (7 if system == "merit_ttrl" else 14) and np.isfinite(losses).all()
    of_fit = metrics(run)["problems"]
    assert of_fit.keys() == {"train", "dev"}
    zoo("test", f"--ckpt_path={run}/checkpoints/last.ckpt")
    said = metrics(run)
    assert said["problems"] == of_fit | {"test": said["problems"]["test"]} and said["n"] == len(rows(run)) == 7
    split = "test" if system == "merit_ttrl" else "train"
    for problems, where in ((said["problems"]["train"], split), (said["problems"]["test"], "test")):
        unreadable = {Path(name).name: why for name, why in problems["listed"]["unreadable"].items()}
        expected = {1, 2, 4} | ({3} if system in HEARS else set())
        assert unreadable.keys() == {f"dia0_utt{i}.mp4" for i in expected}
        assert "0 bytes" in unreadable["dia0_utt2.mp4"] and all(unreadable.values())
        missing = problems["listed"].get("missing", {})  # stage 3 may learn from words alone
        assert missing.keys() == (set() if (system, where) == ("stage3", "train") else {f"meld/{where}/dia0_utt0"})
        assert problems["lost"] == len(expected) + len(missing)
        assert problems["samples"] == (14 if where == "train" else 7)


def test_a_batch_of_which_nothing_is_left_changes_nothing_but_by_momentum(home, tmp_path):
    """The first step of a run on a broken row alone: a gradient of zero, so no weight moves."""
    corpus = spoil(make_corpus(tmp_path / "meld", (1, 1, 1), clips=True), "train", **nothing())
    run = fit(tmp_path, *of("stage1", home), *data(corpus, trainer__limit_val_batches=0), "--model.weight_decay=0")
    moments = checkpoint(run)["optimizer_states"][0]["state"]
    assert moments and all(float(m["exp_avg"].abs().max()) == 0 and float(m["step"]) == 7 for m in moments.values())


def nothing() -> dict[str, bytes | None]:
    return {f"dia0_utt{i}": b"no clip" * 9 for i in range(7)}


# ---- conversations
def talk(home: Path, *pictures: str, answer: str = "a door", key: str = "x", kind: str = "image") -> dict:
    asked = " ".join([f"<{kind}>"] * len(pictures)) + " what is this?"
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return {"id": key, "conversations": turns} | ({kind: list(pictures)} if pictures else {})


def asked_twice(row: dict) -> dict:
    """A second question about the picture of the first."""
    return row | {"conversations": row["conversations"] + talk(Path())["conversations"]}


@pytest.fixture(scope="module")
def talks(home) -> Path:
    """Conversations of every kind, of which the same are trained on and tested."""
    folder = home / "talks"
    folder.mkdir()
    Image.new("RGB", (32, 32), (200, 30, 30)).save(folder / "small.png")
    Image.new("RGB", (16, 16), (30, 30, 200)).save(folder / "tiny.png")
    Image.new("RGB", (4, 900), (30, 30, 200)).save(folder / "thin.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "empty.png").write_bytes(b"")
    written = [
        talk(folder, "small.png", key="whole"),
        talk(folder, key="words"),
        asked_twice(talk(folder, "broken.png", key="broken")),
        talk(folder, "empty.png", key="empty"),
        talk(folder, "thin.png", key="thin"),
        talk(folder, "small.png", "small.png", "small.png", key="many"),
        talk(folder, "tiny.png", answer="the door is open " * 30, key="long"),
        talk(folder, "gone.png", key="gone"),
    ]
    (folder / "talks.json").write_text(json.dumps(written))
    entry = [{"path": "talks.json", "root": "."}]
    (folder / "mixture.yaml").write_text(yaml.safe_dump({"train": entry, "dev": entry, "test": entry}))
    return folder / "mixture.yaml"


def conversations(mixture: Path, **more: object) -> list[str]:
    base = {"data": "Conversations", "data__mixture": mixture, "data__batch_size": 1, "data__max_unreadable": 1}
    model = {"model__max_length": 48, "model__max_new_tokens": 16, "model__max_pixels": 1024, "trainer__max_epochs": 1}
    return [*flags(**base | model | {"checkpoint.monitor": "val/answer"} | more)]


@pytest.mark.parametrize("stage", STAGES)
def test_conversations_with_broken_pictures_and_long_answers_are_listed(stage, home, talks, tmp_path):
    run = fit(tmp_path, TRACE, *of(stage, home), *conversations(talks))
    assert len(trace(run)) == 8 and np.isfinite([e["loss"] for e in trace(run)]).all()
    zoo("test", f"--ckpt_path={run}/checkpoints/last.ckpt")
    said = metrics(run)["problems"]
    assert len(rows(run)) == 8
    for split, kinds in (("train", {"answers cut"}), ("test", set())):
        listed = said[split]["listed"]
        assert listed.keys() == {"missing", "unreadable", "clips left out"} | kinds
        assert listed["missing"] == {"talks_gone": "image 'gone.png' is not there"}
        unreadable = {Path(name).name: why for name, why in listed["unreadable"].items()}
        assert unreadable.keys() == {"broken.png", "empty.png", "thin.png"}
        assert "times longer than wide" in unreadable["thin.png"]
        (left_out,) = listed["clips left out"].items()
        assert left_out[0] == f"conversations/{split}/talks_many_0" and "2 of its pictures" in left_out[1]
        assert (said[split]["samples"], said[split]["lost"]) == (9, 5)
        assert {f"conversations/{split}/talks_broken_{i}" for i in (0, 1)} < set(said[split]["lost_samples"])
    (cut,) = said["train"]["listed"]["answers cut"].items()
    assert cut[0] == "conversations/train/talks_long_0" and "raise --model.max_length" in cut[1]


def test_rows_whose_picture_is_not_there_count_against_the_share(home, talks, tmp_path):
    message = refused("fit", *of("stage1", home), *conversations(talks, data__max_unreadable=0.1))
    assert "1 of 9 train samples have no clip, picture or features that can be read, more than the 10 %" in message
    assert "talks_gone: image 'gone.png' is not there" in message


# ---- more than may be lost
def test_missing_files_beyond_the_share_are_refused_at_the_start(home, tmp_path):
    corpus = spoil(make_corpus(tmp_path / "meld", (2, 1, 1), clips=True), "train", dia0_utt0=None, dia1_utt2=None)
    message = refused("fit", *of("face", home), *data(corpus, data__max_unreadable=0.05))
    assert "2 of 14 train samples have no clip, picture or features that can be read, more than the 5 %" in message
    assert "meld/train/dia0_utt0: has no video file; meld/train/dia1_utt2" in message
    assert not list(tmp_path.rglob("*.ckpt"))
    fit(tmp_path, *of("face", home), *data(corpus, data__max_unreadable=0.15, trainer__max_steps=1))


def test_unreadable_files_beyond_the_share_stop_the_run_with_the_list(home, tmp_path):
    message = refused("fit", *of("farcer", home), *data(home / "all", data__max_unreadable=0.2))
    assert (
        "of 14 train samples" in message and "more than the 20 %" in message and "dia0_utt1.mp4: is broken" in message
    )
    run = newest(tmp_path)
    assert 0 < checkpoint(run)["global_step"] < 14  # what was learnt until then is kept
    assert metrics(run)["problems"]["train"]["lost"] == 3
    zoo("fit", f"--ckpt_path={run}", "--data.max_unreadable=1")
    assert checkpoint(run)["global_step"] == 14 and metrics(run)["problems"]["train"]["lost"] == 4
    said = refused("test", f"--ckpt_path={run}/checkpoints/last.ckpt", "--data.max_unreadable=0.2")
    assert "of 7 test samples" in said and "weighted_f1" not in metrics(run)
    said = refused("validate", f"--ckpt_path={run}/checkpoints/last.ckpt", "--data.max_unreadable=0.2")
    assert "2 of 7 dev samples" in said


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_that_is_none_is_refused(home, share):
    assert "is a share from 0 to 1" in refused(
        "fit", *of("face", home), *data(home / "one", data__max_unreadable=share)
    )


# ---- two processes
@pytest.mark.parametrize("system", ["farcer", "stage1", "merit"])
def test_broken_rows_of_one_of_two_processes_leave_the_other_at_work(system, home, tmp_path):
    """Clips that are missing or broken in every split, a row that is too long, and one sample alone to validate, whose
    clip is broken: two processes that hold all weights each (DDP) and two that divide them learn and list the same."""
    results = []
    for name, strategy in (("ddp", ()), ("fsdp2", DIVIDED)):
        given = [*data(home / "few"), *TWO, *strategy, f"--trainer.default_root_dir={tmp_path / name}"]
        zoo_in_two("fit", *of(system, home), *given)
        run = newest(tmp_path / name)
        assert checkpoint(run)["global_step"] == 7
        zoo_in_two("test", f"--ckpt_path={run}/checkpoints/last.ckpt")
        results.append((checkpoint(run)["state_dict"], rows(run), metrics(run)))
    (whole, answers, whole_metrics), (divided, divided_answers, divided_metrics) = results
    assert whole.keys() == divided.keys()
    for name, value in whole.items():
        assert torch.isfinite(value).all() and torch.allclose(value, divided[name], atol=1e-5), name
    assert [(r["id"], r["predicted"]) for r in answers] == [(r["id"], r["predicted"]) for r in divided_answers]
    assert whole_metrics["n"] == 7 and whole_metrics["problems"] == divided_metrics["problems"]
    listed = {split: problems["listed"] for split, problems in whole_metrics["problems"].items()}
    assert {Path(name).name for name in listed["dev"]["unreadable"]} == {"dia0_utt1.mp4"}
    for split in ("train", "test"):
        assert listed[split]["missing"].keys() == {f"meld/{split}/dia0_utt0"}
        unreadable = {Path(name).name for name in listed[split]["unreadable"]}
        assert unreadable >= {f"dia0_utt{i}.mp4" for i in (1, 2, 4)}


def test_two_processes_stop_together_beyond_the_share(home, tmp_path, capfd):
    with pytest.raises(Exception, match="exit code 1"):
        zoo_in_two(
            "fit",
            *of("farcer", home),
            *data(home / "one", data__max_unreadable=0.05, trainer__max_epochs=50),
            *TWO,
            f"--trainer.default_root_dir={tmp_path}",
        )
    run = newest(tmp_path)
    assert capfd.readouterr().err.count("1 of 14 train samples have no clip, picture or features that can be read") >= 1
    assert checkpoint(run)["global_step"] <= 7 and metrics(run)["problems"]["train"]["lost"] == 1
