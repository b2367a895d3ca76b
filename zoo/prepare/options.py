"""Options of the commands that ask models, and what they say before anything is sent."""

from __future__ import annotations

import argparse
import json
import os
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.backbones.llm_client import ChatModel, Endpoint
from zoo.media import MAX_SECONDS
from zoo.prepare.local_pictures import local_model

KEY_ENV = "ZOO_API_KEY"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every command has in common that asks models."""
    add = parser.add_argument
    add(
        "--send_to",
        nargs="+",
        metavar="URL",
        default=[],
        help="address of an OpenAI-style API, e.g. http://localhost:8000/v1; one for all models, or one for each in "
        "their order. There is no default: without it nothing is sent anywhere",
    )
    add(
        "--yes_send_media",
        action="store_true",
        help="frames and sound of the clips may leave this machine; the clips' licence is yours to mind",
    )
    add(
        "--key_env",
        nargs="+",
        metavar="NAME",
        default=[],
        help=f"environment variable that holds the key, one for all addresses or one for each; - for none. {KEY_ENV} "
        "if not given and set",
    )
    add("--size", type=int, default=448, help="shorter side of the frames in pixels")
    add("--language", choices=["en", "zh"], default="en", help="of prompts and answers")
    add("--limit", type=int, help="use the first so many only")
    add("--timeout", type=float, default=120.0, help="seconds one request may take")
    add("--tries", type=int, default=4, help="how often a question is sent at most")
    add("--max_failures", type=int, default=20, help="questions without an answer before the run stops")
    add("--max_tokens", type=int, default=800, help="longest answer")
    add("--temperature", type=float, default=0.0, help="of the answers; 0 is greedy")
    add("--request", help="JSON object of further fields of each request; null takes one out")
    add("--workers", type=int, default=1, help="questions under way at once")
    add("--cache", type=Path, help="folder of decoded frames and sounds, as of `zoo prepare media`")
    add("--clip_timeout", type=float, default=30.0, help="seconds one clip may take to decode")
    add("--max_clip_seconds", type=float, default=MAX_SECONDS, help="a longer clip is left out, and listed")


def add_clip_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the commands that decode a corpus' clips in processes of their own."""
    add_decoding_options(parser)
    parser.add_argument("--workers", type=int, default=1, help="processes")


def add_decoding_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the commands that decode a corpus' clips."""
    add = parser.add_argument
    add("--cache", type=Path, help="folder of the decoded clips; none if not given")
    add("--timeout", "--clip_timeout", type=float, default=30.0, help="seconds one clip may take to decode")
    add("--max_clip_seconds", type=float, default=MAX_SECONDS, help="a longer clip is left out, and listed")


def build_models(names: Sequence[str], options: Any) -> list[ChatModel]:
    """Build the models that the command line names; ``local:PATH`` is a model on this machine, of texts or of pictures.

    Raises:
        ValueError: no address for a model, a wrong number of addresses or keys, a key that is not there.
    """
    remote = [name for name in names if not name.startswith("local:")]
    urls = list(options.send_to)
    if remote and not urls:
        raise ValueError(
            f"no address for {', '.join(remote)}; nothing was sent. Give --send_to URL, e.g. "
            "http://localhost:8000/v1, or a model of this machine as local:PATH"
        )
    if urls and len(urls) not in (1, len(remote)):
        raise ValueError(
            f"--send_to gives {len(urls)} addresses; expected 1, or {len(remote)}: one for each of {', '.join(remote)}"
        )
    for name, least in (("size", 1), ("tries", 1), ("max_failures", 0), ("max_tokens", 1), ("workers", 1)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name} is {least} or more, got {getattr(options, name)}")
    urls = urls * len(remote) if len(urls) == 1 else urls
    keys = _keys(urls, list(options.key_env))
    extra = _parse_request(options.request)
    built: list[ChatModel] = []
    endpoints = iter(zip(urls, keys, strict=True))
    for name in names:
        if name.startswith("local:"):
            built.append(local_model(name.removeprefix("local:"), options.max_tokens))
        else:
            url, key = next(endpoints)
            built.append(
                Endpoint(
                    url,
                    name,
                    key,
                    options.yes_send_media,
                    options.timeout,
                    options.tries,
                    1.0,
                    options.max_tokens,
                    options.temperature,
                    extra,
                )
            )
    return built


def _parse_request(text: str | None) -> dict[str, Any] | None:
    """Parse the further fields of a request, a JSON object."""
    try:
        extra = json.loads(text) if text else None
        if not isinstance(extra, dict | None):
            raise ValueError(f"a {type(extra).__name__}")
    except ValueError as error:
        raise ValueError(f'--request is no JSON object ({error}); expected one like {{"seed": 1}}') from None
    return extra


def _keys(urls: Sequence[str], names: Sequence[str]) -> list[str | None]:
    """Read the key of each address from the environment."""
    if not names:
        key = os.environ.get(KEY_ENV) or None
        if key is not None and len({urllib.parse.urlsplit(url).netloc for url in urls}) > 1:
            raise ValueError(
                f"{KEY_ENV} is set, and there are several addresses; expected to be told whose key it is. Give "
                "--key_env NAME for each address (- for none)"
            )
        return [key] * len(urls)
    if len(names) not in (1, len(urls)):
        raise ValueError(f"--key_env gives {len(names)} names; expected 1, or {len(urls)}: one for each address")
    for name in names:
        if not re.fullmatch(r"-|[A-Za-z_][A-Za-z0-9_]{0,63}", name):
            raise ValueError(
                "--key_env is no name of an environment variable (not repeated here, it may be the key); expected one "
                f"like {KEY_ENV}. Put the key into a variable and give its name"
            )
        if name != "-" and not os.environ.get(name):
            raise ValueError(f"the environment variable {name} is not set; expected the key in it. Set it, or give -")
    keys = [None if name == "-" else os.environ[name] for name in names]
    return keys * len(urls) if len(keys) == 1 else keys


def announce(inputs: Sequence[tuple[ChatModel, str, bool]], send_media: bool) -> None:
    """Print what leaves this machine, before anything does.

    Args:
        inputs: of each model: what it is given, in words, and whether frames or sound are among it.
        send_media: whether the user agreed to that (``--yes_send_media``).

    Raises:
        ValueError: clips would leave, and the user did not agree.
    """
    remote = [(model, what, media) for model, what, media in inputs if not model.local]
    for model, what, _ in remote:
        print(f"leaves this machine, to {model.host} ({model.name}): {what}", flush=True)
    if hosts := sorted({model.host for model, _, media in remote if media and not send_media}):
        raise ValueError(
            f"frames or sound of clips would go to {', '.join(hosts)}; nothing was sent. Give --yes_send_media if the "
            "clips' licence and the people in them allow it"
        )
