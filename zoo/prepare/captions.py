"""``zoo prepare captions``: plain descriptions of faces and voices by a model, as files for --data.descriptions.

    zoo prepare captions --data MELD --data.root DIR --model NAME --send_to URL --out OUT
    zoo prepare captions --data MELD --data.root DIR --model local:FOLDER --out OUT       an image-text model here
    zoo fit ... --data.descriptions '[OUT]'

The model sees the frames, or hears the sound, of one utterance: neither its words nor its label. In OUT lie
``{video,audio}_description_{split}.json``, ``left_out.jsonl`` (utterances without a description, and why),
``answers.jsonl`` (see `zoo.prepare.answer_store.AnswerStore`) and ``settings.json``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from jsonargparse import ArgumentParser

from zoo.backbones.llm_client import ChatModel, LocalText, QueryFailed
from zoo.data import EmotionData
from zoo.data.text import clean_text
from zoo.media import Media, Unreadable
from zoo.media.clips import utterance_frames, utterance_sound
from zoo.prepare.answer_filter import rejection_reason
from zoo.prepare.answer_store import AnswerStore, CachedClient, keep_settings, map_in_order
from zoo.prepare.caption_estimate import estimate, in_words
from zoo.prepare.options import add_options, announce, build_models
from zoo.prepare.prompt_files import fill_prompt, load_prompt
from zoo.schema import Sample, Turn
from zoo.storage import write_jsonl, write_whole

KINDS = ("video", "audio")
Style = Literal["plain", "feelings"]
WRITE_EVERY = 100  # descriptions
MOST_LISTED = 20  # lines of a printed list; the file has them all


@dataclass
class CaptionResult:
    """What `describe` did, for one kind and split.

    Attributes:
        texts: utterance key -> description, those of earlier runs included.
        dropped: key -> why its description cannot be used: a refusal, too long, a label word.
        left_out: key -> why there is nothing to describe.
        unanswered: key -> why the model did not answer; the next run asks again.
    """

    texts: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    unanswered: dict[str, str] = field(default_factory=dict)


def utterances(samples: Iterable[Sample]) -> list[Turn]:
    """Return every utterance of a split once, those that only stand in a history too."""
    return list({turn.id: turn for sample in samples for turn in (*sample.history, sample.target)}.values())


def describe(
    turns: Sequence[Turn],
    kind: str,
    model: ChatModel,
    path: Path,
    client: CachedClient,
    language: str = "en",
    frames: int = 8,
    size: int = 448,
    max_words: int = 80,
    forbidden: Collection[str] = (),
    template: Path | None = None,
    workers: int = 1,
    media: Media | None = None,
    style: Style = "plain",
) -> CaptionResult:
    """Describe every utterance that has no description in the file yet, and writes the file.

    Args:
        kind: video (the model sees ``frames`` frames) or audio (it hears the sound).
        path: the file, one object ``{"dia0_utt0": "..."}``; written every `WRITE_EVERY` descriptions and at the end,
            whatever ended it.
        size: shorter side of the frames in pixels.
        max_words: a longer description is dropped.
        forbidden: a description that has one of these words is dropped.
        style: of our own prompts, where there is no ``template``: ``plain`` forbids to name feelings, ``feelings`` asks
            for them, as those of the papers do.

    Raises:
        AbortRun: too many failures; what was answered until then is in the file.
        ValueError: a file of another form, or no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {' or '.join(KINDS)}, got {kind!r}")
    media = media or Media()
    prompt = fill_prompt(load_prompt(template, prompt_name(kind, style), language)[0], frames=frames)
    result = CaptionResult()
    earlier = _read(path)
    for turn in turns:
        if turn.id in earlier:  # checked again: the rules may have become stricter
            _add_text(result, turn.id, earlier[turn.id], max_words, language, forbidden)

    def ask(turn: Turn) -> tuple[str, str]:
        if (turn.video if kind == "video" else turn.audio) is None:
            return "left_out", "no clip" if kind == "video" else "no sound"
        try:
            clip_frames = utterance_frames(media, turn, frames, side=size) if kind == "video" else None
            sound = utterance_sound(media, turn) if kind == "audio" else None
            return "text", clean_text(client(model, prompt, clip_frames, sound))
        except Unreadable as error:
            return "left_out", error.reason
        except QueryFailed as error:
            return "unanswered", str(error)

    todo = [turn for turn in turns if turn.id not in earlier]
    try:
        for turn, (outcome, text) in zip(todo, map_in_order(ask, todo, workers, f"{kind} descriptions"), strict=True):
            if outcome == "text":
                _add_text(result, turn.id, text, max_words, language, forbidden)
                if len(result.texts) % WRITE_EVERY == 0:
                    _write(path, earlier, result)
            else:
                getattr(result, outcome)[turn.id] = text
    finally:
        _write(path, earlier, result)
    return result


