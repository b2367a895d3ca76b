"""From a system that is not built yet to the memory of its training step: sizes are read from meta devices."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from zoo.backbones import LLM, Audio, Vision
from zoo.backbones.decoding import LOGITS_AT_ONCE
from zoo.backbones.frozen import FrozenEncoder
from zoo.backbones.quantization import quantized_bytes, quantized_linears
from zoo.backbones.shapes import HUB_SHAPES, SHAPES
from zoo.memory import formula
from zoo.memory.divided import Division
from zoo.memory.formula import FLOAT32, SITES, Decoder, Layer, Linear, Rows
from zoo.training.feature_cache import CLIPS_AT_ONCE
from zoo.training.grpo import GRPOModule
from zoo.training.language_model import LanguageModelModule
from zoo.training.module import EmotionModule
from zoo.training.sft import SupervisedFineTuning

Module = TypeVar("Module", bound=nn.Module)

SOUND_RATE = 16_000  # samples per second
FIRST_STRIDE = 5  # samples per number of a HuBERT's first convolution


class Unpredictable(ValueError):
    """The formula does not know a system or its language model."""


@dataclass(frozen=True)
class Prediction:
    """Bytes of a training step; where processes divide the weights, those of each process.

    Attributes:
        parts: what is kept, by name, in the order of a table.
        moments: moment of a step -> all bytes that are alive at it.
        parameters, trained: numbers of parameters.
        tokens: of a prompt, for which this was predicted; 0 for a system without prompts.
        notes: what the formula leaves out here.
    """

    parts: dict[str, int]
    moments: dict[str, int]
    parameters: int
    trained: int
    tokens: int
    notes: tuple[str, ...]

    @property
    def weights(self) -> int:
        """Bytes of the weights alone."""
        return self.parts["frozen weights"] + self.parts["frozen encoders"] + self.parts["trained weights"]

    @property
    def peak(self) -> int:
        """The most bytes at any moment."""
        return max(self.moments.values())


@dataclass(frozen=True)
class Step:
    """What a prediction needs to know beside the system.

    Attributes:
        batch_size: samples of a forward and backward pass.
        accumulate: such passes for an optimizer step.
        precision: of the trainer.
        tokens: of a prompt; None: the longest that the system allows.
        device_type: ``cuda``, or ``cpu``, whose kernels keep other things.
        processes: that divide the weights by FSDP2, each with a batch of its own; 1: nothing is divided.
    """

    batch_size: int
    accumulate: int = 1
    precision: str = "32-true"
    tokens: int | None = None
    device_type: str = "cuda"
    processes: int = 1


def on_meta(system: EmotionModule) -> EmotionModule:
    """Return a copy of a system that is not built yet, built without weights.

    Raises:
        FileNotFoundError: a backbone whose sizes are not known here.
        Unpredictable: there is no backbone.
    """
    architecture = _own_parts(system)
    encoders = getattr(system, "encoders", None)
    if encoders is not None:
        encoders = _own_parts(encoders)
        object.__setattr__(architecture, "encoders", encoders)  # as `LanguageModelModule.own_encoders` does
    makers = list(backbone_makers(architecture))
    if not makers:
        raise Unpredictable(
            f"{type(system).__name__} has no language model, image encoder or sound encoder: there is nothing to "
            "predict"
        )
    for owner, name, make in makers:
        setattr(owner, name, _without_weights(make))
    try:
        architecture.build_architecture()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}. Where sizes alone are wanted (zoo memory), a shape is enough: --model.llm shape:NAME, one of "
            f"{', '.join(SHAPES)}"
        ) from error
    return architecture


def backbone_makers(system: EmotionModule) -> Iterator[tuple[nn.Module, str, functools.partial[Any]]]:
    """Yield what makes the backbones of a system: whose attribute it is, its name, and the call with its options."""
    encoders: nn.Module | None = getattr(system, "encoders", None)
    owners: list[nn.Module] = [system] if encoders is None else [system, encoders]
    for owner in owners:
        for name, make in vars(owner).items():
            if isinstance(make, functools.partial) and getattr(make.func, "__module__", "").startswith("zoo.backbones"):
                yield owner, name, make


def _own_parts(module: Module) -> Module:
    """Return a copy whose parts can be added to without changing the original's."""
    other = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        vars(other)[name] = dict(vars(module)[name])
    return other


