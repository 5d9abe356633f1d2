"""A PNG file without what says nothing about its pixels (PNG specification, third edition).

Decoders fail a picture for a text that is too long or a checksum beside it that is wrong, and text
can be a bomb. Browsers drop what they may drop, and so do we, before a decoder sees it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CRITICAL_BIT = 0x20  # of a chunk's first letter, where it is not set
MOVING = (b"acTL", b"fcTL", b"fdAT")
WORDS = (b"tEXt", b"zTXt", b"iTXt")
TURNING = (b"XML:com.adobe.xmp", b"Raw profile type exif")  # keywords
MOST_BESIDE = 1 << 16  # bytes of words that may tell how a picture is to be turned
NEAREST_DEPTHS = {(0, 2): 85, (0, 4): 17}  # colour type and depth: what decoders multiply by

Chunk = tuple[bytes, memoryview, bool]  # name, content, whether its checksum is right


def without_metadata(data: bytes, moving: bool = False) -> bytes:
    """`data` with what matters to its pixels: critical chunks, transparency, orientation.

    With `moving` what makes an animation of it instead of its orientation. A transparent colour is
    brought to the range of values that Pillow decodes to. What follows a chunk that is cut off
    stays as it is, and what is no PNG too.
    """
    if not data.startswith(SIGNATURE):
        return data
    head: list[bytes | memoryview] = []
    beside: list[bytes | memoryview] = []
    rest: list[bytes | memoryview] = []
    form = (-1, -1)  # colour type, depth
    for name, whole, sound in _chunks(data):
        content = whole[8:-4]
        if name == b"IHDR" and len(content) == 13:
            form = content[9], content[8]
        if not name:
            rest.append(whole)
        elif name == b"tRNS" and sound and not moving:
            head.append(_transparency(content, form))
        elif sound and not moving and _tells_orientation(name, content):
            beside.append(whole)
        elif not name[0] & CRITICAL_BIT or (moving and sound and name in (*MOVING, b"tRNS")):
            # decoders look no further than the pixels: what stands behind them would be lost
            (rest if rest or name in (b"IDAT", *MOVING) else head).append(whole)
    return b"".join([SIGNATURE, *head, *beside, *rest])


def is_animated(data: bytes | bytearray) -> bool:
    """Whether a PNG file says before its pixels that it moves."""
    for name, _, _ in _chunks(data):
        if name in (b"acTL", b"IDAT"):
            return name == b"acTL"
    return False


def _chunks(data: bytes | bytearray) -> Iterator[Chunk]:
    """Every chunk up to the end; one that is cut off, or no chunk, without a name."""
    view, place = memoryview(data), len(SIGNATURE)
    while place < len(data):
        name = bytes(data[place + 4 : place + 8])
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if len(name) < 4 or not name.isalpha() or end > len(data):
            yield b"", view[place:], False
            return
        beside = name[0] & CRITICAL_BIT
        checksum = int.from_bytes(data[end - 4 : end], "big")
        sound = not beside or zlib.crc32(view[place + 4 : end - 4]) == checksum
        yield name, view[place:end], sound
        if name == b"IEND":
            return
        place = end


def _transparency(content: memoryview, form: tuple[int, int]) -> bytes:
    colour, depth = form
    values = bytes(content)
    if form in NEAREST_DEPTHS and len(values) >= 2:
        value = int.from_bytes(values[:2], "big") & (1 << depth) - 1
        values = struct.pack(">H", value * NEAREST_DEPTHS[form])
    elif colour == 2 and depth == 16 and len(values) >= 6:
        values = struct.pack(">3H", values[0], values[2], values[4])
    return chunk(b"tRNS", values)


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk with its length and checksum."""
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def _tells_orientation(name: bytes, content: memoryview) -> bool:
    if name == b"eXIf":
        return True
    if name not in WORDS or len(content) > MOST_BESIDE:
        return False
    keyword, _, words = bytes(content).partition(b"\0")
    if keyword not in TURNING:
        return False
    if name == b"iTXt":
        compressed = words[:1] == b"\1"
        words = words[2:].split(b"\0", 2)[-1]
    else:
        compressed, words = name == b"zTXt", words[1:]
    return not compressed or _is_short(words)


def _is_short(compressed: bytes) -> bool:
    inflate = zlib.decompressobj()
    try:
        return len(inflate.decompress(compressed, MOST_BESIDE + 1)) <= MOST_BESIDE
    except zlib.error:
        return False
