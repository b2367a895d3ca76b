"""The formula: bytes that a training step of a decoder of the LLaMA kind keeps, from sizes alone.

Counted is what autograd saves for the backward pass, operation by operation as transformers and peft run them:

- RMSNorm: its input in float32 and one number per token; where its weight is trained, the normed input too.
- a linear layer whose weight is trained: its input. A frozen one: nothing.
- LoRA: the input of A (a copy of its own where it is cast or dropped out, and then the mask of the dropout), and the
  rank's numbers between A and B.
- rotary embedding: nothing per layer (cosine and sine are shared).
- attention by a fused kernel: queries, keys, values, its output, one float32 per query and head, and the mask as
  numbers; written out (``eager``), the probabilities instead of output, numbers per head and mask.
- SwiGLU: gate, its activation, and up: three times the inner width; the product where ``down_proj`` needs its input.

With gradient checkpointing every layer keeps its input alone, and one layer at a time the rest. Everything here is
bytes; nothing of it was fitted to a measurement (`tests/benchmarks/memory_small.py` compares).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Site = Literal["attention_in", "attention_out", "mlp_in", "mlp_out"]
SITES: Mapping[str, Site] = {  # last part of a linear layer's name -> which tensor of the layer is its input
    "q_proj": "attention_in",
    "k_proj": "attention_in",
    "v_proj": "attention_in",
    "o_proj": "attention_out",
    "gate_proj": "mlp_in",
    "up_proj": "mlp_in",
    "gate_up_proj": "mlp_in",
    "down_proj": "mlp_out",
}
FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Linear:
    """A linear layer of a decoder layer, by what of it is trained.

    Attributes:
        site: which tensor of the layer is its input.
        trained: whether its weight is.
        rank: of its trained adapter; 0: none.
        dropout: whether the adapter's input is dropped out.
    """

    site: Site
    trained: bool = False
    rank: int = 0
    dropout: bool = False


@dataclass(frozen=True)
class Layer:
    """A decoder layer.

    Attributes:
        linears: its linear layers.
        norms: of the residual stream.
        norms_trained: whether their weights are trained.
        head_norms: whether queries and keys are normed, too (Qwen3).
    """

    linears: tuple[Linear, ...]
    norms: int = 2
    norms_trained: bool = False
    head_norms: bool = False


@dataclass(frozen=True)
class Decoder:
    """Sizes of a language model, and how it is computed.

    Attributes:
        layers: one by one, because adapters may sit on some of them.
        width, inner: of the residual stream and of the MLP.
        heads, key_value_heads, head_width: of the attention.
        vocabulary: tokens.
        weight_bytes: of a number of its weights, and so of the residual stream.
        compute_bytes: of a number in its linear layers: 2 under autocast, else `weight_bytes`.
        checkpointing: whether activations are recomputed.
        eager: whether attention is written out.
        on_cpu: a CPU keeps masks of dropout as numbers, and keys of shared prompts unrepeated.
    """

    layers: tuple[Layer, ...]
    width: int
    inner: int
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    weight_bytes: int
    compute_bytes: int
    autocast: bool = False
    checkpointing: bool = False
    eager: bool = False
    on_cpu: bool = False


@dataclass(frozen=True)
class Rows:
    """What passes through the decoder in one forward and backward pass.

    Attributes:
        count: rows.
        prompt: tokens of each.
        answers, answer: answers of a row and their tokens, packed behind the prompt (`zoo.backbones.shared_prefix`); 0
            answers for a row that attends causally as a whole.
    """

    count: int
    prompt: int
    answers: int = 0
    answer: int = 0

    @property
    def packed(self) -> int:
        """Tokens of a row behind its prompt."""
        return self.answers * self.answer

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return self.count * (self.prompt + self.packed)

    @property
    def mask(self) -> int:
        """Pairs of tokens that the masks of all rows have; 0 for a single row, which needs none."""
        if self.answers:
            return self.count * (self.prompt**2 + self.packed * (self.prompt + self.packed))
        return self.count * self.prompt**2 if self.count > 1 else 0

    @property
    def scores(self) -> int:
        """Pairs of tokens whose scores attention computes, for one head."""
        return self.mask or self.count * self.prompt**2


def saved_by_layer(model: Decoder, layer: Layer, rows: Rows) -> int:
    """Return the bytes that autograd saves in a decoder layer."""
    tokens, queries = rows.tokens, model.heads * model.head_width
    repeated = model.eager or (rows.mask > 0 and not (model.on_cpu and rows.answers))
    keys = queries if repeated else model.key_value_heads * model.head_width
    norms = layer.norms * (FLOAT32 * (model.width + 1) + model.weight_bytes * model.width * layer.norms_trained)
    if layer.head_norms:
        norms += FLOAT32 * (queries + model.key_value_heads * model.head_width)
    attention = model.compute_bytes * (queries + 2 * keys)
    if not model.eager:  # the kernel's output, and a number per query and head
        attention += model.compute_bytes * queries + FLOAT32 * model.heads
    swiglu = model.compute_bytes * 3 * model.inner
    copied = rows.answers > 0 or model.eager  # prompt and answers are joined: the output projection reads a copy
    inputs: dict[Site, tuple[int, int, bool]] = {  # width, bytes of a number, whether it is saved anyway
        "attention_in": (model.width, model.weight_bytes, False),
        "attention_out": (queries, model.compute_bytes, not copied),
        "mlp_in": (model.width, model.weight_bytes, False),
        "mlp_out": (model.inner, model.compute_bytes, False),
    }
    linears = sum(_saved_inputs(model, layer.linears, site, *shape) for site, shape in inputs.items())
    if model.eager:
        casts = model.compute_bytes if model.compute_bytes < FLOAT32 else 0
        masks = rows.scores * model.heads * (FLOAT32 + casts)
    else:
        masks = rows.mask * model.compute_bytes
    return tokens * (norms + attention + swiglu + linears) + masks


def _saved_inputs(
    model: Decoder, linears: Sequence[Linear], site: Site, width: int, number: int, saved_anyway: bool
) -> int:
    """Return the bytes per token that linear layers with one input save of it."""
    there = [linear for linear in linears if linear.site == site]
    copies, shared = 0, False
    for linear in there:
        if linear.trained and number != model.compute_bytes:
            copies += model.compute_bytes * width
        elif linear.trained:
            shared = True
        if linear.rank:
            adapter = model.compute_bytes if model.autocast else FLOAT32
            copies += adapter * linear.rank
            if linear.dropout:
                copies += width * (adapter + (FLOAT32 if model.on_cpu else 1))
            elif model.autocast or number != FLOAT32:
                copies += adapter * width
            else:
                shared = True
    return copies + number * width * (shared and not saved_anyway)


def activations(model: Decoder, rows: Rows) -> tuple[int, int]:
    """Return the bytes that a forward pass leaves for the backward pass, and those of a layer computed again in it."""
    layers = [saved_by_layer(model, layer, rows) for layer in model.layers]
    ends = (
        rows.tokens * model.width * (model.weight_bytes + FLOAT32) + rows.mask
    )  # embeddings, last norm; masks as bool
    if not model.checkpointing:
        return sum(layers) + ends, 0
    inputs = len(layers) * rows.tokens * model.width * model.weight_bytes
    shared = rows.tokens * model.width * FLOAT32 if model.weight_bytes == FLOAT32 else 0  # the first norm's input
    return inputs + ends, max(layers) - shared


def backward_work(model: Decoder, rows: Rows) -> int:
    """Return the bytes of the gradients at the beginning of a layer's backward pass: three inner widths, two widths."""
    return rows.tokens * (3 * model.inner * model.compute_bytes + 2 * model.width * model.weight_bytes)


