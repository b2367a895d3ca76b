"""How much memory a process uses."""

from __future__ import annotations

import re
import threading
from pathlib import Path


def resident() -> tuple[int, int]:
    """Return the bytes of a process' own memory, and of mapped files, that are in memory."""
    status = Path("/proc/self/status").read_text()
    own, mapped = (int(re.search(rf"^{key}:\s*(\d+) kB", status, re.MULTILINE)[1]) for key in ("RssAnon", "RssFile"))
    return own * 1024, mapped * 1024


class Memory:
    """What this process grew by while the block ran, in bytes: own and mapped memory at its end, own at most.

    Args:
        interval: seconds between two looks.
    """

    def __init__(self, interval: float = 0.02) -> None:
        self.interval = interval

    def __enter__(self) -> Memory:
        self.before, self.mapped_before = resident()
        self.most, self._over = self.before, threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(self.interval):
            self.most = max(self.most, resident()[0])

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()
        own, mapped = resident()
        self.own, self.mapped = own - self.before, mapped - self.mapped_before
        self.peak = max(self.most, own) - self.before
