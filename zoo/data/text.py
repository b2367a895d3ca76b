"""Raw files -> clean text and tables; every error says what was got, what was expected and what to do."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

# Windows punctuation that survives in copies as C1 control characters, and what it is written as here. The rest of the
# C1 block becomes the character Windows means by that byte, or a space.
_C1 = {chr(byte): bytes([byte]).decode("cp1252", errors="ignore") or " " for byte in range(0x80, 0xA0)}
_C1 |= {"\x91": "'", "\x92": "'", "\x93": '"', "\x94": '"', "\x85": "...", "\x96": "-", "\x97": "-"}

# UTF-8 bytes that somebody decoded one by one: each as cp1252 or, where cp1252 has no character, as latin-1. Only the
# lead bytes of Western text and emoji: with all of them a correct "fiancé…”" would become a Chinese character.
_BYTE = {chr(byte): byte for byte in range(0x80, 0x100)}
_BYTE |= {char: byte for byte in range(0x80, 0x100) if (char := bytes([byte]).decode("cp1252", errors="ignore"))}
_NEXT = "[" + "".join(char for char, byte in _BYTE.items() if byte < 0xC0) + "]"
_MOJIBAKE = re.compile(f"[ÂÃ]{_NEXT}|â{_NEXT}{{2}}|ð{_NEXT}{{3}}")


def clean_text(raw: str) -> str:
    """One line of plain text: encoding leftovers repaired, whitespace collapsed; proper curly quotes stay as they are.

    >>> clean_text("I didn\\x92t\\xa0know \\r\\n itâ€™s")
    "I didn't know it’s"
    """
    text = _MOJIBAKE.sub(_decoded_again, raw)
    text = "".join(_C1.get(char, char) for char in text).replace("\ufeff", "")
    return " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", text).split())


def normalise(text: str) -> str:
    """Lower case, apostrophes removed, other punctuation as space: what is equal here was said word for word.

    >>> normalise("No -- I DON’T!")
    'no i dont'
    """
    return " ".join(re.sub(r"[\W_]+", " ", re.sub(r"['’‘`´]", "", text.lower())).split())


def _decoded_again(match: re.Match[str]) -> str:
    try:
        return bytes(_BYTE[char] for char in match[0]).decode("utf-8")
    except UnicodeDecodeError:
        return match[0]


def some(items: Iterable[object], most: int = 5) -> str:
    """The first few items for an error message, and how many more there are."""
    items = [str(item) for item in items]
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def one_of(option: str, value: object, allowed: Sequence[object]) -> None:
    """Refuses a value that the option does not have (the command line does so too; this is for Python)."""
    if value not in allowed:
        raise ValueError(f"{option} is {' or '.join(map(str, allowed))}, got {value!r}")


def find_file(root: Path | None, names: Sequence[str], corpus: str, advice: str) -> Path:
    """The first of ``names`` that is a file in ``root``; else FileNotFoundError with what is there and ``advice``."""
    if root is None:
        raise FileNotFoundError(f"{corpus} needs its folder: give --data.root, expected to hold {names[0]}. {advice}")
    for name in names:
        if (root / name).is_file():
            return root / name
    if root.is_dir():
        got = f"which holds {some(sorted(p.name for p in root.iterdir())) or 'nothing'}"
    else:
        got = "which is a file" if root.exists() else "which does not exist"
    raise FileNotFoundError(
        f"{corpus}: no {names[0]} in the folder {root}, {got}; expected {' or '.join(names)}. {advice}"
    )


def read_text(path: Path) -> tuple[str, dict[str, int]]:
    """The text (UTF-8, with or without BOM), and a note if it had to be read as cp1252, as some MELD copies are."""
    data = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    if b"\x00" in data:
        raise ValueError(f"{path} holds zero bytes: UTF-16 or not a text file; expected UTF-8. Save it as UTF-8 again")
    try:
        return data.decode("utf-8"), {}
    except UnicodeDecodeError as error:
        try:
            return data.decode("cp1252"), {f"{Path(path).name} is not UTF-8, read as cp1252": 1}
        except UnicodeDecodeError:
            raise ValueError(
                f"{path} is neither UTF-8 (byte {error.start} is 0x{data[error.start]:02x}) nor cp1252; "
                "expected UTF-8. Save it as UTF-8 again, or download it again"
            ) from None


def read_table(path: Path, columns: Sequence[str], sep: str = ",", header: bool = True) -> pd.DataFrame:
    """All cells as str, indexed by row number in the file (from 1, the header included).

    ``.attrs["notes"]`` holds the notes of ``read_text``.

    Args:
        path: the file.
        columns: columns that must be there; without a header, the names of all columns.
        sep: cell separator; with a tab, quotes are ordinary characters.
        header: whether the first row names the columns.
    """
    text, notes = read_text(path)
    quoting = csv.QUOTE_NONE if sep == "\t" else csv.QUOTE_MINIMAL
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=sep, quoting=quoting, strict=True)
        rows = {number: row for number, row in enumerate(reader, 1) if any(cell.strip() for cell in row)}
    except csv.Error as error:
        raise ValueError(
            f"{path} line {reader.line_num}: {error}; expected CSV. Close or double the quotes there"
        ) from None
    names = [name.strip() for name in rows.pop(min(rows))] if header and rows else list(columns)
    if not rows:
        raise ValueError(
            f"{path} is empty; expected rows with the columns {', '.join(columns)}. Copy or download it again"
        )
    if missing := [column for column in columns if names.count(column) != 1]:
        lower = {name.lower(): name for name in names}
        closest = {column: difflib.get_close_matches(column.lower(), lower, 1) for column in missing}
        hint = "; ".join(f"closest to {column}: {lower[match[0]]}" for column, match in closest.items() if match)
        raise ValueError(
            f"{path} has the columns {', '.join(names)}; expected each of {', '.join(columns)} once, and "
            f"{', '.join(missing)} is not{f' ({hint})' if hint else ''}. Rename the column, or use the released file"
        )
    for number, row in rows.items():
        if len(row) != len(names):
            raise ValueError(
                f"{path} row {number} has {len(row)} cells, expected {len(names)} ({', '.join(names)}); "
                f"quote or remove separators inside the text: {some(row)}"
            )
    table = pd.DataFrame(list(rows.values()), columns=names, index=list(rows), dtype=str)
    table.attrs["notes"] = notes
    return table


def whole_numbers(table: pd.DataFrame, columns: Sequence[str], path: Path) -> pd.DataFrame:
    """The columns as int; ValueError with the rows where a cell is no whole number."""
    for column in columns:
        bad = table[column][~table[column].str.strip().str.fullmatch(r"[0-9]+")]
        if len(bad):
            raise ValueError(
                f"{path}: {column} is {some(f'{value!r} in row {row}' for row, value in bad.items())}; "
                "expected whole numbers like 0 or 12. Correct the cells, or use the released file"
            )
    return table[list(columns)].astype(int)


def repaired(raw: Iterable[str], cleaned: Iterable[str]) -> int:
    """How many texts `clean_text` changed in more than their spaces."""
    return sum(a.split() != b.split() for a, b in zip(raw, cleaned, strict=True))


def drop_repeats(table: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """Without the rows that repeat an earlier one word for word, and which those were.

    Raises:
        ValueError: naming the values of the column ``key`` that occur with different contents.
    """
    kept = table.drop_duplicates()
    if (twice := kept["key"].duplicated()).any():
        keys = kept["key"][twice].unique()
        raise ValueError(
            f"{path} has several rows with different contents for {some(keys)}; expected one row per key. "
            "Keep the right one of each"
        )
    repeats = table.drop(index=kept.index)["key"]
    return kept, {f"{key} (row {row})": "repeats an earlier row word for word" for row, key in repeats.items()}
