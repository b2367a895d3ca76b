"""Files that come with the zoo beside its code: configs, published checkpoints, notebooks and an example table.

In a clone they lie in its folder; an installed package holds them in ``zoo/shipped``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
INSTALLED = PACKAGE / "shipped"
SHIPPED = INSTALLED if INSTALLED.is_dir() else PACKAGE.parent  # holds configs/, checkpoints/, notebooks/, docs/table/


def shipped_config(path: str) -> str:
    """Return ``path``; of a file that is not there, but comes with the zoo under this name, that file's path.

    So ``--config configs/farcer/meld.yaml`` means the same in every folder, and a file of one's own comes first.
    """
    config = SHIPPED / path
    inside = config.resolve().is_relative_to((SHIPPED / "configs").resolve())
    return str(config) if inside and not Path(path).exists() and config.is_file() else path


def name_shipped_configs(args: Sequence[str]) -> list[str]:
    """Return the words of a command, with the path of each ``--config`` that comes with the zoo written out."""
    words = list(args)
    for place, word in enumerate(words):
        if word.startswith("--config="):
            words[place] = f"--config={_announced(word.removeprefix('--config='))}"
        elif place and words[place - 1] == "--config":
            words[place] = _announced(word)
    return words


def _announced(path: str) -> str:
    """Return what `shipped_config` returns, and say so where it is another path."""
    config = shipped_config(path)
    if config != path:
        print(f"{path}: taken from what comes with the zoo, {config}", file=sys.stderr)
    return config
