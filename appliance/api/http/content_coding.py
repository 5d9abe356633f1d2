"""Bodies that a client has compressed: undone within the limit of bodies, or refused by name.

gzip and deflate are what the standard library reads. zstd and br would each be one more native
decoder that faces whatever anybody sends, for clients that all fall back when they are told so.
"""

from __future__ import annotations

from starlette.datastructures import Headers

from appliance.errors import ApplianceError, bad_request, body_too_large
from appliance.media.content_encoding import decoder_for

TAKEN = ("gzip", "deflate")
NONE = ("", "identity")
PIECE = 1 << 16


def content_coding(headers: Headers) -> str | None:
    """The coding that a body has to be freed of. Raises ApplianceError 415 for all but one."""
    given = ",".join(headers.getlist("content-encoding")).lower().split(",")
    codings = [coding.strip() for coding in given]
    codings = ["gzip" if one == "x-gzip" else one for one in codings if one not in NONE]
    for coding in codings:
        if coding not in TAKEN:
            raise _unsupported(f"'{coding[:100]}' is not read by this server")
    if len(codings) > 1:
        raise _unsupported(f"'{', '.join(codings)[:100]}' is more than one")
    return codings[0] if codings else None


def decoded(body: bytearray, coding: str, limit: int) -> bytearray:
    """The content, counted while it is decoded. Raises ApplianceError 400 or 413."""
    decoder, content = decoder_for(coding), bytearray()
    try:
        for start in range(0, len(body), PIECE):
            for piece in decoder.feed(bytes(body[start : start + PIECE])):
                content += piece
                if len(content) > limit:
                    raise body_too_large(limit, "decompressed")
        decoder.finish()
    except ValueError:
        raise bad_request(
            f"The body is not valid {coding}, as its Content-Encoding says: it is damaged or cut "
            "off.",
            None,
            "invalid_content_encoding",
        ) from None
    return content


def _unsupported(why: str) -> ApplianceError:
    return ApplianceError(
        f"The body's Content-Encoding {why}: send it as it is, or as {' or '.join(TAKEN)}.",
        status=415,
        code="unsupported_content_encoding",
        headers={"Accept-Encoding": ", ".join(TAKEN)},  # RFC 9110, 15.5.16
    )
