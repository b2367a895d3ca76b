"""What a user asks about (a line, a clip, a folder, a table) as samples without labels; nothing is decoded here."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from zoo.data.clips import files_below, find_clips
from zoo.data.table_rows import (
    CLIP_ENDINGS,
    KIND,
    SEPARATORS,
    Flags,
    OpenTable,
    TableRow,
    clean_utf8,
    clip_turn,
    open_table,
)
from zoo.data.text import check_encoding, some
from zoo.schema import Labels, Sample, Turn

TEXT_ENDINGS = (".txt", ".json", ".md", ".srt", ".vtt", ".xlsx", ".yaml", ".yml")
FLAGS = Flags("--", {})
TABLE = (
    "video, audio, text, speaker, dialogue, id, label (of an earlier turn) and KIND_description, or MELD's Utterance, "
    "Speaker, Emotion, Dialogue_ID and Utterance_ID"
)


@dataclass(frozen=True)
class Request:
    """What a command asks about.

    Attributes:
        clip: a video, sound or picture, a folder of them, or a table.
        clips: folder of files named after the ids of a table without ``video``.
        text, speaker: of one line or clip.
        context: table of the earlier turns of its dialogue.
        descriptions: ``KIND=TEXT``.
        encoding, separator: of the tables, or of the subtitles; None: UTF-8, or ASCII with Windows punctuation that can
            be nothing else, and what their endings say.
        columns: content -> heading, of columns of the tables that have names of their own, if they are there.
        segments: whether the clip is cut into utterances where somebody speaks (`zoo.label.utterances`).
        subtitles: a file that says when what is said.
    """

    clip: Path | None = None
    clips: Path | None = None
    text: str | None = None
    speaker: str = ""
    context: Path | None = None
    descriptions: Sequence[str] = field(default_factory=list)
    encoding: str | None = None
    separator: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    segments: bool = False
    subtitles: Path | None = None

    @property
    def is_table(self) -> bool:
        return self.clip is not None and self.clip.suffix.lower() in SEPARATORS and not self.clip.is_dir()

    @property
    def asks_for_many(self) -> bool:
        """Whether the clip is a folder or a table."""
        return self.clip is not None and (self.clip.is_dir() or self.is_table)

    @property
    def is_cut(self) -> bool:
        """Whether the clip is cut into utterances."""
        return self.segments or self.subtitles is not None

    @property
    def makes_many(self) -> bool:
        """Whether there may be more than one sample."""
        return self.asks_for_many or self.is_cut


def read_samples(request: Request, labels: Labels) -> list[Sample]:
    """Return the samples of a request, without labels.

    Raises:
        FileNotFoundError, ValueError: naming the option, the file or the row, what was expected and what to do.
    """
    if request.clips is not None and not request.is_table:
        raise ValueError("--clips is the folder of the files that a table names by their ids; give the table as CLIP")
    options_of_one = [f"--{name}" for name in ("text", "speaker", "context", "descriptions") if getattr(request, name)]
    if options_of_one and request.asks_for_many:
        raise ValueError(
            f"{', '.join(options_of_one)} goes with one clip; give many in a table with columns like {TABLE}"
        )
    if request.clip is None or not request.asks_for_many:
        return [_read_single(request, labels)]
    if request.is_table:
        return _read_table_samples(request.clip, request, labels)
    return _read_folder(request.clip, labels)


def display_path(path: Path) -> str:
    """Return a path as text, also where its name is not UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


# --------------------------------------------------------------------------------------------- a line, a clip, a folder
def sample_of(turn: Turn, dialogue: str, labels: Labels, history: Sequence[Turn] = ()) -> Sample:
    """Return a turn as a sample without label; earlier turns that hold nothing are left out."""
    prefix = f"{labels.corpus}/asked"
    filled = tuple(t for t in history if t.text or t.video is not None or t.audio is not None)
    return Sample(f"{prefix}/{turn.id}", f"{prefix}/{dialogue}", labels, replace(turn, label=None), filled)


def _parse_descriptions(pairs: Sequence[str]) -> dict[str, str]:
    """Parse descriptions: ``["audio=a calm voice"]`` -> ``{"audio": "a calm voice"}``."""
    descriptions: dict[str, str] = {}
    for pair in pairs:
        kind, _, text = pair.partition("=")
        if not KIND.fullmatch(kind) or kind in descriptions or not text.strip():
            raise ValueError(f"--descriptions got {pair!r}; expected KIND=TEXT, each kind once: audio='a calm voice'")
        descriptions[kind] = clean_utf8(text, f"the {kind} description")
    return descriptions


def open_clip(clip: Path | None) -> Path | None:
    """Return the same file. FileNotFoundError if it is not there, ValueError if it is a text by its ending."""
    if clip is not None and clip.suffix.lower() in TEXT_ENDINGS and clip.is_file():
        raise ValueError(
            f"{clip} is a text and no clip; give its lines as a CSV table with columns like {TABLE}, "
            "one line with --text, or subtitles with --subtitles"
        )
    if clip is not None and not clip.is_file():
        raise FileNotFoundError(
            f"no file {clip}; expected a video, sound or picture, a folder of them, or a table (CSV, TSV, JSONL)"
        )
    return clip


