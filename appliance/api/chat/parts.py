"""The parts of an answer as OpenAI's chats have them."""

from __future__ import annotations

from typing import Any

from appliance.generation.parts import Parts, ToolCall


def chat_parts(parts: Parts, *, delta: bool) -> dict[str, Any]:
    """Fields of a message, or with `delta` of what a chunk adds to one.

    Reasoning has the name that DeepSeek's API and SGLang have for it, and vLLM's.
    """
    fields: dict[str, Any] = {}
    if parts.text or not delta:
        alone = parts.tool_calls and not parts.text
        fields["content"] = None if alone else parts.text
    if parts.reasoning:
        fields |= {"reasoning_content": parts.reasoning, "reasoning": parts.reasoning}
    if parts.tool_calls:
        fields["tool_calls"] = [_call(call, delta) for call in parts.tool_calls]
    return fields


def _call(call: ToolCall, delta: bool) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": call.arguments}
    fields: dict[str, Any] = {"function": function}
    if delta:
        fields["index"] = call.index
    if call.name is not None:
        function["name"] = call.name
        fields |= {"id": call.id, "type": "function"}
    return fields
