"""Vectors through the endpoint, of an engine that plays them."""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
from openai.types import CreateEmbeddingResponse

from engine.request import NO_TOKENS, Output, Request
from tests.api.conftest import MAX_LEN, Kitchen, PromptSide
from tests.api.fake_engine import Step

pytestmark = pytest.mark.anyio
Cook = Callable[..., Kitchen]

SERVES = "embeddings.serve=true"
WIDTH = 64  # of the tiny checkpoint


def of(request: Request) -> numpy.ndarray:
    """A vector that tells its prompt from others."""
    random = numpy.random.default_rng(request.prompt_ids)
    return random.standard_normal(WIDTH).astype(numpy.float32)


def pool(request: Request) -> Iterator[Step]:
    yield Output(request.id, 0, [], "stop", cached_tokens=2, vector=of(request))


def unit(vector: numpy.ndarray) -> numpy.ndarray:
    return vector / numpy.linalg.norm(vector)


async def embed(kitchen: Kitchen, **fields: Any) -> Any:
    return await kitchen.client.ask("POST", "/v1/embeddings", {"model": "tiny", **fields})


async def test_a_body_is_what_the_openai_package_expects(
    cook: Cook, prompt_side: PromptSide
) -> None:
    kitchen = cook(pool, SERVES)
    reply = await embed(kitchen, input=["Once", "upon a time"], user="me")
    assert reply.status == 200, reply.body
    answer = CreateEmbeddingResponse.model_validate(reply.json, strict=True)
    assert (answer.model, answer.object) == ("tiny", "list")
    asked = kitchen.engine.requests
    assert [one.prompt_ids for one in asked] == [
        prompt_side.ids("Once"),
        prompt_side.ids("upon a time"),
    ]
    assert [(one.pooling, one.sampling) for one in asked] == [("last", NO_TOKENS)] * 2
    for number, entry in enumerate(answer.data):
        assert entry.index == number
        assert numpy.allclose(entry.embedding, unit(of(asked[number])), atol=1e-6)
    tokens = sum(len(one.prompt_ids) for one in asked)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)
    assert reply.json["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}


async def test_base64_is_the_same_numbers(cook: Cook) -> None:
    kitchen = cook(pool, SERVES)
    numbers = (await embed(kitchen, input="Once")).json["data"][0]["embedding"]
    encoded = await embed(kitchen, input="Once", encoding_format="base64")
    text = encoded.json["data"][0]["embedding"]
    assert numpy.frombuffer(base64.b64decode(text), dtype="<f4").tolist() == numbers


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ([9, 8, 7], [[9, 8, 7]]),
        ([9.0, 8], [[9, 8]]),
        ([[9], [8, 7]], [[9], [8, 7]]),
        (["Once", [5]], ["Once", [5]]),
        ("Once", ["Once"]),
    ],
)
async def test_inputs_of_every_kind(
    cook: Cook, prompt_side: PromptSide, given: object, prompts: list[str | list[int]]
) -> None:
    kitchen = cook(pool, SERVES)
    reply = await embed(kitchen, input=given)
    assert len(reply.json["data"]) == len(prompts)
    assert [one.prompt_ids for one in kitchen.engine.requests] == [
        prompt_side.ids(one) if isinstance(one, str) else one for one in prompts
    ]


async def test_messages_are_a_conversation_without_an_answer_to_come(
    cook: Cook, prompt_side: PromptSide
) -> None:
    kitchen = cook(pool, SERVES)
    messages = [{"role": "user", "content": [{"type": "text", "text": "Once"}]}]
    reply = await embed(kitchen, messages=messages)
    assert len(reply.json["data"]) == 1
    await embed(kitchen, messages=messages, add_generation_prompt=True)
    plain, begun = (one.prompt_ids for one in kitchen.engine.requests)
    decoded = prompt_side.tokenizer.decode(plain)
    assert decoded.endswith("<|im_start|>user\nOnce<|im_end|>\n")
    assert prompt_side.tokenizer.decode(begun) == decoded + "<|im_start|>assistant\n"


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
async def test_how_is_the_recipes_to_say(cook: Cook, pooling: str) -> None:
    kitchen = cook(pool, SERVES, f"embeddings.pooling={pooling}", "embeddings.normalize=false")
    plain = (await embed(kitchen, input="Once")).json["data"][0]["embedding"]
    assert kitchen.engine.requests[0].pooling == pooling
    assert plain == of(kitchen.engine.requests[0]).tolist()
    normed = (await embed(kitchen, input="Once", normalize=True)).json["data"][0]["embedding"]
    assert math.isclose(math.hypot(*normed), 1, abs_tol=1e-6)
    assert not math.isclose(math.hypot(*plain), 1, abs_tol=0.1)


async def test_vectors_are_cut_before_they_are_normed(cook: Cook) -> None:
    kitchen = cook(pool, SERVES, "embeddings.dimensions=[16,32]")
    for dimensions in (16, 32, WIDTH):
        reply = await embed(kitchen, input="Once", dimensions=dimensions)
        cut = of(kitchen.engine.requests[0])[:dimensions]
        assert numpy.allclose(reply.json["data"][0]["embedding"], unit(cut), atol=1e-6)
    card = (await kitchen.client.ask("GET", "/v1/models")).json["data"][0]
    assert card["embeddings"]["dimensions"] == [16, 32, WIDTH]
    assert card["modalities"]["output"] == ["text", "embedding"]


