"""LightningCLI with the zoo's rules: where results lie, which checkpoint is meant, and that no flag is ever overruled
by a file."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO, TorchCheckpointIO

import zoo.data  # noqa: F401 - corpora and models are known by their short names on the command line
import zoo.models.baselines
import zoo.models.causal_lm
import zoo.models.dialoguellm
import zoo.models.emotion_qwen
import zoo.models.farcer
import zoo.models.grpo
import zoo.models.instructerc
import zoo.models.merit
import zoo.models.selector
import zoo.models.unimodal  # noqa: F401
from zoo.arguments import ZooParser, prepared
from zoo.checkpoints.listing import refuse_changed
from zoo.configs import read_run_config, take_imports, trust_words
from zoo.data import EmotionData
from zoo.errors import is_refusal
from zoo.module import EmotionModule, read_checkpoint
from zoo.runs import (
    ResumingCSVLogger,
    configs_first,
    find_checkpoint,
    newest_run,
    next_version,
    published,
    run_folder,
    run_of,
)
from zoo.weights import look_into, require_resumable

EVALUATION = ("validate", "test", "predict")
VERBS = ("fit", *EVALUATION)


class SaveConfig(SaveConfigCallback):
    """config.yaml for a new run, config.resume-K.yaml for a resumed one, config.test.yaml (etc.) for an evaluation;
    never overwrites another run's."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            k, name = 0, "config.yaml"
            while (run_folder(trainer) / name).exists():
                k += 1
                name = f"config.resume-{k}.yaml"
            self._save(trainer, name)

    # an evaluation's config is written once its results are, so that it lies beside these and no others
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._save(trainer, "config.validate.yaml")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, "config.test.yaml")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, "config.predict.yaml")

    def _save(self, trainer: Trainer, name: str) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:
            run_folder(trainer).mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, str(run_folder(trainer) / name), skip_none=False, overwrite=True)


class ZooCLI(LightningCLI):
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
            "after every validation. 0: only then.",
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
            file = Path(config.ckpt_path)
            if self.subcommand == "fit" and file.suffix == ".safetensors":
                raise ValueError(
                    f"{file} holds weights alone: no optimizer and no place in the data, so no run can go on from it. "
                    f"To begin a new run with these weights, give --model.start_from {file.parent.name}"
                )
            refuse_changed(file)
            checkpoint = look_into(file)
            if self.subcommand == "fit":
                require_resumable(checkpoint)
            self.checkpoint_step = checkpoint.global_step
        start = config.model.get("init_args", {}).get("start_from") if config.model else None
        if self.subcommand == "fit" and start and not config.ckpt_path:
            refuse_changed(find_checkpoint(start))
        config.weights_only = True

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.subcommand]
        trainer, root = config.trainer, Path(config.trainer.default_root_dir or ".")
        checkpoint = config.get("ckpt_path")
        self.model.restored = checkpoint is not None  # Lightning says so itself only after the model was made
        home = run_of(Path(checkpoint)) if checkpoint else None
        quick = bool(trainer.fast_dev_run)
        if trainer.logger is None and not quick:
            if self.subcommand != "fit" and home is not None:
                kwargs |= {"logger": False, "default_root_dir": str(home)}  # results lie beside the run's config.yaml
            else:
                resume_step = None
                if home is not None:
                    resume_step = self.checkpoint_step
                    number = home.name.removeprefix("version_")  # no number if the folder was renamed
                    version = int(number) if number.isdigit() else home.name
                    root, folder = home.parent.parent, (home.parent.name, version)
                else:
                    folder = ("lightning_logs", next_version(root))
                kwargs["logger"] = [
                    ResumingCSVLogger(str(root), *folder, resume_step),
                    TensorBoardLogger(str(root), *folder),
                ]
                kwargs["default_root_dir"] = str(root)
        extra = []
        if self.subcommand == "fit" and not quick and trainer.enable_checkpointing is not False:
            extra += [config.checkpoint, LastCheckpoint(config.save_last_every)]
        self.trainer_defaults["callbacks"] = extra
        if checkpoint and Path(checkpoint).suffix == ".safetensors":
            given = trainer.plugins if isinstance(trainer.plugins, list) else [trainer.plugins] * bool(trainer.plugins)
            kwargs["plugins"] = [*(p for p in given if not isinstance(p, CheckpointIO)), PublishedWeights()]
        with library_options("--trainer"):
            made = super().instantiate_trainer(**kwargs)
        self.run_folder = run_folder(made)
        if not quick and made.is_global_zero:
            print(f"run folder: {self.run_folder}", flush=True)
        return made

    def _announce(self, what: str) -> None:
        if not self.trainer.fast_dev_run and self.trainer.is_global_zero:
            print(f"{what}: {self.run_folder}", flush=True)

    def after_fit(self) -> None:
        best = self.trainer.checkpoint_callback
        if best is not None and best.best_model_score is not None and self.trainer.is_global_zero:
            print(f"best {best.monitor} {best.best_model_score:.4f}")
        self._announce("run folder")

    def after_test(self) -> None:
        self._announce("results in")

    def after_predict(self) -> None:
        splits = " and ".join(self.datamodule.predict_splits)
        self._announce(f"{self.model.rows_file} of {splits} in")


