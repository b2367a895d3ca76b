"""A user's own table (CSV, TSV or JSONL) and what its columns hold, as `zoo label` and the corpus `Table` read it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from zoo.data.clips import SOUND, VIDEO
from zoo.data.text import clean_text, parse_table, read_text, some
from zoo.schema import Turn

STILL = (".jpg", ".jpeg", ".png")
CLIP_ENDINGS = (*VIDEO, *SOUND, *STILL)
SEPARATORS = {".csv": ",", ".tsv": "\t", ".jsonl": ""}  # ending of a table -> what separates its cells
HEADINGS = {  # of a table, in any case, -> what the column holds; MELD's own among them
    "id": "id",
    "video": "video",
    "clip": "video",
    "audio": "audio",
    "text": "text",
    "utterance": "text",
    "speaker": "speaker",
    "dialogue": "dialogue",
    "dialogue_id": "dialogue",
    "order": "order",
    "utterance_id": "order",
    "label": "label",
    "emotion": "label",
    "split": "split",
}
KIND = re.compile(r"[a-z0-9_]+")
DESCRIPTION = re.compile(rf"({KIND.pattern})_description")
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
QUOTED = re.compile(r'".*"".*"', re.DOTALL)  # a cell as CSV writes one that holds quotation marks
NAMED = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class Flags:
    """What the options of a command are called, for messages.

    Attributes:
        prefix: of all of them: ``--data.`` or ``--``.
        options: content of a column -> option that names the column; without, a column cannot be named.
    """

    prefix: str
    options: Mapping[str, str]


# ------------------------------------------------------------------------------------------------------------- columns
@dataclass(frozen=True)
class TableColumns:
    """Which columns of a table hold what.

    Attributes:
        headings: content (a value of `HEADINGS`, or ``KIND_description``) -> heading as it stands in the table.
    """

    headings: Mapping[str, str]

    @classmethod
    def match(cls, headings: Sequence[str], path: Path, names: Mapping[str, str], flags: Flags) -> TableColumns:
        """Find what the headings of a table mean.

        Args:
            headings: of the table.
            path: of the table, for messages.
            names: content -> heading, of columns that the user names; the others go by `HEADINGS`.
            flags: that name them.

        Raises:
            ValueError: two columns mean the same, or one that is named is not there once.
        """
        for content, name in names.items():
            if headings.count(name) != 1:
                near = difflib.get_close_matches(name, headings, 2, 0.5)
                option = f"{flags.prefix}{flags.options.get(content, content)}"
                raise ValueError(
                    f"{path} has the columns {', '.join(headings)}; {option} names {name!r}, which is "
                    f"{'there twice' if name in headings else 'none of them'}"
                    + (f"; did you mean {' or '.join(near)}?" if near and name not in headings else "; rename one")
                )
            if len(same := [other for other, heading in names.items() if heading == name]) > 1:
                options = " and ".join(f"{flags.prefix}{flags.options.get(other, other)}" for other in same)
                raise ValueError(f"{options} name the same column, {name!r}; expected one column for each")
        matched = dict(names)
        for heading in headings:
            lower = heading.lower()
            meant = lower if DESCRIPTION.fullmatch(lower) else HEADINGS.get(lower)
            if meant is None or meant in names or heading in names.values():
                continue
            if meant in matched:
                remedy = "leave one out"
                if meant in flags.options:
                    remedy = f"name the one that counts, {flags.prefix}{flags.options[meant]} {heading}"
                raise ValueError(f"{path} has two columns for {meant}: {matched[meant]} and {heading}; {remedy}")
            matched[meant] = heading
        return cls(matched)

    def __contains__(self, content: str) -> bool:
        return content in self.headings

    @property
    def descriptions(self) -> dict[str, str]:
        """Kind of description -> content."""
        return {match[1]: content for content in self.headings if (match := DESCRIPTION.fullmatch(content))}

    @property
    def hold_input(self) -> bool:
        """Whether a system can learn anything from the columns: clips, words or descriptions."""
        return bool(self.descriptions) or bool(self.headings.keys() & {"video", "audio", "text"})


# ---------------------------------------------------------------------------------------------------------------- rows
@dataclass(frozen=True)
class TableRow:
    """One row of a table, whose columns are named by their content.

    Attributes:
        columns: of the table.
        cells: content -> text as it stands there.
        folder: to which paths are relative.
        where: file and row, for messages.
        confined: paths that lead out of the folder are refused.
    """

    columns: TableColumns
    cells: Mapping[str, str]
    folder: Path
    where: str
    confined: bool = False

    def text(self, content: str) -> str:
        """Return a cell's cleaned text; empty without such a column."""
        return clean_utf8(self.cells[content], self.where) if content in self.columns else ""

    def path(self, content: str) -> Path | None:
        """Return the file that a cell names; None for an empty one. ValueError for a path that may not be."""
        name = self.text(content)
        if name and self.confined:
            pure = PurePosixPath(name.replace("\\", "/"))
            if pure.is_absolute() or ".." in pure.parts or re.match(r"[A-Za-z]:", name):
                raise ValueError(
                    f"{self.where}: {name!r} leads out of the folder {self.folder}; expected a path below it. Correct "
                    "the cell, or give a folder that holds all clips"
                )
            if pure.suffix.lower() not in CLIP_ENDINGS:
                raise ValueError(
                    f"{self.where}: {name!r} is no clip; expected a name that ends in {', '.join(CLIP_ENDINGS)}. "
                    "Correct the cell, or leave it empty"
                )
        return self.folder / name if name else None

    def key(self, dialogue: str | None, number: int) -> str:
        """Return the id of the row: its own, MELD's of dialogue and utterance, or the number of the row."""
        if "id" in self.columns:
            return self.text("id")
        if dialogue and "order" in self.columns:
            place = self.order(0)
            talk = f"dia{dialogue}" if dialogue.isdigit() else dialogue
            return f"{talk}_utt{int(place) if place.is_integer() else place}"
        return f"row{number}"

    def order(self, position: int) -> float:
        """Return the place in its dialogue: a cell, else ``position``. ValueError for a cell that is no number."""
        if "order" not in self.columns:
            return position
        cell = self.cells["order"].strip()
        if not NUMBER.fullmatch(cell):
            raise ValueError(
                f"{self.where}: {self.columns.headings['order']} is {cell!r}; expected whole numbers or decimals like "
                "0, 12 or 3.5. Correct the cell"
            )
        return float(cell)

    def turn(self, key: str, label: str | None, clip: Path | None) -> Turn:
        """Return the row as a turn; ``clip`` is used where the table has no column ``video``."""
        sound = self.path("audio")
        descriptions = {kind: self.text(content) for kind, content in self.columns.descriptions.items()}
        return clip_turn(
            key,
            self.path("video") if "video" in self.columns else clip,
            text=self.text("text"),
            speaker=self.text("speaker"),
            label=label,
            descriptions={kind: text for kind, text in descriptions.items() if text},
            **({"audio": sound} if sound else {}),
        )


