"""Whether a container's own structure says that media are missing at the end of its bytes.

Counts and durations of headers are no evidence: recorders drop frames, clips are trimmed, streams
are written before their length is known. That an element full of media runs beyond the end is.
"""

from __future__ import annotations

from collections.abc import Iterator

UNKNOWN = 0x7FFF0000  # from here on a size of RIFF says that it was not known when written
FRAGMENT, MEDIA = b"moof", b"mdat"
MOVIE_BOXES = (b"ftyp", b"moov", b"styp", b"wide", b"free", b"skip", MEDIA, FRAGMENT)
EBML = b"\x1aE\xdf\xa3"
SEGMENT, CLUSTER = 0x18538067, 0x1F43B675  # RFC 9559
ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
GIF_TRAILER, GIF_EXTENSION, GIF_IMAGE = 0x3B, 0x21, 0x2C  # GIF 89a, appendix A
FLV_TAG, FLV_BETWEEN = 11, 4


def is_cut_off(data: bytes) -> bool:
    """Of MP4 in fragments, Matroska, AVI, ASF, FLV and GIF; False where nothing tells."""
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return _cut_avi(data)
    if data[:4] == EBML:
        return _cut_matroska(data)
    if data[:16] == ASF:
        return _cut_asf(data)
    if data[:3] == b"FLV":
        return _cut_flv(data)
    if data[:4] == b"GIF8":
        return _cut_gif(data)
    return data[4:8] in MOVIE_BOXES and _cut_fragments(data)


def _cut_fragments(data: bytes) -> bool:
    """Whole files have a table of their samples, which is looked at where it was read."""
    place, fragments = 0, False
    while place + 8 <= len(data):
        size, name = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        header = 8
        if size == 1:
            size, header = int.from_bytes(data[place + 8 : place + 16], "big"), 16
        if not size:  # to the end
            return False
        fragments = fragments or name == FRAGMENT
        if size < header or place + size > len(data):
            return fragments and name in (FRAGMENT, MEDIA)
        place += size
    return fragments and place < len(data)


def _cut_avi(data: bytes) -> bool:
    """A file has its frames in lists within one RIFF chunk or several."""
    for name, kind, begin, size in _lists(data, 0):
        if name != b"RIFF" or kind not in (b"AVI ", b"AVIX"):
            continue
        for inner, inner_kind, place, length in _lists(data, begin + 4):
            if (inner, inner_kind) == (b"LIST", b"movi") and length < UNKNOWN:
                if place + length > len(data):
                    return True
                break
        if size >= UNKNOWN:
            return False
    return False


def _lists(data: bytes, place: int) -> Iterator[tuple[bytes, bytes, int, int]]:
    """Chunks: name, kind of a list, where the content begins, its declared size."""
    while place + 8 <= len(data):
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        yield name, data[place + 8 : place + 12], place + 8, size
        place += 8 + size + size % 2


def _cut_matroska(data: bytes) -> bool:
    place, name = 0, 0
    while name != SEGMENT:
        element = _element(data, place)
        if element is None:
            return False
        name, begin, size = element
        if name != SEGMENT:
            if size is None:
                return False
            place = begin + size
    declared, place, last = size, begin, 0
    while place < len(data):
        element = _element(data, place)
        if element is None:
            break
        last, inner, size = element
        if size is None:
            return False
        place = inner + size
    short = place > len(data) or (declared is not None and begin + declared > len(data))
    return short and last == CLUSTER


def _element(data: bytes, place: int) -> tuple[int, int, int | None] | None:
    """Identity, where the content begins and its size, which may be unknown."""
    if place >= len(data) or not data[place]:
        return None
    width = 9 - data[place].bit_length()
    name = int.from_bytes(data[place : place + width], "big")
    place += width
    if place >= len(data) or not data[place]:
        return None
    width = 9 - data[place].bit_length()
    if place + width > len(data):
        return None
    size = int.from_bytes(data[place : place + width], "big") & (1 << 7 * width) - 1
    return name, place + width, None if size == (1 << 7 * width) - 1 else size


def _cut_asf(data: bytes) -> bool:
    place = 0
    while place + 24 <= len(data):
        size = int.from_bytes(data[place + 16 : place + 24], "little")
        if size < 24:
            return False
        if data[place : place + 16] == ASF_DATA:
            return place + size > len(data)
        place += size
    return False


def _cut_flv(data: bytes) -> bool:
    place = int.from_bytes(data[5:9], "big") + FLV_BETWEEN
    while 9 < place + FLV_TAG <= len(data):
        place += FLV_TAG + int.from_bytes(data[place + 1 : place + 4], "big")
        if place > len(data):
            return True
        place += FLV_BETWEEN
    return False


def _cut_gif(data: bytes) -> bool:
    place = 13 + _colours(data[10:11])
    while place < len(data) and data[place] != GIF_TRAILER:
        if data[place] == GIF_EXTENSION:
            place += 2
        elif data[place] == GIF_IMAGE:
            place += 11 + _colours(data[place + 9 : place + 10])
        else:
            return False
        while place < len(data) and data[place]:  # blocks up to an empty one
            place += 1 + data[place]
        if place >= len(data):
            return True
        place += 1
    return False


def _colours(flags: bytes) -> int:
    """Bytes of the table that these flags tell of."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0