async def test_priority_and_salt_reach_the_engine(cook: Cook) -> None:
    kitchen = cook(pool, SERVES, "server.limits.priority=[-5,5]")
    for salt in ("", "one", "two"):
        await embed(kitchen, input="Once", priority=3, cache_salt=salt)
    salts = [one.salt for one in kitchen.engine.requests]
    assert len(set(salts)) == 3
    assert {one.priority for one in kitchen.engine.requests} == {3}


WRONG = [
    ({"input": None}, "input"),
    ({"input": ""}, "input"),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": {"text": "a"}}, "input"),
    ({"input": "\ud800"}, "input"),
    ({"input": ["a", 5]}, "input[1]"),
    ({"input": ["a", None]}, "input[1]"),
    ({"input": ["a", ""]}, "input[1]"),
    ({"input": [[5], []]}, "input[1]"),
    ({"input": [[5], [1.5]]}, "input[1]"),
    ({"input": [[5], [10**9]]}, "input[1]"),
    ({"input": [5, -1]}, "input"),
    ({"input": [5, True]}, "input[0]"),
    ({"input": ["a"] * 2049}, "input"),
    ({"input": [5] * (MAX_LEN + 1)}, "input"),
    ({"input": ["a", [5] * (MAX_LEN + 1)]}, "input[1]"),
    ({"input": "a " * 10_000}, "input"),
    ({"messages": []}, "messages"),
    ({"messages": "a"}, "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"input": "a", "messages": [{"role": "user", "content": "a"}]}, "messages"),
    ({"input": "a", "add_generation_prompt": True}, "add_generation_prompt"),
    (
        {
            "messages": [{"role": "user", "content": "a"}],
            "add_generation_prompt": True,
            "continue_final_message": True,
        },
        "continue_final_message",
    ),
    ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
    ({"input": "a", "encoding_format": 5}, "encoding_format"),
    ({"input": "a", "dimensions": 0}, "dimensions"),
    ({"input": "a", "dimensions": 16}, "dimensions"),
    ({"input": "a", "dimensions": 10**6}, "dimensions"),
    ({"input": "a", "dimensions": "16"}, "dimensions"),
    ({"input": "a", "normalize": "no"}, "normalize"),
    ({"input": "a", "priority": 1.5}, "priority"),
    ({"input": "a", "priority": 9}, "priority"),
    ({"input": "a", "cache_salt": 5}, "cache_salt"),
    ({"input": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ({"input": "a", "chat_template": "x"}, "chat_template"),
    ({"input": "a", "model": 5}, "model"),
    ({"input": "a", "model": None}, "model"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG)
async def test_what_is_wrong_is_named(cook: Cook, fields: dict[str, Any], param: str) -> None:
    kitchen = cook(pool, SERVES, "server.limits.priority=[0,0]")
    reply = await embed(kitchen, **fields)
    assert (reply.status, reply.error["param"]) == (400, param), reply.body
    assert not kitchen.engine.requests


async def test_an_input_may_be_as_long_as_the_model(cook: Cook) -> None:
    """There is no answer to leave room for, and one token more is too long."""
    kitchen = cook(pool, SERVES)
    assert (await embed(kitchen, input=[5] * MAX_LEN)).status == 200
    refused = await embed(kitchen, input=[5] * (MAX_LEN + 1))
    assert refused.error["code"] == "context_length_exceeded"


async def test_an_engine_that_fails_ends_the_request(cook: Cook) -> None:
    def fail_second(request: Request) -> Iterator[Step]:
        if request.prompt_ids == [6]:
            yield Output(request.id, 0, [], "error", error="the model failed on this request")
        yield 30.0

    kitchen = cook(fail_second, SERVES)
    reply = await embed(kitchen, input=[[5], [6], [7]])
    assert reply.status == 500
    assert {name for name, _ in kitchen.engine.aborted} >= {
        one.id for one in kitchen.engine.requests
    }


async def test_a_client_that_leaves_aborts_all_its_inputs(cook: Cook) -> None:
    def wait(request: Request) -> Iterator[Step]:
        while True:
            yield 0.01

    kitchen = cook(wait, SERVES)
    body = {"model": "tiny", "input": [[5], [6], [7]]}
    exchange = kitchen.client.begin("POST", "/v1/embeddings", body)
    while len(kitchen.engine.requests) < 3:
        await asyncio.sleep(0.01)
    assert kitchen.service.generation is not None
    exchange.gone.set()
    await exchange.done()
    while kitchen.service.generation.active:
        await asyncio.sleep(0.01)
    asked = {request.id for request in kitchen.engine.requests}
    assert {name for name, _ in kitchen.engine.aborted} == asked


async def test_without_the_recipe_saying_so_there_are_none(cook: Cook) -> None:
    kitchen = cook(pool)
    reply = await embed(kitchen, input="a")
    assert (reply.status, reply.error["param"]) == (404, "model")
    card = (await kitchen.client.ask("GET", "/v1/models")).json["data"][0]
    assert "embeddings" not in card
    assert card["modalities"]["output"] == ["text"]


async def test_a_model_that_makes_vectors_alone_generates_nothing(cook: Cook) -> None:
    kitchen = cook(pool, SERVES)
    assert kitchen.service.generation is not None
    kitchen.service.generation.generates = False
    for reply in (await kitchen.client.chat(), await kitchen.client.complete()):
        assert (reply.status, reply.error["param"]) == (404, "model")
        assert "/v1/embeddings" in reply.error["message"]
    assert not kitchen.engine.requests
    card = (await kitchen.client.ask("GET", "/v1/models")).json["data"][0]
    assert card["modalities"]["output"] == ["embedding"]
    assert card["limits"]["max_prompt_tokens"] == MAX_LEN
