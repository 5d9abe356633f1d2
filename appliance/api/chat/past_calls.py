"""Calls of tools in messages of a conversation: what an assistant called earlier."""

from __future__ import annotations

import json
from typing import Any

from appliance.api.fields.text import as_json, read_text
from appliance.errors import bad_request
from appliance.generation.conversation import Message

MOST_CALLS = 1024  # of one message


def read_calls(value: Any, path: str, ignored: list[str]) -> Message:
    """`tool_calls` as templates take them, arguments as an object; empty where there are none."""
    path = f"{path}.tool_calls"
    if value is None or value == []:
        return {}
    if not isinstance(value, list):
        raise bad_request(f"'{path}' must be an array.", path, "invalid_type")
    if len(value) > MOST_CALLS:
        raise bad_request(f"'{path}' may hold at most {MOST_CALLS}.", path, "invalid_value")
    return {"tool_calls": [_call(one, f"{path}[{i}]", ignored) for i, one in enumerate(value)]}


def _call(value: Any, path: str, ignored: list[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad_request(f"'{path}' must be an object.", path, "invalid_type")
    if value.get("type", "function") != "function":
        raise bad_request(f"'{path}.type' must be 'function'.", f"{path}.type", "invalid_value")
    function = value.get("function")
    if not isinstance(function, dict):
        problem = "is required" if function is None else "must be an object"
        code = "missing_required_parameter" if function is None else "invalid_type"
        raise bad_request(f"'{path}.function' {problem}.", f"{path}.function", code)
    known = {"id", "type", "function", "index"}
    ignored.extend(f"{path}.{name}" for name in value.keys() - known)
    ignored.extend(f"{path}.function.{name}" for name in function.keys() - {"name", "arguments"})
    name = read_text(function.get("name"), f"{path}.function.name")
    arguments = _arguments(function.get("arguments"), f"{path}.function.arguments")
    called = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if value.get("id") is None:
        return called
    return {"id": read_text(value["id"], f"{path}.id"), **called}


def _arguments(value: Any, path: str) -> dict[str, Any]:
    """An object, as it is or as JSON in a text; nothing at all is none."""
    if value in (None, ""):
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise bad_request(f"'{path}' is not valid JSON.", path, "invalid_value") from None
    if not isinstance(value, dict):
        raise bad_request(f"'{path}' must be a JSON object.", path, "invalid_value")
    as_json(value, path)
    return value
