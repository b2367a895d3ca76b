"""Miniatures of the corpora of single clips in their released layouts, all made up; see `tests.data.miniature`."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from tests.data.miniature import THINGS, write_csv
from tests.media_files import sine, write_clip
from zoo.data import MER2024, EmoSet

SIX = ("happy", "sad", "anger", "surprise", "disgust", "fear")  # MOSEI's order of intensities
CUES = {
    "happy": "hooray",
    "sad": "alone",
    "anger": "furious",
    "angry": "furious",
    "surprise": "wow",
    "disgust": "yuck",
    "fear": "help",
    "neutral": "okay",
    "worried": "careful",
}


def said(rng: random.Random, label: str) -> str:
    return f"{CUES[label].capitalize()}, {rng.choice(THINGS)} is by the {rng.randint(2, 99)}."


def picture(which: int, seed: int, side: int = 32) -> np.ndarray:
    """uint8 (H, W, 3), a bright bar for the label: higher or lower."""
    noise = np.random.default_rng(seed).integers(0, 20, (side, side, 3))
    pixels = np.full((side, side, 3), 60) + noise
    pixels[3 * which : 3 * which + 4] += 150
    return pixels.astype(np.uint8)


def clip(path: Path, which: int, seed: int = 0, sound: bool = True) -> Path:
    """A clip of five frames, the tone higher for a later label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = sine(200 * 1.4**which, 0.3, 16_000) if sound else None
    return write_clip(path, [picture(which, 5 * seed + i) for i in range(5)], tone, rate=16_000)


def still(path: Path, which: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(which, seed)).save(path)
    return path


# ---- CMU-MOSEI
def mosei_rows(clips: int = 6, videos: Mapping[str, Sequence[str]] | None = None) -> list[dict[str, str]]:
    """label.csv: in every video each emotion in turn is the strongest, and every third clip has a weaker second one."""
    videos = videos or {"train": ("aB_3-x", "c4Dd0"), "valid": ("-eF55",), "test": ("gH_66",)}
    rows = []
    for split, names in videos.items():
        for name in names:
            rng = random.Random(name)
            for i in range(clips):
                strong = dict.fromkeys(SIX, "0") | {SIX[i % 6]: "2.3333"}
                if i % 3 == 2:
                    strong[SIX[(i + 1) % 6]] = "0.6667"
                text = said(rng, SIX[i % 6])
                rows.append({"video_id": name, "clip_id": str(i), "text": text, **strong, "split": split})
    return rows


def write_mosei(folder: Path, rows: Sequence[Mapping[str, str]] | None = None) -> Path:
    """The form label.csv."""
    write_csv(folder / "label.csv", rows or mosei_rows())
    return folder


