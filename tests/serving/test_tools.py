"""Tools called as the official client calls them, of a server of the demo, which knows of none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from tests.serving.conftest import Server, serving


class Weather(BaseModel, extra="forbid"):
    """The weather somewhere."""

    city: Literal["Oslo", "Rome", "Lima"]
    days: int = Field(ge=1, le=9)


class Clock(BaseModel, extra="forbid"):
    """What time it is."""


TOOLS: Any = [openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(Clock)]
QUESTION: Any = [{"role": "user", "content": "How is the weather?"}]
MODELS: dict[str, type[BaseModel]] = {"Weather": Weather, "Clock": Clock}


@pytest.fixture(scope="module")
def demo() -> Iterator[Server]:
    with serving("recipe=demo", "engine.threads=1") as server:
        yield server


@pytest.fixture
def client(demo: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def asked(seed: int, **fields: Any) -> dict[str, Any]:
    return {
        "model": "demo",
        "messages": QUESTION,
        "tools": TOOLS,
        "temperature": 1.5,
        "seed": seed,
        "max_tokens": 200,
        **fields,
    }


def test_a_call_that_must_come_fits_its_class(client: openai.OpenAI) -> None:
    completion = client.chat.completions.parse(
        **asked(1, tool_choice="required", n=4, parallel_tool_calls=False)
    )
    names = set()
    for choice in completion.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        (call,) = choice.message.tool_calls or []
        assert isinstance(call.function.parsed_arguments, MODELS[call.function.name])
        names.add(call.function.name)
    assert names


def test_the_named_tool_is_called_once_where_one_call_is_wanted(client: openai.OpenAI) -> None:
    named = {"type": "function", "function": {"name": "Weather"}}
    for seed in range(4):
        fields = asked(seed, tool_choice=named, parallel_tool_calls=False)
        completion = client.chat.completions.create(**fields)
        (call,) = completion.choices[0].message.tool_calls or []
        assert call.type == "function"
        Weather.model_validate_json(call.function.arguments)


def test_a_stream_has_the_calls_of_the_body(client: openai.OpenAI) -> None:
    fields = asked(7, tool_choice="required", parallel_tool_calls=False)
    whole = client.chat.completions.create(**fields).choices[0].message
    with client.chat.completions.stream(**fields) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0].message

    def told(calls: Any) -> list[tuple[str, str]]:
        return [(call.function.name, call.function.arguments) for call in calls]

    assert told(streamed.tool_calls) == told(whole.tool_calls)


def test_the_answer_of_a_tool_goes_on_with_the_conversation(client: openai.OpenAI) -> None:
    fields = asked(3, tool_choice="required", parallel_tool_calls=False)
    message = client.chat.completions.create(**fields).choices[0].message
    (call,) = message.tool_calls or []
    answer = {"role": "tool", "tool_call_id": call.id, "content": "It rains."}
    messages = [*QUESTION, message.to_dict(), answer]
    reply = client.chat.completions.create(
        model="demo", messages=messages, tools=TOOLS, max_tokens=20
    )
    assert reply.choices[0].finish_reason in ("stop", "length")
    prompt = client.chat.completions.create(
        model="demo", messages=messages[:1], tools=TOOLS, max_tokens=1
    )
    assert reply.usage is not None
    assert prompt.usage is not None
    assert reply.usage.prompt_tokens > prompt.usage.prompt_tokens


def test_many_at_once_are_each_held_to_their_own_tools(client: openai.OpenAI) -> None:
    def call(number: int) -> tuple[str, Any]:
        name = f"tool_{number}"
        schema = {
            "type": "object",
            "properties": {f"key_{number}": {"enum": [number]}},
            "required": [f"key_{number}"],
            "additionalProperties": False,
        }
        tool: Any = {"type": "function", "function": {"name": name, "parameters": schema}}
        fields = asked(number, tools=[tool], tool_choice="required", parallel_tool_calls=False)
        completion = client.chat.completions.create(**fields)
        (made,) = completion.choices[0].message.tool_calls or []
        assert made.type == "function"
        return made.function.name, json.loads(made.function.arguments)

    with ThreadPoolExecutor(8) as threads:
        for number, (name, arguments) in enumerate(threads.map(call, range(16))):
            assert (name, arguments) == (f"tool_{number}", {f"key_{number}": number})
