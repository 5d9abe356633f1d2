"""Anthropic's official client with its own helpers, of a server of the demo."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests.serving.conftest import Server, serving

STAR = Path(__file__).parents[2] / "docs/images/blue-star.png"
PAINT: dict[str, Any] = {
    "name": "paint",
    "input_schema": {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
    },
}


@pytest.fixture(scope="module")
def demo() -> Iterator[Server]:
    with serving("recipe=demo", "engine.threads=1", "server.api_keys=[secret]") as server:
        yield server


@pytest.fixture
def client(demo: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=demo.base_url, api_key="secret", max_retries=0) as client:
        yield client


def question(text: str) -> list[Any]:
    data = base64.b64encode(STAR.read_bytes()).decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    content = [{"type": "image", "source": source}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def test_a_picture_is_seen(client: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {
        "model": "demo",
        "max_tokens": 40,
        "messages": question("What colour is the star?"),
    }
    message = client.messages.create(**asked)
    (block,) = message.content
    assert block.type == "text"
    assert "blue" in block.text
    assert message.stop_reason == "end_turn"
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == block.text
        streamed = stream.get_final_message().usage
    assert streamed.output_tokens == message.usage.output_tokens
    assert streamed.cache_read_input_tokens, "the second time"
    counted = client.messages.count_tokens(model="demo", messages=asked["messages"])
    usage = message.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_a_tool_is_called_and_its_answer_taken(client: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": "demo", "max_tokens": 300, "tools": [PAINT]}
    choice: Any = {"type": "any", "disable_parallel_tool_use": True}
    messages = question("Paint it.")
    with client.messages.stream(**asked, messages=messages, tool_choice=choice) as stream:
        message = stream.get_final_message()
    assert message.stop_reason == "tool_use"
    (call,) = message.content
    assert call.type == "tool_use"
    assert call.name == "paint"
    assert call.input in ({"colour": "red"}, {"colour": "blue"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Done."}
    messages += [
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result]},
    ]
    answered = client.messages.create(**asked, messages=messages, tool_choice={"type": "none"})
    assert answered.stop_reason in ("end_turn", "max_tokens")


def test_faults_are_of_their_classes(client: anthropic.Anthropic) -> None:
    messages: list[Any] = [{"role": "user", "content": "Hi"}]
    with pytest.raises(anthropic.NotFoundError, match="model"):
        client.messages.create(model="other", max_tokens=5, messages=messages)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(model="demo", max_tokens=0, messages=messages)
    with (
        client.with_options(api_key="wrong") as stranger,
        pytest.raises(anthropic.AuthenticationError),
    ):
        stranger.messages.create(model="demo", max_tokens=5, messages=messages)
