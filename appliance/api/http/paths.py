"""Paths as clients put them together: which route was meant, and which one nearly."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

SLASHES = re.compile("//+")
VERSION = "/v1"
ALIKE = 0.8  # of two paths, from 0 to 1
LONGEST = 200
# what other servers call the same, with nothing in common to find it by
ELSEWHERE = {
    "/api/chat": "/v1/chat/completions",
    "/api/generate": "/v1/completions",
    "/api/tags": "/v1/models",
    "/completion": "/v1/completions",
    "/generate_stream": "/v1/completions",
    "/get_server_info": "/version",
    "/health_check": "/health",
    "/healthz": "/health",
    "/server_info": "/version",
    "/v1": "/v1/models",
    "/v1/messages": "/v1/chat/completions",
    "/v1/responses": "/v1/chat/completions",
}


class SingleSlashes:
    """ASGI middleware: where no route has a path as it is, doubled slashes in it are one.

    Base URLs end in a slash, and clients add another.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[Route]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "//" in scope["path"]:
            path = scope["path"]
            if not any(route.path_regex.match(path) for route in self._routes):
                scope = {**scope, "path": single(path)}
        await self._app(scope, receive, send)


class Rooted:
    """ASGI middleware: the path under which a proxy has this server is taken off, if it is there.

    Some proxies take it off themselves, and probes come past them.
    """

    def __init__(self, app: ASGIApp, root: str) -> None:
        self._app = app
        self._root = root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if path == self._root or path.startswith(f"{self._root}/"):
                scope = {**scope, "path": path[len(self._root) :] or "/"}
        await self._app(scope, receive, send)


def single(path: str) -> str:
    """A path without doubled slashes."""
    return SLASHES.sub("/", path)


def neighbour(path: str, known: Iterable[str]) -> str | None:
    """The one of the `known` paths that was probably meant."""
    plain = single(path[:LONGEST]).lower().rstrip("/")
    named = sorted((one for one in known if "{" not in one), key=len, reverse=True)
    if plain in ELSEWHERE:
        return ELSEWHERE[plain]
    for one in named:
        if plain.endswith(one.removeprefix(VERSION)):
            return one
    alike = difflib.get_close_matches(plain, named, 1, ALIKE)
    return alike[0] if alike else None
