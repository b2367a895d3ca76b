"""Does a policy that can think write a thought and select? SmolLM2-135M as modality selector, on the sitcom's shift.

    python tests/benchmarks/selector_thinking.py --out runs/selector_thinking --seeds 0 1

The classifier was trained with the clean captioner and meets the noisy one, which errs where the text is explicit (cell
*shift* of selector_sitcom.py). One classifier; for every seed a supervised start (the form of the answers, decisions
drawn evenly) and stage 1 (configs/selector/laptop*.yaml). Rows differ only in which of the classifier's two answers
counts: never, always, and the policy's greedy decision. Corpus seed 81, its test split. Finished steps are kept.

``--precision bf16-mixed`` (and frozen weights in bfloat16) halves the time where the processor multiplies in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.benchmarks.selector_sitcom import choose, honest, interval, zoo
from zoo.data import Synthetic
from zoo.metrics import mean_over_seeds, paired_difference
from zoo.models.selector.parts import read_decisions, read_rows

CONFIGS = Path(__file__).parents[2] / "configs" / "selector"
SIZES = {"train": 160, "dev": 20, "test": 120}  # dialogues, as the configs have them
THOUGHT = re.compile(r"<think>\s*(.*?)\s*</think>", re.DOTALL)


def run_zoo(options: argparse.Namespace, *arguments: str) -> None:
    """Run a command of the zoo on a corpus of the chosen size."""
    sizes = [f"--data.{split}_dialogues={max(4, n // options.shrink)}" for split, n in SIZES.items()]
    zoo(*arguments, *sizes, threads=options.threads)


def fit(options: argparse.Namespace, root: Path, config: str, *arguments: str, frozen: bool = True) -> Path:
    """Return the run folder of a config, trained unless it is already."""
    run = root / "lightning_logs" / "version_0"
    if not (run / "trained").is_file():
        dtype = ["--model.dtype=bfloat16"] if frozen and options.precision == "bf16-mixed" else []
        run_zoo(
            options, "fit", f"--config={CONFIGS / config}", f"--model.llm={options.llm}", *arguments, *dtype,
            f"--trainer.precision={options.precision}", f"--trainer.default_root_dir={root}",
        )  # fmt: skip
        (run / "trained").touch()
        print(f"trained: {root}", file=sys.stderr, flush=True)
    return run


def predict(options: argparse.Namespace, run: Path, file: str, *arguments: str) -> None:
    """Let a run write its predictions, unless it has."""
    if not (run / file).is_file():
        run_zoo(options, "predict", f"--ckpt_path={run}/checkpoints/last.ckpt", *arguments)
        print(f"predicted: {run}", file=sys.stderr, flush=True)


def policy(options: argparse.Namespace, seed: int, judge: Path) -> Path:
    """Return the run of a trained policy that has decided about the test split."""
    place = options.out / str(seed)
    start = fit(
        options, place / "start", "laptop_start.yaml", f"--seed_everything={seed}", f"--model.comparisons={judge}",
        frozen=False,
    )  # fmt: skip
    steps = max(2, options.steps // options.shrink)
    run = fit(
        options, place / "think", "laptop.yaml", f"--seed_everything={seed}", f"--model.downstream={judge}",
        f"--model.start_from={start}/checkpoints/last.ckpt", f"--trainer.max_steps={steps}", f"--model.lr={options.lr}",
        f"--model.overlength={options.overlength}",
    )  # fmt: skip
    predict(options, run, "decisions.jsonl", "--data.predict_splits=[test]")
    return run


def thoughts(run: Path, ids: set[str]) -> list[str]:
    """Return what stands between the tags of thoughts in the answers about these samples; nothing where they lack."""
    texts = []
    for row in read_rows(run, "decisions.jsonl"):
        if row["id"] in ids:
            match = THOUGHT.search(row["text"] or "")
            texts.append(match[1] if match else "")
    return texts


def cells(
    name: str, runs: list[list[dict[str, Any]]], bases: dict[str, list[dict[str, Any]]], labels: Any
) -> list[str]:
    """Return a row's first cells: accuracy, seeds, weighted F1, and what it differs from always and never by."""
    accuracy, f1 = (mean_over_seeds(runs, labels, metric) for metric in ("accuracy", "weighted_f1"))
    row = [
        name,
        f"{100 * accuracy['mean']:.1f} {interval(accuracy['ci95'])}",
        " ".join(f"{100 * v:.1f}" for v in accuracy["values"]),
        f"{100 * f1['mean']:.1f} {interval(f1['ci95'])}",
    ]
    for base, answers in bases.items():
        d = paired_difference(runs, [answers] * len(runs), labels, "accuracy")
        row.append("" if base == name else f"{100 * d['difference']:+.1f} {interval(d['ci95'], '+')}")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/selector_thinking"))
    parser.add_argument("--llm", default="smollm2-135m")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=150, help="of stage 1")
    parser.add_argument("--lr", type=float, default=5e-4, help="of stage 1")
    parser.add_argument("--overlength", choices=["paper", "none"], default="paper", help="reward of stage 1")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shrink", type=int, default=1, help="a fraction of the corpus, for trying the command out")
    options = parser.parse_args()
    data = Synthetic(corpus_seed=81, descriptions="noisy", test_dialogues=max(4, SIZES["test"] // options.shrink))

    judge = fit(options, options.out / "classifier", "laptop_classifier.yaml")
    predict(
        options, judge, "predictions.jsonl", "--model.compare=true", "--data.descriptions=noisy",
        "--data.predict_splits=[train,dev,test]",
    )  # fmt: skip
    rows = [row for row in read_rows(judge, "predictions.jsonl") if "/test/" in row["id"]]
    bases = {"always": choose(rows, [True] * len(rows)), "never": choose(rows, [False] * len(rows))}
    runs = [policy(options, seed, judge) for seed in options.seeds]
    kept, unparsed, thinking, rates, chosen = [], [], [], [], []
    for run in runs:
        by_sample = read_decisions(run)
        decisions = [by_sample[row["id"]] for row in rows]
        keep = [decision is not False for decision in decisions]
        chosen.append(choose(rows, keep))
        kept.append(float(np.mean(keep)))
        unparsed.append(decisions.count(None) / len(decisions))
        thinking.append(float(np.mean([bool(t) for t in thoughts(run, {row["id"] for row in rows})])))
        reward = pd.read_csv(run / "metrics.csv")["train/reward"].dropna()
        rates.append(f"{reward.head(10).mean():.2f} to {reward.tail(10).mean():.2f}")
    best = choose(rows, honest(data, "test", rows))

    print(f"n = {len(rows)} test utterances, corpus seed 81, policy seeds {options.seeds}, {options.steps} steps\n")
    header = ["selection", "accuracy [95 %]", "each seed", "weighted F1 [95 %]", "against always [95 %]"]
    header += ["against never [95 %]", "kept", "unparsed", "with a thought"]
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for name, answers in bases.items():
        print(
            "| " + " | ".join([*cells(name, [answers], bases, data.labels), f"{name == 'always':.2f}", "", ""]) + " |"
        )
    shares = [
        " ".join(f"{value:.{digits}f}" for value in values)
        for values, digits in ((kept, 2), (unparsed, 3), (thinking, 3))
    ]
    print("| " + " | ".join([*cells("thinking policy", chosen, bases, data.labels), *shares]) + " |")
    print("| " + " | ".join([*cells("best honest", [best], bases, data.labels), "", "", ""]) + " |")
    print(f"\nreward of the first and last ten steps: {', '.join(rates)}")
    some = read_rows(runs[0], "decisions.jsonl")[:3]
    print(json.dumps([{"text": row["text"], **row["details"]} for row in some], indent=1))


if __name__ == "__main__":
    main()
