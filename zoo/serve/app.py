"""The server of the page: what it takes, how much of it, and from whom."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import re
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from zoo.data.table_rows import CLIP_ENDINGS
from zoo.endpoints import is_local
from zoo.label.parts import PARTS
from zoo.serve.answers import Answers, Question, Rejected
from zoo.serve.examples import Examples

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": "index.html",
    "/page.css": "page.css",
    "/page.js": "page.js",
    "/drawing.js": "drawing.js",
    "/icon.svg": "icon.svg",
}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
SUBTITLES = (".srt", ".vtt")
MOST_TEXT = 200_000  # bytes of a text field, and of subtitles
CHUNK = 2**16
HEADERS = {  # nothing from elsewhere is loaded, and no other page may show this one
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; media-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Limits:
    """What one question may cost.

    Attributes:
        megabytes: of an uploaded clip.
        upload_seconds: that the upload may take.
        waiting: questions that wait; one more is refused.
    """

    megabytes: float = 200.0
    upload_seconds: float = 300.0
    waiting: int = 8


class Site:
    """The page and what answers it.

    Args:
        answers: asks the systems.
        examples: made-up clips.
        limits: of a question.
        host: where it listens; a loopback address takes questions that name a loopback address alone, so that no page
            of another site can ask it under a name of its own.
    """

    def __init__(self, answers: Answers, examples: Examples, limits: Limits, host: str = "127.0.0.1") -> None:
        self.answers, self.examples, self.limits = answers, examples, limits
        self.only_local = is_local(f"http://{host}")
        self.waiting = 0
        self.closing = False
        self._worker = ThreadPoolExecutor(1, "answers")
        self._maker = ThreadPoolExecutor(1, "examples")
        self._choices: Future[Any] | None = None

    def warm(self) -> None:
        """Begin to load what the first question needs; questions wait for it."""
        self._choose()
        self._worker.submit(self.answers.load)

    def _choose(self) -> Future[Any]:
        """Return what can be asked, once it is known: whoever opens the page waits for no question of another one."""
        self._choices = self._choices or self._worker.submit(lambda: self.answers.choices)
        return self._choices

    async def _close(self, app: web.Application) -> None:
        self.closing = True

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application(middlewares=[self._guard], client_max_size=CHUNK)
        app.on_shutdown.append(self._close)
        for path, name in FILES.items():
            app.router.add_get(path, functools.partial(_file, PAGE / name))
        app.router.add_get("/api/systems", self._systems)
        app.router.add_get("/api/examples", self._example_list)
        app.router.add_get(r"/api/examples/{number:\d{1,2}}", self._example)
        app.router.add_post("/api/label", self._label)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse what comes from another site, and make every error an object with ``error``."""
        try:
            if self.only_local and not _is_local(request.host):
                raise web.HTTPForbidden(reason="this server answers to 127.0.0.1 and localhost alone")
            origin = request.headers.get("Origin")
            if request.method != "GET" and origin is not None and origin.partition("://")[2] != request.host:
                raise web.HTTPForbidden(reason="the question comes from another site")
            response = await handler(request)
        except Rejected as error:
            response = web.json_response({"error": str(error)}, status=400)
        except web.HTTPException as error:
            response = web.json_response({"error": error.reason}, status=error.status)
        except Exception as error:  # of a system or a library, in whatever type: the page waits for an object
            traceback.print_exc(file=sys.stderr)
            message = f"the server could not answer ({type(error).__name__}); its terminal says why"
            response = web.json_response({"error": message}, status=500)
        response.headers.update(HEADERS)
        return response

    # ---- what is asked
    async def _systems(self, request: web.Request) -> web.StreamResponse:
        choices = await asyncio.shield(asyncio.wrap_future(self._choose()))
        return web.json_response(
            {"systems": choices, "parts": PARTS, "endings": CLIP_ENDINGS, "megabytes": self.limits.megabytes}
        )

    async def _example_list(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await _in_thread(self._maker, self.examples.rows))

    async def _example(self, request: web.Request) -> web.StreamResponse:
        number = int(request.match_info["number"])
        path = await _in_thread(self._maker, lambda: self.examples.clip(number))
        if path is None:
            raise web.HTTPNotFound(reason="no such example")
        return web.FileResponse(path, headers={"Content-Type": "video/mp4"})

    async def _label(self, request: web.Request) -> web.StreamResponse:
        if not request.content_type.startswith("multipart/"):
            raise Rejected(f"a question is a form (multipart/form-data), got {request.content_type}")
        if self.waiting >= self.limits.waiting:
            raise web.HTTPServiceUnavailable(reason=f"{self.waiting} questions are waiting; try again in a minute")
        self.waiting += 1
        try:
            with tempfile.TemporaryDirectory(prefix="zoo-serve-") as folder:
                question = await self._read(request, Path(folder))
                transport = request.transport

                def gone() -> bool:
                    return self.closing or transport is None or transport.is_closing()

                return web.json_response(await _in_thread(self._worker, lambda: self.answers(question, gone)))
        finally:
            self.waiting -= 1

    async def _read(self, request: web.Request, folder: Path) -> Question:
        """Read a form: ``clip`` and ``subtitles`` (files), ``question`` (JSON). Rejected if it is not one."""
        read: dict[str, dict[str, Any]] = {}  # name of the part -> what it says
        files: dict[str, Path] = {}
        endings = {"clip": CLIP_ENDINGS, "subtitles": SUBTITLES}
        sizes = {"clip": round(self.limits.megabytes * 2**20), "subtitles": MOST_TEXT}
        try:
            async with asyncio.timeout(self.limits.upload_seconds):
                async for part in await request.multipart():
                    if not isinstance(part, BodyPartReader) or part.name in files or part.name in read:
                        raise Rejected("the form has a part twice, or parts within parts")
                    if part.name in endings:
                        files[part.name] = await _save(part, folder, endings[part.name], sizes[part.name])
                    elif part.name == "question":
                        read[part.name] = _parse(await _bytes(part, MOST_TEXT))
                    else:
                        raise Rejected(f"the form has a part {part.name!r}; expected clip, subtitles and question")
        except TimeoutError:
            raise Rejected(f"the upload took over {self.limits.upload_seconds:g} s") from None
        except ConnectionError:  # nobody is left to be told
            raise Rejected("the upload was cut off") from None
        except (ValueError, HttpProcessingError) as error:
            raise error if isinstance(error, Rejected) else Rejected(f"the form cannot be read: {error}") from None
        if not read:
            raise Rejected("the form has no part question; expected clip, subtitles and question")
        return Question(clip=files.get("clip"), subtitles=files.get("subtitles"), **read["question"])


