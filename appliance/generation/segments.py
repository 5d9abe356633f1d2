"""A window's tokens cut into segments at its times, and where the next window begins.

Source: `_retrieve_segment` of transformers (models/whisper/generation_whisper.py), which is
openai/whisper's own loop (transcribe.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

STEP = 0.02  # seconds between two times
FRAME = 0.01  # seconds
FRAMES_IN_STEP = 2


@dataclass(slots=True, frozen=True)
class Span:
    """Tokens of a window from `first` to before `last`; start and end are in seconds of it."""

    start: float
    end: float
    first: int
    last: int


def cut(tokens: list[int], first_time: int, frames: int) -> tuple[list[Span], int]:
    """The segments of a window of so many frames of sound, and after how many the next begins.

    `tokens` are without the end token. Where times come in pairs, what lies behind the last pair
    is left to the next window, which begins there; unless nothing is said behind the last time.
    """
    times = [token >= first_time for token in tokens]
    cuts = [place for place, (one, other) in enumerate(pairwise(times), 1) if one and other]
    if not cuts:
        return [_whole(tokens, times, first_time, frames)], frames
    ends_silent = times[-2:] == [False, True]
    if ends_silent:
        cuts.append(len(tokens))
    else:
        cuts[-1] += 1  # its second time too
    spans, first = [], 0
    for number, last in enumerate(cuts):
        final = number == len(cuts) - 1
        closing = last - (1 if ends_silent or not final else 2)
        start, end = tokens[first] - first_time, tokens[closing] - first_time
        spans.append(Span(start * STEP, end * STEP, first, last))
        first = last
    if ends_silent:
        return spans, frames
    return spans, (tokens[first - 2] - first_time) * FRAMES_IN_STEP


def _whole(tokens: list[int], times: list[bool], first_time: int, frames: int) -> Span:
    """All of a window, up to its last time if that says anything."""
    end = int(frames * FRAME / STEP)
    said = [token for token, is_time in zip(tokens, times, strict=True) if is_time]
    if said and said[-1] != first_time:
        end = said[-1] - first_time
    return Span(0.0, end * STEP, 0, len(tokens))
