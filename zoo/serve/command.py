"""The command ``zoo serve``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import webbrowser

from zoo.endpoints import is_local
from zoo.imports import take_imports, trust_words
from zoo.media import MAX_SECONDS
from zoo.runs import given_checkpoint
from zoo.serve.answers import Answers
from zoo.serve.app import Limits, Site, run
from zoo.serve.examples import Examples


def main(args: list[str]) -> None:
    """Run ``zoo serve``."""
    parser = argparse.ArgumentParser(
        "zoo serve",
        allow_abbrev=False,
        description="Serves a page on this machine: drop or record a clip, or write a conversation, and see what "
        "words, face and voice say, utterance by utterance, or compare two systems. Uploads are kept while they are "
        "answered and no longer, and nothing leaves this machine. Ctrl-C ends it.",
    )
    add = parser.add_argument
    add("--ckpt_path", nargs="+", default=[], metavar="NAME", help="runs or published names to choose from, too")
    add("--host", default="127.0.0.1", help="address to listen at; another than this machine's own lets others ask")
    add("--port", type=int, default=8600, help="0: one that is free")
    add("--max_megabytes", type=float, default=Limits.megabytes, help="of an uploaded clip")
    add("--max_clip_seconds", type=float, default=MAX_SECONDS, help="a longer film is refused")
    add("--open", action="store_true", help="open the page in the browser")
    add("--import", metavar="DIR", help="as of zoo label")
    options = parser.parse_args(take_imports(args))
    trust_words(args)
    if not 0 <= options.port < 65536 or options.max_megabytes <= 0 or options.max_clip_seconds <= 0:
        raise ValueError(
            "--port is 0 to 65535, --max_megabytes and --max_clip_seconds are over 0; got "
            f"{options.port}, {options.max_megabytes:g} and {options.max_clip_seconds:g}"
        )
    answers = Answers([given_checkpoint(path) for path in options.ckpt_path], options.max_clip_seconds)
    site = Site(answers, Examples(), Limits(options.max_megabytes), options.host)

    def ready(address: str) -> None:
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        if not is_local(f"http://{options.host}"):
            print("others can ask this server, without a password: use it in a network that you trust", file=sys.stderr)
        site.warm()
        if options.open:
            webbrowser.open(address)

    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(run(site, options.host, options.port, ready))
    except OSError as error:
        raise ValueError(
            f"cannot listen at {options.host}, port {options.port}: {error.strerror}; give another --port"
        ) from error
