"""The command ``zoo prepare ver``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from zoo.backbones.llm_client import TEXT_ONLY, ChatModel
from zoo.data import EmotionData
from zoo.data.text import some
from zoo.media import Media
from zoo.prepare.options import add_options, announce, build_models
from zoo.prepare.ver.clips import LIST_EXAMPLE, read_list, select_clips
from zoo.prepare.ver.ratings import collect
from zoo.prepare.ver.texts import build
from zoo.storage import write_jsonl

MOST_LISTED = 20  # lines of a printed list; the file has them all


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
    add("--reason_template", type=Path, help="your own prompt for A and B (Jinja)")
    add("--merge_template", type=Path, help="your own prompt for C")
    add("--collect", action="store_true", help="write the conversations of what OUT/ratings.csv rates well")
    add("--min_rating", type=float, default=3.0, help="of --collect")
    add("--question_template", type=Path, help="of --collect: your own question")
    add_options(parser)
    return parser


def main(args: list[str]) -> None:
    """Run ``zoo prepare ver``."""
    parser = _parser()
    options = parser.parse_args(args)
    if not 0 <= options.min_rating <= 5:
        raise ValueError(f"--min_rating is a rating from 0 to 5, got {options.min_rating}")
    if options.collect:
        _collect(options)
        return
    _check_options(options)
    *pair, merger = build_models([*options.models, options.merger], options)
    if options.list is not None:
        clips, left_out = read_list(options.list, options.root)
    else:
        data = parser.instantiate(options).data
        clips, left_out = select_clips(data.samples(options.split), data.root)
    if not clips:
        raise ValueError(f"none of {len(left_out)} clips can be used: {some(f'{k}: {v}' for k, v in left_out.items())}")
    clips = clips[: options.limit]
    _announce(options, pair, merger, len(clips))
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
    listing = options.out / "not_collected.jsonl"
    for kind in ("low", "unrated", "malformed", "unknown"):
        _list(kind, {name: why for name, (what, why) in other.items() if what == kind}, listing)
    if bad := sum(what in ("malformed", "unknown") for what, _ in other.values()):
        raise ValueError(f"{bad} ratings cannot be read, see above; correct them and run --collect again")


def _list(what: str, rows: Mapping[str, str], file: Path) -> None:
    """Print a list, its end in the file only."""
    for name, why in list(rows.items())[:MOST_LISTED]:
        print(f"  {what}: {name}: {why}")
    if len(rows) > MOST_LISTED:
        print(f"  {what}: {len(rows) - MOST_LISTED} more in {file}")


def _check_options(options: Any) -> None:
    """Raise ValueError for options that do not go together."""
    if (options.data is None) == (options.list is None):
        raise ValueError("expected one of --data NAME --data.root DIR and --list FILE; give one of them")
    if options.models is None or options.merger is None:
        raise ValueError("expected two models and one that merges; give --models A B --merger C")
    if options.frames < 0:
        raise ValueError(f"--frames is 0 (none) or more, got {options.frames}")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit is 1 or more, got {options.limit}")
    local = [name for name in options.models if name.startswith("local:")]
    if _sends_media(options) and local:
        raise ValueError(f"{some(local)} is a text model; it cannot be given frames or sound. {TEXT_ONLY}")


def _sends_media(options: Any) -> bool:
    return bool(options.frames) or options.sound


def _announce(options: Any, models: Sequence[ChatModel], merger: ChatModel, n_clips: int) -> None:
    """Print what leaves this machine, before anything does."""
    parts = ["label and words"]
    parts += [f"up to {options.frames} frames of up to {options.size} pixels"] if options.frames else []
    parts += ["the sound"] if options.sound else []
    inputs = f"{', '.join(parts)} of {n_clips} clips"
    texts = f"label, words and the two texts of {n_clips} clips"
    media = _sends_media(options)
    announce([*((model, inputs, media) for model in models), (merger, texts, False)], options.yes_send_media)
