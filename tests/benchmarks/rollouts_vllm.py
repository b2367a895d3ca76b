"""Rollouts from a real vLLM beside our own: a toy problem, SmolLM2 on the sitcom, MERIT's embeddings, kills.

    python tests/benchmarks/rollouts_vllm.py --vllm_python ENV/bin/python --out runs/rollouts_vllm --json FILE
    python tests/benchmarks/rollouts_vllm.py --vllm_python ENV/bin/python --record

``toy``: that of ``grpo_toy.py`` with LoRA: a model of random weights learns to answer "yes", which it does only with
the trained adapters.
``sitcom``: SmolLM2, fine-tuned for some steps so that rewards are there to be earned, is rewarded for the right label
(`Correct`); then the greedy answers to the test split, of both samplers, and of the engine without adapters.
``merit``: two steps of MERIT's TTRL with frames and sound of the sitcom, whose prompts travel as embeddings, and the
greedy answers of both samplers afterwards.
``killed``: the toy, undisturbed, with the trainer killed by SIGKILL and resumed, and with the engine killed and started
again; how far the trained adapters are apart.

The engine is started by ``zoo rollouts serve --run``, on the CPU. With ``--record``, what it answers to the questions
of ``tests/fake_vllm.py`` is written to ``tests/vllm_contract.json``, what it answers to `CHATS` to
``tests/prepare/vllm_chats.json``, and nothing is measured.
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
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import Callback

from tests.benchmarks import grpo_toy
from tests.benchmarks.vllm_server import URL, Server
from tests.fake_vllm import contract, sent
from zoo.backbones import LLM, LoRA
from zoo.backbones.llm_client import _message
from zoo.backbones.sent_adapters import write_adapter
from zoo.cli import main as zoo

SAMPLER = ["--model.sampler.kind=vllm", f"--model.sampler.url={URL}"]
TOY = ["--model=GRPO", "--data=Synthetic", "--model.reward_funcs=[grpo_toy.says_yes]", "--model.max_new_tokens=1"]
CORPUS = ["--data=Synthetic", "--data.corpus_seed=1", "--data.batch_size=4", "--data.train_dialogues=100"]
CORPUS += ["--data.dev_dialogues=1", "--data.test_dialogues=12"]
LORA = ["--model.lora.r=8", "--model.lora.alpha=16"]
LORA += [r"--model.lora.targets=model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"]
QUIET = ["--trainer.limit_val_batches=0", "--trainer.accelerator=cpu", "--trainer.gradient_clip_val=1"]
QUIET += ["--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false", "--seed_everything=0"]
QUIET += ["--trainer.enable_model_summary=false", "--model.schedule=constant", "--model.warmup=0"]
START = ["--model=CausalLM", *CORPUS, *LORA, *QUIET, "--model.llm=smollm2-135m", "--model.template=instruction"]
START += ["--model.max_length=256", "--model.lr=5e-4", "--data.batch_size=16", "--trainer.max_steps=40"]
SITCOM = ["--model=GRPO", *CORPUS, *LORA, *QUIET, "--model.llm=smollm2-135m", "--model.max_length=256"]
SITCOM += ["--model.reward_funcs=[zoo.rl.rewards.Correct]", "--model.num_generations=4", "--model.max_new_tokens=6"]
SITCOM += ["--model.lr=5e-5", "--model.log_completions_steps=0", "--data.batch_size=8"]
PLAIN = ["--model=CausalLM", *CORPUS, *QUIET, "--model.llm=smollm2-135m", "--model.template=instruction"]
PLAIN += ["--model.decode=greedy", "--model.max_new_tokens=6", "--model.max_length=240", "--zero_shot=true"]
MERIT = ["--model=MeritTTRL", *LORA, *QUIET, "--model.llm=smollm2-135m", "--model.vision=tiny-vit-sitcom"]
MERIT += ["--model.audio=tiny-hubert-sitcom", "--model.frames=4", "--model.audio_tokens=4", "--model.decode=greedy"]
MERIT += ["--model.num_generations=4", "--model.max_new_tokens=6", "--model.lr=1e-3"]
MERIT += ["--model.log_completions_steps=0", "--data=Adaptation", "--data.corpus=Synthetic", "--data.batch_size=4"]
SAMPLERS = {"own": [], "vllm": SAMPLER}

Rows = dict[str, dict[str, Any]]  # a row's name -> column -> value
Tables = dict[str, Rows]


class Clock(Callback):
    """Writes the seconds of every step, or of a test, to clock.json of the run folder."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if not self.times:
            self.times.append(time.monotonic())

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self._note(trainer)

    def on_test_start(self, trainer: Any, *args: Any) -> None:
        self.times = [time.monotonic()]

    def on_test_end(self, trainer: Any, *args: Any) -> None:
        self._note(trainer)

    def _note(self, trainer: Any) -> None:
        self.times.append(time.monotonic())
        seconds = [after - before for before, after in itertools.pairwise(self.times)]
        (Path(trainer.log_dir) / "clock.json").write_text(json.dumps(seconds))


