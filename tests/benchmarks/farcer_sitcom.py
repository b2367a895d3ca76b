"""FARCER on the embedded sitcom: every row of the table in zoo/models/farcer/README.md.

    zoo prepare synthetic --seed 78 --dialogues 860 --shares .5814 .0698 .3488 --out runs/sitcom-78
    python tests/benchmarks/farcer_sitcom.py --data-root runs/sitcom-78 --out runs/farcer_sitcom --seeds 0 1 2

Trains each row once per seed (`zoo fit`, settings of configs/farcer/sitcom.yaml, which were chosen on this corpus' dev
split), tests it on the test split, and prints accuracy and weighted F1 (mean over seeds, 95 % bootstrap interval over
dialogues), paired differences in points against the text-only frozen language model and against the base, and the
gain over text as a share of what the exact posteriors gain from faces. Under all utterances, and under the last one of
each dialogue alone. Shots, greedy answers and strange faces are tried on the trained models. Rows marked * have the
first seed only. Done runs are kept, so the command can be stopped and given again. Exit code 1 if a bound is missed.

Set OMP_NUM_THREADS=1; about 30 minutes of one idle core (a training 30 to 60 s, a test 7 to 10 s).
"""

import argparse
import json
import multiprocessing
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.cli import main as zoo
from zoo.data import Synthetic
from zoo.metrics import mean_over_seeds, paired_difference
from zoo.models.farcer import FARCER
from zoo.schema import Labels
from zoo.sitcom.cues import LABELS
from zoo.sitcom.posteriors import posterior, with_history
from zoo.training.feature_cache import FeatureCache

