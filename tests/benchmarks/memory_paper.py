"""Predicted memory of the configs of paper size, as a table; nothing is trained and no weights are read.

    python -m tests.benchmarks.memory_paper

What a config names beside weights and data (an earlier run, a selector's decisions) need not exist. Prompts have the
longest length that the config allows.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import yaml

from zoo.arguments import know_short_names
from zoo.memory.cards import GIB, smallest
from zoo.memory.command import make_parser, of_options, step_of

CONFIGS = Path(__file__).parents[2] / "configs"
PAPER = (
    "dialoguellm/meld",
    "instructerc/meld",
    "farcer/meld",
    "selector/meld",
    "merit/mosei",
    "merit/mosei_rlvr",
    "merit/mosei_ttrl",
    "emotion_qwen/stage1",
    "emotion_qwen/stage3",
    "emotion_qwen/tune_lora",
)
HEAD = (
    "| system | config | parameters | trained | prompt, tokens | batch | expected peak GiB | smallest card |",
    "|---|---|---|---|---|---|---|---|",
)


def row(config: str) -> str:
    """Return the row of a config, by its name under ``configs/``."""
    know_short_names()
    parser = make_parser()
    parsed = parser.parse_args(["--config", str(CONFIGS / f"{config}.yaml")])
    options = yaml.safe_load(parser.dump(parsed, skip_validation=True, skip_none=False))
    prediction, step = of_options(options), step_of(options)
    card = smallest(prediction.peak)
    peak = f"{prediction.peak / GIB:.1f}{' (*)' if prediction.notes else ''}"
    system = options["model"]["class_path"].rpartition(".")[2]
    sizes = f"{prediction.parameters / 1e9:.2f} B | {prediction.trained / 1e6:.1f} M | {prediction.tokens}"
    fits = "none; divide it over several" if card is None else f"{card.size} GB"
    return f"| {system} | `configs/{config}.yaml` | {sizes} | {step.accumulate} x {step.batch_size} | {peak} | {fits} |"


def main() -> None:
    """Print the table."""
    warnings.filterwarnings("ignore")
    print(*HEAD, sep="\n")
    for config in PAPER:
        print(row(config), flush=True)


if __name__ == "__main__":
    main()
