"""Responses as the official client asks for them, with its own helpers, of a server of the demo."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.serving.conftest import Server, serving

STAR = Path(__file__).parents[2] / "docs/images/blue-star.png"
KEEPING = "server.response_store_bytes=1000000"


class Paint(BaseModel, extra="forbid"):
    """Paints the wall."""

    colour: Literal["red", "blue"]


@pytest.fixture(scope="module")
def demo() -> Iterator[Server]:
    with serving("recipe=demo", "engine.threads=1", KEEPING) as server:
        yield server


@pytest.fixture
def client(demo: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def question(text: str) -> list[Any]:
    url = f"data:image/png;base64,{base64.b64encode(STAR.read_bytes()).decode()}"
    content = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": text}]
    return [{"role": "user", "content": content}]


def test_a_picture_is_seen_and_remembered(client: openai.OpenAI) -> None:
    asked = question("What colour is the star?")
    first = client.responses.create(model="demo", input=asked)
    assert first.output_text == "The star is blue."
    with client.responses.stream(model="demo", input=asked) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == first.output_text
    second = client.responses.create(
        model="demo", input="What colour is the star?", previous_response_id=first.id
    )
    assert "blue" in second.output_text
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_a_class_becomes_an_object_and_a_call(client: openai.OpenAI) -> None:
    parsed = client.responses.parse(
        model="demo", input="Paint it.", text_format=Paint, max_output_tokens=200
    )
    assert isinstance(parsed.output_parsed, Paint)
    tools: Any = [openai.pydantic_function_tool(Paint)["function"] | {"type": "function"}]
    with client.responses.stream(
        model="demo",
        input="Paint it.",
        tools=tools,
        tool_choice="required",
        parallel_tool_calls=False,
        max_output_tokens=300,
    ) as stream:
        for _ in stream:
            pass
        response = stream.get_final_response()
    (call,) = response.output
    assert call.type == "function_call"
    Paint.model_validate_json(call.arguments)
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Done."}
    after = client.responses.create(
        model="demo", input=[result], previous_response_id=response.id, max_output_tokens=20
    )
    assert after.status in ("completed", "incomplete")
    assert after.usage is not None
    assert response.usage is not None
    assert after.usage.input_tokens > 20
