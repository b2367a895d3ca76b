"""The numbers of the documents, in files: ``results/NAME.json`` holds the tables of one document, each with how it was
measured, and ``tests/test_results.py`` compares every table of a document with its file.

    python tests/benchmarks/selector_sitcom.py --seeds 0 1 2 > out.txt
    python tests/benchmarks/result_files.py store results/selector.json#shift --table 1 --from out.txt \\
        --command 'python tests/benchmarks/selector_sitcom.py --seeds 0 1 2' --n 2966 --split test --seeds 0 1 2
    python tests/benchmarks/result_files.py show results/selector.json#shift

``store`` takes the numbers from what a benchmark printed (its K-th Markdown table), never from a document. ``write`` is
the same for a benchmark that is a Python program. In a document a comment in front of the table names the file::

    <!-- results: results/selector.json#shift -->
    | selection | accuracy [95 %] | ...

``update`` writes the tables of a document anew from their files.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
MARK = re.compile(r"<!-- results: (\S+)#(\S+) -->")
RULE = re.compile(r"\|[-: |]+\|")
DECIMAL = re.compile(r"(?<![\w.-])[-+−]?\d*\.\d+(?![\w.])")
FACTS = ("source", "date", "command", "n", "split", "seeds", "about", "header", "rows")


class Table(NamedTuple):
    """A Markdown table.

    Attributes:
        first, last: indices of its lines in the document, header and last row.
        mark: (file, name) of the comment in front of it, or None.
        header, rows: cells as they stand there.
    """

    first: int
    last: int
    mark: tuple[str, str] | None
    header: list[str]
    rows: list[list[str]]


def cells(line: str) -> list[str]:
    """The cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables(text: str) -> list[Table]:
    """The tables of a Markdown text, outside code blocks."""
    lines, parsed, code, i = text.splitlines(), [], False, 0
    while i < len(lines):
        code ^= lines[i].startswith("```")
        if code or not lines[i].startswith("|") or i + 1 >= len(lines) or not RULE.fullmatch(lines[i + 1]):
            i += 1
            continue
        last = i + 1
        while last + 1 < len(lines) and lines[last + 1].startswith("|"):
            last += 1
        mark = MARK.fullmatch(lines[i - 1]) if i else None
        rows = [cells(line) for line in lines[i + 2 : last + 1]]
        parsed.append(Table(i, last, (mark[1], mark[2]) if mark else None, cells(lines[i]), rows))
        i = last + 1
    return parsed


def holds_results(table: Table) -> bool:
    """Whether a table has numbers with decimals, as measured ones have, in most of its rows."""
    return sum(any(DECIMAL.search(cell) for cell in row[1:]) for row in table.rows) * 2 > len(table.rows)


def load(file: str) -> dict[str, dict[str, Any]]:
    """The tables of a results file, by name. ValueError if one lacks how it was measured."""
    content = json.loads((ROOT / file).read_text(encoding="utf-8"))
    for name, table in content.items():
        if set(table) != set(FACTS):
            raise ValueError(f"{file}#{name} has {', '.join(table)}; expected {', '.join(FACTS)}")
    return content


def write(place: str, header: Sequence[str], rows: Sequence[Sequence[str]], **facts: Any) -> None:
    """Puts a table into a results file.

    Args:
        place: ``results/FILE.json#NAME``.
        header, rows: cells as they are printed.
        facts: ``command``, ``n``, ``split``, ``seeds``, and optionally ``source``, ``date`` and ``about``; None for
            what is not known.
    """
    file, _, name = place.partition("#")
    path = ROOT / file
    content = load(file) if path.is_file() else {}
    known = {"source": "measured", "date": datetime.date.today().isoformat(), "about": None, **facts}
    content[name] = {key: known[key] for key in FACTS[:-2]} | {"header": list(header), "rows": [list(r) for r in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(_written(key, table) for key, table in content.items()) + "\n}\n", "utf-8")


def _written(name: str, table: dict[str, Any]) -> str:
    """A table as JSON with one fact, and one row, per line."""

    def value(content: Any) -> str:
        return json.dumps(content, ensure_ascii=False)

    facts = [f"  {value(key)}: {value(table[key])}" for key in FACTS[:-1]]
    rows = ",\n".join(f"   {value(row)}" for row in table["rows"])
    return f" {value(name)}: {{\n" + ",\n".join([*facts, f'  "rows": [\n{rows}\n  ]']) + "\n }"


def markdown(table: dict[str, Any]) -> list[str]:
    """The lines of a stored table."""
    rows = [table["header"], ["---"] * len(table["header"]), *table["rows"]]
    return [("|" + "---|" * len(row)) if i == 1 else f"| {' | '.join(row)} |" for i, row in enumerate(rows)]


def update(document: Path) -> None:
    """Writes the marked tables of a document anew from their files."""
    text = document.read_text(encoding="utf-8")
    lines = text.splitlines()
    for table in reversed([t for t in tables(text) if t.mark]):
        lines[table.first : table.last + 1] = markdown(load(table.mark[0])[table.mark[1]])
    document.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    store = verbs.add_parser("store", help="a table that a benchmark printed into a results file")
    store.add_argument("place", help="results/FILE.json#NAME")
    store.add_argument("--from", dest="printed", type=Path, required=True, help="what the benchmark printed")
    store.add_argument("--table", type=int, default=1, help="which of its tables, from 1")
    for name in ("command", "n", "split", "about"):
        store.add_argument(f"--{name}", required=name != "about", type=int if name == "n" else str)
    store.add_argument("--seeds", type=int, nargs="+", required=True)
    verbs.add_parser("show", help="a stored table as Markdown").add_argument("place")
    verbs.add_parser("update", help="the tables of a document from their files").add_argument("document", type=Path)
    options = parser.parse_args()
    if options.verb == "update":
        update(options.document)
    elif options.verb == "show":
        file, _, name = options.place.partition("#")
        print("\n".join(markdown(load(file)[name])))
    else:
        printed = tables(options.printed.read_text(encoding="utf-8"))
        if not 1 <= options.table <= len(printed):
            sys.exit(f"{options.printed} holds {len(printed)} tables; --table {options.table} is not one of them")
        table = printed[options.table - 1]
        write(
            options.place,
            table.header,
            table.rows,
            command=options.command,
            n=options.n,
            split=options.split,
            seeds=options.seeds,
            about=options.about,
        )


if __name__ == "__main__":
    main()
