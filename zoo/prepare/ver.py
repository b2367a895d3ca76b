"""``zoo prepare ver``: reasoning texts for labelled clips, in the way of VER (Emotion-Qwen, Huang et al. 2025, Sec. 4).

Two models explain, from frames, words and the known label, how one can tell; a third merges the two texts; a person
rates what came out from 0 to 5; what is rated 3 or more becomes a conversation to train on.

    zoo prepare ver --data MER2024 --data.root DIR --models A B --merger C --send-to URL --out OUT
    (fill the column "rating" of OUT/ratings.csv)
    zoo prepare ver --collect --out OUT

Differs from the paper: any models, prompts in our own words (the paper prints none), frames instead of video files, one
rating per text instead of twelve analysts (put their mean there; the paper does not say how it joined them).

In OUT lie ``ver.jsonl`` (the texts), ``ratings.csv``, ``left_out.jsonl`` (clips without a text, and why),
``answers.jsonl`` (see `zoo.prepare.chat.Answers`), ``settings.json``, and after --collect ``ver_{en,zh}.json`` and
``not_collected.jsonl``.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from zoo.data import EmotionData
from zoo.data.clips import VIDEO
from zoo.data.text import clean_text, read_table, some
from zoo.media import Media, Unreadable
from zoo.media.clips import utterance_frames, utterance_sound
from zoo.prepare import chat
from zoo.prompts import escape
from zoo.schema import Sample, Turn
from zoo.storage import write_jsonl, write_whole

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
UNCLEAR = {"", "none", "other", "others", "unknown", "invalid", "undecided", "ambiguous", "mixed", "xxx"}
COLUMNS = ("id", "text", "rating")
MAX_WORDS = 400  # of an explanation
LIST_EXAMPLE = '{"clip": "clips/a.mp4", "label": "happy", "text": "Look at that!"}'
MOST_LISTED = 20  # lines of a printed list; the file has them all


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


@dataclass
class Built:
    """What `build` did.

    Attributes:
        texts: rows of ver.jsonl, those of earlier runs included.
        asked: questions that were sent to a model.
        left_out: clip -> why it has no text, whatever is tried again.
        unanswered: clip -> why a model did not answer; the next run asks again.
    """

    texts: int = 0
    asked: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    unanswered: dict[str, str] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------------------ the clips
def relative(path: Path, root: Path) -> str:
    """Path from the data root; ValueError if the file lies elsewhere: nobody else could find it."""
    inside = os.path.relpath(os.path.abspath(path), os.path.abspath(root))
    if inside.split(os.sep)[0] == os.pardir or os.path.isabs(inside):
        raise ValueError(f"{path} does not lie in {root}; expected every clip there. Give the folder above as the root")
    return Path(inside).as_posix()


def _clip(name: str, labels: Sequence[str], turn: Turn, root: Path) -> Clip | str:
    """The clip, or why it cannot be used."""
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
    return Clip(name, "image" if suffix in PICTURES else "video", relative(turn.video, root), words[0], turn)


def clips_of(samples: Iterable[Sample], root: Path | None) -> tuple[list[Clip], dict[str, str]]:
    """Clips of a corpus' samples, and sample id -> why it is none."""
    if root is None:
        raise ValueError("the corpus has no folder, so it has no clips; give --data.root")
    made = {s.id: _clip(s.id, [s.target.label] if s.target.label else [], s.target, root) for s in samples}
    return [c for c in made.values() if isinstance(c, Clip)], {k: c for k, c in made.items() if isinstance(c, str)}


