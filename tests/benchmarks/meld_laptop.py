"""A real language model on real MELD, on a laptop: SmolLM2-135M beside small models. All 2610 test utterances.

    zoo checkpoints pull smollm2-135m
    python -m tests.benchmarks.meld_laptop --data-root DIR --out runs/meld_laptop                 # run, store, print
    python -m tests.benchmarks.meld_laptop --data-root DIR --recompute                            # print what is stored

Every row is run once per seed by `zoo fit` and `zoo test` (rows without training by `zoo test --zero_shot=true` alone)
and chooses its epoch on dev; then its answers lie in results/meld-laptop/ROW-SEED.csv (sample and seven scores; no text
and no gold labels, which --data-root has), from which the table is computed. Finished runs are kept.
``--precision bf16-mixed`` halves the time where the processor multiplies in bfloat16; the stored runs were made so.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.benchmarks.meld_small import best_dev, read_rows
from tests.benchmarks.result_files import write
from tests.benchmarks.selector_sitcom import zoo
from zoo.data import MELD
from zoo.metrics import evaluate, mean_over_seeds, paired_difference

ROOT = Path(__file__).parents[2]
STORED = ROOT / "results" / "meld-laptop"


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        name: as the table says it.
        config: what is run, below configs/.
        options: of the command.
        trained: whether it is trained on MELD first.
        real: whether it holds the real language model, which computes in ``--precision``.
    """

    name: str
    config: str
    options: tuple[str, ...] = ()
    trained: bool = True
    real: bool = True


ROWS = {
    "majority": Row("majority label", "baselines/majority.yaml", ("--data=MELD",), real=False),
    "tfidf": Row("TF-IDF + logistic regression", "baselines/tfidf.yaml", ("--data=MELD",), real=False),
    "tiny-llama": Row("DialogueLLM, tiny-llama (2.1M), all weights", "dialoguellm/meld_small.yaml", real=False),
    "sentence": Row(
        "sentence encoder (22.6M), all weights",
        "baselines/sentence.yaml",
        ("--data=MELD", "--data.batch_size=32"),
        real=False,
    ),
    "zero-shot": Row("SmolLM2, asked", "causal_lm/laptop.yaml", ("--model.shots=0",), trained=False),
    "few-shot": Row("SmolLM2, asked with 7 solved examples", "causal_lm/laptop.yaml", trained=False),
    "zero-shot-batch": Row(
        "SmolLM2, asked, calibrated",
        "causal_lm/laptop.yaml",
        ("--model.shots=0", "--model.calibration=batch"),
        trained=False,
    ),
    "few-shot-batch": Row(
        "SmolLM2, asked with 7 solved examples, calibrated",
        "causal_lm/laptop.yaml",
        ("--model.calibration=batch",),
        trained=False,
    ),
    "goemotions": Row("smollm2-goemotions, MELD not seen", "", trained=False),
    "dialoguellm": Row("DialogueLLM, SmolLM2, LoRA", "dialoguellm/laptop.yaml"),
}
IN_README = ("system", "test weighted F1 [95 %]", "macro F1", "accuracy", "against tiny-llama [95 %]", "CPU minutes")
SEEDLESS = ("majority", "tfidf")  # trained, but every seed alike
REFERENCES = ("tfidf", "tiny-llama", "sentence")


def commands(row: Row, seed: int, run: Path, options: argparse.Namespace) -> list[list[str]]:
    """Return the commands of a row."""
    fast = ["--trainer.precision=bf16-mixed", "--model.dtype=bfloat16"] if options.precision == "bf16-mixed" else []
    data = [f"--data.root={options.data_root}"]
    place = [f"--trainer.default_root_dir={run.parents[1]}"]
    if not row.config:
        return [["test", "--ckpt_path=smollm2-goemotions", "--data=MELD", *data, *fast, *place]]
    chosen = [f"--config={ROOT / 'configs' / row.config}", *row.options, f"--seed_everything={seed}", *data]
    chosen += [*(fast if row.real else []), *place]
    if not row.trained:
        return [["test", "--zero_shot=true", *chosen]]
    return [["fit", *chosen], ["test", f"--ckpt_path={run}"]]


def run_row(key: str, seed: int, options: argparse.Namespace) -> None:
    """Run a row with a seed unless it is finished, and store its answers and what they cost."""
    run = options.out / key / str(seed) / "lightning_logs" / "version_0"
    if not (run / "cost.json").is_file():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        for command in commands(ROWS[key], seed, run, options):
            zoo(*command, threads=options.threads)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        # the peak is that of the largest child so far: rows are run in a process each (see main)
        (run / "cost.json").write_text(json.dumps({"cpu_minutes": seconds / 60, "peak_gib": after.ru_maxrss / 2**20}))
    store(key, seed, run)


