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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from torch.utils.data import DataLoader, Dataset

from zoo.data import EmotionData
from zoo.media import MAX_SECONDS, Media, Unreadable
from zoo.media.clips import content_key
from zoo.models.emotion_qwen.faces import DeepFaceFaces, DlibFaces, FaceAnalyzer, WholeFrame
from zoo.models.emotion_qwen.input import LARGEST, FrameSampling
from zoo.prepare.answer_store import AnswerStore, keep_settings
from zoo.prepare.captions import KINDS, utterances
from zoo.prepare.describe.describer import ClipDescriber
from zoo.prepare.describe.picture import write_picture
from zoo.prepare.describe.voice import bins_record, read_bins, voice_sentence
from zoo.prepare.faces import analyzer_settings
from zoo.prepare.speech import MEASURES, Bins, fit_bins
from zoo.progress import duration, reported
from zoo.schema import Turn
from zoo.storage import write_whole

VERSION = 1  # of what is found and said about a face and a picture: raise it with every change of that
Key = tuple[str, str]  # split and utterance


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
            found = self.describer.describe_turn(turn)
        except Unreadable as error:
            return number, json.dumps({"missing": dict.fromkeys(KINDS, error.reason)})
        if picture is not None:
            write_picture(picture, self.describer, turn, found)
        faces = 0 if found.scene is None else found.scene.faces
        row = {"video": found.video, "faces": faces, "voice": dict(found.voice), "missing": dict(found.missing)}
        return number, json.dumps(row, ensure_ascii=False)


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
    add("--cache", type=Path, help="folder of the decoded clips; none if not given")
    add("--timeout", "--clip_timeout", type=float, default=30.0, help="seconds one clip may take to decode")
    add("--max_clip_seconds", type=float, default=MAX_SECONDS, help="a longer clip is left out, and listed")
    add("--workers", type=int, default=1, help="processes")
    return parser


def main(args: list[str]) -> None:
    """Run ``zoo prepare describe``."""
    parser = _parser()
    options = parser.parse_args(args)
    _check(options)
    objects = parser.instantiate(options)
    data: EmotionData = objects.data
    kinds = [kind for kind in KINDS if kind in options.kinds]
    needs_bins = "audio" in kinds and not options.numbers and options.thresholds is None
    if needs_bins and "train" not in data.splits():
        raise ValueError(
            f"{type(data).__name__} has no training split, where the thresholds of voices are fitted; give those of "
            "another run (--thresholds describe.json), or have numbers instead of words (--numbers)"
        )
    given_bins = None if options.thresholds is None else read_bins(options.thresholds)
    turns: dict[Key, Turn] = {
        (split, turn.id): turn for split in data.splits() for turn in utterances(data.samples(split))
    }
    used = [kind for kind in kinds if any(getattr(turn, kind) is not None for turn in turns.values())]
    if not used:
        raise ValueError(
            f"none of {len(turns)} utterances has a file to look at or listen to; expected clips where the corpus' "
            "reader looks for them (--data.help NAME says where). Correct --data.root or --kinds"
        )
    if unused := [kind for kind in kinds if kind not in used]:
        print(f"no utterance of {type(data).__name__} has {' or '.join(unused)}, so there is no file of that kind")
    found, left_out = _find(options, objects.analyzer, turns, used)
    voices = {key: row["voice"] for key, row in found["audio"].items()}
    bins = given_bins
    if "audio" in used and needs_bins:
        speakers = [
            (turns[key].speaker.strip(), _measured(voice)) for key, voice in voices.items() if key[0] == "train"
        ]
        bins = fit_bins([(speaker, values) for speaker, values in speakers if values], options.least)
    texts = {
        "video": {key: row["video"] for key, row in found["video"].items()},
        "audio": {key: voice_sentence(voice, bins, turns[key].speaker.strip()) for key, voice in voices.items()},
    }
    counts = _counts(found, left_out, turns, used)
    _write(options.out, data, {kind: texts[kind] for kind in used}, left_out, counts, bins)


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


