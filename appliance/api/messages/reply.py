"""Answers of Anthropic's API: a message of blocks, whole or event by event."""

from __future__ import annotations

import json
import secrets
from typing import Any

from appliance.api.blocks import Block, Blocks, Change, blocks_of
from appliance.api.http.faults import ANTHROPIC, fault_body
from appliance.api.http.responses import encode
from appliance.api.translation import Translation
from appliance.errors import ApplianceError
from appliance.generation.answers import Answers, Delta

REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}
ADDED = {
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}


def message(model: str, answers: Answers, delta: Delta | None = None) -> dict[str, Any]:
    """The message object, of a whole answer or as a stream begins with it."""
    return {
        "id": f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [] if delta is None else list(map(_whole, blocks_of(delta.parts))),
        **_ending(delta),
        "usage": _usage(answers),
    }


def _ending(delta: Delta | None) -> dict[str, Any]:
    if delta is None or delta.finish_reason is None:
        return {"stop_reason": None, "stop_sequence": None}
    reason = REASONS.get(delta.finish_reason, "end_turn")
    if delta.stop is not None and reason == "end_turn":
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": delta.stop}


def _usage(answers: Answers) -> dict[str, Any]:
    cached = sum(prompt.cached_tokens for prompt in answers.prompts)
    return {
        "input_tokens": answers.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": answers.generated,
    }


def _whole(block: Block) -> dict[str, Any]:
    if block.kind == "call":
        return {**_begun(block), "input": _input(block.content)}
    field = ADDED[block.kind][1]
    return {**_begun(block), field: block.content}


def _input(written: str) -> Any:
    """Of a call that was cut off nothing can be said but that."""
    try:
        return json.loads(written)
    except ValueError:
        return {}


def _begun(block: Block) -> dict[str, Any]:
    match block.kind:
        case "call":
            return {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}
        case "reasoning":
            return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}


class MessageEvents:
    """`Events`: blocks begin, grow and end, one after the other."""

    def __init__(self, model: str, answers: Answers, translation: Translation) -> None:
        self._model, self._answers = model, answers
        self._translation = translation
        self._blocks = Blocks()
        self._last: Delta | None = None

    def opening(self) -> bytes:
        return _event("message_start", message=message(self._model, self._answers)) + _event("ping")

    def deltas(self, deltas: list[Delta]) -> bytes:
        told = b""
        for delta in deltas:
            self._last = delta
            told += b"".join(self._change(*change) for change in self._blocks.push(delta.parts))
        return told

    def closing(self) -> bytes:
        told = b"".join(self._change(*change) for change in self._blocks.finish())
        ended = _event("message_delta", delta=_ending(self._last), usage=_usage(self._answers))
        return told + ended + _event("message_stop")

    def failure(self, fault: ApplianceError) -> bytes:
        told = fault_body(self._translation.own(fault), ANTHROPIC)
        return f"event: error\ndata: {encode(told)}\n\n".encode()

    @staticmethod
    def _change(change: Change, block: Block, text: str) -> bytes:
        if change == "open":
            return _event("content_block_start", index=block.place, content_block=_begun(block))
        if change == "close":
            return _event("content_block_stop", index=block.place)
        kind, field = ADDED[block.kind]
        delta = {"type": kind, field: text}
        return _event("content_block_delta", index=block.place, delta=delta)


def _event(name: str, **fields: Any) -> bytes:
    return f"event: {name}\ndata: {encode({'type': name, **fields})}\n\n".encode()
