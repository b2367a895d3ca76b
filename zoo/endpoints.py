"""Questions in JSON over HTTP to a server that somebody named: the one client of chat endpoints and of engines.

A question is asked again where the next try may succeed: after 429 and 5xx, without a reply, or with half of one or one
that says nothing. The key is written nowhere, not even where a server quotes it; redirects are not followed: one would
take the key, and perhaps a clip, to an address that nobody agreed to.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import ipaddress
import json
import math
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

MAX_WAIT = 60.0  # seconds before another try, whatever the server asks for
MAX_REPLY_BYTES = 4 * 2**20  # of one reply, unless told otherwise
RETRY_STATUS = {408, 409, 425, 429}  # and every 5xx: the same request may succeed later
MIN_KEY_LENGTH = 8  # characters: "EMPTY" and the like are no secret, and taking them out would change answers

Read = TypeVar("Read")


class TryAgain(Exception):
    """This try failed, the next may not; `after`: seconds that the server wants us to wait."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class Unanswered(Exception):
    """No try brought an answer."""


class Refused(Exception):
    """The server refused the question, and would again; `status`: of HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"HTTP {status}: {text}")
        self.status, self.text = status, text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows none."""

    def redirect_request(self, *args: Any) -> None:
        return None


def is_local(url: str) -> bool:
    """Whether an address is this machine: ``localhost`` or a loopback number. Other names are not looked up."""
    host = urllib.parse.urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


class Server:
    """A server of JSON.

    Args:
        url: where its paths begin, e.g. ``http://localhost:8000/v1``.
        key: sent as ``Authorization: Bearer``; None: no such header.
        timeout: seconds one try may take, all of it.
        tries: how often one question is sent at most.
        wait: seconds before the second try, doubled before each further one, at most `MAX_WAIT`; or what a Retry-After
            header says, if that is more.
        max_bytes: of one reply.

    Raises:
        ValueError: an address that is none or would show the key, a key that cannot be sent, a number out of range.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        timeout: float = 120.0,
        tries: int = 4,
        wait: float = 1.0,
        max_bytes: int = MAX_REPLY_BYTES,
    ) -> None:
        local = is_local(url)
        parts = _split_address(url)
        if tries < 1 or not 0 < timeout < math.inf or not 0 <= wait < math.inf:
            raise ValueError(f"tries is 1 or more, timeout over 0, wait 0 or more; got {tries}, {timeout} and {wait}")
        _check_key(key, parts, local)
        self.url, self.host = url.rstrip("/"), parts.hostname or ""
        self.timeout, self.tries, self.wait, self.max_bytes = timeout, tries, wait, max_bytes
        self._key = key
        # a proxy may serve other machines, but what is meant for this one must not pass through it
        proxies = urllib.request.ProxyHandler({} if local else None)
        self._opener = urllib.request.build_opener(proxies, _NoRedirect)

    def ask(
        self, path: str, body: Mapping[str, Any] | None, read: Callable[[str], Read], final: Collection[int] = ()
    ) -> Read:
        """Ask until there is an answer.

        Args:
            path: behind `url`.
            body: sent by POST; None: GET.
            read: makes the answer of the reply's text. It raises `TryAgain` for a reply that says nothing.
            final: statuses of HTTP after which it is not asked again, although others of their kind are.

        Raises:
            Refused: the server refused it.
            Unanswered: no try brought an answer.
        """
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(1, self.tries + 1):
            try:
                return read(self._send(path, data, final))
            except TryAgain as error:
                if attempt == self.tries:
                    raise Unanswered(f"{error} ({attempt} tries)") from None
                time.sleep(min(MAX_WAIT, max(self.wait * 2 ** (attempt - 1), error.after)))
        raise AssertionError  # the loop returns or raises

    def _send(self, path: str, data: bytes | None, final: Collection[int]) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "zoo"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url + path, data, headers, method="GET" if data is None else "POST")
        deadline = time.monotonic() + self.timeout
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                reply = self._read(response, deadline)
        except urllib.error.HTTPError as error:
            text = self._excerpt(error, deadline)
            if error.code not in final and (error.code in RETRY_STATUS or error.code >= 500):
                after = _retry_after_seconds(error.headers.get("Retry-After"))
                raise TryAgain(f"HTTP {error.code}: {text}", after) from None
            raise Refused(error.code, text) from None
        except (OSError, http.client.HTTPException) as error:
            raise TryAgain(self._redact(f"no reply ({type(error).__name__}: {error})")) from None
        return self._redact(reply)

    def _read(self, response: Any, deadline: float) -> str:
        """Read the whole reply within the time limit, which also a server meets that sends a byte now and then."""
        parts, size = [], 0
        while part := response.read1(2**16):
            parts.append(part)
            size += len(part)
            if size > self.max_bytes:
                raise TryAgain(f"a reply of over {self.max_bytes} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not finished after {self.timeout:g} s")
        return b"".join(parts).decode("utf-8", errors="replace")

    def _excerpt(self, error: urllib.error.HTTPError, deadline: float) -> str:
        try:
            text = self._read(error, deadline)
        except (OSError, http.client.HTTPException, TryAgain):
            text = ""
        return " ".join(self._redact(text).split())[:200] or error.reason

    def _redact(self, text: str) -> str:
        """Return a text without the key, which some services quote in their errors."""
        return text.replace(self._key, "[key]") if self._key and len(self._key) >= MIN_KEY_LENGTH else text


def _split_address(url: str) -> urllib.parse.SplitResult:
    """Return the parts of an address. ValueError if it is none, or would show the key."""
    parts = urllib.parse.urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "the address has a user name, a password or a query (not repeated here); expected one like "
            "https://example.org/v1. Give the key in an environment variable, see --key_env"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no address; expected one like http://localhost:8000/v1")
    return parts


def _check_key(key: str | None, parts: urllib.parse.SplitResult, local: bool) -> None:
    """Raise ValueError for a key that cannot be sent, or would be sent unencrypted."""
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        raise ValueError(
            "the key (not repeated here) holds a space, a line break or another character that no key has; "
            "set the environment variable again"
        )
    if key is not None and parts.scheme == "http" and not local:
        raise ValueError(
            f"a key would go to {parts.hostname} unencrypted; use https, or leave the key out (--key_env -)"
        )


def _retry_after_seconds(header: str | None) -> float:
    """Return the seconds of a Retry-After header, which may be a number or a date; 0 if it is neither."""
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, float(header or 0))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(header or "").timestamp() - time.time())
    return 0.0
