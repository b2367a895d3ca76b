"""DialogueLLM at small size on real MELD: every row of the table in zoo/models/dialoguellm/README.md.

    python tests/benchmarks/meld_small.py --data-root ../shared/data/meld --out runs/meld_small --jobs 2

Trains each row once per seed (`zoo fit`), tests it (`zoo test`), and prints validation and test weighted F1: the mean
over seeds with a 95 % interval (bootstrap over the test dialogues), every seed, and the paired difference from `full`.
Finished runs are kept, so the command can be stopped and given again. Settings were chosen on dev, test is reported.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline

from zoo.data import MELD, EmotionData
from zoo.metrics import evaluate, mean_over_seeds, paired_difference
from zoo.schema import Prediction

CONFIGS = Path(__file__).parents[2] / "configs" / "dialoguellm"
ROWS = {  # name -> overlays on meld_small.yaml
    "full": [],
    "LoRA": ["small_lora"],
    "full, 1 previous turn": ["window_1"],
    "full, 2 previous turns": ["window_2"],
    "full, 5 previous turns": ["window_5"],
    "full, speech description": ["speech"],
    "full, stage directions": ["stage"],
    "full, 3 solved examples": ["shots_3"],
}


def train_and_test(root: Path, configs: Sequence[Path], arguments: Sequence[str], threads: int) -> Path:
    """The run folder in ``root``, trained and tested unless it already is."""
    run = root / "lightning_logs" / "version_0"
    if (run / "predictions.jsonl").is_file():
        return run
    zoo = [sys.executable, "-m", "zoo"]
    fit = [
        *zoo,
        "fit",
        *(f"--config={c}" for c in configs),
        *arguments,
        f"--trainer.default_root_dir={root}",
        "--trainer.enable_progress_bar=false",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    for command in (fit, [*zoo, "test", f"--ckpt_path={run}", "--trainer.enable_progress_bar=false"]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    print(f"done: {root}", file=sys.stderr, flush=True)
    return run


def run_row(name: str, seed: int, options: argparse.Namespace) -> Path:
    configs = [CONFIGS / "meld_small.yaml", *(CONFIGS / "ablations" / f"{o}.yaml" for o in ROWS[name])]
    arguments = [f"--seed_everything={seed}", f"--data.root={options.data_root}"]
    if any(o in ("speech", "stage") for o in ROWS[name]):
        arguments.append(f"--data.descriptions=[{options.data_root}]")
    root = options.out / name.replace(",", "").replace(" ", "-") / str(seed)
    return train_and_test(root, configs, arguments, options.threads)


def read_rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def best_dev(run: Path) -> float:
    with (run / "metrics.csv").open() as f:
        return max(float(r["val/wf1"]) for r in csv.DictReader(f) if r.get("val/wf1"))


def baselines(data: EmotionData) -> dict[str, tuple[float, list[dict]]]:
    """Majority class of train, and TF-IDF with logistic regression (C and class weights chosen on dev): dev weighted F1
    and rows on test."""
    texts = {s: [x.target.text for x in data.samples(s)] for s in ("train", "dev", "test")}
    gold = {s: [x.target.label for x in data.samples(s)] for s in ("train", "dev", "test")}

    def rows(answers) -> list[dict]:
        return [
            Prediction(x.id, x.dialogue, x.target.label, str(a)).row()
            for x, a in zip(data.samples("test"), answers, strict=True)
        ]

    best: tuple[float, Any] = (-1.0, None)
    for c in (0.3, 1, 3, 10):
        for balance in (None, "balanced"):
            model = make_pipeline(
                TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"\w+|[!?.]+"),
                LogisticRegression(C=c, class_weight=balance, max_iter=2000),
            )
            model.fit(texts["train"], gold["train"])
            dev = f1_score(gold["dev"], model.predict(texts["dev"]), average="weighted")
            best = max(best, (dev, model), key=lambda pair: pair[0])
    ((often, _),) = Counter(gold["train"]).most_common(1)
    majority = [often] * len(texts["test"])
    dev_majority = f1_score(gold["dev"], [often] * len(gold["dev"]), average="weighted")
    return {
        "majority class": (dev_majority, rows(majority)),
        "TF-IDF + logistic regression": (best[0], rows(best[1].predict(texts["test"]))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="MELD's folder")
    parser.add_argument("--out", type=Path, default=Path("runs/meld_small"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads per run")
    options = parser.parse_args()
    labels = MELD.labels
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = {(n, s): pool.submit(run_row, n, s, options) for s in options.seeds for n in options.rows}
        runs = {key: future.result() for key, future in futures.items()}
    print(
        f"| row | dev weighted F1 | test weighted F1, n = 2610 [95 %] | seeds {options.seeds} | "
        "against full [95 %] | "
        "macro F1 | accuracy |\n|---|---|---|---|---|---|---|"
    )
    for name, (dev, rows) in baselines(MELD(root=options.data_root)).items():
        e = evaluate(rows, labels)
        low, high = e["ci95"]["weighted_f1"]
        print(
            f"| {name} | {dev:.3f} | {e['weighted_f1']:.3f} [{low:.3f}, {high:.3f}] | | | {e['macro_f1']:.3f} | "
            f"{e['accuracy']:.3f} |"
        )
    full = [read_rows(runs["full", s]) for s in options.seeds] if "full" in options.rows else None
    for name in options.rows:
        group = [read_rows(runs[name, s]) for s in options.seeds]
        m = mean_over_seeds(group, labels)
        others = [np.mean([evaluate(r, labels, draws=1)[k] for r in group]) for k in ("macro_f1", "accuracy")]
        against = ""
        if full is not None and name != "full":
            d = paired_difference(group, full, labels)
            against = "{:+.3f} [{:+.3f}, {:+.3f}]".format(d["difference"], *d["ci95"])
        dev = np.mean([best_dev(runs[name, s]) for s in options.seeds])
        print(
            f"| {name} | {dev:.3f} | {m['mean']:.3f} [{m['ci95'][0]:.3f}, {m['ci95'][1]:.3f}] | "
            f"{' '.join(f'{v:.3f}' for v in m['values'])} | {against} | "
            f"{others[0]:.3f} | {others[1]:.3f} |"
        )


if __name__ == "__main__":
    main()
