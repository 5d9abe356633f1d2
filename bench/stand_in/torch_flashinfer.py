"""FlashInfer's wrappers and kernels in plain torch, on any device and in any type.

To be put in FlashInfer's place (`StandIn()`): the whole CUDA path but the
recording of graphs then runs where no card is. It is strict where FlashInfer is (int32 everywhere,
pages planned before they are read, in-place results) and slow.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch

from bench.stand_in import torch_sampling as sampling

__all__ = [
    "BatchDecodeWithPagedKVCacheWrapper",
    "BatchPrefillWithCausalBidirectionalRangesWrapper",
    "BatchPrefillWithPagedKVCacheWrapper",
    "append_paged_kv_cache",
    "apply_rope_with_cos_sin_cache_inplace",
    "fused_add_rmsnorm",
    "gelu_tanh_and_mul",
    "gemma_fused_add_rmsnorm",
    "gemma_rmsnorm",
    "rmsnorm",
    "sampling",
    "silu_and_mul",
    "single_prefill_with_kv_cache",
]

Cache = tuple[torch.Tensor, torch.Tensor]  # each [pages, page_size, kv_heads, head_dim]


@dataclass
class Ranges:
    """Spans of queries, as the ranges wrapper takes them, and its two windows."""

    spans: torch.Tensor  # [tokens, 2]
    causal_window_left: int
    range_window_left: int

    def seen(self, start: int, end: int, length: int) -> torch.Tensor:
        """Which keys queries start..end, the last of `length` tokens, see: `[queries, length]`."""
        keys = torch.arange(length, device=self.spans.device)
        distance = torch.arange(length - (end - start), length, device=keys.device)[:, None] - keys
        causal = distance >= 0
        if self.causal_window_left >= 0:
            causal &= distance <= self.causal_window_left
        first, last = self.spans[start:end].split(1, dim=1)
        in_range = (keys >= first) & (keys <= last)
        if self.range_window_left > 0:
            in_range &= distance < self.range_window_left
        return causal | in_range


class _Wrapper:
    def __init__(self, workspace: torch.Tensor, kv_layout: str, graph: bool) -> None:
        assert kv_layout == "NHD"
        assert workspace.dtype == torch.uint8
        self._device = workspace.device
        self._graph = graph
        self._planned: dict[str, Any] | None = None
        self._buffers: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def reset_workspace_buffer(
        self, float_workspace_buffer: torch.Tensor, int_workspace_buffer: torch.Tensor
    ) -> None:
        assert float_workspace_buffer.dtype == int_workspace_buffer.dtype == torch.uint8

    def _place(
        self, indptr: torch.Tensor, indices: torch.Tensor, last: torch.Tensor, page_size: int
    ) -> None:
        """Keep the page table: in the given buffers, or on the device."""
        for tensor in (indptr, indices, last):
            assert tensor.dtype == torch.int32, "FlashInfer takes int32"
        assert len(indptr) == len(last) + 1
        assert len(indices) >= int(indptr[-1])
        assert int(last.min()) >= 1
        assert int(last.max()) <= page_size
        if not self._graph:
            self._buffers = indptr, indices, last
            return
        assert self._buffers is not None
        table, pages, lengths = self._buffers
        assert len(table) == len(indptr)
        assert len(pages) >= len(indices)
        table.copy_(indptr)
        pages[: len(indices)].copy_(indices)
        lengths.copy_(last)

    def _attend(
        self,
        query: torch.Tensor,
        cache: Cache,
        query_start: list[int],
        ranges: Ranges | None = None,
        out: torch.Tensor | None = None,
        causal: bool = True,
    ) -> torch.Tensor:
        plan = self._planned
        assert plan is not None, "run before plan"
        assert self._buffers is not None
        heads, kv_heads, head_dim, page_size = plan["sizes"]
        assert query.shape == (query_start[-1], heads, head_dim)
        assert query.dtype == plan["q_data_type"]
        assert all(half.dtype == plan["kv_data_type"] for half in cache)
        assert all(half.shape[1:] == (page_size, kv_heads, head_dim) for half in cache)
        table, indices, last = (part.tolist() for part in self._buffers)
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        if out is not None:
            assert (out.shape, out.dtype, out.device) == (query.shape, query.dtype, query.device)
            assert out.is_contiguous()
            output = out
        for row, (start, end) in enumerate(itertools.pairwise(query_start)):
            pages = indices[table[row] : table[row + 1]]
            length = (len(pages) - 1) * page_size + last[row]
            key, value = (half[pages].flatten(0, 1)[:length].to(query.dtype) for half in cache)
            earlier = length - (end - start)
            seen = torch.ones(end - start, length, dtype=torch.bool, device=query.device)
            seen = seen.tril(earlier)
            if plan["window_left"] >= 0:
                seen = seen.triu(earlier - plan["window_left"])
            if ranges is not None:
                seen = ranges.seen(start, end, length)
            if not causal:
                seen = torch.ones_like(seen)
            output[start:end] = attend(query[start:end], key, value, seen, plan)
        return output


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: torch.Tensor | None,
    plan: dict[str, Any],
) -> torch.Tensor:
    """Attention of one sequence in float32, with scale and cap."""
    group = query.shape[1] // key.shape[1]
    key, value = (part.float().repeat_interleave(group, dim=1) for part in (key, value))
    scale = plan["sm_scale"] if plan["sm_scale"] is not None else query.shape[-1] ** -0.5
    scores = torch.einsum("qhd,khd->hqk", query.float(), key) * scale
    cap = plan["logits_soft_cap"]
    if cap:
        scores = cap * torch.tanh(scores / cap)
    if seen is not None:
        scores = scores.masked_fill(~seen, -math.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).to(query.dtype)


class BatchPrefillWithPagedKVCacheWrapper(_Wrapper):
    def __init__(
        self,
        float_workspace_buffer: torch.Tensor,
        kv_layout: str = "NHD",
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__(float_workspace_buffer, kv_layout, graph=False)
        assert backend in ("fa2", "fa3")
        self._hopper = backend == "fa3"

    def plan(
        self,
        qo_indptr: torch.Tensor,
        paged_kv_indptr: torch.Tensor,
        paged_kv_indices: torch.Tensor,
        paged_kv_last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        causal: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        q_data_type: torch.dtype = torch.float16,
        kv_data_type: torch.dtype | None = None,
    ) -> None:
        self._causal = causal  # else: every query sees all keys of its row
        assert not self._hopper or (window_left < 0 and not logits_soft_cap), "not compiled"
        assert qo_indptr.dtype == torch.int32
        assert qo_indptr.device.type == paged_kv_indptr.device.type == "cpu"
        self._place(paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, page_size)
        self._query_start = qo_indptr.tolist()
        self._planned = {
            "sizes": (num_qo_heads, num_kv_heads, head_dim_qk, page_size),
            "sm_scale": sm_scale,
            "window_left": window_left,
            "logits_soft_cap": logits_soft_cap,
            "q_data_type": q_data_type,
            "kv_data_type": kv_data_type or q_data_type,
        }

    def run(
        self, q: torch.Tensor, paged_kv_cache: Cache, *, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self._attend(q, paged_kv_cache, self._query_start, out=out, causal=self._causal)


class BatchPrefillWithCausalBidirectionalRangesWrapper(_Wrapper):
    def __init__(
        self,
        float_workspace_buffer: torch.Tensor,
        kv_layout: str = "NHD",
        *,
        q_data_type: torch.dtype = torch.bfloat16,
        kv_data_type: torch.dtype = torch.bfloat16,
        head_dim_qk: int = 128,
        head_dim_vo: int = 128,
    ) -> None:
        super().__init__(float_workspace_buffer, kv_layout, graph=False)
        self._built_for = q_data_type, kv_data_type, head_dim_qk, head_dim_vo

    def plan(
        self,
        qo_indptr: torch.Tensor,
        paged_kv_indptr: torch.Tensor,
        paged_kv_indices: torch.Tensor,
        paged_kv_last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        sm_scale: float | None = None,
        q_data_type: torch.dtype | None = None,
        kv_data_type: torch.dtype | None = None,
    ) -> None:
        built_q, built_kv, *built_dims = self._built_for
        assert (q_data_type or built_q, kv_data_type or built_kv) == (built_q, built_kv)
        assert built_dims == [head_dim_qk, head_dim_qk]
        assert qo_indptr.dtype == torch.int32
        assert qo_indptr.device.type == paged_kv_indptr.device.type == "cpu"
        self._place(paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, page_size)
        self._query_start = qo_indptr.tolist()
        self._planned = {
            "sizes": (num_qo_heads, num_kv_heads, head_dim_qk, page_size),
            "sm_scale": sm_scale,
            "window_left": -1,
            "logits_soft_cap": None,
            "q_data_type": built_q,
            "kv_data_type": built_kv,
        }

    def run(
        self,
        q: torch.Tensor,
        paged_kv_cache: Cache,
        bidirectional_ranges: torch.Tensor,
        causal_window_left: int = -1,
        range_window_left: int = -1,
        *,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert bidirectional_ranges.dtype == torch.int32
        assert bidirectional_ranges.shape == (len(q), 2)
        assert bidirectional_ranges.device == q.device
        assert bidirectional_ranges.is_contiguous()
        ranges = Ranges(bidirectional_ranges, causal_window_left, range_window_left)
        return self._attend(q, paged_kv_cache, self._query_start, ranges, out)


class BatchDecodeWithPagedKVCacheWrapper(_Wrapper):
    def __init__(
        self,
        float_workspace_buffer: torch.Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        use_tensor_cores: bool = False,
        paged_kv_indptr_buffer: torch.Tensor | None = None,
        paged_kv_indices_buffer: torch.Tensor | None = None,
        paged_kv_last_page_len_buffer: torch.Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(float_workspace_buffer, kv_layout, use_cuda_graph)
        assert backend == "fa2"
        if use_cuda_graph:
            assert paged_kv_indptr_buffer is not None
            assert paged_kv_indices_buffer is not None
            assert paged_kv_last_page_len_buffer is not None
            self._buffers = (
                paged_kv_indptr_buffer,
                paged_kv_indices_buffer,
                paged_kv_last_page_len_buffer,
            )

    def plan(
        self,
        indptr: torch.Tensor,
        indices: torch.Tensor,
        last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        q_data_type: torch.dtype = torch.float16,
        kv_data_type: torch.dtype | None = None,
    ) -> None:
        assert indptr.device.type == "cpu"
        self._place(indptr, indices, last_page_len, page_size)
        self._planned = {
            "sizes": (num_qo_heads, num_kv_heads, head_dim, page_size),
            "sm_scale": sm_scale,
            "window_left": window_left,
            "logits_soft_cap": logits_soft_cap,
            "q_data_type": q_data_type,
            "kv_data_type": kv_data_type or q_data_type,
        }

    def run(
        self, q: torch.Tensor, paged_kv_cache: Cache, *, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self._attend(q, paged_kv_cache, list(range(len(q) + 1)), out=out)


def append_paged_kv_cache(
    append_key: torch.Tensor,
    append_value: torch.Tensor,
    batch_indices: torch.Tensor,
    positions: torch.Tensor,
    paged_kv_cache: Cache,
    kv_indices: torch.Tensor,
    kv_indptr: torch.Tensor,
    kv_last_page_len: torch.Tensor,
    kv_layout: str = "NHD",
) -> None:
    for tensor in (batch_indices, positions, kv_indices, kv_indptr, kv_last_page_len):
        assert tensor.dtype == torch.int32, "FlashInfer takes int32"
    assert len(batch_indices) == len(positions) == len(append_key)
    page_size = paged_kv_cache[0].shape[1]
    entries = kv_indptr[batch_indices.long()] + positions // page_size
    pages, offsets = kv_indices[entries.long()].long(), (positions % page_size).long()
    for half, new in zip(paged_kv_cache, (append_key, append_value), strict=True):
        assert half.dtype == new.dtype, "the kernel does not convert"
        half[pages, offsets] = new


def rmsnorm(
    input: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6, out: torch.Tensor | None = None
) -> torch.Tensor:
    wide = input.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()
    if out is None:
        return normed.to(input.dtype)
    return out.copy_(normed)


def fused_add_rmsnorm(
    input: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6
) -> None:
    assert input.ndim == residual.ndim == 2
    residual += input
    rmsnorm(residual, weight, eps, out=input)


def gemma_rmsnorm(
    input: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6, out: torch.Tensor | None = None
) -> torch.Tensor:
    assert input.ndim == 2
    assert input.stride(1) == 1
    return rmsnorm(input, 1 + weight.float(), eps, out)


def gemma_fused_add_rmsnorm(
    input: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6
) -> None:
    fused_add_rmsnorm(input, residual, 1 + weight.float(), eps)


def gelu_tanh_and_mul(input: torch.Tensor) -> torch.Tensor:
    left, right = input.float().chunk(2, dim=-1)
    return (torch.nn.functional.gelu(left, approximate="tanh") * right).to(input.dtype)


def silu_and_mul(input: torch.Tensor) -> torch.Tensor:
    left, right = input.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(left) * right).to(input.dtype)


def apply_rope_with_cos_sin_cache_inplace(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    head_size: int,
    cos_sin_cache: torch.Tensor,
    is_neox: bool = True,
) -> None:
    assert is_neox
    assert cos_sin_cache.dtype == torch.float32
    assert cos_sin_cache.shape[-1] == head_size
    cos, sin = cos_sin_cache[positions.long()][:, None].chunk(2, dim=-1)
    for heads in (query, key):
        view = heads.view(len(heads), -1, head_size)
        left, right = view.float().chunk(2, dim=-1)
        view.copy_(torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1))


def single_prefill_with_kv_cache(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    sm_scale: float | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    assert not causal, "towers look both ways"
    assert backend == "fa2"
    return attend(q, k, v, None, {"sm_scale": sm_scale, "logits_soft_cap": None})