def read_list(path: Path, root: Path | None = None) -> tuple[list[Clip], dict[str, str]]:
    """Clips of a JSON-lines list of ``{clip, label, text?, id?}``, and id -> why a row is none.

    Args:
        root: what the clips' paths are relative to; the list's folder if None. Without an id the path is the id.
        path: the list; a label may be a word or a list of words, of which there must be one.

    Raises:
        ValueError: a row of another form, an id twice, a clip outside the root.
        FileNotFoundError: a clip that is not there.
    """
    root = path.parent if root is None else root
    made: dict[str, Clip | str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            labels = [row["label"]] if isinstance(row["label"], str) else list(row["label"] or ())
            text = row.get("text") or ""
            clip = root / row["clip"]
            name = row.get("id")
            if not all(isinstance(value, str) for value in (*labels, text, name or "")) or name == "":
                raise TypeError("id, label and text are texts")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} line {number} cannot be read ({type(error).__name__}: {error}); expected {LIST_EXAMPLE}. "
                "Correct the line"
            ) from None
        name = relative(clip, root) if name is None else name
        if name in made:
            raise ValueError(f"{path} line {number}: {name} stands there twice; expected one row per id. Remove one")
        if not clip.is_file():
            raise FileNotFoundError(f"{path} line {number}: no file {row['clip']} in {root}; correct it or --root")
        made[name] = _clip(name, labels, Turn(name, "", clean_text(text), video=clip, audio=clip), root)
    return [c for c in made.values() if isinstance(c, Clip)], {k: c for k, c in made.items() if isinstance(c, str)}


# ------------------------------------------------------------------------------------------------------------ the texts
def build(
    clips: Sequence[Clip],
    models: Sequence[chat.Model],
    merger: chat.Model,
    out: Path,
    language: str = "en",
    frames: int = 8,
    size: int = 448,
    sound: bool = False,
    reason_template: Path | None = None,
    merge_template: Path | None = None,
    max_failures: int = 20,
    workers: int = 1,
    media: Media | None = None,
) -> Built:
    """Writes a merged text for every clip that has none yet; a clip that stands in ver.jsonl is not even decoded.

    Args:
        models: two, with different names; each sees the frames and the sound.
        merger: reads their texts alone.
        frames: per clip, 0: none, and models read words and descriptions only. A picture is one frame.
        size: shorter side of the frames in pixels.
        sound: whether the models hear the clip.
        max_failures: questions without an answer before the run stops.
        workers: clips under way at once.

    Raises:
        chat.Stopped: too many failures. Whatever was answered until then is in the files.
        ValueError: files of other settings, or of another clip under the same id.
    """
    if len(models) != 2 or models[0].name == models[1].name:
        raise ValueError(f"expected two different models, got {', '.join(m.name for m in models)}; give --models A B")
    if frames < 0 or size < 1 or workers < 1:
        raise ValueError(f"frames are 0 or more, size and workers 1 or more; got {frames}, {size} and {workers}")
    reason, of_reason = chat.template(reason_template, "ver_reason", language)
    merge, of_merge = chat.template(merge_template, "ver_merge", language)
    media = media or Media()
    texts = out / "ver.jsonl"
    settings = {
        "command": "ver",
        "language": language,
        "models": [m.name for m in models],
        "merger": merger.name,
        "frames": frames,
        "size": size,
        "sound": sound,
        "reason_template": of_reason,
        "merge_template": of_merge,
    }
    chat.same_settings(out / "settings.json", settings, [texts, out / "ratings.csv", out / "answers.jsonl"])
    built = Built()
    with chat.Answers(out / "answers.jsonl") as answers:  # from here on no other run is at work in this folder
        known = {row["id"]: row for row in _rows(texts)}
        for clip in clips:
            row = known.get(clip.id)
            if row is not None and (row["path"], row["label"]) != (clip.path, clip.label):
                raise ValueError(
                    f"{texts} has {clip.id} as {row['path']} ({row['label']}), but it is now {clip.path} "
                    f"({clip.label}); expected the same clips as before. Give another --out"
                )
        ask = chat.Asker(answers, max_failures)

        def usable(model: chat.Model, prompt: str, *seen: Any) -> str:
            answer = ask(model, prompt, *seen)
            if why := chat.rubbish(answer, MAX_WORDS, language):
                raise _Unusable(f"{model.name}: {why}")
            return answer

        def one(clip: Clip) -> dict[str, Any]:
            turn, shown = clip.turn, {"kind": clip.kind, "label": escape(clip.label), "text": escape(clip.turn.text)}
            n = min(frames, 1) if clip.kind == "image" else frames
            try:
                seen = utterance_frames(media, turn, n, side=size) if n else None
                heard = utterance_sound(media, turn) if sound and turn.audio is not None else None
                described = {kind: escape(text) for kind, text in turn.descriptions.items()}
                prompt = chat.filled(reason, **shown, frames=n, sound=heard is not None, descriptions=described)
                reasons = {model.name: usable(model, prompt, seen, heard) for model in models}
                prompt = chat.filled(merge, **shown, reasons=[escape(text) for text in reasons.values()])
                merged = usable(merger, prompt)
            except Unreadable as error:
                return {"left_out": error.reason}
            except _Unusable as error:
                return {"left_out": str(error)}
            except chat.NoAnswer as error:
                return {"unanswered": str(error)}
            said = {"text": turn.text} if turn.text else {}
            return {
                "id": clip.id,
                "kind": clip.kind,
                "path": clip.path,
                "label": clip.label,
                **said,
                "language": language,
                "reasons": reasons,
                "merger": merger.name,
                "merged": merged,
            }

        todo = [clip for clip in clips if clip.id not in known]
        try:
            with texts.open("a", encoding="utf-8") as file:
                for clip, row in zip(todo, chat.in_order(one, todo, workers, "texts", "clips"), strict=True):
                    if "left_out" in row:
                        built.left_out[clip.id] = row["left_out"]
                    elif "unanswered" in row:
                        built.unanswered[clip.id] = row["unanswered"]
                    else:
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")
                        file.flush()
        finally:
            rows = _rows(texts)
            write_ratings(out / "ratings.csv", rows)
            built.texts, built.asked = len(rows), ask.asked
    return built


