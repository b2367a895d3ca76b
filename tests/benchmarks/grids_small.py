"""The papers' grids as miniatures: every row of every one runs to its end, and a kill on the way changes nothing.

    python -m tests.benchmarks.grids_small --only farcer_meld merit_mosei --seed 0

Writes a sitcom of 40 dialogues to runs/sitcom-small if it is not there, then runs each configs/bench file that has a
miniature with ``--small true`` and one training seed, results in runs/bench/NAME-small: first until a moment drawn with
--seed, soon after its first trainings, when it is killed with ``kill -9``, then the same command to its end. Prints for
each how many jobs there were, how many trainings and tests were done when it was killed and how many of them were done
again, and the seconds. Exit code 1 if a row failed, was done again, or is missing on the report's Papers page though it
repeats a published one. The scores mean nothing: a few steps each.
"""

import argparse
import html
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

FIRST = ("dialoguellm", "emotion_qwen")  # others test what these have trained
SITCOM = Path("runs/sitcom-small")
PREPARE = ["prepare", "synthetic", "--dialogues", "40", "--shares", ".45", ".3", ".25", "--out", str(SITCOM)]


def grids() -> list[str]:
    """Names of the files with a miniature, those that others need first."""
    names = [
        f.stem for f in sorted(Path("configs/bench").glob("*.yaml")) if "miniature" in yaml.safe_load(f.read_text())
    ]
    return sorted(names, key=lambda name: name not in FIRST)


def start(command: list[str]) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return subprocess.Popen([sys.executable, "-m", "zoo", *command], env=environment)


def parts(out: Path) -> list[Path]:
    """What says that a training or a test of a grid is done."""
    return [p for p in out.glob("runs/*/*/*.json") if p.name in ("fit.json", "test.json")]


def run(name: str, jobs: int, dice: random.Random) -> bool:
    """One grid, killed once on its way; whether every row came to its end."""
    out = Path("runs/bench") / f"{name}-small"
    shutil.rmtree(out, ignore_errors=True)
    command = ["bench", f"--config=configs/bench/{name}.yaml", "--small=true", "--seeds=[0]", f"--jobs={jobs}"]
    began, first, wanted = time.perf_counter(), start(command), dice.randint(1, 3)
    while first.poll() is None:
        time.sleep(0.2)
        if len(parts(out)) >= wanted:
            time.sleep(dice.uniform(0, 10))  # somewhere in what comes next
            first.send_signal(signal.SIGKILL)
            first.wait()
    done = {p: p.stat().st_mtime_ns for p in parts(out)}
    code = start(command).wait()
    again = [p for p, written in done.items() if p.stat().st_mtime_ns != written]
    report = out / "results.json"
    results = json.loads(report.read_text()) if report.is_file() else {"rows": [], "failed": []}
    page = (out / "report.html").read_text() if report.is_file() else ""
    missing = [
        r["published"] for r in results["rows"] if r["published"] and f"{html.escape(r['what'])}<small>" not in page
    ]
    jobs_done = len(list(out.glob("runs/*/*/spec.json")))
    print(
        f"{name}: {jobs_done} jobs, {len(done)} parts done when killed, {len(again)} of them done again; "
        f"{len(results['rows'])} rows in the report, {len(results['failed'])} failed; "
        f"{time.perf_counter() - began:.0f} s",
        flush=True,
    )
    return not code and not again and not missing and not results["failed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=grids(), default=grids(), help="these files")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    options = parser.parse_args()
    if not SITCOM.is_dir() and start(PREPARE).wait():
        sys.exit(f"no sitcom in {SITCOM}")
    dice = random.Random(options.seed)
    failed = [name for name in grids() if name in options.only and not run(name, options.jobs, dice)]
    if failed:
        sys.exit(f"not whole: {', '.join(failed)}")


if __name__ == "__main__":
    main()
