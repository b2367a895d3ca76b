"""LightningCLI with the zoo's rules: which checkpoint is meant, that no flag is ever overruled by a file, which options
a resumed run may change, in which folder a command writes, and that no two commands write to one folder at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector as SignalConnector

from zoo.arguments import ZooParser, flag_values, know_short_names, prepared, resolve_checkpoint
from zoo.callbacks import (
    BestCheckpoint,
    CheckpointFiles,
    LastCheckpoint,
    ParameterTable,
    PartialPredictions,
    ProgressBar,
    ProgressLines,
    SaveConfig,
)
from zoo.checkpoints.listing import refuse_changed
from zoo.configs import read_run_config, refuse_unreadable
from zoo.data import EmotionData
from zoo.errors import is_refusal
from zoo.imports import take_imports, trust_words
from zoo.memory.start import MemoryCheck
from zoo.metrics.printed import score_table
from zoo.runs import (
    EVENTS,
    ResumingCSVLogger,
    RunFolder,
    configs_first,
    find_checkpoint,
    make_run_folder,
    newest_config,
    run_loggers,
    run_of,
)
from zoo.storage import locked, read_json, sha256_of
from zoo.training.gathering import gather_into_files
from zoo.training.module import EmotionModule
from zoo.training.starts import refuse_other_start
from zoo.training.together import EndTogether
from zoo.weights import look_into, read_checkpoint, require_evaluable, require_resumable

know_short_names()

EVALUATION = ("validate", "test", "predict")
START = "model.init_args.start_from"
# What a resumed run cannot change, because what was trained before depends on it. The data module itself refuses what
# would change the order of training. Every other option is applied from the resumed step on.
FIXED = (
    "model.class_path",
    "model.init_args.train",
    "model.init_args.lora",
    START,
    "trainer.accumulate_grad_batches",
    "trainer.limit_train_batches",
    "trainer.overfit_batches",
)
LOCKS = contextlib.ExitStack()  # held until the command has ended


for _logger in (CSVLogger, TensorBoardLogger):
    # the run gives every logger its folder (`run_loggers`), so --trainer.logger CSVLogger needs no --...save_dir
    _logger.__init__.__defaults__ = (".", *(_logger.__init__.__defaults__ or ()))


class ZooCLI(LightningCLI):
    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the verb of this command alone: building a parser for each of the four takes four times as long."""
        verb = sys.argv[1]
        return {verb: LightningCLI.subcommands()[verb]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.usage = "zoo VERB [--config FILE ...] [options]"  # all 70 of them would bury an error's one line
        parser.add_argument(
            "--zero_shot",
            type=bool,
            default=False,
            help="Evaluate without a checkpoint: the pretrained language model as it is.",
        )
        parser.add_class_arguments(BestCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": None,  # the system's own, see EmotionModule.monitor
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.save_weights_only": True,  # a run goes on from last.ckpt
                "checkpoint.auto_insert_metric_name": False,
                "checkpoint.enable_version_counter": False,
                "checkpoint.save_on_train_epoch_end": False,  # but after validation, before last.ckpt, which knows it
            }
        )
        parser.add_argument(
            "--save_last_every",
            type=int,
            default=200,
            help="Training steps between two writings of last.ckpt, the file to resume from; it is also written "
            "after every validation and when the run is asked to stop. 0: not by steps.",
        )
        parser.add_argument(
            "--save_last_minutes",
            type=float,
            default=10.0,
            help="Minutes between two writings of last.ckpt at most, for slow steps. 0: not by time.",
        )

    # ---- nothing in a checkpoint overrules a flag or a file (stock Lightning merges hyper-parameters over both)
    def _parse_ckpt_path(self) -> None:
        return

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        check_numbers(config)
        if self.subcommand in EVALUATION:
            if config.zero_shot and config.ckpt_path:
                raise ValueError("--zero_shot evaluates without a checkpoint, but --ckpt_path was given too; drop one")
            if not config.zero_shot and not config.ckpt_path:
                raise ValueError(
                    f"{self.subcommand} needs trained weights: give --ckpt_path (a run folder, a .ckpt, or a published "
                    "name), or --zero_shot=true to evaluate the pretrained backbones as they are"
                )
        if config.ckpt_path:
            self._refuse_checkpoint(Path(config.ckpt_path), config)
        start = config.model.get("init_args", {}).get("start_from") if config.model else None
        if self.subcommand == "fit" and start and not config.ckpt_path:
            refuse_changed(find_checkpoint(start))
        self._refuse_unused(config)
        config.weights_only = True
        if self.subcommand == "test":
            config.verbose = False  # Lightning's table of the same scores, without intervals

    def _refuse_checkpoint(self, file: Path, config: Namespace) -> None:
        """Look into the file of --ckpt_path. ValueError if this command cannot go on from it."""
        fit = self.subcommand == "fit"
        if fit and file.suffix == ".safetensors":
            raise ValueError(
                f"{file} holds weights alone: no optimizer and no place in the data, so no run can go on from it. "
                f"To begin a new run with these weights, give --model.start_from {file.parent.name}"
            )
        refuse_changed(file)
        checkpoint = look_into(file) if fit else read_checkpoint(file)  # what Lightning will read of it
        self.checkpoint_step = checkpoint.global_step
        self.validation_due = bool(_get(checkpoint.content, "callbacks.LastCheckpoint.validation_due"))
        if fit:
            require_resumable(checkpoint, config.data.class_path.rpartition(".")[2] if config.data else None)
        else:
            require_evaluable(checkpoint)
        if (home := run_of(file)) is not None:
            self._refuse_changes(home, file, checkpoint.contract)

    def _refuse_unused(self, config: Namespace) -> None:
        """ValueError for options of Lightning that would do nothing here, or something else than they say."""
        for name in ("optimizer", "lr_scheduler"):
            if config.get(name):
                raise ValueError(
                    f"--{name} is not used: every system is trained by AdamW with --model.lr, --model.betas, "
                    "--model.weight_decay, --model.warmup and --model.schedule; leave it out"
                )
        best = config.checkpoint
        if best.save_top_k not in (0, 1) or best.dirpath is not None or best.filename != "best":
            raise ValueError(
                f"--checkpoint.* is about checkpoints/best.ckpt of the run folder, one file; got save_top_k "
                f"{best.save_top_k}, dirpath {best.dirpath}, filename {best.filename}. For more files add "
                "--trainer.callbacks+=ModelCheckpoint with options of its own"
            )
        callbacks = config.trainer.callbacks
        for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
            name = str(getattr(callback, "class_path", "")).rpartition(".")[2]
            if name in ("StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging"):
                raise ValueError(
                    f"{name} averages weights beside the optimizer, which neither checkpoints nor resumed "
                    "runs of the zoo know; leave it out"
                )
        for verb in ("test", "predict"):
            if self.subcommand == verb and config.trainer.get(f"limit_{verb}_batches") == 0:
                raise ValueError(
                    f"--trainer.limit_{verb}_batches 0 leaves nothing to {verb}; give at least 1, or leave it out"
                )

    def _refuse_changes(self, home: Path, file: Path, contract: Mapping[str, Any]) -> None:
        """ValueError for what was trained on another start than the one that is given, which may lie at another place;
        and naming the options that a resumed run could not apply to what is trained already."""
        before, after = read_run_config(newest_config(home)), self._plain_config()
        changed = [key for key in FIXED if _get(before, key) != _get(after, key)]
        start, new_start = contract["start"], _get(after, START)
        if START in changed and start is not None and new_start is not None:
            refuse_other_start(new_start, start, file)
            changed.remove(START)
        if self.subcommand != "fit":
            return
        changed = [f"--{key} is {_get(after, key)!r}, was {_get(before, key)!r}" for key in changed]
        if changed:
            raise ValueError(
                f"{home} cannot go on with other values of these options: {'; '.join(changed)}. Leave them as they "
                f"were, or begin a new run with its weights: --model.start_from {home}"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        self.datamodule.settle(self.config[self.subcommand].data)  # before any config is written
        config = self.config_init[self.subcommand]
        options, root = config.trainer, Path(config.trainer.default_root_dir or ".")
        checkpoint = config.get("ckpt_path")
        self.model.will_load_checkpoint = checkpoint is not None  # Lightning says so only after the model was made
        trial = bool(options.fast_dev_run)
        # a trial run leaves nothing behind
        folder = RunFolder(Path(LOCKS.enter_context(tempfile.TemporaryDirectory())) if trial else root)
        display, switches = self._display(options)
        self.trainer_defaults["callbacks"] = [
            folder,
            EndTogether(),
            MemoryCheck(),
            *display,
            *self._file_callbacks(config),
        ]
        with library_options("--trainer"):
            trainer = super().instantiate_trainer(**kwargs | switches | {"logger": False})
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = CheckpointFiles(weights_alone=self.subcommand != "fit")
        gather_into_files(trainer)
        trainer._signal_connector = _SignalConnector(trainer)
        if not trial:
            home = run_of(Path(checkpoint)) if checkpoint else None
            self._choose_folder(folder, trainer, options, home)
            self._write_into(folder.path, trainer, options.logger, home)
        self.folder = folder
        return trainer

    def _display(self, options: Namespace) -> tuple[list[Callback], dict[str, bool]]:
        """Return the callbacks that show a run in the terminal, and the trainer's switches for Lightning's own."""
        if options.barebones:
            return [], {}
        callbacks: list[Callback] = []
        switches = {"enable_model_summary": False}
        users = options.callbacks if isinstance(options.callbacks, list) else [options.callbacks]
        if not any(isinstance(callback, LightningProgressBar) for callback in users):
            bar = options.enable_progress_bar is not False and sys.stdout.isatty()
            switches["enable_progress_bar"] = bar
            callbacks.append(ProgressBar() if bar else ProgressLines())
        if self.subcommand == "fit" and options.enable_model_summary is not False:
            callbacks.append(ParameterTable())
        return callbacks, switches

    def _file_callbacks(self, config: Namespace) -> list[Callback]:
        """Return the callbacks that write checkpoints or predictions; none for a trial run."""
        if config.trainer.fast_dev_run:
            return []
        if self.subcommand == "fit" and config.trainer.enable_checkpointing is not False:
            return [config.checkpoint, LastCheckpoint(config.save_last_every, config.save_last_minutes)]
        return [PartialPredictions(self._digest())] if self.subcommand == "predict" else []

    def _choose_folder(self, folder: RunFolder, trainer: Trainer, options: Namespace, home: Path | None) -> None:
        """Set where the command writes, and lock it.

        Args:
            home: the run that the checkpoint belongs to, if there is one.
        """
        fit, root = self.subcommand == "fit", Path(options.default_root_dir or ".")
        if home is not None:
            folder.path = home if fit else self._results_folder(home, options)
        elif not fit and options.logger is False and options.default_root_dir is not None:
            folder.path = root  # an evaluation without a run, whose user names the folder of its results
        else:
            folder.new = trainer.is_global_zero
            folder.path = self._new_folder(trainer, root)
        folder.before = set(folder.path.glob(EVENTS))
        if trainer.is_global_zero:
            self._lock(folder.path, fit)

    def _write_into(self, path: Path, trainer: Trainer, logger: object, home: Path | None) -> None:
        """Let loggers, checkpoints and the profiler of a trainer write into its run folder.

        Args:
            logger: what ``--trainer.logger`` gives.
            home: the run that the checkpoint belongs to, if there is one.
        """
        users = [one for one in (logger if isinstance(logger, list) else [logger]) if isinstance(one, Logger)]
        table = None
        if self.subcommand == "fit" or home is None:
            resume = (self.checkpoint_step, self.validation_due) if home is not None else (None, False)
            table = ResumingCSVLogger(str(path), "", "", *resume)
        if logger is not False and (table is not None or users):
            trainer.loggers = run_loggers(path, users, table)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by one of its connectors
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str((path / "checkpoints").absolute())
        profiler = trainer.profiler  # type: ignore[attr-defined]  # set by one of its connectors
        if isinstance(profiler, Profiler) and profiler.dirpath is None:
            profiler.dirpath = path
        if trainer.is_global_zero:
            print(f"run folder: {path}", flush=True)

    def _plain_config(self) -> dict[str, Any]:
        """The options of this command as plain values, as config.yaml holds them."""
        options: dict[str, Any] = yaml.safe_load(self.parser.dump(self.config, skip_validation=True))[self.subcommand]
        return options

    def _digest(self) -> str:
        """A digest of everything that decides what ``zoo predict`` answers."""
        config = self._plain_config()
        decides = {key: config.get(key) for key in ("model", "data", "seed_everything", "ckpt_path")}
        decides["trainer"] = {key: config["trainer"].get(key) for key in ("precision", "limit_predict_batches")}
        if config.get("ckpt_path"):
            decides["weights"] = sha256_of(Path(config["ckpt_path"]))
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def _new_folder(self, trainer: Trainer, root: Path) -> Path:
        return make_run_folder(root) if trainer.is_global_zero else root / "lightning_logs"

    def _results_folder(self, home: Path, trainer: Namespace) -> Path:
        """Where an evaluation of a run writes: beside its config.yaml; or into a --trainer.default_root_dir of its own,
        if it has no loggers that would need a folder each."""
        root = trainer.default_root_dir
        trained_in = _get(read_run_config(home / "config.yaml"), "trainer.default_root_dir")
        elsewhere = trainer.logger is False and root is not None and str(root) != trained_in
        return Path(root) if elsewhere else home

    def _lock(self, folder: Path, fit: bool) -> None:
        """Two trainings of one run, or two evaluations that write to one folder, would mix their files."""
        name, what = (".fit.lock", f"the run {folder}") if fit else (".results.lock", f"the folder of results {folder}")
        LOCKS.enter_context(locked(folder / name, what))

    @property
    def _writes(self) -> bool:
        """Whether this process writes results, and says so."""
        trying = self.trainer.fast_dev_run  # type: ignore[attr-defined]  # set by one of its connectors
        return not trying and self.trainer.is_global_zero

    def _announce(self, what: str) -> None:
        if self._writes:
            print(f"{what}: {self.folder.path}", flush=True)

    def after_fit(self) -> None:
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]  # set by one of its connectors
        best = next((c for c in callbacks if isinstance(c, BestCheckpoint)), None)
        if best is not None and best.best_model_score is not None and self.trainer.is_global_zero:
            print(f"best {best.monitor} {best.best_model_score:.4f}")
        self._announce("run folder")

    def after_test(self) -> None:
        if self._writes:
            print(score_table(read_json(self.folder.path / "metrics.json")))
        self._announce("results in")

    def after_predict(self) -> None:
        splits = " and ".join(self.datamodule.predict_splits)
        self._announce(f"{self.model.predictions_file} of {splits} in")