class BestCheckpoint(ModelCheckpoint):
    """best.ckpt. Remembers the best score even if the run folder was moved, or was named relative to another directory;
    Lightning's own forgets it then, and a resumed run would overwrite the best model with its next one."""

    def setup(self, trainer: Trainer, pl_module: EmotionModule, stage: str) -> None:
        self.monitor = self.monitor or pl_module.monitor
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(self.dirpath) / Path(path).name) if path else path

        paths = {k: here(state_dict[k]) for k in ("best_model_path", "kth_best_model_path", "last_model_path")}
        kept = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | paths | {"best_k_models": kept, "dirpath": self.dirpath})


class LastCheckpoint(Checkpoint):
    """last.ckpt: every so many steps, after every validation, at the end, and when the run is interrupted. Written to
    a temporary file first (Lightning's own way), so a kill at any moment leaves a whole file.

    It always holds a whole step and all that came before it, so that a resumed run is the same run. Ctrl-C therefore
    lets the step that is being done end; a second Ctrl-C stops at once, with the file as it is.
    """

    def __init__(self, every: int) -> None:
        self.every, self.saved_at = every, -1
        self.stopping, self._handler = False, None

    def _stop(self, number: int, frame: Any) -> None:
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True
        if os.getpid() == self._process:  # loader workers get the signal, too
            print("stopping after this step; Ctrl-C again stops at once", flush=True)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            self._handler = signal.signal(signal.SIGINT, self._stop)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved_at = trainer.global_step  # a run that has nothing left to do leaves its file alone

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if self.stopping and self.saved_at == trainer.global_step:
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if not self.stopping and (not self.every or trainer.global_step % self.every):
            return
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate():  # no checkpoint holds the gradients that are still being summed up
            return
        if not loop._should_check_val_fx(trainer.fit_loop._data_fetcher):  # else a resume would leave validation out
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.saved_at = -1  # the same step again, now with the validation behind it
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == "fit" and isinstance(exception, KeyboardInterrupt):
            found = self._file(trainer).is_file()
            print(
                f"interrupted at step {trainer.global_step}; "
                + (f"go on with: zoo fit --ckpt_path {run_folder(trainer)}" if found else "nothing was saved yet"),
                flush=True,
            )
        else:
            self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None

    def _file(self, trainer: Trainer) -> Path:
        return run_folder(trainer) / "checkpoints" / "last.ckpt"

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step != self.saved_at:
            self.saved_at = trainer.global_step
            trainer.save_checkpoint(self._file(trainer))


class PublishedWeights(TorchCheckpointIO):
    """Lightning reads .ckpt files alone; this gives it a weights.safetensors as if it were one, at step 0."""

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if Path(path).suffix != ".safetensors":
            return super().load_checkpoint(path, *args, **kwargs)
        return read_checkpoint(Path(path)) | {
            "pytorch-lightning_version": version("lightning"), "epoch": 0, "global_step": 0, "loops": None}  # fmt: skip


