"""A WebP file without what says nothing about its pixels (RFC 9649)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from appliance.media import riff

FEATURES, WORDS = b"VP8X", (b"EXIF", b"XMP ")  # which may tell how it is to be turned
PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
FRAME, FRAME_HEADER = b"ANMF", 16
PROFILE, EXIF, XMP = 0x20, 0x08, 0x04  # flags of VP8X


def is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def without_metadata(data: bytes) -> bytes:
    """The chunks that make the picture, and those that may tell how it is to be turned.

    Sizes are made to fit: decoders fail a whole picture whose file ends before its profile does. A
    file whose pixels are cut off stays as it is.
    """
    kept: list[tuple[bytes, bytes]] = []
    for name, content in _chunks(data):
        if content is None:
            if name in PIXELS:
                return data
        elif name in (FEATURES, *PIXELS, *WORDS):
            kept.append((name, content))
    names = {name for name, _ in kept}
    made = [b"WEBP"]
    for name, content in kept:
        if name == FEATURES and content:
            flags = content[0] & ~PROFILE
            flags &= ~(EXIF if b"EXIF" not in names else 0) & ~(XMP if b"XMP " not in names else 0)
            content = bytes([flags]) + content[1:]
        made += [name, struct.pack("<I", len(content)), content, b"\0" * (len(content) % 2)]
    body = b"".join(made)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    """Names and contents, None for one that is cut off."""
    for name, begin, size in riff.chunks(data):
        yield name, data[begin : begin + size] if begin + size <= len(data) else None


def durations(data: bytes, most: int) -> list[int]:
    """Milliseconds that each frame of an animation is shown, of one frame more than `most` at most.

    Empty for a file that does not move, and for one that is cut off within its frames.
    """
    made: list[int] = []
    last = b""
    for name, content in _chunks(data):
        last = name
        if name == FRAME:
            if content is None or len(content) < FRAME_HEADER:
                return []
            made.append(int.from_bytes(content[12:15], "little"))
            if len(made) > most:
                return made
    size = int.from_bytes(data[4:8], "little")
    return [] if last == FRAME and len(data) < size + 8 < riff.UNKNOWN else made
