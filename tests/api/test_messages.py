"""Anthropic's API: what its messages become, what comes back, and how it is refused."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from pydantic import TypeAdapter

from tests.api.conftest import PromptSide
from tests.api.test_tools import ASKED, CALL, PARAMETERS, Speak, last, side, speaking

__all__ = ["side", "speaking"]
pytestmark = pytest.mark.anyio

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
WEATHER = {"name": "weather", "description": "How it is.", "input_schema": PARAMETERS}
PATH = "/v1/messages"


def asked(**fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "max_tokens": 100, "messages": ASKED, **fields}
    return {name: value for name, value in body.items() if value is not ...}


async def test_an_answer_is_a_message_of_blocks(speaking: Speak) -> None:
    client, _ = speaking(f"<think>Hm.</think>I look. {CALL}")
    reply = await client.ask("POST", PATH, asked(tools=[WEATHER]))
    message = Message.model_validate(reply.json, strict=True)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    thought, text, call = message.content
    assert thought.type == "thinking"
    assert text.type == "text"
    assert call.type == "tool_use"
    assert (thought.thinking, text.text) == ("Hm.", "I look.")
    assert (call.name, call.input) == ("weather", {"city": "Oslo", "days": 2})
    assert message.stop_reason == "tool_use"
    assert message.usage.input_tokens > 10
    assert message.usage.output_tokens > 10


async def test_a_stream_says_what_the_whole_does(speaking: Speak) -> None:
    client, _ = speaking(f"<think>Hm.</think>I look. {CALL}\n{CALL}")
    whole = (await client.ask("POST", PATH, asked(tools=[WEATHER]))).json
    reply = await client.ask("POST", PATH, asked(tools=[WEATHER], stream=True))
    blocks = reply.body.decode().split("\n\n")
    events = []
    for block in filter(None, blocks):
        name, data = block.split("\n")
        told = json.loads(data.removeprefix("data: "))
        assert name == f"event: {told['type']}"
        if told["type"] != "ping":
            EVENT.validate_python(told, strict=True)
            events.append(told)
    assert events[0]["type"] == "message_start"
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    content: list[dict[str, Any]] = []
    opened: int | None = None
    for event in events[1:-2]:
        match event["type"]:
            case "content_block_start":
                assert opened is None
                opened = event["index"]
                assert opened == len(content)
                content.append(event["content_block"])
            case "content_block_stop":
                assert event["index"] == opened
                opened = None
            case "content_block_delta":
                assert event["index"] == opened
                (field,) = event["delta"].keys() - {"type"}
                block = content[opened]
                if field == "partial_json":
                    block["input"] = (block["input"] or "") + event["delta"][field]
                else:
                    block[field] += event["delta"][field]
    for block in content:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block["input"])

    def bare(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in block.items() if k != "id"} for block in blocks]

    assert bare(content) == bare(whole["content"])
    assert len({block["id"] for block in content if "id" in block}) == 2
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    assert events[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


async def test_the_prompt_is_that_of_the_same_chat(speaking: Speak) -> None:
    client, engine = speaking("Fine.")
    use = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "How is it?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Where?", "signature": "x"},
                {"type": "text", "text": "I look."},
                use,
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "Rain."},
                {"type": "text", "text": "And now?"},
            ],
        },
        {"role": "assistant", "content": "Sun."},
        {"role": "user", "content": "Sure?"},
    ]
    fields = asked(messages=messages, system="Be brief.", tools=[WEATHER], stop_sequences=["x"])
    reply = await client.ask("POST", PATH, fields)
    assert reply.status == 200, reply.body
    assert "x-ignored-fields" not in reply.headers
    theirs = last(engine)
    call = {"id": "t1", "type": "function"}
    call["function"] = {"name": "weather", "arguments": '{"city": "Oslo"}'}  # type: ignore[assignment]
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How is it?"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Where?",
            "tool_calls": [call],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "Rain."},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Sun."},
        {"role": "user", "content": "Sure?"},
    ]
    function = {"name": "weather", "description": "How it is.", "parameters": PARAMETERS}
    tools = [{"type": "function", "function": function}]
    assert (await client.chat(messages=chat, tools=tools, max_tokens=100)).status == 200
    assert last(engine).prompt_ids == theirs.prompt_ids
    counted = await client.ask("POST", f"{PATH}/count_tokens", {**fields, "max_tokens": None})
    count = MessageTokensCount.model_validate(counted.json, strict=True)
    assert count.input_tokens == len(theirs.prompt_ids)


async def test_why_it_ended_is_told(speaking: Speak) -> None:
    client, engine = speaking("one two three")
    reply = await client.ask("POST", PATH, asked(stop_sequences=["two"]))
    assert (reply.json["stop_reason"], reply.json["stop_sequence"]) == ("stop_sequence", "two")
    assert reply.json["content"] == [{"type": "text", "text": "one "}]
    plain = await client.ask("POST", PATH, asked())
    assert (plain.json["stop_reason"], plain.json["stop_sequence"]) == ("end_turn", None)
    assert last(engine).sampling.max_tokens == 100


async def test_choices_and_thoughts_have_their_effect(speaking: Speak) -> None:
    client, engine = speaking("Fine.")
    grammars = {}
    for choice in (
        {"type": "auto"},
        {"type": "any"},
        {"type": "tool", "name": "weather"},
        {"type": "auto", "disable_parallel_tool_use": True},
    ):
        reply = await client.ask("POST", PATH, asked(tools=[WEATHER], tool_choice=choice))
        assert reply.status == 200, reply.body
        grammars[json.dumps(choice)] = last(engine).constraint
    assert len(set(grammars.values())) == 4
    await client.ask("POST", PATH, asked(tools=[WEATHER], tool_choice={"type": "none"}))
    assert last(engine).constraint is None
    prompt = last(engine).prompt_ids
    await client.ask("POST", PATH, asked(thinking={"type": "adaptive"}))
    assert last(engine).prompt_ids != prompt
    form = {"type": "json_schema", "schema": {"type": "integer"}}
    reply = await client.ask("POST", PATH, asked(output_config={"format": form, "effort": "low"}))
    assert reply.headers["x-ignored-fields"] == "output_config.effort"
    assert last(engine).constraint is not None


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": ...}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
    (
        {"messages": [{"role": "user", "content": [{"type": "document"}]}]},
        "messages[0].content[0].type",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
        "messages[0].content[0].text",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "messages[0].content[0].source.type",
    ),
    (
        {
            "messages": [
                *ASKED,
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "x"},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png"}},
                    ],
                },
            ]
        },
        "messages[1].content[1].source.data",
    ),
    (
        {
            "system": "Be brief.",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "source": {"type": "url", "url": "https://a.example/b"}}
                    ],
                },
            ],
        },
        "messages[0].content[0].source",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]},
        "messages[0].content[0].tool_use_id",
    ),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": {}}]}]},
        "messages[0].content[0].name",
    ),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": []}]}]},
        "messages[0].content[0].input",
    ),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": 5}]}]},
        "messages[0].content[0].thinking",
    ),
    ({"system": 5}, "system"),
    ({"system": [{"type": "image"}]}, "system[0].type"),
    ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
    ({"tools": [{"name": "a", "input_schema": {"type": "array"}}]}, "tools[0].input_schema.type"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
    ({"tools": [WEATHER], "tool_choice": {"type": "perhaps"}}, "tool_choice.type"),
    ({"tools": [WEATHER], "tool_choice": {"type": []}}, "tool_choice.type"),
    ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "b"}}, "tool_choice.name"),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "any", "disable_parallel_tool_use": 1}},
        "tool_choice.disable_parallel_tool_use",
    ),
    ({"temperature": 1.5}, "temperature"),
    ({"top_k": -1}, "top_k"),
    ({"stop_sequences": "x"}, "stop_sequences"),
    ({"stop_sequences": [5]}, "stop_sequences[0]"),
    ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "perhaps"}}, "thinking.type"),
    ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
    (
        {"output_config": {"format": {"type": "json_schema", "schema": 5}}},
        "output_config.format.schema",
    ),
    ({"mcp_servers": [{}]}, "mcp_servers"),
    ({"model": "other"}, "model"),
    ({"max_tokens": 5000}, "max_tokens"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: str(value)[:80])
async def test_what_is_wrong_is_named_in_their_terms(
    speaking: Speak, fields: dict[str, Any], param: str
) -> None:
    client, engine = speaking("Fine.")
    reply = await client.ask("POST", PATH, asked(**fields))
    assert reply.status == (404 if param == "model" else 400), reply.body
    assert reply.json["type"] == "error"
    error = reply.json["error"]
    assert error["param"] == param
    assert error["type"] == ("not_found_error" if param == "model" else "invalid_request_error")
    assert "'messages[" not in error["message"] or f"'{param}'" in error["message"]
    assert not engine.requests


async def test_a_key_may_come_as_their_clients_send_it(
    speaking: Speak, side: PromptSide, pool: ThreadPoolExecutor
) -> None:
    client, _ = speaking("Fine.", "server.api_keys=[secret]")
    refused = await client.ask("POST", PATH, asked(), headers={"x-api-key": "other"})
    assert (refused.status, refused.json["error"]["type"]) == (401, "authentication_error")
    reply = await client.ask("POST", PATH, asked(), headers={"x-api-key": "secret"})
    assert reply.status == 200
