"""Sampling, scoring and log-probabilities of answers: the loops behind the verbs of `zoo.backbones.LLM`."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.backbones.divided import is_divided
from zoo.backbones.prefix import KeyValues, Prefix, cached_key_values
from zoo.backbones.row_tree import TreePlan
from zoo.backbones.sampling import Sampling
from zoo.backbones.shared_prefix import PackedPlan
from zoo.backbones.token_decoder import GraphedTokenDecoder, TokenDecoder

if TYPE_CHECKING:
    from zoo.backbones.llm import LLM

LOGITS_AT_ONCE = 2**22  # numbers (16 MiB in float32) that a CPU's caches still serve
SHARE_OF_LOGITS = 1 / 256  # of a GPU's memory, for the logits at once
TOKENS_BETWEEN_CHECKS = 16  # a GPU works ahead for at most so long before finished answers are looked for
CHECKS = 8  # but for an eighth of the longest answer: short ones, as label words, end early
SHARE_TO_COMPACT = 0.75  # finished answers leave the batch when at most this share of it is left


class Completions(NamedTuple):
    """Sampled answers. B prompts, n answers each, up to T tokens."""

    ids: Tensor  # (B, n, T) int64, pad after the end
    mask: Tensor  # (B, n, T) bool: True on answer tokens, the end token included
    logprobs: Tensor  # (B, n, T) float32: log-probability under the sampling distribution; 0 where masked
    finished: Tensor  # (B, n) bool: False if cut off at max_new_tokens
    entropy: Tensor  # (B, n, T) float32: of the distribution each token was drawn from, in nats; 0 where masked


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off; every module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def no_checkpointing(model: nn.Module) -> Iterator[None]:
    """Keep activations: where they are recomputed in training mode, transformers silently drops the cache."""
    layers: list[Any] = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    for layer in layers:
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = True


# ---- sampling
def sample(
    llm: LLM,
    prefix: Prefix,
    n: int,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
    sampling: Sampling,
) -> Completions:
    """Draw n answers of each prompt (see `LLM.sample`)."""
    with evaluation_mode(llm):
        llm.prefill(prefix)
        _, first_logits = prefix.prefilled()
        b, device = prefix.mask.shape[0], prefix.mask.device
        step = _decoder_of(llm)(llm, prefix, n, max_new_tokens)
        ids = torch.full((b * n, max_new_tokens), llm.pad_id, device=device)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        logprobs = torch.zeros_like(ids, dtype=first_logits.dtype)
        entropy = torch.zeros_like(logprobs)
        eos = torch.tensor(llm.eos_ids, device=device)
        rows = torch.arange(b * n, device=device)  # the answers in the batch, grouped by prompt
        alive = torch.ones_like(rows, dtype=torch.bool)
        logits = first_logits.repeat_interleave(n, 0)
        between_checks = ahead_of_checks(device, max_new_tokens)
        for t in range(max_new_tokens):
            logp = torch.log_softmax(logits / temperature if temperature else logits, -1)
            p = logp.exp()
            drawn_from = sampling.probabilities(logp) if sampling.filters else p
            token = _draw(drawn_from, generator) if temperature else logp.argmax(-1)
            ids[rows, t], mask[rows, t] = torch.where(alive, token, llm.pad_id), alive
            logprobs[rows, t] = logp.gather(1, token[:, None])[:, 0] * alive
            entropy[rows, t] = -(p * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(1) * alive
            alive = alive & ~torch.isin(token, eos)
            if t + 1 == max_new_tokens:
                break
            if (t + 1) % between_checks == 0:
                if sampling.stop_strings:
                    mask[rows], stopped = sampling.cut(llm, ids[rows], mask[rows])
                    alive = alive & ~stopped
                unfinished = alive.cpu()  # the only wait for the device
                if not unfinished.any():
                    break
                remaining = step.compact(unfinished)
                if remaining is not None:
                    rows, alive, token = rows[remaining], alive[remaining], token[remaining]
            logits = llm.head(step(token))
        if sampling.stop_strings:
            mask[rows], stopped = sampling.cut(llm, ids[rows], mask[rows])
            alive = alive & ~stopped
            ids, logprobs, entropy = torch.where(mask, ids, llm.pad_id), logprobs * mask, entropy * mask
    finished = torch.ones(b * n, dtype=torch.bool, device=device)
    finished[rows] = ~alive
    t, finite = torch.stack([mask.any(0).sum(), logprobs.isfinite().all().long()]).tolist()
    if not finite:
        raise RuntimeError(
            "the language model's logits are not finite while it writes answers: its weights or adapters are damaged, "
            "or training diverged; start from an earlier checkpoint with a smaller --model.lr"
        )
    ids, mask, logprobs, entropy = (x[:, :t].reshape(b, n, t) for x in (ids, mask, logprobs, entropy))
    return Completions(ids, mask, logprobs, finished.view(b, n), entropy)


def ahead_of_checks(device: torch.device, max_new_tokens: int) -> int:
    """Return for how many tokens a device works before finished answers are looked for."""
    return 1 if device.type == "cpu" else min(TOKENS_BETWEEN_CHECKS, max(1, max_new_tokens // CHECKS))


def _draw(p: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw one token of each row of (N, V), in proportion to its numbers, as `torch.multinomial` without its checks.

    They would cost more launches than the drawing.
    """
    return (p / torch.empty_like(p).exponential_(generator=generator)).argmax(-1)


