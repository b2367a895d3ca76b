"""A real vLLM as a process of a benchmark: started by ``zoo rollouts serve --run``, killed, started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

URL = "http://127.0.0.1:8377"
START_SECONDS = 400  # that an engine may take to start on a busy machine


class Server:
    """An engine for a config, until the end of a ``with`` block.

    Args:
        python: of the environment that has vLLM.
        out: folder of engine.log.
        options: of the fit whose answers it writes.
    """

    def __init__(self, python: str, out: Path, options: Sequence[str]) -> None:
        line = [sys.executable, "-m", "zoo", "rollouts", "serve", *options, f"--model.sampler.url={URL}"]
        self._line = [*line, "--run", f"--vllm_python={python}"]
        self._log = out / "engine.log"

    def __enter__(self) -> Server:
        self.start()
        self.wait()
        return self

    def __exit__(self, *exception: object) -> None:
        self.end(signal.SIGTERM)

    def start(self) -> None:
        """Start it, in a process group of its own."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(self._line, stdout=log, stderr=log, start_new_session=True)

    def wait(self) -> None:
        """Wait until it answers."""
        end = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{URL}/health", timeout=2):
                return
            if self._process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the engine did not start, see {self._log}")
            time.sleep(1)

    def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to all its processes, and wait for the end of the first."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, how)
        self._process.wait()
