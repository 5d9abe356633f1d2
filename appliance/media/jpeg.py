"""A JPEG file without what says nothing about its pixels, and whether its end is there (T.81)."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

START, END = b"\xff\xd8", b"\xff\xd9"
COMMENT, SCAN = 0xFE, 0xDA
APPLICATION = range(0xE0, 0xF0)
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # what begins a picture, T.81 table B.1
ALONE = (0x01, *range(0xD0, 0xD8))  # markers without a length
KEPT = {  # how segments begin that tell colours or orientation, and how long they are at least
    0xE0: ((b"JFIF\0", 14),),
    0xE1: ((b"Exif\0\0", 14), (b"http://ns.adobe.com/xap/1.0/\0", 29)),
    0xEE: ((b"Adobe", 12),),
}
NEXT_MARKER = re.compile(rb"\xff[\x02-\xcf\xda-\xfe]")
COEFFICIENTS = 64
MOST_SEGMENTS = 20_000  # more of them are left to the decoder
PADDING = b"\0\xff"  # what storage is filled with
FILLERS = tuple(  # whatever a decoder would read after the end of the data
    bytes(random.Random(seed).choices(range(255), k=512))  # noqa: S311 - the same every time
    for seed in range(2)
)

Segment = tuple[int, int, int]  # marker, where it begins, where the next one does


@dataclass(slots=True, frozen=True)
class Jpeg:
    """`data` is what a decoder gets.

    Where the marker that ends the file is missing, `others` are the same file with other bytes
    after what is there: if all rows are there, all decode to the same pixels.
    """

    data: bytes
    others: tuple[bytes, ...] = ()


def without_metadata(data: bytes) -> Jpeg:
    """Segments that only describe a picture are dropped, and its missing end is made up for."""
    kept, first_scan = [START], len(data)
    for marker, begin, end in _segments(data):
        if marker == SCAN:
            first_scan = begin
        elif not _is_beside(marker, data[begin + 4 : end]):
            kept.append(data[begin:end])
    head, pixels = b"".join(kept), data[first_scan:]
    if pixels.rfind(END) >= 0 or not pixels:
        return Jpeg(head + pixels)
    pixels = pixels.rstrip(PADDING)
    if not _is_refined(head[len(START) :], pixels):
        return Jpeg(head + pixels)
    others = tuple(head + pixels + filler + END for filler in FILLERS)
    return Jpeg(head + pixels + END, others)


def _segments(data: bytes) -> Iterator[Segment]:
    """Those before the pixels, and SCAN for all that follows; what is no segment ends them too."""
    place = len(START)
    for _ in range(MOST_SEGMENTS):
        if place + 4 > len(data):
            break
        marker = data[place + 1]
        if data[place] != 0xFF or marker == SCAN:
            break
        if marker == 0xFF:  # fills
            place += 1
            continue
        size = 0 if marker in ALONE else int.from_bytes(data[place + 2 : place + 4], "big")
        end = place + 2 + size
        if end > len(data) or (marker not in ALONE and size < 2):
            break
        yield marker, place, end
        place = end
    yield SCAN, place, len(data)


def _is_beside(marker: int, content: bytes) -> bool:
    if marker in APPLICATION:
        return not any(
            content.startswith(beginning) and len(content) >= least
            for beginning, least in KEPT.get(marker, ())
        )
    return marker == COMMENT


def _is_refined(head: bytes, pixels: bytes) -> bool:
    """Whether a scan was begun for every bit of every coefficient (T.81, G.1.1)."""
    components: set[int] = set()
    whole = START + head
    for marker, begin, end in _segments(whole):
        content = whole[begin + 4 : end] if marker in FRAMES else b""
        if len(content) >= 6:
            components = {content[6 + 3 * n] for n in range(content[5]) if 6 + 3 * n < len(content)}
    missing = {(component, n) for component in components for n in range(COEFFICIENTS)}
    for scan in _scans(pixels):
        count = scan[0] if scan else 0
        if len(scan) < 4 + 2 * count:
            break
        first, last, bits = scan[1 + 2 * count : 4 + 2 * count]
        if not bits & 15:
            missing -= {
                (scan[1 + 2 * one], n) for one in range(count) for n in range(first, last + 1)
            }
    return bool(components) and not missing


def _scans(pixels: bytes) -> Iterator[bytes]:
    """What the header of each scan says."""
    place = 0
    while place + 5 <= len(pixels):
        marker, size = pixels[place + 1], int.from_bytes(pixels[place + 2 : place + 4], "big")
        if marker == SCAN:
            yield pixels[place + 4 : place + 2 + size]
        found = NEXT_MARKER.search(pixels, place + 2 + size)
        if found is None:
            return
        place = found.start()
