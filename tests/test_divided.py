"""FSDP2: two processes that divide a model's weights train and answer as one process does, whatever each of them has in
its batches, and none waits for the other forever."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file, save_file
from torch.multiprocessing.spawn import ProcessContext

from tests import runs_helper
from tests.builders import make_corpus, make_home, untied
from tests.models.test_baselines import make_encoder
from tests.runs_helper import QUIET, checkpoint, logged, metrics, newest
from tests.test_processes import DIVIDED, SCRIPT, start, zoo
from zoo import models as zoo_models
from zoo.data.meld import CLIPS, MELD
from zoo.training.module import EmotionModule

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")

TWO = ("--trainer.devices=2", *DIVIDED)
LORA = ("--model.lora.r=4", "--model.lora.alpha=16")
CALM = ("--model.schedule=constant", "--model.warmup=0", "--model.lr=1e-3", "--trainer.gradient_clip_val=1.0")
QWEN = (
    "--model=EmotionQwen",
    "--model.vision=shape:tiny-patch-vision",
    "--model.template=plain",
    "--model.frames=1",
    "--model.min_pixels=256",
)
SYSTEMS = {
    "causal_lm": ("--model=CausalLM", "--model.decode=greedy", "--model.max_new_tokens=6"),
    "causal_lm_untied": ("--model=CausalLM", "--model.llm=untied", "--model.gradient_checkpointing=true"),
    "causal_lm_beam": ("--model=CausalLM", "--model.decode=beam", "--model.max_new_tokens=4", *LORA),
    "bioserc": ("--model=BiosERC", "--model.template=short", "--model.window=1", "--model.embedding_noise=0", *LORA),
    "speech_cue": ("--model=SpeechCueLLM", "--model.template=short", "--model.window=0", *LORA),
    "dialoguellm": ("--model=DialogueLLM", "--model.template=short", "--model.window=1", *LORA),
    "instructerc": ("--model=InstructERC", "--model.template=short", "--model.window=2"),
    "selector_start": ("--model=SelectorStart", "--model.comparisons=comparisons.jsonl", *LORA),
    "selected": ("--model=SelectedClassifier", "--model.descriptions=[audio]"),
    "farcer": (
        "--model=FARCER",
        "--model.vision=vision",
        "--model.template=plain",
        "--model.train_shots=1",
        "--model.shots=1",
        "--model.shots_from=dev",
        "--model.dropout=0",
        "--model.embedding_scale=1",
    ),
    "merit": (
        "--model=Merit",
        "--model.vision=vision",
        "--model.audio=audio",
        "--model.template=plain",
        "--model.frames=2",
        *LORA,
    ),
    "emotion_qwen_stage1": (
        *QWEN,
        r"--model.train=['vision\..*','compressor\.general\..*']",
        "--model.force_gate=general",
    ),
    "emotion_qwen_lora": (*QWEN, *LORA),
    "emotion_qwen": (
        *QWEN,
        r"--model.train=['vision\..*','compressor\..*','llm\..*']",
        "--model.decode=greedy",
        "--model.max_new_tokens=6",
    ),
    "selector": (
        "--model=ModalitySelector",
        "--model.template=decision",
        "--model.reasoning=none",
        "--model.exploration=forced",
        "--model.objective.kind=reinforce_group",
        "--model.descriptions=[audio]",
        *LORA,
    ),
    "grpo": (
        "--model=GRPO",
        "--model.reward_funcs+=tests.runs_helper.checksum",
        "--model.max_new_tokens=4",
        "--model.num_iterations=2",
        "--model.objective.beta=0.04",
        *LORA,
    ),
    "grpo_with_options": (
        "--model=GRPO",
        "--model.reward_funcs+=tests.runs_helper.checksum",
        "--model.max_new_tokens=2",
        "--model.num_generations=2",
        "--model.num_iterations=2",
        "--model.max_resample_times=3",
        "--model.scale_rewards=batch",
        "--model.objective.beta=0.04",
        "--model.objective.target_kl=0.01",
        "--model.objective.kl_horizon=20",
        "--model.objective.entropy_coef=0.01",
        "--model.sync_ref_model=true",
        "--model.ref_model_sync_steps=2",
        *LORA,
    ),
    "merit_rlvr": (
        "--model=MeritRLVR",
        "--model.reward_funcs+=tests.runs_helper.checksum",
        "--model.vision=vision",
        "--model.template=plain",
        "--model.frames=2",
        *LORA,
    ),
    "face": (
        "--model=FaceClassifier",
        "--model.vision=vision",
        "--model.size=32",
        "--model.shift=0",
        "--model.light=0",
    ),
    "voice": ("--model=VoiceClassifier", "--model.audio=audio", "--model.gain=0"),
    "merit_ttrl": ("--model=MeritTTRL", "--model.template=plain", "--model.guard=null", *LORA),
}
LIKE_OTHERS = ("bioserc", "speech_cue", "emotion_qwen_stage1")  # which go on after a kill as these three would
REFUSED = {
    "majority": ("--model=Majority",),
    "tfidf": ("--model=TfidfLogistic",),
    "sentence": ("--model=SentenceClassifier", "--model.encoder=sentence", "--model.max_length=60"),
    "fusion": ("--model=FeatureFusion", "--model.text=features:text_features", "--model.audio=features:audio_features"),
    "image_text": (
        "--model=ImageText",
        "--model.vlm=vlm",
        "--model.template=short",
        r"--model.lora.targets=model\.language_model\.layers\.\d+\.self_attn\.(q|v)_proj",
        *LORA,
    ),
}
NEVER_FIT = {"EmotionQwenAdapters"}  # has no weights of its own

DRAW = (
    "selector_start",
    "face",
    "farcer",
    "grpo",
    "grpo_with_options",
    "merit_rlvr",
    "merit_ttrl",
)  # what is drawn differs from process to process: compared with two that hold all weights each


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Two training samples, of which one has a clip; seven to validate and to test."""
    home = make_home(tmp_path_factory.mktemp("divided"), (1, 1, 1), clips=True)
    untied(home / "llm", home / "untied")
    table = home / "meld" / "train_sent_emo.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:3]))
    described = home / "meld" / "audio_description_train.json"
    described.write_text(json.dumps(dict(list(json.loads(described.read_text()).items())[:2])))
    shutil.copytree(home / "meld", home / "seen")
    (home / "meld" / CLIPS["train"] / "dia0_utt1.mp4").unlink()
    probabilities = {"without": {"joy": 0.2, "anger": 0.8}, "with": {"joy": 0.7, "anger": 0.3}}
    with (home / "comparisons.jsonl").open("w") as file:
        for split in ("train", "dev", "test"):
            for i in range(7):
                row = {"id": f"meld/{split}/dia0_utt{i}", "label": "joy", "details": probabilities}
                file.write(json.dumps(row) + "\n")
    make_encoder(home / "sentence")
    data = MELD(root=home / "meld")
    for split in ("train", "dev", "test"):
        for modality in ("text", "audio"):
            folder = home / f"{modality}_features" / split
            folder.mkdir(parents=True)
            for sample in data.samples(split):
                np.save(folder / f"{sample.target.id}.npy", np.ones(8, np.float32))
    return home


