"""Single utterances of a bench as its report shows them, with what every row answered."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.benchmark.plan import Bench
from zoo.benchmark.records import read_rows
from zoo.benchmark.run import Job
from zoo.media import Media, Unreadable
from zoo.schema import Sample, Turn

FACE, ENVELOPE = 96, 120  # pixels of a face, points of a voice, in the report


def utterances(bench: Bench, jobs: Sequence[Job], cache: Path) -> list[dict[str, Any]]:
    """Return the first dialogues of the test split as the report shows them: face, voice, words, and every answer.

    Args:
        bench: the plan.
        jobs: all of them.
        cache: where decoded pictures and sounds are kept.
    """
    ranked = [job for job in jobs if job.row.ranked and job.done]
    firsts = {job.name: job for job in reversed(ranked)}  # the first seed of each row
    answers = {name: {r["id"]: r for r in read_rows(job.results / "predictions.jsonl")} for name, job in firsts.items()}
    reasons = {name: _reasons(job) for name, job in firsts.items()}
    media = Media(cache)
    result = []
    for sample in _first_dialogues(bench.data.samples("test"), bench.utterances):
        systems = {
            name: _answer(rows[sample.id], reasons[name].get(sample.id))
            for name, rows in answers.items()
            if sample.id in rows
        }
        turn = sample.target
        base: dict[str, Any] = {"id": sample.id, "dialogue": sample.dialogue, "label": turn.label, "systems": systems}
        if bench.show_texts:
            base |= {
                "speaker": turn.speaker,
                "text": turn.text,
                "descriptions": dict(turn.descriptions),
                "history": [[t.speaker, t.text] for t in sample.history[-3:]],
                "face": _face(media, turn),
                "voice": _voice(media, turn),
            }
        else:
            base |= {"speaker": "", "text": "", "descriptions": {}, "history": [], "face": None, "voice": None}
        result.append(base)
    return result


def _first_dialogues(samples: Sequence[Sample], most: int) -> list[Sample]:
    chosen: list[Sample] = []
    for dialogue in dict.fromkeys(s.dialogue for s in samples):
        members = [s for s in samples if s.dialogue == dialogue]
        if chosen and len(chosen) + len(members) > most:
            break
        chosen += members
    return chosen[:most]


def _answer(row: Mapping[str, Any], reason: Mapping[str, Any] | None) -> dict[str, Any]:
    details = row.get("details") or {}
    scores = row.get("scores") or {}
    explanation = None
    if reason is not None:
        explanation = reason.get("text") or ", ".join(
            f"{k} {v}" for k, v in (reason.get("details") or {}).items() if k != "decision"
        )
    return {
        "predicted": row["predicted"],
        "score": scores.get(row["predicted"]),
        "said": row.get("text"),
        "why": explanation,
        "decision": details.get("decision"),
    }


def _reasons(job: Job) -> dict[str, dict[str, Any]]:
    """Read what the hidden row that `Row.why` names wrote about each sample."""
    if job.row.why is None:
        return {}
    folder = job.needed[job.row.why].results
    return {r["id"]: r for path in sorted(folder.glob("*.jsonl")) for r in read_rows(path)}


def _face(media: Media, turn: Turn) -> str | None:
    """Return the frame in the middle of an utterance, as a small JPEG."""
    if turn.video is None:
        return None
    try:
        frame = media.frames(turn.video, n=1, position=turn.frame_at)[0]
    except Unreadable:
        return None
    picture = Image.fromarray(frame.transpose(1, 2, 0))
    picture.thumbnail((2 * FACE, FACE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _voice(media: Media, turn: Turn) -> list[float] | None:
    """Return the loudness over time, 0..1, relative to the loudest point."""
    path = turn.audio or turn.video
    if path is None:
        return None
    try:
        wave = media.waveform(path)
    except Unreadable:
        return None
    if turn.start is not None and turn.end is not None:
        wave = wave[round(turn.start * 16_000) : round(turn.end * 16_000)]
    parts = np.array_split(np.abs(wave), min(ENVELOPE, max(1, len(wave))))
    loud = np.array([part.max(initial=0.0) for part in parts])
    envelope: list[float] = (loud / max(loud.max(), 1e-6)).round(3).tolist()
    return envelope
