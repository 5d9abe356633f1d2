"""What rank 0 has the others do, as flat numbers: bytes that need no pickling.

An order is an int32 array whose first element is its kind. Runs carry the batch: token ids,
positions, page table, slots, wanted rows and spans; no sequences, no text, no media.
"""

from __future__ import annotations

import sys
from enum import IntEnum

import numpy
import torch

from engine.scheduling.batch import Batch

HEADER = 8  # of a run: kind, eager, rows of positions, tokens, slices, pages, logit rows, spans


class Kind(IntEnum):
    """Each is a method of `Runner` with the same name, a run apart."""

    RUN = 0
    STORE = 1
    RECORD = 2
    FORGET = 3


def order(kind: Kind, *numbers: int) -> bytes:
    """An order that is not a run."""
    return numpy.array([kind, *numbers], dtype=numpy.int32).tobytes()


def run_order(batch: Batch, token_ids: torch.Tensor, eager: bool) -> bytes:
    """The order to compute a batch, its token ids replaced by these; `eager`: not recorded."""
    head = [Kind.RUN, eager, len(batch.positions), batch.tokens, len(batch.lengths)]
    head += [len(batch.page_indices), len(batch.logit_rows), len(batch.spans)]
    tensors = (
        token_ids,
        batch.positions,
        batch.slots,
        batch.query_start,
        batch.page_start,
        batch.page_indices,
        batch.last_page_length,
        batch.logit_rows,
        batch.spans,
    )
    flat = [tensor.reshape(-1).numpy().astype(numpy.int32) for tensor in tensors]
    return numpy.concatenate([numpy.array(head, dtype=numpy.int32), *flat]).tobytes()


def kind_of(message: bytes) -> Kind:
    """Which order it is."""
    return Kind(int.from_bytes(message[:4], sys.byteorder))


def numbers_of(message: bytes) -> list[int]:
    """The numbers of an order that is not a run."""
    numbers: list[int] = numpy.frombuffer(message, dtype=numpy.int32)[1:].tolist()
    return numbers


def run_of(message: bytes, page_size: int) -> tuple[Batch, bool]:
    """The batch of a run, without its slices, and whether it is eager."""
    numbers = numpy.frombuffer(message, dtype=numpy.int32)
    _, eager, rows, tokens, slices, pages, wanted, spanned = numbers[:HEADER].tolist()
    counts = [tokens, rows * tokens, tokens, slices + 1, slices + 1, pages, slices, wanted]
    counts.append(2 * spanned)
    parts, start = [], HEADER
    for count in counts:
        parts.append(torch.from_numpy(numbers[start : start + count].copy()))
        start += count
    token_ids, positions, slots, query_start, page_start, indices, last, logit_rows, spans = parts
    lengths = (page_start.diff() - 1) * page_size + last
    batch = Batch(
        slices=[],
        token_ids=token_ids.long(),
        positions=positions.long().view(rows, tokens),
        slots=slots.long(),
        query_start=query_start,
        page_start=page_start,
        page_indices=indices,
        last_page_length=last,
        lengths=lengths.tolist(),
        logit_rows=logit_rows.long(),
        page_size=page_size,
        spans=spans.view(-1, 2),
    )
    return batch, bool(eager)
