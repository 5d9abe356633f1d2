"""Prompts that are text or token ids."""

from __future__ import annotations

from typing import Any

from appliance.api.fields.text import read_text
from appliance.api.fields.whole import whole
from appliance.errors import bad_request

PromptSource = str | list[int]


def read_prompts(value: Any, name: str) -> list[PromptSource]:
    """One or many prompts of field `name`, each text or token ids. Raises ApplianceError 400."""
    if isinstance(value, str):
        return [_prompt(value, name)]
    if not isinstance(value, list):
        raise bad_request(
            f"'{name}' must be a string, an array of strings, of token ids, or of arrays of them.",
            name,
            "invalid_type",
        )
    if not value:
        raise bad_request(f"'{name}' must not be empty.", name, "invalid_value")
    if all(type(token) in (int, float) for token in value):
        return [_prompt(value, name)]
    return [_prompt(item, f"{name}[{index}]") for index, item in enumerate(value)]


def _prompt(value: Any, path: str) -> PromptSource:
    if isinstance(value, str):
        return read_text(value, path)
    ids = value
    if isinstance(value, list) and any(type(token) is float for token in value):
        ids = list(map(whole, value))
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise bad_request(
            f"'{path}' must be a string or an array of token ids.", path, "invalid_type"
        )
    if not ids:
        raise bad_request(f"'{path}' must not be empty.", path, "invalid_value")
    return ids
