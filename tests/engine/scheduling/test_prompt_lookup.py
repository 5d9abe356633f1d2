"""Drafts are what a search through the whole sequence finds, at a price that does not grow."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.scheduling import prompt_lookup as module
from engine.scheduling.prompt_lookup import MOST_SAME, PAIR, PromptLookup


def searched(tokens: list[int], most: int, hidden: list[tuple[int, int]]) -> tuple[int, ...]:
    """The draft as its description reads, by a search."""
    seen = {place for start, end in hidden for place in range(start, end)}
    count, found, longest = len(tokens), 0, 0
    for place in range(count - 1, PAIR - 1, -1):
        if seen & {place - 2, place - 1, place, count - 2, count - 1}:
            continue
        same = 0
        while same < min(MOST_SAME, place) and tokens[place - 1 - same] == tokens[-1 - same]:
            same += 1
        if same >= PAIR and same > longest:
            found, longest = place, same
    if not found:
        return ()
    draft: list[int] = []
    while len(draft) < most and found + len(draft) not in seen:
        place = found + len(draft)
        draft.append(tokens[place] if place < count else draft[place - count])
    return tuple(draft)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), kinds=st.integers(1, 6), media=st.integers(0, 3))
def test_a_draft_is_what_a_search_finds(seed: int, kinds: int, media: int) -> None:
    chance = random.Random(seed)
    tokens: list[int] = []
    hidden = []
    for _ in range(media):
        tokens += chance.choices(range(kinds), k=chance.randrange(6))
        hidden.append((len(tokens), len(tokens) + chance.randint(1, 4)))
        tokens += [0] * (hidden[-1][1] - hidden[-1][0])
    tokens += chance.choices(range(kinds), k=chance.randint(0 if media else 1, 12))
    lookup = PromptLookup(hidden)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PLACES", 1000)
        while len(tokens) < 60:
            most = chance.randint(1, 6)
            assert lookup.propose(tokens, most) == searched(tokens, most, hidden)
            tokens += chance.choices(range(kinds), k=chance.randint(1, 3))


def test_what_stands_for_media_is_never_drafted() -> None:
    picture = [9] * 4
    tokens = [1, 2, *picture, 3, 4, 5, 1, 2]
    assert PromptLookup().propose(tokens, 4) != ()  # control
    assert PromptLookup([(2, 6)]).propose(tokens, 4) == ()
    assert PromptLookup([(2, 6)]).propose([1, 2, 3, *tokens[3:]], 4) == ()
    tokens = [1, 2, 3, *picture, 1, 2]
    assert PromptLookup([(3, 7)]).propose(tokens, 4) == (3,)


def test_as_many_are_drafted_as_are_likely_to_come() -> None:
    chance = random.Random(1)
    lookup, tokens = PromptLookup(), [1, 2, 3] * 10
    for _ in range(20):
        assert len(lookup.propose(tokens, 8, 0.0)) == 8
        tokens += [*chance.choices(range(100, 200), k=3), 1, 2]
    assert lookup.propose(tokens, 8, 0.4) == ()
    guesses = []
    for step in range(20):  # what is guessed and not drafted is learnt from too
        guesses.append(len(lookup.propose(tokens, 8, 0.4)))
        tokens.append(1 + step % 3)
    assert guesses == sorted(guesses)
    assert (guesses[0], guesses[-1]) == (0, 8)
    assert len(lookup.propose(tokens, 3, 0.4)) == 3
    assert 0 < len(lookup.propose(tokens, 8, 0.9)) < 8


@pytest.mark.parametrize("kinds", [1, 20, 50_000])
def test_a_token_costs_as_much_in_a_long_sequence(kinds: int) -> None:
    def cost(length: int) -> float:
        chance = random.Random(1)
        tokens = chance.choices(range(kinds), k=length)
        lookup, best = PromptLookup(), float("inf")
        lookup.propose(tokens, 8)
        for _ in range(300):
            tokens.append(chance.randrange(kinds))
            start = time.perf_counter()
            lookup.propose(tokens, 8)
            best = min(best, time.perf_counter() - start)
        return best

    assert cost(100_000) < 10 * cost(1_000)
