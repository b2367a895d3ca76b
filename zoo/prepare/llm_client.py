"""Clients of models that answer questions: any OpenAI-style chat endpoint, or a language model on this machine.

    model = Endpoint("http://localhost:8000/v1", "some-vlm")
    with AnswerStore(out / "answers.jsonl") as store:
        client = CachedClient(store, max_failures=20)
        text = client(model, "Describe the face.", frames, sound)     # from the file, if it stands there

Three rules. Nothing is sent unless the user named an address (`--send_to`; there is no default), and no frame and no
sound to another machine without `--yes_send_media`. The key comes from an environment variable and is written nowhere,
not even where a service quotes it. What was answered is on disk before the next question, and never asked again.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import http.client
import io
import ipaddress
import json
import math
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from zoo.media.clips import RATE

MAX_WAIT = 60.0  # seconds before another try, whatever the service asks for
MAX_REPLY_BYTES = 4 * 2**20  # of one reply
RETRY_STATUS = {408, 409, 425, 429}  # and every 5xx: the same request may succeed later
FATAL_STATUS = {401, 403, 404}  # every other request would meet the same
MIN_KEY_LENGTH = 8  # characters: "EMPTY" and the like are no secret, and taking them out would change answers


class QueryFailed(ValueError):
    """One question has no answer; the next may have one."""


class AbortRun(ValueError):
    """No further question should be asked. What was answered is kept."""


class ChatModel(Protocol):
    """A model that answers prompts.

    Attributes:
        name: of the answers on disk; answers under different names are never mixed.
        local: whether it runs on this machine.
        host: where its questions go to; empty for a model of this machine.
    """

    name: str
    local: bool
    host: str

    def __call__(self, prompt: str, frames: np.ndarray | None = None, sound: np.ndarray | None = None) -> str:
        """Return the answer, which is not empty.

        Args:
            frames: uint8 (T, 3, H, W), in the order of time.
            sound: float32 (N,) in [-1, 1] at `RATE` Hz.

        Raises:
            QueryFailed: this question has no answer.
            AbortRun: no question will have one.
        """
        ...


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key, and perhaps the clip, to an address that nobody agreed to."""

    def redirect_request(self, *args: Any) -> None:
        return None


def is_local(url: str) -> bool:
    """Whether an address is this machine: ``localhost`` or a loopback number. Other names are not looked up."""
    host = urllib.parse.urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


