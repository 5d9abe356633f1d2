"""A bound on what a model thinks before it answers: then the thought is ended for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.sampling.constraint import WORD, Constraint, ConstraintSource

if TYPE_CHECKING:
    import torch

    from engine.sampling.grammar import Grammars


@dataclass(slots=True, frozen=True)
class ThoughtBudget:
    """`ConstraintSource`: at most `tokens` between the tokens `begin` and `end`.

    With `begun` the prompt has ended inside a thought; `then` is what the answer is held to too.
    """

    tokens: int
    begin: int
    end: int
    begun: bool
    then: ConstraintSource | None = None

    def start(self, grammars: Grammars) -> BudgetConstraint:
        other = None if self.then is None else self.then.start(grammars)
        return BudgetConstraint(self, other)


class BudgetConstraint:
    """`Constraint` of one answer."""

    def __init__(self, budget: ThoughtBudget, other: Constraint | None) -> None:
        self._budget, self._other = budget, other
        self._inside = budget.begun
        self._left = budget.tokens

    @property
    def ready(self) -> bool:
        return self._other is None or self._other.ready

    @property
    def group(self) -> int | None:
        return None if self._other is None else self._other.group

    @property
    def complete(self) -> bool:
        return self._other is not None and self._other.complete

    def mask(self, row: torch.Tensor) -> None:
        if self._inside and self._left <= 0:
            word, bit = divmod(self._budget.end, WORD)
            row[word] = 1 << bit if bit < WORD - 1 else -(1 << bit)
        elif self._other is None:
            row.fill_(-1)
        else:
            self._other.mask(row)

    def advance(self, token: int) -> None:
        if self._inside:
            self._inside = token != self._budget.end
            self._left -= 1
        elif token == self._budget.begin:
            self._inside = True
        if self._other is not None:
            self._other.advance(token)
