"""What produced a number: version and commit of the zoo, and the versions of the libraries."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from zoo import __version__
from zoo.shipped import INSTALLED, SHIPPED

LIBRARIES = ("torch", "lightning", "transformers", "peft")


@rank_zero_only
def provenance() -> dict[str, Any]:
    """Return ``git``, the commit (with ``+`` if the tree was changed; None outside a clone), and ``versions``."""
    folder = Path(__file__).parent

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = None
    if SHIPPED != INSTALLED:  # an installed package may lie in the clone of something else
        changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        commit = (git("rev-parse", "HEAD") + changed) or None
    versions = {"zoo": __version__, **{name: version(name) for name in LIBRARIES}}
    return {"git": commit, "versions": versions | {"python": platform.python_version()}}
