"""The files of IEMOCAP's release: transcriptions, labels, films and sounds of each dialogue, before any class set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from zoo.data.clips import SOUND, VIDEO, find_clips
from zoo.data.text import clean_text, read_text
from zoo.schema import Turn
from zoo.storage import split_lines

SESSIONS = (1, 2, 3, 4, 5)
DIALOGUES = {1: 28, 2: 30, 3: 32, 4: 30, 5: 31}  # of the release, per session

CODES = ("ang", "hap", "exc", "sad", "fru", "fea", "sur", "dis", "neu", "oth")
NO_AGREEMENT = "xxx"

NAME = r"Ses0([1-5])([FM])_(?:impro|script)\d\d(?:_\d)?[a-z]?"  # of a dialogue: session, who wears the markers
TIMES = r"\[\s*(-?\d+\.\d+)\s*-\s*(-?\d+\.\d+)\s*\]"
SPOKEN = re.compile(rf"({NAME}_([FM])[0-9A-Z]{{3}})\s+{TIMES}:\s*(.*)")
RATED = re.compile(rf"{TIMES}\s+({NAME}_[FM][0-9A-Z]{{3}})\s+([a-z]{{3}})\s+\[.*\]")
OPINION = re.compile(r"C-E\d+:\s*([^(]*)")  # an annotator's words; C-F and C-M are the actors' own


@dataclass
class DialogueFiles:
    """Turns by time, with the letters F and M as speakers and the release's codes as labels."""

    name: str
    turns: list[Turn] = field(default_factory=list)
    opinions: dict[str, list[str]] = field(default_factory=dict)  # utterance -> codes of its annotators' words
    faults: dict[str, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)

    @property
    def session(self) -> int:
        return int(self.name[4])


@dataclass
class CorpusFiles:
    """The corpus as its files have it."""

    dialogues: list[DialogueFiles]
    notes: dict[int, Counter[str]]  # by session: what belongs to none of its dialogues


def read_files(root: Path, encoding: str | Sequence[str]) -> CorpusFiles:
    """Read the dialogues of all sessions."""
    tree = CorpusFiles([], {session: Counter() for session in SESSIONS})
    unknown = [p.name for p in sorted(root.glob("Session*")) if p.name not in {f"Session{k}" for k in SESSIONS}]
    for name in unknown:
        tree.notes[SESSIONS[0]][f"{name} is not of the release, ignored"] = 1
    for session in SESSIONS:
        tree.dialogues += _read_session(root / f"Session{session}", session, tree.notes[session], encoding)
    return tree


def _read_session(
    folder: Path, session: int, notes: Counter[str], encoding: str | Sequence[str]
) -> list[DialogueFiles]:
    """Read the dialogues of one session, and count in ``notes`` what belongs to none of them."""
    transcribed, rated = (_released_files(folder, part, session, notes) for part in ("transcriptions", "EmoEvaluation"))
    names = sorted(transcribed | rated)
    notes[f"dialogues of Session{session} missing"] = max(0, DIALOGUES[session] - len(names))
    has_video, has_sound = (folder / "dialog/avi/DivX").is_dir(), (folder / "sentences/wav").is_dir()
    notes[f"Session{session} has films, but no sentences/wav"] = int(has_video and not has_sound)
    notes[f"Session{session} has sentences/wav, but no dialog/avi/DivX"] = int(has_sound and not has_video)
    dialogues = []
    for name in names:
        dialogue = DialogueFiles(name)
        if name not in transcribed:
            dialogue.faults[name] = "labels, but no transcription"
        else:
            _read_transcription(folder / "dialog/transcriptions" / f"{name}.txt", dialogue, encoding)
            if name in rated:
                _read_labels(folder / "dialog/EmoEvaluation" / f"{name}.txt", dialogue, encoding)
            else:
                dialogue.faults[name] = "transcription, but no labels: context only, nothing to classify"
            _find_clips(folder, dialogue, has_video, has_sound)
        dialogues.append(dialogue)
    return dialogues


def _released_files(folder: Path, part: str, session: int, notes: Counter[str]) -> set[str]:
    """Return the names of a session's dialogues that have a file of one part; note files of no release."""
    present = {p.name for p in (folder / "dialog" / part).iterdir() if p.is_file() and p.name[0] != "."}
    released = {n for n in present if (m := re.fullmatch(rf"({NAME})\.txt", n)) and m[2] == str(session)}
    for name in sorted(present - released):
        notes[f"Session{session}/dialog/{part}/{name} is not of the release, ignored"] = 1
    return {name.removesuffix(".txt") for name in released}


def _lines(
    path: Path, dialogue: DialogueFiles, pattern: re.Pattern[str], example: str, encoding: str | Sequence[str]
) -> list[tuple[int, str, re.Match[str]]]:
    """Return number, text and match of every line with an utterance's name.

    Raises:
        ValueError: such a line has another form or names another dialogue, or there is none.
    """
    text, notes = read_text(path, encoding)
    dialogue.notes.update(notes)
    matches = []
    for number, line in enumerate(split_lines(text), 1):
        if not re.search(rf"{NAME}_", line):
            continue
        match = pattern.fullmatch(line.strip())
        if match is None and re.search(rf"{NAME}_[FM]XX", line):  # the release's own, never segmented
            dialogue.notes["lines of XX utterances in another form, not used"] += 1
            continue
        if match is None or f"{dialogue.name}_" not in line:
            raise ValueError(
                f"{path} line {number} is {line.strip()[:120]!r}; expected lines of {dialogue.name} like {example}. "
                "Use the released file"
            )
        matches.append((number, line, match))
    if not matches:
        raise ValueError(f"{path} holds no line like {example}; got {text[:120]!r}. Use the released file")
    return matches


