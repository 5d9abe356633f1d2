"""What a weight of integers means, read from its memory by what `interface.h` says of it."""

from __future__ import annotations

import torch

from engine.native.library import PANEL, Packed
from engine.native.loading import GROUP, GROUP_HALVES

BYTES = (0, 2, 1, 3)  # of a unit: where its four inputs are


def panels(packed: Packed) -> list[torch.Tensor]:
    """`[groups, halves]` of each panel: what is changed there is changed in the weight."""
    groups, columns = packed.in_ // GROUP, GROUP_HALVES[str(packed.form)]
    wide = [min(PANEL, packed.out - first) for first in range(0, packed.out, PANEL)]
    sizes = [groups * columns * each for each in wide]
    return [part.view(groups, -1) for part in packed._packed.split(sizes)]


def dequantized(packed: Packed) -> torch.Tensor:
    """`[out, in]` in float64."""
    if packed.form == "segments":
        return torch.cat([dequantized(each) for each in packed.segments])
    form = str(packed.form)
    found = [_four(one) if form == "int4" else _eight(one, form) for one in panels(packed)]
    return torch.cat([part.reshape(-1, packed.in_) for part in found])


def _eight(panel: torch.Tensor, form: str) -> torch.Tensor:
    groups, width = len(panel), panel.shape[1] // GROUP_HALVES[form]
    integers, meaning = panel.split([GROUP // 2 * width, panel.shape[1] - GROUP // 2 * width], 1)
    bytes_ = integers.contiguous().view(torch.int8).view(groups, GROUP // 4, width, 4)[..., BYTES]
    each = meaning.contiguous().view(torch.float16).double().view(groups, -1)
    if form == "int8_least":
        scale, least = each.view(groups, 1, width, 2, 1).unbind(3)
        return (bytes_ * scale + least).permute(2, 0, 1, 3)
    scale = each.view(groups, -1, width, 1)
    scale = scale.repeat_interleave(GROUP // 4 // scale.shape[1], 1)  # one, or two for a half each
    return (bytes_ * scale).permute(2, 0, 1, 3)


def _four(panel: torch.Tensor) -> torch.Tensor:
    groups, width = len(panel), panel.shape[1] // GROUP_HALVES["int4"]
    integers, meaning = panel.split([GROUP // 4 * width, 2 * width], 1)
    units = integers.contiguous().view(torch.int32).view(groups, GROUP // 8, width)
    each = [units >> (i // 2 * 4 + i % 2 * 16) & 15 for i in range(8)]
    scale, least = (
        meaning.contiguous().view(torch.float16).double().view(groups, 1, width, 2, 1).unbind(3)
    )
    return (torch.stack(each, -1) * scale + least).permute(2, 0, 1, 3)
