"""What produced a number: version and commit of the zoo, and the versions of the libraries."""

from __future__ import annotations

import os
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
    """Return ``git``, the commit, and ``versions``.

    The commit has ``+`` behind it if the tree was changed; it is None outside a clone, or without git.
    """
    folder = Path(__file__).parent
    # inside of a hook git's own variables name another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*args: str) -> str:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *args], capture_output=True, text=True, check=False, env=environment
            )
        except OSError:  # this machine has no git
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = None
    if SHIPPED != INSTALLED:  # an installed package may lie in the clone of something else
        changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        commit = (git("rev-parse", "HEAD") + changed) or None
    versions = {"zoo": __version__, **{name: version(name) for name in LIBRARIES}}
    return {"git": commit, "versions": versions | {"python": platform.python_version()}}
