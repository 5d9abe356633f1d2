"""Attention of towers as transformers' layers call it: by FlashInfer, or of pictures side by side.

By FlashInfer it goes one picture at a time. Towers have heads of 72 or 80, for which there are no
kernels: heads are padded with zeros, which change neither scores nor what is kept of the result.

Pictures side by side are what a recording takes: where one ends is then a matter of values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from engine.attention.limits import HEAD_DIMS
from engine.errors import ModelUnsupported

VISION_ATTENTION = "appliance_vision"
ALL_BY_TORCH = 1 << 62  # patches that no picture has


def attend_with(library: Any, model: nn.Module, least: int) -> None:
    """Give a model's layers the library that they attend with, to pictures of `least` patches on.

    To smaller ones they attend by torch.
    """
    for module in model.modules():
        module.vision_library = library
        module.vision_least = least  # type: ignore[assignment]  # modules take any attribute


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    between: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """query, key, value `[pictures, heads, tokens, head_dim]`; returns tokens before heads.

    `between` is added to scores where one picture is several side by side.
    """
    if between is not None:
        attended = scaled_dot_product_attention(query, key, value, between, scale=scaling)
        return attended.transpose(1, 2).contiguous(), None
    if query.shape[2] < module.vision_least:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    if attention_mask is not None:
        raise ModelUnsupported(
            "this tower's attention has a mask: set engine.vision_attention=sdpa"
        )
    head_dim = query.shape[-1]
    larger = [size for size in HEAD_DIMS if size >= head_dim]
    if not larger:
        raise ModelUnsupported(
            f"no kernel for a tower's heads of {head_dim}: set engine.vision_attention=sdpa"
        )
    scale = head_dim**-0.5 if scaling is None else scaling
    missing = larger[0] - head_dim
    pictures = [
        module.vision_library.single_prefill_with_kv_cache(
            *(pad(part.transpose(0, 1), (0, missing)) for part in picture),
            causal=False,
            sm_scale=scale,
            backend="fa2",  # what FlashInfer would choose on Hopper compiles for minutes
        )[..., :head_dim]
        for picture in zip(query, key, value, strict=True)
    ]
    return torch.stack(pictures), None


AttentionInterface.register(VISION_ATTENTION, _attention)
