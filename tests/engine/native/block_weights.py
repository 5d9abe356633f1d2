"""Random weights in the blocks of GGUF files: any bytes, but scales that a model could have."""

from __future__ import annotations

import numpy as np
import torch

from engine.native.block_weight import BlockWeight
from engine.native.blocks import KINDS

HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
PRODUCTS = ("Q4_K", "Q5_K", "Q6_K")  # whose scales are


def random_blocks(
    kind: str,
    out: int,
    inputs: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    spread: float | None = None,
) -> BlockWeight:
    """A weight `[out, inputs]` with every value that its integers can have.

    Its standard deviation is about `spread`, where one is given.
    """
    size, random = KINDS[kind], np.random.default_rng(seed)
    blocks = random.integers(0, 256, (out * inputs // size.inputs, size.bytes), dtype=np.uint8)
    drawn = {at: random.normal(0, 0.01, len(blocks)) for at in HALVES.get(kind, (0,))}

    def scaled(by: float) -> BlockWeight:
        for at, scales in drawn.items():
            halves = (scales * by).astype(np.float16)
            blocks[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
        return BlockWeight(kind, torch.from_numpy(blocks.reshape(out, -1)), dtype)

    weight = scaled(1.0)
    return weight if spread is None else scaled(spread / weight.whole().std().item())
