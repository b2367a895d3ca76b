"""The modality selector's two stages at small size on real MELD: the table in zoo/models/selector/README.md.

    python tests/benchmarks/selector_meld.py --data-root ../shared/data/meld --out runs/selector_meld

Per seed: a classifier is trained on prompts half of which show descriptions (measured speech and stage directions) and
says what it answers with and without them; decision-token selectors learn from the difference, with labels (right
label's probability) and without (entropy), at each of the learning rates; the one with the best dev weighted F1 of each
kind decides about test. Rows differ only in which of the classifier's two answers counts, and the end is checked
through `zoo test --model.selection`. Finished steps are kept, so the command can be stopped and given again.

The classifier's answers on train are those to samples it was trained on; their mean gain is printed beside dev's.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from zoo.data import MELD
from zoo.metrics import evaluate, mean_over_seeds, paired_difference

CONFIGS = Path(__file__).parents[2] / "configs" / "selector"
KINDS = {"adaptive, labels": "probability", "adaptive, no labels": "entropy"}
Rows = list[dict]


def zoo(log: Path, *args: object) -> None:
    """`zoo ARGS` in one thread, unless its log says that it was done."""
    mark = log.with_suffix(".done")
    if mark.is_file():
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-m", "zoo", *map(str, args), "--trainer.enable_progress_bar=false"],
            stdout=file,
            stderr=file,
            env={"OMP_NUM_THREADS": "1"} | os.environ,
        )
    if done.returncode:
        raise RuntimeError(f"zoo {' '.join(map(str, args))}\n{log.read_text()[-2000:]}")
    mark.touch()
    print(f"{log.stem} {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def read(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text().splitlines()]


def of(rows: Rows, split: str) -> Rows:
    return [r for r in rows if r["id"].startswith(f"meld/{split}/")]


def answered(rows: Rows, kept: Mapping[str, bool]) -> Rows:
    """The classifier's rows as they are under these decisions."""
    made = []
    for r in rows:
        scores = r["details"]["with" if kept[r["id"]] else "without"]
        made.append({**r, "scores": scores, "predicted": max(scores, key=scores.get)})
    return made


def wf1(rows: Rows) -> float:
    return evaluate(rows, MELD.labels, draws=1)["weighted_f1"]


def gains(rows: Rows) -> np.ndarray:
    return np.array([r["details"]["with"][r["label"]] - r["details"]["without"][r["label"]] for r in rows])


