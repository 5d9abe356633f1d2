"""What the layers ask of an attention backend, and the cache it works on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy
import torch

from engine.attention.rows import DeviceRows, Rows
from engine.device.device import Device, Event
from engine.scheduling.batch import Batch
from engine.scheduling.cross_batch import CrossBatch

PAGED_ATTENTION = "appliance_paged"  # what transformers knows our attention by
WHOLE_ATTENTION = "appliance_whole"  # the same, of encoders: engine/layers/encoder.py


@dataclass(slots=True, frozen=True)
class AttentionShape:
    """Shape of one decoder's attention; the same for all its layers but for the window.

    `windows[layer]` is how many of the last keys a token sees, its own included; None: all.
    `soft_cap` bounds scores by cap * tanh(score / cap). Values are of `value_dim`, None meaning
    the size of keys.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    windows: tuple[int | None, ...] = ()  # empty: none in any layer
    soft_cap: float | None = None
    value_dim: int | None = None

    @property
    def stored(self) -> tuple[tuple[int, int], ...]:
        """Heads and head size of each tensor that a layer keeps of a token: its key, its value."""
        return (self.kv_heads, self.head_dim), (self.kv_heads, self.value_dim or self.head_dim)

    def window_left(self, layer: int) -> int:
        """Earlier keys that a token of this layer sees; -1: all."""
        window = self.windows[layer] if self.windows else None
        return -1 if window is None else window - 1


@dataclass(slots=True, frozen=True)
class CrossLayers:
    """Attention to states beside a sequence, in a stack of transformers.

    `modules` are those layers' attentions in the order of their caches, and the stack takes new
    states `[1, states, hidden]` as `argument`.
    """

    shape: AttentionShape
    modules: Sequence[Any]
    argument: str = "encoder_hidden_states"


class KVCache:
    """What the layers keep of computed tokens, in pages; page 0 is nobody's.

    `layers` has for each layer one tensor `[pages + 1, page_size, heads, head_dim]` for each of
    the shape's `stored`: FlashInfer's (k, v) pair in NHD layout. Attention over something else than
    the sequence itself, a picture say, has a cache of its own, with a backend of its own.
    """

    def __init__(
        self,
        shape: AttentionShape,
        pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.pages = pages
        self.page_size = page_size
        sizes = [(pages + 1, page_size, *size) for size in shape.stored]
        self.layers = [side_by_side(sizes, dtype, device) for _ in range(shape.layers)]

    @property
    def dtype(self) -> torch.dtype:
        return self.layers[0][0].dtype

    @property
    def page_bytes(self) -> int:
        """What one page takes in all layers."""
        return sum(tensor[0].nbytes for layer in self.layers for tensor in layer)


def side_by_side(
    sizes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """Zeros of these sizes in one piece of memory, to which the machine gives larger pages."""
    counts = [math.prod(size) for size in sizes]
    whole = zeros(sum(counts), dtype, device)
    parts: tuple[torch.Tensor, ...] = torch.split(whole, counts)
    return tuple(part.view(size) for part, size in zip(parts, sizes, strict=True))


def zeros(count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros that, on the CPU, take memory only once written: numpy allocates with calloc."""
    if device.type != "cpu":
        return torch.zeros(count, dtype=dtype, device=device)
    return torch.from_numpy(numpy.zeros(count * dtype.itemsize, dtype=numpy.uint8)).view(dtype)


class AttentionBackend(Protocol):
    """Paged attention, causal but for a batch's spans. `plan` once a step, `run` once a layer.

    A layer's window bounds how far back a token sees, inside its span too; not how far ahead.
    """

    def store(self, cache: KVCache) -> None:
        """Keep keys and values there from now on."""

    def release(self) -> None:
        """Let go of the cache; nothing runs until `store`."""

    def plan(self, batch: Batch) -> None:
        """Prepare what all layers of this step share."""

    def run(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Store key and value in the slots of the planned batch, then attend.

        query `[tokens, heads, head_dim]`, key `[tokens, kv_heads, head_dim]`, value `[tokens,
        kv_heads, value_dim]`; returns `[tokens, heads * value_dim]`.
        """


class CrossAttention(Protocol):
    """Paged attention to states beside a sequence, of which each token sees all that it may.

    Every token's states are stored once, by the step that is the first to attend to them.
    """

    def store(self, cache: KVCache) -> None:
        """Keep keys and values of states there from now on."""

    def release(self) -> None:
        """Let go of the cache; nothing runs until `store`."""

    def plan(self, batch: CrossBatch) -> None:
        """Prepare what all layers of this step share."""

    def run(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Store keys and values of the planned batch's new states, then attend.

        query `[tokens, heads, head_dim]`, key and value `[states, kv_heads, ...]`, of which those
        behind the planned slots are nobody's; returns `[tokens, heads * value_dim]`, zeros for a
        token that sees nothing.
        """

    def aligned(self) -> list[torch.Tensor]:
        """What the planned batch's aligned rows attended to: `[heads, tokens, states]` each."""


@dataclass(slots=True)
class PlannedKernel:
    """A kernel of the library for all layers of one window, planned anew for each batch.

    `staged` is when its last plan has left the host.
    """

    kernel: Any
    kind: Literal["decode", "prefill", "both ways"]
    window: int
    staged: Event


@runtime_checkable
class RecordableAttention(AttentionBackend, Protocol):
    """A backend whose decoding can be recorded: its plans stay in memory that is given to it.

    Where only what lies between its runs is recorded, so does what it computes.

    `windows` are those that its layers have; each needs a kernel of its own.
    """

    device: Device
    windows: list[int]

    def run(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As that of every backend; the result goes to `out`, contiguous memory, if it is given."""

    def decode_kernel(self, window: int, rows: DeviceRows | None = None) -> PlannedKernel:
        """A new kernel for decoding; with `rows`, its plans stay in these tensors."""

    def share_plans(self, kernels: list[PlannedKernel]) -> None:
        """Let kernels of which one is planned and run at a time plan into the same memory."""

    def plan_kernel(self, kernel: PlannedKernel, rows: Rows, page_indices: torch.Tensor) -> None:
        """Plan for these rows, whose `page_indices` lie on the device already."""

    def use(self, there: DeviceRows, kernels: Mapping[int, PlannedKernel]) -> None:
        """Let `run` read these rows by these planned kernels, one for each window."""


@runtime_checkable
class StoredAttention(AttentionBackend, Protocol):
    """A backend that attends to keys which something else has stored in its pages."""

    def decoding(self) -> DeviceRows | None:
        """Where the planned tokens belong, if each is the last of its sequence; else None."""

    def pages(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's keys and values, `[pages, page_size, kv_heads, head_dim]` each."""

    def attend(self, layer: int, query: torch.Tensor) -> torch.Tensor:
        """`run` for keys and values that are in their slots, in a batch that is decoded."""
