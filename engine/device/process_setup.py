"""Set-up of a process of the engine: signals, log lines, memory."""

from __future__ import annotations

import ctypes
import logging
import signal

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MAX_THRESHOLD = 1 << 30  # bytes


def set_up(log_level: int) -> None:
    """Leave stopping to the server, and log as it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides when to stop
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.basicConfig(level=log_level, format="%(levelname)s %(name)s: %(message)s")


def keep_memory() -> None:
    """Give back what loading left; from here on have glibc keep what a step frees for the next."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.malloc_trim(0)
        libc.mallopt(M_MMAP_THRESHOLD, MAX_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, MAX_THRESHOLD)
