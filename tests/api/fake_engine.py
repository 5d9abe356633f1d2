"""An `appliance.client.Client` that plays a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

from engine.errors import EngineDead
from engine.request import Output, Request
from engine.stats import EngineStats

Step = Output | float | Exception  # a number is a pause in seconds
Script = Callable[[Request], Iterator[Step]]


def speak(*tokens: int, finish: str = "length") -> Script:
    """Every answer is these tokens, one a step."""

    def script(request: Request) -> Iterator[Step]:
        for place, token in enumerate(tokens):
            last = place == len(tokens) - 1
            for index in range(request.n):
                yield Output(request.id, index, [token], finish if last else None)

    return script


class FakeStream(AsyncIterator[Output]):
    def __init__(self, client: FakeEngine, request: Request) -> None:
        self._client = client
        self._request = request
        self._steps = client.script(request)
        self.dropped: set[int] = set()

    async def __anext__(self) -> Output:
        while True:
            if self._client.dead is not None:
                raise EngineDead(self._client.dead)
            if len(self.dropped) == self._request.n:
                raise StopAsyncIteration
            step = next(self._steps, None)
            await asyncio.sleep(step if isinstance(step, float) else 0)
            if step is None:
                raise StopAsyncIteration
            if isinstance(step, Exception):
                raise step
            if isinstance(step, Output) and step.index not in self.dropped:
                return step


class FakeEngine:
    """Plays `script` for every request and keeps what it was asked."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Request] = []
        self.aborted: list[tuple[str, int | None]] = []
        self.stats = EngineStats(running=3, pages_total=10, pages_used=4, prefix_hit_tokens=7)
        self.phase = "ready"
        self.fraction = 1.0
        self.on_encode: Callable[[str, float], None] = lambda modality, seconds: None
        self.killed = False
        self.dead: str | None = None
        self.stopped = False
        self._streams: dict[str, FakeStream] = {}
        self._death = asyncio.Event()

    async def start(self) -> None:
        self.phase = "ready"

    def submit(self, request: Request) -> FakeStream:
        self.requests.append(request)
        stream = self._streams[request.id] = FakeStream(self, request)
        return stream

    def abort(self, request_id: str, index: int | None = None) -> None:
        self.aborted.append((request_id, index))
        stream = self._streams[request_id]
        every = range(self.requests[-1].n)
        stream.dropped.update(every if index is None else [index])

    def die(self, reason: str) -> None:
        self.dead = reason
        self.phase = "dead"
        self._death.set()

    async def died(self) -> str:
        await self._death.wait()
        return self.dead or ""

    async def stop(self) -> None:
        self.stopped = True

    def kill(self) -> None:
        self.killed = True