def store(key: str, seed: int, run: Path) -> None:
    """Write the answers of a run, and how they were made, into results/."""
    STORED.mkdir(parents=True, exist_ok=True)
    names = MELD.labels.names
    with (STORED / f"{key}-{seed}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["sample", "predicted", *names])  # the scores of two labels may be equal as they are rounded
        for row in read_rows(run):
            if row["scores"][row["predicted"]] < max(row["scores"].values()):
                raise ValueError(f"{run}: the answer about {row['id']} is not the label with the highest score")
            scores = (f"{row['scores'][name]:.6f}" for name in names)
            writer.writerow([row["id"].removeprefix("meld/test/"), row["predicted"], *scores])
    cost = json.loads((run / "cost.json").read_text())
    dev = best_dev(run) if (run / "metrics.csv").is_file() and ROWS[key].trained else None
    file_of_facts = STORED / "runs.json"
    facts = json.loads(file_of_facts.read_text()) if file_of_facts.is_file() else {}
    facts[f"{key}-{seed}"] = {"dev_weighted_f1": dev and round(dev, 5), **{k: round(v, 2) for k, v in cost.items()}}
    file_of_facts.write_text(json.dumps(dict(sorted(facts.items())), indent=1) + "\n")


def stored(key: str, seed: int, gold: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the stored answers of a run beside the gold labels."""
    rows = []
    with (STORED / f"{key}-{seed}.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            name = f"meld/test/{line.pop('sample')}"
            dialogue, label = gold[name]
            predicted = line.pop("predicted")
            scores = {word: float(score) for word, score in line.items()}
            rows.append({"id": name, "dialogue": dialogue, "label": label, "predicted": predicted, "scores": scores})
    if len(rows) != len(gold):
        raise ValueError(f"{key}-{seed}.csv answers {len(rows)} of {len(gold)} utterances; run the row again")
    return rows


def table(root: Path, say: Callable[..., str]) -> tuple[list[str], list[list[str]], list[int]]:
    """Return the header and the rows of what is stored, numbers written by ``say``, and the seeds."""
    data = MELD(root=root)
    data.prepare_data()
    data.setup("test")
    gold = {x.id: (x.dialogue, str(x.target.label)) for x in data.samples("test")}
    facts = json.loads((STORED / "runs.json").read_text())
    seeds = {
        key: sorted(int(name.rpartition("-")[2]) for name in facts if name.rpartition("-")[0] == key) for key in ROWS
    }
    answers = {key: [stored(key, seed, gold) for seed in found] for key, found in seeds.items() if found}
    header = ["system", "dev weighted F1", "test weighted F1 [95 %]", "each seed", "macro F1", "accuracy"]
    header += [f"against {name} [95 %]" for name in ("TF-IDF", "tiny-llama", "sentence encoder")]
    header += ["CPU minutes", "peak memory"]
    rows = []
    for key, runs in answers.items():
        mean = mean_over_seeds(runs, data.labels)
        others = [np.mean([evaluate(r, data.labels, draws=1)[k] for r in runs]) for k in ("macro_f1", "accuracy")]
        known = [facts[f"{key}-{seed}"] for seed in seeds[key]]
        dev = [k["dev_weighted_f1"] for k in known if k["dev_weighted_f1"] is not None]
        row = [ROWS[key].name, say(np.mean(dev)) if dev else ""]
        row.append(f"{say(mean['mean'])} [{', '.join(map(say, mean['ci95']))}]")
        row += [" ".join(map(say, mean["values"])), *map(say, others)]
        for reference in REFERENCES:
            if reference == key or reference not in answers:
                row.append("")
                continue
            d = paired_difference(runs, answers[reference], data.labels)
            row.append(f"{say(d['difference'], '+')} [{', '.join(say(v, '+') for v in d['ci95'])}]")
        row.append(f"{np.mean([k['cpu_minutes'] for k in known]):.0f}")
        row.append(f"{max(k['peak_gib'] for k in known):.1f} GiB")
        rows.append(row)
    return header, rows, sorted({seed for found in seeds.values() for seed in found})


def percent(value: float, sign: str = "") -> str:
    """Write a share in percent."""
    return f"{100 * value:{sign}.1f}"


def three(value: float, sign: str = "") -> str:
    """Write a share with three decimals and without its zero."""
    return f"{value:{sign}.3f}".replace("0.", ".", 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="MELD's folder")
    parser.add_argument("--out", type=Path, default=Path("runs/meld_laptop"))
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recompute", action="store_true", help="run nothing")
    options = parser.parse_args()
    if not options.recompute:
        for key in options.rows:
            for seed in options.seeds if ROWS[key].trained and key not in SEEDLESS else [0]:
                child = os.fork()  # so that the peak of one row is not that of another
                if not child:
                    run_row(key, seed, options)
                    os._exit(0)
                if os.waitpid(child, 0)[1]:
                    sys.exit(f"{key} with seed {seed} failed")
    header, rows, seeds = table(options.data_root, three)
    print("\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)))
    command = "python -m tests.benchmarks.meld_laptop --data-root DIR --precision bf16-mixed"  # as the stored runs
    facts = {"command": command, "n": 2610, "split": "test", "seeds": seeds}
    write("results/dialoguellm.json#laptop", header, rows, **facts)
    _, rows, _ = table(options.data_root, percent)
    chosen = [header.index(column) for column in IN_README]
    write("results/readme.json#real", list(IN_README), [[row[i] for i in chosen] for row in rows], **facts)


if __name__ == "__main__":
    main()