def _decoder_of(llm: LLM) -> type[_SharedStep | _SeparateStep]:
    """Return how a model decodes: with shared prompts if it can and all its weights are plain ones on this device."""
    apart = is_divided(llm) or llm.quantize or llm.prefix_sharing_unsupported_reason
    return _SeparateStep if apart else _SharedStep


class _SharedStep:
    """Decodes one token of every answer: the prompt's keys and values once, finished answers left out."""

    def __init__(self, llm: LLM, prefix: Prefix, n: int, max_new_tokens: int) -> None:
        kind = GraphedTokenDecoder if llm.cuda_graph else TokenDecoder
        self.decoder = kind(llm, prefix, n, max_new_tokens)

    def compact(self, unfinished: Tensor) -> Tensor | None:
        """Drop finished answers, and return the indices of the rows that go on; None: all of them.

        These are all unfinished rows, and some finished ones where prompts have unequal numbers of unfinished rows.

        Args:
            unfinished: (B n,) bool, on the CPU.
        """
        cache = self.decoder.cache
        by_prompt = unfinished.view(-1, cache.n)
        count = by_prompt.sum(1)
        prompts, n = count.nonzero()[:, 0], int(count.max())
        if len(prompts) * n > SHARE_TO_COMPACT * len(unfinished):
            return None
        first = by_prompt[prompts].to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :n].sort(1)[0]
        rows = (prompts[:, None] * cache.n + first).flatten()
        device = cache.slot.device
        cache.select(prompts.to(device), first.to(device))
        return rows.to(device)

    def __call__(self, token: Tensor) -> Tensor:
        return self.decoder(token)


