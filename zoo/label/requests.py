"""What a user asks about (a line, a clip, a folder, a table) as samples without labels; nothing is decoded here."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from zoo.data.clips import SOUND, VIDEO, files_below, find_clips
from zoo.data.text import check_encoding, clean_text, read_table, some, whole_numbers
from zoo.schema import Labels, Sample, Turn

STILL = (".jpg", ".jpeg", ".png")
CLIP_ENDINGS = (*VIDEO, *SOUND, *STILL)
TEXT_ENDINGS = (".txt", ".jsonl", ".json", ".tsv", ".md", ".srt", ".vtt", ".xlsx", ".yaml", ".yml")
HEADINGS = {  # of a table, in any case; MELD's own among them
    "id": "id",
    "video": "video",
    "clip": "video",
    "audio": "audio",
    "text": "text",
    "utterance": "text",
    "speaker": "speaker",
    "dialogue": "dialogue",
    "dialogue_id": "dialogue",
    "utterance_id": "number",
    "label": "label",
    "emotion": "label",
}
KIND = re.compile(r"[a-z0-9_]+")
DESCRIPTION = re.compile(rf"({KIND.pattern})_description")
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
        encoding: of the tables, or of the subtitles.
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
    segments: bool = False
    subtitles: Path | None = None

    @property
    def is_table(self) -> bool:
        return self.clip is not None and self.clip.suffix.lower() == ".csv" and not self.clip.is_dir()

    @property
    def asks_for_many(self) -> bool:
        """Whether the clip is a folder or a table."""
        return self.clip is not None and (self.clip.is_dir() or self.clip.suffix.lower() == ".csv")

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
        return _read_table_samples(request.clip, request.clips, labels, request.encoding)
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


def clip_turn(id: str, clip: Path | None, **fields: Any) -> Turn:
    """Return a turn with a file whose ending says what it holds: picture, sound, or both."""
    suffix = clip.suffix.lower() if clip is not None else ""
    files = {"video": None if suffix in SOUND else clip, "audio": None if suffix in STILL else clip}
    return Turn(id, **({"speaker": "", "text": ""} | files | fields))


def _clean(text: str, name: str) -> str:
    """Clean a text as the corpora's readers do. ValueError for bytes of the command line that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is not UTF-8; write it again as UTF-8") from None
    return clean_text(text)


def _parse_descriptions(pairs: Sequence[str]) -> dict[str, str]:
    """Parse descriptions: ``["audio=a calm voice"]`` -> ``{"audio": "a calm voice"}``."""
    descriptions: dict[str, str] = {}
    for pair in pairs:
        kind, _, text = pair.partition("=")
        if not KIND.fullmatch(kind) or kind in descriptions or not text.strip():
            raise ValueError(f"--descriptions got {pair!r}; expected KIND=TEXT, each kind once: audio='a calm voice'")
        descriptions[kind] = _clean(text, f"the {kind} description")
    return descriptions


def open_clip(clip: Path | None) -> Path | None:
    """Return the same file. FileNotFoundError if it is not there, ValueError if it is a text by its ending."""
    if clip is not None and clip.suffix.lower() in TEXT_ENDINGS and clip.is_file():
        raise ValueError(
            f"{clip} is a text and no clip; give its lines as a CSV table with columns like {TABLE}, "
            "one line with --text, or subtitles with --subtitles"
        )
    if clip is not None and not clip.is_file():
        raise FileNotFoundError(f"no file {clip}; expected a video, sound or picture, a folder of them, or a CSV table")
    return clip


