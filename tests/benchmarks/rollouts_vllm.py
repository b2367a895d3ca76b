"""Rollouts from a real vLLM beside our own: the toy problem, and SmolLM2 on the sitcom.

    python tests/benchmarks/rollouts_vllm.py --vllm_python ENV/bin/python --out runs/rollouts_vllm --json FILE
    python tests/benchmarks/rollouts_vllm.py --vllm_python ENV/bin/python --record

The toy is that of ``grpo_toy.py`` with LoRA: a model of random weights learns to answer "yes", which it does only with
the trained adapters. On the sitcom SmolLM2 is rewarded for the right label (`Correct`). The engine is started by ``zoo
rollouts serve --run``, on the CPU. With ``--record``, what it answers to the questions of ``tests/fake_vllm.py`` is
written to ``tests/vllm_contract.json``, and nothing is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import Callback

from tests.benchmarks import grpo_toy
from tests.fake_vllm import contract
from zoo.backbones import LLM, LoRA
from zoo.backbones.sent_adapters import write_adapter
from zoo.cli import main as zoo

URL = "http://127.0.0.1:8377"
START = 400  # seconds that an engine may take to start on a busy machine
SAMPLER = ["--model.sampler.kind=vllm", f"--model.sampler.url={URL}"]
TOY = ["--model=GRPO", "--data=Synthetic", "--model.reward_funcs=[grpo_toy.says_yes]", "--model.max_new_tokens=1"]
SITCOM = [
    *("--model=GRPO", "--model.llm=smollm2-135m", "--data=Synthetic", "--data.corpus_seed=1"),
    *("--model.reward_funcs=[zoo.rl.rewards.Correct]", "--model.num_generations=4", "--model.max_new_tokens=12"),
    *(
        "--model.lora.r=8",
        "--model.lora.alpha=16",
        r"--model.lora.targets=model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",
    ),
    *("--model.lr=3e-4", "--model.schedule=constant", "--model.warmup=0", "--model.log_completions_steps=0"),
    *("--model.max_length=256", "--data.batch_size=4", "--data.train_dialogues=20", "--data.dev_dialogues=1"),
    *("--trainer.limit_val_batches=0", "--trainer.accelerator=cpu", "--trainer.gradient_clip_val=1"),
    *("--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"),
    *("--trainer.enable_model_summary=false", "--seed_everything=0"),
]


class Clock(Callback):
    """Writes the seconds of every step to clock.json of the run folder."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if not self.times:
            self.times.append(time.monotonic())

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.times.append(time.monotonic())
        seconds = [after - before for before, after in itertools.pairwise(self.times)]
        (Path(trainer.log_dir) / "clock.json").write_text(json.dumps(seconds))


@contextlib.contextmanager
def engine(python: str, out: Path, options: Sequence[str]) -> Iterator[None]:
    """An engine for a config, until the end of the block."""
    line = [sys.executable, "-m", "zoo", "rollouts", "serve", *options, f"--model.sampler.url={URL}"]
    with (out / "engine.log").open("a") as log:
        process = subprocess.Popen([*line, "--run", f"--vllm_python={python}"], stdout=log, stderr=log)
        try:
            end = time.monotonic() + START
            while True:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{URL}/health", timeout=2):
                    break
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"the engine did not start, see {out / 'engine.log'}")
                time.sleep(1)
            yield
        finally:
            process.terminate()
            process.wait()


def toy(options: argparse.Namespace) -> dict[str, Any]:
    """Mean reward of the first and the last five steps of each seed, sampled by ourselves and by the engine."""
    folder = grpo_toy.backbone(options.out / "backbone")
    rank = ["--model.lora.r=8", "--model.lora.targets=.*_proj"]
    grpo_toy.OBJECTIVES["LoRA by vLLM"] = [*grpo_toy.OBJECTIVES["LoRA"], *SAMPLER]
    measured: dict[str, Any] = {}
    with engine(options.vllm_python, options.out, [*TOY, f"--model.llm={folder}", *rank, "--trainer.accelerator=cpu"]):
        for name in ("LoRA by vLLM", "LoRA"):
            start = time.monotonic()
            curves = [grpo_toy.curve(options, name, seed) for seed in options.seeds]
            measured[name] = {
                "first 5 steps": " ".join(f"{c.iloc[:5].mean():.2f}" for c in curves),
                "last 5 steps": " ".join(f"{c.iloc[-5:].mean():.2f}" for c in curves),
                "seconds per step": round((time.monotonic() - start) / sum(map(len, curves)), 2),
            }
            print(name, measured[name], flush=True)
    return measured


def sitcom(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step, rewards, mismatch and truncated ratios of both samplers, the same prompts in the same order."""
    measured: dict[str, Any] = {}
    with engine(options.vllm_python, options.out, SITCOM):
        for name, sampler in (("own", []), ("vllm", SAMPLER)):
            root = options.out / f"sitcom-{name}"
            with contextlib.redirect_stdout(sys.stderr):
                zoo(
                    [
                        *("fit", *SITCOM, *sampler, f"--trainer.max_steps={options.steps}"),
                        *("--trainer.callbacks+=rollouts_vllm.Clock", f"--trainer.default_root_dir={root}"),
                    ]
                )
            run = max((root / "lightning_logs").glob("version_*"), key=lambda p: int(p.name.rpartition("_")[2]))
            table = pd.read_csv(run / "metrics.csv")
            seconds = json.loads((run / "clock.json").read_text())[1:]  # the first one checks the engine
            measured[name] = {
                "seconds per step": round(statistics.median(seconds), 2),
                "reward of the first half": round(float(table["train/reward"][: options.steps // 2].mean()), 3),
                "reward of the second half": round(float(table["train/reward"][options.steps // 2 :].mean()), 3),
            }
            for what in ("mean", "max"):
                column = f"train/sampling/sampling_logp_difference/{what}"
                if column in table:
                    measured[name][f"mismatch {what}"] = float(f"{getattr(table[column], what)():.2g}")
            print(name, measured[name], flush=True)
    return measured


def record(options: argparse.Namespace) -> None:
    """Write what the engine answers to the questions of the fake."""
    with tempfile.TemporaryDirectory() as folder, engine(options.vllm_python, options.out, SITCOM + EMBEDDED):
        llm = LLM("smollm2-135m")
        llm.add_lora(LoRA(r=4))
        write_adapter(llm, Path(folder))
        replies = contract(URL, Path(folder))
    text = json.dumps(replies, indent=1, sort_keys=True) + "\n"
    (Path(__file__).parents[1] / "vllm_contract.json").write_text(text, encoding="utf-8")


EMBEDDED = ["--model=MeritRLVR", "--model.vision=tiny-vit-sitcom", "--model.audio=tiny-hubert-sitcom"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm_python", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/rollouts_vllm"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", choices=("toy", "sitcom"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    here = Path(__file__).parent
    sys.path.insert(0, str(here))  # rewards and callbacks are named by their modules
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if options.record:
        record(options)
        return
    measures = {"toy": toy, "sitcom": sitcom}
    measured = {name: measure(options) for name, measure in measures.items() if options.only in (None, name)}
    for name, samplers in measured.items():
        columns = list(dict.fromkeys(column for numbers in samplers.values() for column in numbers))
        print(f"\n| {name} | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
        for sampler, numbers in samplers.items():
            print(f"| {sampler} | {' | '.join(str(numbers.get(column, '-')) for column in columns)} |")
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
