"""Set-up of a process of the engine: signals, log lines, memory."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path

from engine.device.log_lines import LogStyle, configure, join

PR_SET_PDEATHSIG = 1  # linux/prctl.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MAX_THRESHOLD = 1 << 30  # bytes
MADV_DONTNEED = 4  # linux/mman.h
WEIGHTS = re.compile(r"([0-9a-f]+)-([0-9a-f]+) .*\.safetensors")
SMAPS = Path("/proc/self/smaps")
STOPPING = (signal.SIGTERM, signal.SIGINT)


def set_up(style: LogStyle) -> None:
    """Leave stopping to the server, and log as it does."""
    leave_stopping()
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        end_with_parent(parent.pid)
    configure(style)
    import_module("transformers.utils.logging")  # brings a handler of its own
    join("transformers")


def leave_stopping() -> None:
    """Ignore what asks a whole group of processes to stop: the server decides, and ends this one.

    `timeout`, systemd and terminals send to the group, and answers are still being written.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # see `held_back`


@contextmanager
def held_back() -> Iterator[None]:
    """Have processes that are started meanwhile be asked to stop only once they ignore it."""
    resource_tracker.ensure_running()  # else started on the way, which would take the mask off
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start(process: BaseProcess) -> None:
    """Start a process that calls `set_up`, and have it end with this one."""
    atexit.register(process.kill)  # multiprocessing itself would ask it to stop, and wait
    with held_back():
        process.start()


def end_with_parent(parent: int) -> None:
    """Have this process killed as soon as `parent`, which made it, is gone, whatever it is doing.

    A pipe that ends is noticed between steps only. Where there is no such call, that has to do.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def unchanged_mappings(smaps: str) -> Iterator[tuple[int, int]]:
    """Start and end of each mapping of weights that nothing was written to (proc_pid_smaps(5)).

    Most was read once. What is used again, as a row of a table, comes from the system's cache.
    """
    place: tuple[int, int] | None = None
    for line in smaps.splitlines():
        if found := WEIGHTS.fullmatch(line):
            place = int(found[1], 16), int(found[2], 16)
        elif place is not None and line.startswith("Anonymous:"):
            if line.split()[1] == "0":
                yield place
            place = None


def keep_memory() -> None:
    """Give back what loading left; from here on have glibc keep what a step frees for the next."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "madvise") and SMAPS.exists():
        for start, end in unchanged_mappings(SMAPS.read_text()):
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)
    if hasattr(libc, "mallopt"):
        libc.malloc_trim(0)
        libc.mallopt(M_MMAP_THRESHOLD, MAX_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, MAX_THRESHOLD)