def _read_single(request: Request, labels: Labels) -> Sample:
    """Return the sample of one clip or line."""
    clip = open_clip(request.clip)
    text, descriptions = clean_utf8(request.text or "", "--text"), _parse_descriptions(request.descriptions)
    if clip is None and not text and not descriptions:
        raise ValueError("there is nothing to label: give CLIP, --text or --descriptions")
    history: list[tuple[str | None, Turn]] = []
    if request.context is not None:
        history = read_turns(request.context, replace(request, clips=None), labels)
        if len({dialogue for dialogue, _ in history}) > 1:
            raise ValueError(f"{request.context} holds several dialogues; expected the earlier turns of one")
    turn = clip_turn(
        display_path(Path(clip.name)) if clip is not None else "line",
        clip,
        text=text,
        speaker=clean_utf8(request.speaker, "--speaker"),
        descriptions=descriptions,
    )
    return sample_of(turn, turn.id, labels, [earlier for _, earlier in history])


def _read_folder(folder: Path, labels: Labels) -> list[Sample]:
    """Return a sample for every clip below a folder, and say which files are left out."""
    unlisted: dict[Path, str] = {}
    below = files_below(folder, unlisted)
    files = [path for path in below if path.suffix.lower() in CLIP_ENDINGS]
    for place, reason in unlisted.items():
        print(f"not looked into: {display_path(place)}: {reason}", file=sys.stderr)
    if others := [display_path(p.relative_to(folder)) for p in below if p.suffix.lower() not in CLIP_ENDINGS]:
        print(f"not of a kind that is read ({', '.join(CLIP_ENDINGS)}): {some(others, 20)}", file=sys.stderr)
    if not files:
        raise FileNotFoundError(f"{folder} holds no file that ends in {', '.join(CLIP_ENDINGS)}")
    names = [display_path(path.relative_to(folder)) for path in files]
    return [sample_of(clip_turn(name, path), name, labels) for name, path in zip(names, files, strict=True)]


# --------------------------------------------------------------------------------------------------------------- tables
def read_turns(path: Path, request: Request, labels: Labels) -> list[tuple[str | None, Turn]]:
    """Read the rows of a table in the order in which they are spoken, each with its dialogue.

    The dialogue is None without such a column.

    Args:
        path: a table with columns as in `TABLE`.
        request: how it is to be read. ``clips`` is for a table without ``video``.
        labels: the only label words there may be.

    Raises:
        FileNotFoundError, ValueError: naming the file and the row, what was expected and what to do.
    """
    clips = request.clips
    table = _open_table(path, request)
    if clips is not None and not clips.is_dir():
        raise FileNotFoundError(f"--clips {clips} is no folder; expected one with files named after the ids")
    files = find_clips(clips, ["."], CLIP_ENDINGS) if clips is not None else {}
    rows: list[tuple[tuple[int, float], str | None, Turn]] = []
    order: dict[str | None, int] = {}  # dialogue -> its position among the dialogues
    ids: set[str] = set()
    for number, cells in table.rows.items():
        row = TableRow(table.columns, cells, path.parent, f"{path} row {number}")
        dialogue = row.text("dialogue") or None
        key = row.key(dialogue, number)
        if not key or key in ids:
            raise ValueError(
                f"{row.where}: the id {key!r} is {'there twice' if key else 'empty'}; give each row its own"
            )
        ids.add(key)
        turn = row.turn(key, _label(row, labels), files.get(key))
        position = order.setdefault(dialogue, len(order))
        rows.append(((position, row.order(len(rows))), dialogue, turn))
    return [(dialogue, turn) for _, dialogue, turn in sorted(rows, key=lambda row: row[0])]


def _label(row: TableRow, labels: Labels) -> str | None:
    """Return the label word, None for an empty cell. ValueError for a word that is no label."""
    label = row.text("label").lower() or None
    if label is not None and label not in labels.names:
        raise ValueError(
            f"{row.where}: unknown label {label!r}; this system's are {', '.join(labels.names)}. Correct "
            "the cell, or leave it empty"
        )
    return label


def _open_table(path: Path, request: Request) -> OpenTable:
    """Read a table; say what is not read of it."""
    if not path.is_file():
        raise FileNotFoundError(f"no table {path}; expected a CSV, TSV or JSONL file with columns like {TABLE}")
    encoding = check_encoding("--encoding", request.encoding) or ()
    table = open_table(path, FLAGS, request.columns, encoding, request.separator, names_are_required=False)
    for note in table.notes:
        print(note, file=sys.stderr)
    if not table.columns.hold_input and request.clips is None:
        got = ", ".join([*table.columns.headings.values(), *table.unread])
        raise ValueError(f"{path} has the columns {got}; expected some of {TABLE}")
    if table.unread:
        print(f"{path}: columns not read: {', '.join(table.unread)}", file=sys.stderr)
    return table


def _read_table_samples(path: Path, request: Request, labels: Labels) -> list[Sample]:
    """Return a sample for every row of a table, with the earlier rows of its dialogue as its history."""
    samples: list[Sample] = []
    histories: dict[str, list[Turn]] = {}
    for dialogue, turn in read_turns(path, request, labels):
        name = turn.id if dialogue is None else dialogue
        history = histories.setdefault(name, [])
        samples.append(sample_of(turn, name, labels, history))
        history.append(turn)
    return samples
