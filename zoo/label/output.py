"""The answers of ``zoo label`` as JSON lines, to which an interrupted command adds later."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.label.requests import display_path
from zoo.label.used_inputs import UsedInputs
from zoo.schema import Prediction, Sample, Turn
from zoo.storage import parse_json, write_whole

LINE_START = '{"id": "'  # of every line


def sample_digest(sample: Sample) -> str:
    """Return a digest of all that a system may read of a sample.

    It covers words, speaker, descriptions, earlier turns, and the size and time of its files.
    """

    def content(turn: Turn) -> list[Any]:
        files = []
        for path in (turn.video, turn.audio):
            try:
                state = None if path is None else path.stat()
            except OSError:
                state = None  # it is missing, or may not be looked at
            files.append(state and [state.st_size, state.st_mtime_ns])
        part = [] if turn.start is None else [turn.start, turn.end]
        return [turn.text, turn.speaker, turn.label, sorted(turn.descriptions.items()), files, *part]

    turns = [content(turn) for turn in (sample.target, *sample.history, *sample.later)] + [sample.labels.corpus]
    return hashlib.sha256(json.dumps(turns).encode()).hexdigest()[:16]


def answer_row(p: Prediction, inputs: UsedInputs, seconds: float, **details: Any) -> dict[str, Any]:
    """Return what a system said about a sample, ready for JSON.

    Args:
        p: the answer.
        inputs: which parts of the sample reached the system.
        seconds: that it took.
        details: further fields; those that are None are left out.
    """
    scores = None if p.scores is None else dict(sorted(p.scores.items(), key=lambda item: -item[1]))
    optional = {"scores": scores, "text": p.text, "details": p.details, **details}
    return {
        "label": p.predicted,
        **{key: value for key, value in optional.items() if value is not None},
        "used": list(inputs.used),
        "unused": dict(inputs.unused),
        **({"damaged": list(inputs.damaged)} if inputs.damaged else {}),
        "seconds": round(seconds, 4),
    }


class AnswerFile:
    """Answers as JSON lines, in a file or on stdout.

    Lines of an earlier, perhaps interrupted, command are kept if they have no ``error``. A file that another program
    wrote is not touched.

    Args:
        out: the file; None: stdout.
        about: fields that every line carries: which system answered, with which options.

    Raises:
        ValueError: the file was not written by this command, or holds lines of another system.
    """

    def __init__(self, out: Path | None, about: Mapping[str, Any]) -> None:
        self.out, self.about = out, about
        self.done: dict[str, str] = {}  # id -> digest of the answered sample
        self.failed: dict[str, str] = {}
        if out is None or not out.exists():
            return
        lines = self._lines(out)
        labelled = [line for line, row in lines if "error" not in row]
        self.done = {row["id"]: row["sample"] for _, row in lines if "error" not in row}
        write_whole(out, "".join(f"{line}\n" for line in labelled))

    def _lines(self, out: Path) -> list[tuple[str, dict[str, Any]]]:
        """Read the lines of an earlier command, each with its row.

        A last line that a kill cut off is left out, and answered again.
        """
        content = out.read_bytes()
        whole, rows = content.endswith(b"\n"), []
        lines = content.removesuffix(b"\n").split(b"\n") if content else []
        for number, data in enumerate(lines, 1):
            line = data.decode(errors="backslashreplace")
            try:
                row = parse_json(data.decode(), f"{out} line {number}")
            except ValueError as error:
                if number == len(lines) and not whole and data.startswith(LINE_START.encode()[: len(data)]):
                    continue
                raise _foreign_file(out, f"line {number}: {line[:60]!r}") from error
            if not isinstance(row, dict) or not isinstance(row.get("id"), str) or "label" not in row:
                raise _foreign_file(out, f"line {number}: {line[:60]!r}")
            other = {key: row.get(key) for key in ("id", *self.about)}
            if any(other[key] != value for key, value in self.about.items()):
                raise ValueError(
                    f"{out} holds lines of another command ({other}); expected {dict(self.about)}. Name another file"
                )
            if "error" not in row and not isinstance(row.get("sample"), str):
                raise ValueError(
                    f"{out} line {number} does not say which sample it answers (no 'sample'): an earlier "
                    "version of the zoo wrote it. Name another file"
                )
            rows.append((line, row))
        return rows

    def unanswered(self, samples: Sequence[Sample]) -> list[Sample]:
        """Return the samples that have no label yet.

        Raises:
            ValueError: naming an id under which another sample was labelled.
        """
        for sample in samples:
            earlier = self.done.get(sample.target.id)
            if earlier is not None and earlier != sample_digest(sample):
                raise ValueError(
                    f"{self.out} has a label of another sample with the id {sample.target.id!r}: its words, speaker, "
                    "descriptions, earlier turns or files were others. Name another file with --out"
                )
        return [sample for sample in samples if sample.target.id not in self.done]

    def write(self, sample: Sample, row: Mapping[str, Any]) -> None:
        """Write one line."""
        turn = sample.target
        clip = turn.video or turn.audio
        path = {} if clip is None else {"clip": display_path(clip)}
        part = {} if turn.start is None else {"start": turn.start, "end": turn.end}
        digest = {} if self.out is None else {"sample": sample_digest(sample)}
        line = json.dumps({"id": turn.id, **path, **part, **row, **self.about, **digest}, ensure_ascii=False)
        if self.out is None:
            print(line, flush=True)
            return
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with self.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def write_answer(self, sample: Sample, p: Prediction, inputs: UsedInputs, seconds: float, **details: Any) -> None:
        """Write the line of an answered sample."""
        self.write(sample, answer_row(p, inputs, seconds, **details))
        for damage in inputs.damaged:
            print(f"{sample.target.id}: a part of its file was used, {damage}", file=sys.stderr)

    def write_failure(self, sample: Sample, reason: str, write_line: bool) -> None:
        """Note why a sample got no label, and write a line about it if asked to."""
        self.failed[sample.target.id] = reason
        if write_line:
            self.write(sample, {"label": None, "error": reason})


def _foreign_file(out: Path, content: str) -> ValueError:
    """Return the error about a file that another program wrote."""
    return ValueError(
        f"--out {out} was not written by zoo label (it holds {content}), so it is not touched; name another file"
    )
