"""Paged attention by FlashInfer's wrappers, for CUDA.

Keys and values are stored first; then one causal paged prefill serves every batch that holds more
than one token of a sequence, and one paged decode serves the others. A window is part of a plan:
layers of equal window share their wrapper. A batch with spans that attend both ways goes through
the wrapper that has them in its mask, for which a window is an argument of each run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from engine.attention.backend import AttentionShape, KVCache, PlannedKernel
from engine.attention.limits import (
    PLAN_BYTES,
    WORKSPACE_BYTES,
    decodes_by_tensor_cores,
    hopper_lacks,
    unsupported,
)
from engine.attention.rows import DeviceRows, Rows
from engine.device.device import Device, send
from engine.errors import ModelUnsupported
from engine.scheduling.batch import Batch

HOPPER_TILE, HOPPER_TILES = 128, 128  # query rows of a tile; from so many on, all processors work
LARGEST_FP8 = 448.0  # of float8_e4m3fn; torch makes larger ones NaN


class FlashInferAttention:
    """`RecordableAttention` over a `KVCache` on CUDA, for queries of `dtype`."""

    def __init__(
        self,
        shape: AttentionShape,
        cache: KVCache,
        device: Device,
        dtype: torch.dtype,
        library: Any,
        *,
        hopper: bool = False,
    ) -> None:
        """`library` is FlashInfer, or has its interface.

        With `hopper`, long prompts are attended to by the kernels for that architecture (`fa3`),
        in layers without a window.
        """
        if shape.value_dim not in (None, shape.head_dim):
            raise ModelUnsupported("values of another size than keys are not attended to on a card")
        self.shape = shape
        self.device = device
        self._library = library
        self._dtype = dtype
        self.store(cache)
        # zeroed: kernels count on it the first time
        self._workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device.device)
        self._window_of = [shape.window_left(layer) for layer in range(shape.layers)]
        self.windows = sorted(set(self._window_of))
        self._prefill = {window: self._prefill_kernel(window) for window in self.windows}
        self._decode = {window: self.decode_kernel(window) for window in self.windows}
        self._hopper = self._prefill
        if hopper and -1 in self.windows:
            self._hopper = self._prefill | {-1: self._prefill_kernel(-1, "fa3")}
        self._both_ways: PlannedKernel | None = None  # made, and compiled, when first needed
        self._current: Mapping[int, PlannedKernel] = self._decode
        self._rows: DeviceRows | None = None
        self._spans: torch.Tensor | None = None  # of the planned batch, on the device

    def store(self, cache: KVCache) -> None:
        """Keep keys and values there from now on."""
        self._caches = list(cache.layers)
        self._kv_dtype = cache.dtype
        self._page_size = cache.page_size

    def release(self) -> None:
        """Let go of the cache; nothing runs until `store`."""
        self._caches = []

    def plan(self, batch: Batch) -> None:
        rows = Rows.of(batch)
        parts = [rows.page_start, rows.page_indices, rows.last_page_length]
        *sent, spans = send(self.device, [*parts, rows.owners, rows.positions, batch.spans])
        there = DeviceRows(*sent)
        if len(spans) and not rows.decoding:  # a span's last token alone has nothing ahead
            if self._both_ways is None:
                self._both_ways = self._both_ways_kernel()
            self.plan_kernel(self._both_ways, rows, there.page_indices)
            self._rows, self._spans = there, spans
            return
        kernels = self._decode if rows.decoding else self._prefill_for(rows)
        for planned in kernels.values():
            self.plan_kernel(planned, rows, there.page_indices)
        self.use(there, kernels)

    def use(self, there: DeviceRows, kernels: Mapping[int, PlannedKernel]) -> None:
        """Let `run` read these rows by these planned kernels, one for each window."""
        self._rows, self._current, self._spans = there, kernels, None

    def run(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor | None = None,
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
        if self._spans is None:
            return self.attend(layer, query, out)
        window = self._window_of[layer]
        assert self._both_ways is not None
        attended: torch.Tensor = self._both_ways.kernel.run(
            query,
            cache,
            self._spans,
            causal_window_left=window,
            range_window_left=window + 1,  # keys, not distance; 0: no bound
            out=None if out is None else out.view(query.shape),
        )
        return attended.view(query.shape[0], -1)

    def decoding(self) -> DeviceRows | None:
        kinds = {planned.kind for planned in self._current.values()}
        return self._rows if self._spans is None and kinds == {"decode"} else None

    def pages(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._caches[layer]
        return keys, values

    def attend(
        self, layer: int, query: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        kernel = self._current[self._window_of[layer]].kernel
        place = None if out is None else out.view(query.shape)
        attended: torch.Tensor = kernel.run(query, self._caches[layer], out=place)
        return attended.view(query.shape[0], -1)

    def plan_kernel(self, planned: PlannedKernel, rows: Rows, page_indices: torch.Tensor) -> None:
        """Plan for these rows. `page_indices` lie on the device already.

        From the host FlashInfer would copy them in step with the device. Its plan goes through one
        host buffer a wrapper, which may still be on its way from the plan before.
        """
        shape, pinned = self.shape, self.device.pinned
        table = (pinned(rows.page_start), page_indices, pinned(rows.last_page_length))
        sizes = (shape.heads, shape.kv_heads, shape.head_dim, self._page_size)
        options = {
            "sm_scale": shape.scale,
            "q_data_type": self._dtype,
            "kv_data_type": self._kv_dtype,
        }
        masked = {"window_left": planned.window, "logits_soft_cap": shape.soft_cap}
        planned.staged.synchronize()
        match planned.kind:
            case "prefill":
                query_start = pinned(rows.query_start)
                planned.kernel.plan(query_start, *table, *sizes, causal=True, **masked, **options)
            case "both ways":
                planned.kernel.plan(pinned(rows.query_start), *table, *sizes, **options)
            case "decode":
                planned.kernel.plan(*table, *sizes, **masked, **options)
        planned.staged.record()

    def decode_kernel(self, window: int, rows: DeviceRows | None = None) -> PlannedKernel:
        """A kernel for decoding; with `rows`, its plans stay in these tensors."""
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
            use_tensor_cores=decodes_by_tensor_cores(shape.heads, shape.kv_heads),
            backend="fa2",
            **buffers,
        )
        return PlannedKernel(kernel, "decode", window, self.device.event())

    def share_plans(self, kernels: list[PlannedKernel]) -> None:
        """Let kernels of which one is planned and run at a time plan into the same memory."""
        plans = torch.empty(PLAN_BYTES, dtype=torch.uint8, device=self.device.device)
        for planned in kernels:
            planned.kernel.reset_workspace_buffer(self._workspace, plans)

    def _prefill_for(self, rows: Rows) -> Mapping[int, PlannedKernel]:
        """`fa3` does not split a sequence's keys: few new tokens would leave the card idle."""
        if self._hopper is self._prefill:
            return self._prefill
        counts = rows.query_start.diff()
        tiles = int((counts + HOPPER_TILE - 1).div(HOPPER_TILE, rounding_mode="floor").sum())
        return self._hopper if tiles * self.shape.heads >= HOPPER_TILES else self._prefill

    def _prefill_kernel(self, window: int, backend: str = "fa2") -> PlannedKernel:
        kernel = self._library.BatchPrefillWithPagedKVCacheWrapper(
            self._workspace, "NHD", backend=backend
        )
        return PlannedKernel(kernel, "prefill", window, self.device.event())

    def _both_ways_kernel(self) -> PlannedKernel:
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
        return PlannedKernel(kernel, "both ways", -1, self.device.event())

    def _storable(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == self._kv_dtype:
            return tensor
        return tensor.clamp(-LARGEST_FP8, LARGEST_FP8).to(self._kv_dtype)


def check_supported(shape: AttentionShape, dtype: torch.dtype) -> None:
    """Raise ModelUnsupported for what FlashInfer's kernels do not have."""
    reason = unsupported(str(dtype).removeprefix("torch."), shape.head_dim)
    if reason is not None:
        raise ModelUnsupported(reason)


def hopper_unsupported(
    capability: tuple[int, int], shape: AttentionShape, cache: KVCache
) -> str | None:
    """Why prompts cannot be attended to by FlashInfer's kernels for Hopper; None if they can."""
    return hopper_lacks(capability, cache.dtype.itemsize, shape.soft_cap, shape.windows)
