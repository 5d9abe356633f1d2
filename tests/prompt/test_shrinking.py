"""What is refused by its length alone would have been too long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.prompt.shrinking import shrinking
from appliance.prompt.tokenizer import Tokenizer
from tests.checkpoints import WRITERS

BPE = {"type": "BPE", "byte_fallback": True}


@pytest.fixture(scope="module", params=["llama", "gemma3", "qwen2_vl"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("checkpoint")
    return Tokenizer(WRITERS[request.param](folder / "model"))


@given(
    text=st.text(max_size=200)
    | st.text("a e\u0301\u0345\u0313\u03b1\u1100\u1161\u11a8", max_size=200)
)
def test_a_text_never_has_fewer_tokens_than_its_length_says(
    tokenizer: Tokenizer, text: str
) -> None:
    assert tokenizer.least_tokens(len(text)) <= len(tokenizer.encode(text, special=False))


def test_a_long_text_is_known_to_be_long(tokenizer: Tokenizer) -> None:
    assert tokenizer.least_tokens(1_000_000) > 5_000


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({}, 1),
        ({"normalizer": {"type": "NFC"}}, 2),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}}, 2),
        ({"normalizer": {"type": "Strip"}}, 0),
        ({"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "_"}}, 1),
        ({"normalizer": {"type": "Replace", "pattern": {"String": "  "}, "content": ""}}, 0),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}}, 0),
        ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, 0),
        ({"pre_tokenizer": {"type": "Split", "behavior": "Isolated"}}, 1),
        ({"pre_tokenizer": {"type": "Split", "behavior": "Removed"}}, 0),
        ({"model": {"type": "WordPiece"}}, 0),
        ({"model": {"type": "BPE", "fuse_unk": True}}, 0),
    ],
    ids=json.dumps,
)
def test_where_text_may_vanish_nothing_is_said(changes: dict[str, Any], factor: int) -> None:
    assert shrinking({"model": BPE, **changes}) == factor
