"""The server that forks the processes of a benchmark's jobs: it imports the zoo once for all of them."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext


def server_context() -> ForkServerContext:
    """Return the context whose processes are forked off the server."""
    context = multiprocessing.get_context("forkserver")
    # by name: the command line stands above this module
    context.set_forkserver_preload(["zoo.benchmark.forkserver", "zoo.lightning_cli"])
    return context


def start_server() -> None:
    """Start the server now, so that it imports the zoo while this process does the same."""
    server_context()
    forkserver.ensure_running()
