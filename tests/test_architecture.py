"""docs/architecture.md names files that exist, none twice in a walk, and the layers that are enforced."""

from __future__ import annotations

import re
from pathlib import Path

from tests.test_layers import LAYERS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def walk(title: str) -> list[str]:
    section = PAGE.partition(f"### {title}\n")[2].partition("\n#")[0]
    return re.findall(r"^\d+\. `([\w/.]+)`:", section, re.MULTILINE)


def test_the_walks_are_short_and_true():
    for title, most in (("A row of MELD becomes FARCER's loss", 11), ("A config becomes MERIT's first step", 13)):
        files = walk(next(line for line in re.findall(r"^### (.+)$", PAGE, re.MULTILINE) if line.startswith(title)))
        assert 5 < len(files) <= most and len(set(files)) == len(files)
        assert [file for file in files if not (ROOT / file).is_file()] == []


def test_the_layers_are_those_that_are_enforced():
    picture = PAGE.partition("```\n")[2].partition("```")[0]
    expected = {name for layer in LAYERS for name in layer} - {"__main__"}
    assert expected == {name for name in expected if re.search(rf"(?m)^(?:.*\s)?{name}(?:/<paper>)?(?:\s|$)", picture)}


def test_files_of_training_are_all_named():
    files = {f.name for f in (ROOT / "zoo" / "training").glob("*.py")} - {"__init__.py"}
    assert {file for file in files if f"`{file}`" not in PAGE} == set()
