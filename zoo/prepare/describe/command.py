"""The command ``zoo prepare describe``.

In OUT lie ``{video,audio}_description_{split}.json``, which ``--data.descriptions`` reads; ``describe.json`` with the
thresholds of loudness, pitch and pace, the counts, and every utterance without a description, with the reason;
``settings.json``; with ``--explain`` a picture per clip in ``explain/``; and ``answers.jsonl``, where each clip is
noted as soon as it is described, under the sha256 of its bytes: a run that was killed goes on there, and a clip that
was replaced is described again. What cannot be read at all is tried again by the next run.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from torch.utils.data import DataLoader, Dataset

from zoo.data import EmotionData
from zoo.media import Media, Unreadable
from zoo.media.clips import content_key
from zoo.media.speech import MEASURES, Bins, fit_bins
from zoo.models.emotion_qwen.faces import DeepFaceFaces, DlibFaces, FaceAnalyzer, WholeFrame
from zoo.models.emotion_qwen.input import LARGEST
from zoo.models.emotion_qwen.sampling import FrameSampling
from zoo.prepare.answer_store import AnswerStore, keep_settings
from zoo.prepare.captions import KINDS, utterances
from zoo.prepare.describe.describer import ClipDescriber
from zoo.prepare.describe.picture import write_picture
from zoo.prepare.describe.voice import bins_record, read_bins, voice_sentence
from zoo.prepare.faces import analyzer_settings
from zoo.prepare.options import add_clip_options
from zoo.progress import duration, reported
from zoo.schema import Turn
from zoo.storage import write_whole

VERSION = 1  # of what is found and said about a face and a picture: raise it with every change of that
Key = tuple[str, str]  # split and utterance
Reasons = dict[str, dict[Key, str]]  # kind -> utterance -> why it has no description of that kind
Row = dict[str, Any]  # of `_Described`


@dataclass
class _Described(Dataset[tuple[int, str]]):
    """Clips by number -> that number, and what was found as JSON: as it is kept, or {"missing": {kind: reason}}."""

    turns: Sequence[Turn]
    describer: ClipDescriber
    pictures: Sequence[Path | None]

    def __len__(self) -> int:
        return len(self.turns)

    def __getitem__(self, number: int) -> tuple[int, str]:
        turn, picture = self.turns[number], self.pictures[number]
        try:
            description = self.describer.describe_turn(turn)
        except Unreadable as error:
            return number, json.dumps({"missing": dict.fromkeys(KINDS, error.reason)})
        if picture is not None:
            write_picture(picture, self.describer, turn, description)
        faces = 0 if description.scene is None else description.scene.faces
        row = {"video": description.video, "faces": faces, "voice": dict(description.voice)}
        return number, json.dumps(row | {"missing": dict(description.missing)}, ensure_ascii=False)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "zoo prepare describe",
        usage="zoo prepare describe --data NAME --data.root DIR --analyzer NAME --out DIR [options]",
        description="Descriptions of faces, voices and pictures, in the files that --data.descriptions reads. No "
        "endpoint is asked. Thresholds of loudness, pitch and pace come from the training split alone.",
    )
    add = parser.add_argument
    parser.add_subclass_arguments(EmotionData, "data", required=True, help="a corpus, as of `zoo fit`")
    parser.add_subclass_arguments(
        (DlibFaces, WholeFrame, DeepFaceFaces), "analyzer", required=False, help="what finds faces, as of face capture"
    )
    add("--out", type=Path, required=True, help="folder of the descriptions")
    add("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="video: face and picture; audio: voice")
    add(
        "--thresholds",
        type=Path,
        help="describe.json or speech_bins.json of another run, instead of this training split",
    )
    add("--numbers", action="store_true", help="dB, Hz and syllables per second instead of words; no thresholds needed")
    add("--least", type=int, default=30, help="training utterances a speaker needs for thresholds of their own")
    add("--explain", action="store_true", help="draw each clip: faces, expressions, loudness and voice")
    add("--frames", type=int, help="frames per video in which faces are looked for; by --fps if not given")
    add("--fps", type=float, default=4.0, help="such frames per second (4)")
    add("--max_frames", type=int, default=12, help="at most so many (12)")
    add_clip_options(parser)
    return parser


def main(args: list[str]) -> None:
    """Run ``zoo prepare describe``."""
    parser = _parser()
    options = parser.parse_args(args)
    _check(options)
    objects = parser.instantiate(options)
    data: EmotionData = objects.data
    given_bins = _given_bins(options, data)
    turns: dict[Key, Turn] = {}
    for split in data.splits():
        turns |= {(split, turn.id): turn for turn in utterances(data.samples(split))}
    kinds = _kinds_there(options, data, turns)
    media = Media(options.cache, options.timeout, options.max_clip_seconds, LARGEST)
    left_out: Reasons = {
        kind: {key: f"no {kind} file" for key, turn in turns.items() if getattr(turn, kind) is None} for kind in kinds
    }
    clips = _clips(turns, media, left_out)
    rows = _describe(options, objects.analyzer, clips, media, kinds)
    of_kind = _sort(rows, clips, left_out)
    voices = {key: row["voice"] for key, row in of_kind.get("audio", {}).items()}
    bins = _fit(voices, turns, options.least) if voices and _needs_bins(options) else given_bins
    texts = {
        "video": {key: row["video"] for key, row in of_kind.get("video", {}).items()},
        "audio": {key: voice_sentence(voice, bins, turns[key].speaker.strip()) for key, voice in voices.items()},
    }
    counts = _counts(of_kind, left_out, len(turns))
    _write(options.out, data, {kind: texts[kind] for kind in kinds}, left_out, counts, bins)


def _check(options: Namespace) -> None:
    """Raise ValueError for options that make no sense."""
    if min(options.workers, options.least, options.max_frames, 1 if options.frames is None else options.frames) < 1:
        raise ValueError("--workers, --least, --frames and --max_frames are 1 or more")
    if not options.fps > 0:
        raise ValueError(f"--fps is a number over 0, got {options.fps}")
    if options.numbers and options.thresholds is not None:
        raise ValueError("--numbers needs no --thresholds; give one of them")
    if "video" in options.kinds and options.analyzer is None:
        raise ValueError(
            "no --analyzer, which finds faces; give one, e.g. --analyzer DlibFaces --analyzer.expression FILE, or "
            "describe voices alone (--kinds audio)"
        )


def _needs_bins(options: Namespace) -> bool:
    """Whether thresholds are to be fitted on the training split."""
    return "audio" in options.kinds and not options.numbers and options.thresholds is None


def _given_bins(options: Namespace, data: EmotionData) -> Bins | None:
    """Read the thresholds that were given. ValueError where some are needed, and can neither be read nor fitted."""
    if _needs_bins(options) and "train" not in data.splits():
        raise ValueError(
            f"{type(data).__name__} has no training split, where the thresholds of voices are fitted; give those of "
            "another run (--thresholds describe.json), or have numbers instead of words (--numbers)"
        )
    return None if options.thresholds is None else read_bins(options.thresholds)


def _fit(voices: Mapping[Key, Mapping[str, float]], turns: Mapping[Key, Turn], least: int) -> Bins:
    """Fit thresholds on the voices of the training split that could be measured."""
    measured = []
    for key, voice in voices.items():
        values = {name: voice[name] for name in MEASURES if name in voice}
        if key[0] == "train" and values:
            measured.append((turns[key].speaker.strip(), values))
    return fit_bins(measured, least)


def _kinds_there(options: Namespace, data: EmotionData, turns: Mapping[Key, Turn]) -> list[str]:
    """Return the wanted kinds of which the corpus has files. ValueError if it has none."""
    kinds = [kind for kind in KINDS if kind in options.kinds]
    absent = [kind for kind in kinds if all(getattr(turn, kind) is None for turn in turns.values())]
    if absent == kinds:
        raise ValueError(
            f"none of {len(turns)} utterances has a file to look at or listen to; expected clips where the corpus' "
            "reader looks for them (--data.help NAME says where). Correct --data.root or --kinds"
        )
    if absent:
        print(f"no utterance of {type(data).__name__} has {' or '.join(absent)}, so there is no file of that kind")
    return [kind for kind in kinds if kind not in absent]


@dataclass
class _Clips:
    """The clips of a corpus, each once.

    Attributes:
        turns: sha256 of the bytes that are looked at -> an utterance with these files alone, and no speaker.
        first: sha256 -> the first utterance that has these.
        sha256: utterance -> sha256; without those that have no file.
    """

    turns: dict[str, Turn] = field(default_factory=dict)
    first: dict[str, Key] = field(default_factory=dict)
    sha256: dict[Key, str] = field(default_factory=dict)


def _clips(turns: Mapping[Key, Turn], media: Media, left_out: Reasons) -> _Clips:
    """Find the files of every utterance; one that is not there is added to ``left_out``, whose kinds are looked for."""
    clips = _Clips()
    for key, turn in turns.items():
        identity: list[Any] = []
        files: dict[str, Path | None] = dict.fromkeys(KINDS)
        for kind, reasons in left_out.items():
            if key in reasons:
                continue
            path: Path = getattr(turn, kind)
            try:
                identity.append((kind, *content_key(media, turn, path)))
                files[kind] = path
            except Unreadable as error:
                reasons[key] = error.reason
        if identity:
            sha256 = clips.sha256[key] = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
            clips.turns.setdefault(sha256, replace(turn, video=files["video"], audio=files["audio"], speaker=""))
            clips.first.setdefault(sha256, key)
    return clips


def _describe(
    options: Namespace, analyzer: FaceAnalyzer | None, clips: _Clips, media: Media, kinds: Sequence[str]
) -> dict[str, Row]:
    """Look at and listen to every clip that was not described before; return sha256 -> what was found in it."""
    out: Path = options.out
    settings: dict[str, Any] = {"command": "describe", "version": VERSION, "kinds": list(kinds)}
    if analyzer is not None:
        settings |= analyzer_settings(options.analyzer, analyzer)
    settings |= {name: options[name] for name in ("frames", "fps", "max_frames")}
    keep_settings(out / "settings.json", settings, [out / "answers.jsonl", out / "describe.json"])
    sampling = FrameSampling(options.frames, options.fps, options.max_frames)
    describer = ClipDescriber(analyzer, media=media, sampling=sampling)
    pictures = {sha256: _picture_path(out, key) if options.explain else None for sha256, key in clips.first.items()}
    rows: dict[str, Row] = {}
    with AnswerStore(out / "answers.jsonl") as store:
        for sha256, picture in pictures.items():
            text = store.get(sha256)
            if text is not None and (picture is None or picture.exists()):
                rows[sha256] = json.loads(text)
        todo = [sha256 for sha256 in clips.turns if sha256 not in rows]
        described = _Described([clips.turns[k] for k in todo], describer, [pictures[k] for k in todo])
        loader = DataLoader(described, batch_size=None, num_workers=options.workers if options.workers > 1 else 0)
        began = time.perf_counter()
        for number, text in reported(loader, len(todo), "described", "clips"):
            row = rows[todo[number]] = json.loads(text)
            if "video" in row and store.get(todo[number]) is None:  # what cannot be read is tried again by the next run
                store.add(todo[number], str(settings.get("analyzer")), text)
    if todo:
        seconds = time.perf_counter() - began
        each = 1000 * seconds / len(todo) / 60
        print(f"described {len(todo)} clips in {duration(seconds)}: {each:.1f} minutes per thousand clips")
    return rows


def _sort(rows: Mapping[str, Row], clips: _Clips, left_out: Reasons) -> dict[str, dict[Key, Row]]:
    """Return kind -> utterance -> what was found; what could not be read is added to ``left_out``."""
    of_kind: dict[str, dict[Key, Row]] = {kind: {} for kind in left_out}
    for key, sha256 in clips.sha256.items():
        row = rows[sha256]
        for kind, reasons in left_out.items():
            if kind in row["missing"]:
                reasons.setdefault(key, row["missing"][kind])
            elif key not in reasons:
                of_kind[kind][key] = row
    return of_kind


def _picture_path(out: Path, key: Key) -> Path:
    return out / "explain" / key[0] / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', key[1])}.png"


def _counts(of_kind: Mapping[str, Mapping[Key, Row]], left_out: Reasons, n: int) -> dict[str, dict[str, int]]:
    """Return, of each kind, how many of the n utterances were described, and what was found in how many of them."""
    counts: dict[str, dict[str, int]] = {}
    for kind, by_key in of_kind.items():
        rows = by_key.values()
        counts[kind] = {"utterances": n, "described": len(rows), "left out": len(left_out[kind])}
        if kind == "video":
            counts[kind] |= {"without a face": sum(not row["faces"] for row in rows)}
            counts[kind] |= {"with several faces at once": sum(row["faces"] > 1 for row in rows)}
        else:
            silent = sum("loudness" not in row["voice"] for row in rows)
            voiceless = sum(not row["voice"]["speech"] for row in rows) - silent
            counts[kind] |= {"silent": silent, "without a voice": voiceless}
    return counts


def _write(
    out: Path,
    data: EmotionData,
    texts: Mapping[str, Mapping[Key, str]],
    left_out: Reasons,
    counts: Mapping[str, Mapping[str, int]],
    bins: Bins | None,
) -> None:
    """Write the descriptions and what is known of them, and print the counts."""
    listed = {
        kind: {split: {k[1]: why for k, why in sorted(reasons.items()) if k[0] == split} for split in data.splits()}
        for kind, reasons in left_out.items()
    }
    record = {"thresholds": None if bins is None else bins_record(bins), "counts": counts, "left out": listed}
    write_whole(out / "describe.json", json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    if not any(texts.values()):
        raise ValueError(f"no clip could be described; {out / 'describe.json'} lists why")
    for kind, by_key in texts.items():
        for split in data.splits():
            content = {name: text for (place, name), text in by_key.items() if place == split}
            path = out / f"{kind}_description_{split}.json"
            write_whole(path, json.dumps(content, ensure_ascii=False, indent=0) + "\n")
        print(f"{out / f'{kind}_description_*.json'}: {', '.join(f'{n} {what}' for what, n in counts[kind].items())}")
        if left_out[kind]:
            reasons = Counter(left_out[kind].values()).most_common(5)
            print(f"left out, each named in {out / 'describe.json'}: {'; '.join(f'{n} {why}' for why, n in reasons)}")
