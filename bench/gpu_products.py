"""The products of a decode step alone: how near each comes to reading its weights once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import linear

from bench.gpu_models import Shape
from bench.gpu_speed import DTYPE, ITEMSIZE, Clock
from engine.device.device import Recorder

ROWS = (1, 8, 32, 128)
READ = 1 << 29  # bytes of copies of a weight: more than any cache holds


@dataclass(slots=True, frozen=True)
class Product:
    """`rows` tokens by a weight `[out, into]`, in seconds."""

    name: str
    rows: int
    out: int
    into: int
    seconds: float

    @property
    def bandwidth(self) -> float:
        """Bytes of the weight a second."""
        return self.out * self.into * ITEMSIZE / self.seconds


def weights(shape: Shape) -> dict[str, tuple[int, int]]:
    """Sizes `[out, into]` of what a token is multiplied with."""
    heads, keys = shape.heads * shape.head_dim, 2 * shape.kv_heads * shape.head_dim
    return {
        "query, key and value": (heads + keys, shape.hidden),
        "output": (shape.hidden, heads),
        "gate and up": (2 * shape.intermediate, shape.hidden),
        "down": (shape.hidden, shape.intermediate),
        "head": (shape.vocabulary, shape.hidden),
    }


def measure_products(shape: Shape, device: Recorder, read: int = READ) -> Iterator[Product]:
    """Each product recorded, over copies of its weight so that none is in a cache."""
    clock = Clock(device.device)
    for name, (out, into) in weights(shape).items():
        count = max(2, min(64, read // (out * into * ITEMSIZE)))
        copies = [torch.randn(out, into, device=device.device, dtype=DTYPE) for _ in range(count)]
        for rows in ROWS:
            tokens = torch.randn(rows, into, device=device.device, dtype=DTYPE)
            graph = device.capture(partial(_all, tokens, copies), device.graph_pool())
            yield Product(name, rows, out, into, clock.best(graph.replay) / count)


def _all(tokens: torch.Tensor, copies: list[torch.Tensor]) -> None:
    for weight in copies:
        linear(tokens, weight)
