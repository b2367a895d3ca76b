"""The modality selector on the embedded sitcom: which descriptions are worth keeping, and does a policy find out?

    python tests/benchmarks/selector_sitcom.py --out runs/selector_sitcom --seeds 0 1 2
    python tests/benchmarks/selector_sitcom.py --out runs/selector_sitcom --parts sweep --seeds 0

Two cells: *shift* (the classifier was trained with the clean captioner and meets the noisy one, which errs where the
text is explicit) and *matched* (trained and tested with the noisy one). Per cell and seed: one classifier, what it
answers with and without descriptions, and rows that differ only in which of the two answers is taken:

    never / always / random
    adaptive (paper)         the decision-token policy under the paper's own reward, which never looks at the emotion
    adaptive (labels)        rewarded with the change of the right label's probability
    adaptive (no labels)     rewarded with the drop of the classifier's entropy
    best honest              keeps where the exact posterior (text and descriptions, no label) prefers that answer
    peeking                  takes the right one of two answers: no honest selector reaches it

`--parts think` is the policy as the paper writes it (thoughts, then a decision), from a supervised start without
preference: under the paper's rewards, and under the downstream reward with both decisions forced behind the sampled
thoughts. `--parts sweep` is the paper's Figure 3: classifiers with 0 to 20 earlier turns, uniform (always) and
selective.
Settings were chosen on dev of corpus seed 79; corpus seed 81 is only reported. Finished steps are kept.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from zoo.data import Synthetic
from zoo.metrics import mean_over_seeds, paired_difference
from zoo.models.selector.parts import read_decisions
from zoo.sitcom.cues import LABELS
from zoo.sitcom.posteriors import posterior

CONFIGS = Path(__file__).parents[2] / "configs" / "selector"
CELLS = {"shift": "clean", "matched": "noisy"}  # the captioner that the classifier was trained with
POLICIES = {
    "adaptive (paper)": ["--model.response=paper", "--model.downstream=null"],
    "adaptive (labels)": ["--model.downstream_kind=probability"],
    "adaptive (no labels)": ["--model.downstream_kind=entropy"],
}
WINDOWS = (0, 2, 5, 10, 20)
SIZES = {"train": 1400, "dev": 100, "test": 350}


def zoo(*arguments: object, threads: int = 1) -> None:
    """Run a command of the zoo; RuntimeError with the end of what it said if it fails."""
    command = [sys.executable, "-m", "zoo", *map(str, arguments), "--trainer.enable_progress_bar=false"]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")


def once(root: Path, result: str, *steps: Sequence[object]) -> Path:
    """The run folder in ``root`` after these commands, unless its result is there already."""
    run = root / "lightning_logs" / "version_0"
    if not (run / result).is_file():
        for step in steps:
            zoo(*step)
        print(f"done: {root}", file=sys.stderr, flush=True)
    return run


def sizes(options: argparse.Namespace, *splits: str) -> list[str]:
    """Fewer dialogues for trying the command out."""
    return [f"--data.{s}_dialogues={max(2, SIZES[s] // options.shrink)}" for s in splits]


def classifier(options: argparse.Namespace, cell: str, seed: int, window: int, splits: Sequence[str]) -> Path:
    root = options.out / cell / str(seed) / (f"classifier-{window}" if window else "classifier")
    run = root / "lightning_logs" / "version_0"
    fit = [
        "fit",
        f"--config={CONFIGS / 'sitcom_classifier.yaml'}",
        f"--seed_everything={seed}",
        f"--data.descriptions={CELLS[cell]}",
        f"--model.window={window}",
        "--model.max_length=512",
        *([f"--data.train_dialogues={max(4, 470 // options.shrink)}"]),
        *sizes(options, "dev"),
        f"--trainer.default_root_dir={root}",
    ]
    compare = [
        "predict",
        f"--ckpt_path={run}",
        "--model.compare=true",
        "--data.descriptions=noisy",
        f"--data.predict_splits=[{','.join(splits)}]",
        *sizes(options, "train", "dev", "test"),
    ]
    return once(root, "predictions.jsonl", fit, compare)


def policy(options: argparse.Namespace, cell: str, seed: int, name: str, judge: Path) -> Path:
    root = options.out / cell / str(seed) / name.replace(" ", "-").strip("()").replace("(", "")
    run = root / "lightning_logs" / "version_0"
    fit = [
        "fit",
        f"--config={CONFIGS / 'sitcom.yaml'}",
        f"--seed_everything={seed}",
        f"--model.downstream={judge}",
        *POLICIES[name],
        *sizes(options, "train", "dev", "test"),
        f"--trainer.default_root_dir={root}",
    ]
    decide = ["predict", f"--ckpt_path={run}/checkpoints/last.ckpt", "--data.predict_splits=[dev,test]"]
    return once(root, "decisions.jsonl", fit, decide)


def thinking(options: argparse.Namespace, seed: int, judge: Path, downstream: bool) -> Path:
    place = options.out / "shift" / str(seed)
    start, root = place / "start", place / ("think-downstream" if downstream else "think-paper")
    root = root if options.think_steps == 250 else root.with_name(f"{root.name}-{options.think_steps}")
    begun = once(
        start,
        "checkpoints/last.ckpt",
        [
            "fit",
            f"--config={CONFIGS / 'sitcom_start.yaml'}",
            f"--seed_everything={seed}",
            f"--model.comparisons={judge}",
            *([f"--data.train_dialogues={max(2, 700 // options.shrink)}"]),
            *sizes(options, "dev", "test"),
            f"--trainer.default_root_dir={start}",
        ],
    )
    run = root / "lightning_logs" / "version_0"
    overlay = CONFIGS / "ablations" / "sitcom_think_downstream.yaml"
    fit = [
        "fit",
        f"--config={CONFIGS / 'sitcom_think.yaml'}",
        *([f"--config={overlay}", f"--model.downstream={judge}"] if downstream else []),
        f"--seed_everything={seed}",
        f"--model.start_from={begun}/checkpoints/last.ckpt",
        f"--trainer.max_steps={max(2, options.think_steps // options.shrink)}",
        f"--model.lr={options.think_lr}",
        *sizes(options, "train", "dev", "test"),
        f"--trainer.default_root_dir={root}",
    ]
    decide = ["predict", f"--ckpt_path={run}/checkpoints/last.ckpt", "--data.predict_splits=[test]"]
    return once(root, "decisions.jsonl", fit, decide)


def think(options: argparse.Namespace, data: Synthetic) -> None:
    print(
        "\n| thinking policy | seed | sampled keep rate, first and last 10 steps | unparsed | greedy: accuracy | "
        "kept | unparsed | always | never |\n|---|---|---|---|---|---|---|---|---|"
    )
    for seed in options.seeds:
        judge = classifier(options, "shift", seed, 0, ("train", "dev", "test"))
        rows = answers(judge, "test")

        def accuracy(keep: Sequence[bool], rows: Sequence[dict] = rows) -> str:
            return f"{100 * mean_over_seeds([choose(rows, keep)], data.labels, 'accuracy')['mean']:.1f}"

        for downstream in (False, True) if options.think_steps == 250 else (True,):
            run = thinking(options, seed, judge, downstream)
            decided = read_decisions(run)
            said = [decided[r["id"]] for r in rows]
            log = pd.read_csv(run / "metrics.csv")
            rates, unparsed = (log[f"train/{name}"].dropna() for name in ("yes_rate", "unparsed"))
            keep = [d is not False for d in said]
            print(
                f"| {'downstream, forced pairs' if downstream else 'paper'} | {seed} | {rates.head(2).mean():.2f} to "
                f"{rates.tail(2).mean():.2f} | {unparsed.tail(2).mean():.3f} | {accuracy(keep)} | "
                f"{np.mean(keep):.2f} | {said.count(None) / len(said):.3f} | "
                f"{accuracy([True] * len(rows))} | {accuracy([False] * len(rows))} |"
            )


def answers(judge: Path, split: str) -> list[dict]:
    rows = [json.loads(line) for line in (judge / "predictions.jsonl").read_text().splitlines()]
    return [r for r in rows if f"/{split}/" in r["id"]]


def choose(rows: Sequence[dict], keep: Sequence[bool]) -> list[dict]:
    """The classifier's answers with descriptions where they are kept."""
    sides = [r["details"]["with" if k else "without"] for r, k in zip(rows, keep, strict=True)]
    return [
        {"id": r["id"], "dialogue": r["dialogue"], "label": r["label"], "predicted": max(p, key=p.get)}
        for r, p in zip(rows, sides, strict=True)
    ]


