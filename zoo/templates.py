"""Jinja templates with a limit: a template file may be somebody else's, and a loop in it need not end.

A template is rendered in a process of its own, forked when the first one is needed: there the kernel ends what takes
too long or too much memory, also inside a single operation, which no clock of Python's could. The templates themselves
are sandboxed by whoever makes their environment.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

SECONDS = 10.0  # of computing, for one text
PATIENCE = 120.0  # seconds to wait for them, on a machine that is busy
MEMORY = 2**29  # bytes that the templates may take together
LONGEST = 2**24  # characters of a text


class BadTemplate(ValueError):
    """A template cannot be rendered; the message says why."""


class Renderer:
    """The process that renders. Each process of a program (a loader's worker) has its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._process: int | None = None
        self._ask = self._answer = -1

    def __call__(self, function: Callable[..., str], *args: Any) -> str:
        """``function(*args)`` within the limits.

        Args:
            function: of a module, so that its name suffices; returns a text.
            args: what can be written as JSON, and data classes, which arrive as mappings of their fields
                and properties.

        Raises:
            BadTemplate: it failed, took too long or too much memory, or made too long a text.
        """
        with self._lock:
            request = json.dumps([function.__module__, function.__name__, *args], default=_plain).encode()
            if self._process is None:
                self._start()
            try:
                _send(self._ask, struct.pack("<Q", len(request)) + request)
                good, text = self._receive()
            except (EOFError, OSError):
                self.close()
                raise BadTemplate(
                    f"it did not end within {SECONDS:.0f} s of computing and {MEMORY >> 20} MiB of memory"
                ) from None
        if not good:
            raise BadTemplate(text)
        return text

    def _receive(self) -> tuple[bool, str]:
        ready, _, _ = select.select([self._answer], [], [], PATIENCE)
        if not ready:
            raise EOFError
        good, size = struct.unpack("<?Q", _exactly(self._answer, 9))
        if size > 4 * LONGEST:
            raise EOFError
        return good, _exactly(self._answer, size).decode("utf-8", "surrogatepass")

    def _start(self) -> None:
        (theirs, ask), (answer, ours) = os.pipe(), os.pipe()
        process = os.fork()
        if process == 0:
            try:
                os.close(ask)  # else it would wait for itself
                os.close(answer)
                _serve(theirs, ours)
            finally:
                os._exit(0)
        self._process, self._ask, self._answer = process, ask, answer
        os.close(theirs)
        os.close(ours)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            os.close(self._ask)
            os.close(self._answer)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # somebody who waits for every child was faster
                os.waitpid(self._process, 0)
            self._forget()

    def _after_fork(self) -> None:
        """In a forked child: the process belongs to the parent."""
        if self._process is not None:
            os.close(self._ask)
            os.close(self._answer)
        self._lock = threading.Lock()
        self._forget()


def _serve(requests: int, answers: int) -> None:
    """Answers until the parent closes its end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C is the parent's; this process ends with it
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    with contextlib.suppress(OSError, ValueError):  # not everywhere; then only the time is limited
        most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            (size,) = struct.unpack("<Q", _exactly(requests, 8))
            module, name, *args = json.loads(_exactly(requests, size))
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # when it is over, the kernel ends this process
        try:
            text, good = getattr(importlib.import_module(module), name)(*args), True
            if len(text) > LONGEST:
                text, good = f"it makes a text of {len(text)} characters, more than {LONGEST}", False
        except MemoryError:
            text, good = f"it takes more than {MEMORY >> 20} MiB of memory", False
        except RecursionError:
            text, good = "it calls itself without end", False
        except Exception as error:  # whatever a template does is told to the parent, which raises it
            text, good = f"{type(error).__name__}: {str(error)[:300]}", False
        signal.setitimer(signal.ITIMER_PROF, 0)
        answer = text.encode("utf-8", "surrogatepass")
        _send(answers, struct.pack("<?Q", good, len(answer)) + answer)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        names = [f.name for f in fields(value)]
        names += [name for name, member in vars(type(value)).items() if isinstance(member, property)]
        return {name: getattr(value, name) for name in names}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"a template cannot be given a {type(value).__name__}")


def _send(handle: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]


def _exactly(handle: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(handle, min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


bounded = Renderer()
os.register_at_fork(after_in_child=bounded._after_fork)
