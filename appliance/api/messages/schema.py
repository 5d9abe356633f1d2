"""The JSON Schemas of what Anthropic's requests nest; wider than what is taken, which 400s tell."""

from __future__ import annotations

from typing import Any, Final

from appliance.api.chat.tools import MOST_TOOLS

STRING: Final = {"type": "string"}
OBJECT: Final = {"type": "object"}


def block(kind: str, required: list[str], **fields: Any) -> dict[str, Any]:
    """A block of content of a type."""
    return {
        "type": "object",
        "properties": {"type": {"const": kind}, **fields},
        "required": ["type", *required],
    }


def message(role: str, *blocks: dict[str, Any]) -> dict[str, Any]:
    """A message of a role, of text or of blocks."""
    content = {"type": "array", "items": {"anyOf": list(blocks)}, "minItems": 1}
    return {
        "type": "object",
        "properties": {"role": {"const": role}, "content": {"anyOf": [STRING, content]}},
        "required": ["role", "content"],
    }


TEXT: Final = block("text", ["text"], text=STRING)
IMAGE: Final = block("image", ["source"], source=OBJECT)
RESULTS: Final = {"anyOf": [STRING, {"type": "array", "items": {"anyOf": [TEXT, IMAGE]}}]}
SYSTEM: Final = {"anyOf": [STRING, {"type": "array", "items": TEXT}, {"type": "null"}]}
MESSAGES: Final = {
    "type": "array",
    "minItems": 1,
    "items": {
        "anyOf": [
            message(
                "user",
                TEXT,
                IMAGE,
                block("tool_result", ["tool_use_id"], tool_use_id=STRING, content=RESULTS),
            ),
            message(
                "assistant",
                TEXT,
                block("tool_use", ["id", "name", "input"], id=STRING, name=STRING, input=OBJECT),
                block("thinking", ["thinking"], thinking=STRING),
            ),
        ]
    },
}
TOOLS: Final = {
    "type": "array",
    "maxItems": MOST_TOOLS,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": "^[A-Za-z0-9_.:/-]{1,128}$"},
            "description": STRING,
            "input_schema": OBJECT,
        },
        "required": ["name", "input_schema"],
    },
}
CHOICE: Final = {
    "type": ["object", "null"],
    "properties": {"type": {"enum": ["auto", "any", "tool", "none"]}, "name": STRING},
    "required": ["type"],
}
THINKING: Final = {
    "type": ["object", "null"],
    "properties": {
        "type": {"enum": ["enabled", "adaptive", "disabled"]},
        "budget_tokens": {"type": "integer", "minimum": 0},
    },
    "required": ["type"],
}