def honest(data: Synthetic, split: str, rows: Sequence[dict]) -> list[bool]:
    truth = {f"synthetic/{split}/{u.id}": u for d in data.dialogues(split) for u in d.utterances}
    keep = []
    for row in rows:
        p = posterior(truth[row["id"]], ("text", "descriptions"))
        full, bare = (max(row["details"][side], key=row["details"][side].get) for side in ("with", "without"))
        keep.append(p[LABELS.index(full)] >= p[LABELS.index(bare)])
    return keep


def selections(options: argparse.Namespace, cell: str, seed: int, data: Synthetic) -> dict[str, tuple]:
    """row -> (predictions, keep rate, unparsed rate) on the test split."""
    judge = classifier(options, cell, seed, 0, ("train", "dev", "test"))
    rows = answers(judge, "test")
    rng = np.random.default_rng(seed)
    keeps = {"never": [False] * len(rows), "always": [True] * len(rows), "random": list(rng.random(len(rows)) < 0.5)}
    unparsed = dict.fromkeys(keeps, 0.0)
    for name in POLICIES:
        if cell == "matched" and name != "adaptive (labels)":
            continue
        decided = read_decisions(policy(options, cell, seed, name, judge))
        said = [decided[r["id"]] for r in rows]
        keeps[name], unparsed[name] = [d is not False for d in said], said.count(None) / len(said)
    keeps["best honest"] = honest(data, "test", rows)
    right = [max(r["details"]["with"], key=r["details"]["with"].get) == r["label"] for r in rows]
    keeps["peeking"] = right
    return {n: (choose(rows, k), float(np.mean(k)), unparsed.get(n, 0.0)) for n, k in keeps.items()}


