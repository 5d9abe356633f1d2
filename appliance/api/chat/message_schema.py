"""The JSON Schemas of messages and tools, of the names by which they are read."""

from __future__ import annotations

from typing import Any

from appliance.api.chat.media_parts import DETAILS, FIELDS, KINDS, LONGEST_UUID
from appliance.api.chat.messages import MOST_PARTS, PARTS, ROLES
from appliance.api.chat.tools import MODES, MOST_TOOLS

STRING = {"type": "string"}
NULLABLE = {"type": ["string", "null"]}


def messages_schema() -> dict[str, Any]:
    """What `messages` holds. Wider than what is taken: the rest is told in words, by a 400."""
    parts = {"type": "array", "items": {"anyOf": [STRING, *map(_part, PARTS)]}}
    filled = {"anyOf": [STRING, {**parts, "minItems": 1}]}
    roles = [role for role in ROLES if role not in ("assistant", "tool")]
    calls = {"type": ["array", "null"], "items": {"type": "object"}}
    said = {"anyOf": [STRING, parts, {"type": "null"}]}  # which may be nothing
    kinds = [
        _message(roles, ["content"], content=filled),
        _message(["assistant"], [], content=said, tool_calls=calls),
        _message(
            ["tool"],
            ["content", "tool_call_id"],
            content={"anyOf": [STRING, parts]},
            tool_call_id=STRING,
        ),
    ]
    return {"type": "array", "items": {"anyOf": kinds}, "minItems": 1, "maxItems": MOST_PARTS}


def tools_schema() -> dict[str, Any]:
    """What `tools` holds."""
    function = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": "^[A-Za-z0-9_.:/-]{1,128}$"},
            "description": NULLABLE,
            "parameters": {"type": ["object", "null"]},
            "strict": {"type": ["boolean", "null"]},
        },
        "required": ["name"],
    }
    tool = {
        "type": "object",
        "properties": {"type": {"const": "function"}, "function": function},
        "required": ["function"],
    }
    return {"type": "array", "items": tool, "maxItems": MOST_TOOLS}


def tool_choice_schema() -> dict[str, Any]:
    """What `tool_choice` may be: a word, or an object that names functions."""
    return {"anyOf": [{"enum": [*MODES, "any", ""]}, {"type": "object"}]}


def _message(roles: list[str], required: list[str], **fields: dict[str, Any]) -> dict[str, Any]:
    properties = {"role": {"enum": roles}, "name": NULLABLE, **fields}
    return {"type": "object", "properties": properties, "required": ["role", *required]}


def _part(kind: str) -> dict[str, Any]:
    properties: dict[str, Any] = {"type": {"const": kind}, kind: STRING}
    if kind in KINDS:
        properties |= {kind: _media(kind), "uuid": {**NULLABLE, "maxLength": LONGEST_UUID}}
    return {"type": "object", "properties": properties}  # short forms have no type


def _media(kind: str) -> dict[str, Any]:
    if kind == "image_embeds":
        return {"type": ["string", "object", "array"]}
    fields: dict[str, Any] = dict.fromkeys(FIELDS.get(kind, ("url",)), STRING)
    if "detail" in fields:
        fields["detail"] = {"enum": [*DETAILS, "", None]}
    return {"type": ["object", "string", "null"], "properties": fields}