class _SeparateStep:
    """Decodes one token of every answer, each with its own copy of the prompt's keys and values.

    For a model that cannot share, or whose weights are divided among processes.
    """

    def __init__(self, llm: LLM, prefix: Prefix, n: int, max_new_tokens: int) -> None:
        self.llm, self.mask = llm, prefix.mask.repeat_interleave(n, 0)
        self.cache = copy.deepcopy(prefix.prefilled()[0])
        self.cache.batch_repeat_interleave(n)
        start = prefix.answer_start
        self.positions = None if start is None else start.repeat_interleave(n)[:, None]

    def compact(self, unfinished: Tensor) -> Tensor | None:
        """Return None: no answer is dropped."""
        return None

    def __call__(self, token: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        positions = self.positions
        if positions is not None:
            self.positions = positions + 1
        return self.llm.hidden(self.llm.embed(token)[:, None], self.mask, self.cache, positions)[:, -1]


# ---- log-probabilities of given tokens
def token_logprobs(llm: LLM, hidden: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Compute (N,) float32 log-probabilities of tokens (N,) from the states before them (N, D), some rows at a time.

    The logits of all rows together would be the largest tensor of a step. They are not kept for the backward pass
    either: through a frozen head their gradients are (`_RowwiseGradient`), through a trained one they are computed
    again.
    """

    def some_rows(hidden: Tensor, ids: Tensor) -> Tensor:
        logits = type(llm).head(llm, hidden) / temperature  # gathered already where weights are divided
        return logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(1)

    return _row_by_row(llm, some_rows, hidden, ids)


def token_entropies(llm: LLM, hidden: Tensor, temperature: float) -> Tensor:
    """Compute the (N,) float32 entropies of the distributions that states (N, D) predict, as `token_logprobs` does."""

    def some_rows(hidden: Tensor, ids: Tensor) -> Tensor:
        logp = torch.log_softmax(type(llm).head(llm, hidden) / temperature, 1)
        return -(logp.exp() * logp).sum(1)

    return _row_by_row(llm, some_rows, hidden, hidden.new_zeros(len(hidden), dtype=torch.int64))


def _row_by_row(llm: LLM, some_rows: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, ids: Tensor) -> Tensor:
    """Compute a number for each state (N, D) and token (N,), so many rows at a time that their logits fit."""
    size = max(1, logits_at_once(hidden.device) // llm.causal_lm.config.vocab_size)
    parts = list(zip(hidden.split(size), ids.split(size), strict=True))
    frozen = not any(p.requires_grad for p in llm.causal_lm.get_output_embeddings().parameters())
    if torch.is_grad_enabled() and frozen and hidden.requires_grad:
        return _RowwiseGradient.apply(hidden, some_rows, parts)  # type: ignore[no-untyped-call]  # torch gives it none
    if len(parts) <= 1 or not torch.is_grad_enabled():
        return torch.cat([some_rows(*part) for part in parts]) if parts else hidden.new_zeros(0, dtype=torch.float32)
    return torch.cat([checkpoint(some_rows, *part, use_reentrant=False) for part in parts])


def logits_at_once(device: torch.device) -> int:
    """Return how many logits may exist at once: on a GPU as many as fill a small share of its memory in float32.

    Fewer would read the output head more often: on a GPU that, not the product, takes the time.
    """
    if device.type != "cuda":
        return LOGITS_AT_ONCE
    return max(LOGITS_AT_ONCE, int(torch.cuda.get_device_properties(device).total_memory * SHARE_OF_LOGITS) // 4)


class _RowwiseGradient(torch.autograd.Function):
    """Numbers that each depend on one row of states, some rows at a time.

    Their gradients, as wide as the states, are taken in the forward pass, so that the logits are neither kept nor
    computed again.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, some_rows: Callable[[Tensor, Tensor], Tensor], parts: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        values: list[Tensor] = []
        gradients: list[Tensor] = []
        for rows, ids in parts:
            with torch.enable_grad():
                rows = rows.detach().requires_grad_()
                value = some_rows(rows, ids)
                gradients += torch.autograd.grad(value.sum(), rows)
            values.append(value.detach())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return (gradient[:, None] * gradients).to(gradients.dtype), None, None


@torch.no_grad()
def check_sharing(llm: LLM) -> float | None:
    """Compare answers that share their prompt with answers that each have their own (see `LLM.check_sharing`)."""
    if llm.prefix_sharing_unsupported_reason is not None:
        return None
    device = next(llm.parameters()).device
    ids = (torch.arange(2 * 24, device=device).view(2, 24) * 7919 + 11) % llm.causal_lm.config.vocab_size
    prompt, answers = ids[:, :12], ids[:, 12:].view(2, 2, 6)
    prompt_mask, mask = torch.ones_like(prompt, dtype=torch.bool), torch.ones_like(answers, dtype=torch.bool)
    prompt_mask[1, :5], mask[0, 0, 4:] = False, False  # a shorter prompt, a shorter answer

    def alone(b: int, n: int, before: Tensor) -> Tensor:
        prefix = llm.encode(before[None], torch.ones_like(before[None]))
        return llm.logprobs(prefix, answers[b : b + 1, n : n + 1], mask[b : b + 1, n : n + 1])[0, 0]

    with evaluation_mode(llm):
        shared = llm.logprobs(llm.encode(prompt, prompt_mask), answers, mask)
        prompts = [prompt[b][prompt_mask[b]] for b in range(2)]
        separate = torch.stack([alone(b, n, prompts[b]) for b in range(2) for n in range(2)]).view_as(shared)
        leaking = [alone(b, 1, torch.cat([prompts[b], answers[b, 0][mask[b, 0]]])) for b in range(2)]
    off, dropped = (shared - separate).abs().max(), (torch.stack(leaking) - separate[:, 1]).abs().max()
    if not off <= 0.2 * dropped:
        raise RuntimeError(
            f"answers that share a prompt differ by {off:.3g} nats from answers with their own, where a dropped "
            f"mask would make {dropped:.3g}: this build of torch or this device does not apply the attention mask. "
            "Use --model.attention eager, which computes every answer with its own prompt, and report it"
        )
    return float(off)


# ---- scoring candidates
def score(llm: LLM, prefix: Prefix, candidates: Sequence[Sequence[int]]) -> Tensor:
    """Compute the log-probability of each candidate after each prompt (see `LLM.score`)."""
    answers = [tuple(candidate) for candidate in candidates]
    refuse_unfair(answers)
    paths = longest_beginnings(answers)
    logp: dict[tuple[int, ...], Tensor] = {}  # trie node -> (B, V) log-probabilities of the next token
    if not paths and (prefix.tree is None or prefix.cache is not None):  # all candidates are single tokens
        llm.prefill(prefix)
        _, root = prefix.prefilled()
    else:
        longest = max(map(len, paths), default=0)
        ids = torch.full((len(paths), longest), llm.pad_id, device=prefix.mask.device)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for i, path in enumerate(paths):
            ids[i, : len(path)] = torch.tensor(path, device=ids.device)
            mask[i, : len(path)] = True
        root, hidden = _continue(llm, prefix, ids, mask)
        after = torch.log_softmax(llm.head(hidden), -1)
        logp = {path[: j + 1]: after[:, i, j] for i, path in enumerate(paths) for j in range(len(path))}
    logp[()] = torch.log_softmax(root, -1)
    parts = [[logp[answer[:i]][:, answer[i]] for i in range(len(answer))] for answer in answers]
    return torch.stack([sum(rest, start=first) for first, *rest in parts], 1)


def refuse_unfair(answers: Sequence[tuple[int, ...]]) -> None:
    """Raise ValueError for a candidate that is empty, repeated, or the beginning of another."""
    for i, answer in enumerate(answers):
        if not answer or any(other[: len(answer)] == answer for other in (*answers[:i], *answers[i + 1 :])):
            raise ValueError(f"candidates must be non-empty and none the beginning of another, got {list(answers)}")


def longest_beginnings(answers: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return the inner paths of the candidates' trie that no other inner path continues."""
    inner = {answer[:i] for answer in answers for i in range(1, len(answer))}
    return sorted(path for path in inner if not any(p[: len(path)] == path and p != path for p in inner))


def _continue(llm: LLM, prefix: Prefix, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Compute K continuations, ids (K, T) right-padded with mask (K, T), the same for every prompt.

    Returns:
        next-token logits (B, V) after the prompts, and last hidden states (B, K, T, D) of the continuations.
    """
    b, (k, t) = len(prefix.mask), ids.shape
    if llm.prefix_sharing_unsupported_reason is not None:
        llm.prefill(prefix)
        prompt_cache, logits = prefix.prefilled()
        cache = copy.deepcopy(prompt_cache)
        cache.batch_repeat_interleave(k)
        whole = torch.cat([prefix.mask.repeat_interleave(k, 0), mask.repeat(b, 1)], 1)
        positions = prefix.answer_positions(t)
        positions = None if positions is None else positions.repeat_interleave(k, 0)
        return logits, llm.hidden(llm.embed(ids.repeat(b, 1)), whole, cache, positions).view(b, k, t, -1)
    if prefix.tree is not None and prefix.cache is None:
        flat = torch.cat([prefix.embeddings.flatten(0, 1)[prefix.tree.tokens], llm.embed(ids.flatten()).repeat(b, 1)])
        states = llm.forward_with_plan(flat[None], TreePlan(prefix.tree, mask))[0]
        after = states[len(prefix.tree.tokens) :].view(b, k, t, states.shape[1])
        return llm.head(states[prefix.tree.places[:, -1]]), after
    rows, embedded = mask.expand(b, k, t), llm.embed(ids.view(1, -1).expand(b, -1))
    if prefix.cache is not None and prefix.adapter_state == llm.adapter_state:
        prompt_cache, logits = prefix.prefilled()
        key_values = cached_key_values(prompt_cache)
        plan = PackedPlan(prefix.mask[:, :0], rows, prefix.mask, key_values, prefix.positions)
        return logits, llm.forward_with_plan(embedded, plan).view(b, k, t, -1)
    past_mask: Tensor | None = None
    past: KeyValues | None = None
    if prefix.static_prefix is not None:
        past_mask, past = prefix.static_mask, llm.static_key_values(prefix.static_prefix)
    plan = PackedPlan(prefix.prompt_mask, rows, past_mask, past, prefix.positions)
    hidden = llm.forward_with_plan(torch.cat([prefix.embeddings, embedded], 1), plan)
    return llm.head(hidden[:, -k * t - 1]), hidden[:, -k * t :].view(b, k, t, -1)
