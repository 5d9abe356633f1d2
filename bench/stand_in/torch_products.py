"""The products of a decoding step by torch, in the place of our kernels, on any device."""

from __future__ import annotations

import torch
from torch import nn

from bench.stand_in import torch_flashinfer
from engine.attention.rows import DeviceRows
from engine.layers.decode_products import MOST_TOKENS
from engine.layers.kernels import Activation, Norm
from engine.layers.linear import PlainLinear


class TorchProducts:
    """`DecodeProducts` in float32; `calls` are counted by name."""

    most_tokens = MOST_TOKENS

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}

    def store(self, linear: PlainLinear, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        self._called("store", x)
        return _product(linear, _normed(x, norm)).to(x.dtype)

    def add(self, linear: PlainLinear, x: torch.Tensor, residual: torch.Tensor) -> None:
        self._called("add", x)
        residual.copy_(residual.float() + _product(linear, x))

    def gate(
        self, linear: PlainLinear, x: torch.Tensor, norm: Norm, activation: Activation
    ) -> torch.Tensor:
        self._called("gate", x)
        assert linear.bias is None
        product = _product(linear, _normed(x, norm))
        kernel = getattr(torch_flashinfer, f"{activation}_and_mul")
        gated: torch.Tensor = kernel(product)
        return gated.to(x.dtype)

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
        self._called("heads", x)
        kept, page_size = pages[0], pages[0].shape[1]
        kv_heads, size = kept.shape[2:]
        heads = _product(linear, _normed(x, norm)).view(len(x), -1, size)
        cosine, sine = (part[:, None] for part in angles.chunk(2, dim=-1))
        left, right = heads[:, :-kv_heads].chunk(2, dim=-1)
        turned = torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1)
        places = rows.positions.long()[: len(x)]
        page = rows.page_indices[rows.page_start[: len(x)].long() + places // page_size].long()
        for part, values in zip(pages, (turned[:, -kv_heads:], heads[:, -kv_heads:]), strict=True):
            part[page, places % page_size] = values.to(part.dtype)
        return turned[:, :-kv_heads].flatten(1).to(x.dtype)

    def _called(self, name: str, x: torch.Tensor) -> None:
        assert len(x) <= MOST_TOKENS
        self.calls[name] = self.calls.get(name, 0) + 1


def _product(linear: PlainLinear, x: torch.Tensor) -> torch.Tensor:
    bias = None if linear.bias is None else linear.bias.float()
    return nn.functional.linear(x.float(), linear.weight.float(), bias)


def _normed(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    weight = norm.weight.float()
    return torch_flashinfer.rmsnorm(
        x.float(), weight + 1 if norm.from_one else weight, norm.epsilon
    )
