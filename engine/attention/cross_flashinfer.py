"""Attention across by FlashInfer's paged prefill without a mask, for CUDA."""

from __future__ import annotations

from typing import Any

import torch

from engine.attention.alignment import AlignedRows
from engine.attention.backend import AttentionShape, KVCache
from engine.attention.limits import WORKSPACE_BYTES
from engine.device.device import Device, send
from engine.scheduling.cross_batch import CrossBatch


class FlashInferCrossAttention:
    """`CrossAttention` over a `KVCache` on CUDA, for queries of the cache's type."""

    def __init__(self, shape: AttentionShape, cache: KVCache, device: Device, library: Any) -> None:
        """`library` is FlashInfer, or has its interface."""
        self.shape, self._device = shape, device
        self.store(cache)
        # zeroed: kernels count on it the first time
        workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device.device)
        self._kernel = library.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend="fa2")
        self._staged = device.event()
        self._batch: CrossBatch | None = None
        self._aligned = AlignedRows(shape, {})
        self._slots = self._seeing = torch.empty(0)
        self._partly = self._rows = False

    def store(self, cache: KVCache) -> None:
        """Keep keys and values of states there from now on."""
        self._layers = list(cache.layers)
        self._dtype, self._page_size = cache.dtype, cache.page_size

    def release(self) -> None:
        """Let go of the cache; nothing runs until `store`."""
        self._layers = []

    def plan(self, batch: CrossBatch) -> None:
        shape, pinned = self.shape, self._device.pinned
        self._batch, self._aligned = batch, AlignedRows(shape, batch.aligned)
        self._partly, self._rows = batch.seeing is not None, bool(batch.lengths)
        seeing = batch.slots.new_empty(0) if batch.seeing is None else batch.seeing
        indices, self._slots, self._seeing = send(
            self._device, [batch.page_indices, batch.slots, seeing]
        )
        if not self._rows:
            return
        self._staged.synchronize()  # the plan before may still be on its way from the same buffer
        self._kernel.plan(
            pinned(batch.query_start),
            pinned(batch.page_start),
            indices,
            pinned(batch.last_page_length),
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            self._page_size,
            causal=False,
            sm_scale=shape.scale,
            q_data_type=self._dtype,
            kv_data_type=self._dtype,
            window_left=-1,
            logits_soft_cap=shape.soft_cap,
        )
        self._staged.record()

    def run(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        paged, slots = self._layers[layer], self._slots
        if len(slots):
            for pages, new in zip(paged, (key, value), strict=True):
                pages.flatten(0, 1).index_copy_(0, slots.long(), new[: len(slots)])
        if not self._rows:
            return query.new_zeros(query.shape[0], query.shape[1] * query.shape[2])
        seeing = query[self._seeing.long()] if self._partly else query
        self._see(layer, seeing, paged[0])
        attended: torch.Tensor = self._kernel.run(seeing.contiguous(), paged)
        if not self._partly:
            return attended.reshape(query.shape[0], -1)
        output = torch.zeros_like(query, memory_format=torch.contiguous_format)
        output[self._seeing.long()] = attended
        return output.view(query.shape[0], -1)

    def aligned(self) -> list[torch.Tensor]:
        """What the planned batch's aligned rows attended to: `[heads, tokens, states]` each."""
        return [self._aligned.weights(row) for row in self._aligned.rows]

    def _see(self, layer: int, query: torch.Tensor, keys: torch.Tensor) -> None:
        """By torch: no kernel gives weights, and few requests want them."""
        for row in self._aligned.rows:
            assert self._batch is not None
            tokens = slice(*self._batch.query_start[row : row + 2].tolist())
            first, last = self._batch.page_start[row : row + 2].tolist()
            pages = self._device.upload(self._batch.page_indices[first:last].long())
            states = keys[pages].flatten(0, 1)[: self._batch.lengths[row]]
            self._aligned.see(layer, row, query[tokens], states)