def _read_transcription(path: Path, dialogue: DialogueFiles, encoding: str | Sequence[str]) -> None:
    example = f"{dialogue.name}_F000 [003.1400-005.9200]: text"
    turns: dict[str, Turn] = {}
    lines = _lines(path, dialogue, SPOKEN, example, encoding)
    for number, _, match in lines:
        key, _, marked, speaker, start, end, words = match.groups()
        turn = Turn(
            key,
            speaker,
            clean_text(words),
            start=float(start),
            end=float(end),
            crop="left" if speaker == marked else "right",
        )
        if turns.get(key, turn) != turn:
            raise ValueError(f"{path} line {number}: {key} stood before with another text or time. Keep the right one")
        if float(end) < float(start):
            raise ValueError(f"{path} line {number}: {key} ends at {end}, but starts at {start}. Correct the line")
        if key in turns:
            dialogue.faults[f"{key} (line {number})"] = "repeats an earlier line word for word"
        turns[key] = turn
    every = [line for line in split_lines(read_text(path, encoding)[0]) if line.strip()]
    dialogue.notes["lines without an utterance's name, not used"] += len(every) - len(lines)
    dialogue.faults |= {key: "empty utterance" for key, turn in turns.items() if not turn.text}
    spoken = [turn for turn in turns.values() if turn.text]
    dialogue.turns = sorted(spoken, key=lambda turn: turn.start or 0.0)
    dialogue.notes["utterances out of order in time, sorted"] += sum(
        a is not b for a, b in zip(spoken, dialogue.turns, strict=True)
    )


def _read_labels(path: Path, dialogue: DialogueFiles, encoding: str | Sequence[str]) -> None:
    example = f"[3.1400 - 5.9200]<TAB>{dialogue.name}_F000<TAB>fru<TAB>[2.0, 3.5, 3.0]"
    labels: dict[str, str] = {}
    lines = _lines(path, dialogue, RATED, example, encoding)
    for number, _, match in lines:
        key, code = match[3], match[6]
        if code not in (*CODES, NO_AGREEMENT):
            raise ValueError(
                f"{path} line {number}: unknown label {code!r} ({key}); expected one of {', '.join(CODES)} or "
                f"{NO_AGREEMENT}. Correct the line"
            )
        if labels.get(key, code) != code:
            raise ValueError(f"{path} line {number}: {key} is {code}, but {labels[key]} before. Keep the right one")
        labels[key] = code
    current = ""
    for line in split_lines(read_text(path, encoding)[0]):
        if rated := RATED.fullmatch(line.strip()):
            current = rated[3]
        elif current and (opinion := OPINION.match(line)):
            codes = [word.strip().lower()[:3] for word in opinion[1].split(";")]
            dialogue.opinions.setdefault(current, []).extend(code for code in codes if code in CODES)
    spoken = {turn.id for turn in dialogue.turns}
    for key in labels.keys() - spoken - dialogue.faults.keys():
        dialogue.faults[key] = "label, but no line in the transcription"
    for turn in dialogue.turns:
        if turn.id not in labels:
            if "XX" in turn.id.rpartition("_")[2]:  # e.g. _FXX0: never segmented, never rated
                dialogue.notes["utterances the release has no rating of (XX in their names)"] += 1
            else:
                dialogue.faults[turn.id] = "no label: context only"
    dialogue.turns = [replace(turn, label=labels.get(turn.id)) for turn in dialogue.turns]


def _find_clips(folder: Path, dialogue: DialogueFiles, has_video: bool, has_sound: bool) -> None:
    """Attach the clips that are there; if the session has any film or sound, note which are missing."""
    films = [folder / "dialog/avi/DivX" / f"{dialogue.name}{ending}" for ending in (".avi", *VIDEO)]
    film = next((path for path in films if path.is_file()), None)
    files = find_clips(folder, [f"sentences/wav/{dialogue.name}"], SOUND, dialogue.notes)
    sounds = {name: path for name, path in files.items() if name.startswith("Ses")}
    dialogue.notes[f"{dialogue.name}: film missing"] = int(has_video and film is None)
    missing = sum(turn.id not in sounds for turn in dialogue.turns)
    dialogue.notes[f"{dialogue.name}: utterances without their wav"] = missing if has_sound else 0
    dialogue.notes[f"{dialogue.name}: wavs of no utterance, not used"] = len(
        sounds.keys() - {turn.id for turn in dialogue.turns}
    )
    dialogue.turns = [
        replace(
            turn,
            video=film,
            audio=sounds.get(turn.id),
            start=turn.start if film else None,
            end=turn.end if film else None,
            crop=turn.crop if film else None,
        )
        for turn in dialogue.turns
    ]
