"""What loading a language model, writing a checkpoint and going on from it take where two processes divide its weights.

    python -m tests.benchmarks.sharded_loading  # some minutes of two cores, 3 GB of disk
    python -m tests.benchmarks.sharded_loading --saving  # the second table alone: 2 GB of disk

A LLaMA of random weights is made, 1.2 GB of them in float32, and ``zoo fit`` with it is begun in two processes on CPUs.
Printed is by how much the memory of a process grew from before the model is made to the moment at which training
begins, at the end and at most in between, as a share of the model's bytes: what is its own (RssAnon, which no file
holds). Each kind of file and training is begun with DDP, where each process has all weights, and with FSDP2.

The second table is about a smaller model (`--layers`, 8 of them: 412 MB in float32): by how much a process has grown
when its first step is done, at most while it then writes a checkpoint, and at most until a run that goes on from that
checkpoint begins to train. The first process writes, and is the larger one.

The command ends with exit code 1 where a process that has half of the weights grew by more than .7 of all of them, and
where one that writes a checkpoint of divided weights takes more than .5 of all weights for it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import load_file, save_file

from tests.builders import make_corpus
from tests.memory_use import Memory
from tests.runs_helper import QUIET
from tests.test_processes import DIVIDED, SCRIPT
from zoo.backbones.tiny import make_folder

MOST = 0.7  # of the bytes of all weights
MOST_TO_WRITE = 0.5  # of them, beside what a process holds
LORA = ("--model.lora.r=8", "--model.lora.alpha=16")
CELLS = {  # name -> dtype of the file, options
    "float32 file, all weights trained": ("float32", ()),
    "bfloat16 file, all weights trained in float32": ("bfloat16", ()),
    "float32 file, LoRA on bfloat16": ("float32", (*LORA, "--model.dtype=bfloat16")),
    "bfloat16 file, LoRA on bfloat16": ("bfloat16", (*LORA, "--model.dtype=bfloat16")),
    "float32 file, all weights of an earlier run, trained on": ("float32", ("--model.start_from=start",)),
}
SAVED = {
    "all weights trained in float32": ("float32", ()),
    "LoRA on bfloat16": ("bfloat16", (*LORA, "--model.dtype=bfloat16")),
}
STRATEGIES = {"DDP": ("--trainer.strategy=ddp",), "FSDP2": DIVIDED}


class Growth(Callback):
    """Measures from before the model is made to the beginning of training, in each process."""

    def __init__(self) -> None:
        self.memory = Memory(0.01)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin."""
        self.memory.__enter__()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End, and write what was measured."""
        self.memory.__exit__()
        values = {
            "end": self.memory.own,
            "most": self.memory.peak,
            "whole": sum(p.numel() * p.element_size() for p in pl_module.parameters()),  # divided or not
        }
        Path(os.environ["GROWTH"], f"{trainer.global_rank}.json").write_text(json.dumps(values))


class Saving(Callback):
    """Measures until training begins, after the first step of this process, and while it then writes a checkpoint."""

    def __init__(self) -> None:
        self.memory = Memory(0.01)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin."""
        self.memory.__enter__()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is loaded any more."""
        self.memory.__exit__()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Write a checkpoint, and what was measured."""
        writing = Memory(0.005)
        with writing:
            trainer.save_checkpoint(Path(os.environ["GROWTH"], "measured.ckpt"))
        values = {
            "begin": self.memory.peak,
            "step": writing.before - self.memory.before,
            "writing": writing.peak + writing.before - self.memory.before,
            "whole": sum(p.numel() * p.element_size() for p in pl_module.parameters()),  # divided or not
        }
        Path(os.environ["GROWTH"], f"{trainer.global_rank}.json").write_text(json.dumps(values))


def make_model(home: Path, layers: int) -> None:
    """Write the model in both dtypes."""
    texts = [f"{word} emotion: joy" for word in ("well", "no", "yes")]
    make_folder(
        home / "float32",
        texts,
        vocab_size=420,
        hidden_size=1024,
        layers=layers,
        heads=16,
        intermediate_size=2816,
        seed=0,
    )
    weights = load_file(home / "float32" / "model.safetensors")
    subprocess.run(["cp", "-r", home / "float32", home / "bfloat16"], check=True)
    halved = {name: value.to(torch.bfloat16) for name, value in weights.items()}
    save_file(halved, home / "bfloat16" / "model.safetensors", {"format": "pt"})
    config = json.loads((home / "bfloat16" / "config.json").read_text()) | {"dtype": "bfloat16"}
    (home / "bfloat16" / "config.json").write_text(json.dumps(config))


