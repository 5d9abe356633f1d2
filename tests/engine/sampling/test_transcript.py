"""Transcripts are held to the rules that transformers' logits processors of Whisper have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.generation.logits_process import (
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)

from engine.sampling.constraint import mask_words
from engine.sampling.masks import constrained, unpacked
from engine.sampling.transcript import OneOf, Transcript

VOCABULARY, END, FIRST_TIME, PROMPT = 173, 90, 110, 3
RULES = Transcript(END, FIRST_TIME, 6, never=(3, 4, 95), never_first=(7, END))


def processors() -> list[Any]:
    config = SimpleNamespace(
        no_timestamps_token_id=FIRST_TIME - 1,
        eos_token_id=END,
        bos_token_id=END,
        max_initial_timestamp_index=5,
    )
    return [
        SuppressTokensAtBeginLogitsProcessor([7, END], PROMPT),
        SuppressTokensLogitsProcessor([3, 4, 95]),
        WhisperTimeStampLogitsProcessor(config, PROMPT),
    ]


def ours(logits: torch.Tensor, constraint: Any) -> torch.Tensor:
    mask = torch.zeros(1, mask_words(VOCABULARY), dtype=torch.int32)
    constraint.mask(mask[0])
    sequences: Any = [SimpleNamespace(constraint=constraint)]
    return constrained(logits[None], sequences, unpacked(mask, VOCABULARY), lambda one: one)[0]


@pytest.mark.parametrize("times", [-3.0, 0.0, 3.0])
@pytest.mark.parametrize("seed", range(10))
def test_what_may_come_is_what_transformers_lets_come(seed: int, times: float) -> None:
    """Whichever is drawn of what may: some with much text, some with many times."""
    generator = torch.Generator().manual_seed(seed)
    constraint = RULES.start(None)  # type: ignore[arg-type]
    said: list[int] = [1] * PROMPT
    weighed = 0
    for _ in range(60):
        logits = torch.randn(VOCABULARY, generator=generator) * 2
        logits[FIRST_TIME:] += times
        expected = logits[None].clone()
        for processor in processors():
            expected = processor(torch.tensor([said]), expected)
        found = ours(logits, constraint)
        assert torch.equal(found.isinf(), expected[0].isinf())
        kept = ~found.isinf()
        assert torch.equal(found[kept], logits[kept])
        weighed += bool(found[:FIRST_TIME].isinf().all())
        token = int(torch.multinomial(found.softmax(-1), 1, generator=generator))
        if token == END:
            break
        said.append(token)
        constraint.advance(token)
    assert weighed > 0


def test_one_of_some_tokens_is_one_of_them() -> None:
    constraint = OneOf((5, 71)).start(None)  # type: ignore[arg-type]
    found = ours(torch.randn(VOCABULARY), constraint)
    assert (~found.isinf()).nonzero().flatten().tolist() == [5, 71]


def test_neighbours_without_a_constraint_keep_their_logits() -> None:
    logits = torch.zeros(2, VOCABULARY)
    constraint = RULES.start(None)  # type: ignore[arg-type]
    mask = torch.zeros(1, mask_words(VOCABULARY), dtype=torch.int32)
    constraint.mask(mask[0])
    sequences: Any = [SimpleNamespace(constraint=None), SimpleNamespace(constraint=constraint)]
    found = constrained(logits, sequences, unpacked(mask, VOCABULARY), lambda one: one)
    assert torch.equal(found[0], logits[0])
    assert found[1].isinf().any()
    assert not logits.isinf().any()
