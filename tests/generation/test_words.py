"""Words and their times are those that transformers makes of the same tokens and attention."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from transformers.models.whisper.generation_whisper import _dynamic_time_warping
from transformers.models.whisper.tokenization_whisper import _combine_tokens_into_words

from appliance.generation.alignment import STEP, token_times
from appliance.generation.words import words_of
from appliance.prompt.tokenizer import Tokenizer
from tests.checkpoints import write_whisper

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    ' "Hello!" she said (twice), "thank you..."',
    " El niño comió ¿una manzana? 12 and 30 is 42",
    "東京は日本の首都です。 你好，世界！",
    " -a- 'b' [c] {d} ...",
    "Grüße aus Köln 🎉 well-known, l'été",
    " . , !",
    "",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_whisper(Path(tmp_path_factory.mktemp("whisper"))))


class Theirs:
    """What transformers asks of a tokenizer."""

    eos_token_id = 10**6

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def decode(self, tokens: Sequence[int], decode_with_timestamps: bool = False) -> str:
        return self._tokenizer.decode(tokens)


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("text", TEXTS)
def test_words_are_those_of_transformers(text: str, language: str, tokenizer: Tokenizer) -> None:
    names = {"en": "english", "ja": "japanese"}
    for cut in (0, 1, 2):
        tokens = tokenizer.encode(text, special=False)
        tokens = tokens[: len(tokens) - cut]
        theirs = _combine_tokens_into_words(Theirs(tokenizer), tokens, names[language])
        ours = words_of(tokens, language, tokenizer.decode)
        assert [word.text for word in ours] == theirs[0]
        counts = [len(indices) for indices in theirs[2]]
        assert sum(word.tokens for word in ours) == len(tokens)
        assert [word.tokens for word in ours][:-1] == counts[:-1]


@pytest.mark.parametrize("seed", range(30))
def test_times_are_those_of_transformers_path(seed: int) -> None:
    generator = random.Random(seed)
    tokens, states = generator.randint(1, 12), generator.randint(1, 60)
    attention = np.random.default_rng(seed).standard_normal((tokens, states)).astype(np.float32)
    if seed % 3 == 0:
        attention = attention.round()  # many equal sums
    text, time = _dynamic_time_warping(-attention.astype(np.float64))
    jumps = np.pad(np.diff(text), (1, 0), constant_values=1).astype(bool)
    assert token_times(attention) == pytest.approx((time[jumps] * STEP).tolist())
