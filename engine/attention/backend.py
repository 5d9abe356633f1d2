"""What the layers ask of an attention backend, and the cache it works on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy
import torch

from engine.scheduling.batch import Batch


@dataclass(slots=True, frozen=True)
class AttentionShape:
    """Shape of one decoder's attention; the same for all its layers but for the window.

    `windows[layer]` is how many of the last keys a token sees, its own included; None: all.
    `soft_cap` bounds scores by cap * tanh(score / cap).
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    windows: tuple[int | None, ...] = ()  # empty: none in any layer
    soft_cap: float | None = None

    def window_left(self, layer: int) -> int:
        """Earlier keys that a token of this layer sees; -1: all."""
        window = self.windows[layer] if self.windows else None
        return -1 if window is None else window - 1


class KVCache:
    """Keys and values: per layer one tensor `[2, pages + 1, page_size, kv_heads, head_dim]`.

    Page 0 is nobody's. A layer's `[0]` and `[1]` are FlashInfer's (k, v) pair in NHD layout.
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
        size = (2, pages + 1, page_size, shape.kv_heads, shape.head_dim)
        self.layers = [zeros(size, dtype, device) for _ in range(shape.layers)]


def zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros that, on the CPU, take memory only once written: numpy allocates with calloc."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    count = math.prod(size) * dtype.itemsize
    return torch.from_numpy(numpy.zeros(count, dtype=numpy.uint8)).view(dtype).view(size)


class AttentionBackend(Protocol):
    """Paged attention, causal but for a batch's spans. `plan` once a step, `run` once a layer.

    A layer's window bounds how far back a token sees, inside its span too; not how far ahead.
    """

    def plan(self, batch: Batch) -> None:
        """Prepare what all layers of this step share."""

    def run(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Store key and value in the slots of the planned batch, then attend.

        query `[tokens, heads, head_dim]`, key and value `[tokens, kv_heads, head_dim]`; returns
        `[tokens, heads * head_dim]`.
        """
