"""Drafts without a model: what followed where the last tokens of a sequence stood before."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence

FEWEST = 2  # tokens that have to be the same
MOST = 4  # tokens that are compared
PLACES = 16  # where the last two tokens stood, latest first, that are looked at


class PromptLookup:
    """Prompt lookup decoding (Saxena 2023; vLLM and SGLang call it n-gram speculation).

    Of the latest places where the last tokens of a sequence stood before, that counts where the
    most are the same, and of equals the latest. Pairs of tokens are indexed as they come, a chain
    of places for each, so a token costs the same however long the sequence is: an entry of a
    dictionary at most, and one number.

    `hidden` are the parts (start, end) of the prompt whose tokens stand for media: none of them is
    ever proposed, nor looked for.
    """

    def __init__(self, hidden: Sequence[tuple[int, int]] = ()) -> None:
        self._walls = sorted(hidden)
        self._starts = [start for start, _ in self._walls]
        self._ends = [end for _, end in self._walls]
        self._latest: dict[int, int] = {}  # of a pair of tokens: the place behind it
        self._before = array("i")  # of a place: one before it behind the same pair; 0: none

    def propose(self, tokens: list[int], most: int) -> tuple[int, ...]:
        """Up to `most` tokens that may come next. `tokens` are those of the last call and more."""
        count = len(tokens)
        self._index(tokens)
        if count < FEWEST or self._wall_before(count) > count - FEWEST:
            return ()
        place = self._latest.get(_pair(tokens, count), 0)
        found, longest = 0, FEWEST - 1
        for _ in range(PLACES):
            if not place or longest == MOST:
                break
            same = _same(tokens, place, count)
            if same > longest:
                found, longest = place, same
            place = self._before[place]
        return self._following(tokens, found, most) if found else ()

    def _index(self, tokens: list[int]) -> None:
        """Note every place that has a token behind it."""
        before, latest = self._before, self._latest
        for place in range(len(before), len(tokens)):
            if place < FEWEST or (
                self._walls
                and (self._wall_before(place + 1) > place - FEWEST or place in self._starts)
            ):
                before.append(0)
                continue
            pair = _pair(tokens, place)
            before.append(latest.get(pair, 0))
            latest[pair] = place

    def _wall_before(self, place: int) -> int:
        """Where the last media item that begins before a place ends; 0: there is none."""
        index = bisect_right(self._starts, place - 1)
        return self._ends[index - 1] if index else 0

    def _following(self, tokens: list[int], place: int, most: int) -> tuple[int, ...]:
        """The tokens from a place on, up to a media item; beyond the last, what repeats itself."""
        count = len(tokens)
        index = bisect_right(self._starts, place)
        wall = self._starts[index] if index < len(self._starts) else count + most
        found = tokens[place : min(place + most, count, wall)]
        while len(found) < min(most, wall - place):
            found.append(found[len(found) - (count - place)])
        return tuple(found)


def _pair(tokens: list[int], place: int) -> int:
    """The two tokens before a place as one number."""
    return tokens[place - 2] << 32 | tokens[place - 1]


def _same(tokens: list[int], place: int, count: int) -> int:
    """How many tokens before a place are the last ones of all; the first two are."""
    same = FEWEST
    while same < min(MOST, place) and tokens[place - 1 - same] == tokens[count - 1 - same]:
        same += 1
    return same
