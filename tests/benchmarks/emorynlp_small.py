"""DialogueLLM at small size on real EmoryNLP, next to TF-IDF with logistic regression and to the majority class.

    python tests/benchmarks/emorynlp_small.py --data-root ../shared/data/emorynlp --out runs/emorynlp_small --jobs 2

Settings are those of configs/dialoguellm/meld_small.yaml, chosen on MELD and not touched: nothing is tuned here. As
long as there is no test file, the released dev split (954 utterances, 89 scenes) is scored, and a tenth of the training
scenes chooses the epoch (and C of the logistic regression); `--split_source released` scores the released test split.
Prints weighted F1: the mean over seeds with a 95 % interval (bootstrap over the scored scenes, weights held fixed),
every seed, and the paired difference from the logistic regression. The backbone, tiny-llama, has never seen EmoryNLP.
Finished runs are kept, so the command can be stopped and given again.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from meld_small import CONFIGS, baselines, best_dev, read_rows, train_and_test  # type: ignore[import-not-found]  # the script beside this one

from zoo.data import EmoryNLP
from zoo.metrics import evaluate, mean_over_seeds, paired_difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="EmoryNLP's folder")
    parser.add_argument("--out", type=Path, default=Path("runs/emorynlp_small"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split_source", choices=["dev_as_test", "released"], default="dev_as_test")
    parser.add_argument("--limit", type=int, help="scenes of each split, for trying the command out")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads per run")
    options = parser.parse_args()
    data = EmoryNLP(root=options.data_root, split_source=options.split_source, limit=options.limit)
    labels, n = data.labels, len(data.samples("test"))
    configs = [CONFIGS / "meld_small.yaml", CONFIGS.parent / "data" / "emorynlp.yaml"]
    arguments = [f"--data.root={options.data_root}", f"--data.split_source={options.split_source}"]
    arguments += [f"--data.limit={options.limit}"] if options.limit else []
    place = options.out / (options.split_source + (f"_limit_{options.limit}" if options.limit else ""))
    with ThreadPoolExecutor(options.jobs) as pool:
        seeded = {s: [f"--seed_everything={s}", *arguments] for s in options.seeds}
        futures = [
            pool.submit(train_and_test, place / str(s), configs, own, options.threads) for s, own in seeded.items()
        ]
        simple = baselines(data)
        runs = [future.result() for future in futures]
    print(
        f"| row | held-out weighted F1 | weighted F1, n = {n}, {data.protocol} [95 %] | seeds {options.seeds} | "
        "against logistic regression [95 %] | macro F1 | accuracy |\n|---|---|---|---|---|---|---|"
    )
    for name, (dev, rows) in simple.items():
        e = evaluate(rows, labels)
        low, high = e["ci95"]["weighted_f1"]
        print(
            f"| {name} | {dev:.3f} | {e['weighted_f1']:.3f} [{low:.3f}, {high:.3f}] | | | {e['macro_f1']:.3f} | "
            f"{e['accuracy']:.3f} |"
        )
    group = [read_rows(run) for run in runs]
    m = mean_over_seeds(group, labels)
    d = paired_difference(group, [simple["TF-IDF + logistic regression"][1]], labels)
    others = [np.mean([evaluate(r, labels, draws=1)[k] for r in group]) for k in ("macro_f1", "accuracy")]
    print(
        f"| DialogueLLM, tiny-llama, all weights | {np.mean([best_dev(run) for run in runs]):.3f} | "
        f"{m['mean']:.3f} [{m['ci95'][0]:.3f}, {m['ci95'][1]:.3f}] | {' '.join(f'{v:.3f}' for v in m['values'])} | "
        "{:+.3f} [{:+.3f}, {:+.3f}] | ".format(d["difference"], *d["ci95"])
        + f"{others[0]:.3f} | {others[1]:.3f} |"
    )


if __name__ == "__main__":
    main()
