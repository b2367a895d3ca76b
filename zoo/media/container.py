"""Open media files within limits, and tell what is wrong with those that were cut off or damaged.

Imported by the decoding process, which must start fast: no torch, and nothing of the zoo.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import struct
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import soundfile
from PIL import Image

MAX_SECONDS = 600.0
MAX_PIXELS = 4096 * 4096  # of one picture, before resizing
BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"pnot")  # an MP4 or MOV begins with one
MEMBER = re.compile(r"(.+)/@([0-9]+)\+([0-9]+)/[^/]+", re.DOTALL)  # see `member_path`
UNKNOWN_LENGTH = 0x7FFF_FF00  # bytes: lengths from here on mean that the writer did not know


class Unreadable(ValueError):
    """Raised for a file that gives no frames or no sound.

    Raised inside a DataLoader worker it arrives in the main process as Unreadable too, but torch rebuilds it from its
    text alone: `path` and `reason` are then not apart.

    Attributes:
        path: the path that was asked for.
        reason: what is wrong and what to do, in one line.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str = "") -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.reason else str(self.path)


# What libraries raise for bytes that are not what they should be. Anything else is a mistake in our own code.
PARSER_ERRORS = (
    av.FFmpegError,
    soundfile.SoundFileError,
    Image.DecompressionBombError,
    OSError,
    EOFError,
    ValueError,
    SyntaxError,  # Pillow: broken PNG
    struct.error,
    MemoryError,
)


def member_path(archive: Path, offset: int, size: int, name: str) -> Path:
    """Return what some bytes of a file, as of a picture in a tar, are named by: ``shard.tar/@1536+20480/0001.jpg``.

    `open_file`, and with it all of `zoo.media`, opens such a path like that of a file.
    """
    return archive / f"@{offset}+{size}" / name


