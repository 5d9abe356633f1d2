"""Set-up of a process of the engine: signals, log lines, memory."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess

from engine.device.log_lines import LogStyle, configure, join

PR_SET_PDEATHSIG = 1  # linux/prctl.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MAX_THRESHOLD = 1 << 30  # bytes
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


def keep_memory() -> None:
    """Give back what loading left; from here on have glibc keep what a step frees for the next."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.malloc_trim(0)
        libc.mallopt(M_MMAP_THRESHOLD, MAX_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, MAX_THRESHOLD)
