"""EndTogether: an error in one of several processes ends all of them within seconds, with its message.

The others would wait in a collective operation for the process that is gone, with NCCL until a timeout of many minutes.
Processes that Lightning started and those of torchrun or a scheduler alike share a store, over which they met; there
the process that fails leaves a note, for which a thread in each of the others looks.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import Any, NoReturn

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.distributed_c10d import _get_default_store

from zoo.errors import one_line

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_SPEAK = 2.0  # for the process that failed to say why, before another one has ended
SECONDS_TO_LEAVE = 5.0  # for others to read a note, and for a process to end after the store has gone
FAILED, GONE = "zoo/failed", "zoo/gone"  # keys: the rank of the first that failed; how many ended because of it


class EndTogether(Callback):
    """Ends all processes of a run when one fails; does nothing where there is one alone."""

    def __init__(self) -> None:
        self._store: Any = None  # of torch, which has no types for it
        self._over = threading.Event()
        self._leaving = threading.Lock()  # held by the thread that speaks for this process, and never given back

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to look for notes."""
        if trainer.world_size > 1 and self._store is None:
            store: Any = _get_default_store()
            self._store = store.clone()  # a connection of its own, which no other call blocks
            watch = threading.Thread(target=self._watch, args=(self._store,), daemon=True)
            watch.start()

    def _watch(self, store: Any) -> None:
        while not self._over.wait(SECONDS_BETWEEN_LOOKS):
            try:
                failed = store.check([FAILED]) and store.get(FAILED).decode()
            except Exception:  # torch raises several types when the process that holds the store is gone
                if not self._over.wait(SECONDS_TO_LEAVE):
                    self._leave("another process is gone")
                return
            if failed:
                self._leave_after(store, failed)

    def _leave_after(self, store: Any, failed: str) -> NoReturn:
        self._leave(f"process {failed} failed, its message is above or below", store)

    def _leave(self, why: str, store: Any = None) -> NoReturn:
        """Say why this process ends, and end it; with a store, tell there that it does."""
        if not self._leaving.acquire(blocking=False):
            time.sleep(SECONDS_TO_LEAVE)  # the other thread ends this process sooner
            os._exit(1)
        # before anything else: the launcher of Lightning kills this process soon after another one has ended
        print(f"zoo: {why}; this process ends, too", file=sys.stderr, flush=True)
        if store is not None:
            with contextlib.suppress(Exception):  # the one that failed may be gone, and the store with it
                store.add(GONE, 1)
            time.sleep(SECONDS_TO_SPEAK)  # torchrun and schedulers kill all processes as soon as one has ended
        os._exit(1)  # the main thread waits in a collective operation, from which nothing wakes it

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave a note, and give the others time to read it; but leave quietly if another failed before.

        A process that was waiting for the one that failed gets an error, too: its connection is closed.
        """
        store = self._store
        if store is None or self._over.is_set() or isinstance(exception, KeyboardInterrupt):  # on which all agree
            return
        rank = str(trainer.global_rank)
        try:
            first = store.compare_set(FAILED, "", rank).decode()
        except Exception as gone:  # as in _watch
            self._leave(f"another process is gone ({type(gone).__name__}), which here led to: {one_line(exception)}")
        if first != rank:
            self._leave_after(store, first)
        self._over.set()
        ended, end = trainer.world_size - 1, time.monotonic() + SECONDS_TO_LEAVE
        with contextlib.suppress(Exception):  # as above
            while time.monotonic() < end and store.add(GONE, 0) < ended:
                time.sleep(SECONDS_BETWEEN_LOOKS / 5)
        last = threading.Timer(SECONDS_TO_LEAVE, os._exit, [1])  # should cleaning up wait for those that are gone
        last.daemon = True
        last.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look no more: processes end one after another."""
        self._over.set()
