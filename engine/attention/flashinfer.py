"""Paged attention by FlashInfer's wrappers, for CUDA.

Keys and values are stored first; then one causal paged prefill serves every batch that holds more
than one token of a sequence, and one paged decode serves the others. A window is part of a plan:
layers of equal window share their wrapper. A batch with spans that attend both ways goes through
the wrapper that has them in its mask, for which a window is an argument of each run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from engine.attention.backend import AttentionShape, KVCache
from engine.attention.limits import PLAN_BYTES, unsupported, workspace_bytes
from engine.device.platform import Event, Platform, send
from engine.errors import ModelUnsupported
from engine.scheduling.batch import Batch

TENSOR_CORE_GROUP = 4  # from this many query heads a key head on, tensor cores decode faster
LARGEST_FP8 = 448.0  # of float8_e4m3fn; torch makes larger ones NaN


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
        counts = batch.query_start.diff()
        owners = torch.arange(len(counts)).repeat_interleave(counts)
        shift = torch.tensor(batch.lengths) - batch.query_start[1:]
        return cls(
            query_start=batch.query_start,
            page_start=batch.page_start,
            page_indices=batch.page_indices,
            last_page_length=batch.last_page_length,
            owners=owners,
            positions=torch.arange(batch.tokens) + shift[owners],
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


@dataclass(slots=True)
class Wrapper:
    """One of FlashInfer's wrappers, and when the plan it staged last has left the host."""

    kernel: Any
    kind: Literal["decode", "prefill", "both ways"]
    window: int
    staged: Event


