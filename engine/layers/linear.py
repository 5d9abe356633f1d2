"""Matrix products with weights in the layout that the device likes best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn


class PackedLinear(nn.Module):
    """`x @ weight.T + bias` with the weight reordered once into oneDNN's blocked layout (CPU).

    The reordered copy replaces the plain one. From torch's own inductor lowering
    (`torch/_inductor/mkldnn_ir.py`).
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self.bias = None if bias is None else bias.contiguous()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x `[tokens, in_features]` to `[tokens, out_features]`."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class PlainLinear(nn.Module):
    """The same with the weight as it is, for devices and builds without oneDNN."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x `[tokens, in_features]` to `[tokens, out_features]`."""
        return nn.functional.linear(x, self.weight, self.bias)


class Linear(Protocol):
    """A product with a weight of its own."""

    out_features: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x `[tokens, in_features]` to `[tokens, out_features]`."""


MakeLinear = Callable[[torch.Tensor, torch.Tensor | None], Linear]  # weight, bias


def fuse_linears(make: MakeLinear, *linears: nn.Linear) -> Linear:
    """One product with the outputs of several `nn.Linear` side by side; theirs are emptied."""
    weights = [linear.weight.data for linear in linears]
    biases = [linear.bias for linear in linears]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    bias = None
    if any(b is not None for b in biases):
        bias = torch.cat(
            [
                w.new_zeros(w.shape[0]) if b is None else b.data
                for w, b in zip(weights, biases, strict=True)
            ]
        )
    for linear in linears:
        linear.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)
    return make(weight, bias)


def torch_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """The fastest of torch's products for this weight's device."""
    packed = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if packed and (weight.dtype == torch.float32 or _packs_half(weight.dtype)):
        return PackedLinear(weight, bias)
    return PlainLinear(weight, bias)


def _packs_half(dtype: torch.dtype) -> bool:
    """Whether oneDNN reorders weights of this dtype: bfloat16 where the CPU has AVX-512 or more."""
    return dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
