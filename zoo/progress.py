"""Lines that say how far a long command is, for logs and terminals alike: what is done, how fast, and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

SECONDS = 15.0  # between two lines
Item = TypeVar("Item")


class Meter:
    """Prints a line every so many seconds.

    Args:
        total: units in all; None or infinite if that is not known.
        unit: plural of what is counted, e.g. ``clips``.
        seconds: between two lines.
    """

    def __init__(self, total: float | None, unit: str, seconds: float = SECONDS) -> None:
        self.total = None if total is None or total == float("inf") else int(total)
        self.unit, self.seconds = unit, seconds
        self.restart()

    def restart(self, done: int = 0) -> None:
        """Begins to measure the rate anew, from so many units on."""
        self._began = self._printed = time.monotonic()
        self._before = done

    def due(self) -> bool:
        """Whether it is time for a line."""
        return time.monotonic() - self._printed >= self.seconds

    def line(self, done: int, what: str = "") -> str | None:
        """Return the line for so many units, or None as long as it is too early for one.

        Args:
            what: what it begins with.
        """
        if not self.due():
            return None
        now = self._printed = time.monotonic()
        rate = (done - self._before) / max(now - self._began, 1e-9)
        parts = [f"{what}{done}"]
        if self.total is not None:
            parts[0] += f" of {self.total} {self.unit} ({100 * done / max(self.total, 1):.0f} %)"
        else:
            parts[0] += f" {self.unit}"
        if rate > 0:
            singular = self.unit.removesuffix("es" if self.unit.endswith("ches") else "s")
            parts.append(f"{rate:.1f} {self.unit}/s" if rate >= 0.5 else f"{1 / rate:.0f} s per {singular}")
            if self.total is not None:
                parts.append(f"{duration((self.total - done) / rate)} left")
        return ", ".join(parts)


def reported(
    items: Iterable[Item], total: int | None, what: str, unit: str, seconds: float = SECONDS
) -> Iterator[Item]:
    """Yield the items, with a line on stderr every so many seconds; see `Meter`."""
    meter = Meter(total, unit, seconds)
    for done, item in enumerate(items, 1):
        yield item
        line = meter.line(done, f"{what}: ")
        if line is not None:
            print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """``95`` -> ``1 min 35 s``"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
