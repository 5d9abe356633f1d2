"""A server under measurement: started, waited for, weighed, and ended with all its children."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench.load import LoadError, request
from engine.device.process_setup import end_with_parent

GIB = float(1 << 30)


@dataclass(slots=True, frozen=True)
class ServerCommand:
    """How a server is started, and the path that answers 200 once it is ready."""

    name: str
    arguments: list[str]
    ready_path: str
    port: int
    environment: dict[str, str] = field(default_factory=dict)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """Use as a context manager: leaving it ends every process that was started, error or not.

    Memory is the sum of PSS (a page shared by n processes counts 1/n in each) over the process and
    its descendants.
    """

    host = "127.0.0.1"

    def __init__(self, command: ServerCommand, log: Path) -> None:
        self.command = command
        self.log = log
        self.peak_bytes = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._seen: dict[int, str] = {}  # every process of the tree and when it started

    def __enter__(self) -> ServerProcess:
        with self.log.open("wb") as out:
            self._started = time.perf_counter()
            self._process = subprocess.Popen(
                self.command.arguments,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.command.environment},
                start_new_session=True,
                preexec_fn=partial(end_with_parent, os.getpid()),
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def wait_ready(self, timeout: float) -> float:
        """Seconds from start to ready; raises LoadError when it ends or takes longer."""
        assert self._process is not None
        weighed = 0.0
        while True:
            passed = time.perf_counter() - self._started
            if self._process.poll() is not None:
                raise LoadError(f"{self.command.name} ended while starting:\n{self._log_end()}")
            if passed > timeout:
                raise LoadError(f"{self.command.name}: not ready in {timeout:.0f} s")
            if passed - weighed > 2.0:
                weighed = passed
                self.weigh()
            try:
                await request(self.host, self.command.port, "GET", self.command.ready_path)
            except (OSError, EOFError, LoadError):
                await asyncio.sleep(0.1)
                continue
            return time.perf_counter() - self._started

    def weigh(self) -> int:
        """Memory of the process tree now, in bytes; also raises `peak_bytes`."""
        total = sum(_pss(pid) for pid in self._tree())
        self.peak_bytes = max(self.peak_bytes, total)
        return total

    def cpu_seconds(self) -> float:
        """CPU time that the processes alive now have taken so far; tells work from waiting."""
        return sum(_cpu_seconds(pid) for pid in self._tree())

    def stop(self) -> None:
        """End the tree: ask the parent, wait, then kill whatever is left of all processes seen."""
        if self._process is None:
            return
        self._tree()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pid, started in self._seen.items():
            if (stat := _stat(pid)) is not None and stat[1] == started:
                os.kill(pid, signal.SIGKILL)
        self._process = None

    def _tree(self) -> list[int]:
        assert self._process is not None
        stats = {int(p.name): _stat(int(p.name)) for p in Path("/proc").glob("[0-9]*")}
        children: dict[int, list[int]] = {}
        for pid, stat in stats.items():
            if stat is not None:
                children.setdefault(stat[0], []).append(pid)
        tree, queue = [], [self._process.pid]
        while queue:
            pid = queue.pop()
            queue += children.get(pid, [])
            if (stat := stats.get(pid)) is not None:
                tree.append(pid)
                self._seen[pid] = stat[1]
        return tree

    def _log_end(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


def _stat(pid: int) -> tuple[int, str] | None:
    """Parent and start time of a process (proc(5), /proc/pid/stat fields 4 and 22)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[1]), fields[19]


def _cpu_seconds(pid: int) -> float:
    """User and system time (proc(5), /proc/pid/stat fields 14 and 15)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((x.split(":")[1].strip() for x in info.splitlines() if "model name" in x), "?")
    flags = next((x.split(":")[1].split() for x in info.splitlines() if x.startswith("flags")), [])
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [flag for flag in wanted if flag in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "load_before": os.getloadavg()[0],
    }