def prompt_name(kind: str, style: Style) -> str:
    """Return the name of our prompt for a kind of clip."""
    return f"caption_{kind}" if style == "plain" else f"caption_{kind}_{style}"


def _add_text(
    result: CaptionResult, key: str, text: str, max_words: int, language: str, forbidden: Collection[str]
) -> None:
    reason = rejection_reason(text, max_words, language, forbidden)
    if reason is None:
        result.texts[key] = text
    else:
        result.dropped[key] = reason


def _read(path: Path) -> dict[str, str]:
    try:
        texts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            raise ValueError("no object of texts")
    except ValueError as error:
        raise ValueError(f'{path} cannot be read ({error}); expected {{"dia0_utt0": "..."}}. Delete it') from None
    return texts


def _write(path: Path, earlier: dict[str, str], result: CaptionResult) -> None:
    """Write the descriptions; a run with --limit keeps what an earlier one described."""
    texts = {key: text for key, text in earlier.items() if key not in result.dropped} | result.texts
    write_whole(path, json.dumps(texts, ensure_ascii=False, indent=0) + "\n")


# ---------------------------------------------------------------------------------------------------------- the command
def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "zoo prepare captions",
        usage="zoo prepare captions --data NAME --data.root DIR --model M --out DIR [options]",
        description="Plain descriptions of faces and voices by a model, in the files that --data.descriptions reads.",
    )
    add = parser.add_argument
    parser.add_subclass_arguments(EmotionData, "data", required=True, help="a corpus, as of `zoo fit`")
    add("--split", nargs="+", choices=["train", "dev", "test"], default=["train"], help="which, one or several")
    add("--kinds", nargs="+", choices=list(KINDS), default=["video"], help="video: from frames; audio: from the sound")
    add(
        "--model",
        required=True,
        help="its name at the address of --send_to; or local:FOLDER, an image-text model on this machine",
    )
    add("--out", type=Path, required=True, help="folder of the descriptions and the answers")
    add("--frames", type=int, default=8, help="per clip")
    add("--max_words", type=int, default=80, help="a longer description is dropped; a Chinese character is a word")
    add(
        "--forbid_labels",
        nargs="*",
        metavar="WORD",
        help="drop a description that has one of the corpus' label words or of these words",
    )
    add(
        "--style",
        choices=get_args(Style),
        default="plain",
        help="of our prompts: plain forbids to name feelings; feelings asks for them, as the papers' prompts do",
    )
    add("--dry_run", action="store_true", help="count questions and tokens, send nothing")
    add(
        "--price",
        type=float,
        nargs=2,
        metavar=("IN", "OUT"),
        help="with --dry_run: per million tokens of questions and of answers",
    )
    add("--video_template", type=Path, help="your own prompt for frames (Jinja)")
    add("--audio_template", type=Path, help="your own prompt for sound")
    add_options(parser)
    return parser


