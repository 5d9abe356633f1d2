"""A transcript told while it is made: events as OpenAI types them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from appliance.api.audio.formats import text_of
from appliance.api.http.event_stream import EVENT_STREAM, KEEP_ALIVE
from appliance.api.http.exchange import note
from appliance.api.http.faults import fault_response
from appliance.api.http.responses import encode
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from appliance.generation.transcribing import Hearing, Segment  # loads the model's libraries


class TranscriptStream:
    """An ASGI response with an event for each segment, and one for all of them at the end.

    A failure before the first byte is a plain error response. When nothing was sent for
    `keep_alive` seconds, a comment is.
    """

    def __init__(
        self,
        hear: Callable[[Receive], Awaitable[Hearing]],
        *,
        keep_alive: float,
        headers: Mapping[str, str],
    ) -> None:
        self._hear = hear
        self._keep_alive = keep_alive
        self._headers = [
            *EVENT_STREAM,
            *((name.lower().encode(), value.encode()) for name, value in headers.items()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            hearing = await self._hear(receive)
            windows = hearing.windows()
            first: list[Segment] = await anext(windows, [])
        except ApplianceError as fault:
            await fault_response(fault)(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})

        async def write(body: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        try:
            last = await self._write(scope, hearing, windows, first, write)
        except ApplianceError as fault:
            last = event(fault.body())
        except ClientDisconnect:
            return
        await write(last, more=False)

    async def _write(
        self,
        scope: Scope,
        hearing: Hearing,
        windows: AsyncIterator[list[Segment]],
        first: list[Segment],
        write: Callable[[bytes], Awaitable[None]],
    ) -> bytes:
        """All events but the last one, which is returned."""
        segments: list[Segment] = []
        new: list[Segment] | None = first
        while new is not None:
            for segment in new:
                text = segment.text if text_of(segments) else segment.text.lstrip()
                segments.append(segment)
                if text:
                    await write(event({"type": "transcript.text.delta", "delta": text}))
            following = asyncio.ensure_future(_next(windows))
            try:
                while not (await asyncio.wait([following], timeout=self._keep_alive))[0]:
                    await write(KEEP_ALIVE)
                new = await following
            finally:
                following.cancel()
        note(scope, prompt_tokens=hearing.heard, generated_tokens=hearing.said)
        done = {"type": "transcript.text.done", "text": text_of(segments)}
        return event(done | {"usage": tokens_used(hearing)})


async def _next(windows: AsyncIterator[list[Segment]]) -> list[Segment] | None:
    return await anext(windows, None)


def event(content: Mapping[str, Any]) -> bytes:
    """One event of a stream."""
    return f"data: {encode(content)}\n\n".encode()


def tokens_used(hearing: Hearing) -> dict[str, Any]:
    """What it cost, in tokens."""
    return {
        "type": "tokens",
        "input_tokens": hearing.heard,
        "output_tokens": hearing.said,
        "total_tokens": hearing.heard + hearing.said,
    }
