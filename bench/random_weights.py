"""Random weights with which a mistake anywhere in a model shows in its logits."""

from __future__ import annotations

import math

import torch
from torch import nn

EMBEDDINGS = 0.7  # standard deviation


def randomise(model: nn.Module, seed: int, embeddings: float = EMBEDDINGS) -> None:
    """Weights of a size that lets every layer and every image show in the logits.

    `embeddings` is the standard deviation of the embeddings.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1 and name.endswith("bias"):
            value = 0.1 * noise
        elif parameter.ndim == 1:
            value = 1 + 0.1 * noise
        elif "embed" in name and "patch" not in name:
            value = embeddings * noise
        elif "lm_head" in name:
            value = 0.4 * noise
        else:
            value = 1.3 * noise / math.sqrt(parameter[0].numel())
        parameter.data.copy_(value)
