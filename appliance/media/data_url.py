"""The one reader of `data:` URLs, as the WHATWG Fetch standard has them processed.

https://fetch.spec.whatwg.org/#data-urls, with the blanks and the fragment that a parser of URLs
takes out before (https://url.spec.whatwg.org/#concept-basic-url-parser), and base64 as in
https://infra.spec.whatwg.org/#forgiving-base64-decode.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from appliance.errors import ApplianceError, bad_request, media_too_large
from appliance.media.signature import MODALITIES, modalities

TAKEN_OUT = b"\t\n\r"  # of a URL, wherever they stand
BLANKS = b"\t\n\f\r "
SCHEME = re.compile("[\\0- ]*" + "[\t\n\r]*".join("data:"), re.IGNORECASE)
BASE64 = re.compile(r"; *base64\Z", re.IGNORECASE)
FRAMES = ("video/jpeg", "video/png")
FRAME_LIST = b"data:video/frames;base64,"  # how a list of frames goes to the workers
LIST_SLACK = 1 << 16  # bytes of commas and padding in a list of frames
PIECE = 1 << 20  # what is decoded at once: others want to compute meanwhile


@dataclass(slots=True, frozen=True)
class DataUrl:
    """What a URL says of itself, and what it holds, not yet decoded."""

    type: str  # type/subtype in lower case; empty where it is not given
    is_base64: bool
    body: str = field(repr=False)


def is_data_url(url: str) -> bool:
    """Whether a URL is one that holds its content."""
    return SCHEME.match(url) is not None


def read_data_url(url: str, *, kind: str, max_bytes: int, param: str) -> bytes:
    """Content of `url`, which is to be of `kind` (such as `image`).

    Bytes decide what an item is: a declared type is held against them only if it names another of
    our kinds, and they cannot be of both (as a GIF is a picture and a video). A list of frames
    comes as FRAME_LIST and base64 with commas between. No more is decoded than `max_bytes`. Raises
    ApplianceError.
    """
    parsed = _parsed(url, param)
    if kind == "video" and parsed.is_base64 and parsed.type in FRAMES:
        return _frame_list(parsed, max_bytes, param)
    pieces = _percent_decoded(parsed.body)
    if parsed.is_base64:
        pieces = _base64_decoded(pieces)
    data = bytearray()
    try:
        for piece in pieces:
            data += piece
            if len(data) > max_bytes:
                raise media_too_large(kind, max_bytes, param)
    except (UnicodeEncodeError, binascii.Error):
        raise _malformed("is not valid base64", param) from None
    declared = parsed.type.partition("/")[0]
    if declared in MODALITIES - {kind} and not {declared, kind} <= modalities(data):
        raise _malformed(f"is declared to be of type {declared}/…, which is no {kind}", param)
    return bytes(data)


def from_base64(data: bytes) -> bytes:
    """Blanks are skipped and padding may be missing. Raises binascii.Error."""
    pieces = (data[at : at + PIECE] for at in range(0, len(data), PIECE))
    return b"".join(_base64_decoded(pieces))


def _parsed(url: str, param: str) -> DataUrl:
    match = SCHEME.match(url)
    assert match is not None
    header, comma, body = url[match.end() :].partition(",")
    header, fragment, _ = header.partition("#")
    if not comma or fragment:
        raise _malformed("has no comma between its header and its data", param)
    header = re.sub("[\t\n\r]+", "", header).strip("\f ")
    is_base64 = BASE64.search(header)
    essence = (header[: is_base64.start()] if is_base64 else header).partition(";")[0]
    return DataUrl(essence.strip("\f ").lower(), is_base64 is not None, body.partition("#")[0])


def _frame_list(parsed: DataUrl, max_bytes: int, param: str) -> bytes:
    listed = bytearray()
    try:
        for piece in _percent_decoded(parsed.body):
            listed += piece.translate(None, BLANKS)
            if len(listed) // 4 * 3 > max_bytes + LIST_SLACK:
                raise media_too_large("video", max_bytes, param)
    except UnicodeEncodeError:
        raise _malformed("is not valid base64", param) from None
    return FRAME_LIST + listed


def _percent_decoded(body: str) -> Iterator[bytes]:
    """Raises UnicodeEncodeError."""
    at = 0
    while at < len(body):
        end = at + PIECE
        escape = body.rfind("%", max(at, end - 2), end)
        end = end if escape < 0 or end >= len(body) else escape + 3  # none is cut
        piece, at = body[at:end].encode().translate(None, TAKEN_OUT), end
        yield unquote_to_bytes(piece) if b"%" in piece else piece


def _base64_decoded(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Raises binascii.Error."""
    rest = b""
    for piece in pieces:
        given = rest + piece.translate(None, BLANKS)
        whole = max(len(given) - 1, 0) & ~3  # the last four may end in padding
        yield _unpadded(given[:whole])
        rest = given[whole:]
    if len(rest) == 4:
        rest = rest.removesuffix(b"=").removesuffix(b"=")
    if len(rest) == 1:
        raise binascii.Error
    yield _unpadded(rest)


def _unpadded(data: bytes) -> bytes:
    """Base64 in which no padding stands."""
    if b"=" in data:
        raise binascii.Error
    return binascii.a2b_base64(data + b"=" * (-len(data) % 4), strict_mode=True)


def _malformed(what: str, param: str) -> ApplianceError:
    return bad_request(f"The data URL {what}.", param, "invalid_data_url")
