"""Bodies that are JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


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
