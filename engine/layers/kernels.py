"""The operations of a fused layer but attention: products, norms, gates, rotation.

Two sets: torch's own operators, and FlashInfer's kernels, which do each of these in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch.nn.functional import gelu, rms_norm, silu

from engine.layers.linear import Linear, PlainLinear, torch_linear

Angles = tuple[torch.Tensor, torch.Tensor]
Activation = Literal["silu", "gelu_tanh"]


@dataclass(slots=True, frozen=True)
class Norm:
    """Root mean square norm over the last dimension; `from_one`: by 1 + weight, as Gemma has it."""

    weight: torch.Tensor
    epsilon: float
    from_one: bool = False


class Kernels(Protocol):
    """What a fused decoder layer needs beside attention."""

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        """A product with this weight `[out, in]`, which it may keep in a layout of its own."""

    def head(self, weight: torch.Tensor) -> Linear:
        """The product that gives logits: in float32 where that costs nothing."""

    def norm(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        """The norm of x."""

    def add_norm(
        self, x: torch.Tensor, residual: torch.Tensor, norm: Norm
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of x + residual, and that sum. Both arguments may be overwritten."""

    def gate(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """activation(left half) * right half of `[tokens, 2 * middle]`; it may be overwritten."""

    def norm_heads(self, heads: torch.Tensor, count: int, norms: tuple[Norm, Norm]) -> torch.Tensor:
        """Norm of each head of `[tokens, heads, head_dim]`: the first `count` by the first norm.

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

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        return torch_linear(weight, bias)

    def head(self, weight: torch.Tensor) -> Linear:
        return self.linear(weight, None)

    def norm(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        weight = norm.weight
        if norm.from_one:  # 1 + weight needs more bits than the weight has
            wide = rms_norm(x.float(), weight.shape, 1 + weight.float(), norm.epsilon)
            return wide.to(x.dtype)
        return rms_norm(x, weight.shape, weight, norm.epsilon)

    def add_norm(
        self, x: torch.Tensor, residual: torch.Tensor, norm: Norm
    ) -> tuple[torch.Tensor, torch.Tensor]:
        residual = x.add_(residual)
        return self.norm(residual, norm), residual

    def gate(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        left, right = gate_up.chunk(2, dim=-1)
        activated = silu(left) if activation == "silu" else gelu(left, approximate="tanh")
        return activated.mul_(right)

    def norm_heads(self, heads: torch.Tensor, count: int, norms: tuple[Norm, Norm]) -> torch.Tensor:
        parts = (heads[:, :count], heads[:, count:])
        return torch.cat([self.norm(p, norm) for p, norm in zip(parts, norms, strict=True)], dim=1)

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

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        return PlainLinear(weight, bias)

    def head(self, weight: torch.Tensor) -> Linear:
        return self.linear(weight, None)

    def norm(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        kernel = self._library.gemma_rmsnorm if norm.from_one else self._library.rmsnorm
        normed: torch.Tensor = kernel(x, norm.weight, norm.epsilon)
        return normed

    def add_norm(
        self, x: torch.Tensor, residual: torch.Tensor, norm: Norm
    ) -> tuple[torch.Tensor, torch.Tensor]:
        library = self._library
        kernel = library.gemma_fused_add_rmsnorm if norm.from_one else library.fused_add_rmsnorm
        kernel(x, residual, norm.weight, norm.epsilon)
        return x, residual

    def gate(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        library = self._library
        kernel = library.silu_and_mul if activation == "silu" else library.gelu_tanh_and_mul
        gated: torch.Tensor = kernel(gate_up)
        return gated

    def norm_heads(self, heads: torch.Tensor, count: int, norms: tuple[Norm, Norm]) -> torch.Tensor:
        for part, norm in zip((heads[:, :count], heads[:, count:]), norms, strict=True):
            if norm.from_one:  # documented for rows, not for rows of heads
                rows = part.reshape(-1, part.shape[-1])
                part.copy_(self.norm(rows, norm).view(part.shape))
            else:
                self._library.rmsnorm(part, norm.weight, norm.epsilon, out=part)
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