def options(home: Path, system: str) -> list[str]:
    """Of `zoo fit`, but for the processes."""
    given = []
    for option in (*(SYSTEMS | REFUSED)[system], *CALM):
        name, _, value = option.partition("=")
        kind, _, file = value.rpartition(":")
        there = file and (home / file).exists()
        given.append(f"{name}={kind}{':' * bool(kind)}{home / file}" if there else option)
    corpus = "data"
    data = ["--data=MELD"]
    if system == "merit_ttrl":
        corpus, data = "data.corpus", ["--data=Adaptation", "--data.corpus=MELD"]
    folder = home / ("seen" if system in ("face", "voice") else "meld")
    data += [f"--{corpus}.root={folder}", f"--{corpus}.descriptions=[{folder}]"]
    if system not in ("face", "voice", "causal_lm_untied", *REFUSED):
        given.append(f"--model.llm={home / 'llm'}")
    data.append("--data.max_unreadable=1")  # one of the two clips is missing
    return [*given, *data, "--data.batch_size=1", "--data.eval_batch_size=1", *QUIET]


def answers(run: Path) -> list[dict]:
    """The rows that a test wrote."""
    (file,) = (path for name in ("predictions", "decisions") for path in run.glob(f"{name}.jsonl"))
    return [json.loads(line) for line in file.read_text().splitlines()]


