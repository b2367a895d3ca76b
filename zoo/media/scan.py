"""Decode many files into a cache, several at a time."""

from __future__ import annotations

import contextlib
import os
import queue
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from zoo.media.cache import Media
from zoo.media.container import Unreadable
from zoo.media.frames import normalize_request
from zoo.media.worker import close_current_decoder

Call = tuple[Callable[..., object], Mapping[str, Any]]  # a function of a path, and its other arguments


@dataclass(frozen=True)
class Scan:
    """Result of `scan`.

    Attributes:
        files: how many were looked at.
        arrays: how many arrays are there now, decoded or found in the cache.
        unreadable: one per file and request that failed, with the path as given and the reason.
        damaged: paths of which only a part could be read -> what is wrong.
        seconds: how long it took.
    """

    files: int
    arrays: int
    unreadable: tuple[Unreadable, ...]
    damaged: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def scan(
    paths: Iterable[str | os.PathLike[str]],
    media: Media,
    workers: int = 2,
    frames: Mapping[str, Any] | None = None,
    waveform: Mapping[str, Any] | None = None,
    report: Callable[[int], object] = int,
) -> Scan:
    """Decode many files into the cache of `media`, `workers` at a time, each in its own decoding process.

    Args:
        frames: arguments of `Media.frames`, e.g. {"n": 8, "size": 224}; None: no frames.
        waveform: arguments of `Media.waveform`, e.g. {}; None: no sound.
        report: called after each file with the number of files that are done, from any thread.

    Raises:
        ValueError: neither frames nor waveform is wanted.
    """
    if frames is None and waveform is None:
        raise ValueError("scan decodes nothing: give frames={...}, waveform={...} or both")
    if frames is not None:
        normalize_request(**{"n": None, "position": "uniform", "size": None} | dict(frames))
    start = time.perf_counter()
    paths = list(paths)
    calls: list[Call] = [(media.frames, frames)] if frames is not None else []
    calls += [(media.waveform, waveform)] if waveform is not None else []
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for i in range(len(paths)):
        waiting.put(i)
    results: list[tuple[str | None, list[Unreadable]]] = [(None, [])] * len(paths)

    def work() -> None:
        try:
            while True:
                i = waiting.get_nowait()
                results[i] = _scan_file(paths[i], media, calls)
                report(len(paths) - waiting.qsize())
        except queue.Empty:
            return
        finally:
            close_current_decoder()

    _run_in_threads(work, workers, waiting)
    unreadable = tuple(error for _, errors in results for error in errors)
    reasons = {row["sha256"]: row["reason"] for row in media.damaged}
    damaged = {
        os.fspath(p): reasons[sha256] for p, (sha256, _) in zip(paths, results, strict=True) if sha256 in reasons
    }
    arrays = len(paths) * len(calls) - len(unreadable)
    return Scan(len(paths), arrays, unreadable, damaged, time.perf_counter() - start)


def _scan_file(
    path: str | os.PathLike[str], media: Media, calls: Iterable[Call]
) -> tuple[str | None, list[Unreadable]]:
    """Decode one file, and return the hash of its bytes, None for a missing file, and what failed."""
    errors: list[Unreadable] = []
    for read, arguments in calls:
        try:
            read(path, **arguments)
        except Unreadable as error:
            errors.append(error)
    try:
        return media.sha256_of(path), errors
    except Unreadable:
        return None, errors


def _run_in_threads(work: Callable[[], None], workers: int, waiting: queue.SimpleQueue[int]) -> None:
    """Run `work` in several threads until nothing is waiting; an error in one ends all."""
    with ThreadPoolExecutor(workers) as pool:
        try:
            for future in [pool.submit(work) for _ in range(workers)]:
                future.result()
        except BaseException:  # Ctrl-C, or a mistake: do not go through all the other files first
            with contextlib.suppress(queue.Empty):
                while True:
                    waiting.get_nowait()
            raise