def loss_work(model: Decoder, positions: int) -> tuple[int, int]:
    """Return the bytes of a cross-entropy, in float32: logits and log-probabilities; then these and two gradients."""
    numbers = model.vocabulary * positions
    return 2 * FLOAT32 * numbers, 3 * FLOAT32 * numbers


def chunked_loss_work(model: Decoder, positions: int, numbers_at_once: int) -> int:
    """Return the bytes of log-probabilities computed some rows at a time.

    That is the logits of one part twice, with their gradients, and a gradient as wide as a state for each position.
    """
    part = min(numbers_at_once, positions * model.vocabulary)
    return 4 * FLOAT32 * part + positions * model.width * 2 * model.weight_bytes


def key_values(model: Decoder, tokens: int) -> int:
    """Return the bytes of keys and values of some tokens in all layers."""
    return 2 * len(model.layers) * tokens * model.key_value_heads * model.head_width * model.compute_bytes


def sampling(model: Decoder, rows: Rows, shares_prompts: bool) -> int:
    """Return the most bytes while answers to rows are sampled, without gradients.

    Keys and values of the prompts, and with them either what the pass over the prompts takes, or keys and values of the
    answers (with a copy of the prompt's for each where a model cannot share them) and five float32 numbers per answer
    and word of the vocabulary.
    """
    prompts, answers = rows.count * rows.prompt, rows.count * rows.answers
    mask = rows.count * rows.prompt**2 * (1 + model.compute_bytes)
    prefill = prompts * (3 * model.inner * model.compute_bytes + 3 * model.width * FLOAT32) + mask
    copies = 0 if shares_prompts else prompts * rows.answers
    writing = key_values(model, copies + rows.count * rows.packed) + 5 * FLOAT32 * model.vocabulary * answers
    return key_values(model, prompts) + max(prefill, writing)
