"""``zoo memory``: what fits where, as tables."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zoo.arguments import ZooParser, options_of_fit, parser_of_fit
from zoo.configs import instantiated
from zoo.imports import import_object
from zoo.memory.cards import CARDS, GIB, Card, card_of
from zoo.memory.prediction import Prediction, Step, predict
from zoo.training.module import EmotionModule

DESCRIPTION = (
    "Predicts the GPU memory of a fit with the same options, from a formula (docs/gpu.md): nothing is trained, and "
    "neither weights nor data are read."
)
PRECISIONS = {"None": "32-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}  # short forms of Lightning's
DATA_PARALLEL, TENSOR_PARALLEL = "data_parallel_size", "tensor_parallel_size"
Options = dict[str, Any]  # a config as plain values


def main(args: list[str]) -> None:
    """Run ``zoo memory --config FILE ... [--card GB] [--tokens N]``."""
    options = options_of(args)
    card = None if options["card"] is None else card_of(options["card"])
    prediction = prediction_of(options)
    print(report(options, prediction))
    if card is not None:
        print(verdict(options, prediction, card))


def options_of(args: list[str]) -> Options:
    """Return the options of a fit, and those of this command, as plain values; ``config`` is the last file.

    Raises:
        ValueError: a number that means nothing.
    """
    options = options_of_fit("memory", args, make_parser)
    if options["tokens"] is not None and options["tokens"] < 1:
        raise ValueError(f"--tokens {options['tokens']}: expected the length of a prompt, at least 1")
    return options


def make_parser() -> ZooParser:
    """Return a parser of the options of a fit, and those of this command."""
    parser = parser_of_fit("memory", "[--card GB] [--tokens N]", DESCRIPTION)
    add = parser.add_argument
    add("--card", type=float, default=None, metavar="GB", help="say what to change for a card of this memory: 24")
    add("--tokens", type=int, default=None, metavar="N", help="length of a prompt, if not the longest allowed")
    return parser


def prediction_of(options: Options) -> Prediction:
    """Return the prediction for a config."""
    file = Path(options["config"]) if options.get("config") else None
    model = copy.deepcopy(options["model"])
    for name in import_object(model["class_path"]).weightless_options:
        model["init_args"].pop(name, None)
    return predict(instantiated("model", EmotionModule, model, file), step_of(options))


def step_of(options: Options) -> Step:
    """Return the size of the step of a config."""
    trainer = options["trainer"]
    return Step(
        batch_size=options["data"]["init_args"]["batch_size"],
        accumulate=trainer.get("accumulate_grad_batches") or 1,
        precision=PRECISIONS.get(str(trainer.get("precision")), str(trainer.get("precision"))),
        tokens=options.get("tokens"),
        processes=processes_of(trainer),
    )


def processes_of(trainer: Mapping[str, Any]) -> int:
    """Return how many processes divide the weights by FSDP2, as the options of a trainer say; 1 where none does.

    Raises:
        ValueError: tensor parallelism, which the zoo lacks, or a number that depends on the machine.
    """
    strategy = trainer.get("strategy")
    if not isinstance(strategy, Mapping) or not str(strategy.get("class_path")).endswith("ModelParallelStrategy"):
        return 1
    sizes = {name: strategy.get("init_args", {}).get(name, "auto") for name in (DATA_PARALLEL, TENSOR_PARALLEL)}
    if not isinstance(sizes[DATA_PARALLEL], int) or sizes[TENSOR_PARALLEL] != 1:
        raise ValueError(
            f"{DATA_PARALLEL} {sizes[DATA_PARALLEL]} and {TENSOR_PARALLEL} {sizes[TENSOR_PARALLEL]}: expected the "
            "number of all processes, and 1, since weights are divided by FSDP2 alone"
        )
    return int(sizes[DATA_PARALLEL])


# ---- tables
def report(options: Options, prediction: Prediction) -> str:
    """Return the tables of a prediction."""
    step = step_of(options)
    name = options["model"]["class_path"].rpartition(".")[2]
    prompts = f", prompts of {prediction.tokens} tokens" if prediction.tokens else ""
    divided = f", in each of {step.processes} processes that divide the weights" if step.processes > 1 else ""
    lines = [
        f"{name}: {prediction.parameters:,} parameters, {prediction.trained:,} of them trained",
        f"a step: {step.accumulate} x {step.batch_size} samples{prompts}, {step.precision}{divided}",
        "",
        *_table("GiB", prediction.parts),
        "",
        *_table("GiB alive at once", prediction.moments),
        "",
        f"expected peak {prediction.peak / GIB:.2f} GiB",
        *(f"not counted: {note}" for note in prediction.notes),
        "",
        "cards, with what tensors can take of their memory",
    ]
    for card in CARDS:
        fits = "fits" if prediction.peak <= card.usable else "too small"
        lines.append(f"  {card.size:>4} GB  {card.usable / GIB:>6.1f} GiB  {fits:<10} {card.names}")
    return "\n".join(lines)


def _table(head: str, values: Mapping[str, int]) -> list[str]:
    return [head, *(f"  {value / GIB:>8.2f}  {name}" for name, value in values.items())]


def verdict(options: Options, prediction: Prediction, card: Card) -> str:
    """Return whether a step fits on a card and, if not, what each change of an option would make of its peak."""
    head = f"\n{card.names} ({card.usable / GIB:.1f} GiB usable): "
    if prediction.peak <= card.usable:
        return f"{head}fits, {(card.usable - prediction.peak) / GIB:.1f} GiB are left"
    together = copy.deepcopy(options)
    lines = [f"{head}too small by {(prediction.peak - card.usable) / GIB:.1f} GiB. Expected peak with"]
    changes = possible_changes(options, prediction)
    for label, change in changes.items():
        changed = copy.deepcopy(options)
        change(changed)
        change(together)
        lines.append(_peak_with(label, changed, card))
    if len(changes) > 1:
        lines.append(_peak_with("all of these", together, card))
    return "\n".join(lines)


def _peak_with(label: str, options: Options, card: Card) -> str:
    peak = prediction_of(options).peak
    return f"  {peak / GIB:>8.2f} GiB  {'fits' if peak <= card.usable else '':<5} {label}"


def possible_changes(options: Options, prediction: Prediction) -> dict[str, Callable[[Options], None]]:
    """Return what could be changed for less memory: flags -> what changes a config accordingly."""
    model, step = options["model"]["init_args"], step_of(options)
    changes: dict[str, Callable[[Options], None]] = {}

    def of_model(**values: Any) -> Callable[[Options], None]:
        return lambda changed: changed["model"]["init_args"].update(values)

    fully_trained = model.get("lora", ...) is None and model.get("train") is None and not _is_frozen(prediction)
    if fully_trained:
        changes["--model.lora.r 8 (adapters on q and v in place of full tuning)"] = of_model(lora={"r": 8})
    if model.get("dtype") == "float32":
        dtype = "float16" if step.precision == "16-mixed" else "bfloat16"
        with_adapters = {"lora": {"r": 8}} if fully_trained else {}  # what is trained stays float32
        label = f"--model.dtype {dtype}" + (" with --model.lora.r 8" if fully_trained else "")
        changes[label] = of_model(dtype=dtype, **with_adapters)
    if model.get("lora") is not None and model.get("quantize", ...) is None:
        changes["--model.quantize nf4 (4-bit weights; needs bitsandbytes)"] = of_model(quantize="nf4")
    if model.get("gradient_checkpointing") is False:
        changes["--model.gradient_checkpointing true"] = of_model(gradient_checkpointing=True)
    if step.batch_size > 1:
        accumulate = step.accumulate * step.batch_size

        def smaller_batch(changed: Options) -> None:
            changed["data"]["init_args"]["batch_size"] = 1
            changed["trainer"]["accumulate_grad_batches"] = accumulate

        changes[f"--data.batch_size 1 --trainer.accumulate_grad_batches {accumulate}"] = smaller_batch
    if prediction.tokens > 1:
        half = prediction.tokens // 2

        def shorter(changed: Options) -> None:
            changed["tokens"] = None
            changed["model"]["init_args"]["max_length"] = half

        changes[f"--model.max_length {half}"] = shorter
    return changes


def _is_frozen(prediction: Prediction) -> bool:
    """Return whether most of a system is frozen without adapters, as FARCER's language model is."""
    return prediction.trained < prediction.parameters / 2
