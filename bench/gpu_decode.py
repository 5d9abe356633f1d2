"""Our products of a decoding step on this card: are they right, and from when do they pay?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench.gpu_models import Shape
from bench.gpu_speed import DTYPE, Clock
from bench.stand_in.torch_products import TorchProducts
from engine.attention.backend import AttentionShape
from engine.attention.rows import DeviceRows
from engine.device.device import Recorder
from engine.kernels.own import decode_products
from engine.layers.decode_products import SPLITS, CompiledProducts, DecodeProducts
from engine.layers.kernels import Kernels, Norm
from engine.layers.linear import PlainLinear
from engine.running.platform import Platform

PAGE_SIZE, PAGES = 16, 4  # of each sequence
TOKENS = (1, 2, 4, 8, 16, 32)
DEALT_TOKENS = (1, 8, 32)
READ = 1 << 29  # bytes of copies of a layer: more than any cache holds


@dataclass(slots=True)
class Layer:
    """Weights of one layer, and where its keys and values go."""

    qkv: PlainLinear
    output: PlainLinear
    gate_up: PlainLinear
    down: PlainLinear
    pages: tuple[torch.Tensor, torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        products = (self.qkv, self.output, self.gate_up, self.down)
        return sum(each.weight.nbytes for each in products)


class Step:
    """What `tokens` sequences, each at the end of its pages, bring to a layer of a shape."""

    def __init__(self, shape: Shape, tokens: int, device: torch.device) -> None:
        self.shape, self.tokens, self.device = shape, tokens, device
        pages = tokens * PAGES
        last = torch.arange(tokens, dtype=torch.int32)
        self.rows = DeviceRows(
            page_start=torch.arange(0, pages + 1, PAGES, dtype=torch.int32, device=device),
            page_indices=(torch.randperm(pages) + 1).int().to(device),
            last_page_length=(last % PAGE_SIZE + 1).to(device),
            owners=last.to(device),
            positions=((PAGES - 1) * PAGE_SIZE + last % PAGE_SIZE).to(device),
        )
        angle = torch.rand(tokens, shape.head_dim // 2) * 6
        self.angles = torch.cat((angle.cos(), angle.sin()), dim=-1).to(device)
        self.residual = self.noise(tokens, shape.hidden)
        self.attended = self.noise(tokens, shape.heads * shape.head_dim)
        self.gated = self.noise(tokens, shape.intermediate)
        self.norm = Norm(1 + self.noise(shape.hidden) / 10, 1e-6)

    def noise(self, *size: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(size, device=self.device) * scale).to(DTYPE)

    def layer(self) -> Layer:
        shape, wide = self.shape, self.shape.heads * self.shape.head_dim
        keys = shape.kv_heads * shape.head_dim
        kept = (self.tokens * PAGES + 1, PAGE_SIZE, shape.kv_heads, shape.head_dim)
        pages = torch.zeros(2, *kept, device=self.device, dtype=DTYPE)
        return Layer(
            self._linear(wide + 2 * keys, shape.hidden),
            self._linear(shape.hidden, wide),
            self._linear(2 * shape.intermediate, shape.hidden),
            self._linear(shape.hidden, shape.intermediate),
            (pages[0], pages[1]),
        )

    def layers(self, read: int) -> list[Layer]:
        """As many as have weights of `read` bytes together, two at least."""
        first = self.layer()
        return [first, *(self.layer() for _ in range(max(1, min(24, read // first.nbytes))))]

    def _linear(self, out: int, depth: int) -> PlainLinear:
        return PlainLinear(self.noise(out, depth, scale=depth**-0.5))

    def by_ours(self, products: DecodeProducts, layer: Layer) -> None:
        """All of a layer but attention."""
        following = (layer.output, layer.gate_up)
        products.heads(
            layer.qkv,
            self.residual,
            self.norm,
            self.angles,
            layer.pages,
            self.rows,
            following,
        )
        products.add(layer.output, self.attended, self.residual)
        gated = products.gate(layer.gate_up, self.residual, self.norm, "silu")
        products.add(layer.down, gated, self.residual)

    def by_library(self, kernels: Kernels, library: Any, layer: Layer) -> None:
        """The same by the kernels that decode without ours."""
        shape, rows = self.shape, self.rows
        normed, residual = kernels.add_norm(self.residual, self.residual, self.norm)
        heads = layer.qkv(normed).view(self.tokens, -1, shape.head_dim)
        lines = rows.owners
        turned = kernels.rotate(heads[:, : -shape.kv_heads], (lines, self.angles))
        library.append_paged_kv_cache(
            turned[:, shape.heads :],
            heads[:, -shape.kv_heads :],
            rows.owners,
            rows.positions,
            layer.pages,
            rows.page_indices,
            rows.page_start,
            rows.last_page_length,
            kv_layout="NHD",
        )
        added = layer.output(self.attended)
        normed, residual = kernels.add_norm(added, residual, self.norm)
        layer.down(kernels.gate(layer.gate_up(normed), "silu"))


def compared(shape: Shape, tokens: int, products: DecodeProducts, device: torch.device) -> float:
    """How far our products are from torch's in float32: the worst norm of a difference."""
    torch.manual_seed(tokens)
    step, exact = Step(shape, tokens, device), TorchProducts()
    layer = step.layer()
    found: list[list[torch.Tensor]] = []
    for each in (products, exact):
        for part in layer.pages:
            part.zero_()
        residual = step.residual.clone()
        queries = each.heads(
            layer.qkv,
            residual,
            step.norm,
            step.angles,
            layer.pages,
            step.rows,
            (layer.output, layer.gate_up),
        )
        stored = each.store(layer.qkv, residual, step.norm)
        each.add(layer.output, step.attended, residual)
        gated = each.gate(layer.gate_up, residual, step.norm, "silu")
        each.add(layer.down, step.gated, residual)
        found.append([queries, stored, gated, residual, *(part.clone() for part in layer.pages)])
    return max(
        float((ours.float() - theirs.float()).norm() / theirs.float().norm())
        for ours, theirs in zip(*found, strict=True)
    )