LEAST = {  # option -> its least value, where a library would divide by it, wait for ever, or take it for another
    "trainer.accumulate_grad_batches": 1, "trainer.check_val_every_n_epoch": 1, "trainer.log_every_n_steps": 0,
    "trainer.num_sanity_val_steps": -1, "trainer.max_steps": -1, "trainer.gradient_clip_val": 0, "save_last_every": 0,
    "data.init_args.num_workers": 0, "data.init_args.limit": 1,
}  # fmt: skip


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
    args = prepared(verb, take_imports(args), verb in EVALUATION)
    trust_words(args, _values(args, "--config", "-c"))
    args = configs_first(resolve_checkpoint(verb, args))
    # where LightningCLI reads, and with what Lightning starts the other processes: the script stays the first
    sys.argv = [*sys.argv[:1], verb, *args]
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
        parser_kwargs={"prog": "zoo", "allow_abbrev": False} | {v: {"allow_abbrev": False} for v in VERBS},
    )


def resolve_checkpoint(verb: str, args: list[str]) -> list[str]:
    """Turns --ckpt_path RUN | NAME | best | last into a file, and puts the run's own config.yaml before all other
    configs.

    ``best`` and ``last`` mean the run that --config's folder is, else the newest run of --trainer.default_root_dir.
    """
    values = {key: _value(args, key) for key in ("--ckpt_path", "--config", "--trainer.default_root_dir")}
    path, config = values["--ckpt_path"], values["--config"] or _value(args, "-c")
    if path is None or path == "null":
        return args
    if path in ("best", "last"):
        beside = Path(config).parent if config else None
        if beside is not None and (beside / "checkpoints").is_dir():
            folder = beside
        else:
            root = Path(values["--trainer.default_root_dir"] or ".")
            folder = newest_run(root)
            if folder is None:
                raise FileNotFoundError(
                    f"--ckpt_path {path}: no run with a last.ckpt under {root / 'lightning_logs'}; name the run folder"
                )
        file = find_checkpoint(folder, path)
    else:
        file = find_checkpoint(path, "last" if verb == "fit" else "best")
    home = run_of(file) or (file.parent if (file.parent / "config.yaml").is_file() else None)
    kept = _without(args, "--ckpt_path")
    if home is not None:
        read_run_config(home / "config.yaml")  # before anything that it names is imported
        kept = ["--config", str(home / "config.yaml"), *kept]
    if file.name == "model.safetensors":  # a published backbone: its folder is the model, there is nothing more to load
        given = read_run_config(home / "config.yaml")["model"]["init_args"] if home else {}
        part = next((name for name in ("llm", "vision", "audio") if name in given), "llm")
        return [*kept, f"--model.{part}={published(path) or file.parent}", "--zero_shot=true"]
    return [*kept, f"--ckpt_path={file}"]


def _value(args: list[str], key: str) -> str | None:
    """The last value of a flag, in either spelling."""
    return next(reversed(_values(args, key)), None)


def _values(args: list[str], *keys: str) -> list[str]:
    """All values of a flag, under each of its names and in either spelling."""
    values = []
    for i, arg in enumerate(args):
        if arg in keys and i + 1 < len(args):
            values.append(args[i + 1])
        elif arg.startswith(tuple(f"{key}=" for key in keys)):
            values.append(arg.split("=", 1)[1])
    return values


def _without(args: list[str], key: str) -> list[str]:
    kept, skip = [], False
    for arg in args:
        if skip:
            skip = False
        elif arg == key:
            skip = True
        elif not arg.startswith(f"{key}="):
            kept.append(arg)
    return kept


def _quiet() -> None:
    """Silences advertisements and warnings that ask for nothing; everything else stays."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("zoo").setLevel(logging.INFO)
    for message in (
        r".*does not have many workers.*",
        r".*litlogger.*",
        r".*litmodels.*",
        r".*`isinstance\(treespec, LeafSpec\)`.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*Experiment logs directory.*",
        r".*your dataloader is not resumable.*",
        r".*callbacks used to create the checkpoint need to be provided.*",
        r".*`is_gradient_checkpointing` is deprecated.*",
        r".*self\.log\('(val|test)/.*sync_dist=True.*",  # the scores are of all processes already
    ):
        warnings.filterwarnings("ignore", message)
    chatter = ("litlogger", "litmodels", "`weights_only` was not set", "TPU available")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.trainer.connectors.checkpoint_connector"):
        logging.getLogger(name).addFilter(lambda record: not any(c in record.getMessage() for c in chatter))
