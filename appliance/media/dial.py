"""The one place that dials out: connections to addresses that were checked."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpcore2

ResolveLater = Callable[[str], Awaitable[Sequence[str]]]


@dataclass(slots=True, frozen=True)
class Dial:
    """Where the request at hand may be connected to: `host` at `addresses`, until `deadline`."""

    host: str
    addresses: tuple[str, ...]
    deadline: float


DIAL: ContextVar[Dial] = ContextVar("dial")


class CheckedDialler(httpcore2.AsyncNetworkBackend):
    """Connects to the addresses that were checked for the request at hand, and to no others.

    A connection belongs to one scheme, host and port, and TLS names and verifies that host; so a
    connection kept alive was itself dialled at an address checked for its host.
    """

    def __init__(self) -> None:
        self._backend = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Try one address after the other, each with its share of the time left."""
        dial = DIAL.get()
        failure: Exception = httpcore2.ConnectError("nothing was checked for this host")
        if host != dial.host:
            raise failure
        for place, address in enumerate(dial.addresses):
            left = dial.deadline - asyncio.get_running_loop().time()
            share = max(left, 0.001) / (len(dial.addresses) - place)
            try:
                return Stream(await self._backend.connect_tcp(address, port, share))
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as fault:
                failure = fault
        raise failure


class Stream(httpcore2.AsyncNetworkStream):
    """A connection that does not outlive a handshake that was cancelled."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            return await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                await self._stream.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


async def resolve_name(host: str) -> list[str]:
    """Addresses of a name, by the system's resolver. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]
