"""Drafts without a model: what followed where the last tokens of a sequence stood before."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence

PAIR = 2  # tokens that have to be the same
MOST_SAME = 8  # tokens that are compared
PLACES = 16  # where the last pair stood, latest first, that are looked at

TRUST = 0.5  # in guesses of a sequence that none was made for yet
LEARNING = 0.2  # part of it that one guess decides


class PromptLookup:
    """Prompt lookup decoding (Saxena 2023; vLLM and SGLang call it n-gram speculation).

    Of the places where the last tokens of a sequence stood before, that counts where the most are
    the same, and of equals the latest. Pairs of tokens are indexed as they come, a chain of places
    for each, so a token costs the same however long the sequence is: at most an entry of a
    dictionary, and a number.

    `hidden` are the parts (start, end) of the prompt whose tokens stand for media: none of them is
    ever proposed, nor looked for.
    """

    def __init__(self, hidden: Sequence[tuple[int, int]] = ()) -> None:
        spans = sorted(hidden)
        self._starts = [start for start, _ in spans]
        self._ends = [end for _, end in spans]
        self._latest: dict[int, int] = {}  # of a pair of tokens: the place behind it
        self._before = array("i")  # of a place: one before it behind the same pair; 0: none
        self._trust = TRUST  # how likely a token comes as guessed if all before it do
        self._guess: tuple[int, ...] = ()
        self._guessed_at = 0  # the place of the guess, until it is told right or wrong

    def propose(self, tokens: list[int], most: int, worthwhile: float = 0.0) -> tuple[int, ...]:
        """Up to `most` tokens that may come next, each with more than a chance of `worthwhile`.

        `tokens` are those of the last call and more. Guesses that are not likely enough are kept
        here, to see how likely the next ones are.
        """
        self._learn(tokens)
        self._index(tokens)
        self._guess, self._guessed_at = self._found(tokens, most), len(tokens)
        count, chance = 0, self._trust
        while count < len(self._guess) and chance > worthwhile:
            count += 1
            chance *= self._trust
        return self._guess[:count]

    def _learn(self, tokens: list[int]) -> None:
        """Hold the last guess against what has come."""
        for guess, came in zip(self._guess, tokens[self._guessed_at :], strict=False):
            self._trust += LEARNING * ((guess == came) - self._trust)
            if guess != came:
                break

    def _found(self, tokens: list[int], most: int) -> tuple[int, ...]:
        count = len(tokens)
        if count < PAIR or self._hidden_end(count - 1) > count - PAIR:
            return ()
        found, longest = 0, 0
        place = self._latest.get(_pair(tokens, count), 0)
        for _ in range(PLACES):
            if not place or longest == MOST_SAME:
                break
            same = _same(tokens, place)
            if same > longest:
                found, longest = place, same
            place = self._before[place]
        return self._following(tokens, found, most) if found else ()

    def _index(self, tokens: list[int]) -> None:
        """Note every place that has a token behind it."""
        before, latest = self._before, self._latest
        for place in range(len(before), len(tokens)):
            if place < PAIR or self._hidden_end(place) > place - PAIR:
                before.append(0)
                continue
            pair = _pair(tokens, place)
            before.append(latest.get(pair, 0))
            latest[pair] = place

    def _hidden_end(self, place: int) -> int:
        """Where the last media item ends that begins at a place or before it; 0: there is none."""
        index = bisect_right(self._starts, place)
        return self._ends[index - 1] if index else 0

    def _following(self, tokens: list[int], place: int, most: int) -> tuple[int, ...]:
        """The tokens from a place on, up to a media item; behind the last one they begin anew."""
        count = len(tokens)
        index = bisect_right(self._starts, place)
        if index < len(self._starts):
            most = min(most, self._starts[index] - place)
        found = tokens[place : min(place + most, count)]
        while len(found) < most:
            found.append(found[len(found) - (count - place)])
        return tuple(found)


def _pair(tokens: list[int], place: int) -> int:
    """The two tokens before a place as one number."""
    return tokens[place - 2] << 32 | tokens[place - 1]


def _same(tokens: list[int], place: int) -> int:
    """How many tokens before a place are the last ones of all, its pair being the last pair."""
    same = PAIR
    while same < min(MOST_SAME, place) and tokens[place - 1 - same] == tokens[-1 - same]:
        same += 1
    return same
