"""What weights of fewer bits take, of memory and of a machine. Light: the server plans with it."""

from __future__ import annotations

from engine.memory.checkpoint import ITEMSIZE, Checkpoint
from engine.memory.stored_blocks import StoredBlocks, packed_itemsize
from engine.native.blocks import KINDS
from engine.native.choice import NativeUnusable, chosen
from engine.native.loading import DTYPES, GROUP, GROUP_HALVES, MADE
from engine.options import EngineOptions

BLOCK = 16  # outputs that our kernels compute at once
FP8_UNIT = 16  # of a weight's rows and columns
FP8_CAPABILITY = (8, 9)
# a product's scales are less than rounding in fp8; those of integers are of each group
PRODUCT_ITEMSIZE = {"fp8": 1.0} | {form: 2 * GROUP_HALVES[form] / GROUP for form in MADE}
HEAD_ITEMSIZE = PRODUCT_ITEMSIZE["int8"]  # by both kinds of integers
OFF = "set model.quantization=null"


def integers(quantization: str | None) -> bool:
    """Whether weights become integers, by our kernels for the CPU."""
    return quantization is not None and quantization in MADE


def in_words(options: EngineOptions, checkpoint: Checkpoint) -> str | None:
    """What is of fewer bits; None: nothing."""
    blocks, quantization = kept_blocks(options, checkpoint), options.quantization
    if quantization is None:
        return None if blocks is None else f"as stored: {blocks.in_words()}"
    if not integers(quantization):
        return f"layers in {quantization}"
    return "layers in int4, head in int8" if quantization == "int4" else "layers and head in int8"


def kept_blocks(options: EngineOptions, checkpoint: Checkpoint) -> StoredBlocks | None:
    """What of a checkpoint stays the integers it is stored as; None: nothing, it is widened.

    Where `model.quantization` makes other integers of layers and head, the table alone stays.
    """
    sizes = (
        checkpoint.hidden,
        checkpoint.intermediate,
        checkpoint.heads * checkpoint.head_dim,
        checkpoint.kv_heads * checkpoint.head_dim,
        checkpoint.head_dim,
    )
    ours = options.device == "cpu" and options.fuse and settings_without_integers(options) is None
    return checkpoint.blocks if ours and not any(size % BLOCK for size in sizes) else None


def weights_bytes(options: EngineOptions, checkpoint: Checkpoint, towers: int) -> int:
    """Bytes of all weights that are held; `towers` are the parameters of media towers."""
    itemsize, products = ITEMSIZE[options.dtype], checkpoint.product_parameters
    tables = 1 if checkpoint.tied else 2
    others = checkpoint.decoder_parameters + towers - products
    others -= tables * checkpoint.embedding_parameters
    held = others * itemsize + _products_bytes(options, checkpoint)
    held += int(checkpoint.embedding_parameters * table_itemsize(options, checkpoint))
    if not checkpoint.tied:
        held += int(checkpoint.embedding_parameters * _head_itemsize(options, checkpoint))
    return held


def tied_head_bytes(options: EngineOptions, checkpoint: Checkpoint) -> int:
    """Bytes of a head that is packed of the embedding's table, which stays, on the CPU."""
    itemsize = _head_itemsize(options, checkpoint)
    return int(checkpoint.embedding_parameters * itemsize) if checkpoint.tied else 0


def table_itemsize(options: EngineOptions, checkpoint: Checkpoint) -> float:
    """Bytes of a weight of the embedding's table."""
    blocks = kept_blocks(options, checkpoint)
    if blocks is None or blocks.table is None:
        return ITEMSIZE[options.dtype]
    return KINDS[blocks.table].itemsize


def _products_bytes(options: EngineOptions, checkpoint: Checkpoint) -> int:
    itemsize, wanted = ITEMSIZE[options.dtype], options.quantization
    if wanted is not None:
        return int(checkpoint.product_parameters * PRODUCT_ITEMSIZE[wanted])
    blocks = kept_blocks(options, checkpoint)
    if blocks is None:
        return checkpoint.product_parameters * itemsize
    return blocks.packed_bytes + blocks.elements * itemsize


def _head_itemsize(options: EngineOptions, checkpoint: Checkpoint) -> float:
    if integers(options.quantization):
        return HEAD_ITEMSIZE
    blocks = kept_blocks(options, checkpoint) if options.quantization is None else None
    if blocks is None or blocks.head is None:
        return ITEMSIZE[options.dtype]
    return packed_itemsize(blocks.head)


def device_unsupported(quantization: str | None, device: str) -> str | None:
    """Why a device has no such products; None if it does, or none are asked for."""
    if quantization is None or integers(quantization) == (device == "cpu"):
        return None
    needed = "cpu" if integers(quantization) else "cuda"
    return f"model.quantization={quantization} needs engine={needed}"


def unsupported(options: EngineOptions, checkpoint: Checkpoint) -> str | None:
    """Why a checkpoint's products cannot be as they are asked for, and what to do."""
    if options.quantization is None:
        return None
    asked = f"model.quantization={options.quantization}"
    if not options.fuse:
        return f"{asked} is of fused layers: set engine.fuse=true"
    heads = (checkpoint.heads * checkpoint.head_dim, checkpoint.kv_heads * checkpoint.head_dim)
    if integers(options.quantization):
        reason = settings_without_integers(options)
        if reason is not None:
            return f"{asked} {reason}"
        for size in (checkpoint.hidden, checkpoint.intermediate, heads[0]):
            if size % GROUP:
                return f"{asked} is of groups of {GROUP} inputs, a layer here has {size}: {OFF}"
        return None
    if options.dtype != "bfloat16":
        return f"{asked} gives bfloat16, not {options.dtype}: set model.dtype=bfloat16"
    if options.decode_products == "own":
        return f"{asked} has no products of ours: set engine.decode_products=library"
    ranks = options.tensor_parallel
    sizes = [checkpoint.hidden, checkpoint.intermediate // ranks]
    for size in sizes + [count // ranks for count in heads]:
        if size % FP8_UNIT:
            return f"{asked} multiplies weights in units of {FP8_UNIT}, one here has {size}: {OFF}"
    return None


def settings_without_integers(options: EngineOptions) -> str | None:
    """Why no kernels of ours multiply by integers, as far as settings tell; None if some do."""
    if options.tensor_parallel > 1:
        return "is of whole layers: set parallelism.tensor=1"
    if options.dtype not in DTYPES:
        return f"has no kernels of {options.dtype}: set model.dtype=bfloat16"
    if options.native == "torch":
        return "is by our kernels, not torch's operators: set engine.native=auto"
    try:
        chosen(options.native)
    except NativeUnusable as error:
        return f"is by our kernels: {error}"
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
