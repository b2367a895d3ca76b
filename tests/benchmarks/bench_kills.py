"""A benchmark that is killed at random moments ends as one that was not.

    python tests/benchmarks/bench_kills.py --out runs/bench_kills --kills 3 --seed 0

Runs `zoo bench` on the in-memory sitcom (two systems of two seeds, one that starts from another's run, one that is only
tested) once undisturbed, then once more with ``kill -9`` at random moments of the time the first took, until that many
kills have hit. Compares every prediction, score, interval and p value. Exit code 1 if one differs.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml

BENCH = {
    "title": "killed",
    "data": {
        "class_path": "zoo.data.Synthetic",
        "init_args": {"corpus_seed": 6, "train_dialogues": 120, "dev_dialogues": 20, "test_dialogues": 60},
    },
    "seeds": [0, 1],
    "rows": {
        "words": {"what": "words", "config": ["configs/causal_lm/sitcom.yaml"]},
        "dialoguellm": {"what": "DialogueLLM", "config": ["configs/dialoguellm/sitcom.yaml"]},
        "further": {
            "what": "trained further",
            "config": ["configs/causal_lm/sitcom.yaml"],
            "seeds": [0],
            "options": {"model.start_from": "run:words", "trainer.max_epochs": 1},
        },
        "published": {"what": "as published", "checkpoint": "tiny-llama-sitcom", "seeds": [0]},
    },
}
VARIES = ("cost", "runs", "command")  # times, and where it lies


def start(file: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "zoo", "bench", "--config", str(file), "--out", str(out), "--jobs", "2"]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


def found(out: Path) -> dict:
    """Scores and comparisons, and every answer."""
    said = json.loads((out / "results.json").read_text())
    rows = {r["name"]: {k: v for k, v in r.items() if k not in VARIES} for r in said["rows"]}
    answers = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("runs/*/*/results/predictions.jsonl"))}
    return {"rows": rows, "failed": said["failed"], "n": said["n"], "answers": answers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_kills"))
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "bench.yaml"
    file.write_text(yaml.safe_dump(BENCH, sort_keys=False))
    whole, killed = options.out / "whole", options.out / "killed"
    for out in (whole, killed):
        shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    if start(file, whole).wait():
        sys.exit(f"the undisturbed benchmark failed; see the logs in {whole}")
    took = time.perf_counter() - began
    print(f"undisturbed: {took:.0f} s")
    rng, hits = np.random.default_rng(options.seed), 0
    while hits < options.kills:
        wait, process = float(rng.uniform(0.15, 0.6)) * took, start(file, killed)
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            hits += 1
            parts = sorted(p.parent.name + "/" + p.name for p in killed.glob("runs/*/*/*.partial.json"))
            done = len(list(killed.glob("runs/*/*/test.json")))
            print(f"kill {hits} after {wait:.0f} s: {done} jobs were done, in the middle of {parts or 'nothing'}")
        else:
            print(f"it was done after {hits} kills; once more from the start")
            shutil.rmtree(killed)
    if start(file, killed).wait():
        sys.exit(f"the killed benchmark failed; see the logs in {killed}")
    a, b = found(whole), found(killed)
    differ = [
        f"{part} {key}"
        for part in ("rows", "answers")
        for key in a[part].keys() | b[part].keys()
        if a[part].get(key) != b[part].get(key)
    ]
    scores = {name: row["scores"]["weighted_f1"]["values"] for name, row in b["rows"].items()}
    print(f"n = {b['n']}, weighted F1 by seed: {scores}")
    if differ or a["failed"] or b["failed"]:
        sys.exit(f"differs: {', '.join(sorted(differ))}; failed: {b['failed']}")
    print(f"after {hits} kills all {len(b['answers'])} sets of predictions, scores, intervals and p are the same")


if __name__ == "__main__":
    main()
