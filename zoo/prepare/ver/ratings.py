"""The ratings of a person, and the conversations of what is rated well."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.data.text import read_table
from zoo.prepare.prompt_files import fill_prompt, load_prompt
from zoo.prepare.ver.rows import read_rows
from zoo.prompts import escape
from zoo.storage import write_jsonl, write_whole

COLUMNS = ("id", "text", "rating")


def write_ratings(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the rows that the rating file lacks; what a person wrote there stays as it is, further columns too."""
    table: list[dict[str, str]] = []
    columns = list(COLUMNS)
    if path.exists():
        existing = read_table(path, COLUMNS)
        if existing.attrs["notes"]:  # else the texts would be written back garbled
            raise ValueError(f"{path} is not UTF-8; expected the encoding it was made in. Save it as UTF-8 CSV again")
        columns, table = list(existing.columns), existing.to_dict("records")
    rated = {row["id"].strip() for row in table}
    new = [row for row in rows if row["id"] not in rated]
    if not new:  # a file of a header alone would be refused as empty when the run goes on
        return
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, restval="")
    writer.writeheader()
    # a spreadsheet would run a text that begins like a formula
    texts = [{"id": row["id"], "text": re.sub(r"^(?=[=+\-@\t])", "'", row["merged"])} for row in new]
    writer.writerows([*table, *texts])
    write_whole(path, out.getvalue().encode("utf-8-sig"))  # the mark at the beginning makes spreadsheets read Chinese


def parse_rating(cell: str) -> float:
    """Parse a rating: 0 to 5, also between two whole numbers (a mean of several people). ValueError otherwise."""
    if not re.fullmatch(r"\d+(\.\d+)?", cell.strip(), re.ASCII) or float(cell) > 5:
        raise ValueError(f"{cell!r} is no number from 0 to 5")
    return float(cell)


def collect(
    out: Path, min_rating: float = 3.0, question_template: Path | None = None
) -> tuple[Path, int, dict[str, tuple[str, str]]]:
    """Write the conversations of all texts that are rated ``min_rating`` or more.

    Returns:
        the file; how many conversations it holds; id -> (low, unrated, malformed or unknown; why) of every other row of
        ver.jsonl or ratings.csv, which ``not_collected.jsonl`` lists too.

    Raises:
        FileNotFoundError: no texts, or no ratings.
        ValueError: nothing to collect, or files that cannot be read.
    """
    if not (math.isfinite(min_rating) and 0 <= min_rating <= 5):
        raise ValueError(f"--min_rating is from 0 to 5, got {min_rating}")
    for name in ("ver.jsonl", "ratings.csv"):
        if not (out / name).is_file():
            raise FileNotFoundError(f"no {name} in {out}; run `zoo prepare ver` without --collect first")
    rows = read_rows(out / "ver.jsonl")
    if not rows:
        raise ValueError(f"{out / 'ver.jsonl'} is empty; expected texts. Run `zoo prepare ver` without --collect first")
    cells: dict[str, list[str]] = {}
    for row in read_table(out / "ratings.csv", COLUMNS).to_dict("records"):
        cells.setdefault(row["id"].strip(), []).append(row["rating"].strip())
    language = rows[0]["language"]
    question, _ = load_prompt(question_template, "ver_question", language)
    conversations, other = [], {}
    for row in rows:
        problem = _rating_problem(cells.get(row["id"]), min_rating)
        if problem is not None:
            other[row["id"]] = problem
            continue
        request = fill_prompt(question, kind=row["kind"], text=escape(row.get("text", "")))
        messages = [{"role": "user", "content": request}, {"role": "assistant", "content": escape(row["merged"])}]
        conversations.append({"id": row["id"], row["kind"]: row["path"], "conversations": messages})
    other |= dict.fromkeys(cells.keys() - {row["id"] for row in rows}, ("unknown", "not in ver.jsonl"))
    listed = [{"id": name, "what": what, "why": why} for name, (what, why) in other.items()]
    write_jsonl(out / "not_collected.jsonl", listed)
    if not conversations:
        counts = Counter(what for what, _ in other.values())
        raise ValueError(
            f"no text is rated {min_rating:g} or more ({', '.join(f'{n} {what}' for what, n in counts.items())}); "
            f"expected numbers from 0 to 5 in the column rating of {out / 'ratings.csv'}. Fill it in"
        )
    path = out / f"ver_{language}.json"
    write_whole(path, json.dumps(conversations, ensure_ascii=False, indent=1) + "\n")
    return path, len(conversations), other


def _rating_problem(cells: Sequence[str] | None, min_rating: float) -> tuple[str, str] | None:
    """Return why a text is not collected (low, unrated or malformed; reason); None if it is rated well.

    Args:
        cells: its ratings in the file; None without a row there.
        min_rating: the lowest rating that counts.
    """
    distinct = set(cells or [""])
    if len(distinct) > 1:
        return "malformed", f"several ratings: {', '.join(sorted(distinct))}"
    (cell,) = distinct
    if not cell:
        return "unrated", "empty rating" if cells is not None else "no row in ratings.csv"
    try:
        return ("low", cell) if parse_rating(cell) < min_rating else None
    except ValueError as error:
        return "malformed", str(error)
