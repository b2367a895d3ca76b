"""What conversations cost that are read by an index: memory, start, rows per second; and that none is lost.

    python -m tests.benchmarks.streaming                # 200,000 rows as lines, 20,000 in shards; minutes of one core
    python -m tests.benchmarks.streaming --rows 2000    # as the test suite does

Rows like LLaVA's, of two questions and answers about a picture, are made: as ``.jsonl``, as one list in ``.json``
(which is read whole), and, a tenth of them with small pictures, as two ``.tar`` shards. For each kind a process of its
own makes `zoo.data.Conversations` twice, without its index and with it, and reads one epoch through
`zoo.data.batches.Batches`.

Memory is what the process grew by: its own (RssAnon), at the end of the start and at most, and that of mapped files
(RssFile), which all processes of a machine share. Each check that fails ends the command with exit code 1: at most 200
bytes of own memory per sample by an index (from 20,000 rows on); an epoch that goes on in its middle reads the same
samples in the same order; two ranks, each with two workers, read every sample exactly once.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from torch.utils.data import DataLoader

from tests.memory_use import Memory
from zoo.data import Conversations
from zoo.data.batches import Batches, BatchOrder

MOST = 200  # bytes of a process' own memory per sample
BATCH = 10
WORDS = np.array([f"word{i}" for i in range(20)])


# ---- the files
def rows(n: int) -> Any:
    """Yield n rows; their text is as long as that of LLaVA's short conversations."""
    rng = np.random.default_rng(0)
    for i in range(n):
        q1, a1, q2, a2 = (" ".join(WORDS[rng.integers(len(WORDS), size=k)]) for k in (8, 40, 10, 30))
        turns = [("human", f"<image>\n{q1}?"), ("gpt", f"{a1}."), ("human", f"{q2}?"), ("gpt", f"{a2}.")]
        talk = [{"from": role, "value": words} for role, words in turns]
        yield {"id": f"{i:09d}", "image": f"coco/{i % 1000:06d}.jpg", "conversations": talk}


def write(folder: Path, kind: str, n: int) -> Path:
    """Write n rows and return the mixture that names them."""
    home = folder / kind
    home.mkdir(parents=True)
    if kind == "jsonl":
        with (home / "talk.jsonl").open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(n))
    elif kind == "json":
        (home / "coco").mkdir()
        for i in range(1000):
            (home / "coco" / f"{i:06d}.jpg").touch()
        (home / "talk.json").write_text(json.dumps(list(rows(n))))
    else:
        picture = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(picture, "PNG")
        for shard in range(2):
            with tarfile.open(home / f"{shard:05d}.tar", "w") as tar:
                for row in list(rows(n))[shard::2]:
                    for ending, data in (("png", picture.getvalue()), ("json", json.dumps(row).encode())):
                        member = tarfile.TarInfo(f"{row['id']}.{ending}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
    (home / "dev.json").write_text(json.dumps([{"id": 0, "conversations": [said("Why?", "user"), said("No.")]}]))
    names = {"jsonl": "talk.jsonl", "json": "talk.json", "tar": "*.tar"}
    mixture = home / "mixture.yaml"
    mixture.write_text(yaml.safe_dump({"train": [{"path": names[kind]}], "dev": [{"path": "dev.json"}]}))
    return mixture


def said(words: str, role: str = "assistant") -> dict[str, str]:
    return {"role": role, "content": words}


# ---- what is measured
class Ids:
    """A collator that keeps the ids of the samples."""

    def __call__(self, samples: Any, rng: np.random.Generator) -> dict[str, Any]:
        return {"ids": [s.id for s in samples]}

    def length(self, sample: Any) -> int:
        raise AssertionError("the order of lazy samples must not make each of them")


def batches(data: Conversations, rank: int = 0, ranks: int = 1) -> Batches:
    return Batches(data.samples("train"), Ids(), BATCH, True, True, False, 3, rank, ranks)


def read(made: Batches, resume: tuple[int, int] = (0, 0), workers: int = 0) -> list[str]:
    """Return the ids of an epoch, as a training loader reads them."""
    loader = DataLoader(
        made, batch_size=None, sampler=BatchOrder(made, resume), num_workers=workers, collate_fn=lambda batch: batch
    )
    return [id_ for batch in loader for id_ in batch["ids"]]


def start(mixture: Path) -> dict[str, Any]:
    """Make the data and the order of an epoch; return seconds and memory."""
    data = Conversations(mixture)
    began = time.perf_counter()
    with Memory() as memory:
        made = batches(data)
        made.indices(0, 0)
    samples = len(made.samples)
    return {
        "samples": samples,
        "seconds": time.perf_counter() - began,
        "own bytes per sample": memory.own / samples,
        "own bytes per sample at most": memory.peak / samples,
        "mapped bytes per sample": memory.mapped / samples,
    }


def epoch(mixture: Path) -> dict[str, Any]:
    """Read an epoch; return samples per second, and memory with the start's."""
    data = Conversations(mixture)
    with Memory() as memory:
        made = batches(data)
        began = time.perf_counter()
        for batch in DataLoader(made, batch_size=None, sampler=BatchOrder(made), collate_fn=lambda batch: batch):
            assert len(batch["ids"]) == BATCH
        seconds = time.perf_counter() - began
    n = len(made.samples)
    return {"samples per second": n / seconds, "own bytes per sample at most, with an epoch": memory.peak / n}


def checks(mixture: Path) -> dict[str, bool]:
    """Return what must hold: order, resume, and two ranks."""
    data = Conversations(mixture)
    whole = read(batches(data))
    middle = len(whole) // BATCH // 2
    again = read(batches(Conversations(mixture)), (0, middle))
    ranks = [read(batches(data, rank, 2), workers=2) for rank in range(2)]
    return {
        "an epoch has every sample once": len(set(whole)) == len(whole) == len(data.samples("train")),
        "an epoch goes on in its middle": again == whole[middle * BATCH :],
        "two ranks have every sample once": sorted(ranks[0] + ranks[1]) == sorted(whole),
    }


PARTS = {"start": start, "epoch": epoch, "checks": checks}


def alone(part: str, mixture: Path) -> dict[str, Any]:
    """Run a part in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.streaming", "--part", part, "--mixture", str(mixture)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--mixture", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options.mixture)))
        return 0
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, n in (("jsonl", options.rows), ("tar", options.rows // 10), ("json", options.rows)):
            mixture = write(Path(folder), kind, n)
            size = sum(p.stat().st_size for p in mixture.parent.glob("*"))
            print(f"{kind}: {n} rows, {size / 2**20:.0f} MiB")
            first = alone("start", mixture)
            results = (
                {"seconds of the first start": first["seconds"]} | alone("start", mixture) | alone("epoch", mixture)
            )
            most = {key: value for key, value in results.items() if key.startswith("own") and value > MOST}
            failed += [f"{kind}: {key} {value:.0f}" for key, value in most.items() if kind != "json" and n >= 20_000]
            results |= alone("checks", mixture) if kind != "json" else {}
            failed += [f"{kind}: {key}" for key, value in results.items() if value is False]
            for key, value in results.items():
                print(f"  {key}: {value if isinstance(value, bool) else f'{value:.4g}'}", flush=True)
    print(f"failed: {'; '.join(failed)}" if failed else "all checks hold")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
