"""Bodies that are JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
# line ends of Unicode that JSON leaves as they are: clients that split streams into lines by
# Python's rules or JavaScript's would cut an event in two
LINE_ENDS = {"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"}


def encode(value: Any) -> str:
    """JSON on one line, whoever looks for the end of it; text as it is."""
    text = _encode(value)
    if not text.isascii():
        for one, escaped in LINE_ENDS.items():
            if one in text:
                text = text.replace(one, escaped)
    return text


def json_response(
    body: Mapping[str, Any] | bytes, headers: Mapping[str, str], status: int = 200
) -> Response:
    """A JSON response, text as it is; `body` may be JSON already."""
    return Response(
        body if isinstance(body, bytes) else encode(body),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )
