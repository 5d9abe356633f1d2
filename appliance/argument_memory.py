"""The bytes of this process's own command line, which every user of the machine can read."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from appliance.config.masking import masked_arguments

# /proc/self/stat, proc_pid_stat(5): where the memory of the arguments begins and ends
ARG_START, ARG_END = 48, 49


def overwrite_secrets() -> None:
    """Overwrite plain keys in the arguments of this process, as far as the system lets it.

    What Python made of them before stays as it is in the hands of who took it; `sys.argv`, which
    multiprocessing sends to processes that it spawns, is overwritten too. An argument keeps its
    room, so its length can still be seen.
    """
    given = sys.argv[1:]
    shown = masked_arguments(given)
    if shown == given:
        return
    sys.argv[1:] = shown
    before = len(sys.orig_argv) - len(given)
    sys.orig_argv[before:] = shown
    _overwrite([os.fsencode(text) for text in given], [os.fsencode(text) for text in shown])


def _overwrite(given: Sequence[bytes], shown: Sequence[bytes]) -> None:
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return
    start, end = (int(fields[number - 3]) for number in (ARG_START, ARG_END))
    whole = b"".join(text + b"\0" for text in given)
    place = end - len(whole)
    if start <= 0 or place < start or ctypes.string_at(place, len(whole)) != whole:
        return
    for text, instead in zip(given, shown, strict=True):
        if instead != text:
            ctypes.memmove(place, instead[: len(text)].ljust(len(text), b"\0"), len(text))
        place += len(text) + 1
