"""Read and write files safely.

Text is read with limits and refused by name, files are written whole or not at all, and a file that two commands must
not write at once has a lock.

Plain Python and PyYAML; nothing here knows what a file means.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

MAX_DEPTH = 100  # of nested lists and mappings in a JSON or YAML file
MAX_NODES = 1_000_000  # of a YAML document once its aliases are written out
MAX_DIGITS = 1000  # of one number
MAX_NAME = 255  # bytes of a file's name, on every filesystem in use


# ---------------------------------------------------------------------------------------------------------- reading
class _StrictLoader(yaml.SafeLoader):
    """A loader of YAML as plain values, which refuses what would be read otherwise than it looks.

    A key that stands twice (YAML keeps the last one), nesting without end, aliases that multiply into more than
    `MAX_NODES` values.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[int, int] = {}  # id of a node -> how many values it stands for
        self._open: list[str | None] = []  # anchors of the nodes that are being composed

    def _next_event(self) -> Any:
        """Return the event that is read next."""
        return self.peek_event()  # type: ignore[no-untyped-call]  # as untyped as its stub

    @staticmethod
    def _mark(part: Any) -> Any:
        """Return where an event or a node begins; the marks of PyYAML's two parsers have types of their own."""
        return part.start_mark

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        if self._depth >= MAX_DEPTH:
            raise yaml.constructor.ConstructorError(
                None, None, f"nested deeper than {MAX_DEPTH}", self._mark(self._next_event())
            )
        event = self._next_event()
        if isinstance(event, yaml.AliasEvent) and event.anchor in self._open:
            raise yaml.constructor.ConstructorError(
                None, None, f"*{event.anchor} stands inside of what it stands for", self._mark(event)
            )
        self._depth += 1
        self._open.append(event.anchor)
        node = super().compose_node(parent, index)
        self._open.pop()
        self._depth -= 1
        if node is not None and self._size(node) > MAX_NODES:
            raise yaml.constructor.ConstructorError(
                None, None, f"its aliases stand for more than {MAX_NODES} values", self._mark(node)
            )
        return node

    def _size(self, node: yaml.Node) -> int:
        """Values that a node stands for. Its parts are composed before it, so each is counted once."""
        if id(node) not in self._sizes:
            parts: Iterable[yaml.Node] = ()
            if isinstance(node, yaml.MappingNode):
                parts = (part for pair in node.value for part in pair)
            elif isinstance(node, yaml.SequenceNode):
                parts = node.value
            self._sizes[id(node)] = 1 + sum(self._sizes.get(id(part), 1) for part in parts)
        return self._sizes[id(node)]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[Any, yaml.Mark] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<`, which may stand beside keys that it fills in
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict | set):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or mapping", key_node.start_mark)
            if key in first:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the key {key!r} stands twice, first in line {first[key].line + 1}; keep one of them",
                    key_node.start_mark,
                )
            first[key] = key_node.start_mark
        return super().construct_mapping(node, deep=deep)


def parse_yaml(text: str, where: object) -> Any:
    """Return the plain values of a YAML text.

    Args:
        where: what the text is, for error messages: a path, or the name of an option.

    Raises:
        ValueError: no YAML, more than plain values, a key that stands twice, or beyond the limits of this module.
    """
    try:
        loader = _StrictLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # ValueError: a date 2026-99-99
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        raise ValueError(f"{where}{place} is not YAML of plain values ({problem}); correct it") from error


def read_yaml(path: Path) -> Any:
    """Return the plain values of a YAML file; see `parse_yaml`.

    Raises:
        ValueError: as `parse_yaml`; also for text that is not UTF-8. Names the file.
    """
    return parse_yaml(_utf8(path), path)


def parse_json(text: str, where: object) -> Any:
    """Return the values of a JSON text.

    Raises:
        ValueError: no JSON, nested deeper than `MAX_DEPTH`, or a number of more than `MAX_DIGITS` digits.
    """

    def integer(digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            raise ValueError(f"a number of {len(digits)} digits")
        return int(digits)

    try:
        content = json.loads(text, parse_int=integer)
        if _deeper(content, MAX_DEPTH):
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not readable JSON ({error}); write it again") from error
    return content


def read_json(path: Path) -> Any:
    """Return the values of a JSON file; see `parse_json`."""
    return parse_json(_utf8(path), path)


def read_jsonl(path: Path) -> list[Any]:
    """Return the values of a file with one JSON value per line; empty lines are left out.

    Raises:
        ValueError: naming the file and the line that is not JSON.
    """
    lines = enumerate(split_lines(_utf8(path)), 1)
    return [parse_json(line, f"{path} line {number}") for number, line in lines if line.strip()]


def split_lines(text: str) -> list[str]:
    """Return the lines of a text, divided at ``\\n``, ``\\r\\n`` and ``\\r`` alone.

    `str.splitlines` divides at U+0085, U+2028 and six more as well, which are ordinary characters inside an utterance.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def inside(folder: Path, name: object, where: object) -> Path:
    """Return the path of a file inside a folder, from a name that stands in another file.

    Args:
        name: a relative path with ``/``.
        where: the file and entry that the name stands in, for the message.

    Raises:
        ValueError: the name leads out of the folder, also through a link, or no file can have it.
    """

    def refuse(why: str) -> ValueError:
        shortened = repr(name) if len(repr(name)) <= 120 else f"{repr(name)[:120]}..."
        return ValueError(f"{where} names {shortened}, which {why}; expected the name of a file inside {folder}")

    if not isinstance(name, str) or not name.strip():
        raise refuse("is no name")
    if any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise refuse("holds a control character")
    if "\\" in name or name.startswith("/") or (len(name) > 1 and name[1] == ":"):
        raise refuse("is absolute or written for Windows")
    parts = PurePosixPath(name).parts
    if ".." in parts or not parts:
        raise refuse("leads out of the folder")
    try:
        if any(len(part.encode()) > MAX_NAME for part in parts) or len(name.encode()) > 4 * MAX_NAME:
            raise refuse("is too long for a file")
    except UnicodeEncodeError:
        raise refuse("is not UTF-8") from None
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise refuse("leads out of the folder through a link")
    return path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _utf8(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8 again") from error


def _deeper(content: Any, depth: int) -> bool:
    level = [content]
    for _ in range(depth):
        level = [
            part
            for value in level
            if isinstance(value, dict | list)
            for part in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return False
    return True


# ---------------------------------------------------------------------------------------------------------- writing
UMASK = os.umask(0)  # read once: reading it sets it, for all threads
os.umask(UMASK)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` to write to, which takes its place at the end.

    A reader of ``path`` finds the old file or the new one whole, also after a kill or a power cut. If the block raises,
    ``path`` stays as it was.

    What killed commands left beside ``path`` is removed; a temporary file that is being written is locked, and stays.
    A link stays one: the file that it leads to is replaced. What the disk refuses names ``path``.
    """
    asked, path = path, path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        _remove_unlocked(left)
    handle, temporary = _locked_temporary(path)
    try:
        yield temporary
        os.fsync(handle)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _name_file(error, asked, str(temporary))
        raise
    finally:
        os.close(handle)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole, text as UTF-8; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_unsynced(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file whole or not at all, whatever other processes write it; for caches, thousands of small files.

    Unlike `write_whole` it does not wait for the disk: after a power cut the file may be there without its content, so
    whoever reads it needs a checksum.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with open(fd, "wb") as file:
            file.writelines(parts)
        os.chmod(temporary, 0o644)  # mkstemp makes it private; a cache may be shared
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        _name_file(error, path, temporary)
        raise


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yield a folder beside ``out`` that becomes it if all goes well, and is gone otherwise."""
    part = out.with_name(f"{out.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if out.exists():
            out.rmdir()  # empty, or this raises
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as text with one JSON object per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, whole; see `replacing`."""
    write_whole(path, jsonl(rows))


def _name_file(error: BaseException, path: Path, temporary: str) -> None:
    """Let what the disk refused of a temporary file name the one that was meant; a write to an open file names none."""
    if isinstance(error, OSError) and error.errno is not None and error.filename in (None, temporary):
        error.filename = str(path)


def _locked_temporary(path: Path) -> tuple[int, Path]:
    """Return a new file beside ``path`` with the permissions of an ordinary one, open and locked."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:  # else another command took it for one that a killed command left
            os.fchmod(handle, 0o666 & ~UMASK)
            return handle, Path(name)
        os.close(handle)


def _remove_unlocked(path: Path) -> None:
    with contextlib.suppress(OSError):  # it is gone, or somebody is writing it
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(handle)


# ---------------------------------------------------------------------------------------------------------- locks
class InUse(ValueError):
    """Another command holds the lock; the message names it."""


_held: set[int] = set()  # handles of the locks of this process


def _forget_locks() -> None:
    """Close locks in a forked child: a loader's worker would keep them alive after its parent has been killed."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_forget_locks)


@contextlib.contextmanager
def locked(path: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock file ``path`` for the time of a block.

    The kernel releases it with the process, however that ends, so a command that was killed blocks nobody.

    Args:
        what: what may be used by one command at a time, for the message.
        wait: wait for the other command instead of raising.

    Raises:
        InUse: another command holds it; names its host, process and command line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = os.read(handle, 4096).decode(errors="replace").strip()
            os.close(handle)
            raise InUse(
                f"{what} is in use by {holder or 'another command'}; wait until it has ended, or stop it"
            ) from None
        if _is(path, handle):  # else its holder removed it between our two calls
            break
        os.close(handle)
    _held.add(handle)
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:300]
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}, since {started}: {command}\n".encode(), 0)
    try:
        yield
    finally:
        if handle in _held:  # not in a forked child
            _held.remove(handle)
            path.unlink(missing_ok=True)
            os.close(handle)


def _is(path: Path, handle: int) -> bool:
    try:
        there, here = os.stat(path), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
