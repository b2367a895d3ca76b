"""What it costs to feed clips to a system, before and after what saves it; one table, side by side in one run.

    python -m tests.benchmarks.throughput                        # some minutes of two cores
    python -m tests.benchmarks.throughput --clips 2 --repeats 1  # does it run

The clips are made here: moving noise of 360 and of 720 lines, with a sine for sound. Each row is timed `--repeats`
times, before and after in turn, and the medians are printed, in seconds per clip: other work on the machine meets both.

- Loader processes: an epoch of MERIT's loader with two of them, which begin anew with each epoch, or live on.
- Features on disk (`--model.feature_folder`): MERIT with encoders of the paper's size and random weights embeds an
  epoch of prompts; of the first epoch of a run, and of a later one, whose features are in memory.
- Faces (`zoo prepare faces`): Emotion-Qwen's input with dlib's detector, or with what it found before.
- Large frames: Emotion-Qwen's input with frames of the file's size and normalised patches, or with frames that are
  reduced before they are kept and patches of uint8, which are normalised afterwards; decoded, and out of the cache.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.benchmarks.result_files import write
from tests.fake_corpus import attach
from tests.media_files import sine, write_clip
from zoo.backbones.patch_vision import _normalised, to_patches
from zoo.data import MELD, EmotionData
from zoo.data.base import Reading
from zoo.media import Media
from zoo.media.frames import PixelBudget
from zoo.models.emotion_qwen.faces import DlibFaces, FaceCapture, PrecomputedFaces, face_lines
from zoo.models.emotion_qwen.sampling import FrameSampling
from zoo.models.merit import Merit
from zoo.schema import Sample, Turn

FRAMES, SECONDS, FPS, BATCH = 8, 3, 25, 4
BUDGET = PixelBudget(28, 56 * 56, 448 * 448)  # of a video's frames in Emotion-Qwen's training
HEADER = ["what", "before", "after", "s per clip before", "s per clip after", "times faster"]


class Clips(EmotionData):
    """Some clips, one utterance each."""

    labels = MELD.labels

    def __init__(self, paths: list[Path], workers: int = 0) -> None:
        super().__init__(batch_size=BATCH, num_workers=workers, seed=0)
        self.paths = paths

    def read(self, split: str) -> Reading:
        turns = [Turn(p.stem, "Ann", "Well, well.", "joy", video=p, audio=p) for p in self.paths]
        return Reading([Sample(f"meld/{split}/{t.id}", f"meld/{split}/{t.id}", self.labels, t) for t in turns])


def make_clips(folder: Path, lines: int, count: int) -> list[Path]:
    """Write clips of moving noise, 16:9, of so many lines."""
    folder.mkdir()
    paths = []
    for seed in range(count):
        noise = np.random.default_rng(seed).integers(0, 256, (lines // 8, lines * 2 // 9, 3), np.uint8)
        picture = noise.repeat(8, 0).repeat(8, 1)
        pictures = [np.roll(picture, 4 * i, 1) for i in range(SECONDS * FPS)]
        sound = sine(200 + 10 * seed, SECONDS, 16_000)
        paths.append(write_clip(folder / f"{seed}.mp4", pictures, sound, fps=FPS, rate=16_000))
    return paths


def timed(work: Callable[[], object]) -> float:
    """Return how many seconds something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compared(
    what: str, ways: tuple[str, str], before: Callable[[], float], after: Callable[[], float], clips: int, repeats: int
) -> list[str]:
    """Return a row of the table: seconds per clip by two ways, in turn, and how many times faster the second is."""
    pairs = [(before() / clips, after() / clips) for _ in range(repeats)]
    old, new = (statistics.median(column) for column in zip(*pairs, strict=True))
    row = [what, *ways, f"{old:.3f}", f"{new:.3f}", f"{old / new:.1f}"]
    print(row, flush=True)
    return row


# ---- MERIT: loaders and features
def merit(cache: Path, features: Path | None = None) -> Merit:
    """Return MERIT with encoders of the paper's size, random, and a small language model."""
    torch.manual_seed(0)
    model = Merit(
        llm="tiny-llama-sitcom",
        vision="shape:vit-base-face",
        audio="shape:hubert-base",
        template="plain",
        frames=FRAMES,
        cache=cache,
        feature_folder=features,
        lora=None,
    )
    attach(model, SimpleNamespace(run_seed=0, samples=lambda split: [])).configure_model()
    return model.eval()


def loader(model: Merit, paths: list[Path], stage: str, workers: int) -> Iterable[dict[str, Any]]:
    """Return MERIT's training loader, as a fit has it, or as before: with processes for one epoch."""
    data = Clips(paths, workers)
    data.trainer = SimpleNamespace(
        lightning_module=model,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        state=SimpleNamespace(fn=stage),
        global_rank=0,
        world_size=1,
        overfit_batches=0.0,
    )
    return data.train_dataloader()


def workers_rows(paths: list[Path], home: Path, repeats: int) -> list[list[str]]:
    """Return the row about loader processes."""
    model = merit(home / "cache")
    anew, live = (loader(model, paths, stage, workers=2) for stage in ("test", "fit"))
    for each in (anew, live):  # the cache is filled, and the processes are there
        list(each)
    ways = ("begin with each epoch", "live as long as the fit")
    row = compared(
        "an epoch's batches out of the cache, 2 loader processes",
        ways,
        lambda: timed(lambda: list(anew)),
        lambda: timed(lambda: list(live)),
        len(paths),
        3 * repeats,
    )
    return [row]


@torch.no_grad()
def embedded(model: Merit, batches: Iterable[dict[str, Any]]) -> None:
    """Embed an epoch of prompts."""
    for batch in batches:
        model.embed(batch)


