"""Numbers of a report as text."""

from __future__ import annotations


def percent(share: float) -> str:
    """Format a share in percent: 0.6123 is ``61.2``."""
    return f"{100 * share:.1f}"


def signed(share: float) -> str:
    """Format a difference in points: -0.031 is ``−3.1``, with a real minus sign; 0.031 is ``+3.1``."""
    return f"{100 * share:+.1f}".replace("-", "−")


def pvalue(p: float) -> str:
    """Format a p-value with three decimals: 0.0123 is ``.012``, anything smaller than 0.001 is ``<.001``."""
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def amount(count: float | None) -> str:
    """Format a count: 2_310_000 is ``2.31 M``; None is a dash."""
    if count is None:
        return "–"
    for size, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(count) >= size * 0.9995:
            return f"{count / size:.3g}{name}"
    return f"{count:.3g}"


def seconds(duration: float | None) -> str:
    """Format seconds: 0.0123 is ``12.3 ms``, 75 is ``1.2 min``; None is a dash."""
    if duration is None:
        return "–"
    for size, name in ((3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
        if duration >= size * 0.9995:
            return f"{duration / size:.3g} {name}"
    return f"{duration * 1e6:.3g} µs"


def memory(mebibytes: float | None) -> str:
    """Format MiB: 310.2 is ``310 MiB``, 2048 is ``2 GiB``; None is a dash."""
    if mebibytes is None:
        return "–"
    return f"{mebibytes / 1024:.3g} GiB" if mebibytes >= 1023.5 else f"{mebibytes:.3g} MiB"
