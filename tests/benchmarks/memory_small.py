"""Predicted and measured memory of training steps of small systems on the CPU, side by side.

    python -m tests.benchmarks.memory_small [--json FILE]

Measured is the most bytes of all tensors' storages that are alive at once, over the second step of a run (forward,
backward, optimizer), with Adam's moments there; what a kernel takes for itself is not seen. Predicted is the peak of
`zoo.memory.predict` for the same step. Takes half a minute of one core.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zoo.backbones import AUDIO_SHAPES, SHAPES, VISION_SHAPES, LoRA
from zoo.memory.prediction import Prediction, Step, predict
from zoo.models.dialoguellm import DialogueLLM
from zoo.models.farcer import FARCER
from zoo.models.grpo import GRPO
from zoo.models.merit import Merit
from zoo.rl import accumulate_gradients, token_weights
from zoo.training.language_model import LanguageModelModule

MIB = 2**20
SIZES: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 1024,
}
VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
QV = r"model\.layers\.\d+\.self_attn\.(q|v)_proj"
ALL = r"model\.layers\.\d+\.(self_attn\.(q|k|v|o)|mlp\.(gate|up|down))_proj"


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations inside it made and that are still alive.

    Attributes:
        now, peak: bytes, those of `given` included.
    """

    def __init__(self, given: int) -> None:
        super().__init__()
        self.now = self.peak = given
        self._sizes: dict[int, tuple[int, Any]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), options: Any = None) -> Any:
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, options)) if isinstance(x, Tensor)}
        result = function(*args, **(options or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                if storage._cdata not in before and storage._cdata not in self._sizes:
                    self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def freed(_: Any) -> None:
            self.now -= self._sizes.pop(key)[0]

        self._sizes[key] = (size, weakref.ref(storage, freed))
        self.now += size
        self.peak = max(self.peak, self.now)


def bytes_of(tensors: Any) -> int:
    """Return the bytes of different tensors."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


def measured_peak(system: LanguageModelModule, step: Callable[[], None]) -> int:
    """Return the most bytes alive in the second of two optimizer steps."""
    optimizer = torch.optim.AdamW([p for p in system.parameters() if p.requires_grad], lr=1e-4)
    with LiveBytes(bytes_of([*system.parameters(), *system.buffers()])) as live:
        for _ in range(2):
            live.peak = live.now
            step()
            optimizer.step()
    return live.peak


# ---- systems and batches
class Samples(list[Any]):
    """Samples of which a loss needs the number alone."""

    def ids(self) -> list[str]:
        """Return nothing that is printed."""
        return []


def prompts(rows: int, tokens: int, answer: int) -> dict[str, Any]:
    """Return a batch of random prompts, the second a little shorter, with answers of some tokens at their end."""
    ids = torch.randint(3, SIZES["vocab_size"], (rows, tokens))
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    mask[1:2, :3] = False
    marked = torch.zeros_like(mask)
    marked[:, tokens - answer :] = True
    return {"input_ids": ids, "mask": mask, "target_ids": ids, "answer": marked, "samples": Samples([None] * rows)}


def backward(system: LanguageModelModule, loss: Tensor) -> None:
    """Free the gradients of the step before, as late as Lightning does, and compute new ones."""
    system.zero_grad(set_to_none=True)
    loss.backward()


def supervised(system: Any, batch: Mapping[str, Any]) -> None:
    """Run forward and backward pass of supervised fine-tuning."""
    backward(system, system.loss(batch))


def mixed(passes: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """Return the same under autocast to bfloat16."""

    def inside(system: Any, batch: Mapping[str, Any]) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            passes(system, batch)

    return inside


def reinforced(system: GRPO, batch: Mapping[str, Any], accumulate: int) -> None:
    """Run sampling, forward and backward passes of a GRPO step with random rewards."""
    rollout = system.sample([batch] * accumulate)
    advantages = torch.randn(rollout.finished.shape)
    weights = token_weights(rollout.loss_mask, "token", system.max_new_tokens)
    system.zero_grad(set_to_none=True)
    encoders = [lambda: system.encode(batch)] * accumulate
    accumulate_gradients(system.llm, encoders, rollout, advantages, weights, system.objective, temperature=1.0)


def pictured(rows: int, tokens: int, pictures: int) -> dict[str, Any]:
    """Return a batch of FARCER: some pictures in every prompt."""
    batch = prompts(rows, tokens, 1)
    spots = torch.zeros(rows, tokens, dtype=torch.bool)
    spots[:, 10 : 10 + pictures] = True
    return batch | {
        "image": torch.arange(rows * pictures),
        "image_at": spots,
        "keys": [("picture", i) for i in range(rows * pictures)],
        "frames_known": [False] * rows * pictures,
        "frame_features": None,
        "frames": torch.randint(0, 255, (rows * pictures, 3, 64, 64), dtype=torch.uint8),
        "fixed": torch.zeros(0, dtype=torch.int64),
        "answer": torch.randint(3, SIZES["vocab_size"], (rows, 4)),
        "answer_mask": torch.ones(rows, 4, dtype=torch.bool),
        "missing": 0,
    }


def with_clips(rows: int, tokens: int, frames: int, sounds: int) -> dict[str, Any]:
    """Return a batch of MERIT: frames and a second of sound for every prompt."""
    batch = prompts(rows, tokens, 16)
    slots = torch.zeros(rows, tokens, dtype=torch.int64)
    slots[:, 10 : 10 + frames], slots[:, 30 : 30 + sounds] = 1, 2
    return batch | {
        "slots": slots,
        "frames": torch.randint(0, 255, (rows, frames, 3, 64, 64), dtype=torch.uint8),
        "frame_keys": [("clip", i) for i in range(rows)],
        "frames_known": [False] * rows,
        "frame_features": None,
        "waves_known": [False] * rows,
        "wave_features": None,
        "waves": torch.randn(rows, 16_000),
        "wave_lengths": torch.full((rows,), 16_000),
        "wave_keys": [("sound", i) for i in range(rows)],
    }


@contextlib.contextmanager
def small_shapes() -> Iterator[None]:
    """Let ``shape:small`` name small models inside."""
    kind, vision, preprocessing = VISION_SHAPES["vit-base-face"]
    vision = {**vision, **VISION, "image_size": 64}
    preprocessing = {**preprocessing, "size": {"height": 64, "width": 64}}
    audio, normalised = AUDIO_SHAPES["hubert-base"]
    audio = {
        **audio,
        **VISION,
        "conv_dim": (32,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    }
    grouped = {**SIZES, "num_key_value_heads": 2}
    wordy = {**SIZES, "vocab_size": 16384}
    models = {"small": ("llama", SIZES), "small-grouped": ("qwen2", grouped), "small-wordy": ("llama", wordy)}
    with (
        mock.patch.dict(SHAPES, models),
        mock.patch.dict(VISION_SHAPES, {"small": (kind, vision, preprocessing)}),
        mock.patch.dict(AUDIO_SHAPES, {"small": (audio, normalised)}),
    ):
        yield


@dataclass(frozen=True)
class Case:
    """A kind of step.

    Attributes:
        kind, options: the system.
        tokens: of a prompt.
        rows: of a batch.
        passes: what a step computes of a batch, gradients included.
        make_batch: makes it.
        accumulate: batches of a step.
        precision: of the trainer.
    """

    kind: type[LanguageModelModule]
    options: dict[str, Any]
    tokens: int
    rows: int
    passes: Callable[[Any, Any], None]
    make_batch: Callable[[], dict[str, Any]]
    accumulate: int = 1
    precision: str = "32-true"


LONG = {"llm": "shape:small", "max_length": 208}
LORA, LORA_ALL = LoRA(targets=QV), LoRA(r=16, dropout=0.1, targets=ALL)


def dialogue(precision: str = "32-true", rows: int = 6, tokens: int = 192, **options: Any) -> Case:
    """Return a case of supervised fine-tuning: rows of some tokens and an answer of 16."""
    passes = supervised if precision == "32-true" else mixed(supervised)
    batch = functools.partial(prompts, rows, tokens + 16, 16)
    return Case(DialogueLLM, LONG | options, tokens, rows, passes, batch, precision=precision)


def grpo(accumulate: int = 1, **options: Any) -> Case:
    """Return a case of GRPO: 4 prompts of 160 tokens, 4 answers of 32 each."""
    options = LONG | {"num_generations": 4, "max_new_tokens": 32, "reward_funcs": [len], "lora": LORA} | options
    passes = functools.partial(reinforced, accumulate=accumulate)
    return Case(GRPO, options, 160, 4, passes, lambda: prompts(4, 160, 1), accumulate)


FACES = {"vision": "shape:small", "template": "plain", "train_shots": 0, "shots": 0, "dropout": 0.0}
CLIPS = {"vision": "shape:small", "audio": "shape:small", "frames": 4, "audio_tokens": 4, "max_seconds": 1.0}
CASES: dict[str, Case] = {
    "SFT, LoRA on q and v": dialogue(lora=LORA),
    "SFT, LoRA on q and v, checkpointing": dialogue(lora=LORA, gradient_checkpointing=True),
    "SFT, LoRA on all, dropout": dialogue(lora=LORA_ALL),
    "SFT, LoRA, bfloat16": dialogue(lora=LORA, dtype="bfloat16"),
    "SFT, LoRA, bfloat16, bf16-mixed": dialogue("bf16-mixed", lora=LORA, dtype="bfloat16"),
    "SFT, LoRA on all, dropout, bfloat16, bf16-mixed": dialogue("bf16-mixed", lora=LORA_ALL, dtype="bfloat16"),
    "SFT, LoRA, grouped keys": dialogue(lora=LORA, llm="shape:small-grouped"),
    "SFT, LoRA, eager attention": dialogue(lora=LORA, attention="eager"),
    "SFT, LoRA, whole text in the loss": dialogue(lora=LORA, prompt_loss=1.0),
    "SFT, full tuning": dialogue(),
    "SFT, full tuning, checkpointing": dialogue(gradient_checkpointing=True),
    "SFT, full tuning, bf16-mixed": dialogue("bf16-mixed"),
    "SFT, full tuning, checkpointing, bf16-mixed": dialogue("bf16-mixed", gradient_checkpointing=True),
    "GRPO, LoRA": grpo(),
    "GRPO, LoRA, checkpointing": grpo(gradient_checkpointing=True),
    "GRPO, LoRA, checkpointing, 16384 words": grpo(gradient_checkpointing=True, llm="shape:small-wordy"),
    "GRPO, LoRA, checkpointing, 4 batches": grpo(4, gradient_checkpointing=True),
    "GRPO, LoRA, grouped keys": grpo(llm="shape:small-grouped"),
    "GRPO, full tuning": grpo(lora=None),
    "FARCER, projection alone": Case(
        FARCER,
        LONG | FACES | {"max_new_tokens": 4},
        200,
        4,
        lambda system, batch: backward(system, system.training_step(batch, 0)),
        lambda: pictured(4, 200, 8),
    ),
    "MERIT, LoRA and projections": Case(
        Merit, LONG | CLIPS | {"lora": LORA, "max_new_tokens": 8}, 192, 6, supervised, lambda: with_clips(6, 208, 4, 4)
    ),
}


def prediction_of(case: Case, processes: int = 1) -> Prediction:
    """Return the prediction of a case, whose weights some processes divide."""
    step = Step(case.rows, case.accumulate, case.precision, case.tokens, device_type="cpu", processes=processes)
    with small_shapes():
        return predict(case.kind(**case.options), step)


def compare(name: str) -> tuple[Prediction, int]:
    """Return the prediction of a case and its measured peak in bytes."""
    case = CASES[name]
    torch.manual_seed(0)
    with small_shapes():
        system = case.kind(**case.options)
        system.configure_model()
    if isinstance(system, FARCER):
        system.register_buffer("token_weight", torch.ones(SIZES["vocab_size"]), persistent=False)
    system.train()
    batch = case.make_batch()
    return prediction_of(case), measured_peak(system, lambda: case.passes(system, batch))


def main() -> None:
    """Print a row for each case, and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = {}
    print("| step | predicted MiB | measured MiB | predicted / measured |\n|---|---|---|---|")
    for name in CASES:
        prediction, peak = compare(name)
        rows[name] = {"predicted": prediction.peak, "measured": peak, "weights": prediction.weights}
        print(f"| {name} | {prediction.peak / MIB:.1f} | {peak / MIB:.1f} | {prediction.peak / peak:.2f} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
