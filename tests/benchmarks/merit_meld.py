"""MERIT on real words: supervised on GoEmotions, adapted to the unlabelled test split of MELD (n = 2610).

    python tests/benchmarks/merit_meld.py --goemotions DIR --meld DIR --out runs/merit_meld

Trains configs/merit/goemotions_small.yaml once per seed and adapts it by configs/merit/meld_small_ttrl.yaml, whose
settings were chosen on the sitcom: nothing was chosen on MELD. Transductive: adapted to and scored on all of the test
split. Inductive: adapted to one half of its dialogues, scored on the other, both ways round. Done runs are kept.
About half an hour of one core with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from zoo.cli import main as zoo
from zoo.data import MELD
from zoo.metrics import mean_over_seeds, paired_difference

CONFIGS = Path(__file__).parents[2] / "configs/merit"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
FREE = ("--model.guard=null", "--model.best_by=last")
ROWS: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "sft": ("supervised on GoEmotions", None),
    "maj5": ("majority of 5, no adaptation", None),
    "ppo": ("TTRL-PPO, to the letter", ("--model.objective.kind=ppo_reward", *FREE)),
    "grpo": ("TTRL-GRPO, to the letter", FREE),
    "binary": ("GRPO, binary reward", ("--model.alpha=null", *FREE)),
    "guarded": ("GRPO + guard", ()),
    "balance": ("GRPO, balanced votes + guard", ("--model.vote_balance=1",)),
}


def test(run: Path, result: Path, *extra: str) -> None:
    if not result.is_file():
        zoo(["test", f"--ckpt_path={run}", "--trainer.enable_progress_bar=false", *extra])
        result.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run / "predictions.jsonl", result)


def run(options: argparse.Namespace, seed: int) -> None:
    home = options.out / f"sft/{seed}"
    start = home / "lightning_logs/version_0"
    if not (home / "done").is_file():
        shutil.rmtree(home, ignore_errors=True)
        zoo(
            [
                "fit",
                f"--config={CONFIGS / 'goemotions_small.yaml'}",
                f"--data.root={options.goemotions}",
                f"--seed_everything={seed}",
                f"--trainer.default_root_dir={home}",
                *QUIET,
            ]
        )
        (home / "done").touch()
    meld = ("--data=MELD", f"--data.root={options.meld}", "--data.eval_batch_size=256")
    test(start, options.out / f"results/sft-{seed}.jsonl", *meld)
    test(start, options.out / f"results/maj5-{seed}.jsonl", *meld, "--model.decode=vote")
    for key, (_, extra) in ROWS.items():
        for half in (None, 0, 1) if extra is not None else ():
            name = f"{key}-{seed}" if half is None else f"{key}-{seed}-{half}"
            result = options.out / f"results/{name}.jsonl"
            if result.is_file():
                continue
            home = options.out / f"runs/{name}"
            shutil.rmtree(home, ignore_errors=True)
            inductive = () if half is None else ("--data.protocol=inductive", f"--data.half={half}")
            zoo(
                [
                    "fit",
                    f"--config={CONFIGS / 'meld_small_ttrl.yaml'}",
                    f"--data.corpus.root={options.meld}",
                    f"--model.start_from={start}",
                    f"--seed_everything={seed}",
                    f"--trainer.default_root_dir={home}",
                    *QUIET,
                    *extra,
                    *inductive,
                ]
            )
            test(home / "lightning_logs/version_0", result)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def points(d: dict[str, Any]) -> str:
    return f"{100 * d['difference']:+.1f} [{100 * d['ci95'][0]:+.1f}, {100 * d['ci95'][1]:+.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--goemotions", type=Path, required=True)
    parser.add_argument("--meld", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/merit_meld"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--print", action="store_true", help="print what is done, run nothing")
    options = parser.parse_args()
    options.out = options.out.resolve()
    for seed in options.seeds if not options.print else ():
        run(options, seed)
    labels, place = MELD.labels, {}
    for protocol, halves in (("transductive", (None,)), ("inductive", (0, 1))):
        print(
            f"\n## {protocol}\n\n| row | n | accuracy [95 %] | weighted F1 [95 %] | each seed | macro F1 | "
            "accuracy against supervised [95 %] | weighted F1 against it [95 %] | largest share |"
        )
        print("|" + "---|" * 9)
        base: list[list[dict[str, Any]]] = []
        for key, (what, extra) in ROWS.items():
            runs = []
            for seed in options.seeds:
                own = halves if extra is not None else (None,)
                names = [f"{key}-{seed}" if half is None else f"{key}-{seed}-{half}" for half in own]
                files = [options.out / f"results/{name}.jsonl" for name in names]
                if not all(f.is_file() for f in files):
                    break
                rows = [r for f in files for r in read(f)]
                place = place or {r["id"]: i for i, r in enumerate(rows)}
                runs.append(sorted(rows, key=lambda r: place[r["id"]]))
            if len(runs) < len(options.seeds):
                continue
            base = base or runs
            cells = [what, str(len(runs[0]))]
            for metric in ("accuracy", "weighted_f1"):
                m = mean_over_seeds(runs, labels, metric)
                cells.append(f"{100 * m['mean']:.1f} [{100 * m['ci95'][0]:.1f}, {100 * m['ci95'][1]:.1f}]")
            cells.append(" ".join(f"{100 * v:.1f}" for v in m["values"]))
            cells.append(f"{100 * mean_over_seeds(runs, labels, 'macro_f1')['mean']:.1f}")
            cells += [
                "" if runs is base else points(paired_difference(runs, base, labels, metric))
                for metric in ("accuracy", "weighted_f1")
            ]
            said = [Counter(r["predicted"] for r in rows) for rows in runs]
            top = np.mean([max(count.values()) / count.total() for count in said])
            print("|", " | ".join([*cells, f"{top:.2f}"]), "|")


if __name__ == "__main__":
    main()
