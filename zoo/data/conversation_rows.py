"""One row of a file of conversations -> the samples that its answers are. What is malformed is messages, not mended."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from zoo.data.row_index import NO_CLIP, Facts, FileMissing, Row, RowError, Rows, row_id
from zoo.schema import Labels, Sample, Turn

PLACE = re.compile(r"<(image|video)>")
ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}
ADVICE = (
    "expected id, image or video where there is one, and conversations of role and content (or from and value), user "
    "first; or a caption"
)


@dataclass(frozen=True)
class Conversation:
    """How the rows of one file become samples.

    Attributes:
        rows: the file.
        prefix: of its ids.
        where: ``{corpus}/{split}``.
        labels: of the samples.
        root: folder of the pictures and videos that a row names; None: nothing is looked for (for the index).
        template: of the questions.
        together: a conversation is one sample, which learns all its answers.
        must_exist: a row whose picture or video is not there is malformed.
    """

    rows: Rows | None
    prefix: str
    where: str
    labels: Labels
    root: Path | None = None
    template: str = "{question}"
    together: bool = False
    must_exist: bool = False

    def inspect(self, row: Row) -> Facts:
        """Return what the index keeps of a row. RowError if it is malformed."""
        samples = replace(self, together=False).samples(row)
        with_clip = [any(t.video is not None for t in (s.target, *s.history)) for s in samples]
        return Facts(len(samples), with_clip.index(True) if True in with_clip else NO_CLIP)

    def sample(self, number: int, answer: int) -> Sample:
        """Return the sample of an answer; of all answers, if they are learnt together.

        A row that cannot be read is a sample without words whose picture is not readable, and is counted and listed as
        such.
        """
        if self.rows is None:
            raise ValueError(f"{self.prefix} has no file to read sample {number} from")
        try:
            return self.samples(self.rows.read(number))[-1 if self.together else answer]
        except (RowError, IndexError):  # it was in order when the index was made
            name = f"{self.where}/{self.prefix}_row{number}"
            picture = self.rows.path / f"@{self.rows.table['offset'][number]}+1" / f"{self.prefix}_row{number}.png"
            target = Turn(f"{self.prefix}_row{number}", "user", "", video=picture)
            return Sample(f"{name}_{answer}", name, self.labels, target, question="", answer="")

    def samples(self, row: Row) -> list[Sample]:
        """Return one sample per answer; one alone if they are learnt together. RowError if the row is malformed."""
        name = row_id(row.content)
        if name is None:
            raise RowError(f"no row with an id; {ADVICE}")
        key = f"{self.prefix}_{name}"
        files = self._files(row.content) if row.files is None else {k: list(v) for k, v in row.files.items()}
        messages = _messages(row.content, "<video>" if files["video"] else "<image>")
        turns: list[Turn] = []
        if messages[0][0] == "system":
            if PLACE.search(messages[0][1]):
                raise RowError("the system has a place for a clip")
            turns.append(Turn(f"{key}_system", "system", messages[0][1]))
            messages = messages[1:]
        samples: list[Sample] = []
        for number, (role, words) in enumerate(messages):
            expected = ("user", "assistant")[number % 2]
            if role != expected:
                got = repr(words[:60])
                raise RowError(f"turn {number} is {got} of the {role}, expected the words of the {expected}; {ADVICE}")
            content = words.strip()
            if role == "user":
                turns += _asked(content, f"{key}_{number}", files)
                continue
            if PLACE.search(content) or not content:
                what = "has a place for a clip" if content else "is empty"
                raise RowError(f"turn {number} of the assistant {what}")
            asked = turns.pop()
            question = self.template.replace("{question}", asked.text)
            answered = replace(asked, text=question) if self.together else asked
            id_, dialogue = f"{self.where}/{key}_{number // 2}", f"{self.where}/{key}"
            samples.append(Sample(id_, dialogue, self.labels, replace(asked, text=""), tuple(turns), question, content))
            turns += [answered, Turn(f"{key}_{number}", role, content)]
        if len(messages) % 2:
            raise RowError("the last turn is the user's; nobody answers it")
        if left := {kind: len(paths) for kind, paths in files.items() if paths}:
            raise RowError(f"more files than places in the words: left over {left}")
        return [replace(samples[-1], learn_history=True)] if self.together else samples

    def _files(self, content: dict[str, Any]) -> dict[str, list[Path]]:
        """Return the pictures and videos that a row names, in order."""
        return {kind: self._paths(content, kind) for kind in ("image", "video")}

    def _paths(self, content: dict[str, Any], kind: str) -> list[Path]:
        value, several = content.get(kind), content.get(f"{kind}s")
        if value is not None and several is not None:
            raise RowError(f"both {kind} and {kind}s; expected one of them")
        value = several if value is None else value
        value = [] if value is None else value if isinstance(value, list) else [value]
        root = Path() if self.root is None else self.root
        for path in value:
            if not isinstance(path, str) or not path:
                raise RowError(f"{kind} is {path!r}, expected a path")
            pure = PurePosixPath(path.replace("\\", "/"))
            if pure.is_absolute() or ".." in pure.parts or re.match(r"[A-Za-z]:", path):
                raise RowError(f"{kind} {path!r} leaves its root; expected a path below {root.name or 'it'}")
            if self.must_exist and not (root / path).is_file():
                raise FileMissing(f"{kind} {path!r} is not there")
        return [root / path for path in value]


def _messages(content: dict[str, Any], place: str) -> Sequence[tuple[str, str]]:
    """Return role (user, assistant or system) and words of each turn of a row.

    Args:
        place: what is asked where a row has a caption alone.
    """
    forms = [key for key in ("conversations", "messages", "caption") if content.get(key) is not None]
    if len(forms) > 1:
        raise RowError(f"both {' and '.join(forms)}; expected one of them")
    if forms == ["caption"]:
        if not isinstance(content["caption"], str):
            raise RowError(f"caption is {content['caption']!r:.60}, expected text")
        return [("user", place), ("assistant", content["caption"])]
    turns = content[forms[0]] if forms else None
    if not isinstance(turns, list) or len(turns) < 2:
        raise RowError(f"no conversation of two turns; {ADVICE}")
    messages = []
    for number, turn in enumerate(turns):
        keys = ("from", "value") if isinstance(turn, dict) and "from" in turn else ("role", "content")
        role, words = (turn.get(key) if isinstance(turn, dict) else None for key in keys)
        if not isinstance(role, str) or role not in ROLES or not isinstance(words, str):
            names = ", ".join(ROLES)
            raise RowError(f"turn {number} is {str(turn)[:60]!r}, expected words of one of {names}; {ADVICE}")
        messages.append((ROLES[role], words))
    return messages


def _asked(content: str, id_: str, files: dict[str, list[Path]]) -> list[Turn]:
    """Split a user's words into turns of at most one clip each.

    What follows a clip up to the next one belongs to it.
    """
    places = list(PLACE.finditer(content))
    ends = [p.end() for p in places[:-1]] + [len(content)]
    turns = []
    for i, (start, end) in enumerate(itertools.pairwise([0, *ends])):
        clip = None
        if places:
            kind = places[i][1]
            if not files[kind]:
                raise RowError(f"more <{kind}> in the words than files")
            clip = files[kind].pop(0)
        turns.append(Turn(f"{id_}_{i}" if len(ends) > 1 else id_, "user", content[start:end], video=clip))
    return turns
