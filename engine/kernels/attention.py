"""FlashInfer's names for its attention kernels, and what generates each.

The names are those of `get_batch_prefill_uri` and its like in FlashInfer's
`jit/attention/modules.py`: tests compare them with what it makes of the same arguments.
"""

from __future__ import annotations

from engine.kernels.module import KernelModule

SHORT = {"float16": "f16", "bfloat16": "bf16", "float8_e4m3fn": "e4m3"}
MODULES = "flashinfer.jit.attention.modules"


def tower(dtype: str, size: int) -> KernelModule:
    """Attention of a tower: both ways, one picture at a time."""
    name = f"single_prefill_with_kv_cache_{_types(dtype, dtype)}_{_sizes(size)}"
    name += f"_{_masks(windowed=False, capped=False)}_f16qk_False"
    types = (f"torch.{dtype}",) * 3
    rest = (size, size, 0, False, False, False)
    return KernelModule(name, f"{MODULES}:gen_single_prefill_module", ("fa2", *types, *rest))


class PagedAttention:
    """Attention over pages for queries of one type and stored keys and values of another."""

    def __init__(self, queries: str, stored: str) -> None:
        self._types = f"{_types(queries, stored)}_dtype_idx_i32"
        types = (f"torch.{queries}", f"torch.{stored}", f"torch.{queries}")
        self._arguments = (*types, "torch.int32")

    def prefill(self, size: int, windowed: bool, capped: bool) -> KernelModule:
        """Prompts, and decoding by tensor cores."""
        name = f"{self._prefill(size, windowed, capped)}_kv_stride_equal"
        rest = (size, size, 0, windowed, capped, False)
        maker = f"{MODULES}:_gen_batch_prefill_primary_module"
        return KernelModule(name, maker, ("fa2", *self._arguments, *rest))

    def hopper_prefill(self, size: int) -> KernelModule:
        """Prompts on Hopper, in layers without a window."""
        rest = (size, size, 0, False, False, False)
        maker = f"{MODULES}:gen_batch_prefill_module"
        name = f"{self._prefill(size, False, False)}_sm90"
        return KernelModule(name, maker, ("fa3", *self._arguments, *rest))

    def decode(self, size: int, windowed: bool, capped: bool) -> KernelModule:
        """Decoding by CUDA cores."""
        name = f"batch_decode_with_kv_cache_{self._types}_{_sizes(size)}"
        name += f"_{_masks(windowed, capped)}"
        rest = (size, size, 0, windowed, capped)
        return KernelModule(name, f"{MODULES}:gen_batch_decode_module", (*self._arguments, *rest))

    def both_ways(self, size: int) -> KernelModule:
        """Prompts with spans whose tokens see each other."""
        name = f"batch_prefill_with_bidirectional_ranges_{self._types}_"
        name += f"head_dim_qk_{size}_head_dim_vo_{size}"
        maker = f"{MODULES}:gen_batch_prefill_bidirectional_ranges_module"
        return KernelModule(name, maker, (*self._arguments, size, size))

    def _prefill(self, size: int, windowed: bool, capped: bool) -> str:
        name = f"batch_prefill_with_kv_cache_{self._types}_{_sizes(size)}"
        return f"{name}_{_masks(windowed, capped)}_f16qk_False"


def _types(queries: str, stored: str) -> str:
    return f"dtype_q_{SHORT[queries]}_dtype_kv_{SHORT[stored]}_dtype_o_{SHORT[queries]}"


def _sizes(size: int) -> str:
    return f"head_dim_qk_{size}_head_dim_vo_{size}_posenc_0"


def _masks(windowed: bool, capped: bool) -> str:
    return f"use_swa_{windowed}_use_logits_cap_{capped}"