class FlashInferAttention:
    """`AttentionBackend` over a `KVCache` on CUDA, for queries of `dtype`."""

    def __init__(
        self, shape: AttentionShape, cache: KVCache, platform: Platform, dtype: torch.dtype
    ) -> None:
        self.shape = shape
        self.platform = platform
        self._library: Any = platform.library
        self._dtype = dtype
        self.store(cache)
        # zeroed: kernels count on it the first time
        self._workspace = torch.zeros(
            workspace_bytes(shape.heads, shape.kv_heads),
            dtype=torch.uint8,
            device=platform.device,
        )
        self._window_of = [shape.window_left(layer) for layer in range(shape.layers)]
        self.windows = sorted(set(self._window_of))
        self._prefill = {window: self._prefill_wrapper(window) for window in self.windows}
        self._decode = {window: self.decode_wrapper(window) for window in self.windows}
        self._both_ways: Wrapper | None = None  # made, and compiled, when first needed
        self._current = self._decode
        self._rows: DeviceRows | None = None
        self._spans: torch.Tensor | None = None  # of the planned batch, on the device

    def store(self, cache: KVCache) -> None:
        """Keep keys and values there from now on."""
        self._caches = [(layer[0], layer[1]) for layer in cache.layers]
        self._kv_dtype = cache.layers[0].dtype
        self._page_size = cache.page_size

    def release(self) -> None:
        """Let go of the cache; nothing runs until `store`."""
        self._caches = []

    def plan(self, batch: Batch) -> None:
        rows = Rows.of(batch)
        parts = [rows.page_start, rows.page_indices, rows.last_page_length]
        *sent, spans = send(self.platform, [*parts, rows.owners, rows.positions, batch.spans])
        there = DeviceRows(*sent)
        if len(spans) and not rows.decoding:  # a span's last token alone has nothing ahead
            if self._both_ways is None:
                self._both_ways = self._both_ways_wrapper()
            self.plan_wrapper(self._both_ways, rows, there.page_indices)
            self._rows, self._spans = there, spans
            return
        wrappers = self._decode if rows.decoding else self._prefill
        for wrapper in wrappers.values():
            self.plan_wrapper(wrapper, rows, there.page_indices)
        self.use(there, wrappers)

    def use(self, there: DeviceRows, wrappers: dict[int, Wrapper]) -> None:
        """Let `run` read these rows through these planned wrappers, one for each window."""
        self._rows, self._current, self._spans = there, wrappers, None

    def run(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        rows, cache = self._rows, self._caches[layer]
        assert rows is not None
        self._library.append_paged_kv_cache(
            self._storable(key),
            self._storable(value),
            rows.owners,
            rows.positions,
            cache,
            rows.page_indices,
            rows.page_start,
            rows.last_page_length,
            kv_layout="NHD",
        )
        window = self._window_of[layer]
        attended: torch.Tensor
        if self._spans is None:
            attended = self._current[window].kernel.run(query, cache)
        else:
            assert self._both_ways is not None
            attended = self._both_ways.kernel.run(
                query,
                cache,
                self._spans,
                causal_window_left=window,
                range_window_left=window + 1,  # keys, not distance; 0: no bound
            )
        return attended.view(query.shape[0], -1)

    def plan_wrapper(self, wrapper: Wrapper, rows: Rows, page_indices: torch.Tensor) -> None:
        """Plan for these rows. `page_indices` lie on the device already.

        From the host FlashInfer would copy them in step with the device. Its plan goes through one
        host buffer a wrapper, which may still be on its way from the plan before.
        """
        shape, pinned = self.shape, self.platform.pinned
        table = (pinned(rows.page_start), page_indices, pinned(rows.last_page_length))
        sizes = (shape.heads, shape.kv_heads, shape.head_dim, self._page_size)
        options = {
            "sm_scale": shape.scale,
            "q_data_type": self._dtype,
            "kv_data_type": self._kv_dtype,
        }
        masked = {"window_left": wrapper.window, "logits_soft_cap": shape.soft_cap}
        wrapper.staged.synchronize()
        match wrapper.kind:
            case "prefill":
                query_start = pinned(rows.query_start)
                wrapper.kernel.plan(query_start, *table, *sizes, causal=True, **masked, **options)
            case "both ways":
                wrapper.kernel.plan(pinned(rows.query_start), *table, *sizes, **options)
            case "decode":
                wrapper.kernel.plan(*table, *sizes, **masked, **options)
        wrapper.staged.record()

    def decode_wrapper(self, window: int, rows: DeviceRows | None = None) -> Wrapper:
        """A wrapper for decoding; with `rows`, one whose plans stay in these tensors."""
        buffers: dict[str, Any] = {}
        if rows is not None:
            buffers = {
                "use_cuda_graph": True,
                "paged_kv_indptr_buffer": rows.page_start,
                "paged_kv_indices_buffer": rows.page_indices,
                "paged_kv_last_page_len_buffer": rows.last_page_length,
            }
        shape = self.shape
        kernel = self._library.BatchDecodeWithPagedKVCacheWrapper(
            self._workspace,
            "NHD",
            use_tensor_cores=shape.heads // shape.kv_heads >= TENSOR_CORE_GROUP,
            backend="fa2",
            **buffers,
        )
        return Wrapper(kernel, "decode", window, self.platform.event())

    def share_plans(self, wrappers: list[Wrapper]) -> None:
        """Let wrappers of which one is planned and run at a time plan into the same memory."""
        plans = torch.empty(PLAN_BYTES, dtype=torch.uint8, device=self.platform.device)
        for wrapper in wrappers:
            wrapper.kernel.reset_workspace_buffer(self._workspace, plans)

    def _prefill_wrapper(self, window: int) -> Wrapper:
        kernel = self._library.BatchPrefillWithPagedKVCacheWrapper(
            self._workspace, "NHD", backend="fa2"
        )
        return Wrapper(kernel, "prefill", window, self.platform.event())

    def _both_ways_wrapper(self) -> Wrapper:
        if self.shape.soft_cap is not None:
            raise ModelUnsupported("FlashInfer caps no scores where tokens attend both ways")
        head_dim = self.shape.head_dim
        kernel = self._library.BatchPrefillWithCausalBidirectionalRangesWrapper(
            self._workspace,
            "NHD",
            q_data_type=self._dtype,
            kv_data_type=self._kv_dtype,
            head_dim_qk=head_dim,
            head_dim_vo=head_dim,
        )
        return Wrapper(kernel, "both ways", -1, self.platform.event())

    def _storable(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == self._kv_dtype:
            return tensor
        return tensor.clamp(-LARGEST_FP8, LARGEST_FP8).to(self._kv_dtype)


def check_supported(shape: AttentionShape, dtype: torch.dtype) -> None:
    """Raise ModelUnsupported for what FlashInfer's kernels do not have."""
    reason = unsupported(str(dtype).removeprefix("torch."), shape.head_dim)
    if reason is not None:
        raise ModelUnsupported(reason)
