"""What local descriptions are worth: real faces, real voices, the sitcom, and how long they take.

    zoo prepare synthetic --seed 95 --dialogues 480 --shares .6 .06 .34 --out runs/sitcom-95
    python -m tests.benchmarks.describers --data-root DIR --sitcom runs/sitcom-95 --out runs/describers

DIR holds faces/ (the Face Research Lab London Set, with london_labels.csv: columns image, emotion), speech/ (clips of
EmoDB, with labels.csv: columns file, emotion) and weights/fer2013_mini_xception/ (mini-XCEPTION's .hdf5).

- faces: every picture is a still clip; dlib finds the face, mini-XCEPTION reads it. Nothing is tuned. Intervals: 95 %,
  exact binomial ones of each mood, and of all 2000 bootstrap draws of persons, of whom there are two pictures each.
- voices: Hedges' g of every measure, an emotion against neutral; 95 % of 2000 bootstrap draws of clips within each
  emotion. One speaker. And how often the upper two of the five words are said, by thresholds of all these clips.
- sitcom: `zoo prepare describe` with the published face ViT on whole frames, because its faces are drawings, and
  measured voices; then DialogueLLM (configs/dialoguellm/sitcom.yaml) is trained with and without these descriptions,
  everything else the same. Differences are paired over dialogues, and means over the seeds that both have.
- seconds: per clip, one thread.

Every part writes its table of results/describers.json. Done runs are kept, so the command can be stopped and given
again. Exit code 1 if the descriptions are worth nothing on the sitcom. About 40 minutes of one core.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from tests.benchmarks import result_files
from tests.benchmarks.check_face_capture import interval, person
from tests.media_files import write_clip
from zoo.cli import main as zoo
from zoo.data import Synthetic
from zoo.media import read_frames
from zoo.media.speech import MEASURES, fit_bins
from zoo.metrics import mean_over_seeds, paired_difference
from zoo.models.emotion_qwen.faces import DlibFaces, WholeFrame
from zoo.prepare.describe import UNITS, ClipDescriber
from zoo.schema import Labels
from zoo.sitcom.cues import LABELS

SITCOM = Labels("synthetic", LABELS)
CONFIG = Path(__file__).parents[2] / "configs/dialoguellm/sitcom.yaml"
COMMAND = "python -m tests.benchmarks.describers --data-root DIR --sitcom runs/sitcom-95 --out runs/describers"
DRAWS = 2000
LEAST = 5  # clips of an emotion of which an effect is worth printing
ROWS = {  # line of the sitcom's table -> descriptions that the prompt shows, and whether it is trained for every seed
    "words alone": ("null", True),
    "and both descriptions": ("[audio, video]", True),
    "and the face's alone": ("[video]", False),
    "and the voice's alone": ("[audio]", False),
}


def weights(options: argparse.Namespace) -> str:
    return str(next((options.data_root / "weights/fer2013_mini_xception").glob("*.hdf5")))


def table(name: str, header: Sequence[str], rows: Sequence[Sequence[str]], **facts: Any) -> None:
    """Puts a table into results/describers.json and prints it."""
    place = f"results/describers.json#{name}"
    result_files.write(place, header, rows, command=COMMAND, **facts)
    print("\n".join(result_files.markdown(result_files.load("results/describers.json")[name])), "\n", flush=True)


# ---------------------------------------------------------------------------------------------------------------- faces
def faces(options: argparse.Namespace) -> None:
    with (options.data_root / "faces/london_labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    describer = ClipDescriber(DlibFaces(weights(options)))
    found = [describer.describe(options.data_root / "faces/london" / row["image"], None) for row in rows]
    named = {"neutral": "neutral", "happiness": "happy"}
    truth = [named[row["emotion"]] for row in rows]
    people = np.array([person(row["image"]) for row in rows])
    expressions = [f.expression or {} for f in found]
    first = np.array(
        [bool(e) and max(e, key=e.__getitem__) == true for e, true in zip(expressions, truth, strict=True)]
    )
    between = np.array(
        [bool(e) and max(("neutral", "happy"), key=e.__getitem__) == t for e, t in zip(expressions, truth, strict=True)]
    )
    lines = []
    for what, chosen in [(mood, np.array([t == mood for t in truth])) for mood in ("neutral", "happy")] + [
        ("all", np.ones(len(truth), bool))
    ]:
        cells = [what.replace("happy", "smiling"), str(int(chosen.sum()))]
        cells.append(str(sum(bool(e) for e, c in zip(expressions, chosen, strict=True) if c)))
        for right in (first, between):
            if what == "all":
                low, high = interval(right, people)
            else:  # nobody twice
                low, high = binomtest(int(right[chosen].sum()), int(chosen.sum())).proportion_ci()
            cells.append(f"{right[chosen].mean():.3f} [{low:.3f}, {high:.3f}]")
        lines.append(cells)
    header = ["faces", "n", "face found", "named rightly, of seven [95 %]", "smiling or neutral, the likelier [95 %]"]
    table("faces", header, lines, n=len(rows), split="136 pictures of 68 people", seeds=None)


# --------------------------------------------------------------------------------------------------------------- voices
def hedges(a: np.ndarray, b: np.ndarray) -> float:
    """The difference of two means in pooled standard deviations, corrected for small samples."""
    n = len(a) + len(b) - 2
    spread = np.sqrt(((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / n)
    return float((a.mean() - b.mean()) / spread * (1 - 3 / (4 * n - 1))) if spread > 0 else 0.0


def effect(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Hedges' g and its interval."""
    rng = np.random.default_rng(0)
    drawn = [hedges(rng.choice(a, len(a)), rng.choice(b, len(b))) for _ in range(DRAWS)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return hedges(a, b), float(low), float(high)


def voices(options: argparse.Namespace) -> None:
    with (options.data_root / "speech/labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    describer = ClipDescriber(None)
    voice = [describer.describe(None, options.data_root / "speech" / row["file"]).voice for row in rows]
    emotions = np.array([row["emotion"] for row in rows])
    n = {e: int((emotions == e).sum()) for e in dict.fromkeys(emotions)}
    shown = sorted((e for e in n if n[e] >= LEAST and e != "neutral"), key=lambda e: -n[e])
    lines = []
    for measure in (*MEASURES, "speech", "longest pause"):
        values = np.array([v.get(measure, np.nan) for v in voice])
        unit = UNITS[measure].split(" of")[0]
        cells = [f"{measure}, {unit}", f"{np.nanmean(values[emotions == 'neutral']):.2f}"]
        for emotion in shown:
            pair = [values[(emotions == e) & ~np.isnan(values)] for e in (emotion, "neutral")]
            if max(part.std() for part in pair) == 0:
                cells.append("the same in all")
                continue
            g, low, high = effect(*pair)
            cells.append(f"{g:+.2f} [{low:+.2f}, {high:+.2f}]{' *' if low * high > 0 else ''}")
        lines.append(cells)
    header = ["measure", f"neutral (n = {n['neutral']}), mean", *(f"{e} (n = {n[e]}), g [95 %]" for e in shown)]
    split = f"{len(rows)} clips of one speaker"
    table("voices", header, lines, n=len(rows), split=split, seeds=None)
    bins = fit_bins([("", {m: v[m] for m in MEASURES if m in v}) for v in voice], LEAST)
    lines = []
    for measure, (_, words) in MEASURES.items():
        upper = np.array([m in v and bins.word("", m, v[m]) in words[3:] for v, m in ((v, measure) for v in voice)])
        share = [f"{upper[emotions == e].mean():.2f}" for e in ("neutral", *shown)]
        lines.append([f"{measure}: {words[3]} or {words[4]}", *share])
    header = ["said", *(f"{e} (n = {n[e]})" for e in ("neutral", *shown))]
    table("words", header, lines, n=len(rows), split=split, seeds=None)


# --------------------------------------------------------------------------------------------------------------- sitcom
def corpus(options: argparse.Namespace) -> Path:
    """The sitcom with these descriptions instead of its own."""
    out, root = options.out / "described", options.out / "sitcom-described"
    zoo(
        [
            *("prepare", "describe", "--data=Synthetic", f"--data.root={options.sitcom}", f"--out={out}"),
            *("--analyzer=WholeFrame", "--analyzer.expression=tiny-vit-sitcom"),
        ]
    )
    root.mkdir(exist_ok=True)
    for path in options.sitcom.iterdir():
        link = root / path.name
        link.unlink(missing_ok=True)
        link.symlink_to((out / path.name if "_description_" in path.name else path).absolute())
    return root


def run(options: argparse.Namespace, row: str, seed: int, root: Path) -> list[dict]:
    """Predictions of the test split, trained and tested unless that is done."""
    shown, _ = ROWS[row]
    home = options.out / "runs" / f"described-{shown.strip('[]').replace(', ', '-')}-{seed}"
    done = home / "lightning_logs/version_0/predictions.jsonl"
    if not done.is_file():
        quiet = [f"--trainer.default_root_dir={home}", "--trainer.enable_progress_bar=false"]
        fit = ["fit", f"--config={CONFIG}", f"--data.root={root}", f"--model.descriptions={shown}"]
        for command in ([*fit, *quiet, f"--seed_everything={seed}"], ["test", f"--ckpt_path={done.parent}", *quiet]):
            subprocess.run([sys.executable, "-m", "zoo", *command], check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in done.read_text().splitlines()]


def sitcom(options: argparse.Namespace) -> bool:
    """Whether the interval of both descriptions against words alone lies above 0."""
    root = corpus(options)
    seeds = {row: options.seeds if every else options.seeds[:1] for row, (_, every) in ROWS.items()}
    runs = {row: [run(options, row, seed, root) for seed in seeds[row]] for row in ROWS}
    lines, low = [], {}
    for row, predictions in runs.items():
        cells = [row, str(len(seeds[row]))]
        for metric in ("accuracy", "weighted_f1"):
            score = mean_over_seeds(predictions, SITCOM, metric)
            cells.append(f"{100 * score['mean']:.1f} [{', '.join(f'{100 * v:.1f}' for v in score['ci95'])}]")
        if row == "words alone":
            cells.append("")
        else:
            gain = paired_difference(predictions, runs["words alone"][: len(predictions)], SITCOM)
            low[row] = gain["ci95"][0]
            cells.append(f"{100 * gain['difference']:+.1f} [{', '.join(f'{100 * v:+.1f}' for v in gain['ci95'])}]")
        lines.append(cells)
    n = len(Synthetic(root=options.sitcom).samples("test"))
    header = [
        "DialogueLLM reads",
        "seeds",
        "accuracy [95 %]",
        "weighted F1 [95 %]",
        "weighted F1 against words alone [95 %]",
    ]
    table("sitcom", header, lines, n=n, split="test", seeds=options.seeds)
    return low["and both descriptions"] > 0


# -------------------------------------------------------------------------------------------------------------- seconds
def timed(work: Callable[[], object], times: int = 5) -> float:
    """Least seconds of a work that was done once before: other work shares the machine."""
    work()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def seconds(options: argparse.Namespace) -> None:
    """A voice, a still, a clip of the sitcom, and clips of 3 s and 720 lines with real faces, which stand still."""
    voice = sorted((options.data_root / "speech").rglob("*.wav"))[0]
    still = sorted((options.data_root / "faces/london").glob("*.jpg"))[0]
    drawn = sorted(options.sitcom.rglob("*.mp4"))[0]
    face = read_frames(still, size=(400, 400))[0].transpose(1, 2, 0)
    sound = (0.1 * np.sin(np.arange(48_000) / 20)).astype(np.float32)[None]
    clips = []
    for people in (1, 2):
        frame = np.full((720, 1280, 3), 110, np.uint8)
        for number in range(people):
            frame[160:560, 120 + 620 * number : 520 + 620 * number] = face
        clips.append(write_clip(options.out / f"people_{people}.mp4", [frame] * 75, sound, rate=16_000))
    fine, fast = (ClipDescriber(DlibFaces(weights(options), upsample=times)) for times in (1, 0))
    whole = ClipDescriber(WholeFrame("tiny-vit-sitcom"))
    works: dict[str, Callable[[], object]] = {
        "a voice of 2 s": lambda: fine.describe(None, voice),
        "a still of 224 px": lambda: fine.describe(still, None),
        "a clip of the sitcom, whole frames": lambda: whole.describe(drawn, drawn),
    }
    for describer, what in ((fine, "as it is"), (fast, "`--analyzer.upsample 0`")):
        for people, clip in enumerate(clips, 1):
            works[f"3 s of 720 lines, {people} {'face' if people == 1 else 'faces'}, {what}"] = (
                lambda d=describer, c=clip: d.describe(c, c)
            )
    lines = []
    for what, work in works.items():
        each = timed(work)
        lines.append([what, f"{each:.2f}", f"{1000 * each / 60:.1f}"])
    about = "one thread; the least of 5"
    table(
        "seconds",
        ["clip", "s per clip", "minutes per thousand"],
        lines,
        n=5,
        split="clips that the command makes or names",
        seeds=None,
        about=about,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts: dict[str, Callable[[argparse.Namespace], bool | None]] = {
        "faces": faces,
        "voices": voices,
        "seconds": seconds,
        "sitcom": sitcom,
    }
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--sitcom", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    missed = [part for part in options.parts if parts[part](options) is False]
    print(f"FAILED: {', '.join(missed)}" if missed else "passed")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
