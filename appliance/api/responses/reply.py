"""A response: an object of output items, whole or event by event."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from appliance.api.blocks import Block, Blocks, Change
from appliance.api.http.responses import encode
from appliance.api.replies import created
from appliance.api.responses.request import ResponsesRequest
from appliance.api.translation import Translation
from appliance.errors import ApplianceError
from appliance.generation.answers import Answers, Delta

PREFIXES = {"text": "msg", "reasoning": "rs", "call": "fc"}
LONGER = "max_output_tokens"
Item = dict[str, Any]


class ResponseObject:
    """The object, as far as it has come."""

    def __init__(
        self, model: str, fields: ResponsesRequest, answers: Answers, metadata: Any, stored: bool
    ) -> None:
        self.id = f"resp_{secrets.token_hex(24)}"
        self._answers = answers
        self._created = created()
        self._blocks = Blocks()
        self._ids: dict[int, str] = {}
        self._finish: str | None = None
        self._told = {
            "background": False,
            "instructions": fields.instructions,
            "max_output_tokens": fields.max_output_tokens,
            "metadata": metadata if isinstance(metadata, dict) else {},
            "model": model,
            "parallel_tool_calls": fields.parallel_tool_calls,
            "previous_response_id": fields.previous_response_id,
            "reasoning": {"effort": (fields.reasoning or {}).get("effort"), "summary": None},
            "store": stored,
            "temperature": fields.temperature,
            "text": fields.text or {"format": {"type": "text"}},
            "tool_choice": fields.tool_choice or "auto",
            "tools": [{"parameters": None, "strict": None, **tool} for tool in fields.tools],
            "top_p": fields.top_p,
            "truncation": "disabled",
        }

    def push(self, delta: Delta) -> list[tuple[Change, Block, str]]:
        """What a delta changes."""
        self._finish = delta.finish_reason
        return self._blocks.push(delta.parts)

    def finish(self) -> list[tuple[Change, Block, str]]:
        return self._blocks.finish()

    @property
    def status(self) -> str:
        return "incomplete" if self._finish == "length" else "completed"

    def body(self, status: str, error: dict[str, Any] | None = None) -> dict[str, Any]:
        """The object with this status."""
        ended = status in ("completed", "incomplete")
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "completed_at": created() if status == "completed" else None,
            "status": status,
            "error": error,
            "incomplete_details": {"reason": LONGER} if status == "incomplete" else None,
            **self._told,
            "output": self.items() if ended else [],
            "usage": self._usage() if ended else None,
        }

    def items(self) -> list[Item]:
        """All of the output."""
        blocks = self._blocks.closed
        cut = len(blocks) - 1 if self.status == "incomplete" else len(blocks)
        return [
            self.item(block, "incomplete" if block.place >= cut else "completed")
            for block in blocks
        ]

    def item(self, block: Block, status: str) -> Item:
        """A block as an item of the output; one in progress has nothing in it yet."""
        made: Item = {"id": self.identity(block), "status": status}
        filled = status != "in_progress"
        match block.kind:
            case "call":
                arguments = block.content if filled else ""
                made |= {"type": "function_call", "call_id": block.id, "name": block.name}
                return made | {"arguments": arguments}
            case "reasoning":
                content = [self.part(block, block.content)] if filled else []
                return made | {"type": "reasoning", "summary": [], "content": content}
        content = [self.part(block, block.content)] if filled else []
        return made | {"type": "message", "role": "assistant", "content": content}

    @staticmethod
    def part(block: Block, text: str) -> Item:
        """The part of a block that holds its text."""
        if block.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def identity(self, block: Block) -> str:
        """The id of a block's item."""
        made = f"{PREFIXES[block.kind]}_{secrets.token_hex(12)}"
        return self._ids.setdefault(block.place, made)

    def message(self) -> dict[str, Any]:
        """It as a message of the conversation that goes on from it."""
        blocks = self._blocks.closed
        joined = {
            kind: "".join(block.content for block in blocks if block.kind == kind)
            for kind in ("text", "reasoning")
        }
        calls = [
            {
                "id": block.id,
                "type": "function",
                "function": {"name": block.name, "arguments": block.content},
            }
            for block in blocks
            if block.kind == "call"
        ]
        message: dict[str, Any] = {"role": "assistant", "content": joined["text"]}
        if joined["reasoning"]:
            message["reasoning_content"] = joined["reasoning"]
        return message | ({"tool_calls": calls} if calls else {})

    def _usage(self) -> dict[str, Any]:
        answers = self._answers
        cached = sum(prompt.cached_tokens for prompt in answers.prompts)
        return {
            "input_tokens": answers.prompt_tokens,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": answers.generated,
            "output_tokens_details": {"reasoning_tokens": answers.thought_tokens},
            "total_tokens": answers.prompt_tokens + answers.generated,
        }


class ResponseEvents:
    """`Events`, numbered, each with its name; `on_end` is told of the whole response."""

    def __init__(
        self,
        response: ResponseObject,
        translation: Translation,
        on_end: Callable[[dict[str, Any]], None],
    ) -> None:
        self._response, self._translation, self._on_end = response, translation, on_end
        self._number = 0

    def opening(self) -> bytes:
        begun = self._response.body("in_progress")
        return self._event("response.created", response=begun) + self._event(
            "response.in_progress", response=begun
        )

    def deltas(self, deltas: list[Delta]) -> bytes:
        changes = [change for delta in deltas for change in self._response.push(delta)]
        return b"".join(self._change(*change) for change in changes)

    def closing(self) -> bytes:
        told = b"".join(self._change(*change) for change in self._response.finish())
        status = self._response.status
        body = self._response.body(status)
        self._on_end(body)
        return told + self._event(f"response.{status}", response=body)

    def failure(self, fault: ApplianceError) -> bytes:
        told = self._translation.own(fault)
        body = self._response.body("failed", {"code": "server_error", "message": told.message})
        error = {"code": told.code, "message": told.message, "param": told.param}
        return self._event("error", **error) + self._event("response.failed", response=body)

    def _change(self, change: Change, block: Block, text: str) -> bytes:
        response, place = self._response, {"output_index": block.place}
        where = {**place, "item_id": response.identity(block)}
        inside = {**where, "content_index": 0}
        call = block.kind == "call"
        if change == "open":
            item = response.item(block, "in_progress")
            told = self._event("response.output_item.added", **place, item=item)
            if call:
                return told
            part = response.part(block, "")
            return told + self._event("response.content_part.added", **inside, part=part)
        name = {"text": "output_text", "reasoning": "reasoning_text"}.get(block.kind, "")
        more: dict[str, Any] = {"logprobs": []} if block.kind == "text" else {}
        if change == "add":
            if call:
                return self._event("response.function_call_arguments.delta", **where, delta=text)
            return self._event(f"response.{name}.delta", **inside, delta=text, **more)
        if call:
            arguments = {**where, "name": block.name, "arguments": block.content}
            told = self._event("response.function_call_arguments.done", **arguments)
        else:
            part = response.part(block, block.content)
            told = self._event(f"response.{name}.done", **inside, text=block.content, **more)
            told += self._event("response.content_part.done", **inside, part=part)
        item = response.item(block, "completed")
        return told + self._event("response.output_item.done", **place, item=item)

    def _event(self, name: str, /, **fields: Any) -> bytes:
        told = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {name}\ndata: {encode(told)}\n\n".encode()
