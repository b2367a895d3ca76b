"""Every part of a shipped config is swapped by flags alone; a sixth paper is one folder and a corpus one file, with no
line of the zoo edited: they fit, are tested, label a line and stand in a benchmark."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.builders import make_home
from tests.runs_helper import checkpoint, fit, flags, logged, metrics, no_picture, rows, zoo
from zoo.backbones import LLM, Vision

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
ONE_STEP = flags(trainer__limit_train_batches=1, trainer__limit_val_batches=1, trainer__num_sanity_val_steps=0)

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("pluggable"), (2, 1, 1), clips=True)


def stored(run: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of a run's checkpoint."""
    return {name: tuple(tensor.shape) for name, tensor in checkpoint(run)["state_dict"].items()}


def corpus(home: Path) -> list[str]:
    return flags(data="MELD", data__root=home / "meld", data__batch_size=4, data__eval_batch_size=8)


# ---- parts by flags
def test_another_language_model_and_vision_encoder(home, tmp_path):
    config = f"--config={CONFIGS / 'farcer' / 'tiny.yaml'}"
    run = fit(
        tmp_path,
        config,
        *corpus(home),
        *ONE_STEP,
        f"--model.llm={home / 'llm'}",
        f"--model.vision={home / 'vision'}",
        "--model.cache=null",
    )
    bases = checkpoint(run)["zoo"]["bases"]
    assert bases["llm"]["fingerprint"] == LLM(str(home / "llm")).fingerprint() != LLM("tiny-llama").fingerprint()
    assert bases["vision"]["fingerprint"] == Vision(str(home / "vision")).fingerprint()
    assert bases["vision"]["fingerprint"] != Vision("tiny-vit-sitcom").fingerprint()
    other = fit(tmp_path, config, *corpus(home), *ONE_STEP, "--model.cache=null")
    widths = [stored(r)["mp.0.weight"] for r in (run, other)]  # from the encoder's width
    assert widths[0][1] == 32 and widths[1][1] == 144


def test_another_projector(home, tmp_path):
    own = (f"--config={CONFIGS / 'emotion_qwen' / 'tiny.yaml'}", *corpus(home), *ONE_STEP, "--model.cache=null")
    plain, mlp = (stored(fit(tmp_path, *own, f"--model.projector={kind}")) for kind in ("hybrid", "mlp"))
    parts = [{name for name in tensors if name.startswith("compressor.")} for tensors in (plain, mlp)]
    assert any("emotion" in name for name in parts[0]) and not any("emotion" in name for name in parts[1]) and parts[1]
    assert {n for n in plain if n not in parts[0]} == {n for n in mlp if n not in parts[1]}


def test_another_reward_and_corpus(home, tmp_path):
    config = f"--config={CONFIGS / 'grpo' / 'tiny.yaml'}"
    swapped = (*corpus(home), "--model.reward_funcs=[tests.runs_helper.checksum]", "--model.num_generations=2")
    run = fit(tmp_path, config, *swapped, *ONE_STEP, "--trainer.accumulate_grad_batches=1")
    assert "train/rewards/checksum/mean" in logged(run)[0] and "train/rewards/Correct/mean" not in logged(run)[0]
    zoo("test", f"--ckpt_path={run}")
    assert {r["id"].rpartition("/")[0] for r in rows(run)} == {"meld/test"} and len(rows(run)) == 7


# ---- a paper and a corpus of somebody else
PAPER = '''
"""Echo (nobody, never): the language model is asked whether the utterance before was felt alike."""

from pathlib import Path

import torch

from zoo.training.sft import SupervisedFineTuning


class Echo(SupervisedFineTuning):
    """A line is answered from the line before it.

    Args:
        calm: weight of a penalty on sure answers.
    """

    templates = Path(__file__).parent / "templates"

    def __init__(self, calm: float = 0.1, window: int = 1, **kwargs) -> None:
        super().__init__(template="echo", window=window, **kwargs)
        self.calm = calm

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        hidden = self.llm.hidden(self.embed(batch), batch["mask"])[:, -1]
        sure = torch.log_softmax(self.llm.head(hidden), -1).max(-1).values.mean()
        loss = self.loss(batch) + self.calm * sure
        self.log("train/sure", sure)
        self.check_finite(loss, batch)
        return loss
'''
TEMPLATE = """{% for t in history %}before: {{ t.text }}
{% endfor %}
now: {{ target.text }}
emotion:
"""
CORPUS = '''
"""Weather talk: two moods in lines like ``1<TAB>storm<TAB>It thunders.``"""

from zoo.data.base import EmotionData, Reading, dialogue_samples
from zoo.schema import Labels, Turn


class WeatherTalk(EmotionData):
    """``{split}.tsv`` in ``root``."""

    labels = Labels("weather", ("sun", "storm"))

    def read(self, split):
        dialogues = {}
        for number, line in enumerate((self.root / f"{split}.tsv").read_text().splitlines()):
            dialogue, label, text = line.split("\\t")
            dialogues.setdefault(dialogue, []).append(Turn(f"line{number}", "", text, label))
        return Reading([s for name, turns in dialogues.items()
                        for s in dialogue_samples(turns, f"weather/{split}", f"weather/{split}/{name}", self.labels)])
'''


