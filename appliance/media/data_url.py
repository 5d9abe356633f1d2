"""The bytes inside a `data:` URL (RFC 2397)."""

from __future__ import annotations

import binascii
import re
from urllib.parse import unquote_to_bytes

from appliance.errors import ApplianceError, bad_request

# Frames of a video, one after the other with commas between them
FRAME_LIST = re.compile(r"data:video/(jpeg|png);base64,", re.IGNORECASE)
OPAQUE = ("", "application/octet-stream")


def read_data_url(url: str, *, kind: str, max_bytes: int, param: str) -> bytes:
    """Content of `url`, whose declared type must be `kind` (such as `image`) or opaque.

    Base64 is strict: no foreign characters, no missing padding; percent-encoding around it is
    undone. Size is checked before decoding. Raises ApplianceError.
    """
    header, comma, content = url[len("data:") :].partition(",")
    if not comma:
        raise _malformed("has no comma between its header and its data", param)
    declared, *options = (option.strip().lower() for option in header.split(";"))
    if declared not in OPAQUE and not declared.startswith(f"{kind}/"):
        raise bad_request(
            f"The data URL is not declared to be of type {kind}/….", param, "invalid_data_url"
        )
    is_base64 = bool(options) and options[-1] == "base64"
    least = len(content) - 2 * content.count("%")  # three characters for one
    if (least // 4 * 3 - 2 if is_base64 else least) > max_bytes:
        raise _too_large(kind, max_bytes, param)
    try:
        data = content.encode("ascii") if is_base64 else content.encode()
        if "%" in content:
            data = unquote_to_bytes(data)
        if is_base64:
            if len(data) % 4:
                raise _malformed("is not valid base64", param)
            data = binascii.a2b_base64(data, strict_mode=True)
    except (UnicodeEncodeError, binascii.Error):
        raise _malformed("is not valid base64", param) from None
    if len(data) > max_bytes:
        raise _too_large(kind, max_bytes, param)
    return data


def _too_large(kind: str, max_bytes: int, param: str) -> ApplianceError:
    return bad_request(
        f"The {kind} is larger than the limit of {max_bytes} bytes.", param, "media_too_large"
    )


def _malformed(what: str, param: str) -> ApplianceError:
    return bad_request(f"The data URL {what}.", param, "invalid_data_url")
