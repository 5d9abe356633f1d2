"""A WAV file whose header tells the length that it has (RIFF, 1991; RF64 of EBU Tech 3306).

Whoever writes to a pipe does not know it before: 0, or as much as fits the field. And many are
wrong. Only what promises more everywhere than is there has lost something.
"""

from __future__ import annotations

from appliance.media.riff import UNKNOWN, Order, chunks

FORMS = (b"RIFF", b"RIFX", b"RF64")
SIZES, DATA = b"ds64", b"data"


def is_wave(data: bytes) -> bool:
    return data[:4] in FORMS and data[8:12] == b"WAVE"


def measured(data: bytes) -> bytes | None:
    """A WAV file with true sizes; None for one that is cut off."""
    order: Order = "big" if data[:4] == b"RIFX" else "little"
    whole = int.from_bytes(data[4:8], order)
    declared64: int | None = None
    for name, begin, size in chunks(data, order=order):
        if name == SIZES and data[:4] == b"RF64":
            whole = int.from_bytes(data[begin : begin + 8], "little")
            declared64 = int.from_bytes(data[begin + 8 : begin + 16], "little")
        if name != DATA:
            continue
        there = len(data) - begin
        if declared64 is not None and size == 0xFFFFFFFF:
            size = declared64
        if 0 < size <= there or (not size and _are_chunks(data, order, begin)):
            return data
        complete = begin < 8 + whole <= len(data) + 1  # some writers forget to fill up
        with_header = size <= len(data)  # some count it in
        if not (size == 0 or size >= UNKNOWN or complete or with_header):
            return None
        return _rewritten(data, order, begin, there)
    return data


def _are_chunks(data: bytes, order: Order, place: int) -> bool:
    """Whether nothing but further chunks follows: then a size of nothing is meant so."""
    for name, begin, size in chunks(data, place, order):
        if not (name.isascii() and name.decode().isprintable()):
            return False
        place = begin + size + size % 2
    return len(data) <= place <= len(data) + 1


def _rewritten(data: bytes, order: Order, begin: int, size: int) -> bytes:
    head = bytearray(data[:begin])
    if data[:4] == b"RF64":  # whose sizes stand elsewhere: those of a plain file will do
        head[:4] = b"RIFF"
        head[12:16] = b"JUNK"
    head[4:8] = min(len(data) - 8, UNKNOWN).to_bytes(4, order)
    head[begin - 4 : begin] = min(size, UNKNOWN).to_bytes(4, order)
    return bytes(head) + data[begin:]
