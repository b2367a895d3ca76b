"""How long a command takes to answer: the table of docs/troubleshooting.md.

    python -m tests.benchmarks.startup [--repeats 5] [--against CHECKOUT]

Runs each command from a folder of its own, with bytecode warm (one run before that is not counted), and prints the
medians of seconds by the clock and of the CPU. With --against the same commands of another checkout run alternately
with ours, so that both meet the same machine. The first line is the first that is printed on either stream.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parents[2]
FIT = ["fit", "--config", "configs/causal_lm/tiny.yaml", "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "zoo --help": ["-m", "zoo", "--help"],
    "zoo fit --help": ["-m", "zoo", "fit", "--help"],
    "zoo checkpoints": ["-m", "zoo", "checkpoints"],
    "zoo fit, one step": ["-m", "zoo", *FIT],
    "import torch": ["-c", "import torch"],
    "import lightning.pytorch": ["-c", "import lightning.pytorch"],
    "import transformers, peft": ["-c", "import transformers, peft"],
    "import zoo.lightning_cli": ["-c", "import zoo.lightning_cli"],
}


def run(words: list[str], checkout: Path, folder: Path) -> tuple[float, float, float]:
    """Return seconds to the end, to the first line (the end, if nothing is printed), and of the CPU."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    (folder / "configs").unlink(missing_ok=True)
    (folder / "configs").symlink_to(checkout / "configs")  # older checkouts find configs in the working folder alone
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    process.stdout.readline()
    first = time.perf_counter() - start
    output = process.stdout.read()
    if process.wait() != 0:
        raise RuntimeError(f"{' '.join(words)} failed:\n{output.decode(errors='replace')}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, first, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--against", type=Path, help="another checkout, e.g. a git worktree of an older commit")
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), help="these commands alone")
    options = parser.parse_args()
    checkouts = {"here": HERE} | ({"against": options.against.resolve()} if options.against else {})
    print(f"{'command':<28}" + "".join(f"{name + ': end':>16}{'first line':>12}{'CPU':>8}" for name in checkouts))
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only or COMMANDS:
            words = COMMANDS[name]
            times: dict[str, list[tuple[float, float, float]]] = {checkout: [] for checkout in checkouts}
            for repeat in range(options.repeats + 1):
                for checkout, path in checkouts.items():
                    measured = run(words, path, Path(folder))
                    if repeat:
                        times[checkout].append(measured)
            medians = [[statistics.median(column) for column in zip(*rows, strict=True)] for rows in times.values()]
            print(f"{name:<28}" + "".join(f"{m[0]:>16.2f}{m[1]:>12.2f}{m[2]:>8.2f}" for m in medians), flush=True)


if __name__ == "__main__":
    main()