class _Unusable(ValueError):
    """An answer that is none: a refusal and the like."""


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of ver.jsonl; the unfinished last line of a killed run is taken off the file."""
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(whole.decode("utf-8").split("\n")[:-1], 1):
        try:
            row = json.loads(line)
            if not all(isinstance(row[name], str) for name in ("id", "kind", "path", "label", "language", "merged")):
                raise TypeError("a value is no text")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} line {number} is no row of this file ({type(error).__name__}: {error}): changed by hand? "
                "Delete the line, and run the command again"
            ) from None
        rows.append(row)
    return rows


def write_ratings(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds the rows that the rating file lacks; what a person wrote there stays as it is, further columns too."""
    table: list[dict[str, str]] = []
    columns = list(COLUMNS)
    if path.exists():
        read = read_table(path, COLUMNS)
        if read.attrs["notes"]:  # else the texts would be written back garbled
            raise ValueError(f"{path} is not UTF-8; expected the encoding it was made in. Save it as UTF-8 CSV again")
        columns, table = list(read.columns), read.to_dict("records")
    there = {row["id"].strip() for row in table}
    new = [row for row in rows if row["id"] not in there]
    if not new:  # a file of a header alone would be refused as empty when the run goes on
        return
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, restval="")
    writer.writeheader()
    # a spreadsheet would run a text that begins like a formula
    shown = [{"id": row["id"], "text": re.sub(r"^(?=[=+\-@\t])", "'", row["merged"])} for row in new]
    writer.writerows([*table, *shown])
    write_whole(path, out.getvalue().encode("utf-8-sig"))  # the mark at the beginning makes spreadsheets read Chinese


# ---------------------------------------------------------------------------------------------------------- the ratings
def rating(cell: str) -> float:
    """0 to 5, also between two whole numbers (a mean of several people). ValueError otherwise."""
    if not re.fullmatch(r"\d+(\.\d+)?", cell.strip(), re.ASCII) or float(cell) > 5:
        raise ValueError(f"{cell!r} is no number from 0 to 5")
    return float(cell)


