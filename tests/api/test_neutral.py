"""What asks for nothing changes nothing, in every field of every route; its neighbours do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from appliance.api.chat.request import ChatRequest
from appliance.api.completions.request import CompletionRequest
from appliance.api.fields.unbuilt import HINTS, UNBUILT_CHAT, UNBUILT_COMPLETION
from engine.request import Request, SamplingOptions
from tests.api.asgi_client import Reply
from tests.api.conftest import Kitchen

pytestmark = pytest.mark.anyio
Cook = Callable[..., Kitchen]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}

# beside null, which is neutral in all that are not required
BOTH: dict[str, list[Any]] = {
    "temperature": [1, 1.0],
    "top_p": [1, 1.0],
    "n": [1, 1.0],
    "stop": [[], "", [""], ["", None]],
    "seed": [],
    "stream": [False],
    "stream_options": [
        {},
        {"include_usage": False},
        {"include_usage": None, "continuous_usage_stats": False, "include_obfuscation": True},
    ],
    "frequency_penalty": [0, 0.0, -0.0],
    "presence_penalty": [0, 0.0],
    "logit_bias": [{}],
    "top_k": [0, -1, 0.0, -1.0],
    "min_p": [0, 0.0],
    "repetition_penalty": [1, 1.0],
    "min_tokens": [0, 0.0],
    "stop_token_ids": [[]],
    "ignore_eos": [False],
    "include_stop_str_in_output": [False],
    "skip_special_tokens": [True],
    "cache_salt": [""],
    "priority": [0, 0.0],
    "return_token_ids": [False],
    "timings": [False],
    "reasoning_effort": ["none", ""],
    "reasoning": [{}, {"effort": None}, {"effort": "none"}, {"enabled": False}],
    "thinking": [{}, {"type": "disabled"}, False],
    "allowed_token_ids": [[]],
    "audio": [{}, {"voice": None}],
    "bad_words": [[]],
    "detokenize": [True],
    "documents": [[]],
    "ebnf": [""],
    "function_call": ["none", "auto", "", {}],
    "functions": [[]],
    "guided_choice": [[]],
    "guided_grammar": [""],
    "guided_json": [""],
    "guided_regex": [""],
    "include_reasoning": [True],
    "json_schema": [""],
    "length_penalty": [1, 1.0],
    "logits_processors": [[]],
    "lora_path": [""],
    "media_io_kwargs": [{}],
    "min_new_tokens": [0, 0.0],
    "mm_processor_kwargs": [{}],
    "modalities": [["text"]],
    "moderation": [{}],
    "prediction": [{}],
    "prompt_embeds": ["", []],
    "prompt_logprobs": [False],
    "regex": [""],
    "response_format": [{"type": "text"}, {"type": "text", "json_schema": None}, {}],
    "return_tokens_as_token_ids": [False],
    "spaces_between_special_tokens": [True],
    "stop_regex": [[], ""],
    "structural_tag": [""],
    "structured_outputs": [{}, {"json": None, "regex": None}],
    "thinking_token_budget": [],
    "parallel_tool_calls": [True],
    "tool_choice": ["none", "auto", "", {}, {"type": "none"}],
    "tools": [[]],
    "truncate_prompt_tokens": [],
    "use_beam_search": [False],
    "web_search_options": [],
    "best_of": [1, 1.0],
    "echo": [False],
}
BOTH |= {name: ["", "x", {}, [], 0, False] for name in HINTS}
CHAT: dict[str, list[Any]] = {
    **BOTH,
    "logprobs": [False],
    "top_logprobs": [0, 0.0],
    "max_tokens": [],
    "max_completion_tokens": [],
    "add_generation_prompt": [True],
    "add_special_tokens": [False],
    "continue_final_message": [False],
    "chat_template": [""],
    "chat_template_kwargs": [{}, {"unlisted": None}, {"thinking": False, "enable_thinking": False}],
    "media_io_kwargs": [{}, {"video": None}, {"video": {}}, {"video": {"fps": None}}],
}
COMPLETION: dict[str, list[Any]] = {
    **BOTH,
    "include_reasoning": [True, False],
    "parallel_tool_calls": [True, False],
    "tool_choice": ["none", "auto", "", {"type": "none"}],
    "logprobs": [False],
    "top_logprobs": [0],
    "max_tokens": [16, 16.0],
    "add_special_tokens": [True],
    "suffix": [""],
}
REQUIRED = {"model", "messages", "prompt"}


def cases(table: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in sorted(table.items()) for value in (None, *values)]


def seen(kitchen: Kitchen) -> tuple[list[int], SamplingOptions, int, int, bytes]:
    """What the engine was asked for at last."""
    request: Request = kitchen.engine.requests[-1]
    return request.prompt_ids, request.sampling, request.n, request.priority, request.salt


def told(reply: Reply) -> Any:
    """An answer but for what is new each time."""
    return {name: value for name, value in reply.json.items() if name not in ("id", "created")}


def test_no_field_is_forgotten() -> None:
    assert set(CHAT) == ({*ChatRequest.model_fields, *UNBUILT_CHAT, *HINTS} - REQUIRED)
    known = {*CompletionRequest.model_fields, *UNBUILT_COMPLETION, *HINTS}
    assert set(COMPLETION) == known - REQUIRED


@pytest.mark.parametrize(("name", "value"), cases(CHAT), ids=str)
async def test_a_chat_takes_what_asks_for_nothing(cook: Cook, name: str, value: Any) -> None:
    kitchen = cook(..., "server.unknown_fields=reject")
    plain = await kitchen.client.chat()
    expected = seen(kitchen)
    reply = await kitchen.client.chat(**{name: value})
    assert reply.status == 200, reply.body
    assert (seen(kitchen), told(reply)) == (expected, told(plain))
    assert "x-ignored-fields" not in reply.headers


@pytest.mark.parametrize(("name", "value"), cases(COMPLETION), ids=str)
async def test_a_completion_takes_what_asks_for_nothing(cook: Cook, name: str, value: Any) -> None:
    kitchen = cook(..., "server.unknown_fields=reject")
    plain = await kitchen.client.complete()
    expected = seen(kitchen)
    reply = await kitchen.client.complete(**{name: value})
    assert reply.status == 200, reply.body
    assert (seen(kitchen), told(reply)) == (expected, told(plain))


async def test_all_of_them_at_once_are_nothing(cook: Cook) -> None:
    kitchen = cook(..., "server.unknown_fields=reject")
    plain = await kitchen.client.chat()
    expected = seen(kitchen)
    for place in range(3):
        fields = {name: values[place % len(values)] for name, values in CHAT.items() if values}
        reply = await kitchen.client.chat(**fields)
        assert reply.status == 200, reply.body
        assert (seen(kitchen), told(reply)) == (expected, told(plain))


ASKS = [
    ("logprobs", 0),
    ("logprobs", "false"),
    ("top_logprobs", 1),
    ("top_logprobs", 0.5),
    ("reasoning_effort", "minimal"),
    ("reasoning_effort", "None"),
    ("reasoning", {"effort": "low"}),
    ("reasoning", {"enabled": True}),
    ("reasoning", {"effort": "none", "summary": "auto"}),
    ("reasoning", {"effort": "none", "enabled": True}),
    ("thinking", True),
    ("thinking", {"type": "enabled", "budget_tokens": 5}),
    ("tools", [TOOL]),
    ("tools", "none"),
    ("tool_choice", "required"),
    ("response_format", {"type": "text", "json_schema": {}}),
    ("structured_outputs", {"regex": ""}),
    ("web_search_options", {}),
    ("stream_options", {"include_usage": True}),
    ("stream_options", {"continuous_usage_stats": True}),
    ("stop", ["", 5]),
    ("stop", False),
    ("chat_template_kwargs", {"unlisted": False}),
    ("chat_template_kwargs", {"thinking": True}),
    ("media_io_kwargs", {"video": {"fps": 0}}),
    ("min_new_tokens", 1),
    ("length_penalty", True),
    ("detokenize", 1),
    ("use_beam_search", 0),
]


@pytest.mark.parametrize(("name", "value"), ASKS, ids=str)
async def test_what_asks_for_something_is_refused(cook: Cook, name: str, value: Any) -> None:
    reply = await cook().client.chat(**{name: value})
    assert reply.status == 400
    assert (reply.error["param"] or "").startswith(name)


MANY = [{**TOOL, "function": {**TOOL["function"], "name": f"tool_{n}"}} for n in range(40)]


@pytest.mark.parametrize(
    ("fields", "taken"),
    [
        ({"tools": [TOOL], "tool_choice": "none"}, True),
        ({"tools": MANY, "tool_choice": {"type": "none"}}, True),
        ({"functions": [TOOL["function"]], "function_call": "none"}, True),
        ({"tools": [TOOL], "tool_choice": "none", "parallel_tool_calls": False}, True),
        ({"tools": [TOOL], "tool_choice": "auto"}, False),
        ({"tools": [TOOL], "tool_choice": None}, False),
        ({"tools": [TOOL], "tool_choice": ""}, False),
        ({"tools": [TOOL], "function_call": "none"}, False),
        ({"functions": [TOOL["function"]], "tool_choice": "none"}, False),
        ({"tools": {"type": "function"}, "tool_choice": "none"}, False),
    ],
    ids=str,
)
async def test_tools_that_may_not_be_called_are_taken(
    cook: Cook, fields: dict[str, Any], taken: bool
) -> None:
    kitchen = cook()
    await kitchen.client.chat()
    expected = seen(kitchen)
    assert (await kitchen.client.chat(**fields)).status == (200 if taken else 400)
    assert (await kitchen.client.complete(**fields)).status == (200 if taken else 400)
    if taken:
        await kitchen.client.chat(**fields)
        assert seen(kitchen) == expected


QUIET: list[dict[str, Any]] = [
    {"role": "assistant", "content": ""},
    {"role": "assistant", "content": None},
    {"role": "assistant"},
    {"role": "assistant", "content": []},
    {"role": "assistant", "content": [{"type": "text", "text": ""}]},
    {"role": "assistant", "content": None, "tool_calls": []},
    {"role": "assistant", "content": None, "tool_calls": None, "function_call": None},
    {"role": "assistant", "function_call": {}, "audio": {}},
    {"role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None},
    {"role": "assistant", "content": None, "refusal": ""},
    {"role": "assistant", "content": "", "name": ""},
    {"role": "assistant", "content": "", "cache_control": {"type": "ephemeral"}},
]


@pytest.mark.parametrize("turn", QUIET, ids=str)
async def test_an_assistant_may_have_said_nothing(cook: Cook, turn: dict[str, Any]) -> None:
    kitchen = cook(..., "server.unknown_fields=reject")
    before, after = {"role": "user", "content": "Hello"}, {"role": "user", "content": "And?"}
    await kitchen.client.chat(messages=[before, QUIET[0], after])
    expected = seen(kitchen)
    reply = await kitchen.client.chat(messages=[before, turn, after])
    assert reply.status == 200, reply.body
    assert seen(kitchen) == expected


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "system", "content": None}, "messages[0].content"),
        ({"role": "assistant", "content": False}, "messages[0].content"),
        ({"role": "assistant", "content": {}}, "messages[0].content"),
        ({"role": "assistant", "content": [None]}, "messages[0].content[0]"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "messages[0].tool_calls[0].function"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages[0].function_call"),
        ({"role": "assistant", "audio": {"id": "1"}}, "messages[0].audio"),
        ({"role": "tool", "content": ""}, "messages[0].tool_call_id"),
    ],
    ids=str,
)
async def test_nobody_else_may(cook: Cook, message: dict[str, Any], param: str) -> None:
    reply = await cook().client.chat(messages=[message])
    assert (reply.status, reply.error["param"]) == (400, param)


async def test_hints_about_caching_are_no_unknown_fields(cook: Cook) -> None:
    kept = {"type": "ephemeral"}
    part = {"type": "text", "text": "Hello", "cache_control": kept}
    messages = [{"role": "user", "content": [part], "cache_control": kept}]
    client = cook(..., "server.unknown_fields=reject").client
    assert (await client.chat(messages=messages)).status == 200
    messages[0]["cache"] = kept
    assert (await client.chat(messages=messages)).error["param"] == "messages[0].cache"


async def test_unknown_options_of_a_stream_are_told(cook: Cook) -> None:
    reply = await cook().client.chat(stream=True, stream_options={"pace": 1, "include_usage": True})
    assert reply.headers["x-ignored-fields"] == "stream_options.pace"


WHOLE = [
    ("max_tokens", 7),
    ("n", 2),
    ("seed", 7),
    ("seed", -3),
    ("top_k", 40),
    ("min_tokens", 1),
    ("priority", 5),
    ("max_completion_tokens", 9),
    ("stop_token_ids", [3, 4]),
    ("stop_token_ids", [3, 4.0]),
]


@pytest.mark.parametrize(("name", "value"), WHOLE, ids=str)
async def test_whole_numbers_may_have_a_point(cook: Cook, name: str, value: Any) -> None:
    kitchen = cook()
    await kitchen.client.chat(**{name: value})
    expected = seen(kitchen)
    pointed = list(map(float, value)) if isinstance(value, list) else float(value)
    assert (await kitchen.client.chat(**{name: pointed})).status == 200
    assert seen(kitchen) == expected


@pytest.mark.parametrize(
    ("name", "value", "param"),
    [
        ("max_tokens", 6.5, None),
        ("max_tokens", 0.0, None),
        ("max_tokens", "6", None),
        ("max_tokens", True, None),
        ("n", 1.5, None),
        ("n", 129.0, None),
        ("seed", 1e300, None),
        ("seed", 2.0**63, None),
        ("top_k", 2.0**31, None),
        ("top_k", -2.0, None),
        ("priority", 0.1, None),
        ("stop_token_ids", [0.5], "stop_token_ids[0]"),
        ("stop_token_ids", [1e9], "stop_token_ids[0]"),
        ("top_logprobs", 21.0, None),
    ],
    ids=str,
)
async def test_no_other_number_is_whole(
    cook: Cook, name: str, value: Any, param: str | None
) -> None:
    reply = await cook().client.chat(logprobs=True, **{name: value})
    assert (reply.status, reply.error["param"]) == (400, param or name)


async def test_infinity_is_no_whole_number(cook: Cook) -> None:
    body = b'{"model": "tiny", "prompt": "a", "max_tokens": 1e999}'
    headers = {"Content-Type": "application/json"}
    reply = await cook().client.ask("POST", "/v1/completions", body=body, headers=headers)
    assert (reply.status, reply.error["param"]) == (400, "max_tokens")


async def test_token_ids_and_numbers_of_completions_may_have_a_point(cook: Cook) -> None:
    kitchen = cook()
    for prompt in ([5.0, 6.0], [5, 6.0], [[5.0, 6]]):
        reply = await kitchen.client.complete(prompt=prompt, logprobs=2.0, best_of=1.0)
        assert reply.status == 200
        assert kitchen.engine.requests[-1].prompt_ids == [5, 6]
    for prompt in ([5.5], [[5, 6.1]], [1e300], [True, 5.0], [5.0, "a"]):
        assert (await kitchen.client.complete(prompt=prompt)).status == 400