def _without_weights(make: functools.partial[Any]) -> functools.partial[Any]:
    """Return what makes the same backbone on the meta device, by its shape where no config.json is at hand."""
    path, *rest = make.args
    revision = make.keywords.get("revision")
    known = HUB_SHAPES.get(path) in getattr(make.func, "shapes", ())  # a hub model may be read whole, or a part of it
    if known and not isinstance(try_to_load_from_cache(path, "config.json", revision=revision), str):
        path = f"shape:{HUB_SHAPES[path]}"
    return functools.partial(make.func, path, *rest, **{**make.keywords, "device": "meta"})


def predict(system: EmotionModule, step: Step) -> Prediction:
    """Predict the memory of a training step.

    Args:
        system: as its config makes it, not built yet; it is left as it is.
        step: size of the step.

    Raises:
        FileNotFoundError: a backbone whose sizes are not known here.
        Unpredictable: no backbone, a language model that the formula does not know, or one that is not divided.
    """
    built = on_meta(system)
    try:
        division = Division(built, step.processes, step.precision)
    except ValueError as error:
        raise Unpredictable(str(error)) from error
    encoders = [part for part in built.modules() if isinstance(part, FrozenEncoder)]
    trained = [p for p in built.parameters() if p.requires_grad]
    parts = _weights_and_state(built, encoders, trained, division)
    rest = _without_gradients(parts)
    with_gradients = rest + parts["gradients"]  # Lightning frees those of a step behind the next forward pass
    # torch takes the square roots of all second moments at once on a GPU, of one parameter after the other on a CPU
    largest = max((division.held([p]) for p in trained), default=0)
    roots = 2 * largest if step.device_type == "cpu" else division.held(trained)
    moments = {"optimizer step": with_gradients + roots}
    notes = _add_encoders(built, encoders, step, with_gradients, moments)
    tokens = 0
    if isinstance(built, LanguageModelModule):
        tokens = step.tokens or built.max_length
        _add_language_model(built, step, tokens, division, parts, moments)
    elif trained:
        notes.append(f"activations of {type(built).__name__}, for which there is no formula")
    count = sum(p.numel() for p in built.parameters())
    return Prediction(parts, moments, count, sum(p.numel() for p in trained), tokens, tuple(notes))


def _weights_and_state(
    built: EmotionModule, encoders: Sequence[FrozenEncoder], trained: Sequence[Tensor], division: Division
) -> dict[str, int]:
    """Return the bytes of weights, gradients and moments by name; those of activations are still 0."""
    in_encoders = {id(p) for encoder in encoders for p in _tensors(encoder)}
    quantized = _quantized(built)
    rounded = {id(weight) for weight, _ in quantized}
    frozen = {id(t): t for t in _tensors(built) if not t.requires_grad}
    return {
        "frozen weights": division.held(t for place, t in frozen.items() if place not in in_encoders | rounded)
        + sum(size for _, size in quantized),
        "frozen encoders": division.held(t for place, t in frozen.items() if place in in_encoders),
        "trained weights": division.held(trained),
        "gradients": division.held(trained),
        "Adam's moments": 2 * division.held(trained),
        **({"gathered": division.gathered().backward} if division.parts else {}),
        "activations": 0,
        "working memory": 0,
    }


def _without_gradients(parts: dict[str, int]) -> int:
    """Return the bytes that are alive throughout a fit: weights and moments."""
    return sum(parts[name] for name in ("frozen weights", "frozen encoders", "trained weights", "Adam's moments"))


def _add_encoders(
    built: EmotionModule, encoders: Sequence[FrozenEncoder], step: Step, rest: int, moments: dict[str, int]
) -> list[str]:
    """Add the passes of frozen encoders to `moments`; return what is not counted of these and of trained ones."""
    notes = []
    for encoder in encoders:
        name = type(encoder).__name__
        if any(p.requires_grad for p in encoder.parameters()):
            notes.append(f"activations of {name} {encoder.path}, which is trained")
        elif encoding := _encoding(encoder, built, step):
            moments[f"encoding by {name}"] = rest + encoding
        else:
            notes.append(f"what {name} {encoder.path} takes while it encodes")
    return notes