def _open_member(path: str | os.PathLike[str]) -> int:
    """Return the descriptor of a temporary file with the bytes that `member_path` names."""
    match = MEMBER.fullmatch(os.fsdecode(path))
    if match is None:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    left = int(match[3])
    with open(match[1], "rb") as archive, tempfile.TemporaryFile() as copy:
        if not stat.S_ISREG(os.fstat(archive.fileno()).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        archive.seek(int(match[2]))
        while left and (part := archive.read(min(left, 2**20))):
            copy.write(part)
            left -= len(part)
        if left:
            raise Unreadable(path, f"lies {left} bytes beyond the end of {os.path.basename(match[1])}; copy that again")
        copy.seek(0)  # writes what is left in the buffer, too
        return os.dup(copy.fileno())


@contextlib.contextmanager
def open_file(path: str | os.PathLike[str]) -> Iterator[int]:
    """Open a regular, non-empty file and yield its descriptor; whatever its bytes cause is raised as Unreadable.

    Also what `member_path` names: bytes of a file.
    """
    try:
        try:
            # O_NONBLOCK: opening a pipe nobody writes to would wait for ever
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except NotADirectoryError:
            fd = _open_member(path)
    except FileNotFoundError:
        raise Unreadable(path, "no such file; check the folder given as root") from None
    except (OSError, ValueError) as e:
        raise Unreadable(path, f"cannot be opened ({e.strerror if isinstance(e, OSError) else e})") from None
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise Unreadable(path, "is a folder; give a file")
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable(path, "is a pipe or a device; give a file")
        if status.st_size == 0:
            raise Unreadable(path, "is empty (0 bytes); copy or download it again")
        yield fd
    except Unreadable:
        raise
    except MemoryError:
        raise Unreadable(path, "needs too much memory to decode; make it smaller or shorter") from None
    except PARSER_ERRORS as e:
        if os.pread(fd, 8, 0)[4:] == b"ftyp" and isinstance(e, av.error.InvalidDataError):
            reason = "is an MP4 without its index (moov), cut off while it was written; copy or download it again"
        else:
            what = e.strerror if isinstance(e, OSError | av.FFmpegError) and e.strerror else str(e)
            reason = f"is broken, or no video, sound or picture ({' '.join(what.split())[:200]}); replace or convert it"
        raise Unreadable(path, reason) from e
    finally:
        os.close(fd)


@contextlib.contextmanager
def open_container(fd: int) -> Iterator[av.container.InputContainer]:
    """Open the file of a descriptor with FFmpeg."""
    # By descriptor, not by name: a name may look like a URL or a list, and its suffix would sway the guess of the
    # format. The whitelist keeps playlists from opening further files or addresses.
    os.lseek(fd, 0, os.SEEK_SET)
    with av.open("fd:", options={"fd": str(fd), "protocol_whitelist": "fd"}, metadata_errors="replace") as container:
        yield container


def first_stream(
    path: str | os.PathLike[str], container: av.container.InputContainer, kind: Literal["video", "audio"]
) -> Any:
    """Return the first stream of a kind, set up to decode in one thread.

    Clips are small, and workers share the cores. Unreadable if there is none, or if it cannot be decoded.
    """
    streams = [s for s in getattr(container.streams, kind) if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        kinds = ", ".join(s.type for s in container.streams) or "none"
        raise Unreadable(path, f"has no {kind} stream (streams: {kinds}); leave its {kind} out or replace it")
    if streams[0].codec_context is None:
        raise Unreadable(path, f"has {kind} in a format that this PyAV cannot decode; convert it to H.264 and AAC")
    streams[0].codec_context.thread_count = 1
    return streams[0]


def decode_stream(container: av.container.InputContainer, stream: Any, lost: list[int]) -> Iterator[Any]:
    """Yield the frames of a stream in presentation order; lost[0] counts packets that do not decode."""
    packets = container.demux(stream)
    while True:
        try:
            frames = next(packets).decode()
        except StopIteration:  # also after an error of the reader itself: what was read so far is used
            return
        except MemoryError:
            raise
        except av.FFmpegError as e:
            lost[0] += not isinstance(e, av.error.EOFError)
            continue
        for frame in frames:
            lost[0] += frame.is_corrupt
            yield frame


def clip_start(container: av.container.InputContainer) -> Fraction:
    """Return the time stamp, in seconds, that is time 0 of the clip; what lies before it is the coder's lead-in."""
    return max(Fraction(container.start_time or 0, av.time_base), Fraction(0))


def check_seconds(path: str | os.PathLike[str], seconds: float, max_seconds: float) -> None:
    """Raise Unreadable for a clip longer than the limit."""
    if seconds > max_seconds:
        raise Unreadable(
            path,
            f"is longer than {max_seconds:g} s; cut it into clips, or raise the limit "
            "(--model.max_clip_seconds; of zoo prepare: --max_clip_seconds)",
        )


def promised_seconds(container: av.container.InputContainer, stream: Any) -> float:
    """Return the seconds that the headers promise of a stream; 0 if they say nothing."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    duration = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))  # Matroska's
    if duration:
        return int(duration[1]) * 3600 + int(duration[2]) * 60 + float(duration[3])
    # the container's is that of its longest stream: it says nothing about a shorter one
    return container.duration / av.time_base if container.duration and len(container.streams) == 1 else 0.0


def cut_note(decoded: float, promised: float, torn: bool, tolerance: float, what: str) -> str | None:
    """Describe a file that was cut off; None for a whole one.

    Args:
        decoded: seconds that could be decoded.
        promised: seconds that its headers promise; 0 if they say nothing.
        torn: the file ends before its own end: then whatever is missing counts. Else headers may be slightly wrong.
        tolerance: seconds.
    """
    if torn and not promised:
        return f"cut short: cut off after {decoded:.2f} s of {what}"
    least = promised - tolerance if torn else 0.9 * promised - 0.2
    if decoded < least:
        return f"cut short: cut off after {decoded:.2f} of {promised:.2f} s of {what}"
    return None


def missing_bytes(fd: int) -> int:
    """Count the bytes that the headers of the container promise behind the end of the file.

    0 also where a format does not say; 1 for an Ogg stream without its last page.
    """
    size, head = os.fstat(fd).st_size, os.pread(fd, 64, 0)
    end = 0
    if head[4:8] in BOXES:
        while end + 8 <= size:
            box = os.pread(fd, 16, end)
            length = int.from_bytes(box[:4], "big")
            length = int.from_bytes(box[8:], "big") if length == 1 else length
            if length < 8 or not box[4:8].isascii():  # 0: up to the end of the file
                return 0
            end += length
    elif head[:4] == b"RIFF":
        while (chunk := os.pread(fd, 8, end))[:4] == b"RIFF":
            length = int.from_bytes(chunk[4:], "little")
            if not 0 < length < UNKNOWN_LENGTH:  # written to a pipe
                return 0
            end += 8 + length
    elif head[:4] == b"\x1aE\xdf\xa3":
        header, offset = _ebml_number(head, 4)
        segment = os.pread(fd, 12, offset + header)
        if segment[:4] != b"\x18S\x80g":
            return 0
        length, start = _ebml_number(segment, 4)
        if length == 2 ** (7 * (start - 4)) - 1:  # unknown
            return 0
        end = offset + header + start + length
    elif head[:4] == b"OggS":
        tail = os.pread(fd, 2**16 + 2**9, max(0, size - 2**16 - 2**9))
        last = tail[tail.rfind(b"OggS") :]
        return int(len(last) < 27 or not last[5] & 4)
    return max(0, end - size - 1)  # a chunk of an odd length is padded


def _ebml_number(data: bytes, offset: int) -> tuple[int, int]:
    """Read a length of Matroska's, and return it with the offset where it ends."""
    width = 9 - data[offset].bit_length() if len(data) > offset and data[offset] else 8
    return int.from_bytes(data[offset : offset + width], "big") & (2 ** (7 * width) - 1), offset + width
