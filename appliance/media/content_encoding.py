"""Undoing gzip while counting: no more is inflated than may be kept."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Protocol

PIECE = 1 << 20
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS  # tell by the header


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
    """gzip (RFC 1952, any number of members) or zlib (RFC 1950), as HTTP's gzip and deflate."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(GZIP_OR_ZLIB)
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Raises ValueError on damaged data."""
        while data:
            if self._member.eof:
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


def decoder_for(encoding: str) -> Decoder:
    """A decoder for a Content-Encoding header. Raises ValueError for an unknown one."""
    match encoding.strip().lower():
        case "" | "identity":
            return Identity()
        case "gzip" | "x-gzip" | "deflate":
            return Inflate()
    raise ValueError("unknown content encoding")
