"""Bodies that are JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response


def json_response(
    body: Mapping[str, Any], headers: Mapping[str, str], status: int = 200
) -> Response:
    """A JSON response, text as it is."""
    return Response(
        json.dumps(body, ensure_ascii=False, separators=(",", ":")),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )
