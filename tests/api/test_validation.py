"""What is refused, by which name; what is ignored, and who is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.api.conftest import Kitchen

pytestmark = pytest.mark.anyio
Cook = Callable[..., Kitchen]


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


WRONG_CHAT = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "king", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "function", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "tool", "content": "hi"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": user(5)}, "messages[0].content"),
    ({"messages": user([])}, "messages[0].content"),
    ({"messages": user("\ud800")}, "messages[0].content"),
    ({"messages": user([5])}, "messages[0].content[0]"),
    ({"messages": user([{}])}, "messages[0].content[0].type"),
    ({"messages": user([{"type": "smell"}])}, "messages[0].content[0].type"),
    ({"messages": user([{"type": "text"}])}, "messages[0].content[0].text"),
    ({"messages": user(["a", {"type": "text", "text": 1}])}, "messages[0].content[1].text"),
    (
        {"messages": user([{"type": "video_url", "video_url": {}}])},
        "messages[0].content[0].video_url.url",
    ),
    ({"messages": user([{"input_audio": {}}])}, "messages[0].content[0].input_audio.format"),
    ({"messages": user([{"type": "file", "file": {}}])}, "messages[0].content[0].type"),
    (
        {"messages": user([{"type": "image_url", "image_url": "data:,"}])},
        "messages[0].content[0].image_url",
    ),
    (
        {"messages": user([{"type": "image_url", "image_url": {}}])},
        "messages[0].content[0].image_url.url",
    ),
    (
        {"messages": user([{"type": "image_url", "image_url": {"url": "x", "detail": "big"}}])},
        "messages[0].content[0].image_url.detail",
    ),
    (
        {"messages": user([{"type": "image_url", "image_url": None, "uuid": "u" * 257}])},
        "messages[0].content[0].uuid",
    ),
    ({"messages": user([{"image_url": "data:,"}])}, "messages[0].content[0].image_url"),
    (
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
        "messages[0].tool_calls[0].function",
    ),
    ({"model": None}, "model"),
    ({"model": 5}, "model"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": True}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": ["a", 5]}, "stop[1]"),
    ({"stop": {}}, "stop"),
    ({"seed": 2**63}, "seed"),
    ({"frequency_penalty": 2.5}, "frequency_penalty"),
    ({"presence_penalty": -2.5}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": 1e-320}, "repetition_penalty"),
    ({"stop": ["a" * 4097]}, "stop[0]"),
    ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
    ({"stop_token_ids": [1] * 1025}, "stop_token_ids"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"logit_bias": {"five": 1}}, "logit_bias"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias"),
    ({"logit_bias": []}, "logit_bias"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [0, 10**8]}, "stop_token_ids[1]"),
    ({"logprobs": 5}, "logprobs"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"cache_salt": 5}, "cache_salt"),
    ({"priority": "high"}, "priority"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"chat_template": "{{ messages }}"}, "chat_template"),
    ({"chat_template_kwargs": {"secret": 1}}, "chat_template_kwargs.secret"),
]

UNBUILT = [
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"functions": [{"name": "f"}]},
    {"function_call": {"name": "f"}},
    {"structural_tag": "x"},
    {"reasoning_effort": "low"},
    {"modalities": ["text", "audio"]},
    {"audio": {"voice": "alloy", "format": "wav"}},
    {"prediction": {"type": "content", "content": "x"}},
    {"web_search_options": {}},
    {"use_beam_search": True},
    {"best_of": 2},
    {"echo": True},
]

HARMLESS = [
    {"store": True},
    {"service_tier": "auto"},
    {"user": "ann"},
    {"metadata": {"a": "b"}},
    {"prompt_cache_key": "x"},
    {"safety_identifier": "x"},
    {"verbosity": "low"},
    {"parallel_tool_calls": True},
    {"tools": []},
    {"tools": None},
    {"tool_choice": "none"},
    {"tool_choice": "auto"},
    {"response_format": {"type": "text"}},
    {"modalities": ["text"]},
    {"reasoning_effort": None},
    {"temperature": 0},
    {"temperature": 2},
    {"top_k": -1},
    {"stop": None},
    {"stop": []},
    {"logit_bias": {}},
    {"n": 1},
    {"seed": -(2**63)},
    {"max_tokens": 5, "max_completion_tokens": 5},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"stream_options": None},
    {"nobody_knows": None},
]


@pytest.mark.parametrize(("fields", "param"), WRONG_CHAT, ids=str)
async def test_a_wrong_field_is_named(cook: Cook, fields: dict[str, Any], param: str) -> None:
    kitchen = cook()
    for stream in ({}, {"stream": True} if fields.keys() != {"stream_options"} else {}):
        reply = await kitchen.client.chat(**{**stream, **fields})
        assert reply.status == 400
        assert reply.error["param"] == param
        assert reply.error["type"] == "invalid_request_error"
        words = reply.error["message"].lower()
        assert "pydantic" not in words
        assert "input should" not in words
    assert kitchen.engine.requests == []


@pytest.mark.parametrize("fields", UNBUILT, ids=str)
async def test_what_would_change_the_answer_is_refused_by_name(
    cook: Cook, fields: dict[str, Any]
) -> None:
    reply = await cook().client.chat(**fields)
    (name,) = fields
    assert reply.status == 400
    assert (reply.error["param"], reply.error["code"]) == (name, "unsupported_parameter")
    assert name in reply.error["message"]


@pytest.mark.parametrize("fields", HARMLESS, ids=str)
@pytest.mark.parametrize("policy", ["warn", "reject"])
async def test_hints_and_nulls_are_accepted(
    cook: Cook, fields: dict[str, Any], policy: str
) -> None:
    reply = await cook(..., f"server.unknown_fields={policy}").client.chat(**fields)
    assert reply.status == 200, reply.body
    assert "x-ignored-fields" not in reply.headers


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a", 5]}, "prompt[1]"),
        ({"prompt": [[1, "a"]]}, "prompt[0]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": [10**9]}, "prompt"),
        ({"prompt": [[5], [-1]]}, "prompt[1]"),
        ({"prompt": "\udfff"}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3, "n": 2}, "best_of"),
        ({"prompt": [[5]] * 9, "n": 128}, "prompt"),
    ],
    ids=str,
)
async def test_completions_name_a_wrong_field(
    cook: Cook, fields: dict[str, Any], param: str
) -> None:
    reply = await cook().client.complete(**fields)
    assert reply.status == 400
    assert reply.error["param"] == param


async def test_unknown_fields_are_answered_and_told(
    cook: Cook, caplog: pytest.LogCaptureFixture
) -> None:
    messages = [{"role": "user", "content": "Hello", "mood": "gay"}]
    reply = await cook().client.chat(messages=messages, temprature=1, **{"sn\u00e9aky\r\nX": 1})
    assert reply.status == 200
    told = reply.headers["x-ignored-fields"]
    assert told == "temprature, sn%C3%A9aky%0D%0AX, messages[0].mood"
    assert "temprature" in caplog.text


async def test_unknown_fields_are_refused_where_the_recipe_says_so(cook: Cook) -> None:
    reply = await cook(..., "server.unknown_fields=reject").client.chat(temprature=1)
    assert reply.status == 400
    assert (reply.error["param"], reply.error["code"]) == ("temprature", "unknown_parameter")


async def test_another_model_is_not_found(cook: Cook) -> None:
    reply = await cook().client.chat(model="gpt-5")
    assert reply.status == 404
    assert reply.error["code"] == "model_not_found"


async def test_a_request_template_needs_the_recipe(cook: Cook) -> None:
    kitchen = cook(..., "chat.allow_request_template=true")
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    assert (await kitchen.client.chat(chat_template=template)).status == 200
    broken = await kitchen.client.chat(chat_template="{% for")
    assert (broken.status, broken.error["param"]) == (400, "chat_template")
