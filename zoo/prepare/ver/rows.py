"""The rows of ver.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of ver.jsonl; the unfinished last line of a killed run is taken off the file."""
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(whole.decode("utf-8").split("\n")[:-1], 1):
        try:
            row = json.loads(line)
            if not all(isinstance(row[name], str) for name in ("id", "kind", "path", "label", "language", "merged")):
                raise TypeError("a value is no text")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} line {number} is no row of this file ({type(error).__name__}: {error}): changed by hand? "
                "Delete the line, and run the command again"
            ) from None
        rows.append(row)
    return rows
