"""Emotion-Qwen on the embedded sitcom: every row of the tables in zoo/models/emotion_qwen/README.md.

    zoo prepare synthetic --seed 94 --dialogues 700 --shares .7 .06 .24 --out runs/sitcom-94
    zoo prepare synthetic --seed 95 --dialogues 300 --out runs/studio-95
    zoo prepare synthetic --seed 96 --dialogues 300 --domain wild --out runs/wild-96
    python tests/benchmarks/emotion_qwen_sitcom.py --pretrain runs/sitcom-94 --studio runs/studio-95 --wild runs/wild-96

What a large model comes with is made once, on a corpus of its own (``--pretrain``): a language model that knows the
questions from words, and a tower that has seen faces and scenes (configs/emotion_qwen/sitcom_words.yaml, sitcom_tower).
Then the stages are trained per seed and projector on the general questions of that corpus and the emotions of the
studio sitcom (settings: configs/emotion_qwen/sitcom_*.yaml), each is tuned by every strategy on two emotion sets of
different domain (studio, wild), and all of it is tested on both emotion sets and on the general questions of the first
corpus' test split, so that what tuning costs the questions is seen. Rows:

- zero-shot: that language model and tower with a random compressor; stages 1, 2 and 3
- projector: hybrid, MLP widened to as many parameters, fusion
- face capture on, off (stages 2 and 3, and tuning)
- strategy: one LoRA for both sets, one LoRA per set (switched per sample), full tuning of the language model
- the adapter of either set, on for everything; these and one LoRA also at the paper's learning rate, a tenth of ours
- the tuned hybrid with its gate forced to either expert

and per row seconds of training, peak memory of the process, and the mean gate on emotion and on general inputs.
Accuracy: mean over seeds, 95 % bootstrap interval over dialogues; differences are paired, in points. Exit code 1 if
adapters of the paper's learning rate that stay on cost the questions more than 1 point, or if answers with the adapters
off are not those before tuning (to 1e-5: batches are composed otherwise; tests/models/test_emotion_qwen.py proves them
equal bit for bit). Orderings unlike those of the paper's Tables 6 to 8 are printed as they are.

Every training and test is a process of its own (peak memory); done ones are kept, so the command can be stopped and
given again. ``--dry`` runs everything on a handful of samples. Set OMP_NUM_THREADS=1; measured: 15 minutes of one core
for the backbones, 40 per seed. Once the backbones are there, seeds may run side by side (``--seeds``); ``--print``
then prints all.
"""

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from zoo.data import SyntheticQuestions
from zoo.metrics import mean_over_seeds, paired_difference
from zoo.schema import Labels
from zoo.sitcom.cues import LABELS

CONFIGS = Path(__file__).parents[2] / "configs/emotion_qwen"
EMOTIONS = ("studio", "wild")
LEVEL, COST = -1.0, 1.0  # points: "level" is a lower bound above, and what adapters may cost the questions
ADAPTED = ("slow", "studio_slow", "wild_slow")  # adapters on for the questions, at the paper's learning rate


@dataclass(frozen=True)
class Step:
    """A training.

    Attributes:
        config: files of configs/emotion_qwen, read one after the other.
        start: step whose run it starts from.
        data: what it is trained on, see `corpus`.
        options: more of the command line.
    """

    config: tuple[str, ...]
    start: str | None
    data: str
    options: tuple[str, ...] = ()


PROJECTORS = {"mlp": ("--model.projector=mlp", "--model.match_hybrid=true"), "fusion": ("--model.projector=fusion",)}


