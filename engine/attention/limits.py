"""What FlashInfer's kernels can do and the scratch memory they take; known without loading them."""

from __future__ import annotations

MIB = 1 << 20
HEAD_DIMS = (64, 128, 256)  # of both the attention and the rotary kernels
DTYPES = ("float16", "bfloat16")
PLAN_BYTES = 8 * MIB  # what each wrapper plans into; FlashInfer's own choice


def unsupported(dtype: str, head_dim: int) -> str | None:
    """Why FlashInfer cannot attend in this type or with heads of this size; None if it can."""
    if dtype not in DTYPES:
        return (
            f"FlashInfer attends in {' and '.join(DTYPES)}, not in {dtype}: set model.dtype="
            "bfloat16, or engine.device=cpu"
        )
    if head_dim not in HEAD_DIMS:
        known = ", ".join(map(str, HEAD_DIMS))
        return (
            f"FlashInfer has kernels for heads of {known}, this model's have {head_dim}: "
            "set engine.device=cpu"
        )
    return None


def workspace_bytes(heads: int, kv_heads: int) -> int:
    """Scratch for partial results of split sequences, shared by all wrappers.

    FlashInfer recommends 128 MiB. Groups that are no power of two, Qwen's 6 and 7, pad their tiles
    and have needed more.
    """
    group = heads // kv_heads
    return (128 if group & (group - 1) == 0 else 512) * MIB
