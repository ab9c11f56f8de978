"""What a request must look like before anything else sees it: its host, its origin, its token, its size; and what every answer says."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import SplinterpError

COOKIE = "splinterp"
LARGEST_BODY = 64 * 1024
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_OPEN_PATHS = ("/login", "/static/page.css", "/static/icon.svg")
_SAFE = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with none at all, a browser's own forms would come from "null"
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        token: that every request must bear; None: loopback alone, where none is asked for.
        hosts: names by which the service may be called where there is no token; another name is a page that has been rebound to us.
    """

    token: str | None
    hosts: tuple[str, ...] = LOOPBACK

    @property
    def session(self) -> str:
        """What a browser keeps in place of the token."""
        return hmac.new((self.token or "").encode(), b"session", hashlib.sha256).hexdigest()

    def is_token(self, text: str) -> bool:
        return self.token is not None and hmac.compare_digest(text.encode(), self.token.encode())

    def admits(self, headers: Headers) -> bool:
        """Whether a request bears the token, or a browser's session."""
        if self.token is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.is_token(given.strip())
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self.session.encode())


def kept_token(path: Path) -> tuple[str, bool]:
    """(the token in `path`, whether it was made just now); readable by its owner alone.

    Raises:
        SplinterpError: others may read the file.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            raise SplinterpError(f"Others may read {path}; remove it (a new token is made then), or chmod 600 it.") from None
        token = path.read_text(encoding="ascii").strip()
        if len(token) < 32:
            raise SplinterpError(f"{path} holds no token; remove it, and a new one is made.") from None
        return token, False
    token = secrets.token_urlsafe(32)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
    return token, True


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self._refused(scope)
        if refused is not None:
            await refused(scope, receive, sending)
            return
        body = await _body(scope, receive)
        if body is None:
            await _answer(413, f"A request has at most {LARGEST_BODY // 1024} KiB.")(scope, receive, sending)
            return
        await self._app(scope, body, sending)

    def _refused(self, scope: Scope) -> Response | None:
        headers, path, method = Headers(scope=scope), scope["path"], scope["method"]
        host = headers.get("host", "")
        if self._access.token is None and not _is_named(host, self._access.hosts):
            return _answer(421, "This service is not called by that name here.")
        if method not in _SAFE:
            origin, site = headers.get("origin"), headers.get("sec-fetch-site")
            if (origin is not None and _netloc(origin) != host) or site in ("cross-site", "same-site"):
                return _answer(403, "Another site's page may not change anything here.")
        if path in _OPEN_PATHS or self._access.admits(headers):
            return None
        if method == "GET" and "text/html" in headers.get("accept", ""):
            return RedirectResponse("/login", 303)
        return _answer(401, "A token is needed, and this is none: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"})


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # an IPv6 address that is none
        return None


def _is_named(host: str, names: Sequence[str]) -> bool:
    try:
        return (urlsplit(f"//{host}").hostname or "") in names
    except ValueError:
        return False


async def _body(scope: Scope, receive: Receive) -> Receive | None:
    """The request's body, read as a whole, to be received again; None where it is too large, however it is sent."""
    headers = Headers(scope=scope)
    told = headers.get("content-length")
    if told is not None and (not (told.isascii() and told.isdigit() and len(told) < 19) or int(told) > LARGEST_BODY):
        return None
    if told is None and "transfer-encoding" not in headers:
        return receive
    parts, size = list[bytes](), 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return receive
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > LARGEST_BODY:
            return None
        if not message.get("more_body"):
            break
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": b"".join(parts), "more_body": False}

    return again


def _answer(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": detail}, status, headers)