def steps() -> dict[str, Step]:
    """name -> training, in an order in which all can be done."""
    made = {
        "hybrid-1": Step(("sitcom_stage1",), None, "questions"),
        "hybrid-2": Step(("sitcom_stage2",), "hybrid-1", "everything"),
        "hybrid-3": Step(("sitcom_stage3",), "hybrid-2", "everything"),
        "faces-2": Step(("sitcom_stage2", "ablations/sitcom_face_capture"), "hybrid-1", "everything"),
        "faces-3": Step(("sitcom_stage3", "ablations/sitcom_face_capture"), "faces-2", "everything"),
    }
    for kind in ("mlp", "fusion"):
        made[f"{kind}-1"] = Step(("sitcom_stage1", f"ablations/sitcom_stage1_{kind}"), None, "everything")
        made[f"{kind}-3"] = Step(("sitcom_stage3", f"ablations/sitcom_stage3_{kind}"), f"{kind}-1", "everything")
    tune, slow = ("sitcom_tune_lora",), ("--model.lr=1e-4",)  # the paper's
    for name, of, more, options in (
        ("hybrid", "hybrid-3", (), ()),
        ("faces", "faces-3", ("ablations/sitcom_face_capture",), ()),
        ("mlp", "mlp-3", (), PROJECTORS["mlp"]),
        ("fusion", "fusion-3", (), PROJECTORS["fusion"]),
    ):
        made[f"{name}-single"] = Step((*tune, *more), of, "both", options)
    for data in EMOTIONS:
        made[f"hybrid-{data}"] = Step(tune, "hybrid-3", data)
    for data in (*EMOTIONS, "both"):
        made[f"slow-{data}"] = Step(tune, "hybrid-3", data, slow)
    made["hybrid-full"] = Step((*tune, "ablations/sitcom_tune_lora_full"), "hybrid-3", "both")
    return made


