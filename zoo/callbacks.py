"""Add to a run of Lightning what the zoo promises.

best.ckpt, last.ckpt and stopping by a signal, config.yaml, the answers of an interrupted prediction, a table of
parameters, lines of progress for runs without a progress bar, and checkpoints that are written whole.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.plugins import TorchCheckpointIO

from zoo import interrupts
from zoo.imports import import_flags
from zoo.progress import SECONDS, Meter
from zoo.runs import run_folder
from zoo.storage import read_jsonl, replacing, write_jsonl
from zoo.training.checkpointing import read_checkpoint
from zoo.training.module import EmotionModule
from zoo.training.starts import keep
from zoo.weights import load_mapped

log = logging.getLogger(__name__)


class CheckpointFiles(TorchCheckpointIO):
    """Checkpoint files that are written whole (`zoo.storage.replacing`).

    Lightning's own go through the system's temporary folder, and a move from another filesystem is a copy that a kill
    leaves half done. A published weights.safetensors is read as if it were a .ckpt at step 0.

    Args:
        weights_alone: no run goes on from what is read, so the tensors stay in the file until they are used; the
            optimizer's never are.
    """

    def __init__(self, weights_alone: bool = False) -> None:
        super().__init__()
        self.weights_alone = weights_alone

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with replacing(Path(path)) as temporary, temporary.open("wb") as file:
            # a file, not its name, which torch would write into the archive
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if Path(path).suffix != ".safetensors":
            content: dict[str, Any] = load_mapped(Path(path))
            if self.weights_alone:
                return content
            # the model takes copies, but the state of an optimizer becomes what is read here
            return {k: v if k == "state_dict" else copy.deepcopy(v) for k, v in content.items()}
        beginning = {"pytorch-lightning_version": version("lightning"), "epoch": 0, "global_step": 0, "loops": None}
        return read_checkpoint(Path(path)) | beginning


class SaveConfig(SaveConfigCallback):
    """The config of a run, which never overwrites that of another one.

    config.yaml for a new run, config.resume-K.yaml for a resumed one, config.test.yaml (etc.) for an evaluation.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._resumed = (run_folder(trainer) / "config.yaml").exists()
        if stage == "fit" and not self._resumed:
            self._save(trainer, "config.yaml")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._resumed:
            return
        # only now: a resume that is refused leaves no config for the next one to go on with
        k = 1
        while (run_folder(trainer) / f"config.resume-{k}.yaml").exists():
            k += 1
        self._save(trainer, f"config.resume-{k}.yaml")

    # an evaluation's config is written once its results are, so that it lies beside these and no others
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._save(trainer, "config.validate.yaml")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, "config.test.yaml")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, "config.predict.yaml")

    def _save(self, trainer: Trainer, name: str) -> None:
        trying = trainer.fast_dev_run  # type: ignore[attr-defined]  # set by one of its connectors
        if trainer.is_global_zero and not trying:
            with replacing(run_folder(trainer) / name) as temporary:
                self.parser.save(self.config, str(temporary), skip_none=False, overwrite=True)


