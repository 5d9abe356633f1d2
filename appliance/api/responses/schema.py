"""The JSON Schemas of what requests for responses nest; wider than what is taken."""

from __future__ import annotations

from typing import Any, Final

from appliance.api.chat.tools import MODES, MOST_TOOLS
from appliance.api.messages.schema import OBJECT, STRING, block

ROLES: Final = ("user", "assistant", "system", "developer")
TEXT: Final = {
    "type": "object",
    "properties": {"type": {"enum": ["input_text", "output_text"]}, "text": STRING},
    "required": ["type", "text"],
}
IMAGE: Final = block("input_image", ["image_url"], image_url=STRING)
PARTS: Final = {"type": "array", "minItems": 1, "items": {"anyOf": [TEXT, IMAGE]}}
ITEMS: Final[list[dict[str, Any]]] = [
    {
        "type": "object",
        "properties": {
            "type": {"const": "message"},
            "role": {"enum": list(ROLES)},
            "content": {"anyOf": [STRING, PARTS]},
        },
        "required": ["role", "content"],
    },
    block(
        "function_call",
        ["call_id", "name", "arguments"],
        call_id=STRING,
        name=STRING,
        arguments=STRING,
    ),
    block("function_call_output", ["call_id", "output"], call_id=STRING, output=STRING),
    block("reasoning", [], summary={"type": "array", "items": OBJECT}),
]
INPUT: Final = {"anyOf": [STRING, {"type": "array", "minItems": 1, "items": {"anyOf": ITEMS}}]}
TOOLS: Final = {
    "type": "array",
    "maxItems": MOST_TOOLS,
    "items": {
        "type": "object",
        "properties": {
            "type": {"const": "function"},
            "name": {"type": "string", "pattern": "^[A-Za-z0-9_.:/-]{1,128}$"},
            "description": {"type": ["string", "null"]},
            "parameters": {"type": ["object", "null"]},
            "strict": {"type": ["boolean", "null"]},
        },
        "required": ["type", "name"],
    },
}
CHOICE: Final = {"anyOf": [{"enum": list(MODES)}, OBJECT, {"type": "null"}]}
