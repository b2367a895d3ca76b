"""mypy checks every module of the package strictly."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MYPY = PYPROJECT["tool"]["mypy"]


def test_the_package_is_checked_strictly():
    assert (MYPY["files"], MYPY["strict"]) == (["zoo", "tests/benchmarks"], True)
    assert (ROOT / "zoo" / "py.typed").is_file()


def test_no_module_is_left_out():
    """A module whose types cannot be mended at once says so line by line, where mypy sees when it is no longer so."""
    skipped = [
        override["module"] for override in MYPY["overrides"] if {"ignore_errors", "follow_imports"} & set(override)
    ]
    assert not skipped
    whole_files = [
        str(file.relative_to(ROOT)) for file in (ROOT / "zoo").rglob("*.py") if "# mypy:" in file.read_text("utf-8")
    ]
    assert not whole_files


def test_every_ignored_error_is_named_and_explained():
    """An ignore says which error, and why: ``# type: ignore[code]  # reason``."""
    ignores = [
        line
        for file in (ROOT / "zoo").rglob("*.py")
        for line in file.read_text("utf-8").splitlines()
        if "# type: ignore" in line
    ]
    assert len(ignores) >= 10
    assert not [line for line in ignores if not re.search(r"# type: ignore\[[a-z-]+\]  # \w", line)]