class _SignalConnector(SignalConnector):
    """SIGTERM is answered by `zoo.interrupts`. Lightning's own answer ends the run at the end of an epoch, without a
    checkpoint and with exit code 0, and may wait for other processes inside a signal handler."""

    def _sigterm_notifier_fn(self, number: int, frame: Any) -> None:
        pass


LEAST = {  # option -> its least value, where a library would divide by it, wait for ever, or take it for another
    "trainer.accumulate_grad_batches": 1,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.log_every_n_steps": 0,
    "trainer.num_sanity_val_steps": -1,
    "trainer.max_steps": -1,
    "trainer.gradient_clip_val": 0,
    "save_last_every": 0,
    "save_last_minutes": 0,
    "data.init_args.num_workers": 0,
    "data.init_args.limit": 1,
}


def check_numbers(config: Mapping[str, Any]) -> None:
    """ValueError naming an option whose number means nothing."""
    for option, least in LEAST.items():
        value = config.get(option)
        if isinstance(value, int | float) and not value >= least:
            flag = option.replace(".init_args", "")
            raise ValueError(f"--{flag} {value}: expected at least {least}")


@contextlib.contextmanager
def library_options(flags: str) -> Iterator[None]:
    """Inside, a library is given options; ValueError in one sentence for what it refuses in words of its own."""
    try:
        yield
    except Exception as error:  # Lightning raises many types for options; the cause stays chained
        if is_refusal(error) or isinstance(error, OSError):
            raise
        message = " ".join(str(error).split()).removesuffix(".")
        raise ValueError(f"these {flags} options cannot be used here: {message}; change them") from error