def _read_single(request: Request, labels: Labels) -> Sample:
    """Return the sample of one clip or line."""
    clip = open_clip(request.clip)
    text, descriptions = _clean(request.text or "", "--text"), _parse_descriptions(request.descriptions)
    if clip is None and not text and not descriptions:
        raise ValueError("there is nothing to label: give CLIP, --text or --descriptions")
    history: list[tuple[str | None, Turn]] = []
    if request.context is not None:
        history = read_turns(request.context, None, labels, request.encoding)
        if len({dialogue for dialogue, _ in history}) > 1:
            raise ValueError(f"{request.context} holds several dialogues; expected the earlier turns of one")
    turn = clip_turn(
        display_path(Path(clip.name)) if clip is not None else "line",
        clip,
        text=text,
        speaker=_clean(request.speaker, "--speaker"),
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
@dataclass(frozen=True)
class TableColumns:
    """Which columns of a table hold what.

    Attributes:
        headings: content (a value of `HEADINGS`, or ``KIND_description``) -> heading as it stands in the table.
    """

    headings: Mapping[str, str]

    @classmethod
    def match(cls, headings: Sequence[str], path: Path) -> TableColumns:
        """Find what the headings of a table mean. ValueError if two mean the same."""
        matched: dict[str, str] = {}
        for heading in headings:
            name = heading.lower()
            content = HEADINGS.get(name, name if DESCRIPTION.fullmatch(name) else None)
            if content in matched:
                raise ValueError(
                    f"{path} has two columns for {content}: {matched[content]} and {heading}; leave one out"
                )
            if content is not None:
                matched[content] = heading
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


@dataclass(frozen=True)
class TableRow:
    """One row of a table, whose columns are named by their content.

    Attributes:
        columns: of the table.
        cells: content -> text as it stands there.
        folder: of the table, to which paths are relative.
        where: file and row, for messages.
    """

    columns: TableColumns
    cells: Mapping[str, Any]
    folder: Path
    where: str

    def text(self, content: str) -> str:
        """Return a cell's cleaned text; empty without such a column."""
        return _clean(self.cells[content], self.where) if content in self.columns else ""

    def path(self, content: str) -> Path | None:
        """Return the file that a cell names; None for an empty one."""
        return self.folder / self.text(content) if self.text(content) else None

    def key(self, dialogue: str | None, number: int) -> str:
        """Return the id of the row: its own, MELD's of dialogue and utterance, or the number of the row."""
        if "id" in self.columns:
            return self.text("id")
        return f"dia{dialogue}_utt{self.cells['number']}" if dialogue and "number" in self.columns else f"row{number}"

    def label(self, labels: Labels) -> str | None:
        """Return the label word, None for an empty cell. ValueError for a word that is no label."""
        label = self.text("label").lower() or None
        if label is not None and label not in labels.names:
            raise ValueError(
                f"{self.where}: unknown label {label!r}; this system's are {', '.join(labels.names)}. Correct "
                "the cell, or leave it empty"
            )
        return label

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


def read_turns(
    path: Path, clips: Path | None, labels: Labels, encoding: str | None = None
) -> list[tuple[str | None, Turn]]:
    """Read the rows of a table in the order in which they are spoken, each with its dialogue.

    The dialogue is None without such a column.

    Args:
        path: a CSV file with columns as in `TABLE`.
        clips: folder of files named after the ids, for a table without ``video``.
        labels: the only label words there may be.
        encoding: of the table; None: UTF-8, or ASCII with Windows punctuation that can be nothing else.

    Raises:
        FileNotFoundError, ValueError: naming the file and the row, what was expected and what to do.
    """
    table, columns = _open_table(path, clips, encoding)
    if clips is not None and not clips.is_dir():
        raise FileNotFoundError(f"--clips {clips} is no folder; expected one with files named after the ids")
    files = find_clips(clips, ["."], CLIP_ENDINGS) if clips is not None else {}
    rows: list[tuple[tuple[int, int], str | None, Turn]] = []
    order: dict[str | None, int] = {}  # dialogue -> its position among the dialogues
    ids: set[str] = set()
    for number, cells in table.iterrows():
        row = TableRow(columns, cells, path.parent, f"{path} row {number}")
        dialogue = row.text("dialogue") or None
        key = row.key(dialogue, number)
        if not key or key in ids:
            raise ValueError(
                f"{row.where}: the id {key!r} is {'there twice' if key else 'empty'}; give each row its own"
            )
        ids.add(key)
        turn = row.turn(key, row.label(labels), files.get(key))
        position = order.setdefault(dialogue, len(order))
        rows.append(((position, cells["number"] if "number" in columns else len(rows)), dialogue, turn))
    return [(dialogue, turn) for _, dialogue, turn in sorted(rows, key=lambda row: row[0])]


def _open_table(path: Path, clips: Path | None, encoding: str | None) -> tuple[pd.DataFrame, TableColumns]:
    """Read a table and rename its columns by their content; say which are not read."""
    if not path.is_file():
        raise FileNotFoundError(f"no table {path}; expected a CSV file with columns like {TABLE}")
    table = read_table(path, (), encoding=check_encoding("--encoding", encoding) or (), option="--encoding")
    for note in table.attrs["notes"]:
        print(note, file=sys.stderr)
    columns = TableColumns.match(list(table.columns), path)
    if not columns.hold_input and clips is None:
        raise ValueError(f"{path} has the columns {', '.join(table.columns)}; expected some of {TABLE}")
    if ignored := [heading for heading in table.columns if heading not in columns.headings.values()]:
        print(f"{path}: columns not read: {', '.join(ignored)}", file=sys.stderr)
    table = table.rename(columns={heading: content for content, heading in columns.headings.items()})
    if "number" in columns:
        table["number"] = whole_numbers(table, ("number",), path)["number"]
    return table, columns


def _read_table_samples(path: Path, clips: Path | None, labels: Labels, encoding: str | None) -> list[Sample]:
    """Return a sample for every row of a table, with the earlier rows of its dialogue as its history."""
    samples: list[Sample] = []
    histories: dict[str, list[Turn]] = {}
    for dialogue, turn in read_turns(path, clips, labels, encoding):
        name = turn.id if dialogue is None else dialogue
        history = histories.setdefault(name, [])
        samples.append(sample_of(turn, name, labels, history))
        history.append(turn)
    return samples
