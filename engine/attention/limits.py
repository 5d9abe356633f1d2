"""What FlashInfer's kernels can do and the scratch memory they take; known without loading them."""

from __future__ import annotations

from collections.abc import Sequence

MIB = 1 << 20
HEAD_DIMS = (64, 128, 256)  # of both the attention and the rotary kernels
DTYPES = ("float16", "bfloat16")
TENSOR_CORE_GROUP = 4  # from this many query heads a key head on, tensor cores decode faster
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


def decodes_by_tensor_cores(heads: int, kv_heads: int) -> bool:
    """Whether decoding takes the kernels for prompts, which use tensor cores."""
    return heads // kv_heads >= TENSOR_CORE_GROUP


def hopper_lacks(
    capability: tuple[int, int],
    kv_itemsize: int,
    soft_cap: float | None,
    windows: Sequence[int | None],
) -> str | None:
    """Why prompts cannot be attended to by FlashInfer's kernels for Hopper; None if they can.

    `windows` are those of the layers, none of them having one if it is empty.
    """
    if capability != (9, 0):
        return "FlashInfer's fa3 is for cards of compute capability 9.0"
    if kv_itemsize == 1:
        return "FlashInfer's fa3 reads no keys and values of eight bits"
    if soft_cap is not None:
        return "FlashInfer's fa3 is not compiled for capped scores"
    if all(window is not None for window in windows or (None,)):
        return "FlashInfer's fa3 is not compiled for windows, and every layer has one"
    return None
