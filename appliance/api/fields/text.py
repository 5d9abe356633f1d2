"""Text in a request."""

from __future__ import annotations

import json
from typing import Any

from appliance.errors import bad_request


def read_text(text: Any, path: str) -> str:
    """`text` if it is valid text. Raises ApplianceError 400 with its path."""
    if text is None:
        raise bad_request(f"'{path}' is required.", path, "missing_required_parameter")
    if not isinstance(text, str):
        raise bad_request(f"'{path}' must be a string.", path, "invalid_type")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise bad_request(
                f"'{path}' must be valid Unicode without lone surrogates.", path, "invalid_value"
            ) from None
    return text


def as_json(value: Any, path: str) -> str:
    """What a request has there, as JSON again. Raises ApplianceError 400 for what is none."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        raise bad_request(
            f"'{path}' is too deep, or has a number that is none in JSON.", path, "invalid_value"
        ) from None
    return read_text(text, path)
