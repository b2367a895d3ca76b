"""Run folders: Lightning's own names and places, plus the rules for finding a checkpoint and never losing a result.

Also the loggers of a run, its scores as text, paths as they may stand in a result, and the order in which flags and
configs count.

<run>/config.yaml             what was run (config.resume-1.yaml ... after a resume, config.test.yaml after a test)
<run>/metrics.csv             every logged number
<run>/checkpoints/best.ckpt   best validation weighted F1;  last.ckpt to resume from
<run>/checkpoints/starts/     what these need of the run that it started from
<run>/metrics.json            after a test, with predictions.jsonl (or decisions.jsonl) and confusion.png; after a
                              training in which something could not be read: the list of it
<run>/previous/K/             the results of an earlier test of the same run
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from zoo.shipped import SHIPPED
from zoo.storage import read_json, write_whole

METRICS = "metrics.json"
RESULTS = (METRICS, "predictions.jsonl", "decisions.jsonl", "confusion*.png", "config.test.yaml", "config.predict.yaml")


EVENTS = "events.out.tfevents.*"
ABSOLUTE = re.compile(r"(?<![\w/.~:])/(?:[^\s/'\"`,;:()\[\]{}<>]+/)+[^\s/'\"`,;:()\[\]{}<>]*")  # a path within a text


def portable(value: Any) -> Any:
    """Return plain values as they may stand in a file that travels.

    Every absolute path in a text is written from the working directory, or, if it lies elsewhere, as its last two parts
    behind an ellipsis.
    """
    if isinstance(value, Mapping):
        return {key: portable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [portable(part) for part in value]
    return ABSOLUTE.sub(lambda match: portable_path(match[0], "…/"), value) if isinstance(value, str) else value


def portable_path(path: str, ellipsis: str = "") -> str:
    """Return an absolute path written from the working directory, or as its last two parts if it lies elsewhere.

    Anything else, such as the name of a model, stays as it is.
    """
    absolute, here = Path(path), Path.cwd()
    if not absolute.is_absolute():
        return path
    if absolute.is_relative_to(here):
        return absolute.relative_to(here).as_posix()
    return ellipsis + "/".join(absolute.parts[1:][-2:])


def newest_run(root: Path) -> Path | None:
    """Return the run folder ``root/lightning_logs/version_N`` with the largest N that holds a last.ckpt.

    Newer runs that hold none are named.
    """
    numbers = {
        int(m[1]): p
        for p in (root / "lightning_logs").glob("version_*")
        if (m := re.fullmatch(r"version_(\d+)", p.name))
    }
    without: list[str] = []
    for number in sorted(numbers, reverse=True):
        run = numbers[number]
        if (run / "checkpoints" / "last.ckpt").is_file():
            if without:
                print(f"{', '.join(without)} has no checkpoint; going on with {run}", file=sys.stderr)
            return run
        if (run / "config.yaml").is_file():  # a training that stopped before its first checkpoint
            without.append(run.name)
    return None


def run_in_use(which: str, root: Path) -> Path:
    """Return the run folder that ``--ckpt_path best`` or ``last`` means: the newest run.

    Raises:
        FileNotFoundError: there is none.
    """
    run = newest_run(root)
    if run is None:
        raise FileNotFoundError(
            f"--ckpt_path {which}: no run with a last.ckpt under {root / 'lightning_logs'}; name the run folder"
        )
    return run


def given_checkpoint(path: str) -> str:
    """Return ``--ckpt_path`` of a command that reads no config: for ``best`` and ``last`` the file of the newest run.

    Anything else stays as it is.

    Raises:
        FileNotFoundError: there is no run.
    """
    return str(find_checkpoint(run_in_use(path, Path(".")), path)) if path in ("best", "last") else path


def make_run_folder(root: Path) -> Path:
    """Make ``root/lightning_logs/version_N`` with the first N after the largest in use.

    Commands that start at the same moment get different ones.
    """
    logs = root / "lightning_logs"
    logs.mkdir(parents=True, exist_ok=True)
    used = [int(m[1]) for p in logs.glob("version_*") if (m := re.fullmatch(r"version_(\d+)", p.name))]
    for number in itertools.count(max(used, default=-1) + 1):
        with contextlib.suppress(FileExistsError):
            (logs / f"version_{number}").mkdir()
            return logs / f"version_{number}"
    raise AssertionError("itertools.count ended")


def run_of(checkpoint: Path) -> Path | None:
    """Return the run folder that a checkpoint lies in, or None."""
    for parent in checkpoint.resolve().parents:
        if (parent / "config.yaml").is_file() and checkpoint.resolve().parent == parent / "checkpoints":
            return parent
    return None


def published(name: str) -> Path | None:
    """Return the folder ``checkpoints/<name>`` of what comes with the zoo if it is one."""
    folder = SHIPPED / "checkpoints" / name
    return folder if (folder / "config.yaml").is_file() else None


def find_checkpoint(path: str | Path, prefer: str = "best") -> Path:
    """Return the checkpoint file of a file, a run folder, or a published name or folder.

    Args:
        prefer: ``best`` or ``last``, for a run folder that holds both.

    Raises:
        FileNotFoundError: saying what was looked for and what is there.
    """
    argument = Path(path)
    if argument.is_file():
        return argument
    folder = argument if argument.is_dir() else published(str(path))
    if folder is None:
        raise FileNotFoundError(
            f"no checkpoint {str(path)!r}: neither a file, nor a run folder, nor a published name of "
            f"{SHIPPED / 'checkpoints'}"
        )
    other = {"best": "last", "last": "best"}[prefer]
    for candidate in (
        folder / "checkpoints" / f"{prefer}.ckpt",
        folder / "checkpoints" / f"{other}.ckpt",
        folder / f"{prefer}.ckpt",
        folder / f"{other}.ckpt",
        folder / "weights.safetensors",
        folder / "model.safetensors",
        folder / "adapter_model.safetensors",  # of a PEFT folder, which a run may start from
    ):
        if candidate.is_file():
            return candidate
    held = sorted(p.name for p in folder.iterdir())[:10]
    raise FileNotFoundError(
        f"{folder} holds no checkpoint (checkpoints/best.ckpt, checkpoints/last.ckpt, weights.safetensors or "
        "adapter_model.safetensors; pickled weights such as a .bin are not read); "
        f"it holds {held}"
    )


class RunFolder(Callback):
    """Where a run writes, whatever its loggers are. Only the first process knows at first, and tells the others.

    A command that is refused before it began leaves nothing there: neither the folder that was made for it, nor the
    event file that TensorBoard's writer opens at once.

    Args:
        path: the folder; what another process than the first gives is not used.
        new: it was made for this command.
    """

    def __init__(self, path: Path, new: bool = False) -> None:
        self.path, self.new = path, new
        self.before = set(path.glob(EVENTS))
        self._begun = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.path = Path(trainer.strategy.broadcast(str(self.path)))

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun = True

    on_sanity_check_start = on_train_start = on_validation_start = on_test_start = on_predict_start = _begin

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._begun or not trainer.is_global_zero:
            return
        if self.new:
            shutil.rmtree(self.path, ignore_errors=True)
        for file in set(self.path.glob(EVENTS)) - self.before:
            file.unlink()


def run_folder(trainer: Trainer) -> Path:
    """Return the folder a trainer writes to: of its `RunFolder`, else its ``default_root_dir``."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set by one of its connectors
    return next((c.path for c in callbacks if isinstance(c, RunFolder)), Path(trainer.default_root_dir))


