"""The launcher's server from outside."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from tests.conftest import Launch
from tests.serving.conftest import Server, serving

ASK = [{"role": "user", "content": "What is the capital of France?"}]


def test_greedy_stream_equals_greedy_body(tiny_llama: Server) -> None:
    client = tiny_llama.client
    fields = {"model": "tiny", "messages": ASK, "temperature": 0, "max_tokens": 24}
    body = client.chat.completions.create(**fields)
    stream = client.chat.completions.create(**fields, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == body.choices[0].message.content
    assert body.usage is not None
    assert body.usage.prompt_tokens > 0


def test_the_same_seed_says_the_same(tiny_llama: Server) -> None:
    def ask(seed: int) -> list[str | None]:
        answer = tiny_llama.client.chat.completions.create(
            model="tiny", messages=ASK, seed=seed, max_tokens=24, n=2
        )
        return [choice.message.content for choice in answer.choices]

    assert ask(7) == ask(7)
    assert ask(7) != ask(8)
    assert len(set(ask(7))) == 2


def test_a_prompt_asked_twice_comes_from_the_cache(tiny_llama: Server) -> None:
    long = [{"role": "user", "content": "Count the pages of the book. " * 10}]
    for _ in range(2):
        answer = tiny_llama.client.chat.completions.create(
            model="tiny", messages=long, max_tokens=2
        )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    cached = answer.usage.prompt_tokens_details.cached_tokens or 0
    assert 0 < cached < answer.usage.prompt_tokens


def test_a_prompt_longer_than_the_model_is_a_typed_exception(tiny_llama: Server) -> None:
    long = [{"role": "user", "content": "word " * 20_000}]
    with pytest.raises(openai.BadRequestError) as refused:
        tiny_llama.client.chat.completions.create(model="tiny", messages=long)
    assert refused.value.code == "context_length_exceeded"


def test_sigterm_ends_with_code_0(checkpoint: Callable[[str], Path]) -> None:
    path = f"model.path={checkpoint('llama')}"
    with serving(path, "media.image.limit=0", "engine.threads=1") as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 0
        assert "Traceback" not in server.output


def test_weights_that_are_not_there_are_one_line_and_code_2(launch: Launch, tmp_path: Path) -> None:
    ran = launch(f"model.path={tmp_path}")
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert "holds neither" in ran.stderr
