"""OpenAI's responses: what items become, what comes back, what is kept, and how it is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.api.test_tools import ASKED, CALL, PARAMETERS, Speak, last, side, speaking

__all__ = ["side", "speaking"]
pytestmark = pytest.mark.anyio

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER = {"type": "function", "name": "weather", "parameters": PARAMETERS}
PATH = "/v1/responses"
KEEPING = "server.response_store_bytes=20000"


def asked(**fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "input": ASKED[0]["content"], **fields}
    return {name: value for name, value in body.items() if value is not ...}


def bare(output: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what is new each time."""
    return [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in output]


async def test_an_answer_is_items(speaking: Speak) -> None:
    client, _ = speaking(f"<think>Hm.</think>I look. {CALL}")
    reply = await client.ask("POST", PATH, asked(tools=[WEATHER], metadata={"a": "b"}))
    response = Response.model_validate(reply.json, strict=True)
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    thought, _, call = response.output
    assert thought.type == "reasoning"
    assert [part.text for part in thought.content or []] == ["Hm."]
    assert response.output_text == "I look."
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Oslo", "days": 2})
    assert (response.status, response.metadata) == ("completed", {"a": "b"})
    assert response.usage is not None
    assert response.usage.output_tokens > response.usage.output_tokens_details.reasoning_tokens > 3


async def test_a_stream_says_what_the_whole_does(speaking: Speak) -> None:
    client, _ = speaking(f"<think>Hm.</think>I look. {CALL}\n{CALL}")
    whole = (await client.ask("POST", PATH, asked(tools=[WEATHER]))).json
    reply = await client.ask("POST", PATH, asked(tools=[WEATHER], stream=True))
    events = []
    for block in filter(None, reply.body.decode().split("\n\n")):
        name, data = block.split("\n")
        told = json.loads(data.removeprefix("data: "))
        assert name == f"event: {told['type']}"
        EVENT.validate_python(told, strict=True)
        events.append(told)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    items: dict[str, dict[str, Any]] = {}
    written: dict[str, str] = {}
    for event in events[2:-1]:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(items)
            items[event["item"]["id"]] = event["item"]
        elif kind == "output_item.done":
            assert event["item"]["id"] in items
            items[event["item"]["id"]] = event["item"]
        elif kind.endswith(".delta"):
            written[event["item_id"]] = written.get(event["item_id"], "") + event["delta"]
        elif kind.endswith("text.done"):
            assert written[event["item_id"]] == event["text"]
        elif kind.endswith("arguments.done"):
            assert written[event["item_id"]] == event["arguments"]
    final = events[-1]["response"]
    assert list(items.values()) == final["output"]
    assert bare(final["output"]) == bare(whole["output"])
    assert {**final["usage"], "input_tokens_details": 0} == {
        **whole["usage"],
        "input_tokens_details": 0,
    }


async def test_the_prompt_is_that_of_the_same_chat(speaking: Speak) -> None:
    client, engine = speaking("Fine.")
    items: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "input_text", "text": "How is it?"}]},
        {
            "type": "reasoning",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
        },
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
        },
        {
            "type": "function_call",
            "call_id": "c",
            "name": "weather",
            "arguments": '{"city": "Oslo"}',
        },
        {"type": "function_call_output", "call_id": "c", "output": "Rain."},
        {"role": "user", "content": "And now?"},
    ]
    fields = asked(input=items, instructions="Be brief.", tools=[WEATHER])
    reply = await client.ask("POST", PATH, fields)
    assert reply.status == 200, reply.body
    assert "x-ignored-fields" not in reply.headers
    theirs = last(engine).prompt_ids
    call = {
        "id": "c",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
    }
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How is it?"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm.",
            "tool_calls": [call],
        },
        {"role": "tool", "tool_call_id": "c", "content": "Rain."},
        {"role": "user", "content": "And now?"},
    ]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
    assert (await client.chat(messages=chat, tools=tools)).status == 200
    assert last(engine).prompt_ids == theirs


async def test_one_goes_on_from_another_that_is_kept(speaking: Speak) -> None:
    client, engine = speaking("<think>Hm.</think>Fine.", KEEPING)
    first = (await client.ask("POST", PATH, asked(instructions="Be brief."))).json
    assert first["store"] is True
    fields = asked(input="Sure?", previous_response_id=first["id"], instructions="Be kind.")
    second = await client.ask("POST", PATH, fields)
    assert second.status == 200, second.body
    theirs = last(engine).prompt_ids
    chat = [
        {"role": "system", "content": "Be kind."},
        *ASKED,
        {"role": "assistant", "content": "Fine.", "reasoning_content": "Hm."},
        {"role": "user", "content": "Sure?"},
    ]
    await client.chat(messages=chat)
    assert last(engine).prompt_ids == theirs
    kept = await client.ask("GET", f"{PATH}/{first['id']}")
    assert kept.json == first
    gone = await client.ask("DELETE", f"{PATH}/{first['id']}")
    assert gone.json == {"id": first["id"], "object": "response", "deleted": True}
    for method in ("GET", "DELETE"):
        assert (await client.ask(method, f"{PATH}/{first['id']}")).status == 404
    again = await client.ask("POST", PATH, fields)
    assert (again.status, again.error["code"]) == (400, "previous_response_not_found")
    streamed = await client.ask("POST", PATH, asked(stream=True))
    identity = json.loads(streamed.events_of("response.created")[0])["response"]["id"]
    assert (await client.ask("GET", f"{PATH}/{identity}")).status == 200
    unkept = (await client.ask("POST", PATH, asked(store=False))).json
    assert unkept["store"] is False
    assert (await client.ask("GET", f"{PATH}/{unkept['id']}")).status == 404


