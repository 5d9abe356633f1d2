"""Whether a container's own structure says that media are missing at the end of its bytes.

Counts and durations of headers are no evidence: recorders drop frames, clips are trimmed, streams
are written before their length is known. That an element full of media runs beyond the end is.
"""

from __future__ import annotations

from appliance.media.riff import UNKNOWN

FRAGMENT, MEDIA = b"moof", b"mdat"
MOVIE_BOXES = (b"ftyp", b"moov", b"styp", b"wide", b"free", b"skip", MEDIA, FRAGMENT)
EBML = b"\x1aE\xdf\xa3"
SEGMENT, CLUSTER = 0x18538067, 0x1F43B675  # RFC 9559
ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
GIF_EXTENSION, GIF_IMAGE = 0x21, 0x2C  # GIF 89a, appendix A
FLV_TAG, FLV_BETWEEN = 11, 4
MOST_ELEMENTS = 1_000_000  # that are looked at: small ones would take long, and tell nothing


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
    for _ in range(MOST_ELEMENTS):
        if place + 8 > len(data):
            return fragments and place < len(data)
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
    return False


def _cut_avi(data: bytes) -> bool:
    """A file has its frames in lists within one RIFF chunk or several."""
    inside = 12  # where lists stand; others of RIFF follow the first
    for _ in range(MOST_ELEMENTS):
        if inside + 8 > len(data):
            return False
        name, kind = data[inside : inside + 4], data[inside + 8 : inside + 12]
        size = int.from_bytes(data[inside + 4 : inside + 8], "little")
        if name == b"RIFF" and kind in (b"AVI ", b"AVIX"):
            inside += 12
            continue
        if (name, kind) == (b"LIST", b"movi"):
            if size >= UNKNOWN:
                return False
            if inside + 8 + size > len(data):
                return True
        inside += 8 + size + size % 2
    return False


def _cut_matroska(data: bytes) -> bool:
    """Elements of the first level that are not clusters may be missing."""
    place, last, declared = 0, 0, None
    for _ in range(MOST_ELEMENTS):
        element = _element(data, place)
        if element is None:
            break
        name, begin, size = element
        if name == SEGMENT:
            place, declared = begin, None if size is None else begin + size
            continue
        if size is None:
            return False
        place, last = begin + size, name
    short = place > len(data) or (declared is not None and declared > len(data))
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
    for _ in range(MOST_ELEMENTS):
        size = int.from_bytes(data[place + 16 : place + 24], "little")
        if size < 24 or place + 24 > len(data):
            return False
        if data[place : place + 16] == ASF_DATA:
            return place + size > len(data)
        place += size
    return False


def _cut_flv(data: bytes) -> bool:
    place = int.from_bytes(data[5:9], "big") + FLV_BETWEEN
    for _ in range(MOST_ELEMENTS):
        if not 9 < place + FLV_TAG <= len(data):
            return False
        place += FLV_TAG + int.from_bytes(data[place + 1 : place + 4], "big")
        if place > len(data):
            return True
        place += FLV_BETWEEN
    return False


def _cut_gif(data: bytes) -> bool:
    place, within = 13 + _colours(data[10:11]), False
    for _ in range(2 * MOST_ELEMENTS):
        if place >= len(data):
            return within
        if within:  # blocks up to an empty one
            within = data[place] > 0
            place += 1 + data[place]
        elif data[place] == GIF_EXTENSION:
            place, within = place + 2, True
        elif data[place] == GIF_IMAGE:
            place, within = place + 11 + _colours(data[place + 9 : place + 10]), True
        else:
            return False
    return False


def _colours(flags: bytes) -> int:
    """Bytes of the table that these flags tell of."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0
