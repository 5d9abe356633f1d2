"""Reasoning and calls of tools leave an answer's text, whole or streamed, at any cut."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from appliance.api.app import create_app
from appliance.generation.parts import AnswerParser, Parts, ToolCall
from appliance.generation.style import Reply, Style
from appliance.service import Service
from engine.models.end_tokens import end_tokens
from tests.api.asgi_client import AsgiClient
from tests.api.conftest import PromptSide, configuration, generation
from tests.api.fake_engine import FakeEngine, speak

pytestmark = pytest.mark.anyio

ANSWER = "Hm. [think]First this.[/think]Done[call]look[/call]."
MARKS = re.compile(r"\[(/?)(think|call)\]")


class Marked:
    """Reasoning between [think] marks, the name of a tool between [call] marks."""

    def __init__(self) -> None:
        self._kept = ""
        self._inside = ""
        self._calls = 0

    def push(self, text: str) -> Parts:
        self._kept += text
        parts = Parts()
        while found := MARKS.search(self._kept):
            parts.add(self._part(self._kept[: found.start()]))
            self._inside = "" if found[1] else found[2]
            self._kept = self._kept[found.end() :]
        if self._inside != "call" and "[" not in self._kept:
            parts.add(self._part(self._kept))
            self._kept = ""
        return parts

    def finish(self) -> Parts:
        kept, self._kept = self._kept, ""
        return self._part(kept)

    def _part(self, text: str) -> Parts:
        if self._inside == "think":
            return Parts(reasoning=text)
        if self._inside == "call" and text:
            self._calls += 1
            call = ToolCall(self._calls - 1, '{"at": 1}', text, f"call_{self._calls}")
            return Parts(tool_calls=[call])
        return Parts(text)


class MarkedStyle(Style):
    """A style of answers that all are `Marked`."""

    def parser(self, reply: Reply, *, thinking: bool) -> Callable[[], AnswerParser]:
        return Marked


@pytest.fixture
def client(prompt_side: PromptSide, pool: ThreadPoolExecutor) -> AsgiClient:
    config = configuration()
    service = Service(config, "tiny", "0123456789ab")
    (end,) = end_tokens(prompt_side.tokenizer.folder)
    engine = FakeEngine(speak(*prompt_side.ids(ANSWER), end, finish="stop"))
    made = generation(prompt_side, engine, config, service.metrics, pool)
    made.style = MarkedStyle()
    service.generation = made
    service.lifecycle.loaded = True
    return AsgiClient(create_app(service))


async def test_a_body_has_each_part_in_its_field(client: AsgiClient) -> None:
    reply = await client.chat(max_tokens=200)
    answer = ChatCompletion.model_validate(reply.json, strict=True)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Hm. Done."
    assert choice.message.model_extra is not None
    assert choice.message.model_extra["reasoning_content"] == "First this."
    (call,) = choice.message.tool_calls or []
    assert (call.id, call.type) == ("call_1", "function")
    assert (call.function.name, json.loads(call.function.arguments)) == ("look", {"at": 1})


async def test_a_stream_brings_each_part_as_it_comes(client: AsgiClient) -> None:
    reply = await client.chat(max_tokens=200, stream=True)
    chunks = [ChatCompletionChunk.model_validate(event) for event in reply.chunks]
    text, reasoning, calls = "", "", []
    for chunk in chunks:
        delta = chunk.choices[0].delta
        text += delta.content or ""
        reasoning += (delta.model_extra or {}).get("reasoning_content", "")
        calls += delta.tool_calls or []
    assert (text, reasoning) == ("Hm. Done.", "First this.")
    assert [(call.index, call.id, call.function.name) for call in calls if call.function] == [
        (0, "call_1", "look")
    ]
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons[-1] == "tool_calls"
    assert not any(reasons[:-1])
    assert len([c for c in chunks if (c.choices[0].delta.model_extra or {})]) > 1  # bit by bit


async def test_a_completion_is_not_parsed(client: AsgiClient) -> None:
    reply = await client.complete(max_tokens=200)
    assert reply.json["choices"][0]["text"] == ANSWER


def test_parts_that_came_between_two_reads_are_joined() -> None:
    first = Parts("a", "b", [ToolCall(0, '{"x"', "look", "id")])
    later: Any = Parts("c", "d", [ToolCall(0, ": 1}"), ToolCall(1, "{}", "go", "other")])
    first.add(later)
    assert (first.text, first.reasoning) == ("ac", "bd")
    assert [(call.name, call.arguments) for call in first.tool_calls] == [
        ("look", '{"x": 1}'),
        ("go", "{}"),
    ]
    assert not Parts()
