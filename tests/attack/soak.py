"""`make soak`: crowds, deaths and many requests for longer than a test may take, as a table.

A row tells what was done, what came of it, and whether that is what is promised. The exit code is 1
if one is not.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from tests.attack.crowd import Crowd
from tests.attack.test_crowd import answers_alone, asked, said
from tests.attack.test_deaths import family_of, gone, shared_memory, streams
from tests.attack.wire import completion, until
from tests.checkpoints import WRITERS
from tests.serving.conftest import Server, metric, serving

AT_ONCE = 32
GROWTH = 1.05  # memory at the end over that after the first 500
FIRST = 500


@dataclass
class Table:
    """What was seen, printed as it comes."""

    rows: list[tuple[str, str, bool]] = field(default_factory=list)

    def add(self, what: str, seen: str, kept: bool) -> None:
        self.rows.append((what, seen, kept))
        print(f"{'ok  ' if kept else 'FAIL'}  {what}: {seen}", flush=True)

    def markdown(self) -> str:
        lines = ["| what | seen | kept |", "| --- | --- | --- |"]
        lines += [
            f"| {what} | {seen} | {'yes' if kept else '**no**'} |" for what, seen, kept in self.rows
        ]
        return "\n".join(lines) + "\n"


def memory(server: Server) -> float:
    """MiB of all processes of a server, shared pages counted once."""
    process = psutil.Process(server.process.pid)
    family = [process, *process.children(recursive=True)]
    return sum(one.memory_full_info().pss for one in family) / 2**20


def requests(first: int, count: int) -> Iterator[dict[str, Any]]:
    for number in range(first, first + count):
        yield completion(
            prompt=f"Number {number} of many",
            max_tokens=1 + number % 12,
            stream=bool(number % 2),
            n=1 + number % 3,
            logprobs=number % 5 or None,
        )


def picture(number: int) -> dict[str, Any]:
    """A chat about a picture that nobody has sent before."""
    data = io.BytesIO()
    side = 40 + number % 60
    colours = (number % 256, number // 256 % 256, number * 7 % 256)
    Image.new("RGB", (side, side + number % 7), colours).save(data, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}]
    return {"model": "tiny", "messages": messages, "max_tokens": 2}


async def all_of(server: Server, path: str, bodies: list[dict[str, Any]]) -> None:
    """Send them all by clients that stay."""
    crowd = Crowd(server.base_url, seed=0)
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with places:
            while number not in crowd.answers:
                await crowd.ask(number, bodies[number], path)
                crowd.seed += 1

    await asyncio.gather(*map(one, range(len(bodies))))


def growth(
    table: Table,
    server: Server,
    what: str,
    path: str,
    count: int,
    make: Callable[[int, int], list[dict[str, Any]]],
) -> None:
    asyncio.run(all_of(server, path, make(0, FIRST)))
    before, begun = memory(server), time.perf_counter()
    asyncio.run(all_of(server, path, make(FIRST, count - FIRST)))
    after, rate = memory(server), (count - FIRST) / (time.perf_counter() - begun)
    seen = f"{before:.0f} MiB after {FIRST}, {after:.0f} after {count}, {rate:.0f} a second"
    table.add(what, seen, after <= before * GROWTH)


def crowds(table: Table, server: Server, count: int, rounds: int) -> None:
    alone = answers_alone(server)
    wrong = left = stayed = 0
    for seed in range(100, 100 + rounds):
        crowd = Crowd(server.base_url, seed)
        asyncio.run(crowd.rush([asked(number) for number in range(count)], count))
        left, stayed = left + crowd.left, stayed + len(crowd.answers)
        wrong += sum(
            said(body) != said(alone[number % 16]) for number, body in crowd.answers.items()
        )
    names = ("kv_pages_used", "num_requests_running", "num_requests_waiting", "media_items_inside")
    rest = until(lambda: all(metric(server, f"appliance_{name}") == 0 for name in names))
    seen = f"{stayed} stayed, {left} left, {wrong} other than alone, all given back: {rest}"
    table.add(f"{count} streams, {rounds} times", seen, rest and not wrong)


def deaths(table: Table, overrides: list[str], rounds: int) -> None:
    victims = ("server", "engine", "fork server", "media worker")
    for victim in victims:
        kept, memory_names = 0, shared_memory()
        for _ in range(rounds):
            with serving(*overrides) as server:
                everybody = list(family_of(server).values())
                with streams(server) as begun:
                    if victim == "server":
                        server.process.kill()
                    else:
                        family_of(server)[victim].send_signal(signal.SIGKILL)
                for stream in begun:
                    stream.result()
                if victim == "server":
                    fine = gone(everybody)
                elif victim == "engine":
                    fine = server.process.wait(20) == 1 and gone(everybody)
                else:
                    fine = until(lambda: server.status("/readyz") == 200)
            kept += fine and shared_memory() <= memory_names
        table.add(f"{victim} killed under 50 streams", f"{kept} of {rounds}", kept == rounds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="file for the table")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    table = Table()
    with tempfile.TemporaryDirectory() as folder:
        path = WRITERS["qwen2_vl"](Path(folder) / "qwen2_vl")
        overrides = [f"model.path={path}", "recipe=qwen2_vl", "model.name=tiny"]
        overrides += ["model.max_len=1024", "engine.threads=1", "server.max_queue=100000"]
        # caches that are full after the first few hundred: growth beyond is a leak
        small = ["cache.media_gb=0.005", "cache.encoder_gb=0.005"]
        with serving(*overrides, *small) as server:
            texts, pictures = given.requests, given.pictures
            growth(
                table, server, f"{texts} requests", "/v1/completions", texts,
                lambda first, count: list(requests(first, count)),
            )  # fmt: skip
            growth(
                table, server, f"{pictures} new pictures", "/v1/chat/completions", pictures,
                lambda first, count: [picture(number) for number in range(first, first + count)],
            )  # fmt: skip
            crowds(table, server, given.streams, given.rounds)
        deaths(table, overrides, given.rounds)
    if given.output is not None:
        machine = (
            f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
        )
        head = f"# Soak\n\n`make soak`, {date.today()}, {machine}, tiny Qwen2-VL.\n\n"
        given.output.write_text(head + table.markdown(), encoding="utf-8")
    return 0 if all(kept for _, _, kept in table.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