def agree(one: Path, other: Path) -> None:
    """Weights of two runs are the same."""
    a, b = (checkpoint(run) for run in (one, other))
    assert a["global_step"] == b["global_step"] and a["state_dict"].keys() == b["state_dict"].keys()
    for name, value in a["state_dict"].items():
        assert torch.allclose(b["state_dict"][name], value, atol=1e-5), name


def end_of(started: ProcessContext, *codes: int) -> None:
    """Wait for processes to end by themselves, within a minute and with these exit codes."""
    end = time.monotonic() + 60
    for process in started.processes:
        process.join(max(0, end - time.monotonic()))
    exit_codes = [process.exitcode for process in started.processes]
    for process in started.processes:
        process.kill()
    assert exit_codes == list(codes)


def killed_and_resumed(root: Path, monkeypatch: pytest.MonkeyPatch, *given: str) -> Path:
    """A run of two processes one of which was killed in its second step, gone on with from its last checkpoint."""
    monkeypatch.setenv("FAIL", "1 killed")
    started = start("fit", *given, *TWO, FAILURE, "--save_last_every=1", f"--trainer.default_root_dir={root}")
    end_of(started, 1, -signal.SIGKILL)
    run = newest(root)
    assert checkpoint(run)["epoch"] == 0
    monkeypatch.setenv("FAIL", "-1 not")
    zoo("fit", f"--ckpt_path={run}")
    return run


def test_every_system_is_divided_or_refused():
    """A new one needs a row in SYSTEMS or in REFUSED."""
    shipped = set()
    for folder in Path(zoo_models.__path__[0]).iterdir():
        if (folder / "__init__.py").is_file():
            package = importlib.import_module(f"zoo.models.{folder.name}")
            kinds = {name: getattr(package, name) for name in package.__all__}
            shipped |= {n for n, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, EmotionModule)}
    tried = {option.removeprefix("--model=") for row in (SYSTEMS | REFUSED).values() for option in row}
    assert len(shipped) > 15 and shipped - NEVER_FIT <= tried, shipped - tried


@pytest.mark.parametrize("system", REFUSED)
def test_what_has_nothing_to_divide_is_refused_in_one_sentence(system, home, tmp_path, capfd):
    arguments = [option for option in options(home, system) if not (system in ("majority", "tfidf") and option in CALM)]
    started = start("fit", *arguments, *TWO, "--trainer.max_epochs=1", f"--trainer.default_root_dir={tmp_path}")
    end_of(started, 1, 1)
    errors = capfd.readouterr().err
    assert "use --trainer.strategy ddp" in errors and "not divided over processes" in errors
    assert "Traceback" not in errors and "fault of the zoo" not in errors


@pytest.mark.parametrize("system", SYSTEMS)
def test_two_processes_train_and_answer_as_one(system, home, tmp_path, monkeypatch):
    """Three steps on a sample each are three steps on both; four samples to validate and three are seven. So are three
    of which one process was killed in the second."""
    given = [*options(home, system), "--trainer.max_epochs=3"]
    if system in DRAW:
        zoo("fit", *given, "--trainer.devices=2", f"--trainer.default_root_dir={tmp_path / 'one'}")
    else:
        runs_helper.fit(tmp_path / "one", *given, "--trainer.accumulate_grad_batches=2")
    one = newest(tmp_path / "one")
    zoo("fit", *given, *TWO, f"--trainer.default_root_dir={tmp_path / 'two'}")
    two = newest(tmp_path / "two")
    agree(one, two)
    if system not in LIKE_OTHERS:
        resumed = killed_and_resumed(tmp_path / "cut", monkeypatch, *given)
        agree(two, resumed)
    before = checkpoint(one)["state_dict"]
    assert before
    runs_helper.zoo("test", f"--ckpt_path={one}", "--trainer.devices=1")
    zoo("test", f"--ckpt_path={two}")
    assert metrics(two)["n"] == metrics(one)["n"] == 7
    for a, b in zip(answers(one), answers(two), strict=True):
        assert a["id"] == b["id"] and a["predicted"] == b["predicted"] and a.get("text") == b.get("text")
        for label, p in a.get("scores", {}).items():
            assert abs(p - b["scores"][label]) < 1e-5
    scores = [name for name in logged(one)[-1] if name.startswith("val/")]
    assert scores
    for name in scores:
        assert logged(one, name) == pytest.approx(logged(two, name), abs=1e-5), name


