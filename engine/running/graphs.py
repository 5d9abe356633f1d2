"""Decoding by replay: the kernels of a step, recorded once for each size of batch.

A recording reads and writes the same memory each time. A step copies its numbers there, plans the
attention for them and replays the recording of the next larger size; rows too many are dummies that
write to page 0, which is nobody's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from engine.attention.backend import PlannedKernel, RecordableAttention
from engine.attention.rows import DeviceRows, Rows
from engine.device.device import Device, Graph, Recorder, pack
from engine.memory.card_memory import graph_sizes
from engine.running.recordings import Recordings
from engine.scheduling.batch import Batch

Compute = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # token ids, positions: logits


@dataclass(slots=True)
class Recording:
    """One size's work."""

    kernels: dict[int, PlannedKernel]
    graph: Graph


class StepMemory:
    """What a step of decoding reads, at the same place in every step; one transfer fills it."""

    def __init__(self, size: int, pages: int, position_rows: int, device: Device) -> None:
        self._device = device
        self._position_rows = position_rows
        parts = [
            torch.zeros(size, dtype=torch.int32),
            torch.zeros(size * position_rows, dtype=torch.int32),
            torch.zeros(size, dtype=torch.int32),
            torch.zeros(pages, dtype=torch.int32),
        ]
        packed, self._starts = pack(parts)
        self._memory = packed.to(device.device)

    def token_ids(self, size: int) -> torch.Tensor:
        return self._part(0, size)

    def positions(self, size: int) -> torch.Tensor:
        """`[rows, size]`"""
        return self._part(1, size * self._position_rows).view(self._position_rows, size)

    def key_positions(self, size: int) -> torch.Tensor:
        return self._part(2, size)

    def page_indices(self, count: int) -> torch.Tensor:
        return self._part(3, count)

    def fill(self, token_ids: torch.Tensor, positions: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Bring a step's numbers here; returns the page indices on the device.

        `token_ids` `[tokens]` and `positions` `[rows, tokens]` may be fewer than `rows`: zeros
        follow.
        """
        size, tokens = rows.count, len(token_ids)
        end = self._starts[-1] + len(rows.page_indices)
        packed = torch.zeros(end, dtype=torch.int32)
        ids, places, keys, pages = self._starts
        packed[ids : ids + tokens] = token_ids
        several = packed[places : places + size * self._position_rows]
        several.view(self._position_rows, size)[:, :tokens] = positions
        packed[keys : keys + size] = rows.positions
        packed[pages:end] = rows.page_indices
        self._memory[:end].copy_(self._device.pinned(packed), non_blocking=True)
        return self.page_indices(len(rows.page_indices))

    def _part(self, index: int, count: int) -> torch.Tensor:
        start = self._starts[index]
        return self._memory[start : start + count]


class DecodeGraphs:
    """Recordings of `compute` for every size up to `limit`, made by `record`."""

    def __init__(
        self,
        backend: RecordableAttention,
        compute: Compute,
        *,
        pool: Any,
        limit: int,
        max_pages: int,
        position_rows: int,
        vocabulary: int,
        strict: bool,
    ) -> None:
        """`max_pages` is what `limit` sequences can hold together, shared pages counted often.

        `pool` has what is only used inside of each recording. A model that cannot be recorded runs
        as it is, and a warning says so; with `strict`, `record` raises EngineError.
        """
        self._backend = backend
        assert isinstance(backend.device, Recorder)
        self._device: Recorder = backend.device
        self._compute = compute
        self._recordings: Recordings[Recording] = Recordings(
            self._device, "decoding", "engine.graphs=false", strict=strict
        )
        self._limit = limit
        pages = max_pages + limit  # dummies have one each
        self._memory = StepMemory(limit, pages, position_rows, self._device)

        def buffer(count: int) -> torch.Tensor:
            return torch.zeros(count, dtype=torch.int32, device=self._device.device)

        self._page_start = buffer(limit + 1)
        self._page_indices = buffer(pages)
        self._last_page_length = buffer(limit)
        # one for all sizes: what a recording allocates itself stays its own
        self._logits = torch.empty(limit, vocabulary, device=self._device.device)
        self._pool = pool
        self._owners = torch.arange(limit, dtype=torch.int32, device=self._device.device)

    def record(self, progress: Callable[[float], None], *, largest: bool) -> None:
        """Record all sizes, or the largest."""
        sizes = graph_sizes(self._limit)
        kernels = {size: self._kernels(size) for size in (sizes[-1:] if largest else sizes)}
        for window in self._backend.windows:
            self._backend.share_plans([group[window] for group in kernels.values()])
        self._recordings.record(
            sizes, lambda size: self._record(size, kernels[size]), progress, largest=largest
        )

    @property
    def sizes(self) -> list[int]:
        return self._recordings.sizes

    def size_for(self, count: int) -> int | None:
        """The smallest recorded size for this many rows; None if there is none."""
        return self._recordings.size_for(count)

    def fits(self, batch: Batch) -> bool:
        """Whether the batch is one token of each sequence, the logits of all wanted."""
        return (
            len(batch.lengths) == batch.tokens == len(batch.logit_rows)
            and self.size_for(batch.tokens) is not None
        )

    def run(self, batch: Batch) -> torch.Tensor:
        """Logits `[tokens, vocabulary]` in float32, valid until the next run."""
        size = self.size_for(batch.tokens)
        assert size is not None
        recording = self._recordings[size]
        rows = Rows.of(batch).padded(size)
        pages = self._memory.fill(batch.token_ids, batch.positions, rows)
        for planned in recording.kernels.values():
            self._backend.plan_kernel(planned, rows, pages)
        recording.graph.replay()
        return self._logits[: batch.tokens]

    def _kernels(self, size: int) -> dict[int, PlannedKernel]:
        rows = self._device_rows(size)
        return {
            window: self._backend.decode_kernel(window, rows) for window in self._backend.windows
        }

    def _device_rows(self, size: int) -> DeviceRows:
        return DeviceRows(
            page_start=self._page_start[: size + 1],
            page_indices=self._page_indices,
            last_page_length=self._last_page_length[:size],
            owners=self._owners[:size],
            positions=self._memory.key_positions(size),
        )

    def _record(self, size: int, kernels: dict[int, PlannedKernel]) -> Recording:
        rows, there = Rows.dummies(size), self._device_rows(size)
        token_ids, positions = self._memory.token_ids(size), self._memory.positions(size)
        pages = self._memory.fill(torch.zeros(size), torch.zeros_like(positions.cpu()), rows)
        for planned in kernels.values():
            self._backend.plan_kernel(planned, rows, pages)

        def work() -> None:
            self._backend.use(there, kernels)
            self._logits[:size].copy_(self._compute(token_ids, positions))

        return Recording(kernels, self._device.capture(work, self._pool))
