"""How much tokens attend to each state, by the heads that follow the sound as it is said."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from engine.attention.backend import AttentionShape


class AlignedRows:
    """Gathers the weights of a step's rows of which they are wanted.

    `wanted` has the heads of each such row, as (layer, head).
    """

    def __init__(
        self, shape: AttentionShape, wanted: Mapping[int, tuple[tuple[int, int], ...]]
    ) -> None:
        self._shape, self._wanted = shape, wanted
        self._found: dict[tuple[int, int, int], torch.Tensor] = {}

    @property
    def rows(self) -> list[int]:
        """Of which weights are wanted."""
        return list(self._wanted)

    def see(self, layer: int, row: int, query: torch.Tensor, keys: torch.Tensor) -> None:
        """query `[tokens, heads, head_dim]`, keys `[states, kv_heads, head_dim]` of one row."""
        group = self._shape.heads // self._shape.kv_heads
        for place, head in self._wanted[row]:
            if place == layer:
                scores = query[:, head].float() @ keys[:, head // group].float().T
                self._found[row, layer, head] = (scores * self._shape.scale).softmax(dim=-1)

    def weights(self, row: int) -> torch.Tensor:
        """`[heads, tokens, states]`, float32, of one row."""
        return torch.stack([self._found[row, layer, head] for layer, head in self._wanted[row]])
