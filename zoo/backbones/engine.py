"""An inference engine, vLLM, that writes answers in place of `LLM.sample`: another program, often on another GPU.

Nothing of it is imported: both speak HTTP (``/v1/completions``, ``/v1/models``, ``/tokenize`` and vLLM's loading of
adapters at run time). Only adapters are trained, so only adapters are sent: they are written as a PEFT folder that the
engine can read, and loaded under a name made of their content, so that the same name is always the same adapters,
whatever was restarted. Prompts go as token ids, or as embeddings where they hold more than words.
"""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import math
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from zoo.backbones.decoding import Completions, evaluation_mode
from zoo.backbones.divided import is_divided
from zoo.backbones.llm import LLM
from zoo.backbones.prefix import Prefix
from zoo.backbones.sampling import Sampling
from zoo.backbones.sent_adapters import PREFIX, adapter_version, shaken, write_adapter
from zoo.endpoints import Refused, Server, TryAgain, Unanswered
from zoo.storage import locked, parse_json, whole_folder

log = logging.getLogger(__name__)

Kind = Literal["own", "vllm"]
AT_ONCE = 64  # questions that are under way; the engine batches what it has
MAX_REPLY_BYTES = 64 * 2**20
MAX_SEED = 2**31  # vLLM gives the k-th answer to a prompt the seed + k
PROBE = "The weather today is fine, she said, and smiled at him. He did not"
PROBE_TOKENS = 8
START = "start the engine with the line that `zoo rollouts serve --config FILE` prints"

Prompt = list[int] | Tensor  # token ids, or embeddings (T, D)


@dataclass(frozen=True)
class Sampler:
    """Who writes answers.

    Args:
        kind: ``own``: this process; ``vllm``: the server at `url`.
        url: address of the server; ``/v1`` at its end may be left out.
        model: name under which it serves the language model.
        folder: where adapters are written for it, a place that both see under this path; None: in the run folder.
        timeout: seconds that one question may take; all answers of a step are asked for at once, so of a whole step.
        tries: how often a question is asked at most, with growing waits between: 8 are two minutes in which an engine
            may be restarted.
        tolerance: mean difference, in nats, that log-probabilities of a probe may have between engine and trainer.
    """

    kind: Kind = "own"
    url: str = "http://127.0.0.1:8000"
    model: str = "base"
    folder: str | None = None
    timeout: float = 600.0
    tries: int = 8
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"unknown sampler.kind {self.kind!r}; expected one of {', '.join(get_args(Kind))}")
        if not (0 < self.timeout < math.inf and self.tries >= 1 and 0 < self.tolerance < math.inf):
            raise ValueError(
                "need sampler.timeout > 0, sampler.tries >= 1 and sampler.tolerance > 0; got "
                f"{self.timeout}, {self.tries} and {self.tolerance}"
            )
        if self.kind == "vllm":
            Server(self.url)  # an address


class _Answer(NamedTuple):
    """One answer as the engine gives it."""

    ids: list[int]
    logprobs: list[float]
    finished: bool


