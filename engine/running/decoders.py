"""Which decoder computes a model's stack."""

from __future__ import annotations

from collections.abc import Iterator

from engine.attention.backend import AttentionBackend, CrossAttention
from engine.errors import ModelUnsupported
from engine.layers.decoder import Decoder, TransformersDecoder
from engine.layers.fuse import FusedDecoder, adds_plainly, fusible
from engine.layers.linear import MakeLinear
from engine.models.loader import LoadedModel
from engine.options import EngineOptions
from engine.parallel.ranks import Ranks
from engine.running.platform import Platform

NOT_RECORDED = "are not recorded: set engine.graphs=false"
NOT_OWN = "have no products of ours: set engine.decode_products=library"


def decoder_for(
    loaded: LoadedModel,
    options: EngineOptions,
    platform: Platform,
    backend: AttentionBackend,
    ranks: Ranks | None,
    across: CrossAttention | None = None,
) -> Decoder:
    """The fastest one for this model, these settings and this device.

    Raises ModelUnsupported for a setting that asks for what the layers do not have.
    """
    stack, shape = loaded.stack, loaded.shape
    for reason in refusals(loaded, options, ranks):
        raise ModelUnsupported(reason)
    if loaded.cross is not None or not options.fuse or not fusible(stack):
        return TransformersDecoder(stack, backend, across, loaded.cross)
    whole = platform.decoder(stack, shape, backend)
    if whole is not None:
        return whole
    kernels = platform.kernels()
    make: MakeLinear = kernels.linear
    if options.quantization is not None:
        make = platform.quantized(options.quantization)
    if ranks is not None:
        return FusedDecoder(stack, shape, backend, kernels, make, ranks.sum)
    products = None
    if options.quantization is None and adds_plainly(stack):
        config = stack.config
        depths = (config.hidden_size, shape.heads * shape.head_dim, config.intermediate_size)
        products = platform.products(shape, loaded.dtype, depths, options.decode_products)
    return FusedDecoder(stack, shape, backend, kernels, make, products=products)


def refusals(loaded: LoadedModel, options: EngineOptions, ranks: Ranks | None) -> Iterator[str]:
    """What is asked of layers that are not of the pattern, or shared, and that they do not have."""
    fused = options.fuse and loaded.cross is None and fusible(loaded.stack)
    own = options.decode_products == "own"
    if options.prefill_graphs and (ranks is not None or not fused):
        yield (
            "prompts are recorded between attentions of fused layers, on a single card: set "
            "engine.prefill_graphs=0"
        )
    if options.quantization is not None and not fused:
        yield (
            f"model.quantization={options.quantization} is of fused layers, and those of this "
            "model are not: set model.quantization=null"
        )
    if options.graphs and loaded.cross is not None:
        yield f"layers that attend across {NOT_RECORDED}"
    if ranks is not None and loaded.cross is not None:
        yield f"parallelism.tensor={ranks.size} splits no layers that attend across: set it to 1"
    if ranks is not None and not fused:
        yield f"parallelism.tensor={ranks.size} splits fused layers: set engine.fuse=true"
    if not own:
        return
    if not fused:
        yield f"layers that are not fused {NOT_OWN}"
    elif ranks is not None:
        yield f"layers that several cards share {NOT_OWN}"
    elif not adds_plainly(loaded.stack):
        yield f"layers that norm what they add {NOT_OWN}"
