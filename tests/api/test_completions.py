"""Plain completions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from openai.types import Completion

from engine.request import Output, Request, TokenLogprob
from tests.api.conftest import Kitchen, PromptSide
from tests.api.fake_engine import Step, speak

pytestmark = pytest.mark.anyio
Cook = Callable[..., Kitchen]


async def test_a_body_is_what_the_openai_package_expects(
    cook: Cook, prompt_side: PromptSide
) -> None:
    ids = prompt_side.ids(" upon a time")
    kitchen = cook(speak(*ids))
    reply = await kitchen.client.complete()
    answer = Completion.model_validate(reply.json, strict=True)
    assert answer.choices[0].text == " upon a time"
    assert answer.choices[0].finish_reason == "length"
    assert answer.id.startswith("cmpl-")
    assert kitchen.engine.requests[0].sampling.max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "count"),
    [("Once", 1), (["Once", "Twice"], 2), ([5, 6, 7], 1), ([[5, 6], [7]], 2), (["Once", [5]], 2)],
)
async def test_prompts_of_every_kind(cook: Cook, prompt: object, count: int) -> None:
    kitchen = cook()
    reply = await kitchen.client.complete(prompt=prompt, n=2)
    assert [choice["index"] for choice in reply.json["choices"]] == list(range(2 * count))
    assert len(kitchen.engine.requests) == count
    lengths = sum(len(request.prompt_ids) for request in kitchen.engine.requests)
    assert reply.json["usage"]["prompt_tokens"] == lengths
    assert reply.json["usage"]["completion_tokens"] == 3 * 2 * count


async def test_token_ids_are_taken_as_they_are(cook: Cook) -> None:
    kitchen = cook()
    await kitchen.client.complete(prompt=[9, 8, 7])
    assert kitchen.engine.requests[0].prompt_ids == [9, 8, 7]


def scored(ids: list[int]) -> Callable[[Request], Iterator[Step]]:
    def script(request: Request) -> Iterator[Step]:
        prompt: list[TokenLogprob | None] = [
            TokenLogprob(token, -2.0, [(token, -2.0)]) for token in request.prompt_ids
        ]
        prompt[0] = None
        for place, token in enumerate(ids):
            yield Output(
                request.id,
                0,
                [token],
                "length" if place == len(ids) - 1 else None,
                logprobs=[TokenLogprob(token, -1.0, [(token, -1.0)])],
                prompt_logprobs=prompt if place == 0 else None,
            )

    return script


async def test_logprobs_have_offsets_into_the_text(cook: Cook, prompt_side: PromptSide) -> None:
    ids = prompt_side.ids(" upon a time")
    reply = await cook(scored(ids)).client.complete(logprobs=1)
    choice = Completion.model_validate(reply.json).choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == choice.text
    for token, offset in zip(logprobs.tokens, logprobs.text_offset or [], strict=True):
        assert choice.text[offset : offset + len(token)] == token
    assert logprobs.token_logprobs == [-1.0] * len(ids)


async def test_echo_with_logprobs_scores_the_prompt(cook: Cook, prompt_side: PromptSide) -> None:
    ids = prompt_side.ids(" upon a time")
    kitchen = cook(scored(ids))
    reply = await kitchen.client.complete(logprobs=1, echo=True)
    choice = reply.json["choices"][0]
    assert choice["text"] == "Once upon a time"
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["top_logprobs"][0] is None
    assert kitchen.engine.requests[0].sampling.prompt_logprobs == 1
    silent = cook(scored(ids))
    await silent.client.complete(logprobs=1)
    assert silent.engine.requests[0].sampling.prompt_logprobs is None


async def test_no_tokens_asked_for_scores_the_prompt_alone(
    cook: Cook, prompt_side: PromptSide
) -> None:
    kitchen = cook(scored(prompt_side.ids(" upon a time")))
    reply = await kitchen.client.complete(logprobs=0, echo=True, max_tokens=0)
    choice = reply.json["choices"][0]
    assert choice["text"] == "Once"
    assert choice["finish_reason"] == "length"
    assert reply.json["usage"]["completion_tokens"] == 0
    assert kitchen.service.generation is not None
    assert kitchen.service.generation.active == 0


async def test_a_failing_prompt_fails_its_siblings(cook: Cook) -> None:
    def script(request: Request) -> Iterator[Step]:
        if request.prompt_ids == [5]:
            yield Output(request.id, 0, [], "error", error="The step failed.")
        while True:
            yield 0.01
            yield Output(request.id, 0, [6])

    kitchen = cook(script)
    reply = await kitchen.client.complete(prompt=[[5], [6]])
    assert reply.status == 500
    assert {request for request, _ in kitchen.engine.aborted} == {
        request.id for request in kitchen.engine.requests
    }
