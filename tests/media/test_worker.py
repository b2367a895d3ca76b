"""zoo.media.worker: files that hang or crash, and the life of the decoding process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tests.media.decoders import BAD_DECODER, CHILD_PROGRAM, Clips, children, gone
from tests.media_files import clip, grey, numbers, write_clip
from zoo.media import Media, Unreadable, read_frames, worker
from zoo.media.worker import current_decoder


def test_the_memory_of_the_decoder_has_an_end(tmp_path, monkeypatch):
    code = BAD_DECODER.replace("worker.serve()", "worker.MAX_MEMORY = 50_000_000; worker.serve()")
    monkeypatch.setattr(worker, "CHILD", [sys.executable, "-P", "-c", code, CHILD_PROGRAM])
    monkeypatch.setattr(worker, "_local", threading.local())
    Image.new("RGB", (4000, 4000)).save(tmp_path / "large.png")
    with pytest.raises(Unreadable, match="too much memory"):
        Media().frames(tmp_path / "large.png", size=32)
    Image.new("RGB", (400, 400)).save(tmp_path / "small.png")
    assert Media().frames(tmp_path / "small.png", size=32).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("how", ["asleep", "busy"])
def test_a_file_that_hangs_costs_its_time_limit_once(tmp_path, usual, bad_decoder, how):
    path, fine = tmp_path / f"{how}.mp4", tmp_path / "fine.mp4"
    path.write_bytes(clip(path, count=5).read_bytes())
    fine.write_bytes(usual.read_bytes())
    media = Media(tmp_path / "cache", timeout=0.5)
    first = current_decoder().process.pid

    start = time.perf_counter()
    with pytest.raises(Unreadable, match="longer than 0.5 s to decode"):
        media.frames(path, 4)
    assert time.perf_counter() - start > 0.4
    assert gone(first, 60) and first not in dict(children())  # dead and buried

    assert numbers(media.frames(fine, 4)) == [4, 14, 23, 33]  # the next file works
    second = current_decoder()
    for again in (media, Media(tmp_path / "cache", timeout=0.5)):  # also in the next epoch's workers
        with pytest.raises(Unreadable, match="longer than 0.5 s to decode"):
            again.frames(path, 4)
        assert current_decoder() is second  # it was not tried once more, which would have ended the decoder
    with pytest.raises(Unreadable, match="longer than 0.6 s to decode"):  # another limit: tried again
        Media(tmp_path / "cache", timeout=0.6).frames(path, 4)
    path.write_bytes(usual.read_bytes())  # repaired: read again (its bytes are in the cache by now)
    assert numbers(media.frames(path, 4)) == [4, 14, 23, 33]


def test_a_file_that_crashes_the_decoder(tmp_path, usual, bad_decoder):
    for name in ("crash", "mistake", "killed", "fine"):
        (tmp_path / f"{name}.mp4").write_bytes(usual.read_bytes())
    media = Media()
    with pytest.raises(RuntimeError, match="a mistake in zoo.media"):
        media.frames(tmp_path / "mistake.mp4", 4)
    with pytest.raises(ProcessLookupError, match="was killed"):
        media.frames(tmp_path / "killed.mp4", 4)
    assert media.unreadable == []  # neither is the file's fault
    assert numbers(media.frames(tmp_path / "fine.mp4", 4)) == [4, 14, 23, 33]
    with pytest.raises(Unreadable, match="crashed the decoder \\(exit code -11\\)"):
        media.frames(tmp_path / "crash.mp4", 4)
    with pytest.raises(Unreadable, match="crashed"):  # same bytes
        media.frames(tmp_path / "fine.mp4", 4)


def test_an_interrupted_answer_is_not_taken_for_the_next_file(tmp_path, usual, monkeypatch):
    other = write_clip(tmp_path / "other.mp4", [grey(9)])
    media = Media()
    decoder = current_decoder()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(decoder, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        media.frames(usual, 1)
    assert numbers(media.frames(other, 1)) == [9] and current_decoder() is not decoder


def test_a_decoder_that_died_between_two_files_is_replaced(usual):
    current_decoder().process.kill()
    assert numbers(Media().frames(usual, 1)) == [19]


def test_a_decoder_that_cannot_start_says_so(monkeypatch, usual):
    monkeypatch.setattr(worker, "CHILD", [sys.executable, "-c", "raise SystemExit(3)"])
    monkeypatch.setattr(worker, "_local", threading.local())
    with pytest.raises(RuntimeError, match="did not start.*exit code 3"):
        Media().frames(usual, 1)


ORPHAN = """
import os, sys, threading
from zoo.media import worker
if len(sys.argv) > 2:
    worker.CHILD = [sys.executable, "-P", "-c", sys.argv[2], worker.CHILD[-1]]
    decoder = worker.current_decoder()
    threading.Thread(target=decoder.decode, args=("asleep", 2.0), kwargs={"kind": "frames"}).start()
    while decoder.idle:
        pass
print(worker.current_decoder().process.pid if len(sys.argv) < 3 else decoder.process.pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("hanging", [False, True])
def test_the_decoder_dies_with_its_parent(hanging):
    command = [sys.executable, "-c", ORPHAN, "x", *([BAD_DECODER] if hanging else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert gone(int(done.stdout), within=60)


FORKED = """
import os, time
from zoo.media import worker
decoder = worker.current_decoder()
if os.fork() == 0:
    os.close(1)
    time.sleep(20)  # a worker that outlives its parent
    os._exit(0)
time.sleep(0.3)
print(decoder.process.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_forked_process_does_not_keep_its_parents_decoder_alive():
    command = [sys.executable, "-c", FORKED]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=30, cwd=Path(__file__).parents[2])
    assert gone(int(done.stdout), within=60)


def test_the_decoder_starts_without_torch(tmp_path):
    """Nor anything of the zoo but what decodes, from any working directory, and with no path to the zoo."""
    (tmp_path / "zoo").mkdir()  # a folder that a decoder must not take for the package
    (tmp_path / "zoo" / "__init__.py").write_text("raise SystemExit(9)")
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1]); from zoo.media.worker import serve;"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('torch', 'torchaudio', 'scipy', 'zoo')))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-I", "-c", code, CHILD_PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    parts = ("", ".container", ".cutting", ".facts", ".frames", ".sound", ".worker")
    assert done.stdout.strip() == str(["zoo", *(f"zoo.media{part}" for part in parts)]), done.stderr


def test_a_worker_that_is_spawned_decodes_too(tmp_path, usual, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loader = DataLoader(Clips([usual], Media()), num_workers=1, batch_size=1, multiprocessing_context="spawn")
    ((frames, _, _, decoder),) = list(loader)
    assert numbers(frames[0].numpy()) == numbers(read_frames(usual, 2)) and gone(int(decoder[0]), within=60)


def test_in_a_dataloader_with_two_workers(tmp_path, usual):
    paths = [clip(tmp_path / f"{i}.mp4", count=10 + i, seconds=0.2) for i in range(8)]
    media = Media(tmp_path / "cache")
    media.frames(usual, 1)  # a decoder of the main process, which the workers must not use
    mine = current_decoder().process.pid
    rows = list(DataLoader(Clips(paths, media), num_workers=2, batch_size=2))
    frames = torch.cat([row[0] for row in rows])
    assert [numbers(f.numpy()) for f in frames] == [numbers(read_frames(p, 2)) for p in paths]
    workers = {int(pid) for row in rows for pid in row[2]}
    decoders = {int(pid) for row in rows for pid in row[3]}
    assert len(workers) == 2 and len(decoders) == 2 and not decoders & {mine, *workers}
    assert all(gone(pid, within=60) for pid in decoders)
    assert current_decoder().process.pid == mine and numbers(media.frames(usual, 1)) == [19]  # still works
    assert not [pid for pid, state in children() if state == "Z"]
    (tmp_path / "0.mp4").write_text("broken now")
    with pytest.raises(Unreadable, match="0.mp4: is broken"):
        list(DataLoader(Clips(paths, media), num_workers=2))
