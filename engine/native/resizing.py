"""Pictures in another size by the C library, to the last bit as torch has them, antialiased."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.native.loading import FILE, library

CHANNELS = 3


def resized(
    pixels: NDArray[np.uint8], width: int, height: int, *, cubic: bool, file: Path = FILE
) -> NDArray[np.uint8]:
    """`pixels` `[rows, columns, 3]` as `[height, width, 3]`, by Keys' cubic or by triangles.

    Raises LibraryUnusable, MemoryError, and ValueError for what are no such pixels or no size.
    """
    if (
        pixels.dtype != np.uint8
        or pixels.ndim != 3
        or pixels.shape[2] != CHANNELS
        or not pixels.flags.c_contiguous
        or not pixels.size
    ):
        raise ValueError(
            f"pixels {list(pixels.shape)} of {pixels.dtype} in place of [rows, columns, 3] of "
            "uint8, without gaps"
        )
    if min(width, height) < 1:
        raise ValueError(f"no picture is of {width} x {height} pixels")
    found = np.empty((height, width, CHANNELS), np.uint8)
    rows, columns, _ = pixels.shape
    done = library(file).appliance_resize(
        pixels.ctypes.data, rows, columns, found.ctypes.data, height, width, cubic
    )
    if not done:
        raise MemoryError("no memory to resize a picture")
    return found
