"""Products in eight bits: weights and tokens as float8_e4m3fn, summed in float32.

A scale for each output of the weight, found when it is loaded, and one for each token, found as it
comes: no calibration, any checkpoint. torch._scaled_mm multiplies on cards of compute capability
8.9 and newer; so it does on a CPU, slowly.
"""

from __future__ import annotations

import torch
from torch import nn

from engine.errors import ModelUnsupported
from engine.memory.quantization import FP8_UNIT

TYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(TYPE).max
SMALLEST = 1e-12  # of a row's largest value: a row of zeros has a scale as well
ROWS = 4096  # of a weight that are in float32 at once


class Fp8Linear(nn.Module):
    """`x @ weight.T + bias`, both quantized; the weight given is not kept."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Raises ModelUnsupported for a weight of sizes that the product does not take."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        if self.out_features % FP8_UNIT or self.in_features % FP8_UNIT:
            raise ModelUnsupported(
                f"fp8 multiplies by weights in units of {FP8_UNIT}, and there is one of "
                f"{self.out_features} x {self.in_features}: set model.quantization=null"
            )
        self.weight = torch.empty_like(weight, dtype=TYPE)
        self.scales = torch.empty(1, self.out_features, device=weight.device)
        for start in range(0, self.out_features, ROWS):
            rows = slice(start, start + ROWS)
            self.weight[rows], scales = quantized(weight[rows])
            self.scales[0, rows] = scales[:, 0]
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x `[tokens, in_features]` to `[tokens, out_features]`, in the same type."""
        values, scales = quantized(x)
        return torch._scaled_mm(
            values,
            self.weight.t(),
            scale_a=scales,
            scale_b=self.scales,
            bias=self.bias,
            out_dtype=x.dtype,
            use_fast_accum=True,
        )


def quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of `[rows, depth]` in eight bits, and what to multiply each by, `[rows, 1]` float32."""
    largest = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True, dtype=torch.float32)
    scales = largest.clamp_min_(SMALLEST).div_(LARGEST)
    return (x / scales).to(TYPE), scales
