"""The JSON Schema of a conversation's messages, of the names by which they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from appliance.api.chat.media_parts import DETAILS, FIELDS, KINDS, LONGEST_UUID
from appliance.api.chat.messages import MOST_PARTS, PARTS, ROLES

STRING = {"type": "string"}
QUIET = ("assistant",)  # who may have said nothing


def messages_schema() -> dict[str, Any]:
    """What `messages` holds. Wider than what is taken: the rest is told in words, by a 400."""
    parts = {"type": "array", "items": {"anyOf": [STRING, *map(_part, PARTS)]}}
    answered = _message(QUIET, {"anyOf": [STRING, parts, {"type": "null"}]})
    others = [role for role in ROLES if role not in QUIET]
    message = _message(others, {"anyOf": [STRING, {**parts, "minItems": 1}]})
    message["required"].append("content")
    turn = {"anyOf": [message, answered]}
    return {"type": "array", "items": turn, "minItems": 1, "maxItems": MOST_PARTS}


def _message(roles: Sequence[str], content: dict[str, Any]) -> dict[str, Any]:
    name = {"type": ["string", "null"]}
    properties = {"role": {"enum": list(roles)}, "content": content, "name": name}
    return {"type": "object", "properties": properties, "required": ["role"]}


def _part(kind: str) -> dict[str, Any]:
    properties: dict[str, Any] = {"type": {"const": kind}, kind: STRING}
    if kind in KINDS:
        properties |= {kind: _media(kind), "uuid": {**STRING, "maxLength": LONGEST_UUID}}
    return {"type": "object", "properties": properties}  # short forms have no type


def _media(kind: str) -> dict[str, Any]:
    if kind == "image_embeds":
        return {"type": ["string", "object", "array"]}
    fields: dict[str, Any] = dict.fromkeys(FIELDS.get(kind, ("url",)), STRING)
    if "detail" in fields:
        fields["detail"] = {"enum": list(DETAILS)}
    return {"type": ["object", "string", "null"], "properties": fields}