class Endpoint:
    """``POST {url}/chat/completions``: text, pictures as base64 JPEG, sound as base64 WAV (``input_audio``).

    Args:
        url: where the API begins, e.g. ``http://localhost:8000/v1``.
        model: name of the model there.
        key: sent as ``Authorization: Bearer``; None: no such header.
        send_media: whether frames and sound may go to another machine than this one.
        timeout: seconds one request may take, all of it.
        tries: how often one question is sent at most: again after 429, 5xx, no or half a reply, an empty answer.
        wait: seconds before the second try, doubled before each further one, at most `MAX_WAIT`; or what a
            Retry-After header says, if that is more.
        max_tokens: of the answer; one that is cut off there is none.
        temperature: 0 is greedy.
        extra: further fields of the request, or other values of these; None takes a field out, e.g.
            ``{"max_tokens": None, "max_completion_tokens": 800}``.

    Raises:
        ValueError: an address that is none, or that would show the key; a key that cannot be sent.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None = None,
        send_media: bool = False,
        timeout: float = 120.0,
        tries: int = 4,
        wait: float = 1.0,
        max_tokens: int = 800,
        temperature: float = 0.0,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.local = is_local(url)
        parts = _split_address(url)
        _check_limits(tries, timeout, wait, max_tokens, temperature, extra or {})
        _check_key(key, parts, self.local)
        self.url, self.name, self.host = url.rstrip("/") + "/chat/completions", model, parts.hostname or ""
        self.send_media, self.timeout, self.tries, self.wait = send_media, timeout, tries, wait
        fields = {"max_tokens": max_tokens, "temperature": temperature} | dict(extra or {})
        self._fields = {name: value for name, value in fields.items() if value is not None}
        self._key = key
        # a proxy may serve other machines, but what is meant for this one must not pass through it
        proxies = urllib.request.ProxyHandler({} if self.local else None)
        self._opener = urllib.request.build_opener(proxies, _NoRedirect)

    def __call__(self, prompt: str, frames: np.ndarray | None = None, sound: np.ndarray | None = None) -> str:
        if not (self.local or self.send_media) and (frames is not None or sound is not None):
            raise AbortRun(
                f"frames or sound would go to {self.host}; nothing was sent. Give --yes_send_media if the clips' "
                "licence and the people in them allow it"
            )
        body = json.dumps({"model": self.name, "messages": [_message(prompt, frames, sound)], **self._fields}).encode()
        for attempt in range(1, self.tries + 1):
            try:
                return self._send(body)
            except _TryAgain as error:
                if attempt == self.tries:
                    raise QueryFailed(f"{self.name}: {error} ({attempt} tries)") from None
                time.sleep(min(MAX_WAIT, max(self.wait * 2 ** (attempt - 1), error.after)))
        raise AssertionError  # the loop returns or raises

    def _send(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "zoo"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, body, headers, method="POST")
        deadline = time.monotonic() + self.timeout
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                reply = self._read(response, deadline)
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code}: {self._excerpt(error, deadline)}"
            if error.code in RETRY_STATUS or error.code >= 500:
                raise _TryAgain(problem, _retry_after_seconds(error.headers.get("Retry-After"))) from None
            if error.code in FATAL_STATUS or 300 <= error.code < 400:
                raise AbortRun(
                    f"{self.name}: {problem}; expected 200 from {self.url}. Correct --send_to, the model's name or the "
                    "key, and run the command again"
                ) from None
            raise QueryFailed(f"{self.name}: {problem}") from None
        except (OSError, http.client.HTTPException) as error:
            raise _TryAgain(self._redact(f"no reply ({type(error).__name__}: {error})")) from None
        return _answer_text(self._redact(reply))

    def _read(self, response: Any, deadline: float) -> str:
        """Read the whole reply within the time limit, which also a server meets that sends a byte now and then."""
        parts, size = [], 0
        while part := response.read1(2**16):
            parts.append(part)
            size += len(part)
            if size > MAX_REPLY_BYTES:
                raise _TryAgain(f"a reply of over {MAX_REPLY_BYTES} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not finished after {self.timeout:g} s")
        return b"".join(parts).decode("utf-8", errors="replace")

    def _excerpt(self, error: urllib.error.HTTPError, deadline: float) -> str:
        try:
            text = self._read(error, deadline)
        except (OSError, http.client.HTTPException, _TryAgain):
            text = ""
        return " ".join(self._redact(text).split())[:200] or error.reason

    def _redact(self, text: str) -> str:
        """Return a text without the key, which some services quote in their errors."""
        return text.replace(self._key, "[key]") if self._key and len(self._key) >= MIN_KEY_LENGTH else text


def _split_address(url: str) -> urllib.parse.SplitResult:
    """Return the parts of an address. ValueError if it is none, or would show the key."""
    parts = urllib.parse.urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "the address has a user name, a password or a query (not repeated here); expected one like "
            "https://example.org/v1. Give the key in an environment variable, see --key_env"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no address; expected one like http://localhost:8000/v1")
    return parts


def _check_limits(
    tries: int, timeout: float, wait: float, max_tokens: int, temperature: float, extra: Mapping[str, Any]
) -> None:
    """Raise ValueError for a number out of range, or a field that a request may not change."""
    if tries < 1 or not 0 < timeout < math.inf or wait < 0 or max_tokens < 1:
        raise ValueError(
            f"tries and max_tokens are 1 or more, timeout is over 0, got {tries}, {max_tokens} and {timeout}"
        )
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is 0 or more, got {temperature}")
    if reserved := {"model", "messages", "stream", "n"} & set(extra):
        raise ValueError(f"a request's {', '.join(sorted(reserved))} cannot be given otherwise; leave it out")


def _check_key(key: str | None, parts: urllib.parse.SplitResult, local: bool) -> None:
    """Raise ValueError for a key that cannot be sent, or would be sent unencrypted."""
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        raise ValueError(
            "the key (not repeated here) holds a space, a line break or another character that no key has; "
            "set the environment variable again"
        )
    if key is not None and parts.scheme == "http" and not local:
        raise ValueError(
            f"a key would go to {parts.hostname} unencrypted; use https, or leave the key out (--key_env -)"
        )


class _TryAgain(Exception):
    """This try failed; `after`: seconds the service wants us to wait."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


