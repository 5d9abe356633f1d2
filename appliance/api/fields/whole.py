"""Whole numbers of a request, however they were written: `16.0` is 16 in JSON."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator


def whole(value: Any) -> Any:
    """An int for a float without a fraction; anything else as it is."""
    return int(value) if type(value) is float and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(whole)]
