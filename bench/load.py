"""A streaming client that asks many times at once and notes when tokens come back.

Plain asyncio streams: it shares the cores with the server it measures, so it parses answers only
after the clock has stopped.
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

ANSWER_SECONDS = 900.0


class LoadError(Exception):
    """The server answered something else than the tokens that were asked for."""


@dataclass(slots=True, frozen=True)
class Call:
    """One HTTP request of the load: a path and a JSON body, ready to be sent."""

    path: str
    body: bytes


@dataclass(slots=True)
class Answer:
    """What one call brought: its events as received and the time of each, in seconds."""

    sent: float
    events: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    text: str = ""
    first: float = 0.0  # time of the first event that carries text or is its token
    last: float = 0.0

    def parse(self) -> None:
        """Fill text, counts and times from the events."""
        finish = None
        for event, moment in zip(self.events, self.times, strict=True):
            chunk = json.loads(event)
            if "error" in chunk:
                raise LoadError(f"error event: {event.decode()[:300]}")
            if usage := chunk.get("usage"):
                self.tokens = usage["completion_tokens"]
                self.prompt_tokens = usage["prompt_tokens"]
                details = usage.get("prompt_tokens_details") or {}
                self.cached_tokens = details.get("cached_tokens") or 0
            for choice in chunk["choices"]:
                delta = choice.get("delta")
                opening = delta is not None and not delta.get("content") and delta.get("role")
                finish = choice.get("finish_reason") or finish
                if opening and not choice.get("finish_reason"):
                    continue  # the role chunk of a chat answer comes before any token
                self.text += (delta.get("content") or "") if delta is not None else choice["text"]
                self.first = self.first or moment
                self.last = moment
        if not self.tokens or finish is None:
            raise LoadError(f"the stream ended early after {len(self.events)} events")

    @property
    def ttft(self) -> float:
        return self.first - self.sent

    @property
    def tpot(self) -> float:
        return (self.last - self.first) / max(self.tokens - 1, 1)


@dataclass(slots=True, frozen=True)
class LevelResult:
    """The figures of one concurrency level; times in milliseconds, rates in tokens a second."""

    concurrency: int
    requests: int
    seconds: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    output_rate: float
    ttft_median: float
    ttft_p95: float
    tpot_median: float
    tpot_p95: float
    client_cpu: float  # share of one core
    texts: list[str]


async def _read_status(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Status code, and whether the body is chunked."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    chunked = any(line.lower() == "transfer-encoding: chunked" for line in head)
    return int(head[0].split(" ")[1]), chunked


async def request(host: str, port: int, method: str, path: str, body: bytes = b"") -> bytes:
    """The body of a plain answer.

    Raises LoadError on any status but 200, OSError when nobody listens.
    """
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(_head(method, host, port, path, body) + body)
        status, chunked = await _read_status(reader)
        raw = await reader.read()
    finally:
        writer.close()
    if status != 200:
        raise LoadError(f"{method} {path}: {status} {raw[:300].decode(errors='replace')}")
    return _join_chunks(raw) if chunked else raw


def _head(method: str, host: str, port: int, path: str, body: bytes) -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()


def _join_chunks(raw: bytes) -> bytes:
    joined, rest = b"", raw
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        joined, rest = joined + rest[:length], rest[length + 2 :]
    return joined


async def stream(host: str, port: int, call: Call) -> Answer:
    """Send one call and collect its server-sent events until `[DONE]`."""
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
    try:
        writer.write(_head("POST", host, port, call.path, call.body) + call.body)
        answer = Answer(sent=time.perf_counter())
        status, chunked = await _read_status(reader)
        if status != 200 or not chunked:
            raise LoadError(f"{call.path}: {status} {(await reader.read(400)).decode()}")
        pending = b""
        while size := int((await reader.readuntil(b"\r\n")), 16):
            data = (await reader.readexactly(size + 2))[:-2]
            now = time.perf_counter()
            *events, pending = (pending + data).replace(b"\r\n", b"\n").split(b"\n\n")
            for event in events:
                if event == b"data: [DONE]":
                    return answer
                if event.startswith(b"data: "):
                    answer.events.append(event[6:])
                    answer.times.append(now)
        raise LoadError("the stream ended without [DONE]")
    finally:
        writer.close()


async def run_level(host: str, port: int, calls: Sequence[Call], concurrency: int) -> LevelResult:
    """Keep `concurrency` calls open until all are answered."""
    waiting = list(enumerate(calls))[::-1]
    answers: dict[int, Answer] = {}

    async def worker() -> None:
        while waiting:
            index, call = waiting.pop()
            answers[index] = await asyncio.wait_for(stream(host, port, call), ANSWER_SECONDS)

    cpu, start = _cpu_seconds(), time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except* (OSError, EOFError, TimeoutError, LoadError) as failures:
        raise LoadError(f"a request failed: {failures.exceptions[0]!r}") from None
    seconds, cpu = time.perf_counter() - start, _cpu_seconds() - cpu
    done = [answers[index] for index in range(len(calls))]
    for answer in done:
        answer.parse()
    tokens = sum(answer.tokens for answer in done)
    ttft = [1e3 * answer.ttft for answer in done]
    tpot = [1e3 * answer.tpot for answer in done]
    return LevelResult(
        concurrency=concurrency,
        requests=len(done),
        seconds=seconds,
        prompt_tokens=sum(answer.prompt_tokens for answer in done),
        cached_tokens=sum(answer.cached_tokens for answer in done),
        output_tokens=tokens,
        output_rate=tokens / seconds,
        ttft_median=statistics.median(ttft),
        ttft_p95=percentile(ttft, 0.95),
        tpot_median=statistics.median(tpot),
        tpot_p95=percentile(tpot, 0.95),
        client_cpu=cpu / seconds,
        texts=[answer.text for answer in done],
    )


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]
