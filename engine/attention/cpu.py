"""Paged attention in torch, for CPUs.

Decoding sequences of similar length go through one fused call, padded to the longest of them: a
call per sequence costs more than the padding as long as the padding stays small. Heads that share a
key head are folded into the query dimension, so keys are never repeated. Prompts go one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from engine.attention.backend import AttentionShape, KVCache
from engine.batch import Batch

PADDING = 1.25  # a group's longest member is at most this much longer than its shortest


@dataclass(slots=True)
class DecodeGroup:
    """Sequences of one token each, attended to in one call."""

    rows: torch.Tensor | None  # [members] int64, where their tokens stand; None: all rows in order
    pages: torch.Tensor  # [members * width] int64
    members: int
    longest: int
    mask: torch.Tensor | None  # [members, 1, 1, longest] additive


@dataclass(slots=True)
class Prefill:
    """Several tokens of one sequence."""

    start: int  # in the flat tensors
    end: int
    length: int
    pages: torch.Tensor | None  # [pages] int64; None: no earlier tokens, keys are the slice's own
    mask: torch.Tensor | None  # [tokens, length] bool; None: plainly causal


class CpuAttention:
    """`AttentionBackend` over a `KVCache` on the CPU."""

    def __init__(self, shape: AttentionShape, cache: KVCache) -> None:
        self.shape = shape
        self.page_size = cache.page_size
        self.dtype = cache.layers[0].dtype
        self._paged = [layer.view(2, layer.shape[1], -1) for layer in cache.layers]
        self._slots = [layer.view(2, -1, *layer.shape[3:]) for layer in cache.layers]
        # kept from step to step: fresh memory of this size costs a page fault every 4 KiB
        self._gathered = torch.empty(2, 0, self._paged[0].shape[2], dtype=self.dtype)
        self._batch_slots = torch.empty(0, dtype=torch.int64)
        self._groups: list[DecodeGroup] = []
        self._prefills: list[Prefill] = []

    def plan(self, batch: Batch) -> None:
        self._batch_slots = batch.slots
        self._groups, self._prefills = [], []
        page_start = batch.page_start.tolist()
        query_start = batch.query_start.tolist()
        pages = batch.page_indices.to(torch.int64)
        decoding: list[int] = []
        for i, length in enumerate(batch.lengths):
            start, end = query_start[i], query_start[i + 1]
            if end - start == 1:
                decoding.append(i)
                continue
            earlier = length - (end - start)
            own = pages[page_start[i] : page_start[i + 1]] if earlier else None
            mask = None
            if earlier:
                mask = torch.ones(end - start, length, dtype=torch.bool).tril_(earlier)
            self._prefills.append(Prefill(start, end, length, own, mask))

        decoding.sort(key=lambda i: batch.lengths[i])
        while decoding:
            limit = max(batch.lengths[decoding[0]] * PADDING, self.page_size)
            count = sum(batch.lengths[i] <= limit for i in decoding)
            group, decoding = sorted(decoding[:count]), decoding[count:]
            self._groups.append(
                self._group(batch, group, [pages[page_start[i] : page_start[i + 1]] for i in group])
            )

    def _group(self, batch: Batch, group: list[int], pages: list[torch.Tensor]) -> DecodeGroup:
        lengths = [batch.lengths[i] for i in group]
        longest = max(lengths)
        mask = None
        if min(lengths) < longest:
            beyond = torch.arange(longest) >= torch.tensor(lengths)[:, None]
            mask = torch.zeros(len(group), longest, dtype=self.dtype)
            mask = mask.masked_fill_(beyond, float("-inf"))[:, None, None]
        table = torch.nn.utils.rnn.pad_sequence(pages, batch_first=True)  # padding: page 0
        everything = len(group) == batch.tokens
        rows = None if everything else batch.query_start[torch.tensor(group)].to(torch.int64)
        return DecodeGroup(rows, table.flatten(), len(group), longest, mask)

    def run(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        slots = self._slots[layer]
        slots[0].index_copy_(0, self._batch_slots, key)
        slots[1].index_copy_(0, self._batch_slots, value)
        if len(self._groups) == 1 and self._groups[0].rows is None:
            return self._decode(layer, query, self._groups[0])
        output = query.new_empty(query.shape[0], self.shape.heads * self.shape.head_dim)
        for group in self._groups:
            assert group.rows is not None
            output[group.rows] = self._decode(layer, query[group.rows], group)
        for prefill in self._prefills:
            rows = slice(prefill.start, prefill.end)
            output[rows] = self._prefill(layer, query[rows], key[rows], value[rows], prefill)
        return output

    def _decode(self, layer: int, query: torch.Tensor, group: DecodeGroup) -> torch.Tensor:
        shape, members = self.shape, group.members
        gathered = self._gather(layer, group.pages)
        keys, values = (  # [members, kv_heads, longest, head_dim]
            gathered.view(2, members, -1, shape.kv_heads, shape.head_dim)[:, :, : group.longest]
            .transpose(2, 3)
            .unbind()
        )
        folded = query.reshape(members, shape.kv_heads, -1, shape.head_dim)
        attended = scaled_dot_product_attention(
            folded, keys, values, attn_mask=group.mask, scale=shape.scale
        )
        return attended.reshape(members, -1)

    def _gather(self, layer: int, pages: torch.Tensor) -> torch.Tensor:
        """Keys and values of these pages, one after the other: `[2, pages, page content]`."""
        count = len(pages)
        if count > self._gathered.shape[1]:
            self._gathered = self._gathered.new_empty(2, 2 * count, self._gathered.shape[2])
        # both halves contiguous, whatever the count
        gathered = self._gathered.view(-1)[: 2 * count * self._gathered.shape[2]]
        gathered = gathered.view(2, count, -1)
        for source, target in zip(self._paged[layer], gathered, strict=True):
            torch.index_select(source, 0, pages, out=target)
        return gathered

    def _prefill(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        prefill: Prefill,
    ) -> torch.Tensor:
        if prefill.pages is not None:
            gathered = self._gather(layer, prefill.pages)
            key, value = gathered.view(2, -1, *key.shape[1:])[:, : prefill.length].unbind()
        attended = scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            key.transpose(0, 1)[None],
            value.transpose(0, 1)[None],
            attn_mask=prefill.mask,
            is_causal=prefill.mask is None,
            scale=self.shape.scale,
            enable_gqa=self.shape.heads != self.shape.kv_heads,
        )
        return attended[0].transpose(0, 1).reshape(query.shape[0], -1)
