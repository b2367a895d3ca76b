"""Questions to models: any OpenAI-style chat endpoint, or a language model on this machine; each asked once.

    model = Endpoint("http://localhost:8000/v1", "some-vlm")
    with Answers(out / "answers.jsonl") as answers:
        ask = Asker(answers, max_failures=20)
        text = ask(model, "Describe the face.", frames, sound)     # from the file, if it stands there

Three rules. Nothing is sent unless the user named an address (`--send-to`; there is no default), and no frame and no
sound to another machine without `--yes-send-media`. The key comes from an environment variable and is written nowhere,
not even where a service quotes it. What was answered is on disk before the next question, and never asked again.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import email.utils
import hashlib
import http.client
import io
import ipaddress
import json
import math
import os
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import wave
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from jinja2 import Template, TemplateError
from PIL import Image

from zoo.media import MAX_SECONDS
from zoo.media.clips import RATE
from zoo.progress import reported
from zoo.prompts import load_template
from zoo.storage import InUse, locked, write_whole

Item, Result = TypeVar("Item"), TypeVar("Result")
TEMPLATES = Path(__file__).parent / "templates"
KEY_ENV = "ZOO_API_KEY"
LONGEST_WAIT = 60.0  # seconds before another try, whatever the service asks for
MOST_BYTES = 4 * 2**20  # of one reply
AGAIN = {408, 409, 425, 429}  # and every 5xx: the same request may succeed later
HOPELESS = {401, 403, 404}  # every other request would meet the same
LEAST_KEY = 8  # characters: "EMPTY" and the like are no secret, and taking them out would change answers
REFUSALS = re.compile(
    r"^\W*(?:i(?:['’]m| am) (?:sorry|unable|not able)|sorry\b|(?:as|i['’]m|i am) an ai\b|unfortunately, i\b"
    r"|i (?:cannot|can['’]?t|can not|won['’]?t) (?:help|assist|comply|provide|describe|see|view|hear|listen|determine)"
    r"|(?:非常|很)?抱歉|对不起|作为(?:一个|一名)?(?:AI|人工智能)|我(?:无法|不能))",
    re.IGNORECASE,
)
CJK = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")


class NoAnswer(ValueError):
    """One question has no answer; the next may have one."""


class Stopped(ValueError):
    """No further question should be asked. What was answered is kept."""


class Model(Protocol):
    """Whoever answers.

    Attributes:
        name: of the answers on disk; answers under different names are never mixed.
        local: whether it runs on this machine.
    """

    name: str
    local: bool

    def __call__(self, prompt: str, frames: np.ndarray | None = None, sound: np.ndarray | None = None) -> str:
        """The answer, not empty.

        Args:
            frames: uint8 (T, 3, H, W), in the order of time.
            sound: float32 (N,) in [-1, 1] at `RATE` Hz.

        Raises:
            NoAnswer: none to be had to this question.
            Stopped: none to be had to any.
        """
        ...


# -------------------------------------------------------------------------------------------------- a service elsewhere
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
        wait: seconds before the second try, doubled before each further one, at most `LONGEST_WAIT`; or what a
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
        parts = urllib.parse.urlsplit(url)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "the address has a user name, a password or a query (not repeated here); expected one like "
                "https://example.org/v1. Give the key in an environment variable, see --key-env"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no address; expected one like http://localhost:8000/v1")
        if tries < 1 or not 0 < timeout < math.inf or wait < 0 or max_tokens < 1:
            raise ValueError(
                f"tries and max_tokens are 1 or more, timeout is over 0, got {tries}, {max_tokens} and {timeout}"
            )
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature is 0 or more, got {temperature}")
        if reserved := {"model", "messages", "stream", "n"} & set(extra or {}):
            raise ValueError(f"a request's {', '.join(sorted(reserved))} cannot be given otherwise; leave it out")
        if key is not None and not re.fullmatch(r"[!-~]+", key):
            raise ValueError(
                "the key (not repeated here) holds a space, a line break or another character that no key has; "
                "set the environment variable again"
            )
        self.local = is_local(url)
        if key is not None and parts.scheme == "http" and not self.local:
            raise ValueError(
                f"a key would go to {parts.hostname} unencrypted; use https, or leave the key out (--key-env -)"
            )
        self.url, self.name, self.host = url.rstrip("/") + "/chat/completions", model, parts.hostname
        self.send_media, self.timeout, self.tries, self.wait = send_media, timeout, tries, wait
        fields = {"max_tokens": max_tokens, "temperature": temperature} | dict(extra or {})
        self._fields = {name: value for name, value in fields.items() if value is not None}
        self._key = key
        # a proxy may serve other machines, but what is meant for this one must not pass through it
        proxies = urllib.request.ProxyHandler({} if self.local else None)
        self._opener = urllib.request.build_opener(proxies, _NoRedirect)

    def __call__(self, prompt: str, frames: np.ndarray | None = None, sound: np.ndarray | None = None) -> str:
        if not (self.local or self.send_media) and (frames is not None or sound is not None):
            raise Stopped(
                f"frames or sound would go to {self.host}; nothing was sent. Give --yes-send-media if the clips' "
                "licence and the people in them allow it"
            )
        body = json.dumps({"model": self.name, "messages": [_message(prompt, frames, sound)], **self._fields}).encode()
        for attempt in range(1, self.tries + 1):
            try:
                return self._once(body)
            except _Again as error:
                if attempt == self.tries:
                    raise NoAnswer(f"{self.name}: {error} ({attempt} tries)") from None
                time.sleep(min(LONGEST_WAIT, max(self.wait * 2 ** (attempt - 1), error.after)))
        raise AssertionError  # the loop returns or raises

    def _once(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "zoo"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, body, headers, method="POST")
        until = time.monotonic() + self.timeout
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                reply = self._read(response, until)
        except urllib.error.HTTPError as error:
            said = f"HTTP {error.code}: {self._excerpt(error, until)}"
            if error.code in AGAIN or error.code >= 500:
                raise _Again(said, _seconds(error.headers.get("Retry-After"))) from None
            if error.code in HOPELESS or 300 <= error.code < 400:
                raise Stopped(
                    f"{self.name}: {said}; expected 200 from {self.url}. Correct --send-to, the model's name or the "
                    "key, and run the command again"
                ) from None
            raise NoAnswer(f"{self.name}: {said}") from None
        except (OSError, http.client.HTTPException) as error:
            raise _Again(self._hidden(f"no reply ({type(error).__name__}: {error})")) from None
        return _content(self._hidden(reply))

    def _read(self, response: Any, until: float) -> str:
        """The whole reply; a server that sends a byte now and then meets the time limit too."""
        parts, size = [], 0
        while part := response.read1(2**16):
            parts.append(part)
            size += len(part)
            if size > MOST_BYTES:
                raise _Again(f"a reply of over {MOST_BYTES} bytes")
            if time.monotonic() > until:
                raise TimeoutError(f"not finished after {self.timeout:g} s")
        return b"".join(parts).decode("utf-8", errors="replace")

    def _excerpt(self, error: urllib.error.HTTPError, until: float) -> str:
        try:
            text = self._read(error, until)
        except (OSError, http.client.HTTPException, _Again):
            text = ""
        return " ".join(self._hidden(text).split())[:200] or error.reason

    def _hidden(self, text: str) -> str:
        """Without the key, which some services quote in their errors."""
        return text.replace(self._key, "[key]") if self._key and len(self._key) >= LEAST_KEY else text


class _Again(Exception):
    """This try failed; `after`: seconds the service wants us to wait."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


