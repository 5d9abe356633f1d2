"""One answer in the making: its tokens, how far they are computed, and the pages that hold them."""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Iterator, MutableSequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from engine.request import MediaItem, Request, SamplingOptions, TokenLogprob
from engine.scheduling.prompt_lookup import PromptLookup

if TYPE_CHECKING:
    from engine.sampling.alignment import AlignedTokens
    from engine.sampling.constraint import Constraint
    from engine.sampling.pooling import Pool


def no_pages() -> array[int]:
    """Of a sequence that holds none: int32 numbers, ready to be copied."""
    return array("i")


@dataclass(slots=True)
class ItemStates:
    """The pages for the keys and values of an item's states, and whether they are in them."""

    item: MediaItem
    pages: list[int]
    stored: bool = False


# each is itself: comparing fields would read all tokens
@dataclass(slots=True, eq=False, weakref_slot=True)
class Sequence:
    """`computed` tokens of `tokens` (prompt, then output) have their keys and values in `pages`.

    A token that the device has chosen and the host does not know yet stands in `tokens` as
    `in_flight(row)`: a negative number that names its row among the tokens chosen last.
    """

    request: Request
    index: int
    arrival: int
    salt: bytes
    positions: torch.Tensor  # [rows, prompt] int64
    position_offset: int  # from a later token's index to its position, in every row
    tokens: list[int] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)  # (start, end) that sees both ways
    computed: int = 0
    pages: MutableSequence[int] = field(default_factory=no_pages)
    states: list[ItemStates] = field(default_factory=list)  # of items attended to across, in order
    digests: list[bytes] = field(default_factory=list)
    published: int = 0
    cached_tokens: int = 0
    started: bool = False
    admitted: float | None = None  # when it was started, by time.perf_counter()
    leader: Sequence | None = None  # computes the prompt that this sequence will share
    finish_reason: str | None = None
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    constraint: Constraint | None = None
    pool: Pool | AlignedTokens | None = None  # of the slices computed since the first
    lookup: PromptLookup | None = None  # once something was to be drafted

    @property
    def sampling(self) -> SamplingOptions:
        return self.request.sampling

    @property
    def media(self) -> list[MediaItem]:
        return self.request.media

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def output(self) -> list[int]:
        return self.tokens[self.prompt_length :]

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def known(self) -> int:
        """Tokens whose values the host knows; at most the last ones are in flight."""
        count = len(self.tokens)
        while count and self.tokens[count - 1] < 0:
            count -= 1
        return count

    @property
    def exhausted(self) -> bool:
        """Whether no further token may be computed, even if the last one is still in flight."""
        return self.request.pooling is None and self.generated >= self.sampling.max_tokens

    @property
    def awaits_token(self) -> bool:
        """Whether its own last token has to be known before the next one can be chosen."""
        return self.constraint is not None and self.known < len(self.tokens)

    @property
    def reuses_prefix(self) -> bool:
        """Whether tokens whose keys and values are known need not be computed."""
        if self.request.pooling is not None:
            return self.request.pooling == "last" and self.request.alignment is None
        return self.sampling.prompt_logprobs is None or self.generated > 0

    @property
    def remaining(self) -> int:
        """Tokens known but not yet computed: 1 while decoding, more in prefill."""
        return len(self.tokens) - self.computed

    @property
    def rank(self) -> tuple[int, int, int]:
        """Order of service: priority, then arrival, then number of the answer."""
        return (self.request.priority, self.arrival, self.index)

    def entering(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Where media begin whose tower may have to run for tokens `start`..`end`, and their rows.

        An item attended to across may begin before: where a cached prefix was.
        """
        for media in self.media:
            if media.states == 0 and start <= media.start < end:
                yield media.start, media.length
        for states in self.states:
            if not states.stored and states.item.start < end:
                yield max(states.item.start, start), states.item.states

    def draft(self, most: int, worthwhile: float) -> tuple[int, ...]:
        """Up to `most` tokens that come next with more than this chance; all before are known."""
        if self.lookup is None:
            self.lookup = PromptLookup([(item.start, item.end) for item in self.media])
        return self.lookup.propose(self.tokens, most, worthwhile)

    def wants_prompt_logprobs(self, start: int) -> bool:
        """Whether the logits of all tokens of a slice from `start` on are wanted."""
        return self.sampling.prompt_logprobs is not None and start < self.prompt_length

    def block_digests(self, page_size: int) -> list[bytes]:
        """SHA-256 of all full blocks of known tokens, the media over them and all before."""
        for block in range(len(self.digests), self.known // page_size):
            start, end = block * page_size, (block + 1) * page_size
            state = hashlib.sha256(self.digests[-1] if block else b"prefix:" + self.salt)
            state.update(array("q", self.tokens[start:end]).tobytes())
            for item in self.media:
                # what is attended to across has no length; blocks behind its first follow from that
                if item.start < end and max(item.end, item.start + 1) > start:
                    state.update(item.digest)
                    state.update(struct.pack("<q", start - item.start))
            self.digests.append(state.digest())
        return self.digests


def in_flight(row: int) -> int:
    """What stands for a token that is row `row` of those chosen by the step before."""
    return -1 - row
