"""What several tests of zoo.media use: processes that are counted, and a decoder that misbehaves."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch.utils.data import Dataset

from zoo.media import Media, worker
from zoo.media.worker import current_decoder


def children() -> list[tuple[int, str]]:
    """(pid, state) of the processes this one started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            except OSError:  # gone meanwhile
                continue
            if int(parent) == os.getpid():
                found.append((int(entry.name), state))
    return found


def gone(pid: int, within: float) -> bool:
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True  # dead; whoever inherited it has not looked yet
        except OSError:
            return True
        time.sleep(0.02)
    return False


def no_decoder(monkeypatch) -> None:
    def fail():
        raise AssertionError("decoded although it is in the cache")

    monkeypatch.setattr(worker, "current_decoder", fail)


CHILD_PROGRAM = worker.CHILD[-1]


BAD_DECODER = """
import os, re, runpy, sys, time
runpy.run_path(sys.argv[1])  # makes the packages known, starts nothing
from zoo.media import worker
real = worker.decode_frames
def frames(path, *args, **kwargs):
    name = os.path.basename(path)
    if "asleep" in name:
        time.sleep(60)
    if "busy" in name:
        re.match(r"(a+)+$", "a" * 60 + "b")  # in C, for ever, without letting go of the interpreter
    if "crash" in name:
        os.kill(os.getpid(), 11)
    if "killed" in name:
        os.kill(os.getpid(), 9)
    if "mistake" in name:
        {}["no such key"]
    print("noise that is not part of the protocol", flush=True)
    return real(path, *args, **kwargs)
worker.decode_frames = frames
worker.serve()
"""


class Clips(Dataset):
    def __init__(self, paths: list[Path], media: Media) -> None:
        self.paths, self.media = paths, media

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int, int, int]:
        frames = torch.from_numpy(self.media.frames(self.paths[i], 2, size=32))
        return frames, len(self.media.waveform(self.paths[i])), os.getpid(), current_decoder().process.pid
