"""Sizes of FlashInfer's scratch memory, known before it is loaded."""

from __future__ import annotations

MIB = 1 << 20
INT_WORKSPACE_BYTES = 8 * MIB  # what each wrapper plans into; FlashInfer's own choice


def workspace_bytes(heads: int, kv_heads: int) -> int:
    """Scratch for partial results of split sequences, shared by all wrappers.

    FlashInfer recommends 128 MiB. Groups that are no power of two, Qwen's 6 and 7, pad their tiles
    and have needed more.
    """
    group = heads // kv_heads
    return (128 if group & (group - 1) == 0 else 512) * MIB