class Engine:
    """What writes the answers of a language model elsewhere; used in place of its `LLM.sample`.

    Args:
        llm: the language model, whose adapters are sent.
        sampler: where the engine is.
        folder: of the written adapters.

    Raises:
        ValueError: the model is one whose answers the engine cannot write.
    """

    def __init__(self, llm: LLM, sampler: Sampler, folder: Path) -> None:
        if llm.tokenizer is None:
            raise ValueError(f"{llm.path} has random weights and no folder that an engine could serve")
        if llm.mrope is not None:
            raise ValueError(
                "an engine counts the positions of a prompt, which mrope gives; use --model.sampler.kind own"
            )
        if is_divided(llm):
            raise ValueError("adapters that are divided over processes are not sent to an engine; use ddp")
        self.llm, self.settings = llm, sampler
        self.folder = folder.resolve()  # the engine has another working directory
        self._server = Server(
            sampler.url.rstrip("/").removesuffix("/v1"),
            timeout=sampler.timeout,
            tries=sampler.tries,
            max_bytes=MAX_REPLY_BYTES,
        )
        self._loading = threading.Lock()
        self._loaded = ""  # version of the adapters that the engine has

    # ---- at the start
    def check(self, longest: int, temperature: float = 1.0, embedded: bool = False) -> float:
        """Compare the engine with the model: name, length, tokenizer, and log-probabilities of a short answer.

        With adapters the answer is one of adapters with random numbers added, which an engine that ignores them cannot
        give.

        Args:
            longest: tokens of the longest prompt and answer.
            temperature: of sampling; above 0.
            embedded: whether prompts will be embeddings.

        Returns:
            the mean difference of log-probabilities, in nats.

        Raises:
            ValueError: it is another model, or one that is served otherwise than it has to be.
        """
        self._check_served(longest)
        tokens = self._ask("/tokenize", {"model": self.settings.model, "prompt": PROBE, "add_special_tokens": False})
        expected = self.llm.tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        if not isinstance(tokens, Mapping) or tokens.get("tokens") != expected:
            raise ValueError(
                f"the engine at {self.settings.url} has another tokenizer than {self.llm.path}: of a test sentence it "
                f"makes {str(tokens)[:200]}, expected {expected}; {START}"
            )
        with shaken(self.llm), evaluation_mode(self.llm), torch.no_grad():
            differences = [self._probe(expected, 0.0, False), self._probe(expected, temperature, embedded)]
        log.info("the engine's log-probabilities differ by %.2g nats on average", max(differences))
        return max(differences)

    def _check_served(self, longest: int) -> None:
        """Check name and length."""
        cards = {card["id"]: card for card in self._models()}
        if self.settings.model not in cards:
            raise ValueError(
                f"the engine at {self.settings.url} serves {', '.join(cards) or 'nothing'}, not "
                f"{self.settings.model!r} (--model.sampler.model); {START}"
            )
        length = cards[self.settings.model].get("max_model_len")
        if isinstance(length, int) and length < longest:
            raise ValueError(
                f"the engine takes prompts and answers of {length} tokens together, but they may have {longest}; start "
                f"it with --max-model-len {longest}, or lower --model.max_length"
            )

    def _probe(self, ids: list[int], temperature: float, embedded: bool) -> float:
        """Return by how much the log-probabilities of an answer to the probe differ. ValueError if by too much."""
        device = next(self.llm.parameters()).device
        prompt = torch.tensor([ids], device=device)
        prefix = self.llm.encode(self.llm.embed(prompt) if embedded else prompt, torch.ones_like(prompt))
        answer = self.sample(prefix, 1, max_new_tokens=PROBE_TOKENS, temperature=temperature)
        logprobs = self.llm.logprobs(prefix, answer.ids, answer.mask, temperature or 1.0)
        difference = float((logprobs - answer.logprobs).abs().sum() / answer.mask.sum())
        if not difference <= self.settings.tolerance:
            raise ValueError(
                f"the engine's log-probabilities of an answer at temperature {temperature:g} differ by "
                f"{difference:.2g} nats on average from those of {self.llm.path}, more than --model.sampler.tolerance "
                f"{self.settings.tolerance:g}: other weights or adapters, another dtype, or raw log-probabilities; "
                f"{START}"
            )
        return difference

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
        """Draw n answers of each prompt, as `LLM.sample` does; the entropies are not known and NaN.

        Each prompt has a seed of its own, drawn from ``generator`` or from torch's.

        Raises:
            ValueError: the engine refused, or gave no usable answer in all tries; `sampling` is not that of the whole
                distribution.
        """
        if sampling != Sampling():
            raise ValueError("an engine draws from the whole distribution, without stop strings; use sampler.kind own")
        prompts = self._prompts(prefix)
        seeds = [0] * len(prompts)
        if temperature:
            seeds = torch.randint(MAX_SEED, (len(prompts),), generator=_on_cpu(generator)).tolist()
        version = self.load_adapters()
        asked_for = n if temperature else 1  # vLLM refuses to write the same answer several times
        common = {
            "n": asked_for,
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            # what a server may have other defaults for, from the model's generation_config.json
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": self.llm.eos_ids,
            "logprobs": 0,
            "return_token_ids": True,
        }
        with ThreadPoolExecutor(min(len(prompts), AT_ONCE)) as pool:
            asked = [
                pool.submit(self._complete, version, common | {"seed": seed} | _prompt_fields(prompt))
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
            try:
                answers = [answer for future in asked for answer in future.result() * (n // asked_for)]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return self._completions(answers, len(prompts), n, prefix.mask.device)

    def greedy_text(self, prefix: Prefix, max_new_tokens: int) -> list[str]:
        """Write one answer to each prompt greedily, and return its text without special tokens."""
        answers = self.sample(prefix, 1, max_new_tokens=max_new_tokens, temperature=0.0)
        return [
            self.llm.tokenizer.decode(ids[mask].tolist(), skip_special_tokens=True)
            for ids, mask in zip(answers.ids[:, 0], answers.mask[:, 0], strict=True)
        ]

    def _prompts(self, prefix: Prefix) -> list[Prompt]:
        """Return the prompts without padding, on the CPU."""
        if prefix.positions is not None:
            raise ValueError("an engine counts the positions of a prompt; use --model.sampler.kind own")
        static = None if prefix.static_prefix is None else prefix.static_prefix.ids
        if prefix.ids is not None:
            beginning = [] if static is None else static.tolist()
            rows = zip(prefix.ids.tolist(), prefix.prompt_mask.tolist(), strict=True)
            return [beginning + [i for i, real in zip(ids, mask, strict=True) if real] for ids, mask in rows]
        embeddings = prefix.embeddings
        if static is not None:
            before = self.llm.embed(static.to(embeddings.device))
            embeddings = torch.cat([before.expand(len(embeddings), -1, -1), embeddings], 1)
        return [e[m].detach().cpu() for e, m in zip(embeddings, prefix.mask, strict=True)]

    def _complete(self, version: str, body: Mapping[str, Any]) -> list[_Answer]:
        """Ask for the answers to one prompt; adapters that a restarted engine lost are loaded again."""
        vocabulary = self.llm.causal_lm.config.vocab_size

        def read(text: str) -> list[_Answer]:
            return _answers(text, int(body["n"]), int(body["max_tokens"]), vocabulary)

        for _ in range(self.settings.tries):
            try:
                return self._server.ask("/v1/completions", {**body, "model": version}, read)
            except Unanswered as error:
                raise ValueError(self._sentence(error)) from None
            except Refused as error:
                if error.status != 404:
                    raise ValueError(self._sentence(error)) from None
                self._load_again(version)
        raise ValueError(
            f"the engine at {self.settings.url} lost the adapters {self.settings.tries} times; see its log"
        )

    def _completions(self, answers: Sequence[_Answer], b: int, n: int, device: torch.device) -> Completions:
        """Return answers as tensors."""
        longest = max(len(answer.ids) for answer in answers)
        ids = torch.full((b * n, longest), self.llm.pad_id)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        logprobs = torch.zeros(b * n, longest)
        for row, answer in enumerate(answers):
            length = len(answer.ids)
            ids[row, :length], mask[row, :length] = torch.tensor(answer.ids), True
            logprobs[row, :length] = torch.tensor(answer.logprobs)
        finished = torch.tensor([answer.finished for answer in answers]).view(b, n)
        entropy = torch.full((b, n, longest), math.nan)
        parts = (ids.view(b, n, -1), mask.view(b, n, -1), logprobs.view(b, n, -1), finished, entropy)
        return Completions(*(part.to(device) for part in parts))

    # ---- adapters
    def load_adapters(self) -> str:
        """Give the engine the adapters of now, unless it has them; return the name it knows them by.

        Adapters of this folder that it had before are unloaded.
        """
        if self.llm.lora is None:
            return self.settings.model
        version = adapter_version(self.llm)
        with self._loading:
            if version != self._loaded:
                self._write_and_load(version)
                self._loaded = version
        return version

    def _load_again(self, version: str) -> None:
        """Load adapters that the engine does not know any more. ValueError if it serves another model now."""
        with self._loading:
            names = [card["id"] for card in self._models()]
            if version in names:  # another thread was first
                return
            if self.settings.model not in names or version == self.settings.model:
                raise ValueError(
                    f"the engine at {self.settings.url} serves {', '.join(names)}, not {self.settings.model!r}; {START}"
                )
            log.warning(
                "the engine at %s has lost the adapters, as after a restart; loading them again", self.settings.url
            )
            self._write_and_load(version)

    def _write_and_load(self, version: str) -> None:
        place = self.folder / version
        with locked(self.folder / "adapters.lock", str(self.folder), wait=True):  # several processes have the same ones
            if not place.is_dir():
                with whole_folder(place) as part:
                    write_adapter(self.llm, part)
        try:
            self._server.ask("/v1/load_lora_adapter", {"lora_name": version, "lora_path": str(place)}, str, {500})
        except Refused as error:
            if "already been loaded" not in error.text:
                raise ValueError(self._adapters_refused(error)) from None
        except Unanswered as error:
            raise ValueError(self._adapters_refused(error)) from None
        for card in self._models():
            if Path(str(card.get("root"))).parent == self.folder and card["id"] != version:
                with contextlib.suppress(Refused, Unanswered):  # another process was first
                    self._server.ask("/v1/unload_lora_adapter", {"lora_name": card["id"]}, str)
        for old in self.folder.iterdir():
            if old.name.startswith(PREFIX) and old.name != version:
                shutil.rmtree(old, ignore_errors=True)

    def _adapters_refused(self, error: Exception) -> str:
        rank = self.llm.lora.r if self.llm.lora else 0
        return (
            f"the engine at {self.settings.url} did not load adapters of rank {rank} from {self.folder}: {error}. "
            "Does it see that folder (--model.sampler.folder), was it started with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, "
            f"--enable-lora and a --max-lora-rank that is large enough? {START}"
        )

    # ---- questions
    def _models(self) -> list[Mapping[str, Any]]:
        """Return what the engine serves."""
        reply = self._ask("/v1/models", None)
        cards = reply.get("data") if isinstance(reply, Mapping) else None
        if not isinstance(cards, list) or not all(
            isinstance(c, Mapping) and isinstance(c.get("id"), str) for c in cards
        ):
            raise ValueError(f"{self.settings.url}/v1/models is no list of models but {str(reply)[:200]}; {START}")
        return cards

    def _ask(self, path: str, body: Mapping[str, Any] | None) -> Any:
        """Return a reply as plain values. ValueError if there is none."""
        try:
            return self._server.ask(path, body, lambda text: _plain(text))
        except (Refused, Unanswered) as error:
            raise ValueError(self._sentence(error)) from None

    def _sentence(self, error: Exception) -> str:
        return (
            f"the engine at {self.settings.url} gave no usable answer: {error}. Nothing is lost: {START} if it is "
            "down, and resume the run"
        )


# ---- what is sent
def _on_cpu(generator: torch.Generator | None) -> torch.Generator | None:
    """Return a generator that draws on the CPU: seeds go into a question."""
    if generator is None or generator.device.type == "cpu":
        return generator
    return torch.Generator().manual_seed(generator.initial_seed())


def _prompt_fields(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt as vLLM takes it: token ids, or base64 of what ``torch.save`` writes of embeddings (T, D)."""
    if isinstance(prompt, list):
        return {"prompt": prompt}
    out = io.BytesIO()
    torch.save(prompt.clone(), out)  # a view would bring all it is a view of
    return {"prompt": None, "prompt_embeds": base64.b64encode(out.getvalue()).decode()}


# ---- what comes back
def _plain(text: str) -> Any:
    try:
        return parse_json(text, "the engine's reply")
    except ValueError:
        raise TryAgain(f"no JSON but {text[:80]!r}") from None


def _answers(text: str, n: int, max_tokens: int, vocabulary: int) -> list[_Answer]:
    """Return the n answers in a reply. `TryAgain` if it holds anything else."""
    reply = _plain(text)
    choices = reply.get("choices") if isinstance(reply, Mapping) else None
    if not isinstance(choices, list) or not all(isinstance(choice, Mapping) for choice in choices):
        raise TryAgain(f"no completions but {text[:80]!r}")
    if sorted(str(choice.get("index")) for choice in choices) != sorted(map(str, range(n))):
        raise TryAgain(f"{len(choices)} completions instead of {n}")
    return [_answer(choice, max_tokens, vocabulary) for choice in sorted(choices, key=lambda choice: choice["index"])]


def _answer(choice: Mapping[str, Any], max_tokens: int, vocabulary: int) -> _Answer:
    """Return a choice of a reply. `TryAgain` if it is not whole."""
    logprobs = choice.get("logprobs")
    ids, values = choice.get("token_ids"), logprobs.get("token_logprobs") if isinstance(logprobs, Mapping) else None
    if not isinstance(ids, list) or not isinstance(values, list) or not 0 < len(ids) == len(values) <= max_tokens:
        raise TryAgain(
            f"a completion of 1 to {max_tokens} token_ids with token_logprobs was expected, got {_short(choice)}"
        )
    if not all(type(i) is int and 0 <= i < vocabulary for i in ids):
        raise TryAgain(f"token ids from 0 to below {vocabulary} were expected, got {str(ids)[:80]}")
    if not all(isinstance(v, int | float) and math.isfinite(v) and v <= 1e-3 for v in values):
        raise TryAgain(f"finite log-probabilities were expected, got {str(values)[:80]}")
    if choice.get("finish_reason") not in ("stop", "length"):
        raise TryAgain(f"finish_reason stop or length was expected, got {choice.get('finish_reason')!r}")
    return _Answer(ids, [float(v) for v in values], choice["finish_reason"] == "stop")


def _short(choice: Mapping[str, Any]) -> str:
    return str({key: choice.get(key) for key in ("token_ids", "logprobs", "finish_reason")})[:160]