PRETRAINED = {  # backbone -> training, part that is exported
    "llm": Step(("sitcom_words",), None, "told"),
    "vision": Step(("sitcom_tower",), None, "pretrain"),
}
STEPS = steps()


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        what: as it is printed.
        of: step that is tested; None: nothing is trained.
        options: of the test.
        adapters: tests the adapters of these steps, each on its own corpus.
    """

    what: str
    of: str | None
    options: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()


ROWS = {
    "zero": Row("zero-shot: random compressor", None),
    "stage1": Row("after stage 1", "hybrid-1"),
    "stage2": Row("after stage 2", "hybrid-2"),
    "stage3": Row("after stage 3", "hybrid-3"),
    "hybrid": Row("hybrid, one LoRA for both sets", "hybrid-single"),
    "mlp": Row("MLP of as many parameters, one LoRA", "mlp-single"),
    "fusion": Row("fusion, one LoRA", "fusion-single"),
    "faces": Row("face capture on, one LoRA", "faces-single"),
    "multi": Row("one LoRA per set", "hybrid-3", adapters=EMOTIONS),
    "full": Row("full tuning", "hybrid-full"),
    "studio_on": Row("LoRA of studio, on for everything", "hybrid-studio"),
    "wild_on": Row("LoRA of wild, on for everything", "hybrid-wild"),
    "slow": Row("one LoRA for both sets, learning rate 1e-4", "slow-both"),
    "studio_slow": Row("LoRA of studio, on for everything, 1e-4", "slow-studio"),
    "wild_slow": Row("LoRA of wild, on for everything, 1e-4", "slow-wild"),
    "emotion_gate": Row("one LoRA, gate forced to emotion", "hybrid-single", ("--model.force_gate=emotion",)),
    "general_gate": Row("one LoRA, gate forced to general", "hybrid-single", ("--model.force_gate=general",)),
    "faces_3": Row("after stage 3, face capture on", "faces-3"),
    "mlp_3": Row("after the last stage, MLP", "mlp-3"),
    "fusion_3": Row("after the last stage, fusion", "fusion-3"),
}
PAIRS = (  # a against b, on what: the comparisons of the paper's Tables 6 to 8
    ("hybrid", "mlp", "emotion"),
    ("hybrid", "fusion", "emotion"),
    ("faces", "hybrid", "emotion"),
    ("multi", "hybrid", "emotion"),
    ("full", "hybrid", "emotion"),
    ("hybrid", "stage3", "emotion"),
    ("emotion_gate", "hybrid", "emotion"),
    ("general_gate", "hybrid", "emotion"),
    ("multi", "stage3", "general"),
    ("hybrid", "stage3", "general"),
    ("full", "stage3", "general"),
    ("studio_on", "stage3", "general"),
    ("wild_on", "stage3", "general"),
    ("slow", "stage3", "emotion"),
    ("slow", "stage3", "general"),
    ("studio_slow", "stage3", "general"),
    ("wild_slow", "stage3", "general"),
    ("hybrid", "mlp", "general"),
    ("emotion_gate", "hybrid", "general"),
    ("general_gate", "hybrid", "general"),
)


# ----------------------------------------------------------------------------------------------------------------- runs
def corpus(options: argparse.Namespace, kind: str) -> dict:
    """The data of a training, or of all tests (``test``)."""
    few = {"limit": 3} if options.dry else {}
    roots = {name: str(getattr(options, name).resolve()) for name in (*EMOTIONS, "pretrain")}

    def emotion(name: str) -> dict:
        return {"class_path": "zoo.data.NamedSynthetic", "init_args": {"name": name, "root": roots[name], **few}}

    def asked(name: str, **more: object) -> dict:
        own = {"root": roots[name], "per": "dialogue", **few, **more}
        return {"class_path": "zoo.data.SyntheticQuestions", "init_args": own}

    told = asked("pretrain", per="utterance", scene_in_words=True)
    size = 3 if options.dry else 800
    written = {"class_path": "zoo.data.Synthetic", "init_args": {"train_dialogues": size, **few}}  # no clips

    studio, wild, questions = emotion("studio"), emotion("wild"), asked("pretrain")
    parts = {
        "told": [told, written],
        "pretrain": [emotion("pretrain"), asked("pretrain")],
        "questions": [questions],
        "everything": [studio, questions],
        "studio": [studio],
        "wild": [wild],
        "both": [studio, wild],
        "test": [studio, wild, questions],
    }[kind]
    own = {"root": None, "batch_size": 32, "eval_batch_size": 128, "parts": parts}  # a config before it gave a root
    return {"class_path": "zoo.data.Joint", "init_args": own}


def overlay(options: argparse.Namespace, kind: str) -> str:
    """A file with the data, read after the configs."""
    path = options.out / "data" / f"{kind}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"data": corpus(options, kind)}))
    return f"--config={path}"


def zoo(*args: str) -> tuple[float, float]:
    """One command in a process of its own; its seconds and its peak memory in MiB."""
    env = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    code = (
        "import sys, resource; from zoo.cli import main; main(sys.argv[1:]); "
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *args], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"zoo {' '.join(args)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return time.perf_counter() - started, int(re.findall(r"^peak (\d+)", done.stdout, re.M)[-1]) / 1024


def home(options: argparse.Namespace, name: str, seed: int) -> Path:
    return options.out / "runs" / f"{name}-{seed}" / "lightning_logs" / "version_0"


def backbones(options: argparse.Namespace) -> list[str]:
    """The pretrained language model and tower."""
    return [f"--model.{part}={options.out / 'pretrained' / part}" for part in PRETRAINED]


def pretrain(options: argparse.Namespace) -> None:
    """Makes the backbones, once for all seeds."""
    for part, step in PRETRAINED.items():
        folder, root = options.out / "pretrained" / part, options.out / "runs" / f"pretrain-{part}"
        if (folder / "config.json").is_file():
            continue
        shutil.rmtree(root, ignore_errors=True)
        args = [f"--config={CONFIGS / file}.yaml" for file in step.config] + [overlay(options, step.data)]
        args += [f"--trainer.default_root_dir={root}", *quiet(options)]
        args += backbones(options)[:1] if part == "vision" else []
        args += ["--trainer.max_steps=2", "--trainer.max_epochs=-1"] if options.dry else []
        seconds, _ = zoo("fit", *args)
        zoo("export", f"--ckpt_path={root / 'lightning_logs' / 'version_0'}", f"--part={part}", f"--out={folder}")
        print(f"pretrained {part}: {seconds:.0f} s", file=sys.stderr, flush=True)


def quiet(options: argparse.Namespace) -> list[str]:
    return [
        f"--model.cache={options.out / 'cache'}",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ]


def train(options: argparse.Namespace, name: str, seed: int) -> None:
    """A step, unless it is done; what it cost is kept as cost.json beside it."""
    run, step = home(options, name, seed), STEPS[name]
    if (run / "cost.json").is_file():
        return
    shutil.rmtree(run.parents[1], ignore_errors=True)
    args = [f"--config={CONFIGS / file}.yaml" for file in step.config] + [overlay(options, step.data)]
    args += [f"--seed_everything={seed}", f"--trainer.default_root_dir={run.parents[1]}", *quiet(options)]
    args += [*step.options, *backbones(options)]
    if step.start is not None:
        args.append(f"--model.start_from={home(options, step.start, seed)}")
    if options.dry:
        args += ["--trainer.max_steps=2", "--trainer.max_epochs=-1"]
    seconds, peak = zoo("fit", *args)
    (run / "cost.json").write_text(json.dumps({"seconds": seconds, "peak_mib": peak}))
    print(f"{name} seed {seed}: {seconds:.0f} s, {peak:.0f} MiB", file=sys.stderr, flush=True)


def test(options: argparse.Namespace, key: str, seed: int) -> None:
    """A row's predictions, kept as results/KEY-SEED.jsonl with metrics beside them."""
    row, result = ROWS[key], options.out / "results" / f"{key}-{seed}.jsonl"
    if result.is_file():
        return
    where = options.out / "tests" / f"{key}-{seed}"
    shutil.rmtree(where, ignore_errors=True)
    args = [overlay(options, "test"), *quiet(options), *row.options]
    if row.of is None:
        args = [
            f"--config={CONFIGS / 'sitcom_stage1.yaml'}",
            *args,
            *backbones(options),
            "--model.force_gate=none",
            "--zero_shot=true",
            f"--seed_everything={seed}",
            f"--trainer.default_root_dir={where}",
        ]
        found = where / "lightning_logs" / "version_0"
    elif not row.adapters:
        args = [f"--ckpt_path={home(options, row.of, seed)}", *args]
        found = home(options, row.of, seed)
    else:
        args = ["--zero_shot=true", f"--seed_everything={seed}", f"--trainer.default_root_dir={where}", *args]
        found = where / "lightning_logs" / "version_0"
        runs = {name: str(home(options, f"hybrid-{name}", seed)) for name in row.adapters}
        said = yaml.safe_load((home(options, row.of, seed) / "config.yaml").read_text())["model"]["init_args"]
        said |= {"adapters": runs, "without": "base", "train": None, "start_from": None, "lora": None}
        path = options.out / "data" / f"{key}-{seed}.yaml"
        path.write_text(
            yaml.safe_dump(
                {
                    "trainer": {"accelerator": "cpu"},
                    "model": {"class_path": "zoo.models.emotion_qwen.EmotionQwenAdapters", "init_args": said},
                }
            )
        )
        args = [f"--config={path}", *args]
    seconds, peak = zoo("test", *args)
    result.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(found / "metrics.json", result.with_suffix(".json"))
    cost = {"seconds": seconds, "peak_mib": peak}
    result.with_suffix(".cost.json").write_text(json.dumps(cost))
    shutil.copy(found / "predictions.jsonl", result)  # last: it says that the row is done
    print(f"{key} seed {seed}: {seconds:.0f} s to test", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------------- table
def read(options: argparse.Namespace, key: str) -> dict[int, list[dict]]:
    """Predictions of each seed that is done."""
    found = {}
    for seed in options.seeds:
        path = options.out / "results" / f"{key}-{seed}.jsonl"
        if path.is_file():
            found[seed] = [json.loads(line) for line in path.read_text().splitlines()]
    return found


def joined(rows: list[dict], kinds: dict[str, Labels], of: str) -> tuple[list[dict], Labels]:
    """The rows of all emotion sets or of all questions, as one set: right or wrong, a dialogue being one scene."""
    wanted = EMOTIONS if of == "emotion" else tuple(kinds) if of == "general" else (of,)
    own = []
    for r in rows:
        name = r["id"].partition("/")[0]
        if name in wanted:
            right = r["predicted"] == r["label"]
            scene = f"{name if name in EMOTIONS else 'asked'}/{r['dialogue'].partition('/')[2]}"
            own.append({"id": r["id"], "dialogue": scene, "label": "right", "predicted": "right" if right else "wrong"})
    return own, Labels("answers", ("right", "wrong"))


def percent(found: dict) -> str:
    low, high = found["ci95"]
    return f"{100 * found['mean']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def seconds_of(options: argparse.Namespace, key: str, seed: int) -> tuple[float, float]:
    """Training seconds of everything a row stands on, and the largest peak memory among it."""
    names, row = [], ROWS[key]
    todo = [f"hybrid-{a}" for a in row.adapters] or [row.of] * (row.of is not None)
    while todo:
        name = todo.pop()
        if name not in names:
            names.append(name)
            todo += [STEPS[name].start] if STEPS[name].start else []
    costs = [json.loads((home(options, n, seed) / "cost.json").read_text()) for n in names]
    return sum(c["seconds"] for c in costs), max((c["peak_mib"] for c in costs), default=0.0)


def gate(rows: list[dict], names: tuple[str, ...]) -> str:
    own = [
        r["details"]["gate_emotion"]
        for r in rows
        if r["id"].partition("/")[0] in names and "gate_emotion" in (r.get("details") or {})
    ]
    return f"{np.mean(own):.3f}" if own else ""


def table(options: argparse.Namespace, kinds: dict[str, Labels]) -> list[str]:
    """Prints the tables; returns what misses a bound."""
    runs = {key: read(options, key) for key in options.rows}
    print(
        "\n| row | studio | wild | both emotion sets | general questions | gate: emotion | gate: general | "
        "training s | peak MiB |\n|---|---|---|---|---|---|---|---|---|"
    )
    for key, by_seed in runs.items():
        if not by_seed:
            continue
        cells = [ROWS[key].what]
        for of in (*EMOTIONS, "emotion", "general"):
            sets = [joined(rows, kinds, of) for rows in by_seed.values()]
            cells.append(percent(mean_over_seeds([rows for rows, _ in sets], sets[0][1], "accuracy")))
        everything = [r for rows in by_seed.values() for r in rows]
        cells += [gate(everything, EMOTIONS), gate(everything, tuple(kinds))]
        costs = [seconds_of(options, key, seed) for seed in by_seed]
        cells += [f"{np.mean([s for s, _ in costs]):.0f}", f"{max(p for _, p in costs):.0f}"]
        print("|", " | ".join(cells), "|")
    print("\n| a | against b | on | a - b, points [95 %] | |\n|---|---|---|---|---|")
    missed, off = [], []
    for a, b, of in PAIRS:
        seeds = sorted(set(runs.get(a, {})) & set(runs.get(b, {})))
        if not seeds:
            continue
        left, right = ([joined(runs[key][s], kinds, of)[0] for s in seeds] for key in (a, b))
        found = paired_difference(left, right, Labels("answers", ("right", "wrong")), "accuracy")
        low, high = (100 * x for x in found["ci95"])
        verdict = "better" if low > 0 else "worse" if high < 0 else "level" if low > LEVEL else "open"
        difference = f"{100 * found['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
        print(f"| {ROWS[a].what} | {ROWS[b].what} | {of} | {difference} | {verdict} |")
        if of == "general" and b == "stage3" and a in ADAPTED and 100 * found["difference"] < -COST:
            missed.append(f"{ROWS[a].what}: costs the questions {-100 * found['difference']:.1f} points")
        if of == "general" and (a, b) == ("multi", "stage3"):
            for s in seeds:  # no adapter is on for the questions
                before, after = (
                    {r["id"]: r["scores"] for r in runs[key][s] if r["id"].partition("/")[0] in kinds} for key in (b, a)
                )
                worst = max(abs(before[i][c] - after[i][c]) for i in before for c in before[i])
                off.append(
                    f"Seed {s}: with the adapters off, scores of the questions differ by {worst:g} at most from "
                    "those before tuning."
                )
                if worst > 1e-5:
                    missed.append(f"seed {s}: answers with the adapters off are not those before tuning")
    print("\n" + "\n".join(off))
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrain", type=Path, required=True, help="a written sitcom with clips, for the backbones")
    parser.add_argument("--studio", type=Path, required=True, help="a written sitcom with clips")
    parser.add_argument("--wild", type=Path, required=True, help="one of another domain and seed")
    parser.add_argument("--out", type=Path, default=Path("runs/emotion_qwen_sitcom"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--dry", action="store_true", help="a handful of samples and steps, to try the machinery")
    parser.add_argument("--print", action="store_true", help="print what is done, run nothing")
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.print:
        pretrain(options)
    for seed in () if options.print else options.seeds:  # seed by seed: a whole table early
        needed = set()
        for key in options.rows:
            todo = [f"hybrid-{a}" for a in ROWS[key].adapters] + [ROWS[key].of] * (ROWS[key].of is not None)
            while todo:
                name = todo.pop()
                needed.add(name)
                todo += [STEPS[name].start] if STEPS[name].start else []
        for name in STEPS:
            if name in needed:
                train(options, name, seed)
        for key in options.rows:
            test(options, key, seed)
    print(
        f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB",
        file=sys.stderr,
    )
    kinds = SyntheticQuestions(root=options.pretrain).label_sets
    assert not set(kinds) & set(EMOTIONS) and len(LABELS) == 7
    missed = table(options, kinds)
    if missed and not options.dry:
        sys.exit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
