"""Cards and what a process can use of their memory."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
# Assumptions, not measured: what CUDA and its libraries take for themselves, and the share that the allocator cannot
# use because free pieces lie apart.
RESERVED, SCATTERED = 0.8 * GIB, 0.03


@dataclass(frozen=True)
class Card:
    """A class of cards.

    Attributes:
        size: memory as it is sold, in GB.
        total: bytes that such cards report.
        names: some of them.
    """

    size: int
    total: float
    names: str

    @property
    def usable(self) -> float:
        """Bytes that tensors can take."""
        return usable(self.total)


def usable(total: float) -> float:
    """Return the bytes that tensors can take of a card that reports so many."""
    return max(0.0, total * (1 - SCATTERED) - RESERVED)


CARDS = (
    Card(8, 7.8 * GIB, "RTX 3070, RTX 4060"),
    Card(12, 11.7 * GIB, "RTX 3060 12 GB, RTX 4070"),
    Card(16, 15.6 * GIB, "RTX 4080, V100 16 GB"),
    Card(24, 23.5 * GIB, "RTX 3090, RTX 4090"),
    Card(40, 39.4 * GIB, "A100 40 GB"),
    Card(48, 47.4 * GIB, "RTX A6000, RTX 6000 Ada"),
    Card(80, 79.1 * GIB, "A100 80 GB, H100"),
    Card(141, 139.8 * GIB, "H200"),
)


def card_of(size: float) -> Card:
    """Return the card of a size in GB; of a size that none of `CARDS` has, one that reports so many GiB.

    Raises:
        ValueError: the size is not above 0.
    """
    if not size > 0:
        raise ValueError(f"--card {size:g}: expected the memory of a card in GB, e.g. 24")
    return next((card for card in CARDS if card.size == size), Card(int(size), size * GIB, f"{size:g} GiB"))


def smallest(peak: float) -> Card | None:
    """Return the smallest of `CARDS` on which so many bytes fit; None if none is large enough."""
    return next((card for card in CARDS if peak <= card.usable), None)
