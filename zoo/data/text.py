"""Raw files -> clean text and tables; every error says what was got, what was expected and what to do."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import numbers
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

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
    r"""Return one line of plain text: encoding leftovers repaired, whitespace collapsed, proper quotes kept.

    >>> clean_text("I didn\x92t\xa0know \r\n itâ€™s")
    "I didn't know it’s"
    """
    text = _MOJIBAKE.sub(_decoded_again, raw)
    text = "".join(_C1.get(char, char) for char in text).replace("\ufeff", "")
    return " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", text).split())


def normalise(text: str) -> str:
    """Return a text in lower case, apostrophes removed, other punctuation as space, to compare what is said.

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
    """Join the first few items for an error message, and say how many more there are."""
    texts = [str(item) for item in items]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def one_of(option: str, value: object, allowed: Sequence[object]) -> None:
    """Refuse a value that the option does not have (the command line does so too; this is for Python)."""
    if value not in allowed:
        raise ValueError(f"{option} is {' or '.join(map(str, allowed))}, got {value!r}")


def whole_number(option: str, value: object, least: int = 0) -> int:
    """Return the value, if it is a whole number of at least ``least``; else ValueError naming the option."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{option} is a whole number of at least {least}, got {value!r}")
    return int(value)


def find_file(root: Path | None, names: Sequence[str], corpus: str, advice: str) -> Path:
    """Return the first of ``names`` that is a file in ``root``; else FileNotFoundError with what is there."""
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


WINDOWS = "ASCII with Windows punctuation"
# Where it can be nothing else: a quotation mark that opens or closes a word, an apostrophe inside one, a dash, an
# ellipsis, a space. Text of another encoding (GBK, Big5, EUC-KR, Shift-JIS, KOI8-R) has bytes elsewhere.
_PUNCTUATION = re.compile(
    rb"(?<=[A-Za-z])\x92(?=(?:s|t|re|ve|ll|d|m|S|T)?(?:[^A-Za-z\x80-\xff]|[\x85\x94\x96\x97]|\Z))"
    rb"|(?<![A-Za-z0-9\x80-\xff])[\x91\x93](?=[A-Za-z0-9][^\x80-\xff]*[\x92\x94])"
    rb"|(?<=[A-Za-z0-9.,!?\x85\x92])\x94(?![A-Za-z0-9@-~\x80-\xff])"
    rb"|(?<=[A-Za-z0-9.,!? ])[\x85\x96\x97](?=[ \r\n,\"\t]|\Z)|(?<=[ \"])[\x85\x96\x97](?=[ A-Za-z])"
    rb"|(?<=[a-z])[\x85\x96\x97](?=[A-Za-z]{2})|(?<=[A-Za-z0-9.,!? ])\xa0(?=[A-Za-z0-9 ])"
)
# A Western letter inside a word, as in fianc\xe9, na\xefve, \xc9mile: enough for a corpus that is known to have them.
_WESTERN = re.compile(
    rb"(?<=[A-Za-z])[\x8a\x8c\x8e\x9a\x9c\x9e\x9f\xc0-\xd6\xd8-\xf6\xf8-\xff](?![\xa1-\xff])"
    rb"|(?<![A-Za-z\x80-\xff])[\xc0-\xd6\xd8-\xf6\xf8-\xff](?=[a-z]{2})"
    rb"|(?<![\x80-\xff])[\xa1\xa3\xbf](?=[A-Za-z0-9])|(?<=[A-Za-z0-9])[\x99\xb0](?![A-Za-z0-9@-~\x80-\xff])"
    rb"|(?<=[A-Za-z])\x92(?=[A-Za-z])|(?<![\x80-\xff])[\x85\x96\x97\xa0](?![\x5b-\x60\x7b-\x7e\x80-\xff])"
)
# The same punctuation in UTF-8, where somebody put lines of two encodings into one file.
_UTF8 = re.compile(rb"(\xe2\x80[\x93-\xa6])")
# The characters that Chinese sentences are made of: about half of any running text, and almost none of what another
# encoding becomes when it is read as Chinese.
_FREQUENT = frozenset(
    "的一是不了我在有人这他们来到个上大说你就那和要她出也得里后自以会家可下而过天去能对小多然于心学么之都好看起发当没成只如"
    "事把还用第样道想作种开它怎什很吗吧呢啊呀哦嗯让给别再快老真太点走见听爱知话谁为做气问回吃打手面头儿从又与叫啦哪"
    "這們來個說後會過對學麼沒還樣種開讓給別點見聽愛話誰為氣問頭兒從與"
)
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
FREQUENT_SHARE = 0.2  # of the Han characters; of EUC-KR, Big5, Shift-JIS or KOI8-R read as Chinese, below 0.1


def check_encoding(option: str, name: str | None) -> str | None:
    """Return the name of a text encoding; ValueError for one that Python does not have."""
    if name is None:
        return None
    try:
        known = codecs.lookup(name)._is_text_encoding
    except (LookupError, ValueError, UnicodeError):
        known = False
    if not known:
        raise ValueError(f"{option} is the name of a text encoding like utf-8, cp1252 or gb18030; got {name!r}")
    return name


def read_text(
    path: Path, encoding: str | Sequence[str] = (), option: str = "--data.encoding"
) -> tuple[str, dict[str, int]]:
    """Read the text of a file, and note if it was not UTF-8 (with or without BOM).

    Args:
        encoding: a name: this encoding and no other, because the user says so. Several: what the files of a corpus are
            known to be in where they are not UTF-8; each is tried in turn, and taken if every byte decodes and the
            result is plausible text of that kind (``cp1252``, ``gb18030``). Then ASCII with Windows punctuation that
            can be nothing else is still read as cp1252.
        option: of the command line that names the encoding, for the message.

    Raises:
        ValueError: the file is in none of these, so its characters would be guessed.
    """
    path = Path(path)
    data = path.read_bytes()
    if isinstance(encoding, str):
        try:
            text = data.decode(encoding).removeprefix("\ufeff")
        except UnicodeError as error:
            problem = f"{path} is not {encoding} ({error}); name the encoding it is in ({option}), or save it as UTF-8"
            raise ValueError(problem) from None
        return text, {} if codecs.lookup(encoding).name.startswith("utf-8") else {f"{path.name} read as {encoding}": 1}
    data = data.removeprefix(codecs.BOM_UTF8)
    advice = f"Save it as UTF-8 again, or say which encoding it is in ({option})"
    if b"\x1b$" in data or b"\x1b(" in data:
        raise ValueError(f"{path} holds escape sequences of ISO-2022; expected UTF-8. {advice}")
    if b"\x00" in data or data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and data[2:4] != b"\x00\x00"
        hint = f": {option} utf-16" if marked else ""
        raise ValueError(f"{path} holds zero bytes: UTF-16 or not a text file; expected UTF-8. {advice}{hint}")
    try:
        return data.decode("utf-8"), {}
    except UnicodeDecodeError as error:
        where = f"byte {error.start} is 0x{data[error.start]:02x}"
    for name in (*encoding, WINDOWS):
        if (plausible := _plausible(data, name)) is not None:
            return plausible, {f"{path.name} is not UTF-8, read as {'cp1252' if name == WINDOWS else name}": 1}
    tried = f", nor plausible text in {' or '.join(encoding)}" if encoding else ""
    chinese = _plausible(data, "gb18030")
    hint = f": it may be Chinese, {option} gb18030" if chinese and _HAN.search(chinese) else ""
    raise ValueError(f"{path} is not UTF-8 ({where}){tried}; expected UTF-8. {advice}{hint}")


def _plausible(data: bytes, encoding: str) -> str | None:
    """Return the text in an encoding; None if it does not decode, or into what nobody would write."""
    if encoding in ("cp1252", WINDOWS):
        left = _UTF8.sub(b"'", data)
        left = _WESTERN.sub(b"e", left) if encoding == "cp1252" else left
        if not _PUNCTUATION.sub(b" ", left).isascii():
            return None
        parts = _UTF8.split(data)  # every second one matches
        return "".join(part.decode("utf-8" if i % 2 else "cp1252") for i, part in enumerate(parts))
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return None
    if encoding in ("gb18030", "gbk", "gb2312"):
        han = _HAN.findall(text)
        if sum(char in _FREQUENT for char in han) < FREQUENT_SHARE * max(len(han), 1):
            return None
        # half of a pair, or a byte that Windows' punctuation has, decodes into the planes of rare or private characters
        if any(0xE000 <= ord(char) <= 0xF8FF or ord(char) == 0xFFFD for char in text):
            return None
    return text


def read_table(
    path: Path,
    columns: Sequence[str],
    sep: str = ",",
    header: bool = True,
    encoding: str | Sequence[str] = (),
    option: str = "--data.encoding",
) -> pd.DataFrame:
    """Read a table: all cells as str, indexed by row number in the file (from 1, the header included).

    ``.attrs["notes"]`` holds the notes of ``read_text``.

    Args:
        path: the file.
        columns: columns that must be there; without a header, the names of all columns.
        sep: cell separator; with a tab, quotes are ordinary characters.
        header: whether the first row names the columns.
        encoding, option: see `read_text`.
    """
    text, notes = read_text(path, encoding, option)
    table = parse_table(text, path, columns, sep, header)
    table.attrs["notes"] = notes
    return table


def parse_table(text: str, path: Path, columns: Sequence[str], sep: str = ",", header: bool = True) -> pd.DataFrame:
    """Return the table that a file's text is; see `read_table`, whose arguments these are."""
    rows = _split_rows(text, sep, path)
    names = [name.strip() for name in rows.pop(min(rows))] if header and rows else list(columns)
    if not rows:
        expected = f"rows with the columns {', '.join(columns)}" if columns else "a row of headings, and rows below it"
        raise ValueError(f"{path} is empty; expected {expected}. Copy or download it again")
    _check_columns(names, columns, path)
    for number, row in rows.items():
        if len(row) != len(names):
            raise ValueError(
                f"{path} row {number} has {len(row)} cells, expected {len(names)} ({', '.join(names)}); "
                f"quote or remove separators inside the text: {some(row)}"
            )
    return pd.DataFrame(list(rows.values()), columns=names, index=list(rows), dtype=str)


