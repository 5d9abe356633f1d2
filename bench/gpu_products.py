"""The products of a decode step alone: how near each comes to reading its weights once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from bench.gpu_models import Shape
from bench.gpu_speed import DTYPE, ITEMSIZE, Clock
from engine.device.device import Recorder
from engine.layers.fp8 import Fp8Linear, quantized
from engine.layers.linear import Linear, MakeLinear, PlainLinear

ROWS = (1, 8, 32, 128)
MOST_ROWS = 32768  # of a weight that is compared
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


def measure_products(
    shape: Shape, device: Recorder, read: int = READ, make: MakeLinear = PlainLinear
) -> Iterator[Product]:
    """Each product recorded, over copies of its weight so that none is in a cache."""
    clock = Clock(device.device)
    for name, (out, into) in weights(shape).items():
        count = max(2, min(64, read // (out * into * ITEMSIZE)))
        copies = [make(_random(out, into, device), None) for _ in range(count)]
        for rows in ROWS:
            tokens = _random(rows, into, device)
            graph = device.capture(partial(_all, tokens, copies), device.graph_pool())
            yield Product(name, rows, out, into, clock.best(graph.replay) / count)


def far_in_eight_bits(shape: Shape, device: Recorder) -> float:
    """Furthest that a product in eight bits is from float32's of the same bits, to the largest."""
    far = 0.0
    for out, into in weights(shape).values():
        weight = _random(min(out, MOST_ROWS), into, device)
        bias = _random(1, len(weight), device)[0]
        product = Fp8Linear(weight, bias)
        stored = product.weight.float() * product.scales.t()
        for rows in (*ROWS, 1000):
            tokens = _random(rows, into, device)
            values, scales = quantized(tokens)
            expected = (values.float() * scales) @ stored.t() + bias.float()
            worst = (product(tokens).float() - expected).abs().max() / expected.abs().max()
            far = max(far, worst.item())
    return far


def _random(rows: int, columns: int, device: Recorder) -> torch.Tensor:
    return torch.randn(rows, columns, device=device.device, dtype=DTYPE)


def _all(tokens: torch.Tensor, products: list[Linear]) -> None:
    for product in products:
        product(tokens)