def collect(
    out: Path, min_rating: float = 3.0, question_template: Path | None = None
) -> tuple[Path, int, dict[str, tuple[str, str]]]:
    """Writes the conversations of all texts that are rated ``min_rating`` or more.

    Returns:
        the file; how many conversations it holds; id -> (low, unrated, malformed or unknown; why) of every other row of
        ver.jsonl or ratings.csv, which ``not_collected.jsonl`` lists too.

    Raises:
        FileNotFoundError: no texts, or no ratings.
        ValueError: nothing to collect, or files that cannot be read.
    """
    if not (math.isfinite(min_rating) and 0 <= min_rating <= 5):
        raise ValueError(f"--min-rating is from 0 to 5, got {min_rating}")
    for name in ("ver.jsonl", "ratings.csv"):
        if not (out / name).is_file():
            raise FileNotFoundError(f"no {name} in {out}; run `zoo prepare ver` without --collect first")
    rows = _rows(out / "ver.jsonl")
    if not rows:
        raise ValueError(f"{out / 'ver.jsonl'} is empty; expected texts. Run `zoo prepare ver` without --collect first")
    cells: dict[str, list[str]] = {}
    for row in read_table(out / "ratings.csv", COLUMNS).to_dict("records"):
        cells.setdefault(row["id"].strip(), []).append(row["rating"].strip())
    language = rows[0]["language"]
    question, _ = chat.template(question_template, "ver_question", language)
    conversations, other = [], {}
    for row in rows:
        given = set(cells.get(row["id"], [""]))
        try:
            if len(given) > 1:
                raise ValueError(f"several ratings: {', '.join(sorted(given))}")
            (cell,) = given
            if not cell:
                why = "empty rating" if row["id"] in cells else "no row in ratings.csv"
                other[row["id"]] = ("unrated", why)
                continue
            if rating(cell) < min_rating:
                other[row["id"]] = ("low", cell)
                continue
        except ValueError as error:
            other[row["id"]] = ("malformed", str(error))
            continue
        asked = chat.filled(question, kind=row["kind"], text=escape(row.get("text", "")))
        said = [{"role": "user", "content": asked}, {"role": "assistant", "content": escape(row["merged"])}]
        conversations.append({"id": row["id"], row["kind"]: row["path"], "conversations": said})
    other |= dict.fromkeys(cells.keys() - {row["id"] for row in rows}, ("unknown", "not in ver.jsonl"))
    listed = [{"id": name, "what": what, "why": why} for name, (what, why) in other.items()]
    write_jsonl(out / "not_collected.jsonl", listed)
    if not conversations:
        counts = Counter(what for what, _ in other.values())
        raise ValueError(
            f"no text is rated {min_rating:g} or more ({', '.join(f'{n} {what}' for what, n in counts.items())}); "
            f"expected numbers from 0 to 5 in the column rating of {out / 'ratings.csv'}. Fill it in"
        )
    path = out / f"ver_{language}.json"
    write_whole(path, json.dumps(conversations, ensure_ascii=False, indent=1) + "\n")
    return path, len(conversations), other


# ---------------------------------------------------------------------------------------------------------- the command
def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "zoo prepare ver",
        usage="zoo prepare ver --out DIR [options], then zoo prepare ver --collect --out DIR",
        description="Reasoning texts for labelled clips: two models explain, a third merges, a person rates, and "
        "--collect writes conversations to train on.",
    )
    add = parser.add_argument
    parser.add_subclass_arguments(
        EmotionData, "data", required=False, default=None, help="a corpus, as of `zoo fit`: --data NAME --data.root DIR"
    )
    add("--list", type=Path, help=f"instead of a corpus: a JSON-lines file, rows like {LIST_EXAMPLE}")
    add("--root", type=Path, help="what the list's clips are relative to; the list's folder if not given")
    add("--split", choices=["train", "dev", "test"], default="train", help="of the corpus")
    add("--out", type=Path, required=True, help="folder of the texts, the ratings and the answers")
    add("--models", nargs=2, metavar=("A", "B"), help="they see the clip; local:PATH for a text model of this machine")
    add("--merger", metavar="C", help="it reads the two texts")
    add("--frames", type=int, default=8, help="per clip; 0: none, models read words and descriptions alone")
    add("--sound", action="store_true", help="let A and B hear the clip too")
    add("--reason-template", type=Path, help="your own prompt for A and B (Jinja)")
    add("--merge-template", type=Path, help="your own prompt for C")
    add("--collect", action="store_true", help="write the conversations of what OUT/ratings.csv rates well")
    add("--min-rating", type=float, default=3.0, help="of --collect")
    add("--question-template", type=Path, help="of --collect: your own question")
    chat.add_options(parser)
    return parser


