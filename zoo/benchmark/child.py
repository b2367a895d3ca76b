"""The process that runs a command of a job, and notes what it costs."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo import interrupts
from zoo.storage import locked

HEARTBEAT = 2.0  # seconds between two notes of how long a part has been running
RUNNING = ".running"  # lock of the process that runs a job's command


def run_command(
    launch: Sequence[str],
    verb: str,
    args: list[str],
    cwd: str,
    log: str,
    note: str,
    before: dict[str, Any],
    threads: int,
) -> None:
    """Run a command as ``python -m zoo VERB ARGS`` would, in this process or in others, with its output in a file.

    Args:
        launch: words in front of the command that start it in several processes; none: it runs in this one.
        cwd: folder that it is given in.
        log: file of its output, beside which the lock of the command is.
        note: file of its cost, which is written again and again.
        before: cost of an interrupted command that this one continues.
        threads: of the command.
    """
    launched = Launched()
    interrupts.exit_with_parent(os.getppid(), launched.kill)
    os.chdir(cwd)  # the server's may be another
    with locked(Path(log).with_name(RUNNING), "the job", wait=True), open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        _zoo(launch, launched, verb, args, note, before, threads)


class Launched:
    """A command in processes that a launcher starts. It has a session of its own, so that a signal comes to it once."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, command: Sequence[str]) -> int:
        """Run a command to its end and pass on the signals that ask it to stop; return its exit code."""
        asked: list[int] = []

        def pass_on(number: int, frame: object) -> None:
            asked.append(number)
            if self._process is not None:
                self._process.send_signal(number)

        for number in interrupts.SIGNALS:
            signal.signal(number, pass_on)
        self._process = subprocess.Popen(command, start_new_session=True)
        for early in list(asked):  # while it was being started
            self._process.send_signal(early)
        return self._process.wait()

    def kill(self) -> None:
        """Kill the command."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _zoo(
    launch: Sequence[str],
    launched: Launched,
    verb: str,
    args: list[str],
    note: str,
    before: dict[str, Any],
    threads: int,
) -> None:
    print(f"$ {' '.join([*launch, 'zoo', verb, *args])}", flush=True)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    started, earlier_seconds = time.perf_counter(), before.get("seconds", 0.0)

    def write() -> None:
        users = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN) if launch else (resource.RUSAGE_SELF,)
        peak = max(resource.getrusage(who).ru_maxrss for who in users) / (1 if sys.platform != "darwin" else 1024)
        cost = {
            "seconds": earlier_seconds + time.perf_counter() - started,
            "interrupted": before.get("interrupted", 0),
            "peak_mib": max(before.get("peak_mib", 0.0), peak / 1024),
        }
        part = f"{note}.part"
        Path(part).write_text(json.dumps(cost))
        os.replace(part, note)

    stop = threading.Event()

    def beat() -> None:
        while True:
            write()  # at once: a command that is stopped in its first seconds was interrupted, too
            if stop.wait(HEARTBEAT):
                return

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    code = 0
    if launch:
        code = launched.run([*launch, sys.executable, "-m", "zoo", verb, *args])
    else:
        # this process would start a corpus' workers through a server, too, which cannot find a `__main__` that is run
        # like this one; by the platform's own way they start as those of the plain command do
        multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
        sys.argv = ["zoo", verb, *args]
        runpy.run_module("zoo", run_name="__main__", alter_sys=True)
    stop.set()
    beating.join()
    write()
    if code:
        sys.exit(code if code > 0 else 128 - code)  # as shells say of a signal
