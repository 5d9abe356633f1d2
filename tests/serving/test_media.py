"""Media through the launched endpoint: what is counted, kept, named, and never logged."""

from __future__ import annotations

import re
import urllib.request
from typing import Any

import openai
import pytest
from PIL import Image

from tests.engine.models.pictures import picture
from tests.serving.conftest import Server
from tests.serving.test_images import data_url


def part(image: Image.Image | None, uuid: str | None = None) -> dict[str, Any]:
    content = None if image is None else {"url": data_url(image)}
    made: dict[str, Any] = {"type": "image_url", "image_url": content}
    return made if uuid is None else {**made, "uuid": uuid}


def ask(server: Server, *parts: dict[str, Any], key: str = "none", **fields: Any) -> Any:
    client = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key=key, max_retries=0)
    content = [*parts, {"type": "text", "text": "What is this?"}]
    fields = {"max_tokens": 2, "temperature": 0, **fields}
    return client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": content}],  # type: ignore[list-item,misc]
        **fields,
    )


def metric(server: Server, sample: str) -> float:
    """A sample of /metrics by its name and labels, 0 where it is not there."""
    with urllib.request.urlopen(server.base_url + "/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = re.search(rf"^appliance_{re.escape(sample)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def count(server: Server, stage: str) -> float:
    return metric(server, f'media_seconds_count{{modality="image",stage="{stage}"}}')


def test_a_repeated_picture_costs_no_decoding_and_no_tower(tiny_qwen2_vl: Server) -> None:
    image = picture(100, 120, seed=11)
    first = ask(tiny_qwen2_vl, part(image))
    stages = {stage: count(tiny_qwen2_vl, stage) for stage in ("queue", "decode", "preprocess")}
    towers = metric(tiny_qwen2_vl, "encoder_cache_misses_total")
    hits = metric(tiny_qwen2_vl, 'media_cache_hits_total{modality="image"}')
    again = ask(tiny_qwen2_vl, part(image))
    assert {stage: count(tiny_qwen2_vl, stage) for stage in stages} == stages
    assert all(stages.values())
    assert metric(tiny_qwen2_vl, "encoder_cache_misses_total") == towers
    assert metric(tiny_qwen2_vl, 'media_cache_hits_total{modality="image"}') == hits + 1
    assert metric(tiny_qwen2_vl, "media_cache_bytes") > 0
    assert again.choices[0].message.content == first.choices[0].message.content
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_a_uuid_finds_its_picture_for_its_own_key_alone(tiny_qwen2_vl: Server) -> None:
    red, blue = picture(84, 84, seed=21), picture(84, 84, seed=22)
    sent = ask(tiny_qwen2_vl, part(red, "cat"), key="alice", logprobs=True)
    again = ask(tiny_qwen2_vl, part(None, "cat"), key="alice", logprobs=True)
    assert again.choices[0].logprobs == sent.choices[0].logprobs
    assert again.usage.prompt_tokens == sent.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError) as missed:
        ask(tiny_qwen2_vl, part(None, "cat"), key="bob")
    assert missed.value.code == "media_cache_miss"
    assert missed.value.param == "messages[0].content[0].uuid"
    other = ask(tiny_qwen2_vl, part(blue, "cat"), key="bob", logprobs=True)
    assert other.choices[0].logprobs != sent.choices[0].logprobs
    with pytest.raises(openai.ConflictError) as conflict:
        ask(tiny_qwen2_vl, part(blue, "cat"), key="alice")
    assert conflict.value.code == "media_uuid_conflict"


def test_a_prompt_that_cannot_fit_is_refused_before_decoding(tiny_qwen2_vl: Server) -> None:
    decoded, asked = count(tiny_qwen2_vl, "decode"), count(tiny_qwen2_vl, "queue")
    image = picture(224, 224, seed=31)
    with pytest.raises(openai.BadRequestError) as refused:
        ask(tiny_qwen2_vl, part(image), max_tokens=1000)  # of 1024
    assert refused.value.code == "context_length_exceeded"
    assert count(tiny_qwen2_vl, "queue") == asked + 1, "its header was read"
    assert count(tiny_qwen2_vl, "decode") == decoded
    ask(tiny_qwen2_vl, part(image))
    assert count(tiny_qwen2_vl, "decode") == decoded + 1


def test_refusals_are_counted_by_reason(tiny_qwen2_vl: Server) -> None:
    sample = 'media_refusals_total{code="media_not_allowed",modality="image"}'
    before = metric(tiny_qwen2_vl, sample)
    with pytest.raises(openai.BadRequestError):
        ask(
            tiny_qwen2_vl,
            {"type": "image_url", "image_url": {"url": "https://example.org/a?token=s3cret"}},
        )
    assert metric(tiny_qwen2_vl, sample) == before + 1


def test_logs_hold_no_media_and_no_queries(tiny_qwen2_vl: Server) -> None:
    image = picture(64, 64, seed=41)
    ask(tiny_qwen2_vl, part(image, "a-name-of-my-own"))
    for url in (
        "https://example.org/a.png?token=s3cret",
        "data:image/png;base64,c2VjcmV0c2VjcmV0",
        data_url(image)[:-400] + "=" * 4,
    ):
        with pytest.raises(openai.APIStatusError):
            ask(tiny_qwen2_vl, {"type": "image_url", "image_url": {"url": url}})
    for secret in ("s3cret", "c2VjcmV0", "base64,", "data:image", data_url(image)[100:140]):
        assert secret not in tiny_qwen2_vl.output
    assert "/v1/chat/completions" in tiny_qwen2_vl.output
