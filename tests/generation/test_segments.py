"""Segments are those that transformers cuts of the same tokens."""

from __future__ import annotations

import random

import pytest
import torch
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

from appliance.generation.segments import cut

FIRST_TIME = 100


def theirs(tokens: list[int], frames: int) -> tuple[list[tuple[float, float, list[int]]], int]:
    segments, offset = WhisperGenerationMixin._retrieve_segment(
        seek_sequence=torch.tensor(tokens),
        seek_outputs=[None],
        time_offset=torch.zeros(1, dtype=torch.float64),
        timestamp_begin=FIRST_TIME,
        seek_num_frames=torch.tensor([frames]),
        time_precision=0.02,
        time_precision_features=0.01,
        input_stride=2,
        prev_idx=0,
        idx=0,
        return_token_timestamps=False,
        decoder_input_ids=torch.zeros(1, 3),
    )
    told = [(float(s["start"]), float(s["end"]), s["tokens"].tolist()) for s in segments]
    return told, int(offset)


def spoken(generator: random.Random) -> list[int]:
    """Times in pairs, as the rules have them, cut off anywhere."""
    tokens, now = [FIRST_TIME], 0
    for _ in range(generator.randrange(5)):
        tokens += generator.choices(range(90), k=generator.randint(1, 4))
        now += generator.randint(1, 30)
        tokens.append(FIRST_TIME + now)
        now += generator.choice([0, 0, 7])
        tokens.append(FIRST_TIME + now)
    return tokens[: len(tokens) - generator.randrange(3)] or tokens


@pytest.mark.parametrize("seed", range(200))
def test_segments_are_those_of_transformers(seed: int) -> None:
    generator = random.Random(seed)
    tokens, frames = spoken(generator), generator.choice([3000, 1234, 77])
    spans, offset = cut(tokens, FIRST_TIME, frames)
    expected, where = theirs(tokens, frames)
    assert offset == where
    assert [tokens[span.first : span.last] for span in spans] == [one[2] for one in expected]
    for span, (start, end, _) in zip(spans, expected, strict=True):
        assert span.start == pytest.approx(start, abs=1e-9)
        assert span.end == pytest.approx(end, abs=1e-9)


def test_the_sounds_of_all_kinds_of_endings_differ() -> None:
    """Control: what a window ends with decides where the next begins."""
    text, pair = [FIRST_TIME, 5, 6], [FIRST_TIME + 10, FIRST_TIME + 10]
    assert cut([*text, *pair, 7], FIRST_TIME, 3000)[1] == 20
    assert cut([*text, *pair, 7, FIRST_TIME + 40], FIRST_TIME, 3000)[1] == 3000
    assert cut(text, FIRST_TIME, 3000)[1] == 3000