def _retry_after_seconds(header: str | None) -> float:
    """Return the seconds of a Retry-After header, which may be a number or a date; 0 if it is neither."""
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, float(header or 0))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(header or "").timestamp() - time.time())
    return 0.0


def _message(prompt: str, frames: np.ndarray | None, sound: np.ndarray | None) -> dict[str, Any]:
    """Return one user message; without media its content is plain text, which every server takes."""
    if frames is None and sound is None:
        return {"role": "user", "content": prompt}
    parts: list[dict[str, Any]] = []
    for frame in frames if frames is not None else ():
        data = base64.b64encode(encode_jpeg(frame)).decode()
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}})
    if sound is not None:
        data = base64.b64encode(encode_wav(sound)).decode()
        parts.append({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
    return {"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}


def _answer_text(reply: str) -> str:
    """Return the answer in a reply. Raises _TryAgain or QueryFailed."""
    try:
        choice = json.loads(reply)["choices"][0]
        text, finish_reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise _TryAgain(f"no chat reply but {reply[:80]!r}") from None
    if finish_reason == "length":
        raise QueryFailed("the answer was cut off; raise --max_tokens")
    if finish_reason == "content_filter":
        raise QueryFailed("the service held the answer back (content_filter)")
    if not isinstance(text, str):
        raise _TryAgain(f"an answer that is no text but {type(text).__name__}")
    text = re.sub(r"^\s*<think>.*?</think>", "", text, count=1, flags=re.DOTALL).strip()
    if not text or text.startswith("<think>"):
        raise _TryAgain("an empty answer")
    return text


def encode_jpeg(frame: np.ndarray) -> bytes:
    """Encode uint8 (3, H, W) as JPEG."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0))).save(out, "JPEG", quality=90)
    return out.getvalue()


def encode_wav(sound: np.ndarray) -> bytes:
    """Encode float32 (N,) in [-1, 1] at `RATE` Hz as a 16-bit mono WAV."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
    return out.getvalue()


# ---------------------------------------------------------------------------------------------- a model on this machine
class LocalText:
    """A language model of `zoo.backbones`, greedy. It reads text only: it can be given neither frames nor sound.

    Args:
        path: as of `zoo.backbones.LLM`.
        max_tokens: of the answer. An answer that is cut off there is used as it is: small models rarely end by
            themselves.
    """

    local = True
    host = ""

    def __init__(self, path: str, max_tokens: int = 800) -> None:
        from zoo.backbones import LLM

        self.llm, self.max_tokens = LLM(path).eval(), max_tokens
        # by content, not by place: no path of this machine gets into a file, and other weights have other answers
        self.name = f"local:{Path(path).name}:{(self.llm.fingerprint() or '')[:12]}"
        self._one = threading.Lock()

    def __call__(self, prompt: str, frames: np.ndarray | None = None, sound: np.ndarray | None = None) -> str:
        import torch

        if frames is not None or sound is not None:
            raise AbortRun(f"{self.name} is a text model; it cannot be given frames or sound. {TEXT_ONLY}")
        tokenizer = self.llm.tokenizer
        if tokenizer is None:
            raise AbortRun(f"{self.name} has no tokenizer; give a model folder that has one")
        if getattr(tokenizer, "chat_template", None):
            message = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        else:
            ids = tokenizer(prompt)["input_ids"]
        with self._one, torch.inference_mode():
            prompt_ids = torch.tensor([ids], device=next(self.llm.parameters()).device)  # (1, P)
            prefix = self.llm.encode(prompt_ids, torch.ones_like(prompt_ids))
            completion = self.llm.sample(prefix, max_new_tokens=self.max_tokens, temperature=0.0)
        ids = completion.ids[0, 0][completion.mask[0, 0]].tolist()
        text: str = tokenizer.decode(ids, skip_special_tokens=True).strip()
        if not text:
            raise QueryFailed(f"{self.name}: an empty answer")
        return text


TEXT_ONLY = "Use it to merge, or give --frames 0 without --sound: every model then reads words and descriptions alone"
