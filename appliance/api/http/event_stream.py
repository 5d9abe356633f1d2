"""Server-sent events: what the engine has new, written as fast as the reader takes it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Protocol

from starlette.types import Receive, Scope, Send

from appliance.api.http.exchange import note
from appliance.api.http.faults import fault_response
from appliance.errors import ApplianceError
from appliance.generation.answers import Answers, Delta

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


class Chunks(Protocol):
    """How deltas become events."""

    def opening(self) -> bytes:
        """What comes before any text."""

    def deltas(self, deltas: list[Delta]) -> bytes:
        """Events for what is new."""

    def closing(self) -> bytes:
        """What comes after all text, before [DONE]."""


async def close_when_gone(receive: Receive, answers: Answers) -> None:
    """Close `answers` as soon as the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
    answers.close()


class EventStream:
    """An ASGI response that streams answers.

    A failure before the first byte is a plain error response, later an error event; `data: [DONE]`
    comes last in any stream. When nothing was sent for `keep_alive` seconds, a comment is.
    """

    def __init__(
        self,
        answers: Answers,
        chunks: Chunks,
        *,
        keep_alive: float,
        headers: Mapping[str, str],
    ) -> None:
        self._answers = answers
        self._chunks = chunks
        self._keep_alive = keep_alive
        self._headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *((name.lower().encode(), value.encode()) for name, value in headers.items()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answers = self._answers
        watch = asyncio.create_task(close_when_gone(receive, answers))
        try:
            try:
                first = await answers.take(self._keep_alive)
            except ApplianceError as fault:
                await fault_response(fault)(scope, receive, send)
                return
            if not answers.closed:
                await self._stream(first, send)
        finally:
            watch.cancel()
            answers.close()
            note(scope, **answers.summary())

    async def _stream(self, new: list[Delta], send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        answers, chunks, clock = self._answers, self._chunks, time.monotonic
        body = chunks.opening() + chunks.deltas(new)
        written = clock() if new else 0.0
        while not answers.done:
            if not body and clock() - written >= self._keep_alive:
                body = KEEP_ALIVE
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})
                written = clock()
            try:
                new = await answers.take(self._keep_alive)
            except ApplianceError as fault:
                body = error_event(fault) + DONE
                await send({"type": "http.response.body", "body": body})
                return
            body = chunks.deltas(new)
        if not answers.closed:
            body += chunks.closing() + DONE
            await send({"type": "http.response.body", "body": body})


def error_event(fault: ApplianceError) -> bytes:
    """A failure after the first byte."""
    return b"data: " + json.dumps(fault.body(), ensure_ascii=False).encode() + b"\n\n"
