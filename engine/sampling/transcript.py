"""What a Whisper may say next: never some tokens, and times in pairs that do not go back.

Source: `ApplyTimestampRules`, `SuppressTokens` and `SuppressBlank` of openai/whisper (decoding.py),
as transformers' logits processors of the model have them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch  # only where there are logits
    from numpy.typing import NDArray

    from engine.sampling.constraint import Constraint
    from engine.sampling.grammar import Grammars


@dataclass(slots=True, frozen=True)
class OneOf:
    """`ConstraintSource` of answers of one token, which is one of these."""

    tokens: tuple[int, ...]

    def start(self, grammars: Grammars) -> Constraint:
        return OneOfConstraint(self.tokens)


class OneOfConstraint:
    """`Constraint` of one answer."""

    ready, complete, group = True, False, None

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self._tokens = list(tokens)

    def mask(self, row: torch.Tensor) -> None:
        bits = np.zeros(len(row) * 32, dtype=bool)
        bits[self._tokens] = True
        write_mask(row, bits)

    def advance(self, token: int) -> None:
        return None


@dataclass(slots=True, frozen=True)
class Transcript:
    """`ConstraintSource` of transcripts with times; tokens from `first_time` on are times.

    A transcript begins with a time, of the first `first_times` of them.
    """

    end: int
    first_time: int
    first_times: int
    never: tuple[int, ...]
    never_first: tuple[int, ...]

    def start(self, grammars: Grammars) -> Constraint:
        return TranscriptConstraint(self)


class TranscriptConstraint:
    """`Constraint` of one answer; times together outweigh any single token of text."""

    ready, complete = True, False

    def __init__(self, rules: Transcript) -> None:
        self._rules = rules
        self._never = [*rules.never, rules.first_time - 1]  # that there are no times
        self._count = 0
        self._before, self._last = True, False  # whether the last two tokens were times
        self._time = 0  # the last one; 0: none yet

    @property
    def group(self) -> int:
        return self._rules.first_time

    def mask(self, row: torch.Tensor) -> None:
        rules, first = self._rules, self._rules.first_time
        bits = np.ones(len(row) * 32, dtype=bool)
        bits[self._never] = False
        if not self._count:
            bits[list(rules.never_first)] = False
            bits[:first] = False
            bits[first + rules.first_times :] = False
        if self._last and self._before:  # text comes between two pairs
            bits[first:] = False
        elif self._last:  # a time that ends text is followed by the next one's, or by the end
            bits[: rules.end] = False
        if self._time:  # again only as the second of a pair
            again = self._last and not self._before
            bits[first : self._time + (0 if again else 1)] = False
        write_mask(row, bits)

    def advance(self, token: int) -> None:
        self._count += 1
        is_time = token >= self._rules.first_time
        # before a second token, the first counts as preceded by a time
        self._before = self._last if self._count > 1 else True
        self._last = is_time
        if is_time:
            self._time = token


def write_mask(row: torch.Tensor, bits: NDArray[np.bool_]) -> None:
    """Write a bool for each token into a row of a mask, which lies in its memory."""
    row.numpy()[:] = np.packbits(bits, bitorder="little").view("<i4")
