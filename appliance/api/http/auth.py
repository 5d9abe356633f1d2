"""Bearer keys: kept as SHA-256, compared in constant time, not asked for by the probes."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.api.http.faults import fault_response
from appliance.errors import ApplianceError, unauthorized

OPEN_PATHS = frozenset({"/livez", "/readyz", "/startupz", "/health"})


class Keys:
    """The keys that are accepted: each plain, or `sha256:` and the hexadecimal digest of one."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._digests = [_digest_of(entry) for entry in entries]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, bytes):
            return False
        digest = hashlib.sha256(key).digest()
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return found


def _digest_of(entry: str) -> bytes:
    scheme, _, digest = entry.partition(":")
    if scheme == "sha256" and len(digest) == 64:
        return bytes.fromhex(digest)
    return hashlib.sha256(entry.encode()).digest()


def owner(scope: Scope) -> bytes:
    """Digest of the key that a request brings; nothing where it brings none."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            return hashlib.sha256(value.partition(b" ")[2].strip()).digest()
    return b""


class Authentication:
    """ASGI middleware that lets nobody without a key past, if there are keys."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            refused = self._refusal(scope)
            if refused is not None:
                await fault_response(refused)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApplianceError | None:
        for name, value in scope["headers"]:
            if name == b"authorization":
                scheme, _, key = value.partition(b" ")
                if scheme.lower() == b"bearer" and key.strip() in self._keys:
                    return None
                return unauthorized("The API key is not known here.")
        return unauthorized("An API key is needed: send 'Authorization: Bearer <key>'.")
