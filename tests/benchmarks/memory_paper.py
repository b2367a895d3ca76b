"""Predicted memory of the configs of paper size, and what of 7B, 8B and 32B fits where, as two tables; nothing is
trained and no weights are read.

    python -m tests.benchmarks.memory_paper

What a config names beside weights and data (an earlier run, a selector's decisions) need not exist. Prompts have the
longest length that the config allows. On eight cards each process has such a batch of its own, and the weights are
divided by ``configs/trainer/fsdp2.yaml``; those in nf4, which are not divided, are whole on each (ddp).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from zoo.memory.cards import GIB, card_of, smallest
from zoo.memory.command import Options, options_of, prediction_of, step_of

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


class Tuning(NamedTuple):
    """A way to train a language model.

    Attributes:
        size: of the language model.
        what: is trained.
        config: by its name under ``configs/``.
        changes: options beside it.
    """

    size: str
    what: str
    config: str
    changes: tuple[str, ...] = ()


NF4 = ("--model.quantize=nf4",)
FULL = ("--model.lora=null", "--model.dtype=float32")  # weights that are trained are float32
LLAMA_3 = ("--model.llm=meta-llama/Meta-Llama-3-8B-Instruct",)
TUNINGS = (
    Tuning("LLaMA-2-7B", "LoRA, bfloat16", "dialoguellm/meld"),
    Tuning("LLaMA-2-7B", "LoRA on nf4", "dialoguellm/meld", NF4),
    Tuning("LLaMA-2-7B", "everything", "dialoguellm/meld", FULL),
    Tuning("Qwen2.5-7B", "GRPO, LoRA", "selector/meld"),
    Tuning("Qwen2.5-7B", "everything", "emotion_qwen/stage3"),
    Tuning("LLaMA-3-8B", "LoRA, bfloat16", "dialoguellm/meld", LLAMA_3),
    Tuning("LLaMA-3-8B", "LoRA on nf4", "dialoguellm/meld", LLAMA_3 + NF4),
    Tuning("LLaMA-3-8B", "everything", "dialoguellm/meld", LLAMA_3 + FULL),
    Tuning("LLaMA-3-8B", "GRPO, LoRA", "selector/meld", LLAMA_3),
    Tuning("Qwen2.5-32B", "LoRA, bfloat16", "merit/mosei"),
    Tuning("Qwen2.5-32B", "LoRA on nf4", "merit/mosei", NF4),
    Tuning("Qwen2.5-32B", "everything", "merit/mosei", FULL),
    Tuning("Qwen2.5-32B", "RLVR, LoRA", "merit/mosei_rlvr"),
)
FITS_HEAD = (
    "| language model | trained | config | batch | one card, GiB | 1 x 24 GB | 1 x 80 GB | each of 8 cards, GiB | "
    "8 x 80 GB |",
    "|---|---|---|---|---|---|---|---|---|",
)


def of_config(config: str, *changes: str) -> Options:
    """Return the options of a config, by its name under ``configs/``, and what is given beside it."""
    return options_of(["--config", str(CONFIGS / f"{config}.yaml"), *changes])


def row(config: str) -> str:
    """Return the row of a config, by its name under ``configs/``."""
    options = of_config(config)
    prediction, step = prediction_of(options), step_of(options)
    card = smallest(prediction.peak)
    peak = f"{prediction.peak / GIB:.1f}{' (*)' if prediction.notes else ''}"
    system = options["model"]["class_path"].rpartition(".")[2]
    sizes = f"{prediction.parameters / 1e9:.2f} B | {prediction.trained / 1e6:.1f} M | {prediction.tokens}"
    fits = "none; divide it over several" if card is None else f"{card.size} GB"
    return f"| {system} | `configs/{config}.yaml` | {sizes} | {step.accumulate} x {step.batch_size} | {peak} | {fits} |"


def fits(tuning: Tuning) -> list[str]:
    """Return the rows of a way to train: with the batch of its config, and with one sample at a time."""
    options = of_config(tuning.config, *tuning.changes)
    step = step_of(options)
    one_at_a_time = ("--data.batch_size=1", f"--trainer.accumulate_grad_batches={step.accumulate * step.batch_size}")
    return [_fits(tuning, changes) for changes in ((), one_at_a_time)[: 1 + (step.batch_size > 1)]]


def _fits(tuning: Tuning, batch: Sequence[str]) -> str:
    options = of_config(tuning.config, *tuning.changes, *batch)
    step, prediction, whole = step_of(options), prediction_of(options), NF4[0] in tuning.changes
    peak, noted = prediction.peak, " (*)" if prediction.notes else ""
    divide = f"--config={CONFIGS / 'trainer' / 'fsdp2.yaml'}"
    of_eight = peak if whole else prediction_of(of_config(tuning.config, *tuning.changes, *batch, divide)).peak
    cards = ["yes" if peak <= card_of(size).usable else "no" for size in (24, 80)]
    eight = f"{of_eight / GIB:.1f}{' (ddp)' if whole else ''} | {'yes' if of_eight <= card_of(80).usable else 'no'}"
    config = " ".join([f"`configs/{tuning.config}.yaml", *tuning.changes]) + "`"
    size = f"{step.accumulate} x {step.batch_size}"
    one = f"{peak / GIB:.1f}{noted}"
    return f"| {tuning.size} | {tuning.what} | {config} | {size} | {one} | {' | '.join(cards)} | {eight} |"


def main() -> None:
    """Print the tables."""
    warnings.filterwarnings("ignore")
    print(*HEAD, sep="\n")
    for config in PAPER:
        print(row(config), flush=True)
    print("", *FITS_HEAD, sep="\n")
    for tuning in TUNINGS:
        print(*fits(tuning), sep="\n", flush=True)


if __name__ == "__main__":
    main()
