"""The operations between matrix products, as the fused layers ask for them.

Two sets: torch's own operators, and FlashInfer's kernels, which do each of these in one pass.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.nn.functional import rms_norm, silu

Angles = tuple[torch.Tensor, torch.Tensor]


class Kernels(Protocol):
    """What a fused decoder layer needs beside products and attention."""

    def norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Root mean square norm over the last dimension of x."""

    def add_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of x + residual, and that sum. Both arguments may be overwritten."""

    def gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(left half) * right half of `[tokens, 2 * middle]`, which may be overwritten."""

    def norm_heads(
        self,
        heads: torch.Tensor,
        count: int,
        weights: tuple[torch.Tensor, torch.Tensor],
        epsilon: float,
    ) -> torch.Tensor:
        """Norm of each head of `[tokens, heads, head_dim]`: the first `count` by the first weight.

        The argument may be overwritten.
        """

    def angles(self, rotary: Any, like: torch.Tensor, positions: torch.Tensor) -> Angles:
        """What `rotate` needs of a step, for all layers, from transformers' rotary module.

        positions `[rows, tokens]`; with more than one row, sections of the head take turns.
        """

    def rotate(self, heads: torch.Tensor, angles: Angles) -> torch.Tensor:
        """Rotary embedding of `[tokens, heads, head_dim]`. The argument may be overwritten."""


def cos_and_sin(
    rotary: Any, like: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine `[tokens, head_dim]` in the type of `like`."""
    cos, sin = rotary(like, positions if len(positions) == 1 else positions[:, None])
    return cos.view(-1, cos.shape[-1]), sin.view(-1, sin.shape[-1])


class TorchKernels:
    """`Kernels` on any device."""

    def norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        return rms_norm(x, weight.shape, weight, epsilon)

    def add_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        residual = x.add_(residual)
        return rms_norm(residual, weight.shape, weight, epsilon), residual

    def gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        middle = gate_up.shape[-1] // 2
        return silu(gate_up[:, :middle]).mul_(gate_up[:, middle:])

    def norm_heads(
        self,
        heads: torch.Tensor,
        count: int,
        weights: tuple[torch.Tensor, torch.Tensor],
        epsilon: float,
    ) -> torch.Tensor:
        parts = (heads[:, :count], heads[:, count:])
        normed = [
            self.norm(part, weight, epsilon) for part, weight in zip(parts, weights, strict=True)
        ]
        return torch.cat(normed, dim=1)

    def angles(self, rotary: Any, like: torch.Tensor, positions: torch.Tensor) -> Angles:
        """`[tokens, 1, head_dim]` each: cosine, and sine with its first half negated."""
        cos, sin = cos_and_sin(rotary, like, positions)
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)
        return cos[:, None], sin[:, None]

    def rotate(self, heads: torch.Tensor, angles: Angles) -> torch.Tensor:
        swapped = heads.roll(heads.shape[-1] // 2, dims=-1)
        return torch.addcmul(heads * angles[0], swapped, angles[1])


class FlashInferKernels:
    """`Kernels` by FlashInfer: float16 and bfloat16 on CUDA, in place wherever that is offered."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        normed: torch.Tensor = self._library.rmsnorm(x, weight, epsilon)
        return normed

    def add_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._library.fused_add_rmsnorm(x, residual, weight, epsilon)
        return x, residual

    def gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gated: torch.Tensor = self._library.silu_and_mul(gate_up)
        return gated

    def norm_heads(
        self,
        heads: torch.Tensor,
        count: int,
        weights: tuple[torch.Tensor, torch.Tensor],
        epsilon: float,
    ) -> torch.Tensor:
        for part, weight in zip((heads[:, :count], heads[:, count:]), weights, strict=True):
            self._library.rmsnorm(part, weight, epsilon, out=part)
        return heads

    def angles(self, rotary: Any, like: torch.Tensor, positions: torch.Tensor) -> Angles:
        """The line of each token, and the lines: `[tokens, head_dim]` float32, cosine then sine.

        Gathering per step serves every kind of positions: M-RoPE takes a section of the head from
        each row, and there is no kernel for that.
        """
        cos, sin = cos_and_sin(rotary, like.new_empty(0, dtype=torch.float32), positions)
        half = cos.shape[-1] // 2  # the halves repeat
        lines = torch.arange(len(cos), dtype=torch.int32, device=cos.device)
        return lines, torch.cat((cos[:, :half], sin[:, :half]), dim=-1)

    def rotate(self, heads: torch.Tensor, angles: Angles) -> torch.Tensor:
        """heads may be a part of a wider tensor, its rows apart; it is rotated where it lies."""
        lines, cache = angles
        queries, keys = heads[:, :-1].flatten(1), heads[:, -1:].flatten(1)  # all are treated alike
        self._library.apply_rope_with_cos_sin_cache_inplace(
            lines, queries, keys, heads.shape[-1], cache, is_neox=True
        )
        return heads