CONFIGS = Path(__file__).parents[2] / "configs/farcer"
SITCOM = Labels("synthetic", LABELS)
GAIN, CONTROL = 4.0, 1.5  # points: least gain of the base over text, most a control may differ from text


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        what: as it is printed.
        options: of training (and of its test).
        of: key of the trained row that is only tested otherwise; None trains.
        overlay: ablation file read after sitcom.yaml.
        against: key of the text-only row with the same words in its prompt.
        every: train for every seed, not for the first alone.
    """

    what: str
    options: tuple[str, ...] = ()
    of: str | None = None
    overlay: str | None = None
    against: str = "text"
    every: bool = True

    @property
    def trained(self) -> bool:
        return self.of is None and "--zero_shot=true" not in self.options


TEXT = ("--zero_shot=true", "--model.faces=none")
PAST = ("--model.past_labels=true",)
UNSEEN = ("--model.llm=tiny-llama",)
ROWS = {
    "text": Row("text only, frozen LM", TEXT),
    "base": Row("base: one linear layer"),
    "constant": Row("control: one constant face", ("--model.faces=constant",)),
    "another": Row("control: another speaker's face", ("--model.faces=another",)),
    "lora": Row("LoRA + projection", overlay="small_lora"),
    "three_layer": Row("three layers", overlay="small_three_layer"),
    "block": Row("images as a block", ("--model.image_placement=block",)),
    "base_pl": Row("base, past labels", PAST, against="text_pl"),
    "text_unseen": Row("LM without descriptions: text only", (*TEXT, *UNSEEN), against="text_unseen"),
    "unseen": Row("LM without descriptions: base", UNSEEN, against="text_unseen"),
    "text_pl": Row("text only, frozen LM, past labels", (*TEXT, *PAST), against="text_pl"),
    "lora_text": Row("LoRA, text only", ("--model.faces=none",), overlay="small_lora"),
    "three_layer_pl": Row("three layers, past labels", PAST, overlay="small_three_layer", against="text_pl"),
    "lora_pl": Row("LoRA, past labels", PAST, overlay="small_lora", against="text_pl"),
    "as_projected": Row(
        "base, features as the projection gives them",
        ("--model.standardise=false", "--model.embedding_scale=null"),
        every=False,
    ),
    "free": Row("base, free-running training", ("--model.teacher_forcing=false",), every=False),
    "shots_3": Row("base, 3 shots in the test prompt", ("--model.shots=3",), of="base"),
    "shots_7": Row("base, 7 shots in the test prompt", ("--model.shots=7",), of="base"),
    "text_3": Row("text only, 3 shots", (*TEXT, "--model.shots=3")),
    "text_7": Row("text only, 7 shots", (*TEXT, "--model.shots=7")),
    "greedy": Row("base, greedy answers", ("--model.decode=greedy",), of="base"),
    "text_greedy": Row("text only, greedy answers", (*TEXT, "--model.decode=greedy")),
    "strange": Row("base, tested with another speaker's face", ("--model.faces=another",), of="base"),
}


# ----------------------------------------------------------------------------------------------------------------- runs
SEEN = FeatureCache()  # image -> features: the frozen eyes see the same pictures in every run of this process
build = FARCER.build


def build_and_share(self: FARCER) -> None:
    build(self)
    self.image_features = SEEN


FARCER.build = build_and_share


def run(options: argparse.Namespace, key: str, seed: int) -> None:
    """Trains and tests a row, or tests it; its predictions are kept as results/KEY-SEED.jsonl."""
    result = options.out / "results" / f"{key}-{seed}.jsonl"
    if result.is_file():
        return
    row, started = ROWS[key], time.process_time()
    home = options.out / "runs" / f"{key}-{seed}"
    shutil.rmtree(home, ignore_errors=True)
    data = [
        f"--data.root={options.data_root}",
        f"--model.cache={options.out / 'cache'}",
        f"--trainer.default_root_dir={home}",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ]
    config = [f"--config={CONFIGS / 'sitcom.yaml'}"]
    if row.overlay:
        config.append(f"--config={CONFIGS / 'ablations' / row.overlay}.yaml")
    if row.trained:
        zoo(["fit", *config, *data, f"--seed_everything={seed}", *row.options])
    if row.trained or row.of:
        tested = options.out / "runs" / f"{row.of or key}-{seed}/lightning_logs/version_0"
        changed = row.options if row.of else ()
        zoo(["test", f"--ckpt_path={tested}", *data[:2], *data[3:], *changed])
    else:
        tested = home / "lightning_logs/version_0"
        zoo(["test", *config, *data, f"--seed_everything={seed}", *row.options])
    result.parent.mkdir(exist_ok=True)
    shutil.copy(tested / "metrics.json", result.with_suffix(".json"))
    shutil.copy(tested / "predictions.jsonl", result)
    print(f"{key} seed {seed}: {time.process_time() - started:.0f} s of this process", file=sys.stderr, flush=True)


def seeds_of(options: argparse.Namespace, key: str) -> list[int]:
    row = ROWS[key]
    return options.seeds if row.every and (row.trained or row.of) else options.seeds[:1]


def jobs(options: argparse.Namespace) -> list[tuple[str, int]]:
    """Seed by seed, in the order of the rows; what needs a trained row comes after it."""
    return [(key, seed) for seed in options.seeds for key in options.rows if seed in seeds_of(options, key)]


# ---------------------------------------------------------------------------------------------------------------- table
def read(options: argparse.Namespace, key: str, last: set[str] | None) -> dict[int, list[dict]]:
    """Predictions of each seed that is done."""
    found = {}
    for seed in seeds_of(options, key):
        path = options.out / "results" / f"{key}-{seed}.jsonl"
        if path.is_file():
            rows = map(json.loads, path.read_text().splitlines())
            found[seed] = [r for r in rows if last is None or r["id"] in last]
    return found


def reachable(data: Synthetic, past: bool, last: bool) -> dict[str, float]:
    """Accuracy of the exact posteriors in percent: the utterance alone, and with all earlier ones."""
    dialogues, out = data.dialogues("test"), {}
    for name, given in (("text", ("text",)), ("text + face", ("text", "face"))):
        right, alone = [], []
        for d in dialogues:
            true = np.array([LABELS.index(u.label) for u in d.utterances])
            history = with_history(d, given, past).argmax(1) == true
            single = np.stack([posterior(u, given, past) for u in d.utterances]).argmax(1) == true
            right += list(history[-1:] if last else history)
            alone += list(single[-1:] if last else single)
        out[name], out[f"{name}, no history"] = 100 * float(np.mean(right)), 100 * float(np.mean(alone))
    return out


def points(d: dict) -> str:
    low, high = d["ci95"]
    return f"{100 * d['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def table(options: argparse.Namespace, data: Synthetic, last: set[str] | None) -> list[str]:
    """Prints a table; returns what misses a bound."""
    runs = {key: read(options, key, last) for key in ROWS}
    gaps = {past: reachable(data, past, last is not None) for past in (False, True)}
    for past, gap in gaps.items():
        best = "; ".join(f"{name} {value:.1f}" for name, value in gap.items())
        print(f"Best reachable accuracy{' with past labels' if past else ''}: {best}.")
    print(
        "\n| row | n | accuracy [95 %] | each seed | weighted F1 [95 %] | unparsed | against text only [95 %] | "
        "against base [95 %] | share of the reachable gap |\n|---|---|---|---|---|---|---|---|---|"
    )
    missed = []
    for key, row in ROWS.items():
        if not runs[key]:
            continue
        own = list(runs[key].values())
        accuracy, wf1 = (mean_over_seeds(own, SITCOM, metric) for metric in ("accuracy", "weighted_f1"))
        cells = [row.what + (" *" if not row.every else ""), str(len(own[0]))]
        low, high = accuracy["ci95"]
        cells.append(f"{100 * accuracy['mean']:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        cells.append(" ".join(f"{100 * v:.1f}" for v in accuracy["values"]))
        cells.append(f"{100 * wf1['mean']:.1f} [{100 * wf1['ci95'][0]:.1f}, {100 * wf1['ci95'][1]:.1f}]")
        cells.append(f"{100 * np.mean([r['predicted'] is None for rows in own for r in rows]):.1f} %")
        text = list(runs[row.against].values())
        over = paired_difference(own, text, SITCOM, "accuracy") if text and row.against != key else None
        cells.append(points(over) if over else "")
        same = (
            [runs["base"][s] for s in runs[key] if s in runs["base"]] if len(runs[key]) < len(options.seeds) else None
        )
        base = same or list(runs["base"].values())
        cells.append(points(paired_difference(own, base, SITCOM, "accuracy")) if base and key != "base" else "")
        gap = gaps[row.against == "text_pl"]
        cells.append(f"{100 * over['difference'] / ((gap['text + face'] - gap['text']) / 100):.0f} %" if over else "")
        print("|", " | ".join(cells), "|")
        if last is None and over and key == "base" and 100 * over["difference"] < GAIN:
            missed.append(f"base gains {100 * over['difference']:.1f} over text, expected {GAIN:g} or more")
        if last is None and over and key in ("constant", "another") and abs(100 * over["difference"]) > CONTROL:
            missed.append(f"{row.what}: {100 * over['difference']:+.1f} from text, expected within {CONTROL:g}")
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="a written sitcom with clips")
    parser.add_argument("--out", type=Path, default=Path("runs/farcer_sitcom"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--print", action="store_true", help="print what is done, run nothing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.print:
        todo = jobs(options)
        if options.jobs == 1:
            for key, seed in todo:
                run(options, key, seed)
        else:
            with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
                for phase in (True, False):  # what is only tested otherwise needs the trained row
                    calls = [(options, k, s) for k, s in todo if (ROWS[k].of is None) == phase]
                    pool.starmap(run, calls, chunksize=1)
    data = Synthetic(root=options.data_root)
    last = {s.dialogue: s.id for s in data.samples("test")}
    print("\n## All utterances\n")
    missed = table(options, data, None)
    print("\n## The last utterance of each dialogue\n")
    table(options, data, set(last.values()))
    if missed:
        sys.exit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
