"""Attention across in torch, for CPUs: a row at a time, over pages that are read where they lie."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from engine.attention.alignment import AlignedRows
from engine.attention.backend import AttentionShape, KVCache
from engine.scheduling.cross_batch import CrossBatch


class TorchCrossAttention:
    """`CrossAttention` over a `KVCache`.

    A page holds what a tower gives at once, so that most rows see a single one, without a copy.
    """

    def __init__(self, shape: AttentionShape, cache: KVCache) -> None:
        self.shape = shape
        self.store(cache)
        self._batch: CrossBatch | None = None
        self._aligned = AlignedRows(shape, {})
        self._rows: list[tuple[slice, torch.Tensor, int]] = []

    def store(self, cache: KVCache) -> None:
        """Keep keys and values of states there from now on."""
        self._layers = list(cache.layers)

    def release(self) -> None:
        """Let go of the cache; nothing runs until `store`."""
        self._layers = []

    def plan(self, batch: CrossBatch) -> None:
        query, page = batch.query_start.tolist(), batch.page_start.tolist()
        self._batch = batch
        self._aligned = AlignedRows(self.shape, batch.aligned)
        self._rows = [
            (
                slice(query[row], query[row + 1]),
                batch.page_indices[page[row] : page[row + 1]].to(torch.int64),
                length,
            )
            for row, length in enumerate(batch.lengths)
        ]

    def run(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        batch, paged = self._batch, self._layers[layer]
        assert batch is not None
        if len(batch.slots):
            for pages, new in zip(paged, (key, value), strict=True):
                pages.flatten(0, 1).index_copy_(0, batch.slots, new[: len(batch.slots)])
        output = query.new_zeros(query.shape[0], self.shape.heads * value.shape[-1])
        seeing = query if batch.seeing is None else query[batch.seeing]
        attended = output if batch.seeing is None else output[batch.seeing]
        for row, (rows, pages, length) in enumerate(self._rows):
            keys, values = (states_on(part, pages)[:length] for part in paged)
            if row in batch.aligned:
                self._aligned.see(layer, row, seeing[rows], keys)
            attended[rows] = self._attend(seeing[rows], keys, values)
        if batch.seeing is not None:
            output[batch.seeing] = attended
        return output

    def aligned(self) -> list[torch.Tensor]:
        """What the planned batch's aligned rows attended to: `[heads, tokens, states]` each."""
        return [self._aligned.weights(row) for row in self._aligned.rows]

    def _attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        attended = scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            scale=self.shape.scale,
            enable_gqa=self.shape.heads != self.shape.kv_heads,
        )
        return attended[0].transpose(0, 1).reshape(query.shape[0], -1)


def states_on(paged: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    """`[states, heads, size]` on these pages, one after the other."""
    if len(pages) == 1:
        return paged[int(pages[0])]
    return paged[pages].flatten(0, 1)
