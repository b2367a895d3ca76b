"""Decode each file of a corpus once: arrays are kept on disk, unreadable files are remembered."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np

from zoo.media import worker
from zoo.media.container import MAX_PIXELS, MAX_SECONDS, Unreadable, open_file
from zoo.media.frames import PixelBudget, Position, Size, normalize_request
from zoo.media.sound import resample
from zoo.storage import write_unsynced

VERSION = 2  # of what comes out: raise it whenever a change here changes an array or what is said of it, and every
# cache is made again


class Media:
    """Frames and waveforms of a corpus, each file decoded once, in a decoding process with a time limit.

    May be pickled, forked and used from several threads; each process and thread has its own decoding process.

    The folder `cache` holds:

    - `{sha256[:2]}/{sha256}-v{VERSION}-{request}.npy`: one array each (with a checksum behind it), readable by
      `np.load`. Files with equal bytes share it; a damaged entry is made again. May be deleted at any time.
    - `paths/`: which file (size, time, inode) had which hash, so that files are not read again in every epoch.
    - `problems.jsonl`: what could not be read, or not whole. A file that stands here as unreadable is not tried again
      with the same request, limits and PyAV; a repaired file has another hash and is. Delete the line, or the file, to
      have it tried again, e.g. when the time limit passed on a busy machine. Files are named as they were given if
      that was relative, else by their last name: no path of this machine gets in.

    Args:
        cache: folder for the arrays; None: nothing is kept but the memory of unreadable files.
        timeout: seconds one file may take to decode.
        max_seconds: a longer clip is refused.
        max_pixels: a larger picture is refused.
    """

    def __init__(
        self,
        cache: Path | None = None,
        timeout: float = 30.0,
        max_seconds: float = MAX_SECONDS,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        for name, value in (("timeout", timeout), ("max_seconds", max_seconds), ("max_pixels", max_pixels)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is a number over 0, got {value!r}")
        self.cache = None if cache is None else Path(cache)
        self.timeout, self.max_seconds, self.max_pixels = timeout, max_seconds, max_pixels
        self._limits = f"v{VERSION} PyAV {av.__version__} {timeout:g} s, {max_seconds:g} s, {max_pixels} px"
        self._hashes: dict[str, tuple[str, str]] = {}  # absolute path -> what the file looked like, sha256
        self._problems: dict[tuple[str | None, ...], dict[str, Any]] = {}
        self._problems_file: tuple[int, ...] = ()  # size, time and inode of problems.jsonl when it was last read
        self._problems_read = 0, 0  # its bytes that are in _problems: how many, and their checksum
        self._new_problems: list[dict[str, Any]] = []  # rows of what was asked for since `new_problems` was last called

    def frames(
        self, path: str | os.PathLike[str], n: int | None = None, position: Position = "uniform", size: Size = None
    ) -> np.ndarray:
        """Return frames as `read_frames` does: uint8 (T, 3, H, W).

        With a budget of pixels, frames of twice as many or more are reduced to it before they are kept.
        """
        n, position, size = normalize_request(n, position, size)
        size_name = "x".join(map(str, size)) if isinstance(size, tuple) else size or "full"
        place = position if not isinstance(position, tuple) else "{}-to-{}".format(*position)
        request = f"frames-{n or 'all'}-{place}-{size_name}"
        limits = {"max_seconds": self.max_seconds, "max_pixels": self.max_pixels}

        def reduced(frames: np.ndarray, answer: Mapping[str, Any]) -> np.ndarray:
            return _reduced(frames, size) if isinstance(size, PixelBudget) else frames

        return self._get(path, request, reduced, kind="frames", n=n, position=position, size=size, **limits)

    def waveform(self, path: str | os.PathLike[str], rate: int = 16_000) -> np.ndarray:
        """Return sound as `read_waveform` does: float32 (N,)."""

        def resampled(sound: np.ndarray, answer: Mapping[str, Any]) -> np.ndarray:
            return resample(sound, answer["rate"], rate)

        return self._get(path, f"waveform-{rate}", resampled, kind="waveform", max_seconds=self.max_seconds)

    def piece(self, path: str | os.PathLike[str], start: float, end: float) -> tuple[bytes, float]:
        """Cut the picture of a film from ``start`` to ``end`` out, as `cut_picture` does; nothing of it is kept.

        Raises:
            Unreadable: see `cut_picture`.
        """
        decoder = worker.current_decoder()
        piece, answer = decoder.decode(path, self.timeout, kind="piece", start=start, end=end)
        return piece.tobytes(), float(answer["begin"])

    def facts(self, path: str | os.PathLike[str], part: Literal["video", "audio"]) -> str:
        """Describe the pictures or the sound of a file in words; nothing is kept. Unreadable if there are none."""
        limits = {"max_seconds": self.max_seconds, "max_pixels": self.max_pixels}
        _, answer = worker.current_decoder().decode(path, self.timeout, kind="facts", part=part, **limits)
        return str(answer["facts"])

    @property
    def unreadable(self) -> list[dict[str, Any]]:
        """Rows {file, sha256, request, problem, reason, limits} of files that gave nothing.

        With a cache these are of all processes that used it with these limits; missing files (no hash) of this
        process alone. A file repaired since then keeps its row, under its old hash.
        """
        return self._rows("unreadable")

    @property
    def damaged(self) -> list[dict[str, Any]]:
        """Rows as above of files of which only a part could be read; the part is used."""
        return self._rows("damaged")

    def new_problems(self) -> list[dict[str, str]]:
        """Return rows {file, path, problem, reason} of what was asked for since the last call and was not whole.

        Each row comes once, also where the array came from the cache. In a loader's worker: of that worker alone. The
        file is named as it may leave this machine, the path is the one that was asked for.
        """
        keys = ("file", "path", "problem", "reason")
        rows = {tuple(row[key] for key in keys): None for row in self._new_problems}
        self._new_problems = []
        return [dict(zip(keys, row, strict=True)) for row in rows]

    def report(self, path: str | os.PathLike[str], reason: str, problem: str = "unreadable") -> None:
        """Note a problem of a file for `new_problems` that is not found in decoding it, at least not now."""
        self._add_new({"problem": problem, "reason": reason}, path)

    def damage(self, path: str | os.PathLike[str]) -> str | None:
        """Return what was wrong with a file of which a part was read since `new_problems` was last called."""
        rows = (row for row in self._new_problems if row["problem"] == "damaged" and row["path"] == os.fsdecode(path))
        return next((row["reason"] for row in rows), None)

    def _add_new(self, row: dict[str, Any], path: str | os.PathLike[str]) -> None:
        self._new_problems.append(row | {"file": _portable_name(path), "path": os.fsdecode(path)})

    def _get(
        self,
        path: str | os.PathLike[str],
        request: str,
        finish: Callable[[np.ndarray, Mapping[str, Any]], np.ndarray],
        **arguments: Any,
    ) -> np.ndarray:
        """Return the array of a request from the cache, else decode it and note what is wrong.

        Args:
            finish: makes of what the decoding process answers what is wanted and kept.
        """
        try:
            sha256 = self.sha256_of(path)
        except Unreadable as e:
            self._note(path, None, request, "unreadable", e.reason)
            raise
        entry = self.cache and self.cache / sha256[:2] / f"{sha256}-v{VERSION}-{request}.npy"
        array = _load_entry(entry) if entry else None
        self._read_problems()
        if array is not None:
            if known := self._problems.get((sha256, request, "damaged", self._limits)):
                self._add_new(known, path)
            return array
        if known := self._problems.get((sha256, request, "unreadable", self._limits)):
            self._add_new(known, path)
            raise Unreadable(path, known["reason"])
        try:
            try:
                array, answer = worker.current_decoder().decode(path, self.timeout, **arguments)
            except ProcessLookupError:  # perhaps long ago, and not over this file
                array, answer = worker.current_decoder().decode(path, self.timeout, **arguments)
        except Unreadable as e:
            self._note(path, sha256, request, "unreadable", e.reason)
            raise
        if answer["note"]:
            self._note(path, sha256, request, "damaged", answer["note"])
        array = finish(array, answer)
        if entry:
            _save_entry(entry, array)
        return array

    def sha256_of(self, path: str | os.PathLike[str]) -> str:
        """Return the hash of the file's bytes, remembered while size, time and inode stay the same."""
        absolute = os.path.abspath(path)
        with open_file(path) as fd:
            status = os.fstat(fd)
            identity = f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"
            known_identity, sha256 = self._hashes.get(absolute, ("", ""))
            if identity == known_identity:
                return sha256
            # the name of the memo is itself a hash: no path of this machine gets into the cache
            name = hashlib.sha256(os.fsencode(absolute)).hexdigest()
            memo = self.cache and self.cache / "paths" / name[:2] / name
            with contextlib.suppress(OSError, ValueError):
                if memo:
                    known_identity, sha256 = memo.read_text(encoding="ascii").rsplit(" ", 1)
            if identity != known_identity or len(sha256) != 64:
                with open(fd, "rb", closefd=False) as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                if abs(time.time_ns() - status.st_mtime_ns) < 2e9:
                    return sha256  # still being written, perhaps: a change within the clock's tick would go unseen
                if memo:
                    with contextlib.suppress(OSError):  # a cache one may only read: only slower
                        write_unsynced(memo, [f"{identity} {sha256}".encode()])
            self._hashes[absolute] = (identity, sha256)
            return sha256

    def _note(self, path: str | os.PathLike[str], sha256: str | None, request: str, problem: str, reason: str) -> None:
        """Remember a problem, in the cache where there is one."""
        row = {"file": _portable_name(path), "sha256": sha256, "request": request, "problem": problem, "reason": reason}
        row["limits"] = self._limits
        self._add_new(row, path)
        if self.cache is None or sha256 is None:
            self._problems[self._key(row)] = row
        else:
            self.cache.mkdir(parents=True, exist_ok=True)
            line = json.dumps(row).encode() + b"\n"
            fd = os.open(self.cache / "problems.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(fd, line)  # in one piece: other processes append too
            finally:
                os.close(fd)

    @staticmethod
    def _key(row: Mapping[str, Any]) -> tuple[str | None, ...]:
        """Return what a problem is looked up by."""
        file_identity = row["sha256"] or row["file"]
        return file_identity, row["request"], row["problem"], row["limits"]

    def _read_problems(self) -> None:
        """Read what this and other processes have added to problems.jsonl, and the user removed from it."""
        if self.cache is None:
            return
        try:
            with open(self.cache / "problems.jsonl", "rb") as file:
                status = os.fstat(file.fileno())
                identity = (status.st_size, status.st_mtime_ns, status.st_ino)
                if identity == self._problems_file:
                    return
                text = file.read()
            self._problems_file = identity
        except FileNotFoundError:
            text = b""
        length, checksum = self._problems_read
        if len(text) < length or zlib.crc32(text[:length]) != checksum:  # not only added to: start over
            self._problems = {k: row for k, row in self._problems.items() if row["sha256"] is None}
            length = 0
        until = text.rfind(b"\n") + 1  # another process may be in the middle of a line
        for line in text[length:until].splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a torn line: that file is tried again
                row = json.loads(line)
                self._problems[self._key(row)] = row
        self._problems_read = until, zlib.crc32(text[:until])

    def _rows(self, problem: str) -> list[dict[str, Any]]:
        """Return copies of the noted problems of a kind, under these limits."""
        self._read_problems()
        wanted = (problem, self._limits)
        return [dict(row) for row in list(self._problems.values()) if (row["problem"], row["limits"]) == wanted]


def _portable_name(path: str | os.PathLike[str]) -> str:
    """Return a path as it may stand in a file that leaves this machine."""
    name = os.fsdecode(path)
    return os.path.basename(name) if os.path.isabs(name) or ".." in Path(name).parts else name


def _reduced(frames: np.ndarray, budget: PixelBudget) -> np.ndarray:
    """Reduce frames (T, 3, H, W) to a budget, if that halves them; as the processors of Qwen2-VL do, bit for bit."""
    size = budget.reduced(*frames.shape[2:])
    if size == frames.shape[2:]:
        return frames
    import torch  # here, because the rest of zoo.media needs neither
    from torchvision.transforms.v2.functional import InterpolationMode, resize

    # channels last: the same values, ten times faster for huge pictures
    pixels = torch.from_numpy(frames).contiguous(memory_format=torch.channels_last)
    smaller = resize(pixels, list(size), InterpolationMode.BICUBIC, antialias=True)
    array: np.ndarray = smaller.contiguous(memory_format=torch.contiguous_format).numpy()
    return array


def _save_entry(entry: Path, array: np.ndarray) -> None:
    """Write an array as .npy with a checksum behind it."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    data = np.ascontiguousarray(array).data.cast("B") if array.size else b""
    checksum = zlib.crc32(data, zlib.crc32(header.getvalue()))
    write_unsynced(entry, [header.getvalue(), data, struct.pack("<I", checksum)])


def _load_entry(entry: Path) -> np.ndarray | None:
    """Read a writable array; None if there is no entry or it is not what was written."""
    try:
        with open(entry, "rb") as file:
            text = bytearray(os.fstat(file.fileno()).st_size)
            if file.readinto(text) != len(text) or len(text) < 16:
                return None
    except FileNotFoundError:
        return None
    view = memoryview(text)
    if struct.unpack("<I", view[-4:])[0] != zlib.crc32(view[:-4]):
        return None
    start = 10 + struct.unpack("<H", view[8:10])[0]
    shape, _, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(text[8:start]))
    return np.frombuffer(text, dtype, count=math.prod(shape), offset=start).reshape(shape)