def table(options: argparse.Namespace, cell: str, data: Synthetic) -> None:
    with ThreadPoolExecutor(options.jobs) as pool:
        found = list(pool.map(lambda seed: selections(options, cell, seed, data), options.seeds))
    n = len(found[0]["never"][0])
    print(
        f"\n**{cell}**: classifier trained on `{CELLS[cell]}`, deployed on `noisy`; n = {n} test utterances, corpus "
        f"seed {data.corpus_seed}, seeds {options.seeds}\n\n| selection | accuracy [95 %] | seeds | weighted F1 "
        "[95 %] | against always [95 %] | against never [95 %] | kept | unparsed |\n|---|---|---|---|---|---|---|---|"
    )
    labels = data.labels
    for name in found[0]:
        runs = [f[name][0] for f in found]
        acc, f1 = (mean_over_seeds(runs, labels, metric) for metric in ("accuracy", "weighted_f1"))
        cells = [
            f"{100 * acc['mean']:.1f} {interval(acc['ci95'])}",
            " ".join(f"{100 * v:.1f}" for v in acc["values"]),
            f"{100 * f1['mean']:.1f} {interval(f1['ci95'])}",
        ]
        for other in ("always", "never"):
            d = paired_difference(runs, [f[other][0] for f in found], labels, "accuracy")
            cells.append("" if name == other else f"{100 * d['difference']:+.1f} {interval(d['ci95'], '+')}")
        kept, unparsed = (np.mean([f[name][i] for f in found]) for i in (1, 2))
        print(f"| {name} | {' | '.join(cells)} | {kept:.2f} | {unparsed:.3f} |")


def sweep(options: argparse.Namespace, data: Synthetic) -> None:
    print(
        "\n| earlier turns | uniform: weighted F1 [95 %] | selective [95 %] | gap [95 %] | kept |\n"
        "|---|---|---|---|---|"
    )
    labels = data.labels
    for window in WINDOWS:
        uniform, selective, kept = [], [], []
        for seed in options.seeds:
            rows = answers(
                classifier(options, "shift", seed, window, ("dev", "test"))
                if window
                else classifier(options, "shift", seed, 0, ("train", "dev", "test")),
                "test",
            )
            judge = classifier(options, "shift", seed, 0, ("train", "dev", "test"))
            decided = read_decisions(policy(options, "shift", seed, "adaptive (labels)", judge))
            keep = [decided[r["id"]] is not False for r in rows]
            uniform.append(choose(rows, [True] * len(rows)))
            selective.append(choose(rows, keep))
            kept.append(np.mean(keep))
        a, b = (mean_over_seeds(runs, labels) for runs in (uniform, selective))
        gap = paired_difference(selective, uniform, labels)
        print(
            f"| {window} | {100 * a['mean']:.1f} {interval(a['ci95'])} | "
            f"{100 * b['mean']:.1f} {interval(b['ci95'])} | {100 * gap['difference']:+.1f} "
            f"{interval(gap['ci95'], '+')} | {np.mean(kept):.2f} |"
        )


def interval(ci95: Sequence[float], sign: str = "") -> str:
    """Write an interval of shares in percent."""
    return f"[{100 * ci95[0]:{sign}.1f}, {100 * ci95[1]:{sign}.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/selector_sitcom"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parts = ["shift", "matched", "think", "sweep"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts[:2])
    parser.add_argument("--think_steps", type=int, default=250, help="other than 250: the downstream reward alone")
    parser.add_argument("--think_lr", type=float, default=1e-3)
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time")
    parser.add_argument("--shrink", type=int, default=1, help="a fraction of the corpus, for trying the command out")
    options = parser.parse_args()
    data = Synthetic(corpus_seed=81, descriptions="noisy", test_dialogues=max(2, SIZES["test"] // options.shrink))
    for part in options.parts:
        {"sweep": sweep, "think": think}[part](options, data) if part in ("sweep", "think") else table(
            options, part, data
        )


if __name__ == "__main__":
    main()
