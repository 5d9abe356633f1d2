"""Server-sent events: what the engine has new, written as fast as the reader takes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Protocol

from starlette.types import Receive, Scope, Send

from appliance.api.http.exchange import note
from appliance.api.http.faults import fault_response
from appliance.api.http.server_timing import server_timing
from appliance.errors import ApplianceError
from appliance.generation.answers import Answers, Delta, PromptScore

KEEP_ALIVE = b": keep-alive\n\n"
EVENT_STREAM = (  # the headers of one
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
LARGE = 512  # tokens from which on what is told of them is written off the event loop


class Events(Protocol):
    """The shape of one route's stream: what its events look like, and how it ends."""

    def opening(self) -> bytes:
        """What comes before any text."""

    def deltas(self, deltas: list[Delta]) -> bytes:
        """Events for what is new."""

    def closing(self) -> bytes:
        """What comes after all text, the last event of the stream included."""

    def failure(self, fault: ApplianceError) -> bytes:
        """What ends a stream that fails after its first byte."""


def is_large(deltas: Iterable[Delta], prompts: Iterable[PromptScore] = ()) -> bool:
    """Whether writing them out would hold up the event loop; `prompts` are told of too."""
    generated = sum(len(delta.token_ids) for delta in deltas)
    return generated + sum(len(prompt.logprobs or ()) for prompt in prompts) > LARGE


async def close_when_gone(receive: Receive, answers: Answers) -> None:
    """Close `answers` as soon as the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
    answers.close()


class EventStream:
    """An ASGI response that streams answers as fast as the reader takes them.

    A failure before the first byte is a plain error response. When nothing was sent for
    `keep_alive` seconds, a comment is. `aside` does what would hold up the event loop.
    """

    def __init__(
        self,
        answers: Answers,
        events: Events,
        *,
        keep_alive: float,
        headers: Mapping[str, str],
        aside: Callable[[Callable[[], bytes]], Awaitable[bytes]],
    ) -> None:
        self._answers = answers
        self._aside = aside
        self._events = events
        self._keep_alive = keep_alive
        self._headers = [
            *EVENT_STREAM,
            *((name.lower().encode(), value.encode()) for name, value in headers.items()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answers = self._answers
        watch = asyncio.create_task(close_when_gone(receive, answers))
        try:
            try:
                first = await answers.take(self._keep_alive)
            except ApplianceError as fault:
                await fault_response(fault, scope["path"])(scope, receive, send)
                return
            if not answers.closed:
                await self._stream(first, send)
        finally:
            watch.cancel()
            answers.close()
            note(scope, **answers.summary())

    async def _stream(self, new: list[Delta], send: Send) -> None:
        timed = server_timing(self._answers).items()  # as far as is known at the first byte
        headers = [
            *self._headers,
            *((name.lower().encode(), value.encode()) for name, value in timed),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        answers, events, clock = self._answers, self._events, time.monotonic
        opening = await self._written(new, answers.prompts)
        body = events.opening() + opening
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
                await send({"type": "http.response.body", "body": events.failure(fault)})
                return
            body = await self._written(new)
        if not answers.closed:
            body += events.closing()
            await send({"type": "http.response.body", "body": body})

    async def _written(self, new: list[Delta], prompts: Iterable[PromptScore] = ()) -> bytes:
        """Events for what is new."""
        if is_large(new, prompts):
            return await self._aside(partial(self._events.deltas, new))
        return self._events.deltas(new)
