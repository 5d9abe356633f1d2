"""Server-sent events: order, endings, what a slow or a lost reader causes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from engine.errors import EngineDead, RequestRefused
from engine.models.end_tokens import end_tokens
from engine.request import Output, Request, TokenLogprob
from tests.api.asgi_client import chat_body
from tests.api.conftest import Kitchen, PromptSide
from tests.api.fake_engine import Step, speak

pytestmark = pytest.mark.anyio
Cook = Callable[..., Kitchen]

TEXT = "Grüße 東京 {brace} a  b"


async def test_role_first_then_text_one_finish_and_done_last(
    cook: Cook, prompt_side: PromptSide
) -> None:
    ids = prompt_side.ids(TEXT)
    reply = await cook(speak(*ids)).client.chat(stream=True)
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    chunks = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in reply.chunks]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    finished = [chunk.choices[0].finish_reason for chunk in chunks]
    assert finished == [None] * (len(chunks) - 1) + ["length"]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert len({(chunk.id, chunk.created, chunk.system_fingerprint) for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)
    assert not any("usage" in chunk for chunk in reply.chunks)


async def test_a_stream_says_what_the_body_says(cook: Cook, prompt_side: PromptSide) -> None:
    ids = prompt_side.ids(TEXT + " STOP and more")
    for fields in ({}, {"stop": ["ST", "a  c"]}, {"stop": "STOP", "n": 3}):
        body = await cook(speak(*ids)).client.chat(**fields)
        stream = await cook(speak(*ids)).client.chat(stream=True, **fields)
        for choice in body.json["choices"]:
            chunks = [c["choices"][0] for c in stream.chunks]
            mine = [c for c in chunks if c["index"] == choice["index"]]
            text = "".join(c["delta"].get("content", "") for c in mine)
            assert text == choice["message"]["content"]
            assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [
                choice["finish_reason"]
            ]


async def test_usage_comes_last_and_only_when_asked(cook: Cook) -> None:
    reply = await cook().client.chat(stream=True, stream_options={"include_usage": True})
    *chunks, last = reply.chunks
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3
    ChatCompletionChunk.model_validate(last, strict=True)


async def test_continuous_usage_grows(cook: Cook) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    reply = await cook().client.chat(stream=True, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in reply.chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 3


async def test_logprobs_come_with_their_chunks(cook: Cook, prompt_side: PromptSide) -> None:
    ids = prompt_side.ids(TEXT)

    def script(request: Request) -> Iterator[Step]:
        for place, token in enumerate(ids):
            scored = [TokenLogprob(token, -1.0, [(token, -1.0)])]
            finish = "length" if place == len(ids) - 1 else None
            yield Output(request.id, 0, [token], finish, logprobs=scored)

    reply = await cook(script).client.chat(stream=True, logprobs=True, top_logprobs=1)
    chunks = [ChatCompletionChunk.model_validate(chunk) for chunk in reply.chunks]
    scored = [
        token
        for chunk in chunks
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content or []
    ]
    assert b"".join(bytes(token.bytes or []) for token in scored).decode() == TEXT


async def test_completions_stream_with_echo(cook: Cook, prompt_side: PromptSide) -> None:
    ids = prompt_side.ids(" upon a time")
    reply = await cook(speak(*ids)).client.complete(stream=True, echo=True)
    choices = [chunk["choices"][0] for chunk in reply.chunks]
    assert "".join(choice["text"] for choice in choices) == "Once upon a time"
    assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["length"]
    Completion.model_validate(reply.chunks[-1], strict=True)


async def test_a_fault_before_the_first_byte_is_a_status(cook: Cook) -> None:
    def refused(request: Request) -> Iterator[Step]:
        yield RequestRefused("the prompt needs more pages than there are")

    reply = await cook(refused).client.chat(stream=True)
    assert reply.status == 400
    assert "pages" in reply.error["message"]


async def test_a_fault_after_the_first_byte_is_an_event_and_done(cook: Cook) -> None:
    def script(request: Request) -> Iterator[Step]:
        yield Output(request.id, 0, [5])
        yield 0.05
        yield EngineDead("signal 9")

    reply = await cook(script).client.chat(stream=True)
    assert reply.status == 200
    *_, error = reply.chunks
    assert set(error["error"]) == {"message", "type", "param", "code"}
    assert reply.complete


async def test_silence_is_filled_with_comments(cook: Cook) -> None:
    def script(request: Request) -> Iterator[Step]:
        yield 0.2
        yield Output(request.id, 0, [5])
        yield 0.2
        yield Output(request.id, 0, [6], "length")

    kitchen = cook(script, keep_alive_seconds=0.05)
    reply = await kitchen.client.chat(stream=True)
    text = reply.body.decode()
    role, first = text.index('"role"'), text.index(": keep-alive\n\n")
    assert role < first
    assert text.count(": keep-alive\n\n") >= 4
    assert len(reply.chunks) >= 3
    quiet = await cook(script).client.chat(stream=True)
    assert b"keep-alive" not in quiet.body


async def test_tokens_without_text_do_not_stop_the_comments(
    cook: Cook, prompt_side: PromptSide
) -> None:
    (end,) = end_tokens(prompt_side.tokenizer.folder)

    def script(request: Request) -> Iterator[Step]:
        for _ in range(10):
            yield Output(request.id, 0, [end])
            yield 0.03
        yield Output(request.id, 0, [end], "length")

    reply = await cook(script, keep_alive_seconds=0.06).client.chat(stream=True)
    assert b"keep-alive" in reply.body


async def test_a_slow_reader_gets_joined_chunks_and_does_not_hold_the_engine(
    cook: Cook, prompt_side: PromptSide
) -> None:
    ids = prompt_side.ids("one two three four five six seven eight nine ten")
    kitchen = cook(speak(*ids))
    exchange = kitchen.client.begin("POST", "/v1/chat/completions", chat_body(stream=True))
    exchange.reading.clear()
    assert kitchen.service.generation is not None
    while not kitchen.engine.requests or kitchen.service.generation.active:
        await asyncio.sleep(0.01)  # the engine finishes though nobody reads
    exchange.reading.set()
    reply = await exchange.done()
    texts = [chunk["choices"][0]["delta"].get("content") for chunk in reply.chunks]
    assert "".join(text or "" for text in texts) == (
        "one two three four five six seven eight nine ten"
    )
    assert len(texts) < len(ids)


async def test_a_reader_that_leaves_aborts_its_request(cook: Cook) -> None:
    def script(request: Request) -> Iterator[Step]:
        while True:
            yield 0.01
            yield Output(request.id, 0, [5])

    kitchen = cook(script)
    exchange = kitchen.client.begin("POST", "/v1/chat/completions", chat_body(stream=True))
    await exchange.begun.wait()
    exchange.gone.set()
    await exchange.done()
    await asyncio.sleep(0.05)
    assert kitchen.engine.aborted == [(kitchen.engine.requests[0].id, None)]
    assert kitchen.service.generation is not None
    assert kitchen.service.generation.active == 0


async def test_token_ids_in_a_stream(cook: Cook) -> None:
    reply = await cook(speak(5, 6, 7)).client.chat(stream=True, return_token_ids=True)
    chunks = reply.chunks
    assert chunks[0]["prompt_token_ids"]
    ids = [token for chunk in chunks[1:] for token in chunk["choices"][0]["token_ids"]]
    assert ids == [5, 6, 7]
