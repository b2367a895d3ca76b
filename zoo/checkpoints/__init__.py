"""Published weights: list, load, export, fetch, convert, verify. See `checkpoints/index.yaml`."""

from zoo.checkpoints.commands import published
from zoo.checkpoints.exporting import export
from zoo.checkpoints.listing import index, verify
from zoo.checkpoints.loading import load
from zoo.storage import sha256_of as sha256

__all__ = ["export", "index", "load", "published", "sha256", "verify"]
