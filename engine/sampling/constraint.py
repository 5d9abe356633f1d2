"""Answers that may not be any text: at each place, which tokens may come next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the server's process, which sends them, has no torch
    import torch

    from engine.sampling.grammar import Grammars

WORD = 32  # tokens in one number of a mask


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

    @property
    def group(self) -> int | None:
        """First of tokens that go on to the vocabulary's end and stand for one choice together.

        Where they are likelier together than any single token before them, one of them it is.
        """

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
