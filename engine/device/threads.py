"""How many threads a step computes with: those configured while the cores are free, else one.

Threads that wait for each other at every operation lose far more than the core they share: beside
one busy process, a decode step on two cores took 230 ms with two threads and 66 with one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

WINDOW = 0.3  # seconds over which the share of the cores is taken
SHARE = 0.75  # of the wanted cores; below it the threads are waiting for a core
IDLE = 0.8  # of the missing cores; above it they are there again

STAT = Path("/proc/stat")


class ThreadGovernor:
    """Sets torch's threads between steps, by the cores that the last steps really had."""

    def __init__(self, threads: int, stat: Path = STAT) -> None:
        self.threads = threads
        self.current = threads
        self._stat = stat
        torch.set_num_threads(threads)
        self._wall = self._busy = 0.0
        self._since = time.monotonic()
        self._idle = idle_seconds(stat)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around one step."""
        if self.threads == 1:
            yield
            return
        wall, busy = time.monotonic(), time.process_time()
        yield
        now = time.monotonic()
        self.account(now - wall, time.process_time() - busy, now)

    def account(self, wall: float, busy: float, now: float) -> None:
        """Note seconds and CPU seconds of a step that ended `now`; choose for the next."""
        self._wall += wall
        self._busy += busy
        if now - self._since < WINDOW or self._wall < WINDOW / 2:
            return
        idle = idle_seconds(self._stat)
        free = (idle - self._idle) / (now - self._since)
        if self.current > 1:
            wanted = 1 if self._busy < SHARE * self.current * self._wall else self.threads
        else:
            wanted = self.threads if free >= IDLE * (self.threads - 1) else 1
        if wanted != self.current:
            self.current = wanted
            torch.set_num_threads(wanted)
        self._wall = self._busy = 0.0
        self._since, self._idle = now, idle


def idle_seconds(stat: Path) -> float:
    """Seconds that the machine's cores have been idle, all together (proc(5)); 0 if unknown."""
    try:
        fields = stat.read_text().split("\n", 1)[0].split()
    except OSError:
        return 0.0
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")
