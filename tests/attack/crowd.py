"""Many clients at once, some of whom leave in the middle or hardly read."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.attack.wire import post, read_answer

SECONDS = 240.0


@dataclass
class Crowd:
    """`seed` decides who leaves when, and who is slow."""

    base_url: str
    seed: int
    answers: dict[int, bytes] = field(default_factory=dict)
    left: int = 0

    async def ask(self, number: int, body: dict[str, Any], path: str = "/v1/completions") -> None:
        """One client; the answer of one who stays is noted under its number."""
        chance = random.Random(f"{self.seed} {number}")
        address = urlsplit(self.base_url)
        await asyncio.sleep(chance.random() * 0.2)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            writer.write(post(path, body))
            patience = chance.choice([None, None, chance.randint(0, 3000)])
            pause = chance.choice([0.0, 0.0, 0.05])
            data = b""
            while piece := await asyncio.wait_for(reader.read(1 << 12), SECONDS):
                data += piece
                if patience is not None and len(data) > patience:
                    self.left += 1
                    return
                if pause:
                    await asyncio.sleep(pause)
            answer = read_answer(data)
            assert answer.status == 200, answer.body[:300]
            self.answers[number] = answer.body
        finally:
            writer.transport.abort() if chance.random() < 0.5 else writer.close()

    async def rush(self, bodies: list[dict[str, Any]], at_once: int) -> float:
        """All of `bodies`, so many at a time; returns seconds."""
        begun = time.perf_counter()
        places = asyncio.Semaphore(at_once)

        async def one(number: int) -> None:
            async with places:
                await self.ask(number, bodies[number])

        await asyncio.gather(*map(one, range(len(bodies))))
        return time.perf_counter() - begun
