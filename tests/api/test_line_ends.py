"""What some clients take for the end of a line is escaped wherever JSON leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from appliance.api.http.responses import encode
from tests.api.asgi_client import Reply
from tests.api.conftest import Kitchen, PromptSide
from tests.api.fake_engine import speak

pytestmark = pytest.mark.anyio
Cook = Callable[..., Kitchen]
ENDS = ("\u2028", "\u2029", "\x85")
SAID = "one\u2028two\u2029three\x85four\u2028\u2028é\x0b\x0c\x1c\x1d\x1e end"


def lines_are_whole(reply: Reply) -> list[Any]:
    """Every event, read as a client does that splits at whatever Python calls a line end."""
    lines = reply.body.decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


@pytest.mark.parametrize(
    "value",
    [
        *(*ENDS, SAID, {SAID: SAID}, [SAID, 1, None], {"a": [{"b": "\x85\x85"}]}, "\\\u2028"),
        *('"\u2029', "é\u2027\u202a\x84\x86", "\ud83d\u2028", "plain", ""),
    ],
    ids=ascii,
)
def test_json_is_one_line_and_means_the_same(value: Any) -> None:
    text = encode(value)
    assert json.loads(text) == value
    assert text.splitlines() == [text]
    assert ("é" in text) == ("é" in json.dumps(value, ensure_ascii=False))


@pytest.mark.parametrize("fields", [{}, {"logprobs": True, "top_logprobs": 2}], ids=["text", "all"])
async def test_a_streamed_chat_has_whole_lines(
    cook: Cook, prompt_side: PromptSide, fields: dict[str, Any]
) -> None:
    client = cook(speak(*prompt_side.ids(SAID))).client
    reply = await client.chat(stream=True, **fields)
    events = lines_are_whole(reply)
    assert len(events) == len(reply.events) - 1
    told = [event["choices"][0]["delta"].get("content", "") for event in events]
    assert "".join(told) == SAID


@pytest.mark.parametrize("fields", [{}, {"logprobs": 2}], ids=["text", "all"])
async def test_a_streamed_completion_has_whole_lines(
    cook: Cook, prompt_side: PromptSide, fields: dict[str, Any]
) -> None:
    client = cook(speak(*prompt_side.ids(SAID))).client
    reply = await client.complete(prompt=SAID, echo=True, stream=True, **fields)
    assert len(lines_are_whole(reply)) == len(reply.events) - 1
    told = "".join(event["choices"][0]["text"] for event in lines_are_whole(reply))
    assert told == SAID * 2


async def test_bodies_and_refusals_are_one_line(cook: Cook, prompt_side: PromptSide) -> None:
    client = cook(speak(*prompt_side.ids(SAID))).client
    replies = [
        await client.chat(),
        await client.complete(prompt=SAID, echo=True, logprobs=1),
        await client.chat(model=SAID),
        await client.chat(chat_template_kwargs={SAID: 1}),
        await client.ask("GET", f"/v1/{SAID}"),
        await client.ask("GET", f"/v1/models/{SAID}"),
    ]
    for reply in replies:
        assert reply.body.decode().splitlines() == [reply.body.decode()]
    assert replies[0].json["choices"][0]["message"]["content"] == SAID
    assert [reply.status for reply in replies] == [200, 200, 404, 400, 404, 404]
    assert all(SAID[:20] in reply.error["message"] for reply in replies[2:])
