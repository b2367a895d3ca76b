"""Every command answers SIGINT, SIGTERM and SIGUSR1: it keeps what is done, says how to go on, and ends with 128 and
the number of the signal. (What `fit` does is in test_resume.py, the benchmark in benchmark/test_run.py.)"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import make_corpus, make_llm
from tests.runs_helper import QUIET, fit, flags, in_child, metrics, rows, zoo
from zoo.sitcom import clips
from zoo.storage import read_jsonl
from zoo.training.module import EmotionModule

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run."""
    home = tmp_path_factory.mktemp("interrupts")
    options = {
        "model": "CausalLM",
        "model__llm": make_llm(home / "llm"),
        "data": "MELD",
        "data__root": make_corpus(home / "meld", (2, 1, 3)),
        "data__eval_batch_size": 4,
        "trainer__max_steps": 1,
    }
    return fit(home, *flags(**options))


def stopped_at(monkeypatch, number: int, call: int, owner: type, name: str) -> None:
    """The process gets a signal inside the ``call``-th call of a method."""
    method, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


def interrupted(monkeypatch, number: int, call: int, method: str, command: Callable[[], None]) -> int:
    """Exit code of a command that gets a signal in the ``call``-th call of a method of its system."""
    with monkeypatch.context() as patch:
        stopped_at(patch, number, call, EmotionModule, method)
        return in_child(command)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("verb", ["test", "validate"])
def test_an_evaluation_stops_and_writes_nothing(verb, number, run, monkeypatch, capfd, tmp_path):
    step = "test_step" if verb == "test" else "validation_step"
    place = f"--trainer.default_root_dir={tmp_path}/r"
    args = [verb, *QUIET[:2], f"--ckpt_path={run}", "--trainer.logger=false", place]
    assert interrupted(monkeypatch, number, 2, step, lambda: zoo(*args)) == 128 + number
    assert f"zoo {verb}: interrupted; give the same command again" in capfd.readouterr().err
    assert not list(Path("r").glob("*.json*"))
    zoo(*args)
    assert verb == "validate" or metrics(Path("r"))["n"] == 21


def predict(run: Path, folder: str, *more: str) -> None:
    zoo("predict", f"--ckpt_path={run}", "--trainer.logger=false", f"--trainer.default_root_dir={folder}", *more)


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupted_prediction_goes_on(number, run, monkeypatch, capfd):
    predict(run, "whole")
    assert interrupted(monkeypatch, number, 4, "predict_step", lambda: predict(run, "part")) == 128 + number
    assert "12 answers are kept; the same command goes on" in capfd.readouterr().out
    assert not Path("part/predictions.jsonl").exists()
    predict(run, "part")
    assert "12 samples were answered before" in capfd.readouterr().out
    assert rows(Path("part")) == rows(Path("whole"))
    assert [p.name for p in Path("part").iterdir() if "partial" in p.name] == []


def test_answers_of_another_command_are_not_taken(run, monkeypatch, capfd):
    assert interrupted(monkeypatch, signal.SIGTERM, 4, "predict_step", lambda: predict(run, "r")) == 143
    predict(run, "r", "--model.window=2")
    assert "answered before" not in capfd.readouterr().out and len(rows(Path("r"))) == 21


@pytest.mark.parametrize("number", SIGNALS)
def test_interrupted_labels_are_kept_and_go_on(number, run, monkeypatch, capfd):
    Path("table.csv").write_text("id,text\n" + "".join(f"{name},what is it {name}\n" for name in "abcdefghij"))

    def label(out: str) -> None:
        zoo("label", "table.csv", f"--ckpt_path={run}", f"--out={out}")

    label("whole.jsonl")
    assert interrupted(monkeypatch, number, 2, "predict_step", lambda: label("part.jsonl")) == 128 + number
    assert "with --out the labels so far are kept; to go on, give the same command" in capfd.readouterr().err
    before = read_jsonl(Path("part.jsonl"))
    assert [row["id"] for row in before] == list("abcd")
    label("part.jsonl")
    whole, part = ({r["id"]: r["label"] for r in read_jsonl(Path(f"{n}.jsonl"))} for n in ("whole", "part"))
    assert part == whole and read_jsonl(Path("part.jsonl"))[:4] == before
    assert {p.name for p in Path().iterdir()} == {"table.csv", "whole.jsonl", "part.jsonl"}


def prepare(out: str | Path) -> None:
    zoo("prepare", "synthetic", "--seed=3", "--dialogues=3", f"--out={out}", "--workers=1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A corpus that was written without interruption."""
    folder = tmp_path_factory.mktemp("whole") / "corpus"
    prepare(folder)
    return folder


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupted_corpus_is_written_on(number, whole, monkeypatch, capfd):
    original = clips.encode

    def encode(*clip: object) -> bytes:  # in the worker, while the command waits
        if not Path("sent").exists():
            Path("sent").touch()
            os.kill(os.getppid(), number)
        return original(*clip)

    with monkeypatch.context() as patch:
        patch.setattr(clips, "encode", encode)
        assert in_child(lambda: prepare("part")) == 128 + number
    assert "zoo prepare: interrupted; what is done is kept; to go on, give the same" in capfd.readouterr().err
    assert not Path("part").exists()
    prepare("part")
    names = [p.relative_to(whole) for p in sorted(whole.rglob("*")) if p.is_file()]
    assert len(names) > 20 and all((Path("part") / n).read_bytes() == (whole / n).read_bytes() for n in names)


def test_changed_samples_and_another_prediction_in_between(run, monkeypatch, capfd, tmp_path):
    corpus = shutil.copytree(run.parents[1] / "meld", tmp_path / "meld")
    data = f"--data.root={corpus}"
    assert interrupted(monkeypatch, signal.SIGTERM, 4, "predict_step", lambda: predict(run, "r", data)) == 143
    predict(run, "r", data, "--data.limit=1")  # of other samples, which leaves the answers of the first alone
    file = corpus / "test_sent_emo.csv"
    text = file.read_text()
    file.write_text(text.replace(" ", "  ", 30).replace("I ", "we ").replace("the ", "a "))
    capfd.readouterr()
    predict(run, "r", data)
    assert "answered before" not in capfd.readouterr().out
    file.write_text(text)
    predict(run, "r", data)
    assert "12 samples were answered before" in capfd.readouterr().out


HANDLERS = """
import os, signal, sys, time
from zoo import interrupts
interrupts.listen()
{body}
"""


def child(body: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", HANDLERS.format(body=body)], capture_output=True, text=True)
    return done.returncode, done.stdout


def test_a_deferred_signal_is_noted_and_another_one_changes_nothing():
    code, out = child("""
with interrupts.deferred("later"):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    print("worked on", interrupts.requested().name, interrupts.exit_code(), flush=True)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(9)
    except KeyboardInterrupt as error:
        print(type(error).__name__)
""")
    assert (code, out) == (0, "later\nworked on SIGINT 130\nInterrupted\n")


def test_forked_workers_leave_the_signals_to_their_parent():
    code, out = child("""
worker = os.fork()
if worker == 0:
    os.kill(os.getpid(), signal.SIGINT)  # of the terminal, to the whole group
    print("works on", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)  # of the loader, to this worker
    time.sleep(9)
print(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))
""")
    assert (code, out) == (0, "works on\n-15\n")


def test_a_signal_after_the_end_changes_nothing():
    code, out = child("""
class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        print("cleared up", flush=True)
import builtins
builtins.late = Late()
""")
    assert (code, out) == (0, "cleared up\n")