def _is_local(host: str) -> bool:
    """Whether the name that a question gives the server (``Host``) is one of this machine."""
    try:
        return is_local(f"http://{host}")
    except ValueError:  # no name of a host
        return False


async def _in_thread(thread: ThreadPoolExecutor, work: Callable[[], Any]) -> Any:
    """Run something in one of the threads; it ends there even if nobody waits for it any more."""
    return await asyncio.shield(asyncio.get_running_loop().run_in_executor(thread, work))


async def _file(path: Path, request: web.Request) -> web.StreamResponse:
    return web.Response(body=path.read_bytes(), content_type=TYPES[path.suffix], charset="utf-8")


async def _bytes(part: BodyPartReader, most: int) -> bytes:
    content = bytearray()
    while chunk := await part.read_chunk(CHUNK):
        content += chunk
        if len(content) > most:
            raise Rejected(f"the part {part.name} has over {most} bytes")
    return bytes(content)


async def _save(part: BodyPartReader, folder: Path, endings: tuple[str, ...], most: int) -> Path:
    """Write a file under a name of ours; of its own name only the ending is used."""
    ending = "." + (part.filename or "").rpartition(".")[2].lower()
    if ending not in endings:
        raise Rejected(f"the file ends in {ending[:12]!r}; expected one of {', '.join(endings)}")
    path = folder / f"{part.name}{ending}"
    size = 0
    with path.open("wb") as file:
        while chunk := await part.read_chunk(CHUNK):
            size += len(chunk)
            if size > most:
                raise Rejected(f"the file has over {most / 2**20:.3g} MB; cut it, or start with --max_megabytes")
            file.write(chunk)
    if not size:
        raise Rejected("the file is empty")
    return path


def _parse(content: bytes) -> dict[str, Any]:
    """Return what a question says, checked. Rejected if it is not one."""
    try:
        question = json.loads(content)
        systems, parts, lines = question["systems"], question["parts"], question["lines"]
        good = (
            all(isinstance(name, str) for name in systems)
            and set(parts) <= set(PARTS)
            and parts
            and all(isinstance(text, str) for line in lines for text in line)
            and all(len(line) == 2 for line in lines)
            and isinstance(question["segments"], bool)
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good:
        raise Rejected(
            "the part question is JSON with systems (names), parts (of text, face, voice), lines ([speaker, words] "
            "each) and segments (true or false)"
        )
    clean = tuple((re.sub(r"\s+", " ", a).strip(), re.sub(r"\s+", " ", b).strip()) for a, b in lines)
    return {
        "systems": tuple(systems),
        "parts": tuple(part for part in PARTS if part in parts),
        "lines": tuple(line for line in clean if line[1]),
        "segments": question["segments"],
    }


async def run(site: Site, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until the task is cancelled.

    Args:
        ready: called with the address as soon as it listens.

    Raises:
        OSError: the port is taken.
    """
    runner = web.AppRunner(site.app(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        taken = runner.addresses[0][1]
        ready(f"http://{f'[{host}]' if ':' in host else host}:{taken}")
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
    finally:
        await runner.cleanup()