class BestCheckpoint(ModelCheckpoint):
    """best.ckpt, whose score is remembered even if the run folder was moved or is named relative to another directory.

    Lightning's own forgets it then, and a resumed run would overwrite the best model with its next one.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.monitor = self.monitor or cast(EmotionModule, pl_module).monitor
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = {k: here(state_dict[k]) for k in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best_models = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | paths | {"best_k_models": best_models, "dirpath": self.dirpath})


class LastCheckpoint(Checkpoint):
    """last.ckpt, and stopping by a signal.

    Written after so many steps or minutes, after every validation, at the last step, and when the run is asked to stop.
    It always holds a whole step and all that came before it, so that a resumed run is the same run: never the inside of
    a window of accumulated gradients, and never a step whose validation a resume would leave out. A signal that comes
    during a validation is answered with a checkpoint of the place before it, from which the resumed run validates anew.

    Several processes decide together (rank 0 looks at the clock, any of them may have received the signal), so they
    write and stop after the same step.

    Args:
        every: steps between two writings; 0: not by steps.
        minutes: between two writings; 0: not by time.
    """

    def __init__(self, every: int, minutes: float) -> None:
        self.every, self.minutes = every, minutes
        self.saved_at, self.saved_time = -1, time.monotonic()
        self.stopping = False
        self.overdue = False  # a validation ended where nothing could be saved
        self._stop_after_window = False  # what asked the trainer to stop did so inside a window
        self._before_validation = False  # the checkpoint that is being written is of the place before a validation
        self._validation_batches = 0  # how many every process has, that is the fewest of any
        self._restored: dict[str, Any] = {}
        self._patience: dict[EarlyStopping, int] = {}
        self._region = contextlib.ExitStack()

    # ---- what a resumed run has to know
    def state_dict(self) -> dict[str, Any]:
        return {"metrics": self._metrics, "validation_due": self._before_validation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._metrics: dict[str, float] = {}
        # an option of the user's, which Lightning would take from the checkpoint
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set by one of its connectors
        self._patience = {c: c.patience for c in callbacks if isinstance(c, EarlyStopping)}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        start = cast(EmotionModule, pl_module).needed_start()
        if start is not None and trainer.is_global_zero:  # now: until the first save it might be trained further
            keep(start, self.file(trainer).parent)
        self.saved_at = trainer.global_step  # a run that has nothing left to do leaves its file alone
        self.saved_time = time.monotonic()
        # callbacks that look at the last validation at the end of the epoch find it; Lightning does not save it
        restored = {name: torch.tensor(value) for name, value in self._restored.get("metrics", {}).items()}
        trainer._logger_connector._callback_metrics.update(restored)
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set by one of its connectors
        for callback in callbacks:
            if isinstance(callback, GradientAccumulationScheduler):  # else an epoch that goes on has the first value
                callback.on_train_epoch_start(trainer)
        for callback, patience in self._patience.items():
            callback.patience = patience
            reason = callback.stopping_reason
            more_patience = reason == EarlyStoppingReason.PATIENCE_EXHAUSTED and callback.wait_count < patience
            trainer.should_stop |= reason != EarlyStoppingReason.NOT_STOPPED and not more_patience
        if os.getpid() != interrupts.process():  # forked by a launcher
            interrupts.listen()
        self._region.enter_context(interrupts.deferred("stopping after this step; the same signal again stops at once"))

    # ---- when to write
    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        # not at the end of the batch before, whose numbers are logged after its hooks
        if self.stopping and self.saved_at == trainer.global_step:
            raise interrupts.Interrupted
        # Lightning does not count the epoch that follows a resume at an epoch's last batch as begun
        progress = trainer.fit_loop.epoch_progress
        trackers: list[Any] = [progress.total, progress.current]
        for count in trackers:
            count.ready = count.started = count.processed + 1

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate():  # no checkpoint holds the gradients that are still being summed up
            self._stop_after_window |= trainer.should_stop
            trainer.should_stop = False
            return
        trainer.should_stop |= self._stop_after_window
        stop, late = self._agree(trainer)
        self.stopping |= stop
        # not at the end of the run: the epoch would count as done, and a longer run would leave the rest of it out
        last_epoch = trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch + 1
        last = 0 < trainer.max_steps <= trainer.global_step or (last_epoch and loop.batch_progress.is_last_batch)
        by_steps = self.every and trainer.global_step % self.every == 0
        due = self.stopping or self.overdue or late or last or by_steps or trainer.should_stop
        fetcher: Any = trainer.fit_loop._data_fetcher
        if due and not loop._should_check_val_fx(fetcher):
            self._save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        total: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        total.ready = total.started = total.processed = total.completed  # after a resume: see on_save_checkpoint
        self._validation_batches = int(sum(trainer.num_val_batches))
        if trainer.world_size > 1:
            fewest = torch.tensor(self._validation_batches, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(fewest, torch.distributed.ReduceOp.MIN)
            self._validation_batches = int(fewest)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or batch_idx >= self._validation_batches:
            return
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        stop, _ = self._agree(trainer)
        if stop:
            self.stopping, self._before_validation, self.saved_at = True, True, -1
            self._save(trainer)
            raise interrupts.Interrupted

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._before_validation:
            # Lightning goes on with a validation that has one batch begun and not done; none of them is counted
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            done = progress["total"]["completed"]
            progress["total"] |= {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
            progress["current"] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress["is_last_batch"] = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if trainer.fit_loop.epoch_loop._should_accumulate():
            self.overdue = True
            return
        self.saved_at = -1  # the same step again, now with the validation behind it
        self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)
        self._region.close()

    def _agree(self, trainer: Trainer) -> tuple[bool, bool]:
        """Whether any process was asked to stop, and whether it is time to write, the same in every process."""
        late = self.minutes > 0 and time.monotonic() - self.saved_time >= 60 * self.minutes
        decision = [int(interrupts.requested() or 0), int(late and trainer.is_global_zero)]
        if trainer.world_size > 1:
            shared = torch.tensor(decision, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
            decision = shared.tolist()
            if decision[0]:
                interrupts.passed_on(decision[0])
        return bool(decision[0]), bool(decision[1])

    def file(self, trainer: Trainer) -> Path:
        return run_folder(trainer) / "checkpoints" / "last.ckpt"

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step != self.saved_at:
            self._metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if v.numel() == 1}
            trainer.save_checkpoint(self.file(trainer))
            self.saved_at, self.saved_time, self.overdue = trainer.global_step, time.monotonic(), False

    # ---- how it ends
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._region.close()
        if trainer.state.fn == "fit" and isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero:
            command = " ".join(["zoo fit --ckpt_path", str(run_folder(trainer)), *import_flags()])
            there = self.file(trainer).is_file()
            print(
                f"interrupted at step {trainer.global_step}; "
                + (f"go on with: {command}" if there else "nothing was saved yet"),
                flush=True,
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._region.close()


class PartialPredictions(Callback):
    """The answers of an interrupted ``zoo predict``; the same command on the same samples answers the rest.

    Answers that are sampled are drawn anew.

    Args:
        command: a digest of the system, its weights and what else decides the answers.
    """

    def __init__(self, command: str) -> None:
        self.command = command

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        module, digest = cast(EmotionModule, pl_module), hashlib.sha256(self.command.encode())
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by one of its connectors
        for sample in data.to_predict():
            digest.update(repr(sample).encode())
            clips = {turn.video for turn in (*sample.history, sample.target)}
            clips |= {turn.audio for turn in (*sample.history, sample.target)}
            for clip in sorted(path for path in clips if path is not None and path.is_file()):
                digest.update(f"{clip.stat().st_size} {clip.stat().st_mtime_ns}".encode())
        self.name = f".{module.predictions_file}.partial-{digest.hexdigest()[:16]}"
        for file in sorted(run_folder(trainer).glob(f"{self.name}-*")):
            module.earlier_rows |= {row["id"]: row for row in read_jsonl(file)}
        if module.earlier_rows and trainer.is_global_zero:
            print(f"{len(module.earlier_rows)} samples were answered before the interruption", flush=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, KeyboardInterrupt):
            return
        module = cast(EmotionModule, pl_module)
        rows = [prediction.row() for prediction in module.predictions]
        if trainer.global_rank == 0:
            rows += module.earlier_rows.values()
        if rows:
            write_jsonl(run_folder(trainer) / f"{self.name}-{trainer.global_rank}", rows)
            print(f"{len(rows)} answers are kept; the same command goes on", flush=True)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            for file in run_folder(trainer).glob(f"{self.name}-*"):
                file.unlink()


class ParameterTable(Callback):
    """The parts of the model with their parameters, printed when a fit begins."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        for name, part in pl_module.named_children():
            total = sum(p.numel() for p in part.parameters())
            trained = sum(p.numel() for p in part.parameters() if p.requires_grad)
            if total:
                print(f"{name} ({type(part).__name__}): {total:,} parameters, {trained:,} of them trained", flush=True)