def run(verb: str, args: list[str]) -> None:
    """One LightningCLI verb, with --ckpt_path resolved first."""
    _quiet()
    _notice_batch_scripts()
    args = prepared(verb, take_imports(args), verb in EVALUATION)
    configs = flag_values(args, "--config", "-c")
    refuse_unreadable(configs)
    trust_words(args, configs)
    args = configs_first(resolve_checkpoint(verb, args))
    # where LightningCLI reads, and with what Lightning starts the other processes: the script stays the first
    sys.argv = [*sys.argv[:1], verb, *args]
    with LOCKS:
        ZooCLI(  # not returned: a script that exits with an object has failed
            EmotionModule,
            EmotionData,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=ZooParser,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            # the data module shards by itself, and in evaluation exactly once
            trainer_defaults={"use_distributed_sampler": False},
            # options in full: a shortened one would be a typing error that works
            parser_kwargs={"prog": "zoo", "allow_abbrev": False, verb: {"allow_abbrev": False}},
        )


def _notice_batch_scripts() -> None:
    """Let Lightning start the processes itself in a batch script of Slurm.

    Slurm sets the number of tasks there, too, from which Lightning concludes that srun started so many processes, and
    waits for them; only srun sets the number of the step. By this name of a job Lightning can be told.
    """
    if "SLURM_NTASKS" in os.environ and "SLURM_STEP_ID" not in os.environ:
        os.environ["SLURM_JOB_NAME"] = "interactive"


def _get(config: Any, key: str) -> Any:
    """The value at a dotted key of nested mappings; None where there is none."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _quiet() -> None:
    """Silences advertisements and warnings that ask for nothing; everything else stays."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("zoo").setLevel(logging.INFO)
    for message in (
        r".*does not have many workers.*",
        r".*The `srun` command is available on your system but is not used.*",  # where srun started none, none is meant
        r".*litlogger.*",
        r".*litmodels.*",
        r".*`isinstance\(treespec, LeafSpec\)`.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*Experiment logs directory.*",
        r".*your dataloader is not resumable.*",
        r".*in eval mode at the start of training.*",  # frozen parts, as they should be
        r".*callbacks used to create the checkpoint need to be provided.*",
        r".*self\.log\('(val|test)/.*sync_dist=True.*",  # the scores are of all processes already
    ):
        warnings.filterwarnings("ignore", message)
    chatter = ("litlogger", "litmodels", "`weights_only` was not set", "TPU available", "to estimate number of")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.trainer.connectors.checkpoint_connector"):
        logging.getLogger(name).addFilter(lambda record: not any(c in record.getMessage() for c in chatter))