class Seed:
    """Everything of one seed."""

    def __init__(self, seed: int, options: argparse.Namespace) -> None:
        self.home, self.seed = options.out / str(seed), seed
        self.data = (
            f"--seed_everything={seed}",
            f"--data.root={options.data_root}",
            f"--data.descriptions={json.dumps([*map(str, options.captions or [options.data_root])])}",
        )
        self.rates = options.rates
        run = self.fit("classifier", "meld_small_classifier.yaml")
        self.compared = self.home / "compared.jsonl"
        if not self.compared.is_file():
            zoo(
                self.home / "compare.log",
                "predict",
                f"--ckpt_path={run}",
                "--model.compare=true",
                "--data.predict_splits=[train,dev,test]",
            )
            shutil.copy(run / "predictions.jsonl", self.compared)
        self.rows = read(self.compared)
        self.table = {name: self.fixed(name) for name in ("never", "always", "random")}
        for name, kind in KINDS.items():
            self.table[name] = self.adaptive(name, kind, run)
        better = {r["id"]: g > 0 for r, g in zip(of(self.rows, "test"), gains(of(self.rows, "test")), strict=True)}
        test = answered(of(self.rows, "test"), better)
        self.table["best of both, sees the label"] = (math.nan, test, better, 0.0, "")

    def fit(self, name: str, config: str, *args: str) -> Path:
        root = self.home / name
        if not (self.home / f"{name}.done").is_file():
            shutil.rmtree(root, ignore_errors=True)  # of a command that was stopped
        zoo(
            self.home / f"{name}.log",
            "fit",
            f"--config={CONFIGS / config}",
            *self.data,
            *args,
            f"--trainer.default_root_dir={root}",
        )
        return root / "lightning_logs" / "version_0"

    def fixed(self, name: str) -> tuple[float, Rows, Mapping[str, bool], float, str]:
        fixed = {"never": False, "always": True}
        said = {r["id"]: fixed.get(name, r["details"]["decision"] == "keep") for r in self.rows}
        dev, test = (answered(of(self.rows, split), said) for split in ("dev", "test"))
        return wf1(dev), test, said, 0.0, ""

    def adaptive(self, name: str, kind: str, classifier: Path) -> tuple[float, Rows, Mapping[str, bool], float, str]:
        """dev weighted F1, test rows, decisions, unparsed share on test, and which setting dev chose."""
        found = []
        for rate in self.rates:
            run = self.fit(
                f"{kind}-{rate}",
                "meld_small.yaml",
                f"--model.downstream={self.compared}",
                f"--model.downstream_kind={kind}",
                f"--model.lr={rate}",
            )
            zoo(
                self.home / f"{kind}-{rate}-decide.log",
                "predict",
                f"--ckpt_path={run}",
                "--data.predict_splits=[dev,test]",
            )
            rows = read(run / "decisions.jsonl")
            kept = {r["id"]: r["details"]["decision"] != "discard" for r in rows}
            found.append((wf1(answered(of(self.rows, "dev"), kept)), rate, run, kept, rows))
        dev, rate, run, kept, rows = max(found, key=lambda f: f[0])
        test = answered(of(self.rows, "test"), kept)
        zoo(self.home / f"{kind}-test.log", "test", f"--ckpt_path={classifier}", f"--model.selection={run}")
        if not (saved := self.home / f"{kind}-test.jsonl").is_file():
            shutil.copy(classifier / "predictions.jsonl", saved)
        if (got := [r["predicted"] for r in read(saved)]) != (want := [r["predicted"] for r in test]):
            raise RuntimeError(f"{sum(map(str.__ne__, got, want))} answers of zoo test differ from those compared")
        unparsed = float(np.mean([r["details"]["decision"] is None for r in of(rows, "test")]))
        tried = ", ".join(f"{r} {d:.3f}" for d, r, *_ in found)
        return dev, test, kept, unparsed, f"lr {rate} (dev: {tried})"


def show(seeds: Sequence[Seed]) -> None:
    labels = MELD.labels
    for s in seeds:
        share = {split: gains(of(s.rows, split)) for split in ("train", "dev", "test")}
        said = ", ".join(f"{k} {g.mean():+.4f} (helps {np.mean(g > 0):.2f}, n {len(g)})" for k, g in share.items())
        print(f"seed {s.seed}: keeping changes the right label's probability by {said}")
        for name in KINDS:
            print(f"seed {s.seed}: {name}: {s.table[name][4]}")
    n = len(of(seeds[0].rows, "test"))
    print(
        f"\n| row | dev weighted F1 | test weighted F1, n = {n} [95 %] | each seed | against always [95 %] | "
        "against never [95 %] | accuracy | keep rate | unparsed |\n" + "|---" * 9 + "|"
    )
    for name in seeds[0].table:
        runs = [s.table[name][1] for s in seeds]
        m = mean_over_seeds(runs, labels)
        against = []
        for other in ("always", "never"):
            d = paired_difference(runs, [s.table[other][1] for s in seeds], labels)
            against.append("" if name == other else "{:+.3f} [{:+.3f}, {:+.3f}]".format(d["difference"], *d["ci95"]))
        accuracy = np.mean([evaluate(r, labels, draws=1)["accuracy"] for r in runs])
        keep = np.mean([np.mean([s.table[name][2][r["id"]] for r in s.table[name][1]]) for s in seeds])
        dev, unparsed = np.mean([s.table[name][0] for s in seeds]), np.mean([s.table[name][3] for s in seeds])
        print(
            f"| {name} | {'' if math.isnan(dev) else f'{dev:.3f}'} | {m['mean']:.3f} [{m['ci95'][0]:.3f}, "
            f"{m['ci95'][1]:.3f}] | {' '.join(f'{v:.3f}' for v in m['values'])} | {' | '.join(against)} | "
            f"{accuracy:.3f} | {keep:.2f} | {unparsed:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="MELD's folder")
    parser.add_argument("--captions", type=Path, nargs="+", help="description files or folders; default: --data-root")
    parser.add_argument("--out", type=Path, default=Path("runs/selector_meld"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3], help="learning rates; dev chooses")
    options = parser.parse_args()
    show([Seed(seed, options) for seed in options.seeds])


if __name__ == "__main__":
    main()
