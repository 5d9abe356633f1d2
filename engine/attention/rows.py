"""Page tables of a batch, row by row, as paged kernels with plans take them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.scheduling.batch import Batch


@dataclass(slots=True)
class Rows:
    """Which pages each row of a batch reads, and where its new keys go; on the host.

    The first four are FlashInfer's page table (compressed rows, int32). A token's key goes to
    `positions[token]` of row `owners[token]`.
    """

    query_start: torch.Tensor  # [rows + 1]
    page_start: torch.Tensor  # [rows + 1]
    page_indices: torch.Tensor  # [pages of all rows]
    last_page_length: torch.Tensor  # [rows], 1..page_size
    owners: torch.Tensor  # [tokens]
    positions: torch.Tensor  # [tokens]

    @property
    def count(self) -> int:
        return len(self.last_page_length)

    @property
    def decoding(self) -> bool:
        """Whether every row has one token."""
        return len(self.owners) == self.count

    @classmethod
    def of(cls, batch: Batch) -> Rows:
        lengths = torch.tensor(batch.lengths)
        if len(lengths) == batch.tokens:
            owners, positions = torch.arange(batch.tokens), lengths - 1
        else:
            counts = batch.query_start.diff()
            owners = torch.arange(len(counts)).repeat_interleave(counts)
            shift = lengths - batch.query_start[1:]
            positions = torch.arange(batch.tokens) + shift[owners]
        return cls(
            query_start=batch.query_start,
            page_start=batch.page_start,
            page_indices=batch.page_indices,
            last_page_length=batch.last_page_length,
            owners=owners,
            positions=positions,
        )

    @classmethod
    def dummies(cls, count: int) -> Rows:
        """Rows of one token each, at the start of page 0."""
        return cls(
            query_start=torch.arange(count + 1, dtype=torch.int32),
            page_start=torch.arange(count + 1, dtype=torch.int32),
            page_indices=torch.zeros(count, dtype=torch.int32),
            last_page_length=torch.ones(count, dtype=torch.int32),
            owners=torch.arange(count),
            positions=torch.zeros(count, dtype=torch.int64),
        )

    def padded(self, size: int) -> Rows:
        """Decoding rows, followed by dummies up to `size`."""
        if size == self.count:
            return self
        more = Rows.dummies(size - self.count)
        return Rows(
            query_start=torch.arange(size + 1, dtype=torch.int32),
            page_start=torch.cat((self.page_start, self.page_start[-1] + more.page_start[1:])),
            page_indices=torch.cat((self.page_indices, more.page_indices)),
            last_page_length=torch.cat((self.last_page_length, more.last_page_length)),
            owners=torch.arange(size),
            positions=torch.cat((self.positions, more.positions)),
        )


@dataclass(slots=True)
class DeviceRows:
    """The same on the device, int32, as far as the append kernel reads it."""

    page_start: torch.Tensor
    page_indices: torch.Tensor
    last_page_length: torch.Tensor
    owners: torch.Tensor
    positions: torch.Tensor
