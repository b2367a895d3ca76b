"""A problem that any correct reinforcement must solve: a model of random weights learns to answer "yes".

    python tests/benchmarks/grpo_toy.py --out runs/grpo_toy --picture docs/grpo_toy.png

Every objective from five seeds, 60 steps of 8 prompts with 16 answers of one token; chance finds the word about once in
500 answers at the beginning (temperature 1.5). Prints the reward of the first and the last five steps of each seed, and
draws the curves. A control whose reward does not depend on the answer learns nothing.
"""

import argparse
import contextlib
import io
import random
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from zoo.backbones.tiny import make_folder
from zoo.cli import main as zoo
from zoo.rl import Answer

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

OBJECTIVES = {
    "grpo_clip": ["--model.objective.kind=grpo_clip", "--model.objective.normalize=token"],
    "LoRA": ["--model.lora.r=8", "--model.lora.alpha=64", "--model.lora.targets=.*_proj", "--model.lr=0.01"],
    "LoRA, beta .04": [
        "--model.objective.kind=grpo_clip",
        "--model.objective.beta=0.04",
        "--model.lora.r=8",
        "--model.lora.alpha=64",
        "--model.lora.targets=.*_proj",
        "--model.lr=0.01",
    ],
    "reinforce_group": ["--model.objective.kind=reinforce_group", "--model.objective.normalize=sum"],
    "ppo_advantage": ["--model.objective.kind=ppo_advantage", "--model.objective.normalize=sum"],
    "ppo_reward": ["--model.objective.kind=ppo_reward", "--model.objective.normalize=sum"],
    "control": ["--model.reward_funcs=[grpo_toy.blind]"],
}


def says_yes(answer: Answer) -> float:
    return float(answer.text.strip() == "yes")


def blind(answer: Answer) -> float:
    """Depends on what was asked and on chance, not on the answer."""
    return random.random()


def backbone(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        rng = random.Random(0)
        words = ["yes", "no", "maybe", "never", "often", "perhaps", "the", "kettle", "garden", "violin", "answer"]
        texts = [f"{' '.join(rng.choices(words, k=8))}. emotion: {rng.choice(words)}" for _ in range(400)]
        make_folder(folder, texts, vocab_size=320, hidden_size=128, layers=2, heads=4, intermediate_size=256)
        weights = folder / "model.safetensors"
        # else the frozen head under LoRA could not say anything surely, whatever the adapters do
        save_file({k: v * 7 if v.ndim > 1 else v for k, v in load_file(weights).items()}, weights, {"format": "pt"})
    return folder


def arguments(llm: Path, name: str, seed: int) -> list[str]:
    """The options of a fit with an objective."""
    return [
        "--model=GRPO",
        f"--model.llm={llm}",
        "--data=Synthetic",
        "--model.reward_funcs=[grpo_toy.says_yes]",
        "--model.num_generations=16",
        "--model.max_new_tokens=1",
        "--model.temperature=1.5",
        "--model.lr=0.003",
        *OBJECTIVES[name],
        "--model.schedule=constant",
        "--model.warmup=0",
        "--model.log_completions_steps=0",
        "--data.batch_size=8",
        "--data.train_dialogues=100",
        "--data.dev_dialogues=1",
        "--trainer.max_steps=60",
        "--trainer.limit_val_batches=0",
        "--trainer.accelerator=cpu",
        "--trainer.gradient_clip_val=1",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        f"--seed_everything={seed}",
    ]


def curve(options: argparse.Namespace, name: str, seed: int) -> pd.Series:
    """Mean reward of every step."""
    root = options.out / name.replace(" ", "").replace(",", "-") / str(seed)
    run = root / "lightning_logs" / "version_0"
    if not (run / "checkpoints" / "last.ckpt").is_file():
        given = arguments(backbone(options.out / "backbone"), name, seed)
        with contextlib.redirect_stdout(io.StringIO()):
            zoo(["fit", *given, f"--trainer.default_root_dir={root}"])
    return pd.read_csv(run / "metrics.csv")["train/reward"].dropna().reset_index(drop=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/grpo_toy"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))  # the rewards are named grpo_toy.says_yes
    torch.set_num_threads(1)
    figure, axes = plt.subplots(1, len(OBJECTIVES), figsize=(2.3 * len(OBJECTIVES), 2.2), sharey=True)
    print(f"| objective | mean reward of the first 5 steps, seeds {options.seeds} | of the last 5 |\n|---|---|---|")
    for axis, name in zip(axes, OBJECTIVES, strict=True):
        curves = [curve(options, name, seed) for seed in options.seeds]
        ends = [[f"{c.iloc[part].mean():.2f}" for c in curves] for part in (slice(5), slice(-5, None))]
        print(f"| {name} | {' '.join(ends[0])} | {' '.join(ends[1])} |")
        for c in curves:
            axis.plot(np.arange(len(c)), c, linewidth=1)
        axis.set(title=name, xlabel="step", ylim=(-0.03, 1.03))
        axis.title.set_size(9)
    axes[0].set_ylabel("mean reward")
    figure.tight_layout()
    if options.picture:
        options.picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
