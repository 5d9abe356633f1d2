"""Paged attention by our library for the CPU: pages are read where they lie."""

from __future__ import annotations

from ctypes import POINTER, cast, pointer

import torch

from engine.attention.backend import AttentionShape, KVCache
from engine.native import loading
from engine.native.library import BLOCK, ELEMENTS, Machine, address
from engine.scheduling.batch import Batch


def unsupported(shape: AttentionShape) -> str | None:
    """Why attention of this shape is not for the library; None if it is."""
    if any(size % BLOCK for _, size in shape.stored):
        return f"heads are not of whole blocks of {BLOCK}"
    if len(set(shape.windows)) > 2:
        return "windows are of more than two sizes"
    return None


class NativeAttention:
    """`AttentionBackend` over a `KVCache` on the CPU.

    `stack` is the library's view of the layers; whoever has weights for it puts them there.
    """

    def __init__(self, shape: AttentionShape, cache: KVCache, machine: Machine) -> None:
        self.shape, self.machine = shape, machine
        self.layers = (loading.Layer * shape.layers)()
        self.stack = loading.Stack(
            layers=cast(self.layers, POINTER(loading.Layer)),
            count=shape.layers,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            value_dim=shape.value_dim or shape.head_dim,
            scale=shape.scale,
            soft_cap=shape.soft_cap or 0.0,
        )
        for index, layer in enumerate(self.layers):
            layer.window = shape.window_left(index)
        self.batch = loading.Batch()
        self.store(cache)
        machine.reserve(self.stack)
        self._scratch = torch.empty(0, dtype=torch.uint8)  # kept: fresh memory faults page by page

    def store(self, cache: KVCache) -> None:
        """Keep keys and values there from now on."""
        self.dtype = cache.dtype
        self._cache: KVCache | None = cache
        self.stack.element = ELEMENTS[cache.dtype]
        self.stack.page_size = cache.page_size
        for layer, (keys, values) in zip(self.layers, cache.layers, strict=True):
            sizes = [(cache.pages + 1, cache.page_size, *size) for size in self.shape.stored]
            layer.key_pages = address(keys, cache.dtype, *sizes[0])
            layer.value_pages = address(values, cache.dtype, *sizes[1])

    def release(self) -> None:
        """Let go of the cache; nothing runs until `store`."""
        self._cache = None
        for layer in self.layers:
            layer.key_pages = layer.value_pages = None

    def plan(self, batch: Batch) -> None:
        count, tokens = len(batch.lengths), batch.tokens
        lengths = torch.tensor(batch.lengths, dtype=torch.int32)
        last_seen = None
        if len(batch.spans):
            last_seen = batch.spans[:, 1].to(torch.int64).contiguous()
        # the library reads what Python holds until the next plan
        tables = (batch.query_start, batch.page_start, batch.page_indices, batch.slots)
        self._held = (*tables, lengths, last_seen)
        int32 = torch.int32
        self.batch = loading.Batch(
            sequences=count,
            tokens=tokens,
            query_start=address(batch.query_start, int32, count + 1),
            page_start=address(batch.page_start, int32, count + 1),
            page_indices=address(batch.page_indices, int32, len(batch.page_indices)),
            lengths=address(lengths, int32, count),
            slots=address(batch.slots, torch.int64, tokens),
            last_seen=None if last_seen is None else address(last_seen, torch.int64, tokens),
        )

    def scratch(self) -> int:
        """Where a step of the planned batch works; the same memory each time."""
        needed = self.machine.scratch_bytes(self.stack, self.batch)
        if needed > len(self._scratch):
            self._scratch = torch.empty(2 * needed, dtype=torch.uint8)
        return self._scratch.data_ptr()

    def run(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        shape, tokens = self.shape, self.batch.tokens
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        sizes = [(shape.heads, shape.head_dim), *shape.stored]
        places = [
            address(tensor, self.dtype, tokens, *size)
            for tensor, size in zip((query, key, value), sizes, strict=True)
        ]
        out = query.new_empty(tokens, shape.heads * value.shape[-1])
        self.machine.attend(self.stack, layer, self.batch, *places, out.data_ptr(), self.scratch())
        return out

    def step(self) -> loading.Step:
        """What the library is to do for the planned batch, without places of a model's tensors."""
        return loading.Step(batch=pointer(self.batch), scratch=self.scratch())
