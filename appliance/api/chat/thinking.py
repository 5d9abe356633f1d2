"""Fields by which clients switch a model's thinking off, each with what it says for that."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import PlainValidator, ValidationInfo

from appliance.api.fields.unbuilt import harmless
from appliance.api.fields.validation import unsupported

OFF: Final[dict[str, tuple[Any, ...]]] = {
    "reasoning_effort": ("none",),  # OpenAI
    "reasoning": ({"effort": "none"}, {"enabled": False}),  # OpenAI's responses, OpenRouter
    "thinking": ({"type": "disabled"}, False),  # Anthropic, DeepSeek, GLM
}
UNSAID: Final[tuple[Any, ...]] = ("", {})


def _is_off(value: Any, info: ValidationInfo) -> bool:
    name = info.field_name or ""
    if not harmless(value, (*OFF[name], *UNSAID)):
        raise unsupported(name, OFF[name][:1])
    return harmless(value, OFF[name])


Off = Annotated[bool, PlainValidator(_is_off)]
