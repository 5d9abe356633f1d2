"""SGLang's first routes: `/generate`, its model's card, and a ping."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.api.asgi_client import Reply
from tests.api.conftest import Kitchen, PromptSide
from tests.api.fake_engine import speak

pytestmark = pytest.mark.anyio

Cook = Callable[..., Kitchen]


async def generate(kitchen: Kitchen, **body: Any) -> Reply:
    return await kitchen.client.ask("POST", "/generate", body)


async def test_the_first_example_of_sglangs_pages_is_answered(
    cook: Cook, prompt_side: PromptSide
) -> None:
    kitchen = cook()
    params = {"temperature": 0, "max_new_tokens": 32}
    body = json.dumps({"text": "The capital of France is", "sampling_params": params}).encode()
    reply = await kitchen.client.ask("POST", "/generate", body=body)  # curl -d, without a type
    assert reply.status == 200
    told = reply.json
    assert told["text"] == prompt_side.tokenizer.decode([5, 6, 7])
    assert told["output_ids"] == [5, 6, 7]
    meta = told["meta_info"]
    [request] = kitchen.engine.requests
    assert meta["finish_reason"] == {"type": "length", "length": 3}
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (len(request.prompt_ids), 3)
    assert meta["cached_tokens"] == 0
    assert meta["e2e_latency"] > 0
    assert meta["id"]
    assert (request.sampling.max_tokens, request.sampling.temperature) == (32, 0.0)


async def test_each_parameter_is_the_completions_of_its_meaning(cook: Cook) -> None:
    kitchen = cook()
    params = {
        "max_new_tokens": 20,
        "min_new_tokens": 2,
        "sampling_seed": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "n": 2,
        "stop": "zz",
        "stop_token_ids": [9],
        "logit_bias": {"5": 1},
        "frequency_penalty": 0.5,
        "presence_penalty": 0.25,
        "repetition_penalty": 1.5,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "no_stop_trim": True,
    }
    assert (await generate(kitchen, text="Once", sampling_params=params)).status == 200
    names = {
        "max_new_tokens": "max_tokens",
        "min_new_tokens": "min_tokens",
        "sampling_seed": "seed",
        "no_stop_trim": "include_stop_str_in_output",
    }
    same = {names.get(name, name): value for name, value in params.items()}
    assert (await kitchen.client.complete(**same)).status == 200
    native, plain = kitchen.engine.requests
    assert (native.sampling, native.n, native.prompt_ids) == (
        plain.sampling,
        plain.n,
        plain.prompt_ids,
    )


async def test_defaults_are_sglangs_and_then_the_checkpoints(cook: Cook) -> None:
    kitchen = cook()
    await generate(kitchen, text="Once", sampling_params={"temperature": None})
    await kitchen.client.complete(max_tokens=128)
    native, plain = kitchen.engine.requests
    assert native.sampling == plain.sampling


async def test_several_prompts_are_several_answers(cook: Cook) -> None:
    kitchen = cook()
    several = await generate(kitchen, input_ids=[[5, 6], [7]], rid="mine")
    assert [one["meta_info"]["id"] for one in several.json] == ["mine-0", "mine-1"]
    assert [request.prompt_ids for request in kitchen.engine.requests] == [[5, 6], [7]]
    assert len((await generate(kitchen, text=["a"])).json) == 1  # a list, of one
    assert len((await generate(kitchen, text="a", sampling_params={"n": 3})).json) == 3
    single = (await generate(kitchen, input_ids=[5, 6], rid="mine")).json
    assert single["meta_info"]["id"] == "mine"


@pytest.mark.parametrize("prompts", ["a", ["a", "b"]])
async def test_a_stream_tells_all_so_far_each_time(cook: Cook, prompts: Any) -> None:
    kitchen = cook()
    whole = (await generate(kitchen, text=prompts)).json
    reply = await generate(kitchen, text=prompts, stream=True)
    last: dict[int, Any] = {}
    for chunk in reply.chunks:
        index = chunk.get("index", 0)
        before = last.get(index)
        assert before is None or chunk["text"].startswith(before["text"])
        assert before is None or before["meta_info"]["finish_reason"] is None
        last[index] = chunk
    every = whole if isinstance(whole, list) else [whole]
    for index, answer in enumerate(every):
        assert last[index]["text"] == answer["text"]
        assert last[index]["output_ids"] == answer["output_ids"]
        assert last[index]["meta_info"]["finish_reason"] == answer["meta_info"]["finish_reason"]
    assert all(("index" in chunk) == isinstance(prompts, list) for chunk in reply.chunks)


async def test_what_asks_for_nothing_is_taken(cook: Cook) -> None:
    """As SGLang's own load test sends it."""
    kitchen = cook(..., "server.unknown_fields=reject")
    params = {"stream_interval": 5, "custom_params": None, "stop_regex": [], "regex": None}
    reply = await generate(
        kitchen,
        text="a",
        sampling_params=params,
        lora_path=None,
        return_logprob=False,
        logprob_start_len=-1,
        image_data=[],
        input_ids=None,
    )
    assert reply.status == 200, reply.body


