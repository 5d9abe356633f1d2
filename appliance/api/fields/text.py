"""Text in a request."""

from __future__ import annotations

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
