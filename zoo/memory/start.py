"""What is said and refused at the beginning of a fit on a GPU, before any weights are read."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from zoo.memory.cards import GIB, usable
from zoo.memory.prediction import Prediction, Step, Unpredictable, backbone_makers, predict
from zoo.training.module import EmotionModule

BFLOAT16_FROM = (8, 0)  # compute capability, from which CUDA cards compute in bfloat16


class MemoryCheck(Callback):
    """Says at the beginning of a fit on a CUDA card how much memory is expected, or refuses; see `check_fit`."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check before the model is built, so before any weights are read."""
        if stage != "fit":
            return
        system, data = cast(EmotionModule, pl_module), cast(Any, trainer).datamodule
        text = check_fit(system, trainer, data.batch_size)
        if text is not None and trainer.is_global_zero:
            print(text, flush=True)


def check_fit(system: EmotionModule, trainer: Trainer, batch_size: int) -> str | None:
    """Predict the memory of a fit on a CUDA card.

    Args:
        system: not built yet; it is left as it is.
        batch_size: samples of a forward and backward pass.

    Returns:
        one line for the user: the expected peak beside the card's memory; None elsewhere than on a CUDA card, and for
        strategies other than one device, DDP and FSDP2.

    Raises:
        ValueError: the card lacks a dtype that is asked for, or its memory is too small for the weights alone.
    """
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return None
    card = torch.cuda.get_device_properties(device)
    precision = str(trainer.precision)
    refuse_dtype(system, precision, card.name, (card.major, card.minor))
    divided = isinstance(trainer.strategy, ModelParallelStrategy)
    if not divided and not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        return None
    step = Step(batch_size, trainer.accumulate_grad_batches, precision, processes=trainer.world_size if divided else 1)
    try:
        with torch.random.fork_rng(devices=[]):  # the fit begins with the weights that it would have without a look
            prediction = predict(system, step)
    except Unpredictable as error:
        return f"memory: no prediction ({error})"
    return line(prediction, card.name, card.total_memory)


def refuse_dtype(system: EmotionModule, precision: str, name: str, capability: tuple[int, int]) -> None:
    """Refuse bfloat16 on a card that does not compute in it.

    Args:
        system: not built yet.
        precision: of the trainer.
        name, capability: of the card.

    Raises:
        ValueError: the weights or the precision are bfloat16, and the card is too old.
    """
    dtypes = {make.keywords.get("dtype") for _, _, make in backbone_makers(system)}
    if capability < BFLOAT16_FROM and ("bfloat16" in dtypes or precision.startswith("bf16")):
        raise ValueError(
            f"{name} (compute capability {capability[0]}.{capability[1]}) has no bfloat16, which needs "
            f"{BFLOAT16_FROM[0]}.{BFLOAT16_FROM[1]}; give --model.dtype float16 with --trainer.precision 16-mixed, or "
            "float32 with 32-true"
        )


def line(prediction: Prediction, name: str, total: int) -> str:
    """Return the line of a fit on a card that reports so many bytes. ValueError if the weights alone do not fit."""
    if prediction.weights > usable(total):
        raise ValueError(
            f"the weights alone take {prediction.weights / GIB:.1f} GiB, and {name} has {total / GIB:.1f} GiB; give "
            "--model.dtype bfloat16 if they are float32, a smaller model, or a larger card (zoo memory, with the same "
            "options, lists what fits where)"
        )
    tokens = f" with prompts of {prediction.tokens} tokens" if prediction.tokens else ""
    lacking = f", without {'; '.join(prediction.notes)}" if prediction.notes else ""
    text = f"memory: expected peak {prediction.peak / GIB:.1f} GiB of {total / GIB:.1f} GiB on {name}{tokens}{lacking}"
    if prediction.peak > usable(total):
        text += "; it may not fit: zoo memory, with the same options and --card, says what to change"
    return text
