"""One step's work as flat tensors: everything that the layers share is computed here, once."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from engine.scheduling.scheduler import Slice


def no_spans() -> torch.Tensor:
    """Of a batch in which every token only looks back."""
    return torch.empty(0, 2, dtype=torch.int32)


def no_rows() -> torch.Tensor:
    """Of a batch of which no hidden states are wanted."""
    return torch.empty(0, dtype=torch.int64)


@dataclass(slots=True)
class Batch:
    """Tokens of all slices, one after the other, and where their keys and values lie.

    `query_start[i]` is where slice i begins in the flat tensors. The page table is compressed rows:
    slice i uses `page_indices[page_start[i]:page_start[i + 1]]`, the last of them filled up to
    `last_page_length[i]`. These are the arrays that FlashInfer's paged wrappers take (int32, on the
    host). A token whose `spans` are (first, last) sees these keys of its sequence too, itself being
    one of them; (-1, -1) is a token that only looks back.
    """

    slices: list[Slice]
    token_ids: torch.Tensor  # [tokens] int64
    positions: torch.Tensor  # [rows, tokens] int64
    slots: torch.Tensor  # [tokens] int64, page * page_size + offset
    query_start: torch.Tensor  # [slices + 1] int32
    page_start: torch.Tensor  # [slices + 1] int32
    page_indices: torch.Tensor  # [pages of all slices] int32
    last_page_length: torch.Tensor  # [slices] int32, 1..page_size
    lengths: list[int]  # keys that each slice sees
    logit_rows: torch.Tensor  # [rows] int64, tokens whose logits are wanted
    page_size: int
    spans: torch.Tensor = field(default_factory=no_spans)  # [tokens, 2] int32; [0, 2]: none
    hidden_rows: torch.Tensor = field(default_factory=no_rows)  # [rows] int64, to be pooled

    @property
    def tokens(self) -> int:
        return self.token_ids.shape[0]


def build_batch(slices: list[Slice], page_size: int) -> Batch:
    """Flatten slices whose pages are allocated. Slices keep their order."""
    token_ids: list[int] = []
    slots: list[int] = []
    query_start, page_start, page_indices, last_page_length = [0], [0], [], []
    logit_rows: list[int] = []
    hidden_rows: list[int] = []
    for item in slices:
        sequence, start, end = item.sequence, item.start, item.end
        token_ids += sequence.tokens[start:end]
        pages = sequence.pages[: -(-end // page_size)]
        for position in range(start, end):
            slots.append(pages[position // page_size] * page_size + position % page_size)
        if item.wants_prompt_logprobs:
            logit_rows += range(query_start[-1], query_start[-1] + item.count)
        elif item.samples:
            logit_rows.append(query_start[-1] + item.count - 1)
        if sequence.request.pooling is not None:
            hidden_rows += [query_start[-1] + row for row in item.pooled]
        page_indices += pages
        query_start.append(query_start[-1] + item.count)
        page_start.append(page_start[-1] + len(pages))
        last_page_length.append((end - 1) % page_size + 1)
    return Batch(
        slices=slices,
        token_ids=torch.tensor(token_ids),
        positions=torch.cat([s.sequence.token_positions(s.start, s.end) for s in slices], dim=1),
        slots=torch.tensor(slots),
        query_start=torch.tensor(query_start, dtype=torch.int32),
        page_start=torch.tensor(page_start, dtype=torch.int32),
        page_indices=torch.tensor(page_indices, dtype=torch.int32),
        last_page_length=torch.tensor(last_page_length, dtype=torch.int32),
        lengths=[item.end for item in slices],
        logit_rows=torch.tensor(logit_rows, dtype=torch.int64),
        page_size=page_size,
        spans=_spans(slices, query_start),
        hidden_rows=torch.tensor(hidden_rows, dtype=torch.int64),
    )


def _spans(slices: list[Slice], query_start: list[int]) -> torch.Tensor:
    found = no_spans()
    for item, offset in zip(slices, query_start, strict=False):
        for start, end in item.sequence.spans:
            if start < item.end and end > item.start:
                if not len(found):
                    found = torch.full((query_start[-1], 2), -1, dtype=torch.int32)
                rows = slice(
                    offset + max(start, item.start) - item.start,
                    offset + min(end, item.end) - item.start,
                )
                found[rows] = torch.tensor([start, end - 1], dtype=torch.int32)
    return found
