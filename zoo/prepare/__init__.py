"""``zoo prepare``: what a run needs before it can begin: a small backbone, the sitcom's clips, a leak report, measured
voices, texts by other models."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zoo.progress import Meter

Add = Callable[..., argparse.ArgumentParser]


def main(args: list[str]) -> None:
    """``zoo prepare synthetic | media | tiny | tiny-vit | tiny-hubert | leaks | speech | captions |
    ver``"""
    if args[:1] == ["leaks"]:
        from zoo.data import leaks

        leaks.main(args[1:])
        return
    if args[:1] == ["captions"]:
        from zoo.prepare import captions

        captions.main(args[1:])
        return
    if args[:1] == ["ver"]:
        from zoo.prepare import ver

        ver.main(args[1:])
        return
    if args[:1] == ["speech"]:
        from zoo.prepare import speech

        speech.main(args[1:])
        return
    parser = argparse.ArgumentParser("zoo prepare", description=__doc__)
    what = parser.add_subparsers(dest="what", required=True)
    commands = {
        "synthetic": _synthetic(what.add_parser),
        "media": _media(what.add_parser),
        "tiny": _tiny(what.add_parser),
        "tiny-vit": _tiny_encoder(what.add_parser, "vit"),
        "tiny-hubert": _tiny_encoder(what.add_parser, "hubert"),
    }
    what.add_parser("leaks", help="utterances that stand in two splits or two corpora", add_help=False)
    what.add_parser("speech", help="descriptions of voices from measured loudness, pitch and pace", add_help=False)
    what.add_parser("captions", help="descriptions of clips and voices by a model of yours", add_help=False)
    what.add_parser("ver", help="reasoning texts for labelled clips by models of yours, rated by you", add_help=False)
    options = parser.parse_args(args)
    commands[options.what](options)


# ----------------------------------------------------------------------------------------------------------- the sitcom
def _synthetic(add: Add) -> Callable[[argparse.Namespace], None]:
    parser = add(
        "synthetic",
        help="the embedded sitcom as files, in the layout of the MELD release, with clips",
        description="Writes the embedded sitcom: CSVs, clips (H.264 and AAC), descriptions, hidden truth, questions "
        "about the scene and a contact sheet. Train on it with --data Synthetic --data.root OUT.",
    )
    parser.add_argument("--out", required=True, type=Path, help="a folder that does not exist yet")
    parser.add_argument("--seed", type=int, default=0, help="which corpus; another seed shares no line of the plot")
    parser.add_argument(
        "--dialogues", type=int, default=100, help="of all splits together, about 8.5 utterances each (100)"
    )
    parser.add_argument(
        "--shares",
        type=float,
        nargs=3,
        default=(0.7, 0.1, 0.2),
        metavar=("TRAIN", "DEV", "TEST"),
        help="how the dialogues are shared out (.7 .1 .2)",
    )
    parser.add_argument("--descriptions", choices=["clean", "noisy", "noisy_independent"], default="clean")
    parser.add_argument("--domain", choices=["studio", "wild", "reworded"], default="studio")
    parser.add_argument(
        "--label_shares", type=float, nargs=7, metavar="SHARE", help="weight of each label; MELD's if not given"
    )
    parser.add_argument(
        "--text_modes", type=float, nargs=3, metavar=("EXPLICIT", "AMBIGUOUS", "MISLEADING"), help="(.50 .32 .18)"
    )
    parser.add_argument("--inertia", type=float, help="how often a label is the speaker's own last one (.30)")
    parser.add_argument("--contagion", type=float, help="how often it follows the previous utterance (.25)")
    parser.add_argument(
        "--face_cues",
        type=float,
        nargs=2,
        metavar=("ABSENT", "MISLEADING"),
        help="how often a face shows nothing, and how often another label (.12 .04)",
    )
    parser.add_argument("--voice_cues", type=float, nargs=2, metavar=("ABSENT", "MISLEADING"), help="(.12 .04)")
    parser.add_argument("--workers", type=int, help="processes; one per core if not given")
    parser.add_argument("--report", action="store_true", help="print the best reachable scores")

    def run(options: argparse.Namespace) -> None:
        from zoo.data.text import whole_number
        from zoo.sitcom.contact_sheet import contact_sheet
        from zoo.sitcom.posteriors import ceilings
        from zoo.sitcom.release import write
        from zoo.sitcom.settings import Settings

        if options.workers is not None:
            whole_number("--workers", options.workers, 1)
        whole_number("--seed", options.seed)
        knobs = {
            "descriptions": options.descriptions,
            "domain": options.domain,
            "shares": options.label_shares,
            "text_modes": options.text_modes,
            "inertia": options.inertia,
            "contagion": options.contagion,
            "face_cues": options.face_cues,
            "voice_cues": options.voice_cues,
        }
        settings = Settings(**{k: tuple(v) if isinstance(v, list) else v for k, v in knobs.items() if v is not None})
        start = time.perf_counter()
        sizes = share_out(options.dialogues, options.shares)
        corpus = write(options.out, sizes, options.seed, settings, options.workers)
        contact_sheet(options.out, corpus["test"][:3], "test", options.out / "contact_sheet.png")
        counts = {split: sum(len(d.utterances) for d in dialogues) for split, dialogues in corpus.items()}
        said = ", ".join(f"{split} {n} ({sizes[split]} dialogues)" for split, n in counts.items())
        print(f"wrote {options.out}: {said}, {time.perf_counter() - start:.0f} s")
        print(f"look at {options.out / 'contact_sheet.png'}")
        if options.report:
            every = [dialogue for dialogues in corpus.values() for dialogue in dialogues]
            print_ceilings(ceilings(every), sum(counts.values()))

    return run


def share_out(dialogues: int, shares: Sequence[float]) -> dict[str, int]:
    """Dialogues of each split: the shares, rounded, and at least one each.

    Raises:
        ValueError: fewer than 3 dialogues, or shares that are not positive.
    """
    if dialogues < 3 or min(shares) <= 0:
        raise ValueError(
            f"need at least 3 dialogues (one for each split) and positive shares, got {dialogues} and {list(shares)}"
        )
    dev, test = (min(max(1, round(dialogues * share / sum(shares))), dialogues - 2) for share in shares[1:])
    test = min(test, dialogues - dev - 1)
    return {"train": dialogues - dev - test, "dev": dev, "test": test}


def print_ceilings(scores: dict[str, dict[str, float]], n: int) -> None:
    """A table of the best reachable scores, with and without what came before."""
    from rich.console import Console
    from rich.table import Table

    endings = ("", " + history", " + past labels", " + history + past labels")
    table = Table(title=f"Best reachable accuracy / weighted F1 in percent, by the exact posteriors (n = {n})")
    for column in ("seen of the utterance", "it alone", "+ history", "+ past labels", "+ both"):
        table.add_column(column, justify="left" if column.startswith("seen") else "right")
    for name in (name for name in scores if not name.endswith(endings[1:3])):
        cells = (scores[name + ending] for ending in endings)
        table.add_row(name, *(f"{100 * s['accuracy']:.1f} / {100 * s['weighted_f1']:.1f}" for s in cells))
    Console(width=120).print(table)


def _print(line: str | None) -> None:
    if line is not None:
        print(line, flush=True)


def _media(add: Add) -> Callable[[argparse.Namespace], None]:
    parser = add(
        "media",
        help="decode a folder's clips once, and list those that cannot be read",
        description="Decodes every clip, recording and picture under a folder into a cache and lists what cannot be "
        "read, with the reason. Exit code 1 if there is any.",
    )
    parser.add_argument("--root", required=True, type=Path)
    parser.add_argument("--cache", type=Path, help="folder of the decoded frames and waveforms; none if not given")
    parser.add_argument("--frames", type=int, default=8, help="frames per clip, evenly spaced (8)")
    parser.add_argument("--size", type=int, help="side of the frames in pixels; as they are if not given")
    parser.add_argument("--workers", type=int, help="processes; one per core if not given")
    parser.add_argument("--timeout", "--clip_timeout", type=float, default=30.0, help="seconds per file (30)")
    parser.add_argument("--max_clip_seconds", type=float, default=600.0, help="a longer file is not read (600)")

    def run(options: argparse.Namespace) -> None:
        from zoo.data.clips import files_below
        from zoo.data.text import whole_number
        from zoo.media import Media, scan

        for name in ("frames", "size", "workers"):
            if getattr(options, name) is not None:
                whole_number(f"--{name}", getattr(options, name), 1)
        kinds = {
            "video": (".mp4", ".avi", ".mkv", ".mov", ".webm"),
            "sound": (".wav", ".flac", ".ogg", ".mp3", ".m4a"),
            "picture": (".jpg", ".jpeg", ".png"),
        }
        if not options.root.is_dir():
            raise FileNotFoundError(f"{options.root} is no folder; give the one that holds the clips")
        unlisted: dict[Path, str] = {}
        files = files_below(options.root, unlisted)
        paths_by_kind = {kind: [p for p in files if p.suffix.lower() in ends] for kind, ends in kinds.items()}
        for folder, why in unlisted.items():
            print(f"not looked into: {folder}: {why}")
        if not any(paths_by_kind.values()):
            raise FileNotFoundError(f"{options.root} holds no file named {' '.join(sum(kinds.values(), ()))}")
        media = Media(options.cache, options.timeout, options.max_clip_seconds)
        workers = options.workers or os.cpu_count() or 1
        failed = len(unlisted)
        for kind, paths in paths_by_kind.items():
            frames = {"n": options.frames if kind == "video" else 1, "size": options.size} if kind != "sound" else None
            meter = Meter(len(paths), "files")
            scanned = scan(
                paths,
                media,
                workers,
                frames=frames,
                waveform={} if kind != "picture" else None,
                report=lambda done, m=meter, k=kind: _print(m.line(done, f"{k}: ")),
            )
            if paths:
                print(f"{kind}: {len(paths)} files, {scanned.seconds:.0f} s")
            for error in scanned.unreadable:
                print(f"  unreadable: {error}")
            for path, reason in scanned.damaged.items():
                print(f"  damaged, what decodes of it is used: {path}: {reason}")
            failed += len(scanned.unreadable)
        if failed:
            raise ValueError(f"{failed} requests failed, see above; runs leave those frames or sounds out, counted")

    return run


# ----------------------------------------------------------------------------------------------------- small backbones
def _tiny(add: Add) -> Callable[[argparse.Namespace], None]:
    tiny = add("tiny", help="a small language model with random weights and a tokenizer made from text")
    tiny.add_argument("--out", required=True, type=Path)
    tiny.add_argument(
        "--goemotions", type=Path, help="folder of GoEmotions; its training sentences shape the tokenizer"
    )
    tiny.add_argument(
        "--synthetic", type=int, default=2000, help="dialogues of the embedded corpus that shape the tokenizer"
    )
    tiny.add_argument("--family", choices=["llama", "qwen2"], default="llama")
    tiny.add_argument("--vocab_size", type=int, default=4096)
    tiny.add_argument("--hidden_size", type=int, default=192)
    tiny.add_argument("--layers", type=int, default=3)
    tiny.add_argument("--heads", type=int, default=6)
    tiny.add_argument("--intermediate_size", type=int, default=512)
    tiny.add_argument("--seed", type=int, default=0)

    def run(options: argparse.Namespace) -> None:
        from zoo.backbones.tiny import make_folder
        from zoo.data import GoEmotions, Synthetic
        from zoo.data.text import whole_number
        from zoo.models.causal_lm import CausalLM
        from zoo.prompts import load_template, render

        for name in ("vocab_size", "hidden_size", "layers", "heads", "intermediate_size"):
            whole_number(f"--{name}", getattr(options, name), 1)
        for name in ("synthetic", "seed"):
            whole_number(f"--{name}", getattr(options, name))
        corpora: list[Any] = [Synthetic(train_dialogues=options.synthetic)] if options.synthetic else []
        corpora += [GoEmotions(root=options.goemotions)] if options.goemotions else []
        if not corpora:
            raise ValueError("a tokenizer needs text: give --goemotions, --synthetic, or both")
        template = load_template("default", CausalLM.templates)
        texts = [
            f"{render(template, s, window=0, kinds=('audio', 'video'), said=s.labels.names)} {s.target.label}"
            for corpus in corpora
            for s in corpus.samples("train")
        ]
        make_folder(
            options.out,
            texts,
            options.family,
            options.vocab_size,
            options.hidden_size,
            options.layers,
            options.heads,
            intermediate_size=options.intermediate_size,
            seed=options.seed,
        )
        print(f"wrote {options.out} (tokenizer from {len(texts)} utterances)")

    return run


def _tiny_encoder(add: Add, kind: str) -> Callable[[argparse.Namespace], None]:
    sees = {"vit": "pictures", "hubert": "waveforms"}[kind]
    parser = add(f"tiny-{kind}", help=f"a small encoder of {sees} with random weights and a head for seven labels")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seed", type=int, default=0)

    def run(options: argparse.Namespace) -> None:
        from zoo.backbones.tiny import make_hubert_folder, make_vit_folder
        from zoo.data.meld import MELD

        make = make_vit_folder if kind == "vit" else make_hubert_folder
        make(options.out, labels=MELD.labels.names, seed=options.seed)
        print(f"wrote {options.out}")

    return run
