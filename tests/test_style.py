"""Rules of CONTRIBUTING that no linter knows: lengths of files, complexity of functions, names that say something."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from zoo.storage import split_lines

ZOO = Path(__file__).parents[1] / "zoo"
FILES = sorted(ZOO.rglob("*.py"))
MAX_LINES, MAX_COMPLEXITY = 500, 19
# words that say nothing about what a variable holds
EMPTY_NAMES = {"said", "own", "found", "given", "told", "shown", "seen", "kept", "at", "of", "some", "by", "worth"}
BRANCHES = (ast.If, ast.For, ast.While, ast.IfExp, ast.ExceptHandler, ast.Assert, ast.match_case)


def complexity(function: ast.AST) -> int:
    """Return the cyclomatic complexity of a function with the functions inside it, counted as radon does."""
    count = 1
    for node in ast.walk(function):
        if isinstance(node, BRANCHES):
            count += 1
        elif isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            count += 1 + len(node.ifs)
    return count


def bound_names(tree: ast.AST) -> set[str]:
    """Return the names of a module's variables and parameters."""
    variables = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return variables | {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}


def problems(source: str) -> list[str]:
    tree = ast.parse(source)
    lines = len(split_lines(source))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [
        *([f"{lines} lines, at most {MAX_LINES}"] if lines > MAX_LINES else []),
        *(f"{f.name} has complexity {c}" for f in functions if (c := complexity(f)) > MAX_COMPLEXITY),
        *(f"a variable is called {name}" for name in sorted(EMPTY_NAMES & bound_names(tree))),
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.relative_to(ZOO).as_posix())
def test_a_file_keeps_to_the_rules(file):
    assert problems(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("x = 1\n" * 501, "501 lines, at most 500"),
        ("def f(x):\n" + "    if x and x:\n        pass\n" * 10, "f has complexity 21"),
        ("def f(x):\n    return [" + "1 if x else " * 19 + "2]", "f has complexity 20"),
        ("for own in ():\n    pass", "a variable is called own"),
        ("def f(given):\n    pass", "a variable is called given"),
    ],
)
def test_what_breaks_a_rule_is_named(source, problem):
    assert problems(source) == [problem]