WRONG = [
    ({}, "text"),
    ({"text": None}, "text"),
    ({"text": "a", "input_ids": [5]}, "text"),
    ({"text": 5}, "text"),
    ({"text": [5]}, "text"),
    ({"text": []}, "text"),
    ({"text": "\ud800"}, "text"),
    ({"text": ["a", "\ud800"]}, "text[1]"),
    ({"text": ""}, "text"),
    ({"input_ids": "a"}, "input_ids"),
    ({"input_ids": ["a"]}, "input_ids"),
    ({"input_ids": []}, "input_ids"),
    ({"input_ids": [5, 0.5]}, "input_ids"),
    ({"input_ids": [[5], [-1]]}, "input_ids[1]"),
    ({"input_ids": [10**9]}, "input_ids"),
    ({"text": "x y " * 300}, "text"),
    ({"text": "a", "sampling_params": []}, "sampling_params"),
    ({"text": "a", "sampling_params": {"temperature": 3}}, "sampling_params.temperature"),
    ({"text": "a", "sampling_params": {"max_new_tokens": -1}}, "sampling_params.max_new_tokens"),
    ({"text": "a", "sampling_params": {"max_new_tokens": 999}}, "sampling_params.max_new_tokens"),
    (
        {"text": "a", "sampling_params": {"max_new_tokens": 5, "min_new_tokens": 6}},
        "sampling_params.min_new_tokens",
    ),
    ({"text": "a", "sampling_params": {"stop": ["a", 5]}}, "sampling_params.stop[1]"),
    (
        {"text": "a", "sampling_params": {"stop_token_ids": [-1]}},
        "sampling_params.stop_token_ids[0]",
    ),
    ({"text": "a", "sampling_params": {"logit_bias": {"x": 1}}}, "sampling_params.logit_bias"),
    ({"text": "a", "sampling_params": {"regex": 5}}, "sampling_params.regex"),
    ({"text": "a", "sampling_params": {"regex": "a", "ebnf": "b"}}, "sampling_params.ebnf"),
    ({"text": "a", "sampling_params": {"regex": "(?<=a)b"}}, "sampling_params.regex"),
    ({"text": "a", "sampling_params": {"n": 2000}}, "sampling_params.n"),
    ({"text": ["a"] * 20, "sampling_params": {"n": 100}}, "text"),
    ({"text": "a", "sampling_params": {"stop_regex": "a"}}, "sampling_params.stop_regex"),
    (
        {"text": "a", "sampling_params": {"custom_params": {"a": 1}}},
        "sampling_params.custom_params",
    ),
    ({"text": "a", "return_logprob": True}, "return_logprob"),
    ({"text": "a", "image_data": "data:,"}, "image_data"),
    ({"text": "a", "lora_path": "x"}, "lora_path"),
    ({"text": "a", "stream": 1}, "stream"),
    ({"text": "a", "rid": ["a"]}, "rid"),
    ({"text": "a", "priority": -1}, "priority"),
    ({"text": "a", "temperature": 0}, "temperature"),
    ({"text": "a", "sampling_params": {"temprature": 0}}, "sampling_params.temprature"),
]


@pytest.mark.parametrize(("body", "param"), WRONG, ids=lambda value: str(value)[:60])
async def test_what_is_wrong_is_named_as_it_was_sent(
    cook: Cook, body: dict[str, Any], param: str
) -> None:
    kitchen = cook(..., "server.unknown_fields=reject")
    reply = await generate(kitchen, **body)
    assert (reply.status, reply.error["param"]) == (400, param), reply.body
    for ours in ("'prompt", "max_tokens'", "'min_tokens", "'seed"):
        assert ours not in reply.error["message"].replace("max_new_tokens", "")
    assert not kitchen.engine.requests


async def test_what_fails_later_is_the_streams_last_event(cook: Cook) -> None:
    def broken(request: Any) -> Any:
        yield from list(speak(5, 6)(request))[:1]
        raise RuntimeError("planted")

    reply = await generate(cook(broken), text="a", stream=True)
    assert reply.chunks[-1]["error"]["code"] == "engine_error"
    assert b"planted" not in reply.body


async def test_the_card_names_the_model_and_no_path(cook: Cook) -> None:
    kitchen = cook()
    for path in ("/get_model_info", "/model_info"):
        card = (await kitchen.client.ask("GET", path)).json
        assert card["model_path"] == "tiny"
        assert card["is_generation"] is True
        assert card["has_image_understanding"] is False
        assert "nowhere" not in str(card)


async def test_ping_is_answered_without_a_key_while_requests_are_taken(cook: Cook) -> None:
    kitchen = cook(..., "server.api_keys=[ann]")
    for method in ("GET", "POST"):
        assert (await kitchen.client.ask(method, "/ping")).status == 200
    for method, path in (("POST", "/generate"), ("GET", "/get_model_info")):
        assert (await kitchen.client.ask(method, path)).status == 401
    kitchen.service.lifecycle.draining = True
    assert (await kitchen.client.ask("GET", "/ping")).status == 503
