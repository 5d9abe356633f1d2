"""Threads are given up beside a busy neighbour and taken back when it is gone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.device.threads import ThreadGovernor, idle_seconds


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Machine:
    """A `/proc/stat` and a clock that the test sets."""

    def __init__(self, folder: Path) -> None:
        self.stat = folder / "stat"
        self.idle = 0.0
        self.governor = ThreadGovernor(4, self.write())
        self.now = self.governor._since

    def write(self) -> Path:
        ticks = int(self.idle * os.sysconf("SC_CLK_TCK"))
        self.stat.write_text(f"cpu  1 2 3 {ticks} 0 0 0 0 0 0\ncpu0 0 0 0 0\n")
        return self.stat

    def steps(self, share: float, idle_cores: float) -> int:
        """Forty steps of 50 ms at this share of the threads' cores; how many threads it is now."""
        for _ in range(40):
            self.now += 0.05
            self.idle += 0.05 * idle_cores
            self.write()
            self.governor.account(0.05, 0.05 * share * self.governor.current, self.now)
        return torch.get_num_threads()


def test_threads_follow_the_cores(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.steps(share=0.95, idle_cores=0) == 4
    assert machine.steps(share=0.5, idle_cores=0) == 1
    assert machine.steps(share=1.0, idle_cores=1.0) == 1  # one core of the three that are missing
    assert machine.steps(share=1.0, idle_cores=2.9) == 4


def test_one_slow_step_changes_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.governor.account(0.05, 0.05, machine.now + 0.05)
    assert torch.get_num_threads() == 4


def test_idle_time_is_read_where_there_is_any(tmp_path: Path) -> None:
    assert idle_seconds(tmp_path / "none") == 0.0
    assert idle_seconds(Path("/proc/stat")) > 0
