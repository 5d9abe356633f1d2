"""How fast is it on this card, and how far from what the card could do."""

from __future__ import annotations

import cProfile
import gc
import itertools
import logging
import math
import pstats
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from bench.gpu_models import Shape, engine_for, random_text_model, write_folder
from engine.core import Engine
from engine.device.device import Measured
from engine.models.registry import family_for
from engine.request import Request, SamplingOptions
from engine.running.exercise import images
from engine.running.platform import Platform

DTYPE = torch.bfloat16
ITEMSIZE = 2
MERGED = 4  # patches in a token of an image, in all the shapes


@dataclass(slots=True, frozen=True)
class Limits:
    """What the card does at its best, measured."""

    bandwidth: float  # bytes a second, read and written
    matmul_rate: float  # floating-point operations a second, bfloat16


@dataclass(slots=True, frozen=True)
class Sizes:
    """How much is measured; `tiny` is for trying the script out."""

    prompt: int = 1024
    steps: int = 64
    batches: tuple[int, ...] = (1, 8, 32, 128)
    prefill: int = 8192
    short: tuple[int, ...] = (64, 256, 512)  # of short prompts
    matrix: int = 8192
    copied: int = 1 << 32
    peer_tokens: int = 64
    sides: tuple[int, ...] = (224, 336, 448, 672, 980)  # of square pictures, in pixels


TINY_SIZES = Sizes(
    prompt=24,
    steps=8,
    batches=(1, 2),
    prefill=64,
    short=(8, 24),
    matrix=64,
    copied=1 << 16,
    peer_tokens=3,
    sides=(56, 112),
)


@dataclass(slots=True, frozen=True)
class Kernel:
    """What one kernel takes: its part of all kernels' time, and microseconds a call."""

    name: str
    share: float
    each: float
    calls: int


class Clock:
    """Wall time of work that a device may do later."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def settle(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object]) -> float:
        self.settle()
        start = time.perf_counter()
        work()
        self.settle()
        return time.perf_counter() - start

    def best(self, work: Callable[[], object], rounds: int = 5) -> float:
        work()
        return min(self.seconds(work) for _ in range(rounds))


def measure_limits(platform: Platform, sizes: Sizes) -> Limits:
    """Bandwidth by copying, rate by square products."""
    clock, device, side = Clock(platform.device), platform.device, sizes.matrix
    source = torch.ones(sizes.copied // 4, device=device)
    copying = clock.best(partial(torch.empty_like(source).copy_, source))
    left, right = (torch.randn(side, side, device=device, dtype=DTYPE) for _ in range(2))
    multiplying = clock.best(partial(torch.mm, left, right))
    return Limits(2 * source.nbytes / copying, 2 * side**3 / multiplying)


class ShapeBench:
    """One shape's engine and its measurements."""

    def __init__(self, shape: Shape, folder: Path, platform: Platform, sizes: Sizes) -> None:
        self.shape = shape
        self.folder = write_folder(shape, folder)
        self.platform = platform
        self.sizes = sizes
        self.clock = Clock(platform.device)
        self.dtype = "bfloat16" if platform.device.type == "cuda" else "float32"
        self._requests = itertools.count()
        self._random = torch.Generator().manual_seed(0)

    def engine(self, **changes: Any) -> Engine:
        sizes, batch = self.sizes, max(self.sizes.batches)
        length = sizes.prompt + 4 * sizes.steps + 64
        pages = max(batch * -(-length // 16), sizes.prefill // 16 + 1)
        options = {
            "dtype": self.dtype,
            "max_len": max(length, sizes.prefill + 16),
            "max_tokens_per_step": sizes.prefill,
            "max_sequences": batch,
            "pages": pages,
            "modalities": (),
        }
        return engine_for(self.folder, self.platform, **(options | changes))

    def decode_seconds(self, engine: Engine, batch: int) -> float:
        """Seconds a step of decoding `batch` sequences, all of them past their prompts."""
        self._fill(engine, batch, self.sizes.prompt, 3 * self.sizes.steps)
        for _ in range(4):
            engine.step()
        times = []
        for _ in range(2):
            work = self.sizes.steps // 2
            times.append(self.clock.seconds(partial(_steps, engine, work)) / work)
        self._drain(engine)
        return statistics.median(times)

    def decode_floor(self, batch: int, limits: Limits) -> float:
        """Seconds to read the weights and the keys and values once."""
        context = self.sizes.prompt + self.sizes.steps / 2
        weights = self.shape.matmul_parameters * ITEMSIZE
        cache = batch * context * self.shape.kv_bytes_per_token()
        return (weights + cache) / limits.bandwidth

    def prefill_rate(self, engine: Engine) -> tuple[float, float]:
        """Tokens a second and operations a second of one prompt as long as a step may be."""
        tokens = self.sizes.prefill
        seconds = self.prompt_seconds(engine, tokens, rounds=3)
        shape = self.shape
        head = shape.hidden * shape.vocabulary
        pairs = tokens * (tokens + 1) / 2
        operations = 2.0 * (shape.matmul_parameters - head) * tokens + 2.0 * head
        operations += 4.0 * pairs * shape.heads * shape.head_dim * shape.layers
        return tokens / seconds, operations / seconds

    def prompt_seconds(self, engine: Engine, tokens: int, rounds: int = 5) -> float:
        """Time of one prompt of that many tokens, until its first token is known."""

        def once() -> None:
            self._add(engine, tokens, 1)
            while engine.has_work():
                engine.step()

        return self.clock.best(once, rounds)

    def tower_seconds(self, vision_attention: str) -> dict[int, float]:
        """Time of a picture in the tower, in a step full of its like, by its patches."""
        engine = self.engine(modalities=("image",), graphs=False, vision_attention=vision_attention)
        family = family_for(self.folder)
        found = {}
        for side in self.sizes.sides:
            items = images(engine.options, family, side)
            seconds = self.clock.best(partial(engine._runner.media.encode, items), rounds=3)
            found[items[0].length * MERGED] = seconds / len(items)
        return found

    def picture_seconds(self, **changes: Any) -> dict[int, float]:
        """Time of a picture alone in the tower, by its patches."""
        engine = self.engine(modalities=("image",), graphs=True, **changes)
        family = family_for(self.folder)
        found = {}
        for side in self.sizes.sides:
            one = images(engine.options, family, side)[:1]
            encode = partial(engine._runner.media.encode, one)
            found[one[0].length * MERGED] = self.clock.best(encode)
        return found

    def busy_seconds(self, engine: Engine, batch: int) -> float:
        """Seconds of a step of decoding in which the card computes something."""
        self._fill(engine, batch, self.sizes.prompt, 3 * self.sizes.steps)
        for _ in range(4):
            engine.step()
        self.clock.settle()
        steps = self.sizes.steps // 2
        # the card's side alone: noting what the host does would slow the host
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            _steps(engine, steps)
            self.clock.settle()
        self._drain(engine)
        spans = sorted(
            (event.time_range.start, event.time_range.end)
            for event in profiler.events() or []
            if event.device_type.name == "CUDA"
        )
        return covered(spans) / 1e6 / steps

    def profiles(self, engine: Engine, batch: int) -> Iterator[tuple[str, list[Kernel]]]:
        """The kernels that take most of the time, of decoding and of one long prompt."""
        steps = self.sizes.steps // 2
        self._fill(engine, batch, self.sizes.prompt, 3 * self.sizes.steps)
        for _ in range(4):
            engine.step()
        yield f"decode, batch {batch}", self._profile(partial(_steps, engine, steps))
        self._drain(engine)

        def prefill() -> None:
            self._add(engine, self.sizes.prefill, 1)
            while engine.has_work():
                engine.step()

        prefill()
        yield f"prefill, {self.sizes.prefill} tokens", self._profile(prefill)

    def host(self, engine: Engine, batch: int) -> list[tuple[str, float]]:
        """Functions that take most of the host's time, and seconds of each in a step.

        Waiting for the device is among them, as `synchronize`. Noting them slows the host.
        """
        steps = self.sizes.steps // 2
        self._fill(engine, batch, self.sizes.prompt, 3 * self.sizes.steps)
        for _ in range(4):
            engine.step()
        profiler = cProfile.Profile()
        profiler.runcall(_steps, engine, steps)
        self._drain(engine)
        found = []
        for (file, line, name), (_, _, own, _, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
            place = f"{Path(file).name}:{line} " if line else ""
            found.append((f"{place}{name}"[:90], own / steps))
        return sorted(found, key=lambda one: -one[1])[:12]

    def _profile(self, work: Callable[[], None]) -> list[Kernel]:
        self.clock.settle()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            work()
            self.clock.settle()
        on_card = self.platform.device.type == "cuda"

        def taken(event: Any) -> float:
            spent: float = event.self_device_time_total if on_card else event.self_cpu_time_total
            return spent

        found = [
            event
            for event in profiler.key_averages()
            if not on_card or event.device_type.name == "CUDA"
        ]
        total = sum(map(taken, found)) or math.nan
        found.sort(key=taken, reverse=True)
        return [
            Kernel(event.key[:90], taken(event) / total, taken(event) / event.count, event.count)
            for event in found[:12]
        ]

    def memory(self) -> Iterator[tuple[str, str]]:
        """What was measured before serving, and what is taken after as much work as there may be.

        Of a card; on the CPU nothing is measured.
        """
        if not isinstance(self.platform, Measured):
            return
        lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
        logger = logging.getLogger("engine.running.preparation")
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        total = self.platform.total_bytes()
        try:
            engine = self.engine(measured=True, memory_fraction=0.9, modalities=("image",))
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
        for line in lines:
            yield "measured", line
        taken = 1 - self.platform.free_bytes() / total
        yield "card taken when ready, of 90%", f"{taken:.1%}"
        batch = max(self.sizes.batches)
        self.decode_seconds(engine, batch)
        taken = 1 - torch.cuda.mem_get_info(self.platform.device)[0] / total
        yield f"card taken after {batch} prompts and answers", f"{taken:.1%}"

    def transformers_generate(self, batch: int) -> float:
        """Tokens a second of transformers' own `generate`, greedy, text only."""
        model = random_text_model(self.shape, DTYPE, self.platform.device)
        tokens = self.sizes.peer_tokens

        def once() -> None:
            ids = torch.tensor(self._prompts(batch), device=self.platform.device)
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )

        return batch * tokens / self.clock.best(once, rounds=1)

    def transformers_batching(self, batch: int) -> float:
        """Tokens a second of transformers' continuous batching, greedy, text only, warmed up."""
        model = random_text_model(self.shape, DTYPE, self.platform.device)
        model.set_attn_implementation("paged|sdpa")
        tokens = self.sizes.peer_tokens
        wanted = transformers.GenerationConfig(
            max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        )

        def once() -> None:
            answers = model.generate_batch(
                inputs=self._prompts(batch), generation_config=wanted, persistent_manager=True
            )
            made = sum(len(answer.generated_tokens) for answer in answers.values())
            if made != batch * tokens:
                raise RuntimeError(f"{made} tokens came, {batch * tokens} were asked for")

        return batch * tokens / self.clock.best(once, rounds=1)

    def serving_rate(self, engine: Engine, batch: int) -> float:
        """Tokens a second of the same work as the peers': prompts in, a few tokens out."""
        tokens = self.sizes.peer_tokens

        def once() -> None:
            self._fill(engine, batch, self.sizes.prompt, tokens)
            while engine.has_work():
                engine.step()

        return batch * tokens / self.clock.best(once, rounds=1)

    def collect(self) -> None:
        """Have the memory of models that are gone back before the next one comes."""
        gc.collect()
        if self.platform.device.type == "cuda":
            torch.cuda.empty_cache()

    def _fill(self, engine: Engine, batch: int, prompt: int, tokens: int) -> None:
        """Add requests; returns when each has had its first token."""
        for _ in range(batch):
            self._add(engine, prompt, tokens)
        begun: set[str] = set()
        while len(begun) < batch:
            begun |= {output.request_id for output in engine.step()}

    def _add(self, engine: Engine, prompt: int, tokens: int) -> None:
        wanted = SamplingOptions(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        ids = torch.randint(20, 500, (prompt,), generator=self._random)
        engine.add(Request(f"r{next(self._requests)}", ids.tolist(), wanted))

    def _prompts(self, batch: int) -> list[list[int]]:
        size = (batch, self.sizes.prompt)
        return torch.randint(20, 500, size, generator=self._random).tolist()

    def _drain(self, engine: Engine) -> None:
        for name in list(engine._sequences):
            engine.abort(name)
        while engine.has_work():
            engine.step()


def _steps(engine: Engine, count: int) -> None:
    for _ in range(count):
        engine.step()


def pays_from(seconds: dict[int, float], others: dict[int, float]) -> int | None:
    """The least length from which on the first are always less than the others; None if never."""
    least = None
    for length in sorted(seconds, reverse=True):
        if seconds[length] >= others[length]:
            break
        least = length
    return least


def covered(spans: list[tuple[float, float]]) -> float:
    """How much time ordered spans cover, what several cover counted once."""
    busy, reached = 0.0, float("-inf")
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy
