"""What a step's tokens attend to beside their own sequences."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.request import MediaItem
from engine.scheduling.batch import Batch
from engine.scheduling.scheduler import Slice
from engine.scheduling.sequence import ItemStates


@dataclass(slots=True)
class CrossBatch:
    """Rows of tokens that see the same states, all of them; and the states that are new.

    Row i is the tokens `query_start[i]`..`query_start[i + 1]` of those that see any. Its states lie
    on `page_indices[page_start[i]:page_start[i + 1]]`, the last of them filled up to
    `last_page_length[i]`: FlashInfer's page table, as in `Batch`. The states of `fresh`, one item
    after the other, are to be stored in `slots` before anything is read.
    """

    fresh: list[MediaItem]
    slots: torch.Tensor  # [new states] int64, page * page_size + offset
    seeing: torch.Tensor | None  # [tokens that see any] int64; None: all tokens
    query_start: torch.Tensor  # [rows + 1] int32
    page_start: torch.Tensor  # [rows + 1] int32
    page_indices: torch.Tensor  # [pages of all rows] int32
    last_page_length: torch.Tensor  # [rows] int32, 1..page_size
    lengths: list[int]  # states that each row sees
    tokens: int  # of the whole batch
    aligned: dict[
        int, tuple[tuple[int, int], ...]
    ]  # rows whose attention is wanted: of which heads


def cross_batch(batch: Batch, page_size: int) -> CrossBatch:
    """What the slices of a batch attend to, on pages of so many states.

    A token sees the last item that begins at it or before it.
    """
    fresh: dict[int, ItemStates] = {}  # by first page: sequences may share what is new
    rows: list[tuple[int, int, ItemStates]] = []  # first token, last one, what they see
    query_start = batch.query_start.tolist()
    aligned: dict[int, tuple[tuple[int, int], ...]] = {}
    for item, offset in zip(batch.slices, query_start, strict=False):
        wanted = item.sequence.request.alignment
        for held, first, last in _runs(item):
            if wanted is not None:
                aligned[len(rows)] = wanted.heads
            rows.append((offset + first, offset + last, held))
        for held in item.sequence.states:
            if not held.stored and held.item.start < item.end:
                fresh[held.pages[0]] = held
    slots = [torch.empty(0, dtype=torch.int64)]
    for held in fresh.values():
        for number, page in enumerate(held.pages):
            count = min(page_size, held.item.states - number * page_size)
            slots.append(torch.arange(page * page_size, page * page_size + count))
    counts = [last - first for first, last, _ in rows]
    seen = [held for _, _, held in rows]
    seeing = None
    if sum(counts) < batch.tokens:
        places = [place for first, last, _ in rows for place in range(first, last)]
        seeing = torch.tensor(places, dtype=torch.int64)
    return CrossBatch(
        fresh=[held.item for held in fresh.values()],
        slots=torch.cat(slots),
        seeing=seeing,
        query_start=_borders(counts),
        page_start=_borders([len(held.pages) for held in seen]),
        page_indices=torch.tensor(
            [page for held in seen for page in held.pages], dtype=torch.int32
        ),
        last_page_length=torch.tensor(
            [(held.item.states - 1) % page_size + 1 for held in seen], dtype=torch.int32
        ),
        lengths=[held.item.states for held in seen],
        tokens=batch.tokens,
        aligned=aligned,
    )


def _runs(item: Slice) -> list[tuple[ItemStates, int, int]]:
    """A slice's tokens from each item on to the next, those before the first left out."""
    states = item.sequence.states
    if not states:
        return []
    ends = [*(held.item.start for held in states), item.end][1:]
    runs = []
    for held, end in zip(states, ends, strict=True):
        first, last = max(held.item.start, item.start), min(end, item.end)
        if first < last:
            runs.append((held, first - item.start, last - item.start))
    return runs


def _borders(counts: list[int]) -> torch.Tensor:
    """Where runs of these lengths begin, and where the last one ends."""
    return torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