def _find(
    options: Namespace, analyzer: FaceAnalyzer | None, turns: Mapping[Key, Turn], kinds: Sequence[str]
) -> tuple[dict[str, dict[Key, dict[str, Any]]], dict[str, dict[Key, str]]]:
    """Look at and listen to every clip that was not described before.

    Returns:
        kind -> utterance -> what was found; kind -> utterance -> why there is nothing.
    """
    out: Path = options.out
    settings: dict[str, Any] = {"command": "describe", "version": VERSION, "kinds": list(kinds)}
    if analyzer is not None:
        settings |= analyzer_settings(options.analyzer, analyzer)
    settings |= {name: options[name] for name in ("frames", "fps", "max_frames")}
    keep_settings(out / "settings.json", settings, [out / "answers.jsonl", out / "describe.json"])
    media = Media(options.cache, options.timeout, options.max_clip_seconds, LARGEST)
    describer = ClipDescriber(
        analyzer, media=media, sampling=FrameSampling(options.frames, options.fps, options.max_frames)
    )
    left_out = {kind: {k: f"no {kind} file" for k, t in turns.items() if getattr(t, kind) is None} for kind in kinds}
    rows: dict[str, dict[str, Any]] = {}
    with AnswerStore(out / "answers.jsonl") as store:
        clips: dict[str, tuple[Turn, Path]] = {}
        keys: dict[Key, str] = {}
        for key, turn in turns.items():
            readable = _with_files(turn, kinds, media, {kind: (left_out[kind], key) for kind in kinds})
            if readable is not None:
                keys[key] = readable[1]
                clips.setdefault(readable[1], (readable[0], _picture_path(out, key)))
        todo = [k for k, (_, path) in clips.items() if store.get(k) is None or (options.explain and not path.exists())]
        pictures = [clips[k][1] if options.explain else None for k in todo]
        described = _Described([clips[k][0] for k in todo], describer, pictures)
        loader = DataLoader(described, batch_size=None, num_workers=options.workers if options.workers > 1 else 0)
        began = time.perf_counter()
        for number, text in reported(loader, len(todo), "described", "clips"):
            if "video" in (row := json.loads(text)):
                store.add(todo[number], str(settings.get("analyzer")), text)
            rows[todo[number]] = row  # what cannot be read is tried again by the next run
        if todo:
            seconds = time.perf_counter() - began
            print(
                f"described {len(todo)} clips in {duration(seconds)}: {1000 * seconds / len(todo) / 60:.1f} minutes "
                "per thousand clips"
            )
        rows = {k: rows[k] if k in rows else json.loads(store.get(k) or "") for k in clips}
    found: dict[str, dict[Key, dict[str, Any]]] = {kind: {} for kind in KINDS}
    for key, clip in keys.items():
        for kind in (kind for kind in kinds if key not in left_out[kind]):
            if kind in rows[clip]["missing"]:
                left_out[kind][key] = rows[clip]["missing"][kind]
            else:
                found[kind][key] = rows[clip]
    return found, left_out


def _with_files(
    turn: Turn, kinds: Sequence[str], media: Media, left_out: Mapping[str, tuple[dict[Key, str], Key]]
) -> tuple[Turn, str] | None:
    """Return a turn with those files alone that are wanted and there, and what identifies these by content.

    A file that is not there is added to ``left_out`` of its kind; None if there is no file.
    """
    identity: list[Any] = []
    files: dict[str, Path | None] = dict.fromkeys(KINDS)
    for kind in kinds:
        path: Path | None = getattr(turn, kind)
        if path is not None:
            try:
                identity.append((kind, *content_key(media, turn, path)))
                files[kind] = path
            except Unreadable as error:
                reasons, key = left_out[kind]
                reasons[key] = error.reason
    if not identity:
        return None
    kept = Turn("clip", "", "", None, {}, files["video"], files["audio"], turn.start, turn.end, turn.crop)
    return kept, hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _picture_path(out: Path, key: Key) -> Path:
    return out / "explain" / key[0] / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', key[1])}.png"


def _measured(voice: Mapping[str, float]) -> dict[str, float]:
    """Return the measures that have thresholds."""
    return {name: voice[name] for name in MEASURES if name in voice}


def _counts(
    found: Mapping[str, Mapping[Key, Mapping[str, Any]]],
    left_out: Mapping[str, Mapping[Key, str]],
    turns: Mapping[Key, Turn],
    kinds: Sequence[str],
) -> dict[str, dict[str, int]]:
    """Return, of each kind, how many utterances there are, and what was found in how many of them."""
    counts: dict[str, dict[str, int]] = {}
    for kind in kinds:
        rows = found[kind].values()
        counts[kind] = {"utterances": len(turns), "described": len(rows), "left out": len(left_out[kind])}
        if kind == "video":
            counts[kind] |= {"without a face": sum(not r["faces"] for r in rows)}
            counts[kind] |= {"with several faces at once": sum(r["faces"] > 1 for r in rows)}
        else:
            silent = sum("loudness" not in r["voice"] for r in rows)
            counts[kind] |= {"silent": silent, "without a voice": sum(not r["voice"]["speech"] for r in rows) - silent}
    return counts


def _write(
    out: Path,
    data: EmotionData,
    texts: Mapping[str, Mapping[Key, str]],
    left_out: Mapping[str, Mapping[Key, str]],
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
    for kind, of_kind in texts.items():
        for split in data.splits():
            own = {key: text for (of, key), text in of_kind.items() if of == split}
            write_whole(out / f"{kind}_description_{split}.json", json.dumps(own, ensure_ascii=False, indent=0) + "\n")
        print(f"{out / f'{kind}_description_*.json'}: {', '.join(f'{n} {what}' for what, n in counts[kind].items())}")
        if left_out[kind]:
            reasons = Counter(left_out[kind].values()).most_common(5)
            print(f"left out, each named in {out / 'describe.json'}: {'; '.join(f'{n} {why}' for why, n in reasons)}")
