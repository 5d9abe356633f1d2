"""A web server on loopback that misbehaves in the way its routes say."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

Handler = Callable[["Call"], Awaitable[None]]


@dataclass
class Call:
    """One request to the origin, and the way to answer it."""

    method: str
    target: str
    headers: dict[str, str]
    writer: asyncio.StreamWriter
    reader: asyncio.StreamReader

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, body: bytes = b"", status: str = "200 OK", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status}"]
        headers = {"Content_Length": str(len(body)), **headers}
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value]
        await self.send("\r\n".join([*lines, "", ""]).encode() + body)


@dataclass
class Origin:
    """What happened at the server. Routes are by path, `*` for any; anything else is a 404."""

    routes: Mapping[str, Handler]
    port: int = 0
    calls: list[Call] = field(default_factory=list)
    opened: int = 0
    closed: int = 0
    names: list[str | None] = field(default_factory=list)  # asked for in TLS

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        try:
            while (head := await reader.readuntil(b"\r\n\r\n")) is not None:
                first, *lines = head.decode("latin-1").rstrip().split("\r\n")
                method, target, _ = first.split(" ")
                headers = {
                    name.lower(): value for name, value in (line.split(": ", 1) for line in lines)
                }
                call = Call(method, target, headers, writer, reader)
                self.calls.append(call)
                path = target.partition("?")[0]
                handler = self.routes.get(path) or self.routes.get("*")
                if handler is None:
                    await call.answer(b"none", "404 Not Found")
                else:
                    await handler(call)
        except (OSError, asyncio.IncompleteReadError, ssl.SSLError, RuntimeError):  # uvloop
            pass
        finally:
            self.closed += 1
            writer.close()

    async def settled(self) -> bool:
        """Whether every connection is closed, or becomes so within some seconds."""
        for _ in range(1000):
            if self.opened == self.closed:
                return True
            await asyncio.sleep(0.01)
        return False


@contextlib.asynccontextmanager
async def serving(
    routes: Mapping[str, Handler],
    *,
    trust: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
) -> AsyncIterator[Origin]:
    """An origin on a free port, or on one known to be free."""
    origin = Origin(routes)
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        with contextlib.suppress(asyncio.CancelledError):
            await origin.serve(reader, writer)
        running.discard(task)

    if trust is not None:
        trust.sni_callback = lambda _, name, __: origin.names.append(name)
    server = await asyncio.start_server(serve, host, port, ssl=trust)
    origin.port = server.sockets[0].getsockname()[1]
    try:
        yield origin
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def redirect(location: str, status: int = 302) -> Handler:
    async def handler(call: Call) -> None:
        await call.answer(status=f"{status} Found", Location=location, Set_Cookie="a=b")

    return handler


def content(body: bytes, status: str = "200 OK", **headers: str) -> Handler:
    async def handler(call: Call) -> None:
        await call.answer(body, status, **headers)

    return handler


def raw(data: bytes) -> Handler:
    """Send these bytes and close."""

    async def handler(call: Call) -> None:
        await call.send(data)
        call.writer.close()

    return handler


async def stall(call: Call) -> None:
    """Say nothing until the other side leaves."""
    await call.reader.read()


async def reset(call: Call) -> None:
    call.writer.transport.abort()


async def drip(call: Call) -> None:
    """A byte now and then, never stopping for long."""
    await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        await call.send(b"x")
        await asyncio.sleep(0.01)


async def drip_headers(call: Call) -> None:
    await call.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await call.send(b"X-Slow: yes\r\n")
        await asyncio.sleep(0.01)


async def endless(call: Call) -> None:
    await call.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await call.send(b"10000\r\n" + bytes(0x10000) + b"\r\n")