def write_mosei_sdk(folder: Path, rows: Sequence[Mapping[str, str]] | None = None) -> Path:
    """The authors' form: .csd, transcripts and the SDK's folds. Clip i lasts from 5 i to 5 i + 4.5 seconds; the labels
    stand in reverse order, as there is none."""
    rows = rows or mosei_rows()
    texts = folder / "Raw" / "Transcript" / "Segmented" / "Combined"
    texts.mkdir(parents=True, exist_ok=True)
    folds: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    videos: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        videos.setdefault(row["video_id"], []).append(row)
    with h5py.File(folder / "CMU_MOSEI_Labels.csd", "w") as file:
        for video, own in videos.items():
            folds[own[0]["split"]].append(video)
            at = [(5.0 * int(r["clip_id"]), 5.0 * int(r["clip_id"]) + 4.5) for r in own]
            lines = [f"{video}___{r['clip_id']}___{a}___{b}___{r['text']}" for r, (a, b) in zip(own, at, strict=True)]
            (texts / f"{video}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            group = file.create_group(f"All Labels/data/{video}")
            group["intervals"] = np.array(at[::-1])
            group["features"] = np.array([[0.0, *(float(r[name]) for name in SIX)] for r in own[::-1]], np.float32)
    text = "".join(f"standard_{split}_fold = {names!r}\n" for split, names in folds.items())
    (folder / "cmu_mosei_std_folds.py").write_text(text, encoding="utf-8")
    return folder


# ---- MER2024 and EMER
def write_mer2024(folder: Path, sizes: tuple[int, int, int] = (30, 6, 6), clips: int = 0) -> Path:
    """Labels of training, semi and noise with words for all; the first ``clips`` of each have a clip."""
    names = MER2024.labels.names
    words = []
    plan = (
        ("label-disdim.csv", "sample_000000{:02d}", "video-labeled"),
        ("reference-semi.csv", "samplenew3_001000{:02d}", "MER2024_semi"),
        ("reference-noise.csv", "samplenew3_002000{:02d}", "MER2024_noise"),
    )
    for (file, pattern, place), n in zip(plan, sizes, strict=True):
        rng = random.Random(file)
        rows = [{"name": pattern.format(i), "discrete": names[i % 6]} for i in range(n)]
        if file == "label-disdim.csv":
            rows = [row | {"valence": "0.5"} for row in rows]
        write_csv(folder / file, rows)
        words += [{"name": r["name"], "chinese": "", "english": said(rng, r["discrete"])} for r in rows]
        for i in range(min(clips, n)):
            clip(folder / place / f"{rows[i]['name']}.mp4", i % 6, i)
    write_csv(folder / "label-transcription.csv", words)
    return folder


EMER_ROWS = [
    {
        "names": "sample_00000001",
        "emotions": "angry",
        "subtitles": "Who took my ladder?",
        "reasons": "In the video, a man shouts about a ladder. He is angry.",
    },
    {
        "names": "sample_00000002",
        "emotions": "happy",
        "subtitles": "The tent is up!",
        "reasons": "She laughs, with a bright voice; she feels joy and is proud.",
    },
    {
        "names": "sample_00000003",
        "emotions": "worried",
        "subtitles": "",
        "reasons": "He looks around and asks where everybody went.",
    },
]


def write_emer(folder: Path, more: int = 2) -> Path:
    """v1 of three clips; v2 of two of them and ``more`` others."""
    write_csv(folder / "gt-eng.csv", EMER_ROWS)
    reasons = {row["names"]: f"{row['reasons']} So much for it." for row in EMER_ROWS[:2]}
    reasons |= {f"sample_000001{i:02d}": "A calm talk in a kitchen." for i in range(more)}
    rows = [{"name": name, "chinese": "", "english": reason} for name, reason in reasons.items()]
    write_csv(folder / "final-EMER-reason.csv", rows)
    return folder


# ---- DFEW and EmoSet
def dfew_rows(numbers: Sequence[int]) -> list[dict[str, str]]:
    return [{"video_name": str(n), "label": str(n % 7 + 1)} for n in numbers]


def write_dfew(
    folder: Path, train: int = 35, test: int = 14, folds: Sequence[int] = (1,), clips: str | None = "Clip/original"
) -> Path:
    """Training numbers from 1, test numbers from 1001; in later folds they move on. Clips named as in ``clips``."""
    for fold in folds:
        first = 1 + 2000 * (fold - 1)
        for part, start, n in (("train", first, train), ("test", first + 1000, test)):
            numbers = range(start, start + n)
            write_csv(folder / f"EmoLabel_DataSplit/{part}(single-labeled)/set_{fold}.csv", dfew_rows(numbers))
            for n in numbers if clips else ():
                name = f"{n}.mp4" if clips == "Clip/original" else f"{n:05d}.avi"
                clip(folder / clips / name, n % 7, n, sound=clips == "Clip/original")
    return folder


def write_emoset(folder: Path, sizes: tuple[int, int, int] = (32, 8, 8), pictures: bool = True) -> Path:
    number = 0
    for file, n in zip(("train", "val", "test"), sizes, strict=True):
        rows = []
        for i in range(n):
            label, number = EmoSet.labels.names[i % 8], number + 1
            name = f"{label}_{number:05d}"
            rows.append([label, name, f"image/{label}/{name}.jpg", f"annotation/{label}/{name}.json"])
            if pictures:
                still(folder / rows[-1][2], i % 8, number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{file}.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder
