"""What rendering a chat template may take: steps, time, memory, characters.

A thread cannot be stopped from outside, so a template is stopped from inside: what it does that
could take long or much asks the meter of the render that runs in this thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

CLOCK_STEPS = 64  # steps from one look at the clock to the next
LARGEST = 16 << 20  # bytes of one text or list
INT_BITS = 4096
PIECE_BYTES = 64  # what a piece of the output takes beside its text


@dataclass(slots=True, frozen=True)
class Bounds:
    """`seconds` are of the thread's own time, so that a busy machine refuses nothing."""

    seconds: float
    steps: int
    bytes: int
    characters: int  # of the rendered text
    source: int = 128 << 10  # characters of the template, of which published ones have up to 30,000
    code: int = 2 << 20  # characters of Python that it becomes


FULL = Bounds(seconds=1.0, steps=2_000_000, bytes=128 << 20, characters=4 << 20)
PROBE = Bounds(seconds=0.2, steps=200_000, bytes=16 << 20, characters=1 << 20)
# Python compiles with all other threads held up, 30 to 40 ms for as much as this.
OF_REQUEST = Bounds(
    seconds=1.0,
    steps=2_000_000,
    bytes=128 << 20,
    characters=4 << 20,
    source=32 << 10,
    code=160 << 10,
)
BRIEF = Bounds(seconds=0.02, steps=20_000, bytes=2 << 20, characters=32 << 10)


class Overrun(TemplateError):
    """The template takes more than it may; `what` is what of."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Meter:
    """What is left for one render."""

    __slots__ = ("_bytes", "_deadline", "_steps", "_until_clock")

    def __init__(self, bounds: Bounds) -> None:
        self._steps = bounds.steps
        self._bytes = bounds.bytes
        self._deadline = time.thread_time() + bounds.seconds
        self._until_clock = CLOCK_STEPS

    def spend(self, count: int) -> None:
        """One step and so many bytes: both of the others in one, for what is done most."""
        self._steps -= 1
        self._bytes -= count
        self._until_clock -= 1
        if self._until_clock <= 0 or self._steps < 0 or self._bytes < 0 or count > LARGEST:
            self.step(0)
            self.take(0 if count <= LARGEST else count)

    def step(self, count: int = 1) -> None:
        """Raise Overrun where so many steps more are too many, or the time is over."""
        self._steps -= count
        self._until_clock -= count
        if self._until_clock <= 0:
            self._until_clock = CLOCK_STEPS
            if time.thread_time() > self._deadline:
                raise Overrun("time")
        if self._steps < 0:
            raise Overrun("steps")

    def take(self, count: int) -> None:
        """Raise Overrun where so many bytes more are too many; called before they are there."""
        self._bytes -= count
        if count > LARGEST or self._bytes < 0:
            raise Overrun("memory")

    def measure(self, value: Any) -> int:
        """Bytes of `value` as text, however deep it nests and however often it holds the same."""
        total, waiting = 0, [value]
        while waiting:
            one = waiting.pop()
            total += size(one)
            if isinstance(one, dict):
                self.step(1 + 2 * len(one))
                waiting += one.keys()
                waiting += one.values()
            elif isinstance(one, list | tuple | set | frozenset):
                self.step(1 + len(one))
                waiting += one
            if total > LARGEST:
                raise Overrun("memory")
        return total


class _Rendering(threading.local):
    meter: Meter | None = None


_rendering = _Rendering()


@contextmanager
def metered(bounds: Bounds) -> Iterator[None]:
    """Everything that this thread renders meanwhile shares these bounds."""
    before, _rendering.meter = _rendering.meter, Meter(bounds)
    try:
        yield
    finally:
        _rendering.meter = before


def meter() -> Meter:
    """The meter of the render that runs in this thread; outside of one, a new one each time."""
    return _rendering.meter or Meter(FULL)


def size(value: Any) -> int:
    """Bytes that one value takes by itself, about."""
    if isinstance(value, str):
        return len(value) if value.isascii() else 4 * len(value)
    if isinstance(value, list | tuple | dict | set | frozenset):
        return 8 * len(value)
    if isinstance(value, int):
        return 8 + value.bit_length() // 3
    return 32
