"""The decoding process: one that can be killed when a file takes too long, and this side of it.

`serve` runs in a child process (`zoo/media/child.py`), which must start fast: no torch, and nothing else of the zoo.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import traceback
import weakref
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, cast

import numpy as np

from zoo.media.container import Unreadable
from zoo.media.cutting import cut_picture
from zoo.media.facts import decode_facts
from zoo.media.frames import decode_frames
from zoo.media.sound import decode_waveform

MAX_MEMORY = 4 * 2**30  # address space the decoding process may add to what it starts with
# -P: the folder zoo/media must not become a place to import from
CHILD = [sys.executable, "-P", str(Path(__file__).with_name("child.py"))]


def serve() -> None:
    """Answer requests on stdin until it closes, each within its time limit (the decoding process).

    Request: length (4 bytes), JSON. Answer: length (4 bytes), JSON, the bytes of the array.
    The kernel ends this process when the time is over, so that neither a decoder that never returns nor the death of
    the parent leaves it behind.
    """
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with contextlib.suppress(ValueError, OSError):  # not everywhere; then only the limits on pixels and seconds hold
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MAX_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a parent may have ignored or blocked it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    answers.write(b"ready")
    answers.flush()
    devnull = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # libraries that print would break the protocol or the user's progress bar
        os.dup2(devnull, stream)
    while len(size := requests.read(4)) == 4:
        request = json.loads(requests.read(*struct.unpack("<I", size)))
        signal.setitimer(signal.ITIMER_REAL, request.pop("timeout"))
        array: np.ndarray = np.empty(0, np.uint8)
        answer: dict[str, Any]
        try:
            kind = request.pop("kind")
            if kind == "facts":
                answer = {"note": None, "facts": decode_facts(**request)}
            elif kind == "frames":
                array, note = decode_frames(**request)
                answer = {"note": note}
            elif kind == "piece":
                array, begin = cut_picture(**request)
                answer = {"note": None, "begin": begin}
            else:
                array, rate, note = decode_waveform(**request)
                answer = {"note": note, "rate": rate}
        except Unreadable as e:
            answer = {"unreadable": e.reason}
        except Exception:  # a mistake in zoo.media: shown by the parent, not taken for a bad file
            answer = {"mistake": traceback.format_exc()}
        signal.setitimer(signal.ITIMER_REAL, 0)
        answer |= {"dtype": array.dtype.str, "shape": array.shape}
        text = json.dumps(answer).encode()
        answers.write(struct.pack("<I", len(text)) + text)
        answers.write(np.ascontiguousarray(array).data)
        answers.flush()
    os._exit(0)


class Decoder:
    """One decoding process, seen from its parent."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.idle = False  # no answer is on its way: after an interrupt the next one read would be of the wrong file
        self.process = subprocess.Popen(
            CHILD,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},  # numpy reserves memory per thread
            start_new_session=True,  # Ctrl-C is for us; the child ends when its stdin closes
        )
        self.requests, self.answers = _pipes(self.process)
        with contextlib.suppress(AttributeError, OSError):  # Linux: fewer switches between the two
            fcntl.fcntl(self.answers, fcntl.F_SETPIPE_SZ, 2**20)
        # runs when this object goes, and at the end of a main process and of a DataLoader worker, where atexit does not
        self.close = Finalize(self, _end_process, [self.process], exitpriority=0)
        _decoders.add(self)
        if bytes(self._read(5) or b"") != b"ready":
            raise RuntimeError(f"the decoding process did not start: {CHILD}, exit code {self.process.wait()}")
        self.idle = True

    def usable(self) -> bool:
        """Tell whether the process can take a request of this one."""
        return self.pid == os.getpid() and self.idle and self.process.poll() is None

    def decode(self, path: str | os.PathLike[str], timeout: float, **request: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Have a file decoded.

        Args:
            path: of the file.
            timeout: seconds it may take.
            request: ``kind``, "frames", "waveform", "piece" or "facts", and the arguments of `decode_frames`,
                `decode_waveform`, `cut_picture` or `decode_facts`.

        Returns:
            the array, and ``note``, ``rate``, ``begin`` and ``facts`` as those functions return them.

        Raises:
            Unreadable: as those, or the time limit passed, or the file crashed the decoder.
            ProcessLookupError: the process was killed from outside, which says nothing about the file.
        """
        text = json.dumps(request | {"path": os.path.abspath(os.fsdecode(path)), "timeout": timeout}).encode()
        message = struct.pack("<I", len(text)) + text
        self.idle = False
        try:
            while message:
                message = message[self.requests.write(message) :]
            size = self._read(4)
            content = size and self._read(*struct.unpack("<I", size))
        except BrokenPipeError:
            content = None
        if not content:
            self.close()
            code = self.process.returncode
            if message or code in (-signal.SIGKILL, -signal.SIGTERM):
                raise ProcessLookupError(f"{path}: the decoding process was killed (is the memory full?); try again")
            if code == -signal.SIGALRM:
                raise Unreadable(
                    path,
                    f"took longer than {timeout:g} s to decode; convert it, or raise the limit "
                    "(--model.timeout; of zoo prepare: --clip_timeout)",
                )
            raise Unreadable(path, f"crashed the decoder (exit code {code}); replace or convert it")
        answer = json.loads(bytes(content))
        array = np.empty(answer.pop("shape"), np.dtype(answer.pop("dtype")))
        if array.size and self._read(array.nbytes, array.data.cast("B")) is None:
            raise ProcessLookupError(f"{path}: the decoding process was killed while it answered; try again")
        self.idle = True
        if "unreadable" in answer:
            raise Unreadable(path, answer["unreadable"])
        if "mistake" in answer:
            raise RuntimeError(f"{path}: a mistake in zoo.media, not in the file:\n{answer['mistake']}")
        return array, answer

    def _read(self, n: int, into: memoryview | None = None) -> memoryview | None:
        """Read exactly n bytes; None if the process ended before."""
        into = memoryview(bytearray(n)) if into is None else into
        received = 0
        while received < n:
            count = self.answers.readinto(into[received:])
            if not count:
                return None
            received += count
        return into


def _pipes(process: subprocess.Popen[bytes]) -> tuple[io.RawIOBase, io.RawIOBase]:
    """Return the unbuffered pipes to a decoding process and from it."""
    return cast(io.RawIOBase, process.stdin), cast(io.RawIOBase, process.stdout)


def _end_process(process: subprocess.Popen[bytes]) -> None:
    """Ask a decoding process to end, and kill it if it does not."""
    requests, answers = _pipes(process)
    requests.close()
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    answers.close()


def _forget_decoders() -> None:
    """Close the pipes of the parent's decoders in a forked process: holding them would keep the decoders alive."""
    for decoder in list(_decoders):
        decoder.requests.close()
        decoder.answers.close()
        decoder.process.returncode = 0  # not our child: nothing to wait for
    _decoders.clear()


_decoders: weakref.WeakSet[Decoder] = weakref.WeakSet()
_local = threading.local()  # one decoder per process and thread, started when first needed
os.register_at_fork(after_in_child=_forget_decoders)


def current_decoder() -> Decoder:
    """Return the decoder of this process and thread, started if there is none or it ended."""
    decoder = getattr(_local, "decoder", None)
    if decoder is None or not decoder.usable():
        if decoder is not None and decoder.pid == os.getpid():
            decoder.process.kill()
            decoder.close()
        decoder = _local.decoder = Decoder()
    return decoder


def close_current_decoder() -> None:
    """End the decoder of this process and thread, if there is one."""
    if decoder := getattr(_local, "decoder", None):
        decoder.close()
