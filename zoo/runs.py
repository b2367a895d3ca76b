"""Run folders: Lightning's own names and places, plus the rules for finding a checkpoint and never losing a result
(and that a flag beats a config.yaml).

<run>/config.yaml             what was run (config.resume-1.yaml ... after a resume, config.test.yaml after a test)
<run>/metrics.csv             every logged number
<run>/checkpoints/best.ckpt   best validation weighted F1;  last.ckpt to resume from
<run>/metrics.json            after a test, with predictions.jsonl and confusion.png
<run>/previous/K/             the results of an earlier test of the same run
"""

from __future__ import annotations

import csv
import itertools
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = (
    "metrics.json", "predictions.jsonl", "decisions.jsonl", "confusion*.png", "config.test.yaml", "config.predict.yaml",
)  # fmt: skip


ABSOLUTE = re.compile(r"(?<![\w/.~:])/(?:[^\s/'\"`,;:()\[\]{}<>]+/)+[^\s/'\"`,;:()\[\]{}<>]*")  # a path within a text


def portable(value: Any) -> Any:
    """Plain values as they may stand in a file that travels: every absolute path in a text is written from the working
    directory, or, if it lies elsewhere, as its last two parts behind an ellipsis."""
    if isinstance(value, Mapping):
        return {key: portable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [portable(part) for part in value]
    return ABSOLUTE.sub(lambda found: _portable(Path(found[0])), value) if isinstance(value, str) else value


def _portable(path: Path) -> str:
    here = Path.cwd()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else "/".join(("…", *path.parts[-2:]))


def newest_run(root: Path) -> Path | None:
    """The run folder ``root/lightning_logs/version_N`` with the largest N that holds a last.ckpt."""
    versions = [
        (int(m[1]), p)
        for p in (root / "lightning_logs").glob("version_*")
        if (m := re.fullmatch(r"version_(\d+)", p.name))
    ]
    return next((p for _, p in sorted(versions, reverse=True) if (p / "checkpoints" / "last.ckpt").is_file()), None)


def next_version(root: Path) -> int:
    """The first N that no ``root/lightning_logs/version_N`` uses, after the largest in use."""
    used = [
        int(m[1]) for p in (root / "lightning_logs").glob("version_*") if (m := re.fullmatch(r"version_(\d+)", p.name))
    ]
    return max(used, default=-1) + 1


def run_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in, or None."""
    for parent in checkpoint.resolve().parents:
        if (parent / "config.yaml").is_file() and checkpoint.resolve().parent == parent / "checkpoints":
            return parent
    return None


def published(name: str) -> Path | None:
    """The folder ``checkpoints/<name>`` of the repository if it is one."""
    folder = REPOSITORY / "checkpoints" / name
    return folder if (folder / "config.yaml").is_file() else None


def find_checkpoint(path: str | Path, prefer: str = "best") -> Path:
    """A checkpoint file from a file, a run folder, or a published name or folder.

    Args:
        prefer: ``best`` or ``last``, for a run folder that holds both.

    Raises:
        FileNotFoundError: saying what was looked for and what is there.
    """
    given = Path(path)
    if given.is_file():
        return given
    folder = given if given.is_dir() else published(str(path))
    if folder is None:
        raise FileNotFoundError(
            f"no checkpoint {str(path)!r}: neither a file, nor a run folder, nor a published name of "
            f"{REPOSITORY / 'checkpoints'}"
        )
    other = {"best": "last", "last": "best"}[prefer]
    for candidate in (
        folder / "checkpoints" / f"{prefer}.ckpt",
        folder / "checkpoints" / f"{other}.ckpt",
        folder / f"{prefer}.ckpt",
        folder / f"{other}.ckpt",
        folder / "weights.safetensors",
        folder / "model.safetensors",
    ):
        if candidate.is_file():
            return candidate
    held = sorted(p.name for p in folder.iterdir())[:10]
    raise FileNotFoundError(
        f"{folder} holds no checkpoint (checkpoints/best.ckpt, checkpoints/last.ckpt or weights.safetensors); "
        f"it holds {held}"
    )


def run_folder(trainer: Trainer) -> Path:
    """The folder a trainer writes to. Unlike ``trainer.log_dir`` it asks no other process, so one process alone may
    call it; all of them come to the same answer."""
    logged = trainer.loggers[0].log_dir if trainer.loggers else None
    return Path(logged or trainer.default_root_dir)


def set_aside_results(run: Path) -> Path | None:
    """Moves the results of an earlier test to ``previous/K`` and returns that folder; None if there were none."""
    old = [path for name in RESULTS for path in sorted(run.glob(name))]
    if not old:
        return None
    k = max((int(p.name) for p in (run / "previous").glob("*") if p.name.isdigit()), default=0) + 1
    target = run / "previous" / str(k)
    target.mkdir(parents=True)
    for path in old:
        shutil.move(path, target / path.name)
    return target


def configs_first(args: list[str]) -> list[str]:
    """A flag beats every --config, also one that follows it; read from left to right the later of the two would win."""
    configs, others, rest = [], [], iter(args)
    for arg in rest:
        if arg in ("--config", "-c"):
            configs += [arg, *itertools.islice(rest, 1)]
        else:
            (configs if arg.startswith("--config=") else others).append(arg)
    return configs + others


class ResumingCSVLogger(CSVLogger):
    """Lightning's CSV logger empties metrics.csv when a run is resumed in its folder; this one keeps the rows up to
    the step it resumes from (later rows belong to work that was lost and is done again)."""

    def __init__(self, save_dir: str, name: str, version: int | str, resume_step: int | None = None) -> None:
        super().__init__(save_dir, name=name, version=version)
        self.resume_step = resume_step
        file = Path(self.log_dir) / "metrics.csv"
        self._kept: list[dict[str, str]] = []
        if resume_step is not None and file.is_file():
            with file.open(newline="") as f:
                rows = [r for r in csv.DictReader(f) if (r["step"] or "").isdigit()]  # a kill may cut the last row
                self._kept = [r for r in rows if int(r["step"]) < resume_step]

    @property
    def experiment(self):
        writer = super().experiment
        if self._kept:  # at most once: the writer was just made and has emptied the file
            writer.metrics = [{k: v for k, v in row.items() if v} for row in self._kept]
            self._kept = []
            writer.save()
        return writer
