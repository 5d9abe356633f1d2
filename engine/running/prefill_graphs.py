"""Short batches in recorded pieces: what lies between two attentions, for some counts of tokens.

Which pages a batch reads differs from step to step; what a decoder does between two attentions is
the same for every batch of so many tokens. A batch is brought to the next larger count, its pieces
are replayed, and between them attention runs as ever, on the tokens that there are: rows too many
are zeros, which no page and no other row ever sees.

What a piece hands on to attention or to the next piece lies in `Passed`, which is in nobody's pool.
So the pool has nothing that outlives a piece, and all recordings can use it one after the other, in
whatever order they are replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engine.attention.backend import AttentionShape, RecordableAttention
from engine.device.device import Device, Graph, Recorder
from engine.layers.decoder import DecoderInput
from engine.layers.fuse import FusedDecoder
from engine.memory.card_memory import prefill_sizes
from engine.running.recordings import Recordings


class Passed:
    """What the pieces of a step hand on: one memory for all layers, and for all counts its part."""

    def __init__(
        self,
        decoder: FusedDecoder,
        shape: AttentionShape,
        device: Device,
        *,
        limit: int,
        hidden: int,
        position_rows: int,
        dtype: torch.dtype,
    ) -> None:
        def buffer(*size: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.zeros(*size, dtype=dtype, device=device.device)

        heads = shape.heads + 2 * shape.kv_heads
        self._rotated = shape.heads + shape.kv_heads
        self._heads = shape.heads
        self.residual = buffer(limit, hidden)  # embeddings before, final states afterwards
        self.qkv = buffer(limit, heads, shape.head_dim)
        self.attended = buffer(limit, shape.heads * shape.head_dim)
        self._positions = buffer(position_rows * limit, dtype=torch.int32)
        self._position_rows = position_rows
        # of which shape they are, the kernels know
        self._angles = decoder.angles(self.residual, self.positions(limit))

    def positions(self, size: int) -> torch.Tensor:
        """`[rows, size]`"""
        return self._positions[: self._position_rows * size].view(self._position_rows, size)

    def angles(self, size: int) -> dict[str | None, tuple[torch.Tensor, torch.Tensor]]:
        return {kind: (one[:size], two[:size]) for kind, (one, two) in self._angles.items()}

    def query(self, tokens: int) -> torch.Tensor:
        return self.qkv[:tokens, : self._heads]

    def key(self, tokens: int) -> torch.Tensor:
        return self.qkv[:tokens, self._heads : self._rotated]

    def value(self, tokens: int) -> torch.Tensor:
        return self.qkv[:tokens, self._rotated :]

    def rotated(self, size: int) -> torch.Tensor:
        """Queries and keys."""
        return self.qkv[:size, : self._rotated]

    def fill(self, batch: DecoderInput, size: int) -> None:
        """Bring a batch here, followed by zeros."""
        tokens = len(batch.embeddings)
        self.residual[:tokens].copy_(batch.embeddings)
        positions = self.positions(size)
        positions[:, :tokens].copy_(batch.positions)
        if tokens < size:
            self.residual[tokens:size].zero_()
            self.attended[tokens:size].zero_()
            positions[:, tokens:].zero_()


class PrefillGraphs:
    """`Decoder` by recorded pieces for batches of up to `limit` tokens, by `decoder` for others."""

    def __init__(
        self,
        decoder: FusedDecoder,
        backend: RecordableAttention,
        shape: AttentionShape,
        *,
        pool: Any,
        limit: int,
        hidden: int,
        position_rows: int,
        dtype: torch.dtype,
    ) -> None:
        """`pool` has what is only used inside of each recording."""
        self._decoder = decoder
        self._backend = backend
        assert isinstance(backend.device, Recorder)
        self._device: Recorder = backend.device
        self._pool = pool
        self._limit = limit
        self._passed = Passed(
            decoder,
            shape,
            self._device,
            limit=limit,
            hidden=hidden,
            position_rows=position_rows,
            dtype=dtype,
        )
        self._recordings: Recordings[list[Graph]] = Recordings(
            self._device, "a short prompt", "engine.prefill_graphs=0", strict=True
        )

    def record(self, progress: Callable[[float], None], *, largest: bool) -> None:
        """Record all counts of tokens, or the largest. Raises EngineError where that cannot be."""
        sizes = prefill_sizes(self._limit)
        self._recordings.record(sizes, self._record, progress, largest=largest)

    @property
    def sizes(self) -> list[int]:
        return self._recordings.sizes

    def size_for(self, batch: DecoderInput) -> int | None:
        """The recorded count of tokens that the batch takes; None if it takes none."""
        return None if batch.features else self._recordings.size_for(len(batch.embeddings))

    def __call__(self, batch: DecoderInput) -> torch.Tensor:
        """Final hidden states `[tokens, hidden]`, valid until the next call."""
        size, tokens = self.size_for(batch), len(batch.embeddings)
        if size is None:
            return self._decoder(batch)
        passed, (first, *others) = self._passed, self._recordings[size]
        passed.fill(batch, size)
        # the same memory in every layer
        query, key, value = passed.query(tokens), passed.key(tokens), passed.value(tokens)
        attended = passed.attended[:tokens]
        first.replay()
        for layer, piece in enumerate(others):
            self._backend.run(layer, query, key, value, attended)
            piece.replay()
        return passed.residual[:tokens]

    def _record(self, size: int) -> list[Graph]:
        """One piece more than there are layers."""
        passed, decoder = self._passed, self._decoder
        residual, attended = passed.residual[:size], passed.attended[:size]
        positions, angles = passed.positions(size), passed.angles(size)

        def begin() -> torch.Tensor:
            for kind, made in decoder.angles(residual, positions).items():
                for place, part in zip(angles[kind], made, strict=True):
                    place.copy_(part)
            return decoder.enter(residual)

        def attend_next(layer: int, normed: torch.Tensor) -> None:
            rotated, value = decoder.before(layer, normed, angles, passed.qkv[:size])
            keep(passed.rotated(size), rotated)
            keep(passed.value(size), value)

        def end_layer(layer: int) -> torch.Tensor:
            normed, added = decoder.behind(layer, attended, residual)
            keep(residual, added)
            return normed

        def piece(index: int) -> None:
            normed = end_layer(index - 1) if index else begin()
            if index < decoder.layers:
                attend_next(index, normed)
            else:
                residual.copy_(normed)

        def captured(index: int) -> Graph:
            return self._device.capture(lambda: piece(index), self._pool)

        return [captured(index) for index in range(decoder.layers + 1)]


def keep(place: torch.Tensor, value: torch.Tensor) -> None:
    """Have a value where the next piece looks; kernels that work in place leave it there."""
    if value.data_ptr() != place.data_ptr():
        place.copy_(value)
