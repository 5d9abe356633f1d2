"""Undoing gzip while counting: no more is inflated than may be kept."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Protocol

PIECE = 1 << 20
MOST_MEMBERS = 10_000  # of gzip, each of which takes time even where it holds nothing
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS  # tell by the header
BARE = -zlib.MAX_WBITS  # deflate without a wrapper
ZLIB_METHOD, ZLIB_CHECK = 8, 31  # RFC 1950, 2.2


class Decoder(Protocol):
    """Bytes of an encoded body to bytes of its content, in pieces of at most a MiB or as given."""

    def feed(self, data: bytes) -> Iterator[bytes]: ...

    def finish(self) -> None:
        """Raises ValueError if the content is not at its end."""


class Identity:
    """Nothing to undo."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> None:
        return None


class Inflate:
    """gzip (RFC 1952, any number of members) or zlib (RFC 1950), as HTTP's gzip and deflate.

    With `bare` also deflate alone (RFC 1951), which hosts send as "deflate" (RFC 9110, 8.4.1.2).
    """

    def __init__(self, bare: bool = False) -> None:
        self._member = zlib.decompressobj(GZIP_OR_ZLIB)
        self._begun = False
        self._members = 1
        self._untold = b"" if bare else None  # the first bytes, until they tell the wrapper

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Raises ValueError on damaged data."""
        if self._untold is not None:
            data = self._untold + data
            if len(data) < 2:
                self._untold, self._begun = data, bool(data)
                return
            self._untold = None
            if not _is_wrapped(data):
                self._member = zlib.decompressobj(BARE)
        while data:
            if self._member.eof:
                self._members += 1
                if self._members > MOST_MEMBERS:
                    raise ValueError("too many members")
                self._member = zlib.decompressobj(GZIP_OR_ZLIB)
            self._begun = True
            try:
                piece = self._member.decompress(data, PIECE)
            except zlib.error:
                raise ValueError("damaged") from None
            data = self._member.unconsumed_tail or self._member.unused_data
            if piece:
                yield piece

    def finish(self) -> None:
        if self._begun and not self._member.eof:
            raise ValueError("truncated")


def _is_wrapped(data: bytes) -> bool:
    """Whether zlib's header is there, or gzip's, which some hosts send as deflate too.

    No compressor makes bare deflate that begins so: it would be a stored block whose padding is
    not zero, or a block of a reserved type.
    """
    zlib_header = data[0] & 15 == ZLIB_METHOD and (data[0] << 8 | data[1]) % ZLIB_CHECK == 0
    return zlib_header or data[:2] == b"\x1f\x8b"


def decoder_for(encoding: str) -> Decoder:
    """A decoder for a Content-Encoding header.

    A coding that nobody knows counts as none, as in browsers: stores replay what was once said to
    them (`aws-chunked`, `utf-8`), and whoever decodes the content finds out. Raises ValueError for
    more than one that would have to be undone.
    """
    codings = [coding.strip().lower() for coding in encoding.split(",")]
    known = [coding for coding in codings if coding in ("gzip", "x-gzip", "deflate")]
    if len(known) > 1:
        raise ValueError("encoded more than once")
    return Inflate(bare=known[0] == "deflate") if known else Identity()