def begin(home: Path, dtype: str, options: tuple[str, ...], strategy: tuple[str, ...], steps: int = 0) -> Path:
    """Run ``zoo fit`` in two processes; of no steps it ends after all has been loaded."""
    system = ["--model=CausalLM", f"--model.llm={home / dtype}", *options, "--model.schedule=constant"]
    data = ["--data=MELD", f"--data.root={home / 'meld'}", "--data.batch_size=1", "--data.num_workers=0"]
    trainer = ["--trainer.devices=2", *strategy, f"--trainer.max_steps={steps}", *QUIET]
    return fit(home, "Growth", *system, *data, *trainer)


def fit(home: Path, callback: str, *given: str) -> Path:
    """Run ``zoo fit`` with a callback of this module; the folder of the run and of what was measured."""
    out = Path(tempfile.mkdtemp(dir=home))
    environment = os.environ | {"GROWTH": str(out), "PYTHONPATH": str(Path(__file__).parents[2])}
    # what a matrix of less than 32 MB leaves is else kept by the C library; those of larger models go back at once
    environment["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    measured = [] if any(x.startswith("--ckpt_path") for x in given) else [f"--trainer.default_root_dir={out}"]
    measured += [f"--trainer.callbacks+=tests.benchmarks.sharded_loading.{callback}"] if measured else []
    subprocess.run([SCRIPT, "fit", *given, *measured], check=True, env=environment, cwd=home, stdout=subprocess.DEVNULL)
    return out


def saving(home: Path) -> tuple[list[list[str]], list[str]]:
    """The rows of the second table, and what takes more memory than it may."""
    rows, wrong = [], []
    data = ["--data=MELD", f"--data.root={home / 'meld'}", "--data.batch_size=1", "--data.num_workers=0"]
    for cell, (dtype, options) in SAVED.items():
        for name, strategy in STRATEGIES.items():
            system = ["--model=CausalLM", f"--model.llm={home / dtype}", *options, "--model.schedule=constant"]
            trainer = ["--trainer.devices=2", *strategy, "--trainer.limit_val_batches=0", *QUIET]
            first = fit(home, "Saving", *system, *data, *trainer, "--trainer.max_steps=1")
            run = first / "lightning_logs" / "version_0"
            trusted = f"--import={Path(__file__).parents[2]}"  # the config of the run names `Saving`
            again = fit(home, "Saving", f"--ckpt_path={run}", "--trainer.max_steps=2", trusted)
            new, resumed = (
                [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)] for out in (first, again)
            )
            shares = [max(m[key] / m["whole"] for m in new) for key in ("step", "writing")]
            shares.append(max(m["begin"] / m["whole"] for m in resumed))
            rows.append([cell, name, f"{new[0]['whole'] / 1e9:.2f}", *(f"{share:.2f}" for share in shares)])
            print(rows[-1], file=sys.stderr, flush=True)
            if name == "FSDP2" and shares[1] - shares[0] > MOST_TO_WRITE:
                wrong.append(f"{cell}, written")
            for out in (first, again):
                shutil.rmtree(out)
    return rows, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, help="of the model; 23, with --saving 8")
    parser.add_argument("--saving", action="store_true", help="print the second table in place of the first")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--out", type=Path, help="folder for the models; a temporary one")
    options = parser.parse_args()
    rows, wrong = [], []
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        home = Path(folder)
        make_corpus(home / "meld", (1, 1, 1))
        make_model(home, options.layers or (8 if options.saving else 23))
        if options.saving:
            rows, wrong = saving(home)
            print("| | strategy | weights [GB] | after a step | writing a checkpoint | beginning from it |")
            print("|---|---|---|---|---|---|")
            options.cells = []
        if any("start" in "".join(CELLS[cell][1]) for cell in options.cells):
            run = begin(home, "float32", ("--model.lr=1e-3",), DIVIDED, steps=1) / "lightning_logs" / "version_0"
            (home / "start").symlink_to(run)
        for cell in options.cells:
            for name, strategy in STRATEGIES.items():
                out = begin(home, CELLS[cell][0], CELLS[cell][1], strategy)
                measured = [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]
                shares = {key: max(m[key] / m["whole"] for m in measured) for key in ("end", "most")}
                rows.append(
                    [cell, name, f"{measured[0]['whole'] / 1e9:.2f}", f"{shares['end']:.2f}", f"{shares['most']:.2f}"]
                )
                print(rows[-1], file=sys.stderr, flush=True)
                if name == "FSDP2" and shares["most"] > MOST:
                    wrong.append(cell)
    if not options.saving:
        print("| | strategy | weights [GB] | at the end | at most |\n|---|---|---|---|---|")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    if wrong:
        sys.exit(f"more of all weights than may be: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
