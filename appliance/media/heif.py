"""HEIF for Pillow, by the plugin pillow-heif, in processes that may have no threads.

libheif has libde265 start a thread for every picture, which a media worker is refused, and offers
no way to do without that reaches through the plugin. Decoding needs no thread: the function that
starts it is made to do nothing, in this process's own copy of the library's code.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
from contextlib import suppress
from importlib import import_module
from pathlib import Path

STARTING = "de265_start_worker_threads"  # returns DE265_OK, which is 0
# what may have to stand first in a function (CET, BTI), and code that returns 0
ENTRIES = {"x86_64": b"\xf3\x0f\x1e\xfa", "aarch64": b"\x5f\x24\x03\xd5"}
NOTHING = {
    "x86_64": b"\x31\xc0\xc3",  # xor eax, eax; ret
    "aarch64": b"\x00\x00\x80\x52\xc0\x03\x5f\xd6",  # mov w0, #0; ret
}
NO_THREADS = 0  # of libheif's own, which decodes tiles at once


def register() -> bool:
    """Have Pillow read HEIF; False where it cannot be read here."""
    try:
        plugin = import_module("pillow_heif")
        plugin.libheif_info()  # loads the libraries
    except ImportError:
        return False
    if not _without_threads():
        return False
    plugin.register_heif_opener(
        decode_threads=NO_THREADS, thumbnails=False, depth_images=False, aux_images=False
    )
    return True


def _without_threads() -> bool:
    machine = platform.machine()
    path = _loaded("libde265")
    if machine not in NOTHING or path is None:
        return False
    code = ENTRIES[machine] + NOTHING[machine]
    with suppress(OSError, AttributeError):  # no such function; a kernel that lets none be changed
        address = ctypes.cast(getattr(ctypes.CDLL(path), STARTING), ctypes.c_void_p).value
        assert address is not None
        start = address - address % mmap.PAGESIZE
        size = address + len(code) - start
        # never both at once, which some kernels refuse; and becoming code empties arm64's caches
        _protect(start, size, mmap.PROT_READ | mmap.PROT_WRITE)
        ctypes.memmove(address, code, len(code))
        _protect(start, size, mmap.PROT_READ | mmap.PROT_EXEC)
        return True
    return False


def _loaded(name: str) -> str | None:
    """Path of a library that this process has loaded."""
    with suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            if f"/{name}" in line:
                return line.split(maxsplit=5)[5]
    return None


def _protect(start: int, size: int, how: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(size), how):
        raise OSError(ctypes.get_errno(), "the kernel lets no code be changed")
