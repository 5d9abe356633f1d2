"""Chunks of RIFF files: WAV, AVI and WebP (RIFF, 1991)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

UNKNOWN = 0x7FFF0000  # from here on a size says that it was not known when written
FIRST = 12  # where the chunks of a file begin

Order = Literal["little", "big"]


def chunks(
    data: bytes, place: int = FIRST, order: Order = "little"
) -> Iterator[tuple[bytes, int, int]]:
    """Name, where the content begins, and declared size, which may be more than there is."""
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], order)
        yield data[place : place + 4], place + 8, size
        place += 8 + size + size % 2