CLOCK = "--trainer.callbacks+=rollouts_vllm.Clock"


def fit(root: Path, *options: str) -> Path:
    """Train, unless that was done before; return the run folder."""
    if not (root / "done").is_file():
        with contextlib.redirect_stdout(sys.stderr):
            zoo(["fit", *options, f"--trainer.default_root_dir={root}"])
        (root / "done").touch()
    return newest(root)


def asked(root: Path, *options: str) -> tuple[list[dict[str, Any]], float]:
    """Test; return the rows of predictions.jsonl by utterance, and the seconds of the test."""
    with contextlib.redirect_stdout(sys.stderr):
        zoo(["test", *options, CLOCK, f"--trainer.default_root_dir={root}"])
    written = max(root.rglob("predictions.jsonl"), key=lambda path: path.stat().st_mtime)
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    clock = max(root.rglob("clock.json"), key=lambda path: path.stat().st_mtime)
    return sorted(rows, key=lambda row: row["id"]), sum(json.loads(clock.read_text()))


def newest(root: Path) -> Path:
    return max((root / "lightning_logs").glob("version_*"), key=lambda p: int(p.name.rpartition("_")[2]))


def seconds_of(folder: Path) -> list[float]:
    """Seconds of each training step of a run."""
    return json.loads((folder / "clock.json").read_text())


def toy(options: argparse.Namespace) -> Tables:
    """Mean reward of the first and the last five steps of each seed, sampled by ourselves and by the engine."""
    grpo_toy.OBJECTIVES["LoRA by vLLM"] = [*grpo_toy.OBJECTIVES["LoRA"], *SAMPLER]
    measured: Rows = {}
    with Server(options.vllm_python, options.out, toy_options(options)):
        for name in ("LoRA by vLLM", "LoRA"):
            start = time.monotonic()
            curves = [grpo_toy.curve(options, name, seed) for seed in options.seeds]
            measured[name] = {
                "first 5 steps": " ".join(f"{c.iloc[:5].mean():.2f}" for c in curves),
                "last 5 steps": " ".join(f"{c.iloc[-5:].mean():.2f}" for c in curves),
                "seconds per step": round((time.monotonic() - start) / sum(map(len, curves)), 2),
            }
            print(name, measured[name], flush=True)
    return {"toy": measured}


def toy_options(options: argparse.Namespace) -> list[str]:
    folder = grpo_toy.backbone(options.out / "backbone")
    rank = ["--model.lora.r=8", "--model.lora.targets=.*_proj"]
    return [*TOY, f"--model.llm={folder}", *rank, "--trainer.accelerator=cpu"]


