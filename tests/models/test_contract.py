"""What every system keeps to, through the user's entry point. A new paper adds a row to SYSTEMS."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support, recall_score

from tests.builders import make_corpus, make_home
from tests.data.miniature import LABELS
from tests.runs_helper import TRACE, checkpoint, fit, flags, logged, metrics, rows, same, trace, zoo
from zoo.models.causal_lm import CausalLM


@dataclass(frozen=True)
class System:
    """One system as its user calls it.

    Attributes:
        args: ``--model`` and what it needs beyond its backbone.
        backbone: the option that takes it: ``llm``, ``vision``, ``audio`` or ``vlm``.
        others: options that take further backbones, which stay frozen.
        adapters: trains LoRA on a frozen backbone, whose weights its checkpoints must not hold.
        beside: what its checkpoints hold beside adapters, as the beginnings of names.
        calm: options that switch off what makes training noisy.
        overfits: options with which it learns seven samples by heart; None: it learns from rewards, which is no way to
            learn by heart.
        scores: it gives every label a probability; else its answers are words.
        monitor: what chooses best.ckpt.
    """

    args: tuple[str, ...]
    backbone: str = "llm"
    others: tuple[str, ...] = ()
    adapters: bool = False
    beside: tuple[str, ...] = ()
    calm: tuple[str, ...] = ("--model.dropout=0", "--model.word_dropout=0")
    overfits: tuple[str, ...] | None = ()
    scores: bool = True
    monitor: str = "val/wf1"

    def said(self, row: dict) -> object:
        """What it answered, exactly."""
        return row["scores"] if self.scores else row["text"]


DIALOGUELLM = (
    "--model=zoo.models.dialoguellm.DialogueLLM",
    "--model.template=short",
    "--model.window=1",
    "--model.descriptions=[audio]",
    "--model.dropout=0.1",
    "--model.word_dropout=0.1",
)
SYSTEMS = {
    "causal_lm": System(("--model=zoo.models.causal_lm.CausalLM",)),
    "bioserc": System(
        ("--model=BiosERC", "--model.template=short", "--model.window=1", "--model.later_window=1"),
        calm=("--model.embedding_noise=0",),
    ),
    "speech_cue": System(("--model=SpeechCueLLM", "--model.template=short", "--model.window=0")),
    "dialoguellm": System(DIALOGUELLM),
    "dialoguellm_lora": System(
        (*DIALOGUELLM, "--model.lora.r=4", "--model.lora.dropout=0.05"),
        adapters=True,
        overfits=("--model.lora.r=16", "--model.lora.alpha=16", r"--model.lora.targets=model\.layers\.\d+\..*"),
    ),
    "face": System(
        ("--model=zoo.models.unimodal.FaceClassifier", "--model.size=32", "--model.shift=2", "--model.light=0.1"),
        "vision",
        calm=("--model.shift=0", "--model.light=0"),
        overfits=("--model.lr=0.001",),
    ),
    "grpo": System(
        (
            "--model=zoo.models.grpo.GRPO",
            "--model.reward_funcs+=tests.runs_helper.checksum",
            "--model.max_new_tokens=4",
            "--model.lora.r=4",
            "--model.lora.dropout=0.05",
            "--model.objective.beta=0.04",
        ),
        adapters=True,
        overfits=None,
        scores=False,
        monitor="val/reward",
    ),
    "voice": System(
        ("--model=zoo.models.unimodal.VoiceClassifier", "--model.gain=3"),
        "audio",
        calm=("--model.gain=0",),
        overfits=("--trainer.max_epochs=80", "--model.lr=0.005"),
    ),
    "emotion_qwen": System(
        (
            "--model=EmotionQwen",
            "--model.vision=shape:tiny-patch-vision",
            "--model.template=plain",
            "--model.window=1",
            r"--model.train=['vision\..*','compressor\..*','llm\..*']",
            "--model.frames=1",
            "--model.min_pixels=256",
            "--model.mrope=[2,3,3]",
        ),
        overfits=("--model.lr=0.003",),
    ),
    "image_text": System(
        (
            "--model=ImageText",
            "--model.template=short",
            "--model.window=1",
            "--model.frames=2",
            "--model.side=32",
            "--model.lora.r=4",
            "--model.lora.dropout=0.05",
            r"--model.lora.targets=model\.language_model\.layers\.\d+\.self_attn\.(q|v)_proj",
        ),
        "vlm",
        adapters=True,
        calm=(),
        overfits=(
            "--model.lora.r=16",
            "--model.lora.alpha=16",
            "--model.lora.dropout=0",
            r"--model.lora.targets=model\.language_model\.layers\.\d+\..*",
        ),
    ),
    "farcer": System(
        (
            "--model=FARCER",
            "--model.template=plain",
            "--model.window=1",
            "--model.layers=3",
            "--model.standardise=true",
            "--model.train_shots=1",
            "--model.shots=1",
            "--model.shot_window=0",
            "--model.decode=score",
        ),
        others=("vision",),
        calm=(),
        overfits=(
            "--model.train_shots=0",
            "--model.shots=0",
            "--model.lora.r=16",
            "--model.lora.alpha=16",
            r"--model.lora.targets=model\.layers\.\d+\..*",
        ),
    ),
    "merit": System(
        (
            "--model=Merit",
            "--model.template=plain",
            "--model.window=1",
            "--model.frames=2",
            "--model.audio_tokens=2",
            "--model.lora.r=4",
            "--model.lora.dropout=0.05",
            "--model.word_dropout=0.1",
        ),
        others=("vision", "audio"),
        adapters=True,
        beside=("vision_projection.", "audio_projection."),
        calm=("--model.word_dropout=0",),
        overfits=(
            "--model.lora.r=16",
            "--model.lora.alpha=16",
            r"--model.lora.targets=model\.layers\.\d+\..*",
            "--model.cache=cache",
        ),
    ),
}


pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = make_home(tmp_path_factory.mktemp("contract"), (3, 2, 2), test_is="dev", clips=True)
    make_corpus(home / "seven", (1, 1, 1), test_is="train", clips=True)
    return home


@pytest.fixture(scope="module")
def options(home):
    """System -> the options of its runs."""

    def options(system: System, corpus: str = "meld", **more: object) -> list[str]:
        data = {"data": "MELD", "data__root": home / corpus, "data__descriptions": f"[{home / corpus}]"}
        base = {f"model__{part}": home / part for part in (system.backbone, *system.others)}
        base |= {"model__lr": 3e-3, "trainer__max_epochs": 2, "data__batch_size": 4}
        return [*system.args, *flags(**data, **(base | more))]

    return options


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request) -> System:
    return SYSTEMS[request.param]


@pytest.fixture(scope="module")
def run(system, options, tmp_path_factory) -> Path:
    """A run of two epochs of six steps that was tested from its folder alone."""
    run = fit(tmp_path_factory.mktemp("run"), TRACE, *options(system))
    zoo("test", f"--ckpt_path={run}")
    return run


def test_losses_are_finite_and_every_trainable_parameter_learns(run):
    losses = [e["loss"] for e in trace(run)]
    assert len(losses) == 12 and all(map(math.isfinite, losses))
    (end,) = trace(run, "end")
    assert end["trained"] > 0 and end["without_gradient"] == []


class Idle(CausalLM):
    """A system with a part that nothing uses."""

    def build(self) -> None:
        super().build()
        self.idle = torch.nn.Linear(2, 2)


def test_an_unused_part_would_be_noticed(options, tmp_path):
    run = fit(tmp_path, TRACE, *options(System(("--model=tests.models.test_contract.Idle",)), trainer__max_steps=2))
    (end,) = trace(run, "end")
    assert end["without_gradient"] == ["idle.bias", "idle.weight"]


def test_run_files(run):
    held = {p.name for p in run.iterdir()}
    assert held >= {"config.yaml", "config.test.yaml", "metrics.csv", "metrics.json", "predictions.jsonl"}
    assert any(name.startswith("events.out.tfevents") for name in held)
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert (run / "confusion.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(logged(run, "train/loss")) == 12 and len(logged(run, "val/wf1")) == 2


def test_the_run_folder_alone_reproduces_the_best_validated_model(run, system, options):
    """The test split is a copy of the dev split, so the predictions of the best validation must come back exactly."""
    scores = logged(run, system.monitor)
    best, other = (trace(run, "validation")[i] for i in ((0, 1) if scores[0] >= scores[1] else (1, 0)))
    expected = {r["id"].replace("/dev/", "/test/"): system.said(r) for r in best["rows"]}
    assert {r["id"]: system.said(r) for r in rows(run)} == expected
    assert [system.said(r) for r in other["rows"]] != [system.said(r) for r in best["rows"]]  # nor the other epoch
    tested = {
        "val/wf1": lambda: metrics(run)["weighted_f1"],
        "val/reward": lambda: sum(r["details"]["reward"] for r in rows(run)) / len(rows(run)),
    }
    assert tested[system.monitor]() == pytest.approx(max(scores), abs=1e-6)


def test_metrics_can_be_recomputed_from_the_predictions(run, system, home):
    with (home / "meld" / "test_sent_emo.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    answers, said = rows(run), metrics(run)
    assert [r["id"] for r in answers] == [f"meld/test/dia{t['Dialogue_ID']}_utt{t['Utterance_ID']}" for t in table]
    assert [r["label"] for r in answers] == [t["Emotion"] for t in table]
    assert {r["dialogue"] for r in answers} == {"meld/test/dia0", "meld/test/dia1"}
    assert all(r["predicted"] in (*LABELS, None) for r in answers)
    for r in answers if system.scores else ():
        assert set(r["scores"]) == set(LABELS) and sum(r["scores"].values()) == pytest.approx(1, abs=1e-5)
        assert r["predicted"] == max(r["scores"], key=r["scores"].get)
    true, guess = [r["label"] for r in answers], [r["predicted"] or "none" for r in answers]
    want = {
        "n": 14,
        "accuracy": accuracy_score(true, guess),
        "uar": recall_score(true, guess, labels=LABELS, average="macro"),
        "weighted_f1": f1_score(true, guess, labels=LABELS, average="weighted", zero_division=0),
        "macro_f1": f1_score(true, guess, labels=LABELS, average="macro", zero_division=0),
        "unparsed": guess.count("none") / 14,
    }
    assert {k: said[k] for k in want} == pytest.approx(want)
    per_class = precision_recall_fscore_support(true, guess, labels=LABELS, zero_division=0)[2]
    assert said["per_class"] == pytest.approx(dict(zip(LABELS, per_class, strict=True)))
    assert (said["split"], said["eval_protocol"], said["seed"]) == ("test", "all_utterances", 0)
    assert said["population"]["n_used"] == 14 and said["population"]["n_official"] == 2610
    assert 0 < said["seconds_per_sample"] < 10 and "git" in said


def test_checkpoints_hold_what_was_trained_and_nothing_of_the_backbone(run, system, home):
    parts = (system.backbone, *system.others)
    base = [v for part in parts for v in load_file(home / part / "model.safetensors").values()]
    state = checkpoint(run, "best")["state_dict"]
    copied = [k for k, v in state.items() if any(v.shape == b.shape and torch.equal(v, b) for b in base)]
    assert state and copied == []
    if system.adapters:
        kept = {part for part in system.beside for k in state if k.startswith(part)}
        assert all(".lora_" in k or k.startswith(system.beside) for k in state) and kept == set(system.beside)
        trained = sum(v.numel() for v in state.values())
        size = (run / "checkpoints" / "best.ckpt").stat().st_size
        assert size < 1.1 * 4 * trained + 40_000  # the weights, and what else a run states about itself
    else:
        assert not any(".lora_" in k for k in state)


def test_same_seed_same_run_other_seed_other_run(run, system, options, tmp_path):
    again = fit(tmp_path / "again", TRACE, *options(system))
    zoo("test", f"--ckpt_path={again}")
    assert trace(again) == trace(run)
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert same(checkpoint(again)[part], checkpoint(run)[part])
    assert (again / "predictions.jsonl").read_bytes() == (run / "predictions.jsonl").read_bytes()
    other = fit(tmp_path / "other", TRACE, *options(system, seed_everything=1, trainer__max_steps=2))
    assert not {tuple(e["ids"]) for e in trace(other)} & {tuple(e["ids"]) for e in trace(run)[:2]}
    assert trace(other)[0]["loss"] != trace(run)[0]["loss"]


def test_predictions_depend_on_neither_batch_size_nor_workers(run, system, tmp_path):
    expected = rows(run)
    for batch_size, workers in ((1, 0), (16, 2)):
        zoo("test", f"--ckpt_path={run}", f"--data.batch_size={batch_size}", f"--data.num_workers={workers}")
        assert metrics(run)["batch_size"] == batch_size
        for a, b in zip(rows(run), expected, strict=True):
            assert (a["id"], a["predicted"]) == (b["id"], b["predicted"])
            assert system.said(a) == (pytest.approx(b["scores"], abs=1e-5) if system.scores else b["text"])


def test_overfits_seven_samples(system, options, tmp_path):
    if system.overfits is None:
        pytest.skip("learns from rewards: tests/test_reinforced.py")
    learns = {"model__lr": 0.01, "model__schedule": "constant"}
    trains = {"trainer__max_epochs": 50, "trainer__limit_val_batches": 0, "data__batch_size": 7}
    run = fit(tmp_path, *options(system, "seven", **learns, **trains), *system.calm, *system.overfits)
    zoo("test", f"--ckpt_path={run}")
    losses = logged(run, "train/loss")
    assert metrics(run)["accuracy"] == 1.0 and losses[-1] < losses[0] / 2


def test_fast_dev_run_writes_nothing(system, options, tmp_path):
    zoo("fit", *options(system, trainer__fast_dev_run=True, trainer__accelerator="cpu"))
    assert list(tmp_path.iterdir()) == []


def test_limits_and_accumulated_batches(system, options, tmp_path):
    limits = {f"trainer__limit_{part}_batches": n for part, n in (("train", 5), ("val", 2), ("test", 3))}
    run = fit(tmp_path, TRACE, *options(system, trainer__accumulate_grad_batches=2, **limits))
    assert [e["step"] for e in trace(run)] == [0, 1, 1, 2, 3, 3, 4, 4, 5, 6]  # the last batch of an epoch steps, too
    assert all(len(e["rows"]) == 8 for e in trace(run, "validation"))
    zoo("test", f"--ckpt_path={run}")
    assert metrics(run)["n"] == len(rows(run)) == 12


def test_written_answers_do_not_depend_on_batch_size_either(home, options, tmp_path):
    """Greedy decoding: answers as text, most of them unreadable so early in training."""
    run = fit(tmp_path, *options(SYSTEMS["dialoguellm"], model__decode="greedy", model__max_new_tokens=4))
    answers = []
    for batch_size in (1, 16):
        zoo("test", f"--ckpt_path={run}", f"--data.eval_batch_size={batch_size}")
        answers.append(rows(run))
    assert answers[0] == answers[1]
    assert all(r["predicted"] in (*LABELS, None) and isinstance(r["text"], str) for r in answers[0])
    assert metrics(run)["unparsed"] == sum(r["predicted"] is None for r in answers[0]) / 14
