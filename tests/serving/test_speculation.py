"""What clients get is the same with `engine.speculation` and without."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import Server, serving

ASK = "Say it again: one two three, one two three, one two three."
FEW = {"400": 60, "401": 60, "402": 60, "403": 60}  # tokens that drafts may be right about
COUNTERS = ("draft_tokens", "accepted_tokens")


@pytest.fixture(scope="module")
def drafting(checkpoint: Callable[[str], Path]) -> Iterator[Server]:
    keys = ["model.name=tiny", "media.image.limit=0", "engine.threads=1"]
    with serving(f"model.path={checkpoint('llama')}", *keys, "engine.speculation=ngram") as server:
        yield server


def asked(server: Server, **fields: Any) -> dict[str, Any]:
    """One body, as far as it is not about this one request."""
    given = {"model": "tiny", "messages": [{"role": "user", "content": ASK}], "max_tokens": 60}
    answer = server.client.chat.completions.create(**(given | fields)).model_dump()
    return {key: answer[key] for key in ("choices", "usage")}


def streamed(server: Server, **fields: Any) -> tuple[list[str], list[Any], list[Any], Any]:
    """Text, log-probabilities and ends of a stream's answers, and its usage."""
    n = fields.get("n", 1)
    texts, logprobs, ends = [""] * n, [[] for _ in range(n)], [None] * n
    usage = None
    for chunk in server.client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": ASK}],
        max_tokens=60,
        stream=True,
        stream_options={"include_usage": True},
        **fields,
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason or ends[choice.index]
            if choice.logprobs is not None:
                logprobs[choice.index] += choice.logprobs.content or []
    return texts, logprobs, ends, usage


def counters(server: Server) -> list[float]:
    with urllib.request.urlopen(f"{server.base_url}/metrics", timeout=5) as answer:
        lines = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines())
    return [float(lines[f"appliance_spec_decode_num_{name}_total"]) for name in COUNTERS]


def test_bodies_and_streams_are_the_same(tiny_llama: Server, drafting: Server) -> None:
    few: dict[str, Any] = {"logit_bias": FEW, "temperature": 0.9, "seed": 4}
    for server in (drafting, tiny_llama):  # so that the prompt is cached in both
        whole = asked(server, **few)["choices"][0]["message"]["content"]
    within = {whole[place : place + 9] for place in range(40, 120, 9)}  # end within what is drafted
    variants: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0, "logprobs": True, "top_logprobs": 3, "n": 2},
        few,
        few | {"logprobs": True, "top_logprobs": 2, "n": 3, "frequency_penalty": 0.1},
        *(few | {"stop": stop, "logprobs": True} for stop in sorted(within)),
        few | {"stop": whole[60:66], "extra_body": {"min_tokens": 50}},
        few | {"stop": whole[60:66], "extra_body": {"include_stop_str_in_output": True}},
    ]
    stopped = 0
    for fields in variants:
        body = asked(tiny_llama, **fields)
        stopped += body["choices"][0]["finish_reason"] == "stop"
        assert body == asked(drafting, **fields), fields
        assert streamed(tiny_llama, **fields) == streamed(drafting, **fields), fields
    assert stopped >= len(within)
    drafted, accepted = counters(drafting)
    assert drafted > accepted > 10 * len(variants)
    assert counters(tiny_llama) == [0, 0]
