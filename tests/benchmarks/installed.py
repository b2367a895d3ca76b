"""Installs the wheel into an empty environment, and runs what a newcomer does from an empty folder: needs a network.

    python -m tests.benchmarks.installed

Builds the wheel, makes a virtual environment, installs wheel and dependencies with the versions of constraints.txt;
then from an empty folder ``zoo init`` with its four commands, and the first row of ``make demo`` on its sitcom. Prints
the seconds of each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")


def timed(what: str, *command: object, cwd: Path) -> None:
    """Run a command and print how long it took. CalledProcessError if it fails."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    start = time.perf_counter()
    subprocess.run([str(word) for word in command], check=True, cwd=cwd, env=environment, stdout=subprocess.DEVNULL)
    print(f"{time.perf_counter() - start:7.1f} s  {what}", flush=True)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        timed("build the wheel", sys.executable, *PIP, "wheel", "--no-deps", "-w", folder, REPOSITORY, cwd=folder)
        (wheel,) = folder.glob("*.whl")
        timed("make an environment", sys.executable, "-m", "venv", folder / "venv", cwd=folder)
        python, zoo = folder / "venv" / "bin" / "python", folder / "venv" / "bin" / "zoo"
        limits = REPOSITORY / "constraints.txt"
        timed("install wheel and dependencies", python, *PIP, "install", "-c", limits, wheel, cwd=folder)
        project = folder / "project"
        timed("zoo init", zoo, "init", project, cwd=folder)
        timed("zoo data show", zoo, "data", "show", "--config", "train.yaml", cwd=project)
        timed("zoo fit", zoo, "fit", "--config", "train.yaml", cwd=project)
        timed("zoo test", zoo, "test", "--ckpt_path", "best", cwd=project)
        timed("zoo label", zoo, "label", "--text", "Why so late?", "--ckpt_path", "best", cwd=project)
        sitcom = (
            "prepare synthetic --seed 3 --dialogues 120 --shares .25 .05 .7 --descriptions noisy --out runs/demo/sitcom"
        )
        timed("the sitcom of make demo", zoo, *sitcom.split(), cwd=folder)
        row = "bench --config configs/bench/demo.yaml --only [majority] --out runs/demo/bench"
        timed("the first row of make demo", zoo, *row.split(), cwd=folder)
        size = sum(file.stat().st_size for file in folder.glob("*.whl")) / 1e6
        print(f"the wheel: {size:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
