"""One vector for a whole prompt, made of the decoder's final hidden states."""

from __future__ import annotations

import torch


class Pool:
    """Gathers the states of a prompt that are wanted, slice by slice, as the steps compute them."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[torch.Tensor, int]] = {}  # by the token that a slice begins at

    def add(self, start: int, hidden: torch.Tensor) -> None:
        """The rows `[rows, hidden]` wanted of a slice: see `Slice.pooled`.

        A slice that is computed again takes its own place.
        """
        if len(hidden):
            self._sums[start] = hidden.float().sum(dim=0), len(hidden)

    def vector(self) -> torch.Tensor:
        """The mean of all rows, `[hidden]`, float32; of one row, that row."""
        total = torch.stack([part for part, _ in self._sums.values()]).sum(dim=0)
        return total / sum(count for _, count in self._sums.values())
