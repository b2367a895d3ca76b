"""``zoo prepare faces``: the faces of every clip of a corpus, found once, for Emotion-Qwen's face capture.

    zoo prepare faces --data MELD --data.root DIR --analyzer DlibFaces --analyzer.expression FILE --out OUT
    zoo fit ... --model.face_capture FaceCapture --model.face_capture.analyzer PrecomputedFaces \\
        --model.face_capture.analyzer.file OUT/faces.jsonl

In OUT lie ``faces.jsonl``, written whole at the end (`zoo.models.emotion_qwen.faces.PrecomputedFaces`); ``faces.json``
with the counts, and every sample in which nothing was found, with the reason; ``settings.json``; and ``answers.jsonl``,
where each clip is noted as soon as it is done, under the sha256 of its bytes: a run that was killed goes on there, and
a clip that was replaced is looked at again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from torch.utils.data import DataLoader, Dataset

from zoo.data import EmotionData
from zoo.media import Media, Unreadable
from zoo.media.clips import content_key
from zoo.models.emotion_qwen.faces import DeepFaceFaces, DlibFaces, FaceAnalyzer, WholeFrame, face_lines
from zoo.models.emotion_qwen.input import LARGEST
from zoo.models.emotion_qwen.sampling import FrameSampling
from zoo.prepare.answer_store import AnswerStore, keep_settings
from zoo.prepare.options import add_clip_options
from zoo.progress import reported
from zoo.schema import Turn
from zoo.storage import write_whole


@dataclass
class _Analysed(Dataset[tuple[int, list[str], str | None]]):
    """Clips by number -> that number, the rows of the file without their name, and why there are none."""

    turns: Sequence[Turn]
    analyzer: FaceAnalyzer
    media: Media
    sampling: FrameSampling

    def __len__(self) -> int:
        return len(self.turns)

    def __getitem__(self, number: int) -> tuple[int, list[str], str | None]:
        try:
            pixels, _ = self.sampling.read(self.media, self.turns[number])
        except Unreadable as error:
            return number, [], error.reason
        frames = torch.from_numpy(pixels)
        return number, face_lines("", frames, self.analyzer.analyse(frames)), None


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "zoo prepare faces",
        usage="zoo prepare faces --data NAME --data.root DIR --analyzer NAME --out DIR [options]",
        description="Finds the faces of every clip and reads their expressions, once for all runs.",
    )
    add = parser.add_argument
    parser.add_subclass_arguments(EmotionData, "data", required=True, help="a corpus, as of `zoo fit`")
    parser.add_subclass_arguments(
        (DlibFaces, WholeFrame, DeepFaceFaces), "analyzer", required=True, help="what finds faces, as of face capture"
    )
    add("--out", type=Path, required=True, help="folder of the findings")
    add("--frames", type=int, help="frames per video, as of the system; by --fps if not given")
    add("--fps", type=float, default=2.0, help="frames per second, as of the system (2)")
    add("--max_frames", type=int, default=64, help="at most so many, as of the system (64)")
    add("--frame_rule", choices=["ours", "authors"], default="ours", help="which frames, as of the system (ours)")
    add_clip_options(parser)
    return parser


def main(args: list[str]) -> None:
    """Run ``zoo prepare faces``."""
    parser = _parser()
    options = parser.parse_args(args)
    _check_numbers(options)
    objects = parser.instantiate(options)
    samples = [s for split in objects.data.splits() for s in objects.data.samples(split)]
    turns = {s.id: s.target for s in samples if s.target.video is not None}
    if not turns:
        raise ValueError(
            f"no sample of {type(objects.data).__name__} has a clip; expected clips where the corpus' reader looks for "
            "them (--data.help NAME says where). Correct --data.root"
        )
    settings = _settings(options, objects.analyzer)
    out: Path = options.out
    keep_settings(out / "settings.json", settings, [out / "answers.jsonl", out / "faces.jsonl"])
    media = Media(options.cache, options.timeout, options.max_clip_seconds, LARGEST)
    left_out = {s.id: "has no clip" for s in samples if s.target.video is None}
    with AnswerStore(out / "answers.jsonl") as store:
        keys = _keys(turns, media, left_out)
        new = {key: turns[name] for name, key in keys.items() if store.get(key) is None}
        sampling = FrameSampling(options.frames, options.fps, options.max_frames, options.frame_rule)
        analysed = _Analysed(list(new.values()), objects.analyzer, media, sampling)
        unreadable = _analyse(analysed, list(new), store, settings["analyzer"], options.workers)
        left_out |= {name: unreadable[key] for name, key in keys.items() if key in unreadable}
        findings = {name: json.loads(store.get(key) or "[]") for name, key in keys.items() if key not in unreadable}
    _write(out, findings, left_out)


def _check_numbers(options: Namespace) -> None:
    """Raise ValueError for numbers that make no sense."""
    if min(options.workers, options.max_frames, 1 if options.frames is None else options.frames) < 1:
        raise ValueError("--workers, --frames and --max_frames are 1 or more")
    if not options.fps > 0:
        raise ValueError(f"--fps is a number over 0, got {options.fps}")


def _analyse(analysed: _Analysed, keys: list[str], store: AnswerStore, analyzer: str, workers: int) -> dict[str, str]:
    """Note the faces of every clip in the store; return key -> why a clip gave nothing, which the next run tries again.

    Args:
        keys: of the clips, in their order.
    """
    processes = workers if workers > 1 else 0
    loader = DataLoader(analysed, batch_size=None, num_workers=processes)
    unreadable: dict[str, str] = {}
    for number, lines, reason in reported(loader, len(keys), "looked at", "clips"):
        if reason is None:
            store.add(keys[number], analyzer, json.dumps(lines))
        else:
            unreadable[keys[number]] = reason
    return unreadable


def analyzer_settings(options: Namespace, analyzer: FaceAnalyzer) -> dict[str, Any]:
    """Return what an analyzer's findings depend on; an encoder by its weights, not its place.

    Args:
        options: of ``--analyzer``.
        analyzer: made of them.
    """
    values = dict(options.as_dict().get("init_args", {}))
    expression = getattr(analyzer, "expression", None)
    if expression is not None:
        values["expression"] = expression.vision.weights_hash()
    return {"analyzer": type(analyzer).__name__, "analyzer options": values}


def _settings(options: Namespace, analyzer: FaceAnalyzer) -> dict[str, Any]:
    """Return what the findings depend on, as the next run compares it."""
    return {
        "command": "faces",
        **analyzer_settings(options.analyzer, analyzer),
        "frames": options.frames,
        "fps": options.fps,
        "max_frames": options.max_frames,
        **({} if options.frame_rule == "ours" else {"frame_rule": options.frame_rule}),  # earlier folders have none
    }


def _keys(turns: dict[str, Turn], media: Media, left_out: dict[str, str]) -> dict[str, str]:
    """Return sample id -> what identifies its clip by content; a missing file is added to ``left_out``."""
    keys = {}
    for name, turn in turns.items():
        try:
            clip = content_key(media, turn, turn.video or Path())
        except Unreadable as error:
            left_out[name] = error.reason
            continue
        keys[name] = hashlib.sha256(json.dumps(clip).encode()).hexdigest()
    return keys


def _write(out: Path, findings: dict[str, list[str]], left_out: dict[str, str]) -> None:
    """Write the file that systems read, and what was not found; print the counts."""
    counts: Counter[str] = Counter(
        {"samples": len(findings) + len(left_out), "without a readable clip": len(left_out), "frames": 0}
    )
    faceless: list[str] = []
    lines: list[str] = []
    for name, clip_lines in findings.items():
        rows = [json.loads(line) | {"clip": name} for line in clip_lines]
        lines += [json.dumps(row) for row in rows]
        counts["frames"] += len(rows)
        counts["frames without a face"] += sum(not row["faces"] for row in rows)
        counts["faces"] += sum(len(row["faces"]) for row in rows)
        if not any(row["faces"] for row in rows):
            faceless.append(name)
    counts["clips without a face"] = len(faceless)
    record = {"counts": counts, "without a face": faceless, "left out": dict(sorted(left_out.items()))}
    write_whole(out / "faces.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    if not lines:
        raise ValueError(f"none of {len(left_out)} samples has a clip that can be read; {out / 'faces.json'} lists why")
    write_whole(out / "faces.jsonl", "".join(f"{line}\n" for line in lines))
    print(f"{out / 'faces.jsonl'}: {', '.join(f'{n} {what}' for what, n in counts.items())}")
    if left_out:
        reasons = Counter(left_out.values()).most_common(5)
        print(f"left out, each named in {out / 'faces.json'}: {'; '.join(f'{n} {reason}' for reason, n in reasons)}")
