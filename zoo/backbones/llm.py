"""A causal language model with adapters behind four verbs.

    prefix = llm.encode(ids, mask)            the prompt, computed once
    llm.sample(prefix, n, ...)                n completions of each prompt
    llm.logprobs(prefix, answers, mask)       per-token log-probabilities of given answers, with gradients
    llm.score(prefix, candidates)             log-probability of each candidate answer
    with llm.reference(): ...                 the same weights with the adapter off

Prompts are token ids or embeddings (images and audio enter as embeddings). Prompts are padded on the left, answers on
the right; positions count real tokens, so padding never changes a result beyond floating-point rounding. With
`LLM(mrope=...)`, prompts may bring three positions per token instead (`zoo.backbones.mrope`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from zoo.backbones import decoding, gguf, quantization, shared_prefix
from zoo.backbones.adapters import AdaptedModel, LoRA
from zoo.backbones.decoding import Completions, evaluation_mode, no_checkpointing
from zoo.backbones.divided import PASSES, Turns, is_divided
from zoo.backbones.folders import check_folder, check_tokenizer_files, check_vocabulary, reads_folder
from zoo.backbones.hub import (
    Attention,
    Dtype,
    fingerprint,
    load_tokenizer,
    locate,
    padding_id,
    read_weights,
    refuse_infinite,
    refuse_misfits,
    refuse_missing_attention,
    stored_dtype,
    without_key_report,
)
from zoo.backbones.inner_decoder import InnerDecoder, inner_decoder
from zoo.backbones.mrope import SectionedRotary, checked_positions
from zoo.backbones.prefix import KeyValues, Prefix, StaticPrefix, cached_key_values, positions_from_mask
from zoo.backbones.quantization import Quantization
from zoo.backbones.row_tree import RowTree, TreePlan
from zoo.backbones.sampling import Sampling
from zoo.backbones.shapes import SHAPES, shape_named
from zoo.backbones.shared_prefix import PackedPlan
from zoo.storage import sha256_of

log = logging.getLogger(__name__)

__all__ = ["LLM", "Attention", "Completions", "Dtype", "LoRA", "Prefix", "StaticPrefix", "locate_language_model"]


def locate_language_model(path: str) -> str:
    """Find a model folder or GGUF file, a name that is published or was fetched, or a hub id, in this order.

    Raises:
        FileNotFoundError: it is none of them, or a folder of adapters alone.
    """
    if (Path(path) / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"{path} is a PEFT adapter, not a language model; export with --merge, or use the run itself by --ckpt_path"
        )
    return locate(path, what="language model", option="--model.llm", file_suffixes=(gguf.SUFFIX,))


class LLM(AdaptedModel):
    """A causal LM of transformers, its tokenizer, and optionally LoRA.

    Args:
        path: folder, GGUF file (`zoo.backbones.gguf`), published name or hub id; or ``shape:NAME`` with a name of
            `SHAPES` for a model of that architecture with random weights and no tokenizer. Of a whole Qwen2.5-VL its
            language model is read (`zoo.backbones.inner_decoder`).
        dtype: dtype of the weights. Always explicit, because a folder's own dtype would be taken otherwise.
        revision: hub revision (a commit hash) to pin.
        attention: ``sdpa``, ``eager`` or ``flash_attention_2``; with the first, answers share their prompt (see
            `zoo.backbones.shared_prefix`) in LLaMA, Qwen2 and Qwen3; `prefix_sharing_unsupported_reason` says why not
            in others. Flash attention takes no mask of ours; it pays where prompts are long and answers few.
        device: ``meta`` builds the architecture without weights.
        gradient_checkpointing: recompute activations in the backward pass.
        mrope: lets prompts bring three positions per token (see `encode`): pairs of channels of a head that turn by
            time, height and width, together half its width, e.g. 16, 24, 24 for one of 128. It is not part of the
            model's config.json: whoever loads exported weights gives it again.
        merge_adapters: sample with adapters added to copies of their layers' weights: a quarter fewer kernel launches,
            for the memory of these copies. In bfloat16 small adapters are rounded to the weights' precision.
        cuda_graph: record the operations of a sampled token once and replay them; on a GPU only.
        quantize: freeze the model, its linear layers in 4 or 8 bits (`zoo.backbones.quantization`).
        mapped: leave the weights in their files and in the one dtype that they have there, mapped into memory, for
            `zoo.backbones.divided` to bring each process its share of them in ``dtype``.

    Raises:
        FileNotFoundError: nothing at ``path``, or no safetensors weights there.
        ValueError: weights that do not fit the config, or that are not finite; ``mrope`` does not fit the model; see
            `quantization.check`.
    """

    passes = tuple(PASSES)  # what uses the weights
    shapes = frozenset(SHAPES)  # names of ``shape:``
    turns: Turns | None = None  # where they are divided over processes

    @reads_folder
    def __init__(
        self,
        path: str,
        dtype: Dtype = "float32",
        revision: str | None = None,
        attention: Attention = "sdpa",
        device: str | None = None,
        gradient_checkpointing: bool = False,
        mrope: tuple[int, int, int] | None = None,
        merge_adapters: bool = False,
        cuda_graph: bool = False,
        quantize: Quantization | None = None,
        mapped: bool = False,
    ) -> None:
        super().__init__()
        refuse_missing_attention(attention)
        quantization.check(quantize, merge_adapters)
        self.quantize, self.mapped = quantize, mapped
        self.merge_adapters, self.cuda_graph = merge_adapters, cuda_graph
        self.path, self.revision, self.mrope = path, revision, mrope
        self._file_sha256: str | None = None  # of a GGUF file
        self.tokenizer: Any = None  # of transformers, which has no types for them; None for a ``shape:``
        self.dtype: torch.dtype = getattr(torch, dtype)
        if path.startswith("shape:"):
            kind, values = shape_named(path, SHAPES)
            decoder = InnerDecoder(AutoConfig.for_model(kind, **values))
        else:
            place = Path(locate_language_model(path))
            if place.is_file():
                self._file_sha256 = sha256_of(place)
                name = Path(path).resolve().name.removesuffix(gguf.SUFFIX)
                place = gguf.model_folder(place, self._file_sha256, name, dtype)
            path = self.path = str(place)
            if Path(path).is_dir():
                check_folder(path)
                check_tokenizer_files(path)
            decoder = inner_decoder(AutoConfig.from_pretrained(path, revision=revision))
            self.tokenizer = load_tokenizer(path, revision)
            check_vocabulary(self.tokenizer, decoder.config.get_text_config().vocab_size, path)
        config, self.stated_mrope = decoder.config, decoder.mrope
        self.pad_id = padding_id(self.tokenizer, config.vocab_size)
        reason = shared_prefix.unsupported_reason(config) if attention == "sdpa" else f"attention is {attention}"
        self.prefix_sharing_unsupported_reason = reason
        implementation = shared_prefix.NAME if reason is None else attention
        if reason is not None:
            log.info("%s: every answer computes its prompt again, because %s", self.path, reason)
        if device == "meta" or self.tokenizer is None:
            with torch.device(device or "cpu"):
                self.model = AutoModelForCausalLM.from_config(
                    config, dtype=self.dtype, attn_implementation=implementation
                )
        else:
            stored = stored_dtype(path, revision) if mapped else None  # None: a mixture is converted, as it is read
            self.model = self._load(path, decoder, stored or self.dtype, implementation)
        self.causal_lm.generation_config.pad_token_id = self.pad_id
        if mrope is not None:
            decoder = self.causal_lm.get_decoder()
            decoder.rotary_emb = SectionedRotary(getattr(decoder, "rotary_emb", None), mrope)
        if quantize is not None:
            quantization.quantize(self.causal_lm, quantize)
        self.train()  # transformers loads in eval mode, in which dropout would silently do nothing
        if gradient_checkpointing:
            self.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})

    def _load(self, path: str, decoder: InnerDecoder, dtype: torch.dtype, attention: str) -> PreTrainedModel:
        """Read the weights, strictly and checked."""
        options = {"dtype": dtype, "revision": self.revision, "attn_implementation": attention, **decoder.options}
        with without_key_report():
            model, info = read_weights(AutoModelForCausalLM, path, **options)
        refuse_misfits(decoder.own(info), path)
        refuse_infinite(dict(model.named_parameters()), path)
        return model

    # ---- parts
    def fingerprint(self) -> str | None:
        """Return the identity of the weights that were given; None for a ``shape:``.

        It is that of `hub.fingerprint`; of a GGUF file, its sha256, whatever dtype it is read in.
        """
        if self._file_sha256 is not None:
            return self._file_sha256
        return None if self.tokenizer is None else fingerprint(self.path, self.revision)

    @property
    def width(self) -> int:
        """Numbers per token."""
        return self.causal_lm.config.hidden_size

    @property
    def eos_ids(self) -> list[int]:
        """Tokens that end an answer: the tokenizer's and the generation config's."""
        eos = self.causal_lm.generation_config.eos_token_id
        ids = set(eos if isinstance(eos, list) else [eos]) | {self.tokenizer.eos_token_id if self.tokenizer else None}
        return sorted(i for i in ids if i is not None)

    def embed(self, ids: Tensor) -> Tensor:
        """Look up embeddings: (...,) token ids -> (..., D)."""
        return self.causal_lm.get_input_embeddings()(ids)

    def head(self, hidden: Tensor) -> Tensor:
        """Compute logits: (..., D) -> (..., V) float32."""
        return self.causal_lm.get_output_embeddings()(hidden).float()

    def hidden(
        self, embeddings: Tensor, mask: Tensor, cache: DynamicCache | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Compute last hidden states.

        Args:
            embeddings: (B, T, D).
            mask: (B, C + T) bool over cached and new tokens, True on real ones.
            cache: C cached tokens; extended in place.
            positions: (B, T or more) or, with `mrope`, (3, B, T or more) int64, the last T of which are those of the
                new tokens; None: real tokens are counted.

        Returns:
            (B, T, D).
        """
        positions = (positions_from_mask(mask) if positions is None else positions)[..., -embeddings.shape[1] :]
        with contextlib.nullcontext() if cache is None else no_checkpointing(self.causal_lm):
            return self.causal_lm.get_decoder()(
                inputs_embeds=embeddings,
                attention_mask=mask.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state

    def forward_with_plan(self, embeddings: Tensor, plan: PackedPlan | TreePlan) -> Tensor:
        """Compute last hidden states of tokens (B, S, D) that attend as a plan says."""
        return self.causal_lm.get_decoder()(
            inputs_embeds=embeddings,
            attention_mask=embeddings.new_ones(shared_prefix.NO_MASK),
            position_ids=plan.positions,
            use_cache=False,
            plan=plan,
        ).last_hidden_state

    def hidden_of_tree(self, embeddings: Tensor, tree: RowTree) -> Tensor:
        """Compute last hidden states (M, D) of the different tokens of rows (R, T, D); see `zoo.backbones.row_tree`."""
        return self.forward_with_plan(embeddings.flatten(0, 1)[tree.tokens][None], TreePlan(tree))[0]

    # ---- prompts
    def cache_prefix(self, ids: Tensor) -> StaticPrefix:
        """Declare a beginning (S,) int64 that many prompts share, for `encode`.

        Its keys and values are computed once and used, un-copied where possible, by every prompt behind it, until
        weights or adapters change. ValueError if it is empty.
        """
        if ids.ndim != 1 or not len(ids):
            raise ValueError(f"a fixed beginning is a row of at least one token id, got a tensor of {tuple(ids.shape)}")
        return StaticPrefix(ids)

    def encode(
        self,
        prompt: Tensor,
        mask: Tensor,
        static_prefix: StaticPrefix | None = None,
        positions: Tensor | None = None,
        tree: RowTree | None = None,
    ) -> Prefix:
        """Encode prompts; nothing is computed before a verb needs it.

        Args:
            prompt: ids (B, P) int64 or embeddings (B, P, D), left-padded.
            mask: (B, P) bool, True on real tokens.
            static_prefix: shared beginning in front of every prompt (`cache_prefix`).
            positions: (3, B, P) int64, time, height and width of every token (`zoo.backbones.mrope`), 0 being the first
                position behind `static_prefix`; what padding holds does not matter. An answer goes on after the
                largest. None: real tokens are counted, which is three equal positions.
            tree: what the prompts begin with in common, for `score`: without `static_prefix` and positions.

        Raises:
            ValueError: if a prompt is empty or not padded on the left; positions without `mrope`, of another shape or
                dtype, or below 0.
        """
        mask = mask.bool()
        if not mask[:, -1].all():
            raise ValueError("prompts must be padded on the left and hold at least one token")
        if positions is not None:
            positions = checked_positions(positions, mask, self.mrope)
        if static_prefix is not None:
            static_mask = mask.new_ones(len(mask), len(static_prefix.ids))
            mask = torch.cat([static_mask, mask], 1)
            if positions is not None:
                static_positions = positions_from_mask(static_mask).expand(3, -1, -1)
                positions = torch.cat([static_positions, positions + len(static_prefix.ids)], 2)
        if tree is not None and (static_prefix is not None or positions is not None):
            raise ValueError("a tree of prompts stands neither behind a fixed beginning nor at given positions")
        ids = None if prompt.is_floating_point() else prompt
        embeddings = prompt if ids is None else self.embed(ids)
        return Prefix(embeddings, mask, static_prefix, positions=positions, tree=tree, ids=ids)

    def _weights_state(self) -> tuple[str, int, torch.device]:
        """Return a value that changes whenever a weight, the adapters in use or the device do."""
        versions = sum(0 if p.is_inference() else p._version for p in self.parameters())
        return self.adapter_state, versions, next(self.parameters()).device

    def static_key_values(self, prefix: StaticPrefix) -> KeyValues:
        """Return the keys and values of a static prefix, (1, Hkv, S, hd) per layer, computed if weights changed."""
        state = self._weights_state()
        if prefix.weights_state != state or is_divided(self):  # then all processes compute them, or none
            with torch.inference_mode(False), torch.no_grad(), evaluation_mode(self):
                ids = prefix.ids.to(state[-1])[None].clone()
                cache = DynamicCache(config=self.causal_lm.config)
                self.hidden(self.embed(ids), torch.ones_like(ids, dtype=torch.bool), cache)
            prefix.key_values, prefix.weights_state = cached_key_values(cache), state
        return prefix.key_values

    @torch.no_grad()
    def prefill(self, prefix: Prefix) -> None:
        """Compute keys, values and next-token logits of the prompts, unless they are there.

        The verbs do it where they need it; `score` does without, so call this before it if several verbs follow.
        """
        if prefix.cache is None or prefix.adapter_state != self.adapter_state:
            prefix.adapter_state = self.adapter_state
            prefix.cache = DynamicCache(config=self.causal_lm.config)
            if prefix.static_prefix is not None:
                for layer, (key, value) in enumerate(self.static_key_values(prefix.static_prefix)):
                    b = len(prefix.mask)
                    prefix.cache.update(key.expand(b, -1, -1, -1), value.expand(b, -1, -1, -1), layer)
            hidden = self.hidden(prefix.embeddings, prefix.mask, prefix.cache, prefix.positions)
            prefix.logits = self.head(hidden[:, -1])

    def _full_embeddings(self, prefix: Prefix) -> Tensor:
        """Return embeddings (B, S + P, D) of prompts with their static prefix."""
        if prefix.static_prefix is None:
            return prefix.embeddings
        static = self.embed(prefix.static_prefix.ids.to(prefix.embeddings.device))
        return torch.cat([static.expand(len(prefix.embeddings), -1, -1), prefix.embeddings], 1)

    # ---- answers
    @torch.no_grad()
    def sample(
        self,
        prefix: Prefix,
        n: int = 1,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    ) -> Completions:
        """Draw n answers of each prompt, until an end token or ``max_new_tokens``; ``temperature`` 0 is greedy.

        Dropout is off. A prompt's keys and values serve its n answers without being copied, and finished answers leave
        the batch. `sampling` filters what is drawn, and says what ends an answer beside an end token.
        """
        return decoding.sample(self, prefix, n, max_new_tokens, temperature, generator, sampling)

    def greedy_text(self, prefix: Prefix, max_new_tokens: int) -> list[str]:
        """Decode one answer of each prompt greedily, and return its text without special tokens."""
        answers = self.sample(prefix, 1, max_new_tokens=max_new_tokens, temperature=0.0)
        return [
            self.tokenizer.decode(ids[mask].tolist(), skip_special_tokens=True)
            for ids, mask in zip(answers.ids[:, 0], answers.mask[:, 0], strict=True)
        ]

    def logprobs(
        self, prefix: Prefix, answers: Tensor, mask: Tensor, temperature: float = 1.0, targets: Tensor | None = None
    ) -> Tensor:
        """Compute per-token log-probabilities of given answers, with gradients.

        A prompt is computed once for all its answers (`zoo.backbones.shared_prefix`), and only the states before answer
        tokens reach the vocabulary.

        Args:
            answers: (B, n, T) int64, right-padded.
            mask: (B, n, T) bool.
            temperature: of the distribution, as in `sample`; above 0.
            targets: (B, n, T) int64: the tokens whose log-probabilities are wanted, where they are not the answers that
                were read before them (training on a model's own answers).

        Returns:
            (B, n, T) float32; 0 where masked.
        """
        targets = answers if targets is None else targets
        before = self._states_before(prefix, answers, mask)[mask]
        return _scattered(self.token_logprobs(before, targets[mask], temperature), mask)

    def logprobs_and_entropies(
        self, prefix: Prefix, answers: Tensor, mask: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Compute what `logprobs` does, and the entropies (B, n, T) of the distributions in nats, with gradients."""
        before = self._states_before(prefix, answers, mask)[mask]
        logprobs = self.token_logprobs(before, answers[mask], temperature)
        return _scattered(logprobs, mask), _scattered(self.token_entropies(before, temperature), mask)

    def token_logprobs(self, hidden: Tensor, ids: Tensor, temperature: float) -> Tensor:
        """Compute (N,) float32 log-probabilities of tokens (N,) from the states before them (N, D)."""
        return decoding.token_logprobs(self, hidden, ids, temperature)

    def token_entropies(self, hidden: Tensor, temperature: float) -> Tensor:
        """Compute the (N,) float32 entropies, in nats, of the distributions that states (N, D) predict."""
        return decoding.token_entropies(self, hidden, temperature)

    def _states_before(self, prefix: Prefix, answers: Tensor, mask: Tensor) -> Tensor:
        """Compute the states (B, n, T, D) that predict each answer token."""
        shared = self.prefix_sharing_unsupported_reason is None
        states = self._states_before_answers if shared else self._states_before_separate_answers
        return states(prefix, answers, mask)

    def _states_before_answers(self, prefix: Prefix, answers: Tensor, mask: Tensor) -> Tensor:
        """Compute the states (B, n, T, D) that predict each answer token, the prompt once for all its answers."""
        b, n, t = answers.shape
        embedded = self.embed(answers.reshape(b, n * t))
        if prefix.static_prefix is not None and not any(p.requires_grad for p in self.parameters()):
            static = self.static_key_values(prefix.static_prefix)  # a frozen model: keys and values stay right
            prompt = prefix.embeddings
            plan = PackedPlan(prefix.prompt_mask, mask, prefix.static_mask, static, prefix.positions)
        else:
            prompt = self._full_embeddings(prefix)
            plan = PackedPlan(prefix.mask, mask, prompt_positions=prefix.positions)
        hidden = self.forward_with_plan(torch.cat([prompt, embedded], 1), plan)
        p = prompt.shape[1]
        first = hidden[:, None, p - 1 : p].expand(b, n, 1, -1)  # the state behind the prompt predicts every first
        return torch.cat([first, hidden[:, p:].view(b, n, t, -1)[:, :, :-1]], 2)

    def _states_before_separate_answers(self, prefix: Prefix, answers: Tensor, mask: Tensor) -> Tensor:
        """Compute the same, each answer behind a prompt of its own."""
        b, n, t = answers.shape
        embedded = self.embed(answers.reshape(b, n * t)).view(b * n, t, -1)
        rows = torch.cat([self._full_embeddings(prefix).repeat_interleave(n, 0), embedded], 1)
        row_mask = torch.cat([prefix.mask.repeat_interleave(n, 0), mask.view(b * n, t)], 1)
        positions, following = prefix.positions, prefix.answer_positions(t)
        if positions is not None and following is not None:
            positions = torch.cat([positions, following.expand(3, -1, -1)], 2).repeat_interleave(n, 1)
        return self.hidden(rows, row_mask, positions=positions)[:, -t - 1 : -1].view(b, n, t, -1)

    @torch.no_grad()
    def check_sharing(self) -> float | None:
        """Compare answers that share their prompt with answers that each have their own.

        To be called once, on this machine in this dtype: a backend that drops the mask would train on wrong gradients
        without an error.

        Returns:
            largest difference of a log-probability, in nats; None if this model does not share.

        Raises:
            RuntimeError: the difference is of the size of what a dropped mask makes.
        """
        return decoding.check_sharing(self)

    @torch.no_grad()
    def score(self, prefix: Prefix, candidates: Sequence[Sequence[int]]) -> Tensor:
        """Compute the log-probability of each candidate answer after each prompt, without gradients.

        `logprobs` has them. Prompt and candidates are one pass, of which nothing is kept (see `prefill`).

        Args:
            candidates: token ids of L answers, without end token; shared by all prompts. They form a trie, so the first
                token of every candidate costs nothing beyond the prompt, and common beginnings are computed once.

        Returns:
            (B, L) float32, summed over tokens.

        Raises:
            ValueError: if a candidate is empty, repeated, or the beginning of another (the comparison would be unfair).
        """
        return decoding.score(self, prefix, candidates)

    @torch.no_grad()
    def beam(
        self, prompt: Tensor, mask: Tensor, *, beams: int, max_new_tokens: int, repetition_penalty: float = 1.0
    ) -> list[str]:
        """Search with beams over prompt ids (B, P), left-padded, whose positions are counted.

        Returns:
            the text of the best beam of each prompt (transformers' `generate`).
        """
        generate: Any = self.model.generate  # of the model with its adapters
        out = generate(
            input_ids=prompt,
            attention_mask=mask.long(),
            num_beams=beams,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            repetition_penalty=repetition_penalty,
            eos_token_id=self.eos_ids,
            pad_token_id=self.pad_id,
            synced_gpus=is_divided(self),
        )
        return self.tokenizer.batch_decode(out[:, prompt.shape[1] :], skip_special_tokens=True)


def _scattered(values: Tensor, mask: Tensor) -> Tensor:
    """Return the values (N,) at the N places of a mask, and 0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)
