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
import io
import json
import math
import re
import threading
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from zoo.endpoints import Refused, Server, TryAgain, Unanswered, is_local
from zoo.media.clips import RATE

FATAL_STATUS = {401, 403, 404}  # every other request would meet the same; a redirect, too


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


class Endpoint:
    """``POST {url}/chat/completions``: text, pictures as base64 JPEG, sound as base64 WAV (``input_audio``).

    Args:
        url: where the API begins, e.g. ``http://localhost:8000/v1``.
        model: name of the model there.
        key: sent as ``Authorization: Bearer``; None: no such header.
        send_media: whether frames and sound may go to another machine than this one.
        timeout: seconds one request may take, all of it.
        tries: how often one question is sent at most: again after 429, 5xx, no or half a reply, an empty answer.
        wait: seconds before the second try, doubled before each further one, at most a minute; or what a
            Retry-After header says, if that is more.
        max_tokens: of the answer; one that is cut off there is none.
        temperature: 0 is greedy.
        extra: further fields of the request, or other values of these; None takes a field out, e.g.
            ``{"max_tokens": None, "max_completion_tokens": 800}``.
        pinned: refuse a reply that says another model gave it: the name stands for whatever the service likes.

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
        pinned: bool = False,
    ) -> None:
        self.local = is_local(url)
        _check_limits(max_tokens, temperature, extra or {})
        self._server = Server(url, key, timeout, tries, wait)
        self.name, self.host, self.send_media, self.pinned = model, self._server.host, send_media, pinned
        fields = {"max_tokens": max_tokens, "temperature": temperature} | dict(extra or {})
        self._fields = {name: value for name, value in fields.items() if value is not None}

    def __call__(self, prompt: str, frames: np.ndarray | None = None, sound: np.ndarray | None = None) -> str:
        if not (self.local or self.send_media) and (frames is not None or sound is not None):
            raise AbortRun(
                f"frames or sound would go to {self.host}; nothing was sent. Give --yes_send_media if the clips' "
                "licence and the people in them allow it"
            )
        body = {"model": self.name, "messages": [_message(prompt, frames, sound)], **self._fields}
        path = "/chat/completions"
        try:
            return self._server.ask(path, body, self._read)
        except Unanswered as error:
            raise QueryFailed(f"{self.name}: {error}") from None
        except Refused as error:
            if error.status in FATAL_STATUS or 300 <= error.status < 400:
                raise AbortRun(
                    f"{self.name}: {error}; expected 200 from {self._server.url}{path}. Correct --send_to, the model's "
                    "name or the key, and run the command again"
                ) from None
            raise QueryFailed(f"{self.name}: {error}") from None

    def _read(self, reply: str) -> str:
        """Return the answer in a reply. Raises TryAgain, QueryFailed or AbortRun."""
        text = _answer_text(reply)
        answered_as = json.loads(reply).get("model", self.name)
        if self.pinned and answered_as != self.name:
            raise AbortRun(
                f"{self._server.url} was asked for {self.name} and answered as {answered_as}; expected a name that "
                "means one model. Give the name it answers as"
            )
        return text


def _check_limits(max_tokens: int, temperature: float, extra: Mapping[str, Any]) -> None:
    """Raise ValueError for a number out of range, or a field that a request may not change."""
    if max_tokens < 1:
        raise ValueError(f"max_tokens is 1 or more, got {max_tokens}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is 0 or more, got {temperature}")
    if reserved := {"model", "messages", "stream", "n"} & set(extra):
        raise ValueError(f"a request's {', '.join(sorted(reserved))} cannot be given otherwise; leave it out")


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
    """Return the answer in a reply. Raises TryAgain or QueryFailed."""
    try:
        choice = json.loads(reply)["choices"][0]
        text, finish_reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise TryAgain(f"no chat reply but {reply[:80]!r}") from None
    if finish_reason == "length":
        raise QueryFailed("the answer was cut off; raise --max_tokens")
    if finish_reason == "content_filter":
        raise QueryFailed("the service held the answer back (content_filter)")
    if not isinstance(text, str):
        raise TryAgain(f"an answer that is no text but {type(text).__name__}")
    text = re.sub(r"^\s*<think>.*?</think>", "", text, count=1, flags=re.DOTALL).strip()
    if not text or text.startswith("<think>"):
        raise TryAgain("an empty answer")
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
