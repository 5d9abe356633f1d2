"""Chat completions as one body."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from appliance.api.replies import FLOOR
from engine.request import Output, Request, TokenLogprob
from tests.api.asgi_client import chat_body
from tests.api.conftest import Kitchen, PromptSide
from tests.api.fake_engine import Step, speak

pytestmark = pytest.mark.anyio
Cook = Callable[..., Kitchen]


async def test_a_body_is_what_the_openai_package_expects(
    cook: Cook, prompt_side: PromptSide
) -> None:
    ids = prompt_side.ids("Paris is a city")
    reply = await cook(speak(*ids)).client.chat()
    assert reply.status == 200
    answer = ChatCompletion.model_validate(reply.json, strict=True)
    choice = answer.choices[0]
    assert choice.message.content == "Paris is a city"
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "length"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "tiny"
    assert answer.system_fingerprint == "fp_0123456789ab"
    raw = reply.json["choices"][0]
    assert raw["message"]["refusal"] is None
    assert raw["logprobs"] is None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(ids)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + len(ids)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


async def test_the_prompt_is_the_rendered_template(cook: Cook, prompt_side: PromptSide) -> None:
    kitchen = cook()
    reply = await kitchen.client.chat()
    prompt = kitchen.engine.requests[0].prompt_ids
    text = prompt_side.template.render([{"role": "user", "content": "Hello"}]).text
    assert prompt_side.tokenizer.decode(prompt) == text
    assert reply.json["usage"]["prompt_tokens"] == len(prompt)


async def test_content_parts_and_developer_messages(cook: Cook, prompt_side: PromptSide) -> None:
    kitchen = cook()
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "A"}, "B", {"text": "C"}]},
        {"role": "assistant", "content": None, "refusal": "No.", "tool_calls": None},
        {"role": "user", "content": "Again", "name": "ann"},
    ]
    assert (await kitchen.client.chat(messages=messages)).status == 200
    text = prompt_side.tokenizer.decode(kitchen.engine.requests[0].prompt_ids)
    assert "system\nBe brief." in text
    assert "A\nB\nC" in text
    assert "assistant\nNo." in text


async def test_sampling_fields_reach_the_engine(cook: Cook) -> None:
    kitchen = cook()
    await kitchen.client.chat(
        max_completion_tokens=9,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        n=2,
        seed=-5,
        frequency_penalty=0.25,
        presence_penalty=-0.5,
        repetition_penalty=1.25,
        logit_bias={"3": -100, "4": 1.5},
        min_tokens=2,
        stop_token_ids=[7],
        ignore_eos=True,
        logprobs=True,
        top_logprobs=3,
        priority=4,
        cache_salt="mine",
    )
    request = kitchen.engine.requests[0]
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (9, 0.5, 0.9)
    assert (sampling.top_k, sampling.min_p, sampling.seed) == (40, 0.1, -5)
    assert sampling.frequency_penalty == 0.25
    assert sampling.presence_penalty == -0.5
    assert sampling.repetition_penalty == 1.25
    assert sampling.logit_bias == {3: -100.0, 4: 1.5}
    assert (sampling.min_tokens, sampling.stop_token_ids) == (2, frozenset({7}))
    assert (sampling.ignore_eos, sampling.logprobs) == (True, 3)
    assert (request.n, request.priority) == (2, 4)
    assert request.salt


async def test_defaults_leave_the_engine_the_whole_context(cook: Cook) -> None:
    kitchen = cook()
    await kitchen.client.chat(temperature=None, max_tokens=None, stop=None, stream=None)
    request = kitchen.engine.requests[0]
    assert request.sampling.max_tokens == 256 - len(request.prompt_ids)
    assert request.sampling.temperature == 1.0
    assert request.sampling.logprobs is None
    assert request.salt == b""


async def test_top_p_of_zero_is_the_most_likely_token(cook: Cook) -> None:
    kitchen = cook()
    await kitchen.client.chat(top_p=0)
    assert kitchen.engine.requests[0].sampling.top_k == 1


async def test_a_salt_separates_caches(cook: Cook) -> None:
    kitchen = cook()
    for salt in ("a", "a", "b"):
        await kitchen.client.chat(cache_salt=salt)
    first, same, other = (request.salt for request in kitchen.engine.requests)
    assert first == same != other


async def test_answers_are_told_apart(cook: Cook, prompt_side: PromptSide) -> None:
    red, blue = prompt_side.ids(" red"), prompt_side.ids(" blue")

    def script(request: Request) -> Iterator[Step]:
        yield Output(request.id, 1, blue, "stop")
        yield Output(request.id, 0, red, None)
        yield Output(request.id, 0, [], "length")

    reply = await cook(script).client.chat(n=2, include_stop_str_in_output=True)
    choices = reply.json["choices"]
    assert [(c["index"], c["message"]["content"]) for c in choices] == [(0, " red"), (1, " blue")]
    assert [c["finish_reason"] for c in choices] == ["length", "stop"]


async def test_the_ending_token_is_counted_but_not_shown(
    cook: Cook, prompt_side: PromptSide
) -> None:
    words, end = prompt_side.ids("Yes"), prompt_side.ids("!")
    script = speak(*words, *end, finish="stop")
    reply = await cook(script).client.chat()
    assert reply.json["choices"][0]["message"]["content"] == "Yes"
    assert reply.json["usage"]["completion_tokens"] == len(words) + len(end)
    shown = await cook(script).client.chat(include_stop_str_in_output=True)
    assert shown.json["choices"][0]["message"]["content"] == "Yes!"


async def test_a_stop_string_ends_one_answer_and_the_other_goes_on(
    cook: Cook, prompt_side: PromptSide
) -> None:
    first, second = prompt_side.ids("one two three four"), prompt_side.ids("six seven")

    def script(request: Request) -> Iterator[Step]:
        for place in range(max(len(first), len(second))):
            for index, ids in enumerate((first, second)):
                if place < len(ids):
                    last = place == len(ids) - 1
                    yield Output(request.id, index, [ids[place]], "length" if last else None)

    kitchen = cook(script)
    reply = await kitchen.client.chat(n=2, stop=["two"])
    one, two = reply.json["choices"]
    assert (one["message"]["content"], one["finish_reason"]) == ("one ", "stop")
    assert (two["message"]["content"], two["finish_reason"]) == ("six seven", "length")
    request = kitchen.engine.requests[0]
    assert kitchen.engine.aborted == [(request.id, 0)]


async def test_stop_strings_wait_for_min_tokens(cook: Cook, prompt_side: PromptSide) -> None:
    ids = prompt_side.ids("ab ab ab ab")
    free = await cook(speak(*ids)).client.chat(stop="ab")
    late = await cook(speak(*ids)).client.chat(stop="ab", min_tokens=len(ids) - 1, max_tokens=50)
    assert free.json["choices"][0]["message"]["content"] == ""
    content = late.json["choices"][0]["message"]["content"]
    assert content.startswith("ab ab")


async def test_logprobs_carry_bytes_and_the_best_tokens(
    cook: Cook, prompt_side: PromptSide
) -> None:
    ids = prompt_side.ids(" café")

    def script(request: Request) -> Iterator[Step]:
        for token in ids:
            scored = TokenLogprob(token, -0.5, [(token, -0.5), (3, float("-inf"))])
            last = token == ids[-1]
            yield Output(request.id, 0, [token], "length" if last else None, logprobs=[scored])

    reply = await cook(script).client.chat(logprobs=True, top_logprobs=2)
    answer = ChatCompletion.model_validate(reply.json)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == len(ids)
    data = b"".join(bytes(token.bytes or []) for token in logprobs.content)
    assert data.decode() == answer.choices[0].message.content
    assert [len(token.top_logprobs) for token in logprobs.content] == [2] * len(ids)
    assert logprobs.content[0].top_logprobs[1].logprob == -9999.0
    assert reply.json["choices"][0]["logprobs"]["refusal"] is None


async def test_token_ids_on_request(cook: Cook) -> None:
    reply = await cook(speak(5, 6)).client.chat(return_token_ids=True)
    assert reply.json["choices"][0]["token_ids"] == [5, 6]
    assert len(reply.json["prompt_token_ids"]) == reply.json["usage"]["prompt_tokens"]


async def test_cached_tokens_are_told(cook: Cook) -> None:
    def script(request: Request) -> Iterator[Step]:
        yield Output(request.id, 0, [5], "length", cached_tokens=3)

    reply = await cook(script).client.chat()
    assert reply.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 3


async def test_continuing_the_last_message(cook: Cook, prompt_side: PromptSide) -> None:
    kitchen = cook()
    messages = [
        {"role": "user", "content": "Count"},
        {"role": "assistant", "content": "one, two,"},
    ]
    reply = await kitchen.client.chat(messages=messages, continue_final_message=True)
    assert reply.status == 200
    text = prompt_side.tokenizer.decode(kitchen.engine.requests[0].prompt_ids)
    assert text.endswith("one, two,")


async def test_a_prompt_that_does_not_fit_is_refused_with_numbers(cook: Cook) -> None:
    kitchen = cook()
    long = [{"role": "user", "content": "word " * 400}]
    error = (await kitchen.client.chat(messages=long)).error
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert "256" in error["message"]
    error = (await kitchen.client.chat(max_tokens=256)).error
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")
    assert kitchen.engine.requests == []


TOO_LONG = [
    ({"messages": [{"role": "user", "content": "word " * 400}]}, "messages", None),
    ({"messages": [{"role": "user", "content": "x" * 10_000_000}]}, "messages", None),
    ({"messages": [{"role": "user", "content": "x"}] * 300}, "messages", None),
    ({"messages": [{"role": "user", "content": ["x"] * 300}]}, "messages", None),
    ({"max_tokens": 256}, "max_tokens", 256),
    ({"max_completion_tokens": 4000, "stream": True}, "max_completion_tokens", 4000),
    ({"max_tokens": 256, "n": 2, "logprobs": True}, "max_tokens", 256),
    ({"prompt": "word " * 400}, "prompt", None),
    ({"prompt": [5] * 256}, "prompt", None),
    ({"prompt": ["a", "word " * 400], "stream": True}, "prompt[1]", None),
    ({"prompt": "a", "max_tokens": 256}, "max_tokens", 256),
    ({"prompt": [5] * 255, "max_tokens": 2}, "max_tokens", 2),
]


@pytest.mark.parametrize(("fields", "param", "asked"), TOO_LONG, ids=lambda one: str(one)[:60])
async def test_what_is_too_long_is_told_in_the_words_that_clients_know(
    cook: Cook, fields: dict[str, Any], param: str, asked: int | None
) -> None:
    client = cook().client
    reply = await (client.complete if "prompt" in fields else client.chat)(**fields)
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    assert reply.error["param"] == param
    message = reply.error["message"]
    found = re.match(r"This model's maximum context length is (\d+) tokens\. However, ", message)
    assert found is not None
    assert found[1] == "256"
    kind = "prompt" if "prompt" in fields else "messages"
    assert f"Please reduce the length of the {kind} or completion." in message
    if asked is not None:
        counts = re.search(rf"requested (\d+) tokens \((\d+) in the {kind}, (\d+) in", message)
        assert counts is not None
        total, prompt, answer = map(int, counts.groups())
        assert (total, answer) == (prompt + answer, asked)


async def test_a_kv_cache_that_is_smaller_than_the_model_is_named(cook: Cook) -> None:
    kitchen = cook()
    assert kitchen.service.generation is not None
    prompting = kitchen.service.generation.prompting
    prompting.limits = replace(prompting.limits, pages=4)
    error = (await kitchen.client.complete(prompt=[5] * 64)).error
    assert "maximum context length is 64 tokens. " in error["message"]
    assert error["message"].endswith("The KV cache of this server holds no more.")


async def test_a_client_that_leaves_aborts_its_request(cook: Cook) -> None:
    def script(request: Request) -> Iterator[Step]:
        while True:
            yield 0.01
            yield Output(request.id, 0, [5])

    kitchen = cook(script)
    exchange = kitchen.client.begin("POST", "/v1/chat/completions", chat_body())
    while not kitchen.engine.requests:
        await asyncio.sleep(0.01)
    assert kitchen.service.generation is not None
    assert kitchen.service.generation.active == 1
    exchange.gone.set()
    await exchange.done()
    await asyncio.sleep(0.05)
    assert kitchen.engine.aborted == [(kitchen.engine.requests[0].id, None)]
    assert kitchen.service.generation.active == 0


async def test_failures_of_the_engine_are_500_in_our_words(cook: Cook) -> None:
    from engine.errors import EngineDead

    def broken(request: Request) -> Iterator[Step]:
        yield Output(request.id, 0, [5])
        yield Output(request.id, 0, [], "error", error="The step failed.")

    def dead(request: Request) -> Iterator[Step]:
        yield EngineDead("signal 9")

    def bug(request: Request) -> Iterator[Step]:
        yield ValueError("secret detail")

    for script, words in ((broken, "The step failed."), (dead, "stopped"), (bug, "failed")):
        reply = await cook(script).client.chat()
        assert reply.status == 500
        assert words in reply.error["message"]
        assert "secret" not in reply.error["message"]


async def test_a_log_probability_that_is_no_number_is_still_json(cook: Cook) -> None:
    def script(request: Request) -> Iterator[Step]:
        wrong = TokenLogprob(5, float("nan"), [(5, float("nan")), (6, -0.5), (7, float("-inf"))])
        yield Output(request.id, 0, [5], "length", logprobs=[wrong])

    reply = await cook(script).client.chat(logprobs=True, top_logprobs=3)
    assert b"NaN" not in reply.body
    [entry] = reply.json["choices"][0]["logprobs"]["content"]
    assert entry["logprob"] == FLOOR
    assert [top["logprob"] for top in entry["top_logprobs"]] == [FLOOR, -0.5, FLOOR]
