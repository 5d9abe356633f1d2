"""A client that talks ASGI itself, so that a test decides what is sent and read, and when."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message


@dataclass
class Reply:
    """What an application answered."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    complete: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        body = self.json["error"]
        assert set(body) == {"message", "type", "param", "code"}
        assert isinstance(body["message"], str)
        assert body["message"]
        assert isinstance(body["type"], str)
        assert self.headers["content-type"] == "application/json"
        assert "Traceback" not in body["message"]
        return body

    @property
    def events(self) -> list[str]:
        """Data of every event, comments left out."""
        blocks = self.body.decode().split("\n\n")
        return [block.removeprefix("data: ") for block in blocks if block.startswith("data: ")]

    def events_of(self, name: str) -> list[str]:
        """Data of the events of a name."""
        blocks = [block.partition("\n") for block in self.body.decode().split("\n\n")]
        return [data.removeprefix("data: ") for head, _, data in blocks if head == f"event: {name}"]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """Every event but the last, which has to be [DONE]."""
        *events, last = self.events
        assert last == "[DONE]"
        assert self.body.endswith(b"data: [DONE]\n\n")
        return [json.loads(event) for event in events]


class Exchange:
    """One request under way."""

    def __init__(
        self, app: ASGIApp, method: str, path: str, headers: dict[str, str], body: list[bytes]
    ) -> None:
        self.reply = Reply()
        self.gone = asyncio.Event()
        self.begun = asyncio.Event()
        self.reading = asyncio.Event()
        self.reading.set()
        self.taken = 0
        self._body = list(body)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if self._body:
            piece = self._body.pop(0)
            self.taken += len(piece)
            return {"type": "http.request", "body": piece, "more_body": bool(self._body)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self.reading.wait()
        if message["type"] == "http.response.start":
            self.reply.status = message["status"]
            self.reply.headers = {k.decode().lower(): v.decode() for k, v in message["headers"]}
        else:
            self.reply.pieces.append(message.get("body", b""))
            self.reply.complete = not message.get("more_body", False)
        self.begun.set()

    async def done(self) -> Reply:
        await asyncio.wait_for(self.task, 10)
        return self.reply


class AsgiClient:
    """Sends requests to an application."""

    def __init__(self, app: ASGIApp, headers: dict[str, str] | None = None) -> None:
        self._app = app
        self._headers = headers or {}

    def begin(
        self,
        method: str,
        path: str,
        json_body: Any = None,
        *,
        body: bytes | list[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Exchange:
        sent = dict(self._headers)
        if json_body is not None:
            body = json.dumps(json_body).encode()
            sent["Content-Type"] = "application/json"
        sent.update(headers or {})
        pieces = body if isinstance(body, list) else [body or b""]
        return Exchange(self._app, method, path, sent, pieces)

    async def ask(self, method: str, path: str, json_body: Any = None, **given: Any) -> Reply:
        return await self.begin(method, path, json_body, **given).done()

    async def chat(self, **fields: Any) -> Reply:
        return await self.ask("POST", "/v1/chat/completions", chat_body(**fields))

    async def complete(self, **fields: Any) -> Reply:
        return await self.ask(
            "POST", "/v1/completions", {"model": "tiny", "prompt": "Once", **fields}
        )


def chat_body(**fields: Any) -> dict[str, Any]:
    """A chat request; a field given as None is sent as null."""
    messages = [{"role": "user", "content": "Hello"}]
    return {"model": "tiny", "messages": messages, **fields}
