"""Answers of models on disk, so that every question is asked once, also by a run that was killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from zoo.backbones.llm_client import AbortRun, ChatModel, QueryFailed
from zoo.progress import reported
from zoo.storage import InUse, locked, write_whole

Item = TypeVar("Item")
Result = TypeVar("Result")


class AnswerStore:
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

    def __enter__(self) -> AnswerStore:
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


class CachedClient:
    """A client that asks each question once, and stops after too many that have no answer.

    Attributes:
        sent: questions that the store had no answer to.

    Args:
        store: the answers there are; new ones are added.
        max_failures: questions without an answer after which `AbortRun` is raised, over the whole run.
    """

    def __init__(self, store: AnswerStore, max_failures: int = 20) -> None:
        self.store, self.max_failures = store, max_failures
        self.failures, self.sent = 0, 0
        self._lock = threading.Lock()

    def __call__(
        self, model: ChatModel, prompt: str, frames: np.ndarray | None = None, sound: np.ndarray | None = None
    ) -> str:
        key = question_key(model.name, prompt, frames, sound)
        stored = self.store.get(key)
        if stored is not None:
            return stored
        if self.failures > self.max_failures:
            raise self._too_many_failures()
        try:
            answer = model(prompt, frames, sound)
        except QueryFailed as error:
            with self._lock:
                self.failures += 1
            if self.failures > self.max_failures:
                raise self._too_many_failures(error) from None
            raise
        with self._lock:
            self.sent += 1
        self.store.add(key, model.name, answer)
        return answer

    def _too_many_failures(self, last: object = "see above") -> AbortRun:
        return AbortRun(
            f"stopped: {self.failures} questions had no answer (--max_failures {self.max_failures}), the last: {last}. "
            "What was answered is kept; run the command again to go on"
        )


def question_key(model: str, prompt: str, frames: np.ndarray | None, sound: np.ndarray | None) -> str:
    """Return the sha256 of the model's name, the prompt and the frames and samples themselves.

    Neither the address nor the length or temperature of the answer is part of it.
    """
    media = hashlib.sha256()
    for array in (frames, sound):
        media.update(f"{None if array is None else (array.dtype.str, array.shape)}".encode())
        media.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return hashlib.sha256(json.dumps([model, prompt, media.hexdigest()]).encode()).hexdigest()


def map_in_order(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, what: str = "done", unit: str = "utterances"
) -> Iterator[Result]:
    """Yield ``work`` of every item, several at once, in the items' order, with lines of progress.

    After an exception nothing more is begun; what is under way is finished first, so that its answers are kept.

    Args:
        work: done in threads.
        items: what it is done with.
        workers: how many at once.
        what, unit: for the lines of progress: what is done, and with what (plural).
    """
    return reported(_map_in_order(work, items, workers), len(items), what, unit)


def _map_in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
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


def keep_settings(path: Path, settings: Mapping[str, Any], others: Iterable[Path]) -> None:
    """Write what the files of a folder are made with, or compare it with what a killed run wrote.

    Args:
        path: of the settings.
        settings: of this run.
        others: files that only a run with these settings may have made.

    Raises:
        ValueError: other settings; rows of two kinds would be mixed.
        FileExistsError: one of the others is there, but no settings.
    """
    if not path.exists():
        if existing := [p for p in others if p.exists()]:
            raise FileExistsError(f"{existing[0]} exists and was not made by this command; give another --out")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
        return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        differs = [
            f"{k}: {earlier.get(k)!r}, now {settings.get(k)!r}"
            for k in sorted(earlier.keys() | settings.keys())
            if earlier.get(k) != settings.get(k)
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
