"""Answers that may not be any text: at each place, which tokens may come next."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from engine.sampling.grammar import Grammars
    from engine.scheduling.sequence import Sequence

WORD = 32  # tokens in one number of a mask

Upload = Callable[[torch.Tensor], torch.Tensor]  # from the host to where the logits are


class Constraint(Protocol):
    """What one answer may still become. It lives in the engine, with its sequence.

    Where a step is launched before the tokens of the one before are known, a sequence with a
    constraint waits for its own: the scheduler leaves it out for as long as one is in flight. An
    end token ends such an answer, whatever `ignore_eos` says: nothing may come behind it. Methods
    raise ConstraintFailed where it cannot be told what may come.
    """

    @property
    def ready(self) -> bool:
        """Whether it can be asked; its sequence waits until then."""

    @property
    def complete(self) -> bool:
        """Whether nothing but an end token may come."""

    def mask(self, row: torch.Tensor) -> None:
        """Write which tokens may come next into `row` `[mask_words(vocabulary)]`, int32, all zero.

        Token t may if bit t % 32 of number t // 32 is set, as grammar engines write their masks.
        At least one may.
        """

    def advance(self, token: int) -> None:
        """Take note that `token` has come."""


class ConstraintSource(Protocol):
    """What a request says of its answers: plain data, since it crosses a process border."""

    def start(self, grammars: Grammars) -> Constraint:
        """The constraint of an answer that has no token yet. Raises RequestRefused."""


def mask_words(vocabulary: int) -> int:
    """Numbers in a mask over that many tokens."""
    return -(-vocabulary // WORD)


def constrained(logits: torch.Tensor, sequences: list[Sequence], upload: Upload) -> torch.Tensor:
    """Logits `[sequences, vocabulary]` with -inf for tokens that may not come.

    The argument stays as it is; it is returned where no sequence has a constraint.
    """
    rows = [row for row, sequence in enumerate(sequences) if sequence.constraint is not None]
    if not rows:
        return logits
    vocabulary = logits.shape[1]
    masks = torch.zeros(len(rows), mask_words(vocabulary), dtype=torch.int32)
    for mask, row in zip(masks, rows, strict=True):
        constraint = sequences[row].constraint
        assert constraint is not None
        constraint.mask(mask)
    bits = torch.arange(WORD, dtype=torch.int32, device=logits.device)
    allowed = (upload(masks)[:, :, None] >> bits & 1).flatten(1)[:, :vocabulary].bool()
    places = upload(torch.tensor(rows))
    logits = logits.clone()
    logits[places] = logits[places].masked_fill(~allowed, float("-inf"))
    return logits