@pytest.fixture
def others(home, tmp_path, monkeypatch) -> Path:
    """Working directory of somebody who has a paper in a folder and a corpus in a file."""
    for name in ("echo_paper", "weather_talk"):
        sys.modules.pop(name, None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "echo_paper"
    (folder / "templates").mkdir(parents=True)
    (folder / "__init__.py").write_text("from echo_paper.model import Echo\n")
    (folder / "model.py").write_text(PAPER)
    (folder / "templates" / "echo.txt").write_text(TEMPLATE)
    init = {"llm": str(home / "llm"), "lr": 1e-2}
    shared = {
        "seed_everything": 0,
        "trainer": {"max_epochs": 10, "accelerator": "cpu"},
        "data": {"class_path": "weather_talk.WeatherTalk", "init_args": {"root": "weather", "batch_size": 4}},
    }
    for name, model in (("echo", "echo_paper.Echo"), ("plain", "zoo.models.causal_lm.CausalLM")):
        config = shared | {"model": {"class_path": model, "init_args": init}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "weather_talk.py").write_text(CORPUS)
    (tmp_path / "weather").mkdir()
    said = {"sun": "Great, the tent is lovely.", "storm": "Stop, the ladder is furious."}
    for split, n in (("train", 6), ("dev", 4), ("test", 4)):
        lines = [f"{d}\t{label}\t{said[label]} {d}" for d in range(n) for label in (("sun", "storm")[d % 2],) * 2]
        (tmp_path / "weather" / f"{split}.tsv").write_text("\n".join(lines))
    return tmp_path


def tree() -> dict[str, tuple[int, int]]:
    """Every file of the repository that a paper or a corpus could have changed."""
    files = [ROOT / "pyproject.toml"]
    for top in ("zoo", "configs", "checkpoints"):
        files += (ROOT / top).rglob("*")
    return {
        p.relative_to(ROOT).as_posix(): (p.stat().st_size, p.stat().st_mtime_ns)
        for p in files
        if p.is_file() and "__pycache__" not in p.parts
    }


def test_a_sixth_paper_and_a_corpus(others, monkeypatch):
    monkeypatch.setattr("zoo.training.evaluation.confusion_picture", no_picture)
    before = tree()
    assert len(before) > 200 and not any("echo" in name or "weather" in name for name in before)
    run = fit(others, "--config=echo_paper/echo.yaml", "--trainer.log_every_n_steps=1")
    assert len(logged(run, "train/sure")) == 30
    zoo("test", f"--ckpt_path={run}")
    found = metrics(run)
    assert found["corpus"] == "weather" and found["n"] == 8 and found["model"] == "echo_paper.model.Echo"
    assert found["accuracy"] == 1 and set(rows(run)[0]["scores"]) == {"sun", "storm"}

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        zoo("label", "--ckpt_path", run, "--text", "Stop, the ladder is furious.")
    said = json.loads(out.getvalue())
    assert (said["label"], said["system"], said["used"]) == ("storm", "Echo", ["words"])

    short = {"trainer.max_epochs": 1}
    bench = {
        "title": "Weather",
        "seeds": [0],
        "data": {"class_path": "weather_talk.WeatherTalk", "init_args": {"root": "weather"}},
        "rows": {
            "echo": {"what": "Echo", "config": ["echo_paper/echo.yaml"], "options": {"model.calm": 0.2} | short},
            "plain": {"what": "plain LM", "config": ["echo_paper/plain.yaml"], "options": short},
            "fitted": {"what": "Echo, as fitted", "checkpoint": str(run)},
        },
    }
    (others / "bench.yaml").write_text(yaml.safe_dump(bench))
    zoo("bench", "--config", "bench.yaml", "--out", "bench")
    told = json.loads((others / "bench" / "results.json").read_text())
    assert told["corpus"] == "weather" and told["n"] == 8 and not told["failed"]
    table = {row["name"]: row for row in told["rows"]}
    assert set(table) == {"echo", "plain", "fitted"}
    assert [table[name]["model"] for name in ("echo", "plain")] == [
        "echo_paper.model.Echo",
        "zoo.models.causal_lm.CausalLM",
    ]
    for row in table.values():
        answers = pd.read_json(others / "bench" / row["runs"][0]["predictions"], lines=True)
        assert row["scores"]["accuracy"]["mean"] == pytest.approx((answers["label"] == answers["predicted"]).mean())
    assert "Echo" in (others / "bench" / "report.html").read_text()
    assert tree() == before
