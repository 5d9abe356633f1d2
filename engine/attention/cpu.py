"""Paged attention in torch, for CPUs.

Decoding sequences of similar length go through one fused call, padded to the longest of them: a
call per sequence costs more than the padding as long as the padding stays small. Heads that share a
key head are folded into the query dimension, so keys are never repeated. Prompts go one at a time.
Layers with a window gather only the pages that reach into it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from engine.attention.backend import AttentionShape, KVCache
from engine.errors import ModelUnsupported
from engine.scheduling.batch import Batch

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
    length: int  # keys, those on pages before the window left out
    pages: torch.Tensor | None  # [pages] int64; None: no earlier tokens, keys are the slice's own
    mask: torch.Tensor | None  # [tokens, length] bool; None: plainly causal


@dataclass(slots=True)
class Plan:
    """A step's work for layers of one window."""

    groups: list[DecodeGroup]
    prefills: list[Prefill]


@dataclass(slots=True)
class Seen:
    """The keys that one sequence's slice can see through a window."""

    row: int  # of the slice in the batch
    pages: torch.Tensor  # [pages] int64, from the first that reaches into the window
    length: int  # keys on them
    first: int  # of them the first that the slice's last token sees


class CpuAttention:
    """`AttentionBackend` over a `KVCache` on the CPU."""

    def __init__(self, shape: AttentionShape, cache: KVCache) -> None:
        """Raises ModelUnsupported for a score cap."""
        if shape.soft_cap is not None:
            raise ModelUnsupported(
                "torch has no attention with a score cap: it takes engine.native=auto with kernels "
                "for this processor, or engine=cuda"
            )
        self.shape = shape
        self.store(cache)
        # kept from step to step: fresh memory of this size costs a page fault every 4 KiB
        self._gathered = [torch.empty(0, dtype=self.dtype) for _ in shape.stored]
        self._batch_slots = torch.empty(0, dtype=torch.int64)
        self._begun: torch.Tensor | None = None  # [pages] int64
        self._window_of = [shape.window_left(layer) for layer in range(shape.layers)]
        self._plans: dict[int, Plan] = {}

    def store(self, cache: KVCache) -> None:
        """Keep keys and values there from now on."""
        self.page_size = cache.page_size
        self.dtype = cache.dtype
        self._paged = [tuple(part.flatten(1) for part in layer) for layer in cache.layers]
        self._slots = [tuple(part.flatten(0, 1) for part in layer) for layer in cache.layers]

    def release(self) -> None:
        """Let go of the cache; nothing runs until `store`."""
        self._paged, self._slots = [], []

    def plan(self, batch: Batch) -> None:
        self._batch_slots = batch.slots
        self._begun = self._begun_pages(batch)
        self._plans = {window: self._plan(batch, window) for window in set(self._window_of)}

    def _begun_pages(self, batch: Batch) -> torch.Tensor | None:
        """Pages that the batch begins and does not fill; None: there are none."""
        query_start = batch.query_start.tolist()
        last = [
            query_start[i + 1] - 1 - (length - 1) % self.page_size
            for i, length in enumerate(batch.lengths)
            if length % self.page_size
            and (length - 1) % self.page_size < query_start[i + 1] - query_start[i]
        ]
        return batch.slots[last].to(torch.int64) // self.page_size if last else None

    def _plan(self, batch: Batch, window: int) -> Plan:
        plan = Plan([], [])
        page_start, query_start = batch.page_start.tolist(), batch.query_start.tolist()
        pages = batch.page_indices.to(torch.int64)
        decoding: list[Seen] = []
        for i, length in enumerate(batch.lengths):
            start, end = query_start[i], query_start[i + 1]
            earlier = length - (end - start)
            first = max(0, earlier - window) if window >= 0 else 0
            skipped = first // self.page_size
            beyond = skipped * self.page_size  # keys that no token of the slice sees
            own = pages[page_start[i] + skipped : page_start[i + 1]]
            if end - start == 1:
                decoding.append(Seen(i, own, length - beyond, first - beyond))
                continue
            mask = None
            spanned = len(batch.spans) > 0 and bool((batch.spans[start:end] >= 0).any())
            if earlier or spanned or 0 <= window < length - 1:
                queries = torch.arange(earlier, length)[:, None]
                keys = torch.arange(beyond, length)
                mask = keys <= queries
                if spanned:
                    span = batch.spans[start:end]
                    mask |= (keys >= span[:, :1]) & (keys <= span[:, 1:])
                if window >= 0:
                    mask &= keys >= queries - window
            own_keys = None if earlier == 0 else own
            plan.prefills.append(Prefill(start, end, length - beyond, own_keys, mask))

        decoding.sort(key=lambda seen: seen.length)
        while decoding:
            limit = max(decoding[0].length * PADDING, self.page_size)
            count = sum(seen.length <= limit for seen in decoding)
            group, decoding = decoding[:count], decoding[count:]
            plan.groups.append(self._group(batch, sorted(group, key=lambda seen: seen.row)))
        return plan

    def _group(self, batch: Batch, group: list[Seen]) -> DecodeGroup:
        lengths, firsts = [seen.length for seen in group], [seen.first for seen in group]
        longest = max(lengths)
        mask = None
        if min(lengths) < longest or any(firsts):
            keys = torch.arange(longest)
            unseen = keys >= torch.tensor(lengths)[:, None]
            if any(firsts):
                unseen |= keys < torch.tensor(firsts)[:, None]
            mask = torch.zeros(len(group), longest, dtype=self.dtype)
            mask = mask.masked_fill_(unseen, float("-inf"))[:, None, None]
        table = torch.nn.utils.rnn.pad_sequence(  # padding: page 0
            [seen.pages for seen in group], batch_first=True
        )
        rows = None
        if len(group) < batch.tokens:
            rows = batch.query_start[torch.tensor([seen.row for seen in group])].to(torch.int64)
        return DecodeGroup(rows, table.flatten(), len(group), longest, mask)

    def run(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        if self._begun is not None:
            # a mask does not hide what others left there if it is no number: 0 x NaN is NaN
            for paged in self._paged[layer]:
                paged.index_fill_(0, self._begun, 0)
        for slots, new in zip(self._slots[layer], (key, value), strict=True):
            slots.index_copy_(0, self._batch_slots, new)
        plan = self._plans[self._window_of[layer]]
        if len(plan.groups) == 1 and plan.groups[0].rows is None:
            return self._decode(layer, query, plan.groups[0])
        output = query.new_empty(query.shape[0], self.shape.heads * value.shape[-1])
        for group in plan.groups:
            assert group.rows is not None
            output[group.rows] = self._decode(layer, query[group.rows], group)
        for prefill in plan.prefills:
            rows = slice(prefill.start, prefill.end)
            output[rows] = self._prefill(layer, query[rows], key[rows], value[rows], prefill)
        return output

    def _decode(self, layer: int, query: torch.Tensor, group: DecodeGroup) -> torch.Tensor:
        shape, members = self.shape, group.members
        keys, values = (  # [members, kv_heads, longest, head_dim]
            part.view(members, -1, *size)[:, : group.longest].transpose(1, 2)
            for part, size in zip(self._gather(layer, group.pages), shape.stored, strict=True)
        )
        folded = query.reshape(members, shape.kv_heads, -1, shape.head_dim)
        attended = scaled_dot_product_attention(
            folded, keys, values, attn_mask=group.mask, scale=shape.scale
        )
        return attended.reshape(members, -1)

    def _gather(self, layer: int, pages: torch.Tensor) -> list[torch.Tensor]:
        """Keys and values of these pages, one after the other: `[pages, page content]` each."""
        gathered = []
        for place, source in enumerate(self._paged[layer]):
            size = len(pages) * source.shape[1]
            if size > len(self._gathered[place]):
                self._gathered[place] = source.new_empty(2 * size)
            target = self._gathered[place][:size].view(len(pages), -1)
            torch.index_select(source, 0, pages, out=target)
            gathered.append(target)
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
            key, value = (
                part.view(-1, *size)[: prefill.length]
                for part, size in zip(
                    self._gather(layer, prefill.pages), self.shape.stored, strict=True
                )
            )
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
