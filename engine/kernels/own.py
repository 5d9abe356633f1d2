"""Kernels of our own, which FlashInfer compiles and finds as it does its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from engine.kernels.module import KernelModule

NATIVE = Path(__file__).resolve().parent.parent / "native"
SOURCES = ("decode_products.cu", "decode_products.cuh", "card.cuh")
CAPABILITY = (9, 0)  # that they are written for: clusters, 227 KiB of shared memory
UNIT, TILE = 64, 16  # of a product's depth, and of its weight's rows


def unsupported(
    capability: tuple[int, int], dtype: str, head_dim: int, depths: Sequence[int]
) -> str | None:
    """Why the products of a decoding step are not ours to compute; None if they are.

    `depths` are the widths of hidden states, of all heads together and of the middle of the MLP.
    """
    if capability != CAPABILITY:
        return "our products are for cards of compute capability 9.0"
    if dtype != "bfloat16":
        return f"our products are of bfloat16, not of {dtype}"
    if head_dim % TILE or any(depth % UNIT for depth in depths):
        return f"our products have depths in units of {UNIT} and heads in units of {TILE}"
    return None


@cache
def products_name() -> str:
    """The name of the products' module, another for each state of its sources."""
    digest = hashlib.sha256()
    for source in SOURCES:
        digest.update((NATIVE / source).read_bytes())
    return f"appliance_decode_products_{digest.hexdigest()[:12]}"


def products_spec() -> Any:
    """FlashInfer's description of that module."""
    from flashinfer.jit.core import gen_jit_spec

    return gen_jit_spec(products_name(), [NATIVE / SOURCES[0]], use_fast_math=False)


def decode_products() -> KernelModule:
    """The products of a decoding step."""
    return KernelModule(products_name(), f"{__name__}:products_spec")
