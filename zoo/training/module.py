"""EmotionModule: the base of every system."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from zoo.schema import Collator
from zoo.training.batch import Batch
from zoo.training.evaluation import EvaluatedModule
from zoo.training.given_features import GivenFeatures
from zoo.training.optimization import Schedule, learning_rate_factor, parameter_groups


class EmotionModule(EvaluatedModule):
    """Base of every system.

    A system overrides `build` (its parts), `collator`, `training_step`, `predict` and `reads`.

    Args:
        train: regular expressions; a parameter is trained if one matches the whole of its name. None trains whatever
            `build` left trainable (with LoRA: the adapters; else everything).
        start_from: run folder, checkpoint or published name whose weights to begin with. To *resume* a run use
            --ckpt_path.
        lr: peak learning rate of AdamW.
        betas, weight_decay: of AdamW; matrices decay, vectors do not.
        warmup: steps of linear warm-up; below 1 a share of all steps.
        schedule: what follows the warm-up, down to zero at the last step.
    """

    def __init__(
        self,
        train: list[str] | None = None,
        start_from: str | None = None,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        warmup: float = 0.03,
        schedule: Schedule = "cosine",
    ) -> None:
        super().__init__(train, start_from)
        self.lr, self.betas, self.weight_decay, self.warmup, self.schedule = lr, betas, weight_decay, warmup, schedule
        if not (lr >= 0 and all(0 <= b < 1 for b in betas) and weight_decay >= 0 and warmup >= 0):  # also false for NaN
            raise ValueError(
                f"need lr >= 0, betas from 0 to below 1, weight_decay >= 0 and warmup >= 0; got {lr}, {betas}, "
                f"{weight_decay}, {warmup}"
            )

    def collator(self, training: bool) -> Collator:
        """Return what makes a batch of samples, in training or in evaluation."""
        raise NotImplementedError(f"{type(self).__name__} has no collator")

    # ---- a batch of which nothing is left
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass, in which every trained parameter takes part, if only with a gradient of zero.

        Of a batch whose only picture cannot be read nothing trained may be left in the loss. That is no error but a
        step without news; and of several processes (DDP) each waits for the gradient of every parameter of the others,
        so one that met no picture must give it, too.
        """
        strategy = self.trainer.strategy
        alone = isinstance(strategy, SingleDeviceStrategy) and not loss.requires_grad
        # one that looks for unused parameters by itself has done so before this hook
        together = isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters", False)
        if self.automatic_optimization and (alone or together):
            loss = loss + sum(0.0 * p.sum() for p in self.parameters() if p.requires_grad)
        super().backward(loss, *args, **kwargs)

    # ---- precision
    def setup(self, stage: str) -> None:
        """Refuse a precision in which nothing would be learnt, before any weights are read; then take the data."""
        if stage == "fit" and str(self.trainer.precision).endswith("-true") and self.trainer.precision != "32-true":
            raise ValueError(
                f"--trainer.precision {self.trainer.precision} keeps what is trained in half precision, where most of "
                "AdamW's steps are rounded away; use bf16-mixed (16-mixed on a card without bfloat16), and "
                "--model.dtype bfloat16 for a frozen language model"
            )
        super().setup(stage)

    # ---- optimisation
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW over the trained parameters and the schedule of its learning rate."""
        trained = [p for p in self.parameters() if p.requires_grad]
        if not trained:
            raise ValueError("nothing to train: no parameter is trainable; check `train` and `lora`")
        low = {str(p.dtype).removeprefix("torch.") for p in trained if p.dtype in (torch.bfloat16, torch.float16)}
        if low:
            raise ValueError(
                f"parameters in {' and '.join(sorted(low))} would be trained, where most of AdamW's steps are rounded "
                "away; train adapters (--model.lora), which are float32, or set --model.dtype float32"
            )
        groups = parameter_groups(trained, self.weight_decay)
        self.weight_decays = [group["weight_decay"] for group in groups]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=self.betas)
        total = self.optimizer_steps()
        if self.schedule != "constant" and not math.isfinite(total):
            raise ValueError(
                f"a {self.schedule} schedule needs an end: set --trainer.max_epochs or --trainer.max_steps"
            )
        warmup = self.warmup if self.warmup >= 1 else self.warmup * (total if math.isfinite(total) else 0)
        factor = learning_rate_factor(self.schedule, warmup, total)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_steps(self) -> float:
        """Return how many steps the run will take; infinite if nothing ends it."""
        return self.trainer.estimated_stepping_batches

    def on_fit_start(self) -> None:
        """Measure the features that are given, where they are standardised."""
        for backbone in self.backbones().values():
            if isinstance(backbone, GivenFeatures):
                backbone.measure(self.data.samples("train"))

    def on_train_start(self) -> None:
        """Give a resumed run's optimizer the options of now.

        Learning rate, betas and weight decay are not those of the checkpoint, and the schedule is that of the run's
        present length.
        """
        if self.trainer.ckpt_path is None:
            return
        for config in self.trainer.lr_scheduler_configs:
            scheduler = cast(torch.optim.lr_scheduler.LambdaLR, config.scheduler)  # see `configure_optimizers`
            step = scheduler.last_epoch
            rates = [self.lr * factor(step) for factor in scheduler.lr_lambdas]
            before = [group["lr"] for group in scheduler.optimizer.param_groups]
            scheduler.base_lrs, scheduler._last_lr = [self.lr] * len(rates), list(rates)
            groups = scheduler.optimizer.param_groups
            for group, rate, weight_decay in zip(groups, rates, self.weight_decays, strict=True):
                group |= {"lr": rate, "initial_lr": self.lr, "betas": self.betas, "weight_decay": weight_decay}
            total = self.optimizer_steps()
            rank_zero_info(
                f"resumed at step {step} of {total:.0f}: learning rate {rates[0]:.3g} ({before[0]:.3g} in the "
                f"checkpoint), {self.schedule} schedule, betas {self.betas}, weight decay {self.weight_decay}"
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the step: its dropout and sampling depend on (seed, epoch, batch, rank) only.

        So a resumed run repeats them exactly.
        """
        key = (self.data.run_seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def check_finite(self, loss: Tensor, batch: Mapping[str, Any] | Batch) -> None:
        """Stop the run if the loss is NaN or infinite; nothing is saved as best then.

        Raises:
            FloatingPointError: naming the samples of the batch.
        """
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.global_step}; samples: {batch['samples'].ids()}. "
                "A lower --model.lr, or --trainer.gradient_clip_val 1, usually helps"
            )
