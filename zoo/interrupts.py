"""SIGINT (Ctrl-C), SIGTERM (every scheduler's signal) and SIGUSR1 (which srun passes on to its tasks, where SIGTERM to
srun would kill them) stop a command so that nothing done is lost.

A command that can stop anywhere is left by `Interrupted` at the first signal. Training cannot: inside `deferred` the
first signal is noted, `requested` tells it, and the loop ends by itself at the next place where it can be saved; the
same signal again leaves at once. (Another one does not: a scheduler, or a parent process, may send its own after the
terminal has sent Ctrl-C to all.) Whoever sends it once more ends the process without any cleaning up; files are whole
all the same. The process ends with the exit code that shells and schedulers expect, 128 plus the number of the signal.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(KeyboardInterrupt):
    """The command was asked to stop by a signal."""


_process = 0  # that listens; a forked child has handlers of its own
_received: list[signal.Signals] = []
_deferred: str | None = None  # what is said at the first signal while the command goes on to a safe place


def listen() -> None:
    """Take over these signals in this process, forgetting what an earlier command received.

    In another thread than the main one, where Python allows no handlers, nothing happens.
    """
    global _process, _deferred
    if threading.current_thread() is not threading.main_thread():
        return
    _process, _deferred = os.getpid(), None
    _received.clear()
    for number in SIGNALS:
        signal.signal(number, _handle)


def process() -> int:
    """Id of the process that listens; 0 if none does."""
    return _process


def requested() -> signal.Signals | None:
    """Return the first signal that asked this command to stop, or None."""
    return _received[0] if _received else None


def passed_on(number: int) -> None:
    """Note a signal that another process of the same command received and passed on."""
    if not _received:
        _received.append(signal.Signals(number))


def exit_code() -> int | None:
    """Return what the process ends with after a signal (130, 143 or 138); None if there was none."""
    return 128 + _received[0] if _received else None


@contextlib.contextmanager
def deferred(message: str) -> Iterator[None]:
    """Inside, the first signal prints ``message`` and is only noted; the same one again raises `Interrupted`."""
    global _deferred
    before, _deferred = _deferred, message
    try:
        yield
    finally:
        _deferred = before


def _handle(number: int, frame: FrameType | None) -> None:
    received = signal.Signals(number)
    times, first = _received.count(received), not _received
    _received.append(received)
    if _deferred is not None and times == 0:
        if first:
            _write(_deferred)
        return
    if times > (_deferred is not None):
        os._exit(128 + received)  # what cleaning up waits for, is not waited for
    raise Interrupted(received.name)


def _write(line: str) -> None:
    """Print a line, but not with print(): a signal may arrive inside one."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(1, f"{line}\n".encode())


def exit_with_parent(parent: int, before: Callable[[], None] = lambda: None) -> None:
    """End this process as soon as the process ``parent`` is gone: a killed run must not go on writing.

    Args:
        before: is done first.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        before()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _in_forked_child() -> None:
    """Let a loader's worker go on until its parent, which got the signal as well, has no more use for it."""
    if _process and _process != os.getpid():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_in_forked_child)


def _at_exit() -> None:
    """Ignore signals from now on: while Python clears up they change nothing about how the command ended."""
    if _process == os.getpid():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


atexit.register(_at_exit)
