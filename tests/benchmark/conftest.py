"""One finished benchmark on a miniature MELD, made once: rows that train, stand on others, adapt and fail."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders import make_corpus, make_llm
from tests.runs_helper import zoo

LM = "zoo.models.causal_lm.CausalLM"


@dataclass(frozen=True)
class Made:
    """A benchmark file, where its results are, and what its command left with."""

    home: Path
    file: Path
    out: Path
    code: int


def bench(*args: object) -> int:
    """``zoo bench ARGS``; the exit code."""
    try:
        zoo("bench", *args)
    except SystemExit as leaving:
        assert isinstance(leaving.code, int), leaving.code
        return leaving.code
    return 0


def config(home: Path, name: str, **init_args: Any) -> str:
    """A config of a run of two epochs."""
    file = home / f"{name}.yaml"
    model = {"class_path": LM, "init_args": {"llm": str(home / "llm"), "lr": 3e-3, "prompt_loss": 0.0} | init_args}
    trainer = {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1}
    file.write_text(
        yaml.safe_dump(
            {
                "seed_everything": 0,
                "trainer": trainer,
                "model": model,
                "data": {"class_path": "zoo.data.Synthetic", "init_args": {"batch_size": 4, "corpus_seed": 3}},
            }
        )
    )
    return str(file)


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Made:
    home = tmp_path_factory.mktemp("bench")
    make_llm(home / "llm")
    make_corpus(home / "meld", (4, 2, 3), clips=True)
    plain, lora = config(home, "plain"), config(home, "lora", lora={"r": 4}, descriptions=["audio"])
    rows: dict[str, Any] = {
        "plain": {"what": "plain <b>LM</b>", "config": [plain], "seeds": [0, 1], "matched": True},
        "lora": {"what": "LoRA", "config": [lora], "matched": True},
        "slower": {
            "what": "plain, other rate",
            "config": [plain],
            "options": {"model.lr": 1e-4, "data.num_workers": 1},
        },
        "further": {"what": "trained further", "config": [plain], "options": {"model.start_from": "run:plain"}},
        "last": {"what": "last epoch of plain", "checkpoint": "run:plain", "use": "last"},
        "untrained": {"what": "as it is", "config": [plain], "zero_shot": True},
        "answers": {
            "what": "answers",
            "checkpoint": "run:plain",
            "verb": "predict",
            "test_options": {"data.predict_splits": ["dev"]},
        },
        "only": {"what": "only trained", "config": [plain], "verb": "fit"},
        "broken": {"what": "misspelt", "config": [plain], "options": {"model.lrr": 1}},
        "behind": {"what": "stands on it", "checkpoint": "run:broken"},
    }
    file = home / "bench.yaml"
    data = {
        "class_path": "zoo.data.MELD",
        "init_args": {"root": str(home / "meld"), "descriptions": [str(home / "meld")]},
    }
    file.write_text(yaml.safe_dump({"title": "Miniature", "data": data, "rows": rows}, sort_keys=False))
    out, before = home / "out", os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        code = bench("--config", file, "--out", out, "--jobs=2")
    finally:
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)
    return Made(home, file, out, code)
