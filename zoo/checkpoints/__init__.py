"""Published weights: list, load, export, fetch, convert, verify. See `checkpoints/index.yaml`."""

from zoo.checkpoints.commands import published
from zoo.checkpoints.exporting import export
from zoo.checkpoints.listing import index, sha256, verify
from zoo.checkpoints.loading import load

__all__ = ["export", "index", "load", "published", "sha256", "verify"]
