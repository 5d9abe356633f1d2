"""A client that says to a server what no client should, byte by byte."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

SECONDS = 20.0


@dataclass
class Answer:
    """One response, as far as it came before the connection ended."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])


class Wire:
    """One connection to a server."""

    def __init__(self, base_url: str) -> None:
        address = urlsplit(base_url)
        assert address.hostname is not None
        self.socket = socket.create_connection((address.hostname, address.port or 80), SECONDS)

    def send(self, data: bytes | str) -> None:
        self.socket.sendall(data.encode() if isinstance(data, str) else data)

    def finish_sending(self) -> None:
        """Close this side alone."""
        self.socket.shutdown(socket.SHUT_WR)

    def rest(self) -> bytes:
        """All that comes until the server closes."""
        pieces = []
        try:
            while piece := self.socket.recv(1 << 16):
                pieces.append(piece)
        except ConnectionResetError:
            pass
        return b"".join(pieces)

    def answer(self) -> Answer:
        """The final response on a connection that the server closes."""
        return read_answer(self.rest())

    def closed_within(self, seconds: float) -> bool:
        """Whether the server closes the connection by then, saying nothing."""
        self.socket.settimeout(seconds)
        try:
            return not self.socket.recv(1)
        except TimeoutError:
            return False
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.socket.close()


def read_answer(data: bytes) -> Answer:
    """A response, interim ones before it skipped; chunks are put together."""
    head, _, body = data.partition(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 1"):
        head, _, body = body.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    if headers.get("transfer-encoding") == "chunked":
        body = b"".join(_chunks(body))
    return Answer(int(first.split()[1]) if first else 0, headers, body)


def _chunks(data: bytes) -> Iterator[bytes]:
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        yield data[:length]
        data = data[length + 2 :]


@contextmanager
def wire(base_url: str) -> Iterator[Wire]:
    """A connection, closed afterwards."""
    connection = Wire(base_url)
    try:
        yield connection
    finally:
        connection.close()


def post(path: str, body: dict[str, Any], *headers: str, close: bool = True) -> bytes:
    """A request as bytes."""
    content = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *(["Connection: close"] if close else []),
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content


def completion(**fields: Any) -> dict[str, Any]:
    """The body of a short completion."""
    return {"model": "tiny", "prompt": "Once", "max_tokens": 4, "temperature": 0, **fields}


def until(condition: Any, seconds: float = SECONDS) -> bool:
    """Whether `condition()` comes true within that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