def newest_config(run: Path) -> Path:
    """Return the config that the run's training used last: of its newest resume, else config.yaml."""
    resumes = {
        int(m[1]): p
        for p in run.glob("config.resume-*.yaml")
        if (m := re.fullmatch(r"config\.resume-(\d+)\.yaml", p.name))
    }
    return resumes[max(resumes)] if resumes else run / "config.yaml"


def set_aside_results(run: Path) -> Path | None:
    """Move the results of an earlier test to ``previous/K`` and return that folder; None if there were none.

    What the training of the run could not read stays listed in its metrics.json.
    """
    old = [path for name in RESULTS for path in sorted(run.glob(name)) if not _lists_problems_alone(path)]
    if not old:
        return None
    of_fit = problems_of_fit(run)
    k = max((int(p.name) for p in (run / "previous").glob("*") if p.name.isdigit()), default=0) + 1
    target = run / "previous" / str(k)
    target.mkdir(parents=True)
    for path in old:
        shutil.move(path, target / path.name)
    if of_fit and not (run / METRICS).exists():
        write_whole(run / METRICS, json.dumps({"problems": of_fit}, indent=2) + "\n")
    return target


def _lists_problems_alone(path: Path) -> bool:
    return path.name == METRICS and read_record(path.parent).keys() == {"problems"}


