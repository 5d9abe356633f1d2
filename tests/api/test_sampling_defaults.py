"""A field left out takes the recipe's value, then the checkpoint's, then OpenAI's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.api.chat.request import ChatRequest
from appliance.config.schema import SamplingConfig
from appliance.generation.sampling_defaults import SamplingDefaults, sampling_defaults
from engine.request import SamplingOptions


def config(**values: float) -> SamplingConfig:
    empty = dict.fromkeys(("temperature", "top_p", "top_k", "min_p", "repetition_penalty"))
    return SamplingConfig(**(empty | values))


def options(defaults: SamplingDefaults, **given: object) -> SamplingOptions:
    request = ChatRequest.model_validate(
        {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **given}
    )
    return request.sampling(max_tokens=5, vocab_size=9, defaults=defaults)


@pytest.mark.parametrize(("sampled", "expected"), [(True, 0.3), (False, 1.0)])
def test_the_checkpoint_speaks_where_the_recipe_is_silent(
    tmp_path: Path, sampled: bool, expected: float
) -> None:
    declared = {"do_sample": sampled, "temperature": 0.3, "top_k": 20, "top_p": 0.8}
    (tmp_path / "generation_config.json").write_text(json.dumps(declared))
    found = sampling_defaults(config(top_p=0.5), tmp_path)
    assert found.temperature == expected
    assert found.top_p == 0.5
    assert found.top_k == (20 if sampled else 0)


def test_without_either_the_defaults_are_those_of_openai(tmp_path: Path) -> None:
    assert sampling_defaults(config(), tmp_path) == SamplingDefaults()
    assert options(SamplingDefaults()).temperature == 1.0


def test_what_a_request_says_wins() -> None:
    defaults = SamplingDefaults(temperature=0.2, top_p=0.9, top_k=7)
    open_ = options(defaults)
    assert (open_.temperature, open_.top_p, open_.top_k) == (0.2, 0.9, 7)
    said = options(defaults, temperature=1.0, top_p=1.0, top_k=-1)
    assert (said.temperature, said.top_p, said.top_k) == (1.0, 1.0, 0)
    assert options(defaults, top_p=0).top_k == 1  # greedy
