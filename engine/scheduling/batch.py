"""One step's work as flat tensors: everything that the layers share is computed here, once."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy
import torch

from engine.scheduling.scheduler import Slice
from engine.scheduling.sequence import Sequence


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
    """Flatten slices whose pages are allocated. Slices keep their order.

    This runs once a step while the device may be waiting: what is done for each slice is kept to a
    few operations in Python, and nothing is done for each token or page.
    """
    token_ids: list[int] = []
    tables: list[array[int]] = []
    logit_rows: list[int] = []
    hidden_rows: list[int] = []
    for item in slices:
        sequence, end, first = item.sequence, item.end, len(token_ids)
        if item.draft is not None:
            token_ids.append(item.draft)
        elif item.count == 1:
            token_ids.append(sequence.tokens[item.start])
        else:
            token_ids += sequence.tokens[item.start : end]
        tables.append(_table(sequence, -(-end // page_size)))
        if item.wants_prompt_logprobs:
            logit_rows += range(first, first + item.count)
        elif item.samples or item.draft is not None:
            logit_rows.append(first + item.count - 1)
        if sequence.request.pooling is not None:
            hidden_rows += [first + row for row in item.pooled]
    starts = numpy.array([item.start for item in slices])
    ends = numpy.array([item.end for item in slices])
    counts = ends - starts
    query_start = _borders(counts)
    page_start = _borders([len(table) for table in tables])
    page_indices = numpy.frombuffer(bytearray().join(tables), dtype=numpy.int32)
    owners = numpy.repeat(numpy.arange(len(slices)), counts)
    keys = numpy.arange(len(token_ids)) + (starts - query_start[:-1])[owners]
    slots = page_indices[page_start[owners] + keys // page_size].astype(numpy.int64)
    slots *= page_size
    slots += keys % page_size
    return Batch(
        slices=slices,
        token_ids=torch.from_numpy(numpy.array(token_ids)),
        positions=_positions(slices, keys, owners, query_start),
        slots=torch.from_numpy(slots),
        query_start=torch.from_numpy(query_start),
        page_start=torch.from_numpy(page_start),
        page_indices=torch.from_numpy(page_indices),
        last_page_length=torch.from_numpy(((ends - 1) % page_size + 1).astype(numpy.int32)),
        lengths=ends.tolist(),
        logit_rows=torch.tensor(logit_rows, dtype=torch.int64),
        page_size=page_size,
        spans=_spans(slices, query_start),
        hidden_rows=torch.tensor(hidden_rows, dtype=torch.int64),
    )


def _table(sequence: Sequence, count: int) -> array[int]:
    """The first pages of a sequence, without a copy where these are all it has."""
    pages = sequence.pages
    if isinstance(pages, array) and len(pages) == count:
        return pages
    return array("i", pages[:count])


def _borders(counts: numpy.ndarray | list[int]) -> numpy.ndarray:
    """Where runs of these lengths begin, and where the last one ends; int32."""
    borders = numpy.zeros(len(counts) + 1, dtype=numpy.int32)
    numpy.cumsum(counts, out=borders[1:])
    return borders


def _positions(
    slices: list[Slice], keys: numpy.ndarray, owners: numpy.ndarray, query_start: numpy.ndarray
) -> torch.Tensor:
    """Positions `[rows, tokens]`: those of prompts are given, later ones count on from there."""
    offsets = numpy.array([item.sequence.position_offset for item in slices])
    rows = slices[0].sequence.positions.shape[0]
    positions = torch.from_numpy(numpy.tile(keys + offsets[owners], (rows, 1)))
    for index, item in enumerate(slices):
        sequence = item.sequence
        if item.start < sequence.prompt_length:
            given = sequence.positions[:, item.start : item.end]
            first = int(query_start[index])
            positions[:, first : first + given.shape[1]] = given
    return positions


def _spans(slices: list[Slice], query_start: numpy.ndarray) -> torch.Tensor:
    found = no_spans()
    for index, item in enumerate(slices):
        for start, end in item.sequence.spans:
            if start < item.end and end > item.start:
                if not len(found):
                    found = torch.full((int(query_start[-1]), 2), -1, dtype=torch.int32)
                offset = int(query_start[index])
                rows = slice(
                    offset + max(start, item.start) - item.start,
                    offset + min(end, item.end) - item.start,
                )
                found[rows] = torch.tensor([start, end - 1], dtype=torch.int32)
    return found
