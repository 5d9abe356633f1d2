"""What weights of fewer bits take, of memory and of a machine. Light: the server plans with it."""

from __future__ import annotations

from engine.memory.checkpoint import ITEMSIZE, Checkpoint
from engine.options import EngineOptions

FP8_UNIT = 16  # of a weight's rows and columns
FP8_CAPABILITY = (8, 9)
PRODUCT_ITEMSIZE = {"fp8": 1}
OFF = "set model.quantization=null"


def weights_bytes(options: EngineOptions, checkpoint: Checkpoint, towers: int) -> int:
    """Bytes of all weights that are held; `towers` are the parameters of media towers."""
    itemsize = ITEMSIZE[options.dtype]
    held = (checkpoint.decoder_parameters + towers) * itemsize
    if options.quantization is not None:  # a product's scales are less than rounding
        saved = itemsize - PRODUCT_ITEMSIZE[options.quantization]
        held -= checkpoint.product_parameters * saved
    return held


def unsupported(options: EngineOptions, checkpoint: Checkpoint) -> str | None:
    """Why a checkpoint's products cannot be as they are asked for, and what to do."""
    if options.quantization is None:
        return None
    asked = f"model.quantization={options.quantization}"
    if not options.fuse:
        return f"{asked} is of fused layers: set engine.fuse=true"
    if options.dtype != "bfloat16":
        return f"{asked} gives bfloat16, not {options.dtype}: set model.dtype=bfloat16"
    if options.decode_products == "own":
        return f"{asked} has no products of ours: set engine.decode_products=library"
    ranks = options.tensor_parallel
    heads = (checkpoint.heads, checkpoint.kv_heads)
    sizes = [checkpoint.hidden, checkpoint.intermediate // ranks]
    for size in sizes + [count * checkpoint.head_dim // ranks for count in heads]:
        if size % FP8_UNIT:
            return f"{asked} multiplies weights in units of {FP8_UNIT}, one here has {size}: {OFF}"
    return None


def card_unsupported(quantization: str | None, capability: tuple[int, int]) -> str | None:
    """Why a card has no such products; None if it does, or none are asked for."""
    if quantization is None or capability >= FP8_CAPABILITY:
        return None
    there, needed = (".".join(map(str, one)) for one in (capability, FP8_CAPABILITY))
    return (
        f"model.quantization={quantization} needs a card of compute capability {needed} or newer, "
        f"and this one's is {there}: {OFF}"
    )