def main(args: list[str]) -> None:
    """Run ``zoo prepare captions``."""
    parser = _parser()
    options = parser.parse_args(args)
    if options.model.startswith("local:") and "audio" in options.kinds:
        raise ValueError(
            f"{options.model}: models of this machine hear no sound; name one of --send_to, or --kinds video"
        )
    for name in ("frames", "size", "max_words", "workers"):
        if options[name] < 1:
            raise ValueError(f"--{name} is 1 or more, got {options[name]}")
    if options.price is not None and not options.dry_run:
        raise ValueError("--price goes with --dry_run, which says what would be paid; without it, questions are sent")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit is 1 or more, got {options.limit}")
    model = None if options.dry_run else build_models([options.model], options)[0]
    if isinstance(model, LocalText):
        raise ValueError(
            f"{options.model} is a text model; it cannot be given frames. Name one of --send_to, or the folder of an "
            "image-text model, e.g. of Qwen2.5-VL"
        )
    data = parser.instantiate(options).data
    forbidden = [] if options.forbid_labels is None else [*data.labels.names, *options.forbid_labels]
    turns = {split: utterances(data.samples(split))[: options.limit] for split in options.split}
    count = sum(map(len, turns.values()))
    if not any(getattr(turn, kind) for kind in options.kinds for split_turns in turns.values() for turn in split_turns):
        raise ValueError(
            f"none of {count} utterances has a file to look at or listen to; expected clips where the corpus' reader "
            "looks for them (--data.help NAME says where). Correct --data.root, --split or --kinds"
        )
    if model is None:
        print(_dry_run(options, turns))
        return
    inputs = {"video": f"{options.frames} frames of up to {options.size} pixels", "audio": "the sound"}
    sent = f"{' and '.join(inputs[kind] for kind in options.kinds)} of {count} utterances, with a fixed prompt"
    announce([(model, sent, True)], options.yes_send_media)
    _run(options, model, turns, forbidden)


def _dry_run(options: Any, turns: dict[str, list[Turn]]) -> str:
    """Return what would be asked, in words."""
    media = Media(options.cache, options.clip_timeout, options.max_clip_seconds)
    estimates = []
    for kind in options.kinds:
        prompt, _ = load_prompt(
            getattr(options, f"{kind}_template"), prompt_name(kind, options.style), options.language
        )
        text = fill_prompt(prompt, frames=options.frames)
        for split, of_split in turns.items():
            path = options.out / f"{kind}_description_{split}.json"
            earlier = _read(path)
            todo = [turn for turn in of_split if turn.id not in earlier]
            estimates.append((path.name, estimate(todo, kind, text, media, options.frames, options.size)))
    return in_words(estimates, options.max_words, options.max_tokens, options.price)


def _run(options: Any, model: ChatModel, turns: dict[str, list[Turn]], forbidden: Sequence[str]) -> None:
    out: Path = options.out
    jobs = [(kind, split) for kind in options.kinds for split in options.split]
    paths = {job: out / "{}_description_{}.json".format(*job) for job in jobs}
    templates = {kind: getattr(options, f"{kind}_template") for kind in KINDS}
    settings = {
        "command": "captions",
        "model": model.name,
        "language": options.language,
        "frames": options.frames,
        "size": options.size,
    }
    settings |= {
        f"{k}_template": load_prompt(template, prompt_name(k, options.style), options.language)[1]
        for k, template in templates.items()
    }
    keep_settings(out / "settings.json", settings, [*paths.values(), out / "answers.jsonl"])
    media, listed, unanswered = Media(options.cache, options.clip_timeout, options.max_clip_seconds), [], 0
    try:
        with AnswerStore(out / "answers.jsonl") as store:
            client = CachedClient(store, options.max_failures)
            for (kind, split), path in paths.items():
                result = describe(
                    turns[split],
                    kind,
                    model,
                    path,
                    client,
                    options.language,
                    options.frames,
                    options.size,
                    options.max_words,
                    forbidden,
                    templates[kind],
                    options.workers,
                    media,
                    options.style,
                )
                print(f"{path}: {len(result.texts)} of {len(turns[split])} utterances ({client.sent} asked so far)")
                problems = {"dropped": result.dropped, "left out": result.left_out, "no answer": result.unanswered}
                for what, rows in problems.items():
                    listed += [{"kind": kind, "split": split, "id": k, "what": what, "why": v} for k, v in rows.items()]
                unanswered += len(result.unanswered)
    finally:
        write_jsonl(out / "left_out.jsonl", listed)
    for row in listed[:MOST_LISTED]:
        print(f"  {row['what']}: {row['id']} ({row['kind']}, {row['split']}): {row['why']}")
    if len(listed) > MOST_LISTED:
        print(f"  {len(listed) - MOST_LISTED} more in {out / 'left_out.jsonl'}")
    if listed:
        print("  " + ", ".join(f"{n} {what}" for what, n in Counter(row["what"] for row in listed).items()))
    if unanswered:
        raise ValueError(f"{unanswered} utterances have no answer, see above; run the command again to ask again")
