r"""Subtitles (.srt, .vtt): what is said in a film, and when.

    1
    00:00:01,000 --> 00:00:02,500
    <i>Who took it?</i>

Read are both forms, and what players accept: a BOM, CRLF, hours left out, a point or a comma before the fraction,
positions behind the times, several lines, blocks that no blank line parts, overlapping times. Tags (``<i>``,
``<font ...>``, karaoke times) and overrides (``{\an8}``) are taken out, entities become characters; the voice of WebVTT
(``<v Anna>``) is the speaker. Blocks that cannot be read are listed, and end nothing.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zoo.data.text import check_encoding, clean_text, read_text, some

SUBTITLES = (".srt", ".vtt")
MAX_BYTES = 8 << 20  # of a file: twenty-four hours of talk are a tenth of it
_TIME = r"(?:(\d{1,3}):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,6}))?"
TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
VOICE = re.compile(r"<v(?:\.[^\s<>]*)?\s([^<>]+)>")
TAG = re.compile(r"</?[a-zA-Z][^<>]*>|<\d[\d:.]*>|\{\\[^{}]*\}")  # 3 < 5 stays
ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z]{2,8});")
NOT_SPOKEN = ("WEBVTT", "NOTE", "STYLE", "REGION")  # how the blocks of WebVTT begin that hold no text


@dataclass(frozen=True)
class Subtitle:
    """What is said from ``start`` to ``end``, in seconds."""

    start: float
    end: float
    text: str
    speaker: str = ""


@dataclass(frozen=True)
class Subtitles:
    """The lines of a file in the order in which they begin, and what could not be read.

    Attributes:
        lines: with 0 <= start < end and a text each; they may overlap.
        problems: one sentence for each block that was left out.
    """

    lines: tuple[Subtitle, ...]
    problems: tuple[str, ...] = ()


def read_subtitles(path: Path, encoding: str | None = None) -> Subtitles:
    """Read a file of subtitles.

    Args:
        path: an .srt or .vtt file.
        encoding: of the file; None: UTF-8, or ASCII with Windows punctuation that can be nothing else.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another ending, a file that is too large or in another encoding, or not one readable block.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; expected subtitles ({', '.join(SUBTITLES)})")
    if path.suffix.lower() not in SUBTITLES:
        raise ValueError(f"--subtitles {path} ends in {path.suffix or 'nothing'!r}; expected {' or '.join(SUBTITLES)}")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes; expected subtitles of at most {MAX_BYTES}. Is it a film?")
    text, _ = read_text(path, check_encoding("--encoding", encoding) or (), "--encoding")
    lines: list[Subtitle] = []
    problems: list[str] = []
    for number, block in _blocks(text):
        outcome = _read_block(block)
        if isinstance(outcome, Subtitle):
            lines.append(outcome)
        else:
            problems.append(f"line {number}: {outcome}")
    if not lines:
        reasons = some(problems, 2) or "it is empty"
        raise ValueError(
            f"{path} holds no subtitle that can be read ({reasons}); expected times like 00:00:01,000 --> "
            "00:00:02,500 and a text below them"
        )
    return Subtitles(tuple(sorted(lines, key=lambda line: (line.start, line.end))), tuple(problems))


def _blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the blocks that should hold a subtitle, from the line of their times on, each with its line number.

    A block ends at a blank line, or where the next one's times follow without one; its number or name above the times
    is left out. One without times is yielded as it is, unless WebVTT says that it is no text.
    """
    block: list[str] = []
    start, timed = 0, False
    for number, line in enumerate([*re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff")), ""], 1):
        if "-->" in line:
            if len(block) > 1 and block[-1].strip().isdigit():
                block.pop()  # the number of the next one
            if timed or (len(block) > 1 and not _is_silent(block)):  # what has no times here has lost them
                yield start, block
            block, start, timed = [line], number, True
        elif line.strip():
            start = number if not block else start
            block.append(line)
        elif block:
            if timed or not _is_silent(block):
                yield start, block
            block, timed = [], False


def _is_silent(block: list[str]) -> bool:
    """Tell whether a block without times is one of WebVTT that holds no text."""
    return block[0].lstrip().startswith(NOT_SPOKEN)


def _read_block(block: list[str]) -> Subtitle | str:
    """Return what a block holds, or what is wrong with it."""
    if "-->" not in block[0]:
        return f"{block[0].strip()[:40]!r} has no times"
    match = TIMES.fullmatch(block[0])
    if match is None:
        return f"{block[0].strip()[:60]!r} is no pair of times"
    start, end = _seconds(*match.groups()[:4]), _seconds(*match.groups()[4:])
    if start is None or end is None or start >= end:
        return f"{block[0].strip()[:60]!r} does not end after it begins"
    raw = "\n".join(block[1:])
    voice = VOICE.search(raw)
    text, speaker = _plain(raw), "" if voice is None else _plain(voice[1])
    return Subtitle(start, end, text, speaker) if text else "it holds no text"


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str | None) -> float | None:
    """Return a time in seconds; None if a minute or second is over 59."""
    if int(minutes) > 59 or int(seconds) > 59:
        return None
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{fraction or 0}")


def _plain(text: str) -> str:
    """Return a text without tags, its entities as characters, cleaned as the corpora's texts are."""
    return clean_text(ENTITY.sub(lambda match: html.unescape(match[0]), TAG.sub("", text)))