@pytest.mark.parametrize("system, dtype", [("dialoguellm", "bfloat16"), ("causal_lm_untied", "float32")])
def test_in_bf16_mixed_what_is_trained_stays_float32(system, dtype, home, tmp_path):
    """Frozen weights are gathered as they are, trained ones in bfloat16; steps are those of one process, rounded."""
    given = [
        *options(home, system),
        "--trainer.max_epochs=3",
        "--trainer.precision=bf16-mixed",
        f"--model.dtype={dtype}",
    ]
    one = runs_helper.fit(tmp_path / "one", *given, "--trainer.accumulate_grad_batches=2")
    zoo("fit", *given, *TWO, f"--trainer.default_root_dir={tmp_path / 'two'}")
    two = newest(tmp_path / "two")
    trained = checkpoint(two)["state_dict"]
    assert trained.keys() == checkpoint(one)["state_dict"].keys()
    assert {value.dtype for value in trained.values()} == {torch.float32}
    before, after = (checkpoint(run)["state_dict"] for run in (one, two))
    moved = torch.cat([(after[n] - before[n]).flatten() for n in after]).abs()
    assert moved.mean() < 1e-4  # of three steps of 1e-3


def test_weights_in_another_dtype_than_their_file_are_the_same(home, tmp_path):
    """Stored in bfloat16, trained in float32; a second stage starts from all that the first one has trained."""
    llm = tmp_path / "llm"
    shutil.copytree(home / "llm", llm)
    weights = {name: value.to(torch.bfloat16) for name, value in load_file(llm / "model.safetensors").items()}
    save_file(weights, llm / "model.safetensors", {"format": "pt"})
    (llm / "config.json").write_text(json.dumps(json.loads((llm / "config.json").read_text()) | {"dtype": "bfloat16"}))
    given = [x for x in options(home, "causal_lm") if not x.startswith("--model.llm")]
    given += [f"--model.llm={llm}", "--trainer.max_epochs=2"]
    start_from: list[str] = []
    for stage in ("first", "second"):
        roots = [f"--trainer.default_root_dir={tmp_path / stage / name}" for name in ("one", "two")]
        runs_helper.zoo("fit", *given, *start_from, "--trainer.accumulate_grad_batches=2", roots[0])
        zoo("fit", *given, *start_from, *TWO, roots[1])
        one, two = (newest(tmp_path / stage / name) for name in ("one", "two"))
        agree(one, two)
        assert {value.dtype for value in checkpoint(two)["state_dict"].values()} == {torch.float32}
        start_from = [f"--model.start_from={one}"]


def test_four_processes_answer_as_one_though_two_have_no_sample_left(home, tmp_path):
    """Written answers end at different tokens, and seven samples are two for some processes and one for another; of
    two samples, two processes have none at all."""
    given = [*options(home, "causal_lm"), "--zero_shot=true", "--model.max_new_tokens=40"]
    given = [x for x in given if not x.startswith(("--model.lr", "--trainer.gradient", "--trainer.log"))]
    four = ("--trainer.devices=4", *DIVIDED, "--trainer.strategy.data_parallel_size=4")
    runs_helper.zoo("test", *given, f"--trainer.default_root_dir={tmp_path / 'one'}")
    zoo("test", *given, *four, f"--trainer.default_root_dir={tmp_path / 'four'}", processes=4)
    one, two = (answers(newest(tmp_path / name)) for name in ("one", "four"))
    assert one == two and len(two) == 7
    assert len({len(row["text"]) for row in one}) > 2, [r["text"] for r in one]
    few = (*four, "--data.predict_splits=[train]")
    zoo("predict", *given, *few, f"--trainer.default_root_dir={tmp_path / 'few'}", processes=4)
    assert [row["id"] for row in answers(newest(tmp_path / "few"))] == ["meld/train/dia0_utt0", "meld/train/dia0_utt1"]


