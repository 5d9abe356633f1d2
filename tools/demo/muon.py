"""Muon in float32: momentum whose every update is made orthogonal.

torch.optim.Muon computes in bfloat16, which a CPU without bfloat16 instructions does many times
slower. The method and its constants: https://kellerjordan.github.io/posts/muon/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist

A, B, C = 3.4445, -4.7750, 2.0315


def orthogonal(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Return for each of `[n, rows, columns]` about U V^T of its singular value decomposition."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = A * x + (B * square + C * (square @ square)) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Takes matrices, and convolutions as matrices. The update's RMS is 0.2 of the rate, as AdamW's
    is about, so that rates compare.

    Among several processes with equal gradients each makes its share of the updates orthogonal.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            moved = sorted((p for p in group["params"] if p.grad is not None), key=_shape)
            if not moved:
                continue
            rank, ranks = (
                (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
            )
            updates = torch.zeros(
                sum(parameter.numel() for parameter in moved), device=moved[0].device
            )
            parts = updates.split([parameter.numel() for parameter in moved])
            mine = list(zip(moved, parts, strict=True))[rank::ranks]
            for shape, same in groupby(mine, key=lambda pair: _shape(pair[0])):
                self._orthogonalize(list(same), shape, group)
            if ranks > 1:
                dist.all_reduce(updates)
            for parameter, update in zip(moved, parts, strict=True):
                scale = group["lr"] * 0.2 * max(_shape(parameter)) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view_as(parameter), alpha=-scale)

    def _orthogonalize(
        self,
        same: list[tuple[torch.Tensor, torch.Tensor]],
        shape: tuple[int, ...],
        group: dict[str, Any],
    ) -> None:
        averaged = []
        for parameter, _ in same:
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            update = parameter.grad.lerp(state["momentum"], group["momentum"])
            averaged.append(update.flatten(1))
        for (_, part), update in zip(same, orthogonal(torch.stack(averaged)), strict=True):
            part.copy_(update.flatten())


def _shape(parameter: torch.Tensor) -> tuple[int, int]:
    """Return rows and columns; a convolution's windows are its columns."""
    return parameter.shape[0], parameter[0].numel()
