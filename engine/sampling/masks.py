"""Which tokens may come next in a step's answers, computed while the step is."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from engine.sampling.constraint import Constraint, mask_words

if TYPE_CHECKING:
    from engine.scheduling.sequence import Sequence


class Masks:
    """Of a step's constraints, computed by a thread while the step is."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._thread: ThreadPoolExecutor | None = None
        self._expected: list[Constraint] = []
        self._begun: Future[torch.Tensor] | None = None

    def expect(self, sequences: list[Sequence]) -> None:
        """Begin with those of sequences whose next tokens are chosen next.

        Until they are taken, nobody else may ask their constraints anything.
        """
        self._expected, self._begun = _constraints(sequences), None
        if self._expected:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "masks")
            self._begun = self._thread.submit(self._compute, self._expected)

    def take(self, sequences: list[Sequence]) -> torch.Tensor | None:
        """`[constraints, mask_words(vocabulary)]` of those that have one; None if none has."""
        constraints, begun = _constraints(sequences), self._begun
        self._begun = None
        masks = None if begun is None else begun.result()
        if not constraints:
            return None
        if masks is not None and [*map(id, constraints)] == [*map(id, self._expected)]:
            return masks
        return self._compute(constraints)

    def _compute(self, constraints: list[Constraint]) -> torch.Tensor:
        masks = torch.zeros(len(constraints), mask_words(self._vocabulary), dtype=torch.int32)
        for constraint, mask in zip(constraints, masks, strict=True):
            constraint.mask(mask)
        return masks


def constrained(
    logits: torch.Tensor,
    sequences: list[Sequence],
    allowed: torch.Tensor,
    upload: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Logits `[sequences, vocabulary]` with -inf for tokens that may not come.

    `allowed` `[constraints, vocabulary]`, bool, is of the sequences that have one. The argument
    stays as it is. `upload` brings indices to where both are.
    """
    rows = [row for row, sequence in enumerate(sequences) if sequence.constraint is not None]
    if len(rows) == len(sequences):
        logits = torch.where(allowed, logits, float("-inf"))
    else:
        places, logits = upload(torch.tensor(rows)), logits.clone()
        logits[places] = torch.where(allowed, logits[places], float("-inf"))
    for row in rows:
        constraint = sequences[row].constraint
        if constraint is not None and constraint.group is not None:
            _weigh(logits[row], constraint.group)
    return logits


def _weigh(row: torch.Tensor, group: int) -> None:
    """Leave only a group in `row` where it outweighs each token before it; nobody waits for it."""
    others = row[:group]
    outweighed = row[group:].logsumexp(dim=-1) > others.max()
    others.masked_fill_(outweighed, float("-inf"))


def unpacked(masks: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Masks as `allowed`, on the host."""
    words = masks.numpy().astype("<i4", copy=False)
    bits = np.unpackbits(words.view(np.uint8), axis=1, count=vocabulary, bitorder="little")
    return torch.from_numpy(bits).view(torch.bool)


def _constraints(sequences: list[Sequence]) -> list[Constraint]:
    return [each.constraint for each in sequences if each.constraint is not None]