def _split_rows(text: str, sep: str, path: Path) -> dict[int, list[str]]:
    """Split a table into its rows, by number, without blank ones. ValueError for a quote that is not closed."""
    quoting: Literal[0, 3] = csv.QUOTE_NONE if sep == "\t" else csv.QUOTE_MINIMAL
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=sep, quoting=quoting, strict=True)
        return {number: row for number, row in enumerate(reader, 1) if any(cell.strip() for cell in row)}
    except csv.Error as error:
        raise ValueError(
            f"{path} line {reader.line_num}: {error}; expected CSV. Close or double the quotes there"
        ) from None


def _check_columns(names: Sequence[str], columns: Sequence[str], path: Path) -> None:
    """Raise ValueError unless each of the expected columns is there once; name the nearest ones."""
    if missing := [column for column in columns if names.count(column) != 1]:
        lower = {name.lower(): name for name in names}
        closest = {column: difflib.get_close_matches(column.lower(), lower, 1) for column in missing}
        hint = "; ".join(f"closest to {column}: {lower[match[0]]}" for column, match in closest.items() if match)
        raise ValueError(
            f"{path} has the columns {', '.join(names)}; expected each of {', '.join(columns)} once, and "
            f"{', '.join(missing)} is not{f' ({hint})' if hint else ''}. Rename the column, or use the released file"
        )


