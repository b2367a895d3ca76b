"""Rows of large files, read when they are asked for: where each begins is found once and kept in an index.

Two kinds of file are indexed: ``.jsonl`` (a JSON object per line, UTF-8), and ``.tar``, a shard in the layout of
webdataset: the members of a row follow each other and have one key, the name up to its first dot (``0001.jpg``,
``0001.json``, or ``0001.txt`` that holds a caption).

Offsets of our own, and not the package webdataset: it reads shards from their beginning and shuffles within a buffer;
with offsets any row is read at once, so that order, exact resume and the division over processes are those of
`zoo.data.batches`, as for every corpus.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import struct
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from zoo.media.container import member_path
from zoo.storage import locked, parse_json, replacing

log = logging.getLogger(__name__)

VERSION = 1  # of an index: raise it whenever a change here or in `conversation_rows` changes what is in one
MAX_ROW = 16 * 2**20  # bytes of a row's JSON
NO_CLIP = 2**16 - 1
MAX_ANSWERS = NO_CLIP - 1
# 32 bytes per row. `size` is that of all members in a shard, `text` of the words alone; `answers` is 0 where the row is
# left out; `first_clip` is the first answer before which a clip is shown, or NO_CLIP; `name` is a hash of the id
ENTRY = np.dtype(
    [("offset", "<u8"), ("size", "<u8"), ("text", "<u4"), ("answers", "<u2"), ("first_clip", "<u2"), ("name", "<u8")]
)
KEY = re.compile(r"((?:.*/)?[^./][^/.]*)\.([^/]+)")  # of a member of a shard: key, extension
PICTURES = ("jpg", "jpeg", "png", "webp", "bmp")
VIDEOS = ("mp4", "webm", "mkv", "mov", "avi")


class RowError(ValueError):
    """A row that is left out, and why."""


class FileMissing(RowError):
    """A row that is left out because it names a file that is not there."""


class Row(NamedTuple):
    """One row as read.

    Attributes:
        content: what its JSON says.
        files: ``image`` and ``video`` -> paths of its members in a shard; None: `content` names files.
    """

    content: Any
    files: dict[str, list[Path]] | None = None


class Facts(NamedTuple):
    """Of a row that is in order: how many answers it has, and the first one that follows a clip, or NO_CLIP."""

    answers: int
    first_clip: int


class Omission(NamedTuple):
    """A row that is left out: its id if any, where it stands, why, and whether a file that it names is missing."""

    id: str | None
    place: str
    reason: str
    file_missing: bool = False


Inspect = Callable[[Row], Facts]  # raises RowError


class Found(NamedTuple):
    """Where a row stands, before it is known whether it is in order; `read` raises RowError."""

    place: str
    offset: int
    size: int
    text: int
    read: Callable[[], Row]


def row_id(content: Any) -> str | None:
    """Return the ``id`` of a row as text; None if it has none."""
    value = content.get("id") if isinstance(content, dict) else None
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


class Rows(ABC):
    """The rows of a file by number: a table of `ENTRY` and what was left out of it."""

    path: Path
    table: np.ndarray
    omitted: list[Omission]

    @abstractmethod
    def read(self, number: int) -> Row:
        """Return a row. RowError where it cannot be read."""


class ListedRows(Rows):
    """The rows of a JSON list, all of them in memory."""

    def __init__(self, path: Path, rows: list[Any], inspect: Inspect) -> None:
        self.path, self.rows, self.omitted = path, rows, []
        places = (Found(f"row{n}", n, 0, len(str(row)), partial(Row, row)) for n, row in enumerate(rows))
        entries = b"".join(_entries(places, inspect, self.omitted))
        self.table = np.frombuffer(bytearray(entries), ENTRY)
        self.omitted += _leave_out_repeats(self.table, lambda n: (self.read(n), f"row{self.table['offset'][n]}"))

    def read(self, number: int) -> Row:
        return Row(self.rows[self.table["offset"][number]])


class IndexedRows(Rows):
    """The rows of a ``.jsonl`` or ``.tar`` file, read one at a time.

    The index is a file of its own: an `ENTRY` for each row, then JSON that says of which file it is. It is
    memory-mapped, so that all processes of a machine share it, and made again where the file has another size or time.
    The file is looked at again with every row, since an offset means nothing in another one.

    Args:
        path: the rows.
        index: where the index is, or will be written.
        inspect: what a row is found to be in order with, once, for the index.

    Raises:
        ValueError: no shard, or one that was cut off; or the index may not be written there.
    """

    def __init__(self, path: Path, index: Path, inspect: Inspect) -> None:
        self.path, self.index = path, index
        self.identity = _identity(os.stat(path))
        if not self._load():
            try:
                with locked(index.with_name(f"{index.name}.lock"), f"the index of {path.name}", wait=True):
                    if not self._load():  # nor did another process make it meanwhile
                        self._make(inspect)
                        self._load()
            except PermissionError as error:
                raise ValueError(
                    f"the index of {path} cannot be written to {index} ({error.strerror}); give a folder where it may "
                    "be, with --data.index_folder"
                ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "table": None}  # mapped again in the other process

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if not self._load():
            raise ValueError(f"the index {self.index} is gone or was changed; start the command again")

    def read(self, number: int) -> Row:
        """Return a row.

        Raises:
            RowError: it cannot be read, or not as it could when the index was made.
            ValueError: the file was changed while it was used.
        """
        offset, size = int(self.table["offset"][number]), int(self.table["size"][number])
        try:
            with self.path.open("rb", buffering=0) as file:
                if _identity(os.fstat(file.fileno())) != self.identity:
                    raise ValueError(
                        f"{self.path} was changed while it was used, so its index no longer fits; start the command "
                        "again, which makes the index anew"
                    )
                if self.path.suffix != ".tar":
                    return _row_of_line(os.pread(file.fileno(), size, offset))
                file.seek(offset)
                with tarfile.open(fileobj=file, mode="r:") as shard:
                    members = []
                    for member in shard:
                        if member.offset >= offset + size:
                            break
                        members += [] if member.isdir() else [member]
                return self._row_of(members, file.fileno())
        except (OSError, tarfile.TarError) as error:
            raise RowError(f"cannot be read ({error})") from error

    # ---- the index
    def _load(self) -> bool:
        """Map the index, if there is one that fits."""
        try:
            with self.index.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(0, end - 8))
                start = end - 8 - struct.unpack("<Q", file.read(8))[0]
                file.seek(start)
                about = parse_json(file.read()[:-8].decode(), self.index)
            fits = about["version"] == VERSION and about["file"] == self.identity
            if fits and start == about["rows"] * ENTRY.itemsize:
                self.omitted = [Omission(*omission) for omission in about["omitted"]]
                size = about["rows"]
                self.table = np.memmap(self.index, ENTRY, "r", shape=(size,)) if size else np.empty(0, ENTRY)
                return True
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            pass
        log.info("%s does not fit %s as it is now; it is made again", self.index.name, self.path.name)
        return False

    def _make(self, inspect: Inspect) -> None:
        """Read every row once, and write the index whole or not at all."""
        log.info("the index of %s is made: every row is read once", self.path.name)
        omitted: list[Omission] = []
        finder = self._members if self.path.suffix == ".tar" else self._lines
        with replacing(self.index) as temporary:
            with temporary.open("wb") as file:
                file.writelines(_entries(finder(), inspect, omitted))
                rows = file.tell() // ENTRY.itemsize
            if rows:
                self.table = np.memmap(temporary, ENTRY, "r+", shape=(rows,))
                omitted += _leave_out_repeats(self.table, lambda n: (self.read(n), f"byte{self.table['offset'][n]}"))
                self.table.flush()
            about = {"version": VERSION, "file": self.identity, "rows": rows, "omitted": omitted}
            text = json.dumps(about).encode()
            with temporary.open("ab") as file:
                file.write(text + struct.pack("<Q", len(text)))

    def _lines(self) -> Iterator[Found]:
        offset = number = 0
        with self.path.open("rb") as file:
            while line := file.readline(MAX_ROW + 1):
                number, size, start = number + 1, len(line), offset
                while len(line) > MAX_ROW and not line.endswith(b"\n"):  # the rest of a line that is too long
                    line = file.readline(MAX_ROW + 1)
                    size += len(line)
                offset += size
                if line.strip():
                    row = line if size == len(line) else None
                    yield Found(f"line{number}", start, size, size, partial(_row_of_line, row))

    def _members(self) -> Iterator[Found]:
        try:
            with self.path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as shard:
                group: list[tarfile.TarInfo] = []
                for member in shard:
                    shard.members = []  # type: ignore[attr-defined]  # grows with the shard, and no stub knows it
                    if member.isdir():
                        continue
                    if group and _key(member) != _key(group[0]):
                        yield self._found(group, member.offset, file.fileno())
                        group = []
                    group.append(member)
                end = int(shard.offset)
                if group:
                    yield self._found(group, end, file.fileno())
                if os.pread(file.fileno(), tarfile.BLOCKSIZE, end) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError(f"neither a member nor the end at byte {end}")
        except tarfile.TarError as error:
            raise ValueError(
                f"{self.path} is no whole, uncompressed tar ({error}); copy it again, or unpack its compression"
            ) from error

    def _found(self, members: Sequence[tarfile.TarInfo], end: int, handle: int) -> Found:
        start = members[0].offset
        text = sum(m.size for m in members if m.name.endswith((".json", ".txt")))
        whole = list(members)
        return Found(_key(members[0]), start, end - start, min(text, MAX_ROW), lambda: self._row_of(whole, handle))

    def _row_of(self, members: Sequence[tarfile.TarInfo], handle: int) -> Row:
        """Return the row that the members of one key are. RowError if they are none."""
        files: dict[str, list[Path]] = {"image": [], "video": []}
        words: dict[str, bytes] = {}
        for member in members:
            parts = PurePosixPath(member.name.replace("\\", "/"))
            if parts.is_absolute() or ".." in parts.parts:
                raise RowError(f"the member {member.name!r} leaves the shard")
            if not member.isreg() or member.issparse():
                raise RowError(f"the member {member.name!r} is a link, a device or full of holes; expected a file")
            match = KEY.fullmatch(member.name)
            kind = match[2].rpartition(".")[2].lower() if match else ""
            if kind in PICTURES + VIDEOS:
                path = member_path(self.path, member.offset_data, member.size, parts.name)
                files["image" if kind in PICTURES else "video"].append(path)
            elif match and match[2] in ("json", "txt"):
                if member.size > MAX_ROW:
                    raise RowError(f"{member.name!r} has {member.size} bytes; expected at most {MAX_ROW}")
                if match[2] in words:
                    raise RowError(f"{member.name!r} stands twice in the shard")
                words[match[2]] = os.pread(handle, member.size, member.offset_data)
        if "json" in words:
            content = _parsed(words["json"])
        elif "txt" in words:
            content = {"caption": _utf8(words["txt"])}
        else:
            raise RowError(f"the key {_key(members[0])!r} has neither .json nor .txt")
        return Row({"id": _key(members[0])} | content if isinstance(content, dict) else content, files)


def _row_of_line(line: bytes | None) -> Row:
    """Return the row of a line of JSON; None is a line that is too long."""
    return Row(_parsed(line))


def _key(member: tarfile.TarInfo) -> str:
    match = KEY.fullmatch(member.name)
    return match[1] if match else member.name


def _identity(status: os.stat_result) -> list[int]:
    """Return size and time of a file, as they are kept in its index."""
    return [status.st_size, status.st_mtime_ns]


def _utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowError(f"is not UTF-8 (byte {error.start}); save it as UTF-8 again") from None


def _parsed(data: bytes | None) -> Any:
    if data is None or len(data) > MAX_ROW:
        raise RowError(f"has more than {MAX_ROW} bytes; divide it")
    try:
        return parse_json(_utf8(data), "it")
    except RowError:
        raise
    except ValueError as error:
        raise RowError(f"is not JSON ({error})") from None


def _entries(places: Iterable[Found], inspect: Inspect, omitted: list[Omission]) -> Iterator[bytes]:
    """Yield the entry of each row that is in order; the others are added to ``omitted``."""
    for place, offset, size, text, read in places:
        name = None
        try:
            row = read()
            name = row_id(row.content)
            answers, first_clip = inspect(row)
            if answers > MAX_ANSWERS:
                raise RowError(f"has {answers} answers; expected at most {MAX_ANSWERS}")
        except RowError as reason:
            omitted.append(Omission(name, place, str(reason), isinstance(reason, FileMissing)))
            continue
        digest = hashlib.blake2b(str(name).encode(errors="surrogatepass"), digest_size=8).digest()
        yield struct.pack("<QQIHH8s", offset, size, text, answers, min(first_clip, NO_CLIP), digest)


def _leave_out_repeats(table: np.ndarray, read: Callable[[int], tuple[Row, str]]) -> list[Omission]:
    """Mark the rows whose id an earlier one has, and return them.

    Args:
        read: number -> row, and where it stands.
    """
    names = table["name"]
    order = np.argsort(names, kind="stable")  # of equal ones the first in the file comes first
    repeats = order[1:][names[order][1:] == names[order][:-1]]
    omitted = []
    for number in np.sort(repeats).tolist():
        row, place = read(number)
        table["answers"][number] = 0
        omitted.append(Omission(row_id(row.content), place, "a second row of this id"))
    return omitted
