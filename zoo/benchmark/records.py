"""The files that finished jobs leave behind, read with their types checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zoo.storage import read_json, read_jsonl

NUMBER = (int, float)
TEST = {
    "split": (str,),
    "corpus": (str,),
    "eval_protocol": (str,),
    "model": (str,),
    "parameters": (int,),
    "trainable_parameters": (int,),
    "population": (dict,),
    "events": (dict,),
}
COST = {"seconds": NUMBER, "peak_mib": NUMBER, "interrupted": (int,)}  # of a fit.json and test.json
ROW = {"id": (str,), "dialogue": (str,), "label": (str,), "predicted": (str, type(None))}  # of a predictions.jsonl


def read_rows(path: Path, fields: Mapping[str, tuple[type, ...]] | None = None) -> list[dict[str, Any]]:
    """Read the rows of a finished job.

    Raises:
        ValueError: the file is damaged, or empty; names it and what to do.
    """
    rows: list[dict[str, Any]] = _read(path, read_jsonl)
    if not rows:
        raise damaged_file(path, "it is empty")
    for number, row in enumerate(rows, 1):
        _check_types(row, {"id": (str,)} if fields is None else fields, path, f"line {number}: ")
    return rows


def read_record(path: Path, fields: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """Read what a finished job recorded about itself; see `read_rows`."""
    record: dict[str, Any] = _read(path, read_json)
    _check_types(record, fields, path, "")
    return record


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except (ValueError, FileNotFoundError) as error:
        raise damaged_file(path, "it is missing" if isinstance(error, FileNotFoundError) else str(error)) from error


def _check_types(record: Any, fields: Mapping[str, tuple[type, ...]], path: Path, where: str) -> None:
    if not isinstance(record, dict):
        raise damaged_file(path, f"{where}it holds a {type(record).__name__}, expected an object")
    for name, kinds in fields.items():
        value = record.get(name)
        if name not in record or not isinstance(value, kinds) or isinstance(value, bool):
            raise damaged_file(
                path, f"{where}{name} is {value!r:.60}, expected {' or '.join(k.__name__ for k in kinds)}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise damaged_file(path, f"{where}{name} is {value}, expected a finite number")


def damaged_file(path: Path, reason: str) -> ValueError:
    """Return the error about a file of a job, with the way to do the job again."""
    parts = path.parts
    job = parts[parts.index("runs") + 1] if "runs" in parts[:-1] else None
    again = f"do the row again with --redo [{job}]" if job else "make it again, by zoo test or zoo bench --redo [ROW]"
    return ValueError(f"{path} is damaged ({reason}); {again}")
