"""The products of a step of decoding, each in one kernel with what lies before and behind it.

Ours, in CUDA (`engine/native/decode_products.cuh`): the norm before a product, the rotation of
heads and the store of keys and values, the gate and the addition to the residual behind it cost no
pass of their own. Of few tokens only: more are multiplied faster by the libraries' kernels.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import torch

from engine.attention.rows import DeviceRows
from engine.kernels.own import TILE
from engine.layers.kernels import Activation, Norm
from engine.layers.linear import PlainLinear

MOST_TOKENS = 32
AUTO_TOKENS = 1  # of so many a first version was measured to be faster than the libraries' kernels
SPLITS = (1, 2, 4, 8)  # blocks that may share a product's depth
HELD_BYTES = 64 << 10  # of tokens in a block, at most: two blocks find room on a processor
AHEAD_BYTES = 24 << 20  # of the next weights to the second cache, while attention waits


class DecodeProducts(Protocol):
    """Products of at most `most_tokens` tokens `[tokens, depth]`, by weights `[out, depth]`."""

    most_tokens: int

    def store(self, linear: PlainLinear, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        """The product of x's norm, `[tokens, out]`."""

    def add(self, linear: PlainLinear, x: torch.Tensor, residual: torch.Tensor) -> None:
        """Add the product of x to the residual `[tokens, out]`, where it lies."""

    def gate(
        self, linear: PlainLinear, x: torch.Tensor, norm: Norm, activation: Activation
    ) -> torch.Tensor:
        """activation(left half) * right half of the product of x's norm, `[tokens, out / 2]`.

        There is no bias.
        """

    def heads(
        self,
        linear: PlainLinear,
        x: torch.Tensor,
        norm: Norm,
        angles: torch.Tensor,
        pages: tuple[torch.Tensor, torch.Tensor],
        rows: DeviceRows,
        following: tuple[PlainLinear, PlainLinear],
    ) -> torch.Tensor:
        """The rotated queries of x's norm, `[tokens, heads * head_dim]`; keys and values stored.

        `angles` `[tokens, head_dim]` in float32: cosines, then sines. `pages` keep keys and values,
        `rows` tell where. `following` are the products that come next.
        """


class CompiledProducts:
    """`DecodeProducts` on a card of compute capability 9.0, in bfloat16."""

    def __init__(
        self,
        module: Any,
        processors: int,
        most_tokens: int = MOST_TOKENS,
        dealt: tuple[int, int] | None = None,
    ) -> None:
        """`module` has the functions of `decode_products.cu`; `dealt` is what `deal` would say."""
        self.most_tokens = most_tokens
        self._module = module
        self._processors = processors
        self._dealt = dealt

    def store(self, linear: PlainLinear, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        output = x.new_empty(len(x), linear.out_features)
        self._module.store(
            linear.weight,
            x,
            linear.bias,
            norm.weight,
            norm.epsilon,
            norm.from_one,
            output,
            *self._deal(linear, x),
        )
        return output

    def add(self, linear: PlainLinear, x: torch.Tensor, residual: torch.Tensor) -> None:
        self._module.add(linear.weight, x, linear.bias, residual, *self._deal(linear, x))

    def gate(
        self, linear: PlainLinear, x: torch.Tensor, norm: Norm, activation: Activation
    ) -> torch.Tensor:
        output = x.new_empty(len(x), linear.out_features // 2)
        self._module.gate(
            linear.weight,
            x,
            norm.weight,
            norm.epsilon,
            norm.from_one,
            activation == "gelu_tanh",
            output,
            *self._deal(linear, x),
        )
        return output

    def heads(
        self,
        linear: PlainLinear,
        x: torch.Tensor,
        norm: Norm,
        angles: torch.Tensor,
        pages: tuple[torch.Tensor, torch.Tensor],
        rows: DeviceRows,
        following: tuple[PlainLinear, PlainLinear],
    ) -> torch.Tensor:
        keys, values = pages
        kept = 2 * keys.shape[2] * keys.shape[3]
        queries = x.new_empty(len(x), linear.out_features - kept)
        first, second = (one.weight for one in following)
        first_bytes = min(first.nbytes, AHEAD_BYTES)
        self._module.heads(
            linear.weight,
            x,
            linear.bias,
            norm.weight,
            norm.epsilon,
            norm.from_one,
            queries,
            angles,
            keys,
            values,
            rows.page_start,
            rows.page_indices,
            rows.positions,
            first,
            first_bytes,
            second,
            min(second.nbytes, AHEAD_BYTES - first_bytes),
            *self._deal(linear, x),
        )
        return queries

    def _deal(self, linear: PlainLinear, x: torch.Tensor) -> tuple[int, int]:
        if self._dealt is not None:
            return self._dealt
        tiles = linear.out_features // TILE
        return deal(len(x), linear.in_features, tiles, self._processors)


@cache
def deal(tokens: int, depth: int, tiles: int, processors: int) -> tuple[int, int]:
    """Blocks that share a product's depth, and blocks in all."""
    held = 2 * tokens * depth
    split = next((split for split in SPLITS if held <= split * HELD_BYTES), SPLITS[-1])
    while split < SPLITS[-1] and tiles * split * 2 <= processors:
        split *= 2
    return split, processors if tiles * split >= processors else tiles * split
