"""Prompts shown without an answer: the tokens of the reference, and those that the engine gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from appliance.api.prompts.reply import LARGE, text_of
from tests.api.asgi_client import Reply, chat_body
from tests.api.conftest import Kitchen, PromptSide

pytestmark = pytest.mark.anyio

Cook = Callable[..., Kitchen]
TEXT = "Ein Ärger, twice: 你好.\n"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who is there?"},
    {"role": "assistant", "content": "Me."},
    {"role": "user", "content": "Who?"},
]


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint)


async def post(kitchen: Kitchen, path: str, **body: Any) -> Reply:
    return await kitchen.client.ask("POST", path, body)


async def test_a_texts_tokens_are_the_references(cook: Cook, reference: Any) -> None:
    kitchen = cook()
    for special in (True, False):
        reply = await post(kitchen, "/tokenize", prompt=TEXT, add_special_tokens=special)
        ids = reference(TEXT, add_special_tokens=special)["input_ids"]
        assert reply.json == {
            "count": len(ids),
            "max_model_len": 256,
            "tokens": ids,
            "token_strs": None,
        }
    named = await post(kitchen, "/tokenize", model="tiny", prompt=TEXT, return_token_strs=True)
    assert named.json["token_strs"] == reference.convert_ids_to_tokens(named.json["tokens"])
    assert not kitchen.engine.requests


async def test_tokens_become_the_text_again(cook: Cook, reference: Any) -> None:
    kitchen = cook()
    ids = reference(TEXT)["input_ids"]
    reply = await post(kitchen, "/detokenize", tokens=[float(ids[0]), *ids[1:]])
    assert reply.json == {"prompt": reference.decode(ids)}
    assert (await post(kitchen, "/detokenize", tokens=[])).json == {"prompt": ""}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"add_generation_prompt": False},
        {"messages": TALK[:3], "continue_final_message": True},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "none", "temperature": 0.5, "stream": True, "max_tokens": 5},
    ],
)
async def test_a_conversations_tokens_are_those_that_the_engine_gets(
    cook: Cook, prompt_side: PromptSide, fields: dict[str, Any]
) -> None:
    kitchen = cook()
    body = chat_body(**{"messages": TALK, **fields})
    assert (await post(kitchen, "/v1/chat/completions", **body)).status == 200
    [request] = kitchen.engine.requests
    counted = await post(kitchen, "/tokenize", **body)
    assert counted.json["tokens"] == request.prompt_ids
    assert counted.json["count"] == len(request.prompt_ids)
    shown = (await post(kitchen, "/v1/chat/completions/render", **body)).json
    assert shown["token_ids"] == request.prompt_ids
    assert shown["max_tokens"] == request.sampling.max_tokens
    assert shown["spans"] == []
    assert prompt_side.tokenizer.encode(shown["text"], special=True) == request.prompt_ids
    assert len(kitchen.engine.requests) == 1


async def test_a_rendered_conversation_is_the_references(cook: Cook, reference: Any) -> None:
    shown = await post(cook(), "/v1/chat/completions/render", model="tiny", messages=TALK)
    assert shown.json["text"] == reference.apply_chat_template(
        TALK, tokenize=False, add_generation_prompt=True
    )


async def test_plain_prompts_are_shown_as_they_go_to_the_engine(cook: Cook) -> None:
    kitchen = cook()
    body = {"model": "tiny", "prompt": [TEXT, [5, 6, 7]], "max_tokens": 9}
    assert (await post(kitchen, "/v1/completions", **body)).status == 200
    shown = (await post(kitchen, "/v1/completions/render", **body)).json
    assert [one["token_ids"] for one in shown] == [
        request.prompt_ids for request in kitchen.engine.requests
    ]
    assert [one["max_tokens"] for one in shown] == [9, 9]
    assert shown[0]["text"] == TEXT
    again = await post(kitchen, "/detokenize", tokens=[5, 6, 7])
    assert shown[1]["text"] == again.json["prompt"]


async def test_a_prompt_too_long_for_an_answer_is_counted_and_not_rendered(cook: Cook) -> None:
    """That it does not fit is what a client wants to find out."""
    kitchen = cook()
    long = [{"role": "user", "content": "x y " * 150}]
    counted = await post(kitchen, "/tokenize", messages=long)
    assert counted.json["count"] > counted.json["max_model_len"]
    shown = await post(kitchen, "/v1/chat/completions/render", model="tiny", messages=long)
    asked = await post(kitchen, "/v1/chat/completions", model="tiny", messages=long)
    assert (shown.status, shown.error) == (asked.status, asked.error)
    assert shown.error["code"] == "context_length_exceeded"
    endless = await post(kitchen, "/tokenize", prompt="x" * 1_000_000)
    assert endless.error["code"] == "context_length_exceeded"  # refused unread


async def test_many_tokens_become_the_same_text_as_few(prompt_side: PromptSide) -> None:
    ids = prompt_side.ids(TEXT * 600)
    assert len(ids) > LARGE
    assert text_of(ids, prompt_side.tokenizer) == prompt_side.tokenizer.decode(ids)


TOKENIZE = [
    ({}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": ["a"]}, "prompt"),
    ({"prompt": "\ud800"}, "prompt"),
    ({"prompt": "a", "messages": TALK}, "prompt"),
    ({"prompt": "a", "add_special_tokens": "no"}, "add_special_tokens"),
    ({"prompt": "a", "return_token_strs": 1}, "return_token_strs"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role"),
    ({"messages": TALK, "add_special_tokens": True}, "add_special_tokens"),
    ({"messages": TALK, "chat_template": "{{ messages }}"}, "chat_template"),
    ({"messages": TALK, "chat_template_kwargs": {"odd": 1}}, "chat_template_kwargs.odd"),
    (
        {"messages": TALK, "continue_final_message": True},
        "continue_final_message",
    ),
    (
        {"messages": [{"role": "user", "content": [{"image_url": "data:,"}]}]},
        "messages[0].content[0].image_url",
    ),
]


@pytest.mark.parametrize(("body", "param"), TOKENIZE, ids=str)
async def test_what_cannot_be_tokenized_is_refused(
    cook: Cook, body: dict[str, Any], param: str
) -> None:
    reply = await post(cook(), "/tokenize", **body)
    assert (reply.status, reply.error["param"]) == (400, param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "tokens"),
        ({"tokens": "5"}, "tokens"),
        ({"tokens": [5, "6"]}, "tokens[1]"),
        ({"tokens": [5, True]}, "tokens[1]"),
        ({"tokens": [5.5]}, "tokens[0]"),
        ({"tokens": [5, -1]}, "tokens[1]"),
        ({"tokens": [10**8]}, "tokens[0]"),
        ({"tokens": [10**30]}, "tokens[0]"),
        ({"tokens": [5] * 257}, "tokens"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_are_no_tokens_is_refused(cook: Cook, body: dict[str, Any], param: str) -> None:
    reply = await post(cook(), "/detokenize", **body)
    assert (reply.status, reply.error["param"]) == (400, param)


ROUTES = ["/tokenize", "/detokenize", "/v1/chat/completions/render", "/v1/completions/render"]


@pytest.mark.parametrize("path", ROUTES)
async def test_prompts_are_shown_under_the_rules_of_answers(cook: Cook, path: str) -> None:
    body = {"model": "tiny", "tokens": [5]}
    if "detokenize" not in path:
        body = chat_body() if "chat" in path else {"model": "tiny", "prompt": "a"}
    kitchen = cook(..., "server.api_keys=[ann]", "server.limits.requests_per_minute=5")
    bearer = {"Authorization": "Bearer ann"}

    async def ask(**fields: Any) -> Reply:
        return await kitchen.client.ask("POST", path, {**body, **fields}, headers=bearer)

    assert (await kitchen.client.ask("POST", path, body)).status == 401
    assert (await ask()).headers["x-ratelimit-remaining-requests"] == "4"
    assert (await ask(model="other")).error["code"] == "model_not_found"
    assert (await ask(odd=1)).headers["x-ignored-fields"] == "odd"
    assert (await kitchen.client.ask("GET", path, headers=bearer)).status == 405
    kitchen.service.lifecycle.draining = True
    assert (await ask()).error["code"] == "draining"


async def test_a_rendering_is_refused_as_its_answer_would_be(cook: Cook) -> None:
    kitchen = cook()
    for fields in (
        {"temperature": 3},
        {"min_tokens": 9, "max_tokens": 8},
        {"logit_bias": {"99999999": 1}},
        {"priority": -5},
        {"max_tokens": 10_000},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
    ):
        shown = await post(kitchen, "/v1/chat/completions/render", **chat_body(**fields))
        asked = await post(kitchen, "/v1/chat/completions", **chat_body(**fields))
        assert (shown.status, shown.error) == (asked.status, asked.error)
        assert shown.status == 400