def _seconds(header: str | None) -> float:
    """Retry-After: seconds, or a date; 0 if it is neither."""
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, float(header or 0))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(header or "").timestamp() - time.time())
    return 0.0


def _message(prompt: str, frames: np.ndarray | None, sound: np.ndarray | None) -> dict[str, Any]:
    """One user message; without media its content is plain text, which every server takes."""
    if frames is None and sound is None:
        return {"role": "user", "content": prompt}
    parts: list[dict[str, Any]] = []
    for frame in frames if frames is not None else ():
        data = base64.b64encode(jpeg(frame)).decode()
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}})
    if sound is not None:
        data = base64.b64encode(wav(sound)).decode()
        parts.append({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
    return {"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}


def _content(reply: str) -> str:
    """The answer in a reply. Raises _Again or NoAnswer."""
    try:
        choice = json.loads(reply)["choices"][0]
        text, ended = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise _Again(f"no chat reply but {reply[:80]!r}") from None
    if ended == "length":
        raise NoAnswer("the answer was cut off; raise --max-tokens")
    if ended == "content_filter":
        raise NoAnswer("the service held the answer back (content_filter)")
    if not isinstance(text, str):
        raise _Again(f"an answer that is no text but {type(text).__name__}")
    text = re.sub(r"^\s*<think>.*?</think>", "", text, count=1, flags=re.DOTALL).strip()
    if not text or text.startswith("<think>"):
        raise _Again("an empty answer")
    return text


def jpeg(frame: np.ndarray) -> bytes:
    """uint8 (3, H, W) -> JPEG."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0))).save(out, "JPEG", quality=90)
    return out.getvalue()


def wav(sound: np.ndarray) -> bytes:
    """float32 (N,) in [-1, 1] at `RATE` Hz -> 16-bit mono WAV."""
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

    def __init__(self, path: str, max_tokens: int = 800) -> None:
        from zoo.backbones import LLM

        self.llm, self.max_tokens = LLM(path).eval(), max_tokens
        # by content, not by place: no path of this machine gets into a file, and other weights have other answers
        self.name = f"local:{Path(path).name}:{(self.llm.fingerprint() or '')[:12]}"
        self._one = threading.Lock()

    def __call__(self, prompt: str, frames: np.ndarray | None = None, sound: np.ndarray | None = None) -> str:
        import torch

        if frames is not None or sound is not None:
            raise Stopped(f"{self.name} is a text model; it cannot be given frames or sound. {TEXT_ONLY}")
        tokenizer = self.llm.tokenizer
        if tokenizer is None:
            raise Stopped(f"{self.name} has no tokenizer; give a model folder that has one")
        if getattr(tokenizer, "chat_template", None):
            message = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        else:
            ids = tokenizer(prompt)["input_ids"]
        with self._one, torch.inference_mode():
            prompt_ids = torch.tensor([ids], device=next(self.llm.parameters()).device)  # (1, P)
            prefix = self.llm.encode(prompt_ids, torch.ones_like(prompt_ids))
            made = self.llm.sample(prefix, max_new_tokens=self.max_tokens, temperature=0.0)
        text = tokenizer.decode(made.ids[0, 0][made.mask[0, 0]].tolist(), skip_special_tokens=True).strip()
        if not text:
            raise NoAnswer(f"{self.name}: an empty answer")
        return text


TEXT_ONLY = "Use it to merge, or give --frames 0 without --sound: every model then reads words and descriptions alone"


# ----------------------------------------------------------------------------------------------------- asked only once
class Answers:
    """The file of answers: a line ``{"key", "model", "answer"}`` each, on disk before `add` returns.

    Delete a line to have that question asked again. The unfinished last line of a killed run is taken off.

    Args:
        path: made with its folder if it is not there. One process at a time may hold it.

    Raises:
        ValueError: a line that is no answer, or another process at work on the file.
    """

    def __init__(self, path: Path) -> None:
        self._lock_file = contextlib.ExitStack()
        try:
            self._lock_file.enter_context(locked(path.with_name(f".{path.name}.lock"), f"the file {path}"))
        except InUse:
            raise ValueError(f"another run is at work on {path}; wait for it, or give another --out") from None
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}
        try:
            with open(self._fd, "rb", closefd=False) as file:
                content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:
                os.ftruncate(self._fd, len(whole))
            for number, line in enumerate(whole.decode("utf-8").split("\n")[:-1], 1):
                try:
                    row = json.loads(line)
                    self._known[row["key"]] = row["answer"]
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"{path} line {number} is no answer ({error}); expected "
                        '{"key": ..., "model": ..., "answer": ...}. Delete the line'
                    ) from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)
        self._lock_file.close()

    def get(self, key: str) -> str | None:
        return self._known.get(key)

    def add(self, key: str, model: str, answer: str) -> None:
        line = json.dumps({"key": key, "model": model, "answer": answer}, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            os.write(self._fd, line)  # in one piece
            os.fsync(self._fd)
            self._known[key] = answer


class Asker:
    """Asks each question once; stops after too many that have no answer.

    Args:
        answers: those there are; new ones are added.
        max_failures: questions without an answer after which `Stopped` is raised, over the whole run.
    """

    def __init__(self, answers: Answers, max_failures: int = 20) -> None:
        self.answers, self.max_failures = answers, max_failures
        self.failures, self.asked = 0, 0
        self._lock = threading.Lock()

    def __call__(
        self, model: Model, prompt: str, frames: np.ndarray | None = None, sound: np.ndarray | None = None
    ) -> str:
        key = question(model.name, prompt, frames, sound)
        known = self.answers.get(key)
        if known is not None:
            return known
        if self.failures > self.max_failures:
            raise self._stopped()
        try:
            answer = model(prompt, frames, sound)
        except NoAnswer as error:
            with self._lock:
                self.failures += 1
            if self.failures > self.max_failures:
                raise self._stopped(error) from None
            raise
        with self._lock:
            self.asked += 1
        self.answers.add(key, model.name, answer)
        return answer

    def _stopped(self, last: object = "see above") -> Stopped:
        return Stopped(
            f"stopped: {self.failures} questions had no answer (--max-failures {self.max_failures}), the last: {last}. "
            "What was answered is kept; run the command again to go on"
        )


def question(model: str, prompt: str, frames: np.ndarray | None, sound: np.ndarray | None) -> str:
    """sha256 of the model's name, the prompt and the frames and samples themselves. Neither the address nor the length
    or temperature of the answer is part of it."""
    media = hashlib.sha256()
    for array in (frames, sound):
        media.update(f"{None if array is None else (array.dtype.str, array.shape)}".encode())
        media.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return hashlib.sha256(json.dumps([model, prompt, media.hexdigest()]).encode()).hexdigest()


def in_order(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, what: str = "done", unit: str = "utterances"
) -> Iterator[Result]:
    """``work`` of every item, several at once, results in the items' order, with lines of progress. After an exception
    nothing more is begun; what is under way is finished first, so that its answers are kept.

    Args:
        what, unit: for the lines of progress: what is done, and with what (plural).
    """
    return reported(_in_order(work, items, workers), len(items), what, unit)


def _in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    if workers == 1:
        yield from map(work, items)
        return
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) >= 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def rubbish(text: str, max_words: int, language: str, forbidden: Collection[str] = ()) -> str | None:
    """Why an answer cannot be used; None if it can.

    Args:
        max_words: a longer answer is none; a Chinese character counts as a word.
        language: en or zh.
        forbidden: words that must not occur, in any case; in Chinese anywhere, else as whole words.
    """
    chinese = len(CJK.findall(text))
    letters = sum(char.isalpha() for char in text)
    words = len(CJK.sub(" ", text).split()) + chinese
    if not letters:
        return "empty"
    if REFUSALS.match(text):
        return f"a refusal: {text[:60]!r}"
    if re.search(r"<(?:!doctype|html|body)\b", text, re.IGNORECASE):
        return "a web page"
    if words > max_words:
        return f"{words} words, over {max_words}"
    if language == "zh" and chinese < 0.3 * letters:
        return f"not in Chinese: {text[:60]!r}"
    if language == "en" and chinese > 0.1 * letters:
        return f"not in English: {text[:60]!r}"
    for word in forbidden:
        pattern = re.escape(word) if CJK.search(word) else rf"\b{re.escape(word)}\b"
        if re.search(pattern, text, re.IGNORECASE):
            return f"names the label word {word!r}"
    return None


# ------------------------------------------------------------------------------------------------ what a model is shown
def template(given: Path | None, name: str, language: str) -> tuple[Template, str]:
    """A prompt: the user's own file or ours of this language; and the beginning of its sha256.

    Raises:
        FileNotFoundError, ValueError: no such file, no template.
    """
    path = given if given is not None else TEMPLATES / f"{name}_{language}.txt"
    if not path.is_file():
        raise FileNotFoundError(f"no prompt template {path}; give a text file, or leave it out to use our own")
    return load_template(str(path), TEMPLATES), hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def filled(prompt: Template, **shown: object) -> str:
    """The text of a prompt; ValueError naming what a template asks for and is not there."""
    try:
        return prompt.render(**shown).strip()
    except TemplateError as error:
        raise ValueError(f"the prompt template cannot be filled: {error}; it may use {', '.join(shown)}") from None


# --------------------------------------------------------------------------------------------- files of a part-done run
def same_settings(path: Path, settings: Mapping[str, Any], others: Iterable[Path]) -> None:
    """Writes what the files of a folder are made with, or compares it with what a killed run wrote.

    Args:
        others: files that only a run with these settings may have made.

    Raises:
        ValueError: other settings; rows of two kinds would be mixed.
        FileExistsError: one of the others is there, but no settings.
    """
    if not path.exists():
        if there := [p for p in others if p.exists()]:
            raise FileExistsError(f"{there[0]} exists and was not made by this command; give another --out")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        differs = [
            f"{k}: {before.get(k)!r}, now {settings.get(k)!r}"
            for k in sorted(before.keys() | settings.keys())
            if before.get(k) != settings.get(k)
        ]
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); expected what this command writes. Give another --out"
        ) from None
    if differs:
        raise ValueError(
            f"{path.parent} was begun with other settings ({'; '.join(differs)}); its rows would be of two kinds. "
            "Give the same settings, or another --out"
        )


# ---------------------------------------------------------------------------------------------------------- the options
def add_options(parser: argparse.ArgumentParser) -> None:
    """What every command that asks models has in common."""
    add = parser.add_argument
    add(
        "--send-to",
        nargs="+",
        metavar="URL",
        default=[],
        help="address of an OpenAI-style API, e.g. http://localhost:8000/v1; one for all models, or one for each in "
        "their order. There is no default: without it nothing is sent anywhere",
    )
    add(
        "--yes-send-media",
        action="store_true",
        help="frames and sound of the clips may leave this machine; the clips' licence is yours to mind",
    )
    add(
        "--key-env",
        nargs="+",
        metavar="NAME",
        default=[],
        help=f"environment variable that holds the key, one for all addresses or one for each; - for none. {KEY_ENV} "
        "if not given and set",
    )
    add("--size", type=int, default=448, help="shorter side of the frames in pixels")
    add("--language", choices=["en", "zh"], default="en", help="of prompts and answers")
    add("--limit", type=int, help="use the first so many only")
    add("--timeout", type=float, default=120.0, help="seconds one request may take")
    add("--tries", type=int, default=4, help="how often a question is sent at most")
    add("--max-failures", type=int, default=20, help="questions without an answer before the run stops")
    add("--max-tokens", type=int, default=800, help="longest answer")
    add("--temperature", type=float, default=0.0, help="of the answers; 0 is greedy")
    add("--request", help="JSON object of further fields of each request; null takes one out")
    add("--workers", type=int, default=1, help="questions under way at once")
    add("--cache", type=Path, help="folder of decoded frames and sounds, as of `zoo prepare media`")
    add("--clip_timeout", type=float, default=30.0, help="seconds one clip may take to decode")
    add("--max_clip_seconds", type=float, default=MAX_SECONDS, help="a longer clip is left out, and listed")


def models(names: Sequence[str], options: Any) -> list[Model]:
    """The models that the command line names; ``local:PATH`` is a language model on this machine.

    Raises:
        ValueError: no address for a model, a wrong number of addresses or keys, a key that is not there.
    """
    remote = [name for name in names if not name.startswith("local:")]
    urls = list(options.send_to)
    if remote and not urls:
        raise ValueError(
            f"no address for {', '.join(remote)}; nothing was sent. Give --send-to URL, e.g. "
            "http://localhost:8000/v1, or a language model of this machine as local:PATH"
        )
    if urls and len(urls) not in (1, len(remote)):
        raise ValueError(
            f"--send-to gives {len(urls)} addresses; expected 1, or {len(remote)}: one for each of {', '.join(remote)}"
        )
    for name, least in (("size", 1), ("tries", 1), ("max_failures", 0), ("max_tokens", 1), ("workers", 1)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} is {least} or more, got {getattr(options, name)}")
    urls = urls * len(remote) if len(urls) == 1 else urls
    keys = _keys(urls, list(options.key_env))
    try:
        extra = json.loads(options.request) if options.request else None
        if not isinstance(extra, dict | None):
            raise ValueError(f"a {type(extra).__name__}")
    except ValueError as error:
        raise ValueError(f'--request is no JSON object ({error}); expected one like {{"seed": 1}}') from None
    made: list[Model] = []
    served = iter(zip(urls, keys, strict=True))
    for name in names:
        if name.startswith("local:"):
            made.append(LocalText(name.removeprefix("local:"), options.max_tokens))
        else:
            url, key = next(served)
            made.append(
                Endpoint(
                    url,
                    name,
                    key,
                    options.yes_send_media,
                    options.timeout,
                    options.tries,
                    1.0,
                    options.max_tokens,
                    options.temperature,
                    extra,
                )
            )
    return made


def _keys(urls: Sequence[str], names: Sequence[str]) -> list[str | None]:
    """The key of each address, from the environment."""
    if not names:
        key = os.environ.get(KEY_ENV) or None
        if key is not None and len({urllib.parse.urlsplit(url).netloc for url in urls}) > 1:
            raise ValueError(
                f"{KEY_ENV} is set, and there are several addresses; expected to be told whose key it is. Give "
                "--key-env NAME for each address (- for none)"
            )
        return [key] * len(urls)
    if len(names) not in (1, len(urls)):
        raise ValueError(f"--key-env gives {len(names)} names; expected 1, or {len(urls)}: one for each address")
    for name in names:
        if not re.fullmatch(r"-|[A-Za-z_][A-Za-z0-9_]{0,63}", name):
            raise ValueError(
                "--key-env is no name of an environment variable (not repeated here, it may be the key); expected one "
                f"like {KEY_ENV}. Put the key into a variable and give its name"
            )
        if name != "-" and not os.environ.get(name):
            raise ValueError(f"the environment variable {name} is not set; expected the key in it. Set it, or give -")
    found = [None if name == "-" else os.environ[name] for name in names]
    return found * len(urls) if len(found) == 1 else found


def announce(shown: Sequence[tuple[Model, str, bool]], send_media: bool) -> None:
    """Prints what leaves this machine, before anything does.

    Args:
        shown: of each model: what it is given, in words, and whether frames or sound are among it.
        send_media: whether the user agreed to that (``--yes-send-media``).

    Raises:
        ValueError: clips would leave, and the user did not agree.
    """
    away = [(model, what, media) for model, what, media in shown if not model.local]
    for model, what, _ in away:
        print(f"leaves this machine, to {model.host} ({model.name}): {what}", flush=True)
    if asking := sorted({model.host for model, _, media in away if media and not send_media}):
        raise ValueError(
            f"frames or sound of clips would go to {', '.join(asking)}; nothing was sent. Give --yes-send-media if the "
            "clips' licence and the people in them allow it"
        )
