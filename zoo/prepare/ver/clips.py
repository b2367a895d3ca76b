"""The labelled clips that reasoning texts are written about, from a corpus or a list."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.data.clips import VIDEO
from zoo.data.text import clean_text
from zoo.schema import Sample, Turn

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
UNCLEAR = {"", "none", "other", "others", "unknown", "invalid", "undecided", "ambiguous", "mixed", "xxx"}
LIST_EXAMPLE = '{"clip": "clips/a.mp4", "label": "happy", "text": "Look at that!"}'


@dataclass(frozen=True)
class Clip:
    """A file with one clear label.

    Attributes:
        id: unique.
        kind: image or video.
        path: of the file, relative to the data root, with forward slashes.
        label: one word.
        turn: where the file lies, what is said in it and other descriptions.
    """

    id: str
    kind: str
    path: str
    label: str
    turn: Turn


def _relative(path: Path, root: Path) -> str:
    """Return the path from the data root. ValueError if the file lies elsewhere: nobody else could find it."""
    inside = os.path.relpath(os.path.abspath(path), os.path.abspath(root))
    if inside.split(os.sep)[0] == os.pardir or os.path.isabs(inside):
        raise ValueError(f"{path} does not lie in {root}; expected every clip there. Give the folder above as the root")
    return Path(inside).as_posix()


def _clip(name: str, labels: Sequence[str], turn: Turn, root: Path) -> Clip | str:
    """Return the clip, or why it cannot be used."""
    words = [part.strip().lower() for label in labels for part in re.split(r"[,;|/+]", label)]
    if len(words) != 1 or words[0] in UNCLEAR:
        return f"not one clear label: {', '.join(labels) or 'none'}"
    if turn.video is None:
        return "no clip or picture"
    if turn.start is not None or turn.end is not None or turn.crop is not None:
        return "a part of a larger file; a conversation names whole files"
    suffix = Path(turn.video).suffix.lower()
    if suffix not in (*VIDEO, *PICTURES):
        return f"neither a clip nor a picture by its name ({suffix})"
    return Clip(name, "image" if suffix in PICTURES else "video", _relative(turn.video, root), words[0], turn)


def select_clips(samples: Iterable[Sample], root: Path | None) -> tuple[list[Clip], dict[str, str]]:
    """Return the clips of a corpus' samples, and sample id -> why it is none."""
    if root is None:
        raise ValueError("the corpus has no folder, so it has no clips; give --data.root")
    clips = {s.id: _clip(s.id, [s.target.label] if s.target.label else [], s.target, root) for s in samples}
    return _divide(clips)


def read_list(path: Path, root: Path | None = None) -> tuple[list[Clip], dict[str, str]]:
    """Read the clips of a JSON-lines list of ``{clip, label, text?, id?}``, and id -> why a row is none.

    Args:
        path: the list; a label may be a word or a list of words, of which there must be one.
        root: what the clips' paths are relative to; the list's folder if None. Without an id the path is the id.

    Raises:
        ValueError: a row of another form, an id twice, a clip outside the root.
        FileNotFoundError: a clip that is not there.
    """
    root = path.parent if root is None else root
    clips: dict[str, Clip | str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        labels, text, file, name = _parse_row(line, f"{path} line {number}")
        clip = root / file
        name = _relative(clip, root) if name is None else name
        if name in clips:
            raise ValueError(f"{path} line {number}: {name} stands there twice; expected one row per id. Remove one")
        if not clip.is_file():
            raise FileNotFoundError(f"{path} line {number}: no file {file} in {root}; correct it or --root")
        clips[name] = _clip(name, labels, Turn(name, "", clean_text(text), video=clip, audio=clip), root)
    return _divide(clips)


def _parse_row(line: str, where: str) -> tuple[list[str], str, str, str | None]:
    """Return labels, text, file and id (None if it has none) of a row of a list."""
    try:
        row = json.loads(line)
        labels = [row["label"]] if isinstance(row["label"], str) else list(row["label"] or ())
        text, name = row.get("text") or "", row.get("id")
        if not all(isinstance(value, str) for value in (*labels, text, name or "", row["clip"])) or name == "":
            raise TypeError("id, label and text are texts")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{where} cannot be read ({type(error).__name__}: {error}); expected {LIST_EXAMPLE}. Correct the line"
        ) from None
    return labels, text, row["clip"], name


def _divide(clips: Mapping[str, Clip | str]) -> tuple[list[Clip], dict[str, str]]:
    """Divide into clips and reasons."""
    usable = [clip for clip in clips.values() if isinstance(clip, Clip)]
    return usable, {name: reason for name, reason in clips.items() if isinstance(reason, str)}