def test_four_processes_train_as_one(home, tmp_path):
    """A step on four samples, one for each; three more steps in a run that goes on."""
    corpus = make_corpus(tmp_path / "meld", (1, 1, 1))
    table = corpus / "train_sent_emo.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:5]))
    given = [x for x in options(home, "causal_lm") if not x.startswith(("--data.root", "--data.descriptions"))]
    given += [f"--data.root={corpus}", "--model.decode=score"]
    four = ("--trainer.devices=4", *DIVIDED, "--trainer.strategy.data_parallel_size=4")
    whole = ("--trainer.accumulate_grad_batches=4", "--trainer.max_epochs=6")
    one = runs_helper.fit(tmp_path / "one", *given, *whole)
    root = f"--trainer.default_root_dir={tmp_path / 'four'}"
    zoo("fit", *given, *four, "--trainer.max_epochs=3", root, processes=4)
    run = newest(tmp_path / "four")
    zoo("fit", f"--ckpt_path={run}", "--trainer.max_epochs=6", processes=4)
    agree(one, run)
    assert checkpoint(run)["global_step"] == 6


class Failure(Callback):
    """One of two processes fails in its second epoch, which is its second step: by an error, by SIGKILL, or by an error
    in the validation behind it."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.fail(trainer, pl_module, batch, batch_idx, ("error", "killed"))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.fail(trainer, pl_module, batch, batch_idx, ("validation",))

    def fail(self, trainer, pl_module, batch, batch_idx, ways):
        rank, how = os.environ["FAIL"].split()
        here = trainer.current_epoch == 1 and batch_idx == 0 and trainer.global_rank == int(rank)
        if here and how in ways:
            Path("failed").touch()
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            pl_module.check_finite(torch.tensor(float("nan")), batch)


FAILURE = "--trainer.callbacks+=tests.test_divided.Failure"


@pytest.mark.parametrize(("rank", "strategy"), [(0, DIVIDED), (1, ("--trainer.strategy=ddp",))], ids=["fsdp2", "ddp"])
def test_an_error_in_one_process_ends_all_with_its_message(rank, strategy, home, tmp_path):
    """Lightning starts the second process. The other one waits for the first in its step."""
    given = [*options(home, "causal_lm"), FAILURE, "--trainer.max_epochs=3"]
    fit = [SCRIPT, "fit", *given, "--trainer.devices=2", *strategy, "--data.num_workers=0"]
    # The script's process imports `Failure` from this repository.
    environment = os.environ | {"FAIL": f"{rank} error", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(fit, capture_output=True, text=True, check=False, env=environment)
    assert Path("failed").exists(), done.stderr
    seconds = time.time() - Path("failed").stat().st_mtime
    # Lightning's launcher looks every five seconds, and kills the first process if it finds the second one ended
    assert done.returncode in (1, -signal.SIGKILL) and seconds < 30
    assert done.stderr.count("zoo fit: the loss is nan at step 1") == 1
    assert f"process {rank} failed" in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("how", "system"),
    [
        ("killed", "causal_lm"),
        ("validation", "causal_lm"),
        *(("error", system) for system in ("causal_lm", "farcer", "merit", "merit_rlvr", "emotion_qwen")),
    ],
)
def test_a_run_whose_second_process_fails_ends_in_seconds(how, system, home, tmp_path, monkeypatch):
    """Somebody else started the processes, as torchrun does: none is left."""
    monkeypatch.setenv("FAIL", f"1 {how}")
    given = [*options(home, system), FAILURE, "--save_last_every=1", *TWO, "--trainer.max_epochs=3"]
    started = start("fit", *given, f"--trainer.default_root_dir={tmp_path}")
    end_of(started, 1, -signal.SIGKILL if how == "killed" else 1)
    assert time.time() - Path("failed").stat().st_mtime < 30
    assert checkpoint(newest(tmp_path))["global_step"] == 1