class ProgressBar(RichProgressBar):
    """Lightning's bar, whose end and time left know --trainer.max_steps."""

    @property
    def total_train_batches(self) -> int | float:
        total, trainer = super().total_train_batches, self.trainer
        if trainer.max_steps > 0:
            left = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches
            total = min(total, trainer.fit_loop.epoch_loop.batch_progress.current.ready + left)
        return total


class ProgressLines(Callback):
    """Lines of progress for runs without a progress bar.

    Every so many seconds what is done, the rate and the time left, and a line after each validation.

    Args:
        seconds: between two lines.
    """

    def __init__(self, seconds: float = 2 * SECONDS) -> None:
        self.seconds = seconds

    def _print(self, trainer: Trainer, line: str | None) -> None:
        if line is not None and trainer.is_global_zero:
            print(line, flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps = Meter(cast(EmotionModule, pl_module).optimizer_steps(), "steps", self.seconds)
        self.steps.restart(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if not self.steps.due():  # reading the loss waits for the device
            return
        loss = trainer.callback_metrics.get("train/loss")
        place = f"epoch {trainer.current_epoch}" + (f", loss {float(loss):.4f}" if loss is not None else "")
        self._print(trainer, self.steps.line(trainer.global_step, f"{place}, "))

    def _on_evaluation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        limits: dict[Any, list[int | float]] = {
            "test": trainer.num_test_batches,
            "predict": trainer.num_predict_batches,
        }
        self.batches = Meter(sum(limits.get(trainer.state.fn, trainer.num_val_batches)), "batches", self.seconds)

    on_validation_start = on_test_start = on_predict_start = _on_evaluation_start

    def _on_evaluation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            what = f"validation after step {trainer.global_step}" if trainer.state.fn == "fit" else trainer.state.fn
            self._print(trainer, self.batches.line(batch_idx + 1, f"{what}: "))

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _on_evaluation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        monitor = cast(EmotionModule, pl_module).monitor
        score = trainer.callback_metrics.get(monitor)
        if trainer.state.fn == "fit" and not trainer.sanity_checking and score is not None:
            self._print(
                trainer, f"epoch {trainer.current_epoch}, step {trainer.global_step}: {monitor} {float(score):.4f}"
            )
