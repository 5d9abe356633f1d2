from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.prompt.detokenize import Detokenizer
from appliance.prompt.tokenizer import Tokenizer
from tests.prompt.conftest import NAMES

TEXTS = [
    "The capital of France is Paris.",
    "  leading and trailing  ",
    "emoji 👩‍👩‍👧‍👦🏽 and flags 🇫🇷🇯🇵, 東京は日本の首都です。你好，世界",
    "Zalgo: Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢ עִבְרִית العربية हिन्दी ไทย",
    "tabs\tand\r\nnewlines\n\n\n  code:\n\tif x:\n\t\treturn 'é'",
    "\x00\x01\x7f \ufeff \u2028 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "",
]


def stream(tokenizer: Tokenizer, ids: list[int], seed: int = 0, **options: bool) -> list[str]:
    rng = random.Random(seed)
    detokenizer = Detokenizer(tokenizer, **options)
    pieces, place = [], 0
    while place < len(ids):
        step = rng.choice([1, 1, 1, 2, 5])
        pieces.append(detokenizer.push(ids[place : place + step]))
        place += step
    return [*pieces, detokenizer.finish()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", TEXTS)
def test_streamed_text_is_the_decoded_text(
    name: str, text: str, tokenizers: dict[str, Tokenizer], references: dict[str, Any]
) -> None:
    ids = tokenizers[name].encode(text, special=False)
    pieces = stream(tokenizers[name], ids)
    assert "".join(pieces) == references[name].decode(ids, skip_special_tokens=True)
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("skip", [True, False])
def test_random_tokens_stream_as_they_decode(
    name: str, skip: bool, tokenizers: dict[str, Tokenizer], references: dict[str, Any]
) -> None:
    tokenizer = tokenizers[name]
    rng = random.Random(name)
    ids = range(tokenizer.vocab_size + 40)  # some are outside the vocabulary
    if name in ("llava", "gemma3"):
        ids = range(tokenizer.id_of("<0xFF>") + 1, tokenizer.vocab_size + 40)
    for seed in range(60):
        chosen = rng.choices(ids, k=30)
        expected = references[name].decode(chosen, skip_special_tokens=skip)
        assert "".join(stream(tokenizer, chosen, seed, skip_special_tokens=skip)) == expected


@given(data=st.binary(max_size=24))
def test_any_bytes_of_a_byte_level_vocabulary_stream_as_they_decode(
    data: bytes, tokenizers: dict[str, Tokenizer], references: dict[str, Any]
) -> None:
    tokenizer = tokenizers["qwen2"]
    by_byte = {tokenizer.token_bytes(index): index for index in range(tokenizer.vocab_size)}
    ids = [by_byte[bytes([byte])] for byte in data]
    assert "".join(stream(tokenizer, ids)) == data.decode(errors="replace")
    assert "".join(stream(tokenizer, ids)) == references["qwen2"].decode(ids)


@pytest.mark.parametrize("data", ["東京👋".encode(), b"\xe6\x9d", b"\xff\xfe\x80", b"\xf0\x9f\x91"])
def test_raw_byte_tokens_stream_as_they_decode(
    data: bytes, tokenizers: dict[str, Tokenizer], references: dict[str, Any]
) -> None:
    tokenizer = tokenizers["llava"]
    word = tokenizer.encode("picture", special=False)
    ids = [*word, *(tokenizer.id_of(f"<0x{byte:02X}>") for byte in data), *word]
    assert "".join(stream(tokenizer, ids)) == references["llava"].decode(ids)
    cut = ids[: -len(word)]
    assert "".join(stream(tokenizer, cut)) == references["llava"].decode(cut)


def test_a_cut_character_does_not_take_its_neighbours_along(
    tokenizers: dict[str, Tokenizer],
) -> None:
    tokenizer = tokenizers["llava"]
    ids = [tokenizer.id_of(f"<0x{byte:02X}>") for byte in "東京".encode()[:-1]]
    assert "".join(stream(tokenizer, ids)) == "東\ufffd\ufffd"


@pytest.mark.parametrize("name", NAMES)
def test_no_piece_ends_inside_a_character(name: str, tokenizers: dict[str, Tokenizer]) -> None:
    detokenizer = Detokenizer(tokenizers[name])
    ids = tokenizers[name].encode("x👋y", special=False)
    pieces = [detokenizer.push([index]) for index in ids]
    assert "👋" in pieces
    assert "".join(pieces) == "x👋y"
    assert detokenizer.finish() == ""


def test_a_continuation_keeps_its_first_space(tokenizers: dict[str, Tokenizer]) -> None:
    ids = tokenizers["llava"].encode("picture", special=False)
    assert "".join(stream(tokenizers["llava"], ids)) == "picture"
    assert "".join(stream(tokenizers["llava"], ids, continuing=True)) == " picture"
