"""Decodes every recording under speech/ and every picture under faces/; exits 1 if there are none or one fails.

python tests/benchmarks/check_media.py --data-root ../shared/data
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from zoo.media import Media, Unreadable, read_frames, read_waveform, scan

SOUNDS = {".wav", ".flac", ".ogg", ".mp3", ".m4a"}
PICTURES = {".jpg", ".jpeg", ".png", ".webp"}


def check(folder: Path, suffixes: set[str], media: Media, workers: int) -> tuple[int, int]:
    """Reads all files of a folder three times: for the cache, from the cache, and in this process; prints what it saw.

    Returns:
        how many files, and how many of them failed.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes)
    sounds = suffixes is SOUNDS
    found = scan(paths, media, workers, **({"waveform": {}} if sounds else {"frames": {"at": "middle"}}))
    for e in found.unreadable:
        print(f"unreadable: {e}")
    for path, what in found.damaged.items():
        print(f"not whole: {path}: {what}")

    shapes: Counter[str] = Counter()
    seconds: list[float] = []
    hits, differ = 0.0, 0
    for path in paths:
        try:
            start = time.perf_counter()
            cached = media.waveform(path) if sounds else media.frames(path, position="middle")
            hits += time.perf_counter() - start
            direct = read_waveform(path) if sounds else read_frames(path, position="middle")
        except Unreadable:
            continue  # reported above
        if cached.tobytes() != direct.tobytes() or cached.shape != direct.shape:
            print(f"another array from the cache: {path}")
            differ += 1
        if sounds:
            seconds.append(len(cached) / 16_000)
            shapes["silent" if np.abs(cached).max() < 1e-3 else "with sound"] += 1
        else:
            shapes[f"{cached.shape[-1]}x{cached.shape[-2]}"] += 1
    print(f"{folder.name}: {found.arrays} of {found.files} files read, in {found.seconds:.2f} s by {workers} processes")
    if seconds:
        print(f"{folder.name}: {min(seconds):.2f} to {max(seconds):.2f} s, together {sum(seconds):.1f} s")
    if shapes:
        print(f"{folder.name}: {', '.join(f'{count} {what}' for what, count in shapes.most_common())}")
        print(f"{folder.name}: {1000 * hits / len(paths):.2f} ms a file from the cache")
    return found.files, len({str(e.path) for e in found.unreadable}) + differ


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds speech/ and faces/")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as cache:
        media = Media(Path(cache))
        for name, suffixes in (("speech", SOUNDS), ("faces", PICTURES)):
            files, bad = check(args.data_root / name, suffixes, media, args.workers)
            if not files:
                print(f"{args.data_root / name} holds no files of {', '.join(sorted(suffixes))}")
            failed += bad + (not files)
    if failed:
        sys.exit(f"{failed} failed")
    print("all files read")


if __name__ == "__main__":
    main()