def clip_turn(id: str, clip: Path | None, **fields: Any) -> Turn:
    """Return a turn with a file whose ending says what it holds: picture, sound, or both."""
    suffix = clip.suffix.lower() if clip is not None else ""
    files = {"video": None if suffix in SOUND else clip, "audio": None if suffix in STILL else clip}
    return Turn(id, **({"speaker": "", "text": ""} | files | fields))


def clean_utf8(text: str, name: str) -> str:
    """Clean a text as the corpora's readers do. ValueError for characters that no UTF-8 has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is not UTF-8; write it again as UTF-8") from None
    return clean_text(text)


# -------------------------------------------------------------------------------------------------------------- tables
@dataclass(frozen=True)
class OpenTable:
    """A table as read.

    Attributes:
        columns: what its columns hold.
        rows: number in the file (a table's headings are row 1; of JSONL, the line) -> content -> cell.
        unread: headings of columns that hold nothing known.
        notes: counted facts about the file.
    """

    columns: TableColumns
    rows: Mapping[int, Mapping[str, str]]
    unread: tuple[str, ...]
    notes: Mapping[str, int]


def open_table(
    path: Path,
    flags: Flags,
    names: Mapping[str, str],
    encoding: str | Sequence[str] = (),
    separator: str | None = None,
    names_are_required: bool = True,
) -> OpenTable:
    """Read a CSV, TSV or JSONL file.

    Args:
        path: whose ending says what it is.
        flags: for messages.
        names: content -> heading, of columns with names of their own.
        encoding: see `zoo.data.text.read_text`.
        separator: of its cells; None: what the ending says.
        names_are_required: whether each of ``names`` must be there.

    Raises:
        ValueError: the table cannot be read; says what was got, what was expected and what to do.
    """
    usual = SEPARATORS.get(path.suffix.lower())
    if usual is None:
        raise ValueError(
            f"{path} is no table that is read; expected a name that ends in {', '.join(SEPARATORS)}. Save it as one "
            "(a spreadsheet: as CSV, UTF-8)"
        )
    if separator is not None and (not usual or len(separator) != 1 or separator in '"\r\n'):
        raise ValueError(
            f"{flags.prefix}separator {separator!r}: expected one character, like ';', of a CSV or TSV file; "
            f"got {path.name}"
        )
    text, notes = read_text(path, encoding, f"{flags.prefix}encoding")
    sep = usual if separator is None else separator
    if usual:
        _check_separator(text, sep, path, flags)
        table = parse_table(text, path, (), sep)
        table.columns = [name.removeprefix("\ufeff") for name in table.columns]
    else:
        table = _parse_lines(text, path)
    headings = list(table.columns)
    if not names_are_required:
        names = {content: name for content, name in names.items() if name in headings}
    columns = TableColumns.match(headings, path, names, flags)
    read = table[list(columns.headings.values())]
    read.columns = pd.Index(columns.headings)
    rows = {int(number): cells for number, cells in read.to_dict("index").items()}
    _check_cells(rows, columns, path, quotes=sep == "\t")
    unread = tuple(heading for heading in headings if heading not in columns.headings.values())
    return OpenTable(columns, rows, unread, notes)


def _check_separator(text: str, sep: str, path: Path, flags: Flags) -> None:
    """ValueError for a first row that another character separates."""
    first = text.lstrip("\r\n").partition("\n")[0]
    if re.fullmatch(r"sep=.\s*", first):
        raise ValueError(
            f"{path} begins with a spreadsheet's line {first.strip()}; expected headings. Remove the line, and give "
            f"{flags.prefix}separator {first.strip()[-1]!r}"
        )
    if sep in first or not first.strip():
        return
    others = [other for other in (";", "\t", "|", ",") if other != sep and other in first]
    if others:
        names, known = NAMED.get(sep, f"{sep!r}"), max(others, key=first.count)
        value = "'\\t'" if known == "\t" else f"'{known}'"
        remedy = "call it .tsv" if known == "\t" else f"give {flags.prefix}separator {value}"
        raise ValueError(
            f"{path}: the first row has no {names} but {NAMED[known]}: {first.strip():.80}; expected cells separated "
            f"by {names}. Save it so, or {remedy}"
        )


def _parse_lines(text: str, path: Path) -> pd.DataFrame:
    """Return a JSONL file as a table: an object each line; numbers become texts, what is absent or null is empty."""
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            pairs = json.loads(line, object_pairs_hook=_Pairs)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f'{path} line {number} is not JSON ({error}); expected {{"text": "Oh.", "label": "joy"}}. Correct it'
            ) from None
        if not isinstance(pairs, _Pairs) or len({name.strip() for name, _ in pairs}) < len(pairs):
            what = "names a column twice" if isinstance(pairs, _Pairs) else f"holds a {type(pairs).__name__}"
            raise ValueError(
                f'{path} line {number} {what}; expected one object, {{"text": "Oh.", "label": "joy"}}. Correct it'
            )
        rows[number] = {name.strip(): _cell(value) for name, value in pairs}
    if not rows:
        raise ValueError(f'{path} is empty; expected lines like {{"text": "Oh.", "label": "joy"}}. Copy it again')
    headings = list(dict.fromkeys(name for row in rows.values() for name in row))
    cells = [[row.get(name, "") for name in headings] for row in rows.values()]
    return pd.DataFrame(cells, columns=headings, index=list(rows), dtype=object)


class _Pairs(list[tuple[str, Any]]):
    """The names and values of a JSON object, which may hold a name twice."""


def _cell(value: Any) -> Any:
    """Return a JSON value as the text of a cell; lists and objects as they are, for `_check_cells`."""
    if value is None or value != value:  # NaN, as a cell without anything is written by some
        return ""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _check_cells(rows: Mapping[int, Mapping[str, Any]], columns: TableColumns, path: Path, quotes: bool) -> None:
    """ValueError for cells that hold no text, or that a TSV (``quotes``) holds in the quotes of a CSV."""
    wrong = [
        f"{columns.headings[content]} in row {number} ({cell!r:.60})"
        for number, cells in rows.items()
        for content, cell in cells.items()
        if not isinstance(cell, str)
    ]
    if wrong:
        raise ValueError(f"{path}: expected texts or numbers, got {some(wrong, 3)}. Correct them, or rename the column")
    doubled = [n for n, cells in rows.items() if quotes and any(QUOTED.fullmatch(cell) for cell in cells.values())]
    if doubled:
        raise ValueError(
            f"{path} row {some(doubled)}: a text in the quotes of a CSV file; expected a TSV file, where quotes are "
            "ordinary characters. Save it as CSV (commas), or write the texts without the outer quotes"
        )