def _add_language_model(
    built: LanguageModelModule,
    step: Step,
    tokens: int,
    division: Division,
    parts: dict[str, int],
    moments: dict[str, int],
) -> None:
    """Add to `parts` and `moments` what the passes of a language model take."""
    rest = _without_gradients(parts)
    with_gradients = rest + parts["gradients"]
    model, rows, samples = (decoder_of(built, step), rows_of(built, step, tokens), isinstance(built, GRPOModule))
    forward_loss, loss, head_gradient = _loss(built, model, rows, step)
    activations, again = formula.activations(model, rows)
    gathered = division.gathered()
    parts["activations"] = built.prompts_per_sample * activations + _autocast_copies(built, step, division)
    # of quantised weights one at a time is whole again, in the dtype in which it is multiplied
    whole_again = max((_bytes([weight]) for weight, _ in _quantized(built)), default=0)
    of_a_layer = again + formula.backward_work(model, rows) + head_gradient + whole_again
    parts["working memory"] = max(of_a_layer, loss)
    held = with_gradients if step.accumulate > 1 else rest
    moments["backward pass"] = (
        held + parts["activations"] + max(of_a_layer + gathered.backward, loss + gathered.behind_the_blocks)
    )
    if not samples:  # GRPO frees gradients before its forward pass
        moments["forward pass"] = (
            with_gradients + parts["activations"] + max(forward_loss + gathered.root.weights, gathered.forward)
        )
    if gathered.embedding:
        moments["gathering embeddings"] = with_gradients + gathered.embedding
    if samples or (rows.answers and not getattr(built, "teacher_forcing", True)):
        answers = getattr(built, "answers_per_prompt", 1)
        window = Rows(step.batch_size * (step.accumulate if samples else 1), tokens, answers, built.max_new_tokens)
        apart = bool(division.parts or built.llm.quantize or built.llm.prefix_sharing_unsupported_reason)
        sampling = formula.sampling(model, window, not apart) + _merged_adapters(built)
        moments["sampling answers"] = with_gradients + sampling + gathered.forward


def rows_of(system: LanguageModelModule, step: Step, tokens: int) -> Rows:
    """Return what a batch is for the language model: rows of prompt and answer, or answers packed behind a prompt."""
    answer = system.longest_answer()
    if isinstance(system, SupervisedFineTuning):
        return Rows(step.batch_size, tokens + answer)
    answers = system.num_generations if isinstance(system, GRPOModule) else 1
    if system.llm.prefix_sharing_unsupported_reason is not None:  # every answer behind a prompt of its own
        return Rows(step.batch_size * answers, tokens + answer)
    return Rows(step.batch_size, tokens, answers, system.max_new_tokens)


def decoder_of(system: LanguageModelModule, step: Step) -> Decoder:
    """Return the sizes of a system's language model, as the formula needs them.

    Raises:
        Unpredictable: it is built otherwise than the formula knows.
    """
    llm = system.llm
    config: Any = llm.causal_lm.config
    heads = config.num_attention_heads
    embeddings: Any = llm.causal_lm.get_input_embeddings()
    weight_bytes = embeddings.weight.element_size()
    autocast = step.precision.endswith("mixed")
    options = system.make_llm.keywords
    return Decoder(
        layers=tuple(_layer(llm, layer) for layer in llm.causal_lm.get_decoder().layers),
        width=config.hidden_size,
        inner=config.intermediate_size,
        heads=heads,
        key_value_heads=config.num_key_value_heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocabulary=config.vocab_size,
        weight_bytes=weight_bytes,
        compute_bytes=2 if autocast else weight_bytes,
        autocast=autocast,
        checkpointing=bool(options.get("gradient_checkpointing")),
        eager=options.get("attention") == "eager",
        on_cpu=step.device_type == "cpu",
    )


def _layer(llm: LLM, layer: nn.Module) -> Layer:
    """Return what is trained in a decoder layer. Unpredictable for one of another kind."""
    linears, norms = [], []
    for name, module in layer.named_modules():
        last = name.rpartition(".")[2]
        if last in SITES:
            adapted = hasattr(module, "lora_A") and llm.lora is not None
            base: Any = module.base_layer if adapted else module
            rank, dropout = (llm.lora.r, llm.lora.dropout > 0) if adapted and llm.lora else (0, False)
            linears.append(Linear(SITES[last], base.weight.requires_grad, rank, dropout))
        elif type(module).__name__.endswith("RMSNorm"):
            norms.append((last, module))
    if {linear.site for linear in linears} != set(SITES.values()) or not norms:
        raise Unpredictable(
            f"{llm.path} has layers of kind {type(layer).__name__}, and the formula of memory knows layers with "
            f"{', '.join(SITES)} and RMSNorm"
        )
    wide = [norm for name, norm in norms if name not in ("q_norm", "k_norm")]
    trained = any(p.requires_grad for norm in wide for p in norm.parameters())
    return Layer(tuple(linears), len(wide), trained, len(wide) < len(norms))


