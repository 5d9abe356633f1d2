"""The part of `flashinfer.sampling` that is used, in plain torch."""

from __future__ import annotations

import torch


def softmax(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    assert logits.dtype == temperature.dtype == torch.float32
    assert logits.is_contiguous()
    return (logits / temperature[:, None]).softmax(dim=-1)


def top_k_renorm_probs(
    probs: torch.Tensor, top_k: torch.Tensor, is_deterministic: bool = False
) -> torch.Tensor:
    assert top_k.dtype == torch.int32
    least = probs.sort(dim=-1, descending=True).values.gather(1, top_k[:, None].long() - 1)
    kept = torch.where(probs >= least, probs, 0.0)
    return kept / kept.sum(dim=-1, keepdim=True)


def top_p_renorm_probs(
    probs: torch.Tensor, top_p: torch.Tensor, is_deterministic: bool = False
) -> torch.Tensor:
    assert top_p.dtype == torch.float32
    values, order = probs.sort(dim=-1, descending=True)
    before = values.cumsum(dim=-1) - values
    values = torch.where((before < top_p[:, None]) | (before == 0), values, 0.0)
    kept = torch.zeros_like(probs).scatter(1, order, values)
    return kept / kept.sum(dim=-1, keepdim=True)


def sampling_from_probs(
    probs: torch.Tensor, *, seed: torch.Tensor, offset: torch.Tensor
) -> torch.Tensor:
    assert seed.dtype == offset.dtype == torch.int64
    assert len(seed) == len(offset) == 1
    # like the kernel's, the numbers depend on seed, offset and row alone
    generator = torch.Generator().manual_seed(int(seed[0]) * 1_000_003 + int(offset[0]))
    points = torch.rand(len(probs), 1, generator=generator).to(probs.device)
    cumulative = probs.cumsum(dim=-1)
    drawn = torch.searchsorted(cumulative, points * cumulative[:, -1:], right=True)
    return drawn.clamp_(max=probs.shape[-1] - 1)[:, 0].int()