def whole_numbers(table: pd.DataFrame, columns: Sequence[str], path: Path) -> pd.DataFrame:
    """Return the columns as int; ValueError with the rows where a cell is no whole number."""
    for column in columns:
        bad = table[column][~table[column].str.strip().str.fullmatch(r"[0-9]+")]
        if len(bad):
            raise ValueError(
                f"{path}: {column} is {some(f'{value!r} in row {row}' for row, value in bad.items())}; "
                "expected whole numbers like 0 or 12. Correct the cells, or use the released file"
            )
    return table[list(columns)].astype(int)


def count_repaired(raw: Iterable[str], cleaned: Iterable[str]) -> int:
    """Count the texts that `clean_text` changed in more than their spaces."""
    return sum(a.split() != b.split() for a, b in zip(raw, cleaned, strict=True))


def drop_repeats(table: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the table without rows that repeat an earlier one word for word, and which those were.

    Raises:
        ValueError: naming the values of the column ``key`` that occur with different contents.
    """
    unique = table.drop_duplicates()
    if (repeated := unique["key"].duplicated()).any():
        keys = unique["key"][repeated].unique()
        raise ValueError(
            f"{path} has several rows with different contents for {some(keys)}; expected one row per key. "
            "Keep the right one of each"
        )
    repeats = table.drop(index=unique.index)["key"]
    return unique, {f"{key} (row {row})": "repeats an earlier row word for word" for row, key in repeats.items()}