def sitcom(options: argparse.Namespace) -> Tables:
    """Seconds per step, rewards and mismatch of both samplers, the same prompts in the same order; greedy answers."""
    steps: Rows = {}
    greedy: Rows = {}
    with Server(options.vllm_python, options.out, SITCOM):
        start = fit(options.out / "start", *START)
        for name, sampler in SAMPLERS.items():
            root = options.out / f"sitcom-{name}"
            limit = f"--trainer.max_steps={options.steps}"
            trained = fit(root, *SITCOM, *sampler, limit, CLOCK, f"--model.start_from={start}")
            table = pd.read_csv(trained / "metrics.csv")
            rewards = table["train/reward"].dropna()
            steps[name] = {
                "seconds per step": round(statistics.median(seconds_of(trained)[1:]), 2),  # the first checks the engine
                "reward of the first half": round(float(rewards[: options.steps // 2].mean()), 3),
                "reward of the second half": round(float(rewards[options.steps // 2 :].mean()), 3),
            }
            for what in ("mean", "max"):
                column = f"train/sampling/sampling_logp_difference/{what}"
                if column in table:
                    steps[name][f"mismatch {what}"] = float(f"{getattr(table[column], what)():.2g}")
            print(name, steps[name], flush=True)
        # the adapters that the engine trained: asked of both, and the engine without them
        tested = {name: asked(root, f"--ckpt_path={trained}", *sampler) for name, sampler in SAMPLERS.items()}
        tested["vllm without adapters"] = asked(options.out / "plain", *PLAIN, *SAMPLER)
        ours, _ = tested["own"]
        for name, (rows, seconds) in tested.items():
            greedy[name] = {
                "n": len(rows),
                "right": sum(row["predicted"] == row["label"] for row in rows),
                "the same words as own": sum(a["text"] == b["text"] for a, b in zip(ours, rows, strict=True)),
                "utterances per second": round(len(rows) / seconds, 2),
            }
            print(name, greedy[name], flush=True)
    return {"sitcom": steps, "greedy": greedy}


def merit(options: argparse.Namespace) -> Tables:
    """Greedy answers of both samplers after two steps of TTRL by the engine, with and without frames and sound."""
    corpus = options.out / "wild"
    if not corpus.is_dir():
        arguments = ["--seed", "90", "--domain", "wild", "--dialogues", "8", "--shares", ".1", ".1", ".8"]
        zoo(["prepare", "synthetic", *arguments, "--out", str(corpus)])
    given = [*MERIT, f"--data.corpus.root={corpus}", f"--model.cache={options.out / 'media'}"]
    root = options.out / "merit"
    with Server(options.vllm_python, options.out, [*given, *SAMPLER]):
        trained = fit(root, *given, *SAMPLER, "--trainer.max_steps=2")
        table = pd.read_csv(trained / "metrics.csv")
        (ours, _), (theirs, _) = (asked(root, f"--ckpt_path={trained}", *sampler) for sampler in SAMPLERS.values())
    row = {
        "steps": 2,
        "mismatch mean": float(f"{table['train/sampling/sampling_logp_difference/mean'].mean():.2g}"),
        "mismatch max": float(f"{table['train/sampling/sampling_logp_difference/max'].max():.2g}"),
        "n": len(ours),
        "different answers": len({row["text"] for row in ours}),
        "the same words by both": sum(a["text"] == b["text"] for a, b in zip(ours, theirs, strict=True)),
    }
    return {"merit": {"MERIT, TTRL": row}}


def killed(options: argparse.Namespace) -> Tables:
    """How far the adapters of a disturbed run are from those of an undisturbed one."""
    folder = grpo_toy.backbone(options.out / "backbone")
    given = [*grpo_toy.arguments(folder, "LoRA", 0), *SAMPLER, f"--trainer.max_steps={options.steps}"]
    given += ["--save_last_every=4", "--model.sampler.tries=12"]
    measured: Rows = {}
    with Server(options.vllm_python, options.out, toy_options(options)) as server:
        runs = {name: fit(options.out / "killed" / name, *given) for name in ("undisturbed", "once more")}
        for name in ("trainer killed", "engine killed"):
            root = options.out / "killed" / name.replace(" ", "-")
            process = subprocess.Popen(
                [sys.executable, "-m", "zoo", "fit", *given, f"--trainer.default_root_dir={root}"], stdout=sys.stderr
            )
            wait_for_answers(root, options.steps // 2, process)
            if name == "trainer killed":
                process.kill()
                process.wait()
                runs[name] = fit(root, f"--ckpt_path={newest(root)}")
            else:
                server.end()
                server.start()
                server.wait()
                assert process.wait() == 0, f"the run ended with {process.returncode}"
                runs[name] = newest(root)
    adapters = {name: trained_adapters(folder) for name, folder in runs.items()}
    for name, tensors in adapters.items():
        pairs = [(tensors[key], tensor) for key, tensor in adapters["undisturbed"].items()]
        measured[name] = {
            "largest difference of an adapter's number": float(
                f"{max(float((a - b).abs().max()) for a, b in pairs):.2g}"
            ),
            "largest number": round(max(float(a.abs().max()) for a, _ in pairs), 3),
            "reward of the last 5 steps": round(float(rewards_of(runs[name]).iloc[-5:].mean()), 3),
        }
        print(name, measured[name], flush=True)
    return {"killed": measured}


def wait_for_answers(root: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the answers of a step are on disk, which is in the middle of that step."""
    while not any(int(p.name.partition("-")[0]) >= step for p in root.glob("lightning_logs/*/rollouts/*.safetensors")):
        if process.poll() is not None:
            raise SystemExit(f"the run ended with {process.returncode} before it was killed")
        time.sleep(0.02)


def trained_adapters(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: tensor for name, tensor in state.items() if ".lora_" in name}


def rewards_of(folder: Path) -> pd.Series:
    return pd.read_csv(folder / "metrics.csv").drop_duplicates("step", keep="last")["train/reward"].dropna()


def record(options: argparse.Namespace) -> None:
    """Write what the engine answers to the questions of the fake, and to those of `zoo prepare`."""
    tests = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as folder, Server(options.vllm_python, options.out, SITCOM + EMBEDDED):
        llm = LLM("smollm2-135m")
        llm.add_lora(LoRA(r=4))
        write_adapter(llm, Path(folder))
        replies = contract(URL, Path(folder))
        chats = {name: list(sent(f"{URL}/v1/chat/completions", body)) for name, body in CHATS.items()}
    for path, recorded in ((tests / "vllm_contract.json", replies), (tests / "prepare" / "vllm_chats.json", chats)):
        path.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", encoding="utf-8")


CHAT = {"model": "base", "max_tokens": 40, "temperature": 0.0}  # as `zoo.backbones.llm_client.Endpoint` asks
CHATS = {
    "answered": CHAT | {"messages": [_message("Say one word about the sea.", None, None)]},
    "cut off": CHAT | {"max_tokens": 2, "messages": [_message("Tell me about the sea.", None, None)]},
    "unknown model": CHAT | {"model": "nope", "messages": [_message("Hello", None, None)]},
    "too long": CHAT | {"messages": [_message("sea " * 3000, None, None)]},
    "a picture": CHAT | {"messages": [_message("What is it?", np.zeros((1, 3, 32, 32), np.uint8), None)]},
    "sound": CHAT | {"messages": [_message("What is it?", None, np.zeros(1600, np.float32))]},
}
EMBEDDED = ["--model=MeritRLVR", "--model.vision=tiny-vit-sitcom", "--model.audio=tiny-hubert-sitcom"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm_python", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/rollouts_vllm"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", choices=("toy", "sitcom", "merit", "killed"))
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
    measured: Tables = {}
    for measure in (toy, sitcom, merit, killed):
        if options.only in (None, measure.__name__):
            measured |= measure(options)
    for name, rows in measured.items():
        columns = list(dict.fromkeys(column for numbers in rows.values() for column in numbers))
        print(f"\n| {name} | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
        for row, numbers in rows.items():
            print(f"| {row} | {' | '.join(str(numbers.get(column, '-')) for column in columns)} |")
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
