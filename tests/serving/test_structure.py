"""Answers of a given form, asked for as the official client asks, of a server of the demo."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from tests.serving.conftest import Server, serving

QUESTION: list[Any] = [{"role": "user", "content": "Tell me about the picture."}]


class Shape(BaseModel, extra="forbid"):
    kind: Literal["circle", "square"]
    sides: int = Field(ge=0, le=9)


class Picture(BaseModel, extra="forbid"):
    shapes: list[Shape] = Field(min_length=1, max_length=2)
    title: str = Field(max_length=12)


@pytest.fixture(scope="module")
def demo() -> Iterator[Server]:
    with serving("recipe=demo", "engine.threads=1") as server:
        yield server


@pytest.fixture
def client(demo: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_class_becomes_an_object_of_it(client: openai.OpenAI) -> None:
    completion = client.chat.completions.parse(
        model="demo", messages=QUESTION, response_format=Picture, temperature=1.5, seed=3, n=3
    )
    parsed = [choice.message.parsed for choice in completion.choices]
    assert all(isinstance(one, Picture) for one in parsed)
    assert len(set(map(str, parsed))) > 1
    assert {choice.finish_reason for choice in completion.choices} == {"stop"}


def test_a_stream_says_what_the_whole_does(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "demo",
        "messages": QUESTION,
        "temperature": 1.5,
        "seed": 4,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "picture", "schema": Picture.model_json_schema()},
        },
    }
    whole = client.chat.completions.create(**asked).choices[0].message.content or ""
    chunks = client.chat.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    Picture.model_validate_json(whole)


def test_many_at_once_keep_each_to_its_own(client: openai.OpenAI) -> None:
    def ask(number: int) -> str:
        completion = client.completions.create(
            model="demo",
            prompt="Say it:",
            max_tokens=60,
            temperature=1.2,
            extra_body={"guided_regex": f"{number}(-[a-d]{{{number % 5 + 1}}}){{1,3}}"},
        )
        return completion.choices[0].text

    with ThreadPoolExecutor(16) as pool:
        said = list(pool.map(ask, range(32)))
    for number, text in enumerate(said):
        assert re.fullmatch(f"{number}(-[a-d]{{{number % 5 + 1}}}){{1,3}}", text.strip())


def test_what_cannot_be_followed_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="demo", messages=QUESTION, stream=True, extra_body={"guided_regex": "(a"}
        )
    assert refused.value.param == "guided_regex"
    assert "unclosed group" in refused.value.message
