"""Set-up of a process of the engine: signals, log lines, memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from importlib import import_module

from engine.device.log_lines import LogStyle, configure, join

PR_SET_PDEATHSIG = 1  # linux/prctl.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MAX_THRESHOLD = 1 << 30  # bytes


def set_up(style: LogStyle) -> None:
    """Leave stopping to the server, and log as it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides when to stop
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        end_with_parent(parent.pid)
    configure(style)
    import_module("transformers.utils.logging")  # brings a handler of its own
    join("transformers")


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