def main(args: list[str]) -> None:
    """``zoo prepare ver``"""
    parser = _parser()
    options = parser.parse_args(args)
    if not 0 <= options.min_rating <= 5:
        raise ValueError(f"--min-rating is a rating from 0 to 5, got {options.min_rating}")
    if options.collect:
        _collect(options)
        return
    if (options.data is None) == (options.list is None):
        raise ValueError("expected one of --data NAME --data.root DIR and --list FILE; give one of them")
    if options.models is None or options.merger is None:
        raise ValueError("expected two models and one that merges; give --models A B --merger C")
    if options.frames < 0:
        raise ValueError(f"--frames is 0 (none) or more, got {options.frames}")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit is 1 or more, got {options.limit}")
    sees = bool(options.frames) or options.sound
    if sees and (local := [name for name in options.models if name.startswith("local:")]):
        raise ValueError(f"{some(local)} is a text model; it cannot be given frames or sound. {chat.TEXT_ONLY}")
    *pair, merger = chat.models([*options.models, options.merger], options)
    if options.list is not None:
        clips, left_out = read_list(options.list, options.root)
    else:
        data = parser.instantiate(options).data
        clips, left_out = clips_of(data.samples(options.split), data.root)
    if not clips:
        raise ValueError(f"none of {len(left_out)} clips can be used: {some(f'{k}: {v}' for k, v in left_out.items())}")
    clips = clips[: options.limit]
    given = ["label and words"]
    given += [f"up to {options.frames} frames of up to {options.size} pixels"] if options.frames else []
    given += ["the sound"] if options.sound else []
    what = f"{', '.join(given)} of {len(clips)} clips"
    texts = f"label, words and the two texts of {len(clips)} clips"
    chat.announce([*((model, what, sees) for model in pair), (merger, texts, False)], options.yes_send_media)
    out = options.out
    built = build(
        clips,
        pair,
        merger,
        out,
        options.language,
        options.frames,
        options.size,
        options.sound,
        options.reason_template,
        options.merge_template,
        options.max_failures,
        options.workers,
        Media(options.cache, options.clip_timeout, options.max_clip_seconds),
    )
    left_out |= built.left_out | built.unanswered
    write_jsonl(out / "left_out.jsonl", [{"id": k, "why": why} for k, why in left_out.items()])
    print(f"{out / 'ver.jsonl'}: {built.texts} texts ({built.asked} questions asked)")
    _list("left out", left_out, out / "left_out.jsonl")
    if built.unanswered:
        raise ValueError(f"{len(built.unanswered)} clips have no answer, see above; run the command again to ask again")
    print(f"fill the column rating of {out / 'ratings.csv'} with 0 to 5, then: zoo prepare ver --collect --out {out}")


def _collect(options: Any) -> None:
    path, count, other = collect(options.out, options.min_rating, options.question_template)
    print(f"{path}: {count} conversations rated {options.min_rating:g} or more")
    found = options.out / "not_collected.jsonl"
    for kind in ("low", "unrated", "malformed", "unknown"):
        _list(kind, {name: why for name, (what, why) in other.items() if what == kind}, found)
    if bad := sum(what in ("malformed", "unknown") for what, _ in other.values()):
        raise ValueError(f"{bad} ratings cannot be read, see above; correct them and run --collect again")


def _list(what: str, rows: Mapping[str, str], file: Path) -> None:
    """Prints a list, its end in the file only."""
    for name, why in list(rows.items())[:MOST_LISTED]:
        print(f"  {what}: {name}: {why}")
    if len(rows) > MOST_LISTED:
        print(f"  {what}: {len(rows) - MOST_LISTED} more in {file}")