def _loss(system: LanguageModelModule, model: Decoder, rows: Rows, step: Step) -> tuple[int, int, int]:
    """Return the bytes of the loss in forward and backward pass, and of the gradient of the output embeddings."""
    head: Any = system.llm.causal_lm.get_output_embeddings()
    head_gradient = head.weight.numel() * FLOAT32 if head.weight.requires_grad else 0
    if not isinstance(system, SupervisedFineTuning):
        answers = getattr(system, "num_generations", 1)
        positions = step.batch_size * answers * system.max_new_tokens
        loss = formula.chunked_loss_work(model, positions, LOGITS_AT_ONCE)
        return loss, loss, head_gradient
    positions = rows.tokens if system.prompt_loss else rows.count * system.longest_answer()
    forward, backward = formula.loss_work(model, positions)
    return forward, backward + head_gradient, head_gradient


def _autocast_copies(built: LanguageModelModule, step: Step, division: Division) -> int:
    """Return the bytes of 16-bit copies that autocast keeps of float32 matrices.

    Those of trained ones stay until the backward pass is over; those of frozen ones too, or for one layer at a time
    where activations are recomputed.
    """
    if not step.precision.endswith("mixed"):
        return 0
    layers: list[Any] = [x for x in built.llm.causal_lm.get_decoder().layers if not division.halves(x)]
    quantized = {id(weight) for weight, _ in _quantized(built)}
    matrices = [
        [p for p in layer.parameters() if p.ndim == 2 and p.dtype == torch.float32 and id(p) not in quantized]
        for layer in layers
    ]
    trained = sum(p.numel() for layer in matrices for p in layer if p.requires_grad)
    frozen = [sum(p.numel() for p in layer if not p.requires_grad) for layer in matrices]
    checkpointing = any(getattr(m, "gradient_checkpointing", False) for m in built.llm.modules())
    copied: int = trained + (max(frozen, default=0) if checkpointing else sum(frozen))
    return 2 * copied


def _quantized(built: EmotionModule) -> list[tuple[Tensor, int]]:
    """Return the weights that will be in 4 or 8 bits, here still in the model's dtype, with their bytes then."""
    llm = getattr(built, "llm", None)
    if not isinstance(llm, LLM) or llm.quantize is None:
        return []
    return [(linear.weight, quantized_bytes(linear, llm.quantize)) for linear in quantized_linears(llm.causal_lm)]


def _merged_adapters(system: LanguageModelModule) -> int:
    """Return the bytes of copies of adapted layers into which adapters are merged while answers are sampled."""
    if not system.make_llm.keywords.get("merge_adapters"):
        return 0
    adapted: list[Any] = [m for m in system.llm.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")]
    return _bytes(m.base_layer.weight for m in adapted)


def _encoding(encoder: FrozenEncoder, system: EmotionModule, step: Step) -> int:
    """Return the bytes of a pass of a frozen encoder over new clips, with the states of all layers; 0: not known."""
    number = encoder.dtype.itemsize
    clips = min(CLIPS_AT_ONCE, step.batch_size)
    owner: Any = getattr(system, "encoders", None) or system
    if isinstance(encoder, Vision) and encoder.kind == "transformers":
        config = encoder.tower.config
        # a picture for every turn of a dialogue, or some for every clip
        frames = clips * owner.frames if hasattr(owner, "frames") else CLIPS_AT_ONCE
        tokens, pixels = frames * encoder.tokens, frames * 3 * (encoder.size or 0) ** 2
        return number * tokens * _widths(config) + pixels * 2 * FLOAT32
    if isinstance(encoder, Audio):
        samples = clips * round(getattr(owner, "max_seconds", 15.0) * SOUND_RATE)
        channels = max(encoder.config.conv_dim)
        states = samples // encoder.stride * _widths(encoder.config)
        return number * max(3 * samples // FIRST_STRIDE * channels, states)
    return 0


def _widths(config: Any) -> int:
    """Return numbers per token of an encoder's pass: states of all layers, and those inside one."""
    numbers: int = (config.num_hidden_layers + 4) * config.hidden_size + 2 * config.intermediate_size
    return numbers


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
