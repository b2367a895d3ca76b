"""`zoo label` without a checkpoint on clips of a real face and a real voice: each part switched off in turn; the time.

    zoo checkpoints pull smollm2-135m
    python -m tests.benchmarks.label_parts --data-root DIR

DIR holds faces/london (pictures of the Face Research Lab London Set), speech/emodb (recordings of EmoDB) and
weights/fer2013_mini_xception (the file that `zoo checkpoints pull mini-xception` fetches); SmolLM2 is taken from
runs/weights. Of each of the first faces and voices, in the order of their names, one clip is made: the picture stands
still for as long as the voice speaks. The words are made up, and the same for all: neither face nor voice was recorded
with them. So nothing here says how good the answers are together; the parts' own scores are in `zoo checkpoints show`.

Exit code 1 if an answer changes with a part that is switched off, or does not say that it is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from tests.media_files import write_clip
from zoo.label.parts import PARTS, PartsLabeler
from zoo.label.requests import Request, read_samples
from zoo.label.utterances import read_utterances
from zoo.media import Media

TEXT = "I miss her. The house is so quiet now."
FPS, SIDE = 25, 448
PAUSE = 0.8  # seconds between two voices of the film


def make_home(root: Path, home: Path) -> None:
    """Make the folder in which the commands run: the pulled weights, linked."""
    weights = home / "runs" / "weights"
    weights.mkdir(parents=True)
    (weights / "mini-xception").mkdir()
    (file,) = (root / "weights" / "fer2013_mini_xception").glob("*.hdf5")
    shutil.copy(file, weights / "mini-xception")
    for folder in ("weights/smollm2-135m", "gguf-cache"):
        if (here := Path("runs", folder).resolve()).is_dir():
            (home / "runs" / folder).symlink_to(here)


def read(root: Path, number: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return a face, uint8 (H, W, 3), a voice (1, N), and its rate."""
    faces, voices = sorted((root / "faces" / "london").glob("*.jpg")), sorted((root / "speech").rglob("*.wav"))
    picture = Image.open(faces[number * len(faces) // 16 % len(faces)]).convert("RGB").resize((SIDE, SIDE))
    wave, rate = soundfile.read(voices[number % len(voices)], dtype="float32", always_2d=True)
    return np.asarray(picture), wave.mean(1)[None], rate


def make_film(root: Path, home: Path, clips: int) -> float:
    """Write clip0.mp4, clip1.mp4, ..., and film.mp4, all of them with pauses between; return its seconds."""
    film, sound = [], []
    for number in range(clips):
        picture, wave, rate = read(root, number)
        pictures = [picture] * round(wave.shape[1] / rate * FPS)
        write_clip(home / f"clip{number}.mp4", pictures, wave, rate=rate)
        film += pictures + [picture] * round(PAUSE * FPS)
        samples = round((len(pictures) + round(PAUSE * FPS)) / FPS * rate)
        sound.append(np.pad(wave[:, :samples], ((0, 0), (0, max(0, samples - wave.shape[1])))))
    write_clip(home / "film.mp4", film, np.concatenate(sound, 1), rate=rate, coder={"preset": "ultrafast"})
    return len(film) / FPS


def command(home: Path, *args: str) -> tuple[dict[str, Any], float, float]:
    """Run ``zoo label``; return its line, the seconds, and those of the processor."""
    started, used = time.perf_counter(), os.times()
    done = subprocess.run([sys.executable, "-m", "zoo", "label", *args], cwd=home, capture_output=True, text=True)
    after = os.times()
    if done.returncode:
        sys.exit(done.stderr)
    busy = after.children_user + after.children_system - used.children_user - used.children_system
    return json.loads(done.stdout), time.perf_counter() - started, busy


def check_parts(home: Path, whole: dict[str, Any]) -> list[str]:
    """Switch each part off, print what is left, and return what is wrong."""
    wrong = []
    for off in PARTS:
        row, _, _ = command(home, "clip0.mp4", "--text", TEXT, "--parts", *(part for part in PARTS if part != off))
        print(f"without {off}: label {row['label']}, used {', '.join(row['used'])}, {off}: {row['unused'].get(off)}")
        kept = all(row["parts"][part] == whole["parts"][part] for part in PARTS if part != off)
        if not kept or row["unused"] != {off: "switched off (--parts)"}:
            wrong.append(f"without {off} the answer is {row}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=16, help="for the time of the next answers")
    options = parser.parse_args()
    root = options.data_root.resolve()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        make_home(root, home)
        length = make_film(root, home, options.clips)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
        command(home, "clip0.mp4", "--text", TEXT)  # compiles what is not compiled
        rows = [command(home, "clip0.mp4", "--text", TEXT) for _ in range(3)]
        whole = rows[0][0]
        print(json.dumps(whole, indent=1))
        wrong = check_parts(home, whole)
        wall, busy = statistics.median(row[1] for row in rows), statistics.median(row[2] for row in rows)
        table = [["`zoo label` from start to end, bytecode there (median of 3)", f"{busy:.1f}", f"{wall:.1f}", ""]]
        os.chdir(home)
        labeler = PartsLabeler()
        labeler.load()
        answers = []
        for number in range(options.clips):
            (sample,) = read_samples(Request(Path(f"clip{number}.mp4"), text=TEXT), labeler.labels)
            started, used_before = time.perf_counter(), time.process_time()
            answer = labeler(sample)
            answers.append((answer, time.perf_counter() - started, time.process_time() - used_before))
        seconds, busy_each = [one for _, one, _ in answers], [one for _, _, one in answers]
        used = ", ".join(f"{part} {sum(part in answer.row['used'] for answer, _, _ in answers)}" for part in PARTS)
        table.append(
            [
                f"the next of {options.clips} answers in one process (median; the decoder's process not counted)",
                f"{statistics.median(busy_each):.2f}",
                f"{statistics.median(seconds):.2f}, longest {max(seconds):.2f}",
                f"used: {used}",
            ]
        )
        started = time.perf_counter()
        samples = read_utterances(Request(Path("film.mp4"), segments=True), labeler.labels, Media())
        table.append([f"cutting a film of {length:.0f} s with {options.clips} voices", "-"])
        table[-1] += [f"{time.perf_counter() - started:.1f}", f"{len(samples)} utterances"]
        started = time.perf_counter()
        with_face = sum("face" in labeler(sample).row["used"] for sample in samples)
        table.append(["each of its utterances (mean)", "-"])
        table[-1] += [f"{(time.perf_counter() - started) / len(samples):.2f}", f"a face in {with_face}"]
        print("\n| what | s of one core | s by the clock | of it |\n|---|---|---|---|")
        print("\n".join(f"| {' | '.join(row)} |" for row in table))
        os.chdir(root)
    sys.exit("; ".join(wrong) or 0)


if __name__ == "__main__":
    main()