def feature_rows(paths: list[Path], home: Path, repeats: int) -> list[list[str]]:
    """Return the rows about features on disk; what is in memory is forgotten before a run's first epoch."""
    plain, kept = merit(home / "cache"), merit(home / "cache", home / "features")
    batches = {model: loader(model, paths, "fit", workers=0) for model in (plain, kept)}
    print(f"finding the folder of features, once per loader: {timed(lambda: kept.collator(training=True)):.1f} s")
    embedded(kept, batches[kept])  # an earlier run

    def run(model: Merit, first: bool) -> float:
        if first:
            model.encoders.vision_features.clear(), model.encoders.audio_features.clear()
        return timed(lambda: embedded(model, batches[model]))

    ways = ("decoded clips in the cache", "features on disk")
    rows = [
        compared(
            f"MERIT's prompts, {epoch} epoch of a run",
            ways,
            lambda first=first: run(plain, first),
            lambda first=first: run(kept, first),
            len(paths),
            repeats,
        )
        for epoch, first in (("first", True), ("later", False))
    ]
    frames = sum(f.stat().st_size for f in (home / "cache").glob("??/*.npy"))
    features = sum(f.stat().st_size for f in (home / "features").glob("*/*/*.safetensors"))
    print(
        f"on disk per clip: decoded {frames / len(paths) / 1024:.0f} KiB, features {features / len(paths) / 1024:.0f}"
    )
    return rows


# ---- Emotion-Qwen: faces and large frames
def face_rows(paths: list[Path], home: Path, repeats: int) -> list[list[str]]:
    """Return the row about faces that were found before."""
    media, sampling, analyzer = Media(home / "cache"), FrameSampling(FRAMES), DlibFaces("tiny-vit-sitcom")
    turns = {p.stem: Turn(p.stem, "", "", video=p) for p in paths}

    def clips() -> Iterable[tuple[str, torch.Tensor]]:
        for name, turn in turns.items():
            yield name, torch.from_numpy(sampling.read(media, turn)[0])

    lines = [line for name, frames in clips() for line in face_lines(name, frames, analyzer.analyse(frames))]
    (home / "faces.jsonl").write_text("".join(f"{line}\n" for line in lines))
    before, after = (FaceCapture(a, remember=False) for a in (analyzer, PrecomputedFaces(str(home / "faces.jsonl"))))

    def captured(capture: FaceCapture) -> Callable[[], float]:
        return lambda: timed(lambda: [capture(frames, name) for name, frames in clips()])

    what, ways = f"face capture, {FRAMES} frames of 720 lines", ("dlib in every epoch", "`zoo prepare faces`")
    return [compared(what, ways, captured(before), captured(after), len(paths), repeats)]


def size_rows(paths: list[Path], home: Path, repeats: int) -> list[list[str]]:
    """Return the rows about frames that the decoder reduces."""
    sampling = FrameSampling(FRAMES)
    turns = [Turn(p.stem, "", "", video=p) for p in paths]

    def whole(media: Media) -> None:
        for turn in turns:
            to_patches(torch.from_numpy(sampling.read(media, turn)[0]), BUDGET.least, BUDGET.most)

    def reduced(media: Media) -> None:
        for turn in turns:
            frames = torch.from_numpy(sampling.read(media, turn, (BUDGET, BUDGET))[0])
            _normalised(to_patches(frames, BUDGET.least, BUDGET.most, normalise=False)[0])  # the tower does this

    rows = []
    for where, (one, other) in (
        ("decoded", (Media(), Media())),
        ("out of the cache", (Media(home / "whole"), Media(home / "reduced"))),
    ):
        whole(one)
        reduced(other)
        rows.append(
            compared(
                f"Emotion-Qwen's patches, {FRAMES} frames of 720 lines, {where}",
                ("whole frames, float32 patches", "reduced frames, uint8 patches"),
                lambda media=one: timed(lambda: whole(media)),
                lambda media=other: timed(lambda: reduced(media)),
                len(paths),
                repeats,
            )
        )
    for name in ("whole", "reduced"):
        size = sum(f.stat().st_size for f in (home / name).glob("??/*.npy"))
        print(f"cache of {name} frames: {size / len(paths) / 2**20:.1f} MiB per clip")
    frames, small = (
        torch.from_numpy(sampling.read(Media(home / name), turns[0], budgets)[0])
        for name, budgets in (("whole", None), ("reduced", (BUDGET, BUDGET)))
    )
    normalised, raw = (to_patches(x, BUDGET.least, BUDGET.most, normalise=x is frames)[0] for x in (frames, small))
    print(f"patches that travel: {normalised.nbytes / 2**20:.1f} MiB as float32, {raw.nbytes / 2**20:.1f} as uint8")
    if not torch.equal(normalised, _normalised(raw)):
        raise ValueError("reduced frames give other patches than whole ones")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--store", action="store_true", help="write the table into results/throughput.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        small, large = (make_clips(home / str(n), n, options.clips) for n in (360, 720))
        rows = workers_rows(small, home, options.repeats)
        rows += feature_rows(small, home, options.repeats)
        rows += face_rows(large[: max(2, options.clips // 4)], home, options.repeats)
        rows += size_rows(large, home, options.repeats)
    if options.store:
        command = "python -m tests.benchmarks.throughput --store"
        about = f"clips of {SECONDS} s made by the command; median of {options.repeats} runs, before and after in turn"
        facts = {"command": command, "n": options.clips, "split": "made by the command", "seeds": [0], "about": about}
        write("results/throughput.json#clips", HEADER, rows, **facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
