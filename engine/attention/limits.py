"""What FlashInfer's kernels can do and the scratch memory they take; known without loading them."""

from __future__ import annotations

MIB = 1 << 20
HEAD_DIMS = (64, 128, 256)  # of both the attention and the rotary kernels
DTYPES = ("float16", "bfloat16")
PLAN_BYTES = 8 * MIB  # what each wrapper plans into; FlashInfer's own choice

# Scratch for partial results of split sequences, shared by all wrappers; FlashInfer's own choice.
# Since 0.7 its planner asks for 17 MiB on 132 processors whatever the groups of heads, and where
# more sequences are recorded for 16 * kv_heads * head_dim float32 each: half of this would not do
# for 1,024 of 8 heads of 128, and then nothing could be recorded.
WORKSPACE_BYTES = 128 * MIB


def unsupported(dtype: str, head_dim: int) -> str | None:
    """Why FlashInfer cannot attend in this type or with heads of this size; None if it can."""
    if dtype not in DTYPES:
        return (
            f"FlashInfer attends in {' and '.join(DTYPES)}, not in {dtype}: set model.dtype="
            "bfloat16, or engine=cpu"
        )
    if head_dim not in HEAD_DIMS:
        known = ", ".join(map(str, HEAD_DIMS))
        return (
            f"FlashInfer has kernels for heads of {known}, this model's have {head_dim}: "
            "set engine=cpu"
        )
    return None
