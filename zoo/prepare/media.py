"""``zoo prepare media``: a folder's clips decoded once, and what of them cannot be read."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable
from pathlib import Path

from zoo.prepare.command import Add
from zoo.progress import Meter

ENDINGS = {
    "video": (".mp4", ".avi", ".mkv", ".mov", ".webm"),
    "sound": (".wav", ".flac", ".ogg", ".mp3", ".m4a"),
    "picture": (".jpg", ".jpeg", ".png"),
}


def add_media(add: Add) -> Callable[[argparse.Namespace], None]:
    """Add the command ``media``; return what runs it."""
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
    return scan_folder


def scan_folder(options: argparse.Namespace) -> None:
    """Decode every file below a folder and list what cannot be read."""
    from zoo.data.text import whole_number
    from zoo.media import Media, scan

    for name in ("frames", "size", "workers"):
        if getattr(options, name) is not None:
            whole_number(f"--{name}", getattr(options, name), 1)
    if not options.root.is_dir():
        raise FileNotFoundError(f"{options.root} is no folder; give the one that holds the clips")
    paths_by_kind, unlisted = _find_files(options.root)
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
            report=functools.partial(_report, meter, kind),
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


def _find_files(root: Path) -> tuple[dict[str, list[Path]], dict[Path, str]]:
    """Return the files below a folder by their kind, and the folders that cannot be listed, with the reason."""
    from zoo.data.clips import files_below

    unlisted: dict[Path, str] = {}
    files = files_below(root, unlisted)
    paths_by_kind = {kind: [p for p in files if p.suffix.lower() in ends] for kind, ends in ENDINGS.items()}
    for folder, reason in unlisted.items():
        print(f"not looked into: {folder}: {reason}")
    if not any(paths_by_kind.values()):
        raise FileNotFoundError(f"{root} holds no file named {' '.join(sum(ENDINGS.values(), ()))}")
    return paths_by_kind, unlisted


def _report(meter: Meter, kind: str, done: int) -> None:
    _print(meter.line(done, f"{kind}: "))


def _print(line: str | None) -> None:
    if line is not None:
        print(line, flush=True)