def read_record(run: Path) -> dict[str, Any]:
    """Return what metrics.json of a run says; nothing if there is none, or if it is none of ours."""
    try:
        record = read_json(run / METRICS)
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def problems_of_fit(run: Path) -> dict[str, Any]:
    """Return what metrics.json lists of the training of a run: ``train`` and ``dev`` -> what could not be read."""
    problems = read_record(run).get("problems", {})
    return {split: problems[split] for split in ("train", "dev") if split in problems}


def configs_first(args: list[str]) -> list[str]:
    """Return arguments with configs first, so that a flag beats every --config, also one that follows it."""
    configs: list[str] = []
    others: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg in ("--config", "-c"):
            configs += [arg, *itertools.islice(rest, 1)]
        else:
            (configs if arg.startswith("--config=") else others).append(arg)
    return configs + others


class ResumingCSVLogger(CSVLogger):
    """A CSV logger that keeps metrics.csv when a run is resumed in its folder, up to the step it resumes from.

    Lightning's own empties it. Later rows belong to work that was lost and is done again.

    Args:
        resume_step: step that the run goes on from; None: a new run.
        validation_due: the resumed run begins with the validation after that step.
    """

    def __init__(
        self, save_dir: str, name: str, version: int | str, resume_step: int | None = None, validation_due: bool = False
    ) -> None:
        super().__init__(save_dir, name=name, version=version)
        self.resume_step = resume_step
        file = Path(self.log_dir) / "metrics.csv"
        self._kept: list[dict[str, str]] = []
        if resume_step is not None and file.is_file():
            with file.open(newline="") as f:
                rows = [r for r in csv.DictReader(f) if (r["step"] or "").isdigit()]  # a kill may cut the last row
                self._kept = [
                    r
                    for r in rows
                    if int(r["step"]) < resume_step
                    and not (
                        validation_due
                        and int(r["step"]) == resume_step - 1
                        and any(value and name.startswith("val/") for name, value in r.items())
                    )
                ]

    @property
    def experiment(self) -> Any:
        """The writer of metrics.csv, with the rows that a resumed run keeps."""
        writer = super().experiment
        if self._kept:  # at most once: the writer was just made and has emptied the file
            writer.metrics = [{k: v for k, v in row.items() if v} for row in self._kept]
            self._kept = []
            writer.save()
        return writer


def run_loggers(run: Path, users: Sequence[Logger], table: CSVLogger | None) -> list[Logger]:
    """Return the loggers of a run; all that they write to disk lies in the run folder.

    Args:
        users: the loggers named with --trainer.logger; their folders are changed. None named: TensorBoard.
        table: what writes metrics.csv; None for an evaluation of a run, whose metrics.csv is that of its training.
    """
    loggers: list[Logger] = [] if table is None else [table]
    for logger in users or [TensorBoardLogger(str(run), "", "")]:
        if isinstance(logger, CSVLogger):
            continue  # the table holds the same rows
        if isinstance(logger, TensorBoardLogger):
            logger._root_dir, logger._name, logger._version, logger._sub_dir = str(run), "", "", None
        elif isinstance(logger, WandbLogger):
            logger._save_dir = logger._wandb_init["dir"] = str(run)
        loggers.append(logger)
    return loggers
