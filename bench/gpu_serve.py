"""The demo served by the launcher: on the device under trial, and on the CPU to compare with."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from bench.exam.questions import Question, stored
from bench.gpu_calls import MAX_TOKENS, about_shapes, astray, of_exam
from bench.gpu_demo import FOLDER
from bench.gpu_models import Shape
from bench.gpu_rows import Row
from bench.gpu_weights import write_checkpoint
from bench.load import Call, LevelResult, request, run_level, stream
from bench.server_process import ServerCommand, ServerProcess, free_port

READY_SECONDS = 60.0
NEEDED_READY = 20.0  # seconds, with kernels compiled
AT_ONCE = 16
LONG = 150  # tokens of an answer that grows beyond a cache of few pages
PHASE = re.compile(r"INFO +(.+?) fraction=\S+ elapsed=(\S+)")
FEW_PAGES = ("model.max_len=512", "engine.kv_cache_gb=0.004")


class Serving:
    """Servers of recipe=demo, each ended before the next begins."""

    def __init__(self, device: str, folder: Path, count: int, shape: Shape) -> None:
        """`count` requests are sent to each; one has a checkpoint of `shape`."""
        self._device = device
        self._exam = stored()
        self._shape = shape
        self._folder = folder
        self._calls = about_shapes(count)
        self._long = about_shapes(2 * AT_ONCE, max_tokens=LONG, ignore_eos=True)
        self.ready = 0.0  # seconds of the last start

    def rows(self) -> Iterator[Row]:
        with self._served("cpu") as server:
            expected = self._ask(server).texts
            known = self._right(server, self._exam)
        with self._served(self._device) as server:
            yield self._ready("served: ready")
            yield Row("served: since its start", phases(server.log))
            first = self._ask(server)
            yield self._compared("served: answers as on the CPU", first.texts, expected)
            rate = f"{first.output_rate:,.0f} tok/s, TTFT {first.ttft_median:.0f} ms"
            yield Row(f"served: {len(self._calls)} pictures, {AT_ONCE} at once", rate)
            again = self._ask(server)
            hit = again.cached_tokens / max(1, again.prompt_tokens)
            yield Row("served: prompt tokens from the cache", f"{hit:.0%}", "50%", hit >= 0.5)
            yield self._compared("served: answers of known pictures", again.texts, first.texts)
            yield from self._exam_rows(server, known)
            long = self._ask(server, self._long).texts
            counts = asyncio.run(_leave(server))
            found = "{:.0f}, then {:.0f}".format(*counts)
            yield Row("served: running when a client leaves", found, "1, then 0", counts == (1, 0))
            start = time.perf_counter()
            server.stop()
            seconds = time.perf_counter() - start
            yield Row("served: end after SIGTERM", f"{seconds:.1f} s", "10 s", seconds <= 10)
        with self._served(self._device, *FEW_PAGES) as server:
            scarce = self._ask(server, self._long).texts
            count = asyncio.run(_metric(server, "num_preemptions"))
            yield Row("served: preemptions with few pages", f"{count:.0f}", "some", count > 0)
            yield self._compared("served: beginnings with few pages", _begun(scarce), _begun(long))
        yield from self._large_rows()

    def _exam_rows(self, server: ServerProcess, known: int) -> Iterator[Row]:
        """`known` of the questions the CPU answers right: the model does not know them all."""
        right = self._right(server, self._exam)
        least = int(0.95 * known)
        found = f"{right} of {len(self._exam)} right, on the CPU {known}"
        yield Row("served: the exam", found, f"{least}", right >= least)
        wrong = astray(self._exam)
        right = self._right(server, wrong)
        found = f"{right} of {len(wrong)} right"
        yield Row("served: the exam, wrong pictures", found, "few", right < known / 2)

    def _right(self, server: ServerProcess, questions: Sequence[Question]) -> int:
        texts = self._ask(server, of_exam(questions)).texts
        return sum(asked.right(said) for asked, said in zip(questions, texts, strict=True))

    def _large_rows(self) -> Iterator[Row]:
        """Ready with the weights of a published model's sizes, which are of chance here."""
        name = self._shape.name
        device = torch.device("cpu" if self._device == "cpu" else "cuda")
        folder = write_checkpoint(self._shape, FOLDER, self._folder / f"{name}-served", device)
        told = (f"model.path={folder}", "model.architectures=[]", "model.max_len=2048")
        with self._served(self._device, *told) as server:
            yield self._ready(f"{name} served: ready")
            yield Row(f"{name} served: since its start", phases(server.log))
            level = self._ask(server, about_shapes(AT_ONCE, ignore_eos=True))
            wanted = AT_ONCE * MAX_TOKENS
            found = f"{level.output_tokens} tokens, {level.output_rate:,.0f} a second"
            yield Row(
                f"{name} served: {AT_ONCE} pictures at once",
                found,
                f"{wanted} tokens",
                level.output_tokens == wanted,
            )

    def _ready(self, name: str) -> Row:
        return Row(name, f"{self.ready:.1f} s", "20 s", self.ready <= NEEDED_READY)

    @contextmanager
    def _served(self, device: str, *overrides: str) -> Iterator[ServerProcess]:
        port = free_port()
        told = ["recipe=demo", f"engine={device}", f"server.port={port}", *overrides]
        command = ServerCommand(
            "appliance", [sys.executable, "-m", "appliance", *told], "/readyz", port
        )
        log = self._folder / f"server-{device}-{len(overrides)}.log"
        with ServerProcess(command, log) as server:
            self.ready = asyncio.run(server.wait_ready(READY_SECONDS))
            yield server

    def _ask(self, server: ServerProcess, asked: list[Call] | None = None) -> LevelResult:
        level = run_level(server.host, server.command.port, asked or self._calls, AT_ONCE)
        return asyncio.run(level)

    def _compared(self, what: str, found: list[str], expected: list[str]) -> Row:
        same = sum(one == other for one, other in zip(found, expected, strict=True))
        least = int(0.95 * len(expected))
        return Row(what, f"{same} of {len(expected)}", f"{least}", same >= least)


def phases(log: Path) -> str:
    """Each phase of a start that a server's log tells of, and the second that it began in."""
    began: dict[str, str] = {}
    for name, seconds in PHASE.findall(log.read_text(errors="replace")):
        began.setdefault(name.strip(), seconds)
    return ", ".join(f"{name} {seconds} s" for name, seconds in began.items()) or "not told"


def _begun(texts: list[str]) -> list[str]:
    """What an answer that goes on beyond its end has of meaning."""
    return [text[:20] for text in texts]


async def _leave(server: ServerProcess) -> tuple[float, float]:
    """Go away in the middle of a long answer: how many run before, and a second later."""
    body = {"model": "demo", "prompt": "A", "max_tokens": 1900, "ignore_eos": True, "stream": True}
    call = Call("/v1/completions", json.dumps(body).encode())
    task = asyncio.create_task(stream(server.host, server.command.port, call))
    await asyncio.sleep(0.5)
    before = await _metric(server, "num_requests_running")
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(1)
    return before, await _metric(server, "num_requests_running")


async def _metric(server: ServerProcess, name: str) -> float:
    """The sum over all labels."""
    text = (await request(server.host, server.command.port, "GET", "/metrics")).decode()
    values = [
        float(line.split()[-1])
        for line in text.splitlines()
        if not line.startswith("#") and name in line.split("{")[0].split(" ")[0]
    ]
    if not values:
        raise LookupError(f"no metric is called {name}")
    return sum(values)