async def test_the_oldest_make_room_and_keys_are_kept_apart(speaking: Speak) -> None:
    client, _ = speaking("Fine.", KEEPING, "server.api_keys=[one-key, two-keys]")
    mine = {"Authorization": "Bearer one-key"}
    first = (await client.ask("POST", PATH, asked(), headers=mine)).json
    path = f"{PATH}/{first['id']}"
    assert (await client.ask("GET", path, headers=mine)).status == 200
    others = {"Authorization": "Bearer two-keys"}
    assert (await client.ask("GET", path, headers=others)).status == 404
    stolen = asked(previous_response_id=first["id"])
    assert (await client.ask("POST", PATH, stolen, headers=others)).status == 400
    for _ in range(20):
        latest = (await client.ask("POST", PATH, asked(), headers=mine)).json
    assert (await client.ask("GET", path, headers=mine)).status == 404
    assert (await client.ask("GET", f"{PATH}/{latest['id']}", headers=mine)).status == 200


async def test_nothing_is_kept_unless_the_recipe_says_so(speaking: Speak) -> None:
    client, _ = speaking("Fine.")
    first = (await client.ask("POST", PATH, asked(store=True))).json
    assert first["store"] is False
    reply = await client.ask("POST", PATH, asked(previous_response_id=first["id"]))
    assert (reply.status, reply.error["param"]) == (400, "previous_response_id")
    assert "server.response_store_bytes" in reply.error["message"]


async def test_an_answer_cut_off_is_incomplete(speaking: Speak) -> None:
    client, engine = speaking("Fine.")
    await client.ask("POST", PATH, asked(max_output_tokens=7, temperature=0.5, top_p=0.9))
    sampling = last(engine).sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (7, 0.5, 0.9)


async def test_forms_choices_and_thoughts_have_their_effect(speaking: Speak) -> None:
    client, engine = speaking("Fine.")
    form = {"type": "json_schema", "name": "n", "schema": {"type": "integer"}, "strict": True}
    reply = await client.ask("POST", PATH, asked(text={"format": form, "verbosity": "low"}))
    assert reply.status == 200, reply.body
    assert "x-ignored-fields" not in reply.headers
    assert last(engine).constraint is not None
    prompt = last(engine).prompt_ids
    reply = await client.ask("POST", PATH, asked(reasoning={"effort": "low", "summary": "auto"}))
    assert reply.headers["x-ignored-fields"] == "reasoning.summary"
    assert last(engine).prompt_ids != prompt
    for choice in ("required", {"type": "function", "name": "weather"}):
        await client.ask("POST", PATH, asked(tools=[WEATHER], tool_choice=choice))
        assert last(engine).constraint is not None
    await client.ask("POST", PATH, asked(tools=[WEATHER], tool_choice="none"))
    assert last(engine).constraint is None


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"input": ...}, "input"),
    ({"input": 5}, "input"),
    ({"input": []}, "input"),
    ({"input": ["x"]}, "input[0]"),
    ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
    ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": ["x"]}]}, "input[0].content[0]"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
        "input[0].content[0].type",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
        "input[0].content[0].text",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
        "input[0].content[0].image_url",
    ),
    (
        {
            "instructions": "Be brief.",
            "input": [
                {
                    "role": "user",
                    "content": [{"type": "input_image", "image_url": "https://a.example/b"}],
                }
            ],
        },
        "input[0].content[0].image_url",
    ),
    ({"input": [{"type": "function_call", "call_id": "c"}]}, "input[0].name"),
    (
        {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}]},
        "input[0].arguments",
    ),
    ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
    ({"input": [{"type": "reasoning", "summary": "x"}]}, "input[0].summary"),
    ({"instructions": 5}, "instructions"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 5000}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
    (
        {"tools": [{"type": "function", "name": "a", "parameters": {"type": "array"}}]},
        "tools[0].parameters.type",
    ),
    ({"tools": [WEATHER], "tool_choice": "perhaps"}, "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "b"}}, "tool_choice.name"),
    ({"text": {"format": 5}}, "text.format"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "schema": 5}}}, "text.format.schema"),
    ({"reasoning": {"effort": "much"}}, "reasoning.effort"),
    ({"include": ["file_search_call.results"]}, "include[0]"),
    ({"background": True}, "background"),
    ({"truncation": "auto"}, "truncation"),
    ({"conversation": "c"}, "conversation"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"previous_response_id": 5}, "previous_response_id"),
    ({"model": "other"}, "model"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: str(value)[:80])
async def test_what_is_wrong_is_named_in_their_terms(
    speaking: Speak, fields: dict[str, Any], param: str
) -> None:
    client, engine = speaking("Fine.")
    reply = await client.ask("POST", PATH, asked(**fields))
    assert reply.status == (404 if param == "model" else 400), reply.body
    assert reply.error["param"] == param, reply.error
    assert "'messages" not in reply.error["message"]
    assert not engine.requests