def own_products(platform: Platform, shape: Shape) -> DecodeProducts | None:
    """What this device has of them, for all the tokens that they can take."""
    attention = AttentionShape(1, shape.heads, shape.kv_heads, shape.head_dim, 1.0)
    depths = (shape.hidden, shape.heads * shape.head_dim, shape.intermediate)
    return platform.products(attention, DTYPE, depths, "own")


def layer_seconds(
    shape: Shape, device: Recorder, works: Callable[[Step, Layer], None], tokens: int, read: int
) -> float:
    """Seconds of a layer without attention, recorded over copies so that none is in a cache."""
    clock, step = Clock(device.device), Step(shape, tokens, device.device)
    layers = step.layers(read)

    def work() -> None:
        for layer in layers:
            works(step, layer)

    graph = device.capture(work, device.graph_pool())
    return clock.best(graph.replay) / len(layers)


def best_deals(
    shape: Shape, device: Recorder, tokens: int, read: int
) -> Iterator[tuple[str, float, tuple[int, int], float]]:
    """Of each product: seconds as it is dealt, the best way to deal it, and seconds of that."""
    module = decode_products().spec().build_and_load()
    count = torch.cuda.get_device_properties(device.device).multi_processor_count
    step = Step(shape, tokens, device.device)
    nothing = PlainLinear(step.noise(0, shape.hidden))
    kinds: dict[str, Callable[[DecodeProducts, Layer], object]] = {
        "query, key and value": lambda by, of: by.heads(
            of.qkv, step.residual, step.norm, step.angles, of.pages, step.rows,
            (nothing, nothing),
        ),
        "output": lambda by, of: by.add(of.output, step.attended, step.residual),
        "gate and up": lambda by, of: by.gate(of.gate_up, step.residual, step.norm, "silu"),
        "down": lambda by, of: by.add(of.down, step.gated, step.residual),
    }  # fmt: skip
    layers = step.layers(read)

    def taken(kind: Callable[[DecodeProducts, Layer], object], by: DecodeProducts) -> float:
        graph = device.capture(partial(_all, partial(kind, by), layers), device.graph_pool())
        return Clock(device.device).best(graph.replay) / len(layers)

    for name, kind in kinds.items():
        found: dict[tuple[int, int], float] = {}
        for deal in ((split, many * count) for split in SPLITS for many in (1, 2)):
            try:
                found[deal] = taken(kind, CompiledProducts(module, count, dealt=deal))
            except RuntimeError as error:  # the tokens do not fit
                if "do not fit" not in str(error):
                    raise
        best = min(found, key=lambda deal: found[deal])
        yield name, taken(kind, CompiledProducts(module, count)), best, found[best]


def _all(work: Callable[[Layer], object], layers: list[Layer]) -> None:
    for layer in layers:
        work(layer)
