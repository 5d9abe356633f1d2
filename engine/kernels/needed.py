"""Which kernels a model takes on a card, by its config.json and the engine's settings alone.

The only such list: `task=kernels` compiles it, `task=plan` counts it and the engine has all of it
before it takes a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from engine.attention.limits import HEAD_DIMS, decodes_by_tensor_cores, hopper_lacks
from engine.errors import ModelUnsupported
from engine.kernels.attention import PagedAttention, tower
from engine.kernels.module import KernelModule
from engine.kernels.own import decode_products, unsupported
from engine.memory.checkpoint import ITEMSIZE, head_sizes
from engine.models.family import Family
from engine.models.windows import layer_windows
from engine.options import EngineOptions

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
GEMMA_ACTIVATION, ACTIVATION = "gelu_pytorch_tanh", "silu"  # where config.json has none
PICTURES = ("image", "video")
SPARED = {"prefill_attention": "fa2", "decode_products": "library"}  # and what does instead

PAGE = KernelModule("page", "flashinfer.jit.page:gen_page_module")
NORM = KernelModule("norm", "flashinfer.jit.norm:gen_norm_module")
ROPE = KernelModule("rope", "flashinfer.jit.rope:gen_rope_module")
SAMPLING = KernelModule("sampling", "flashinfer.jit.sampling:gen_sampling_module")
BLACKWELL_SOFTMAX = KernelModule(
    "blackwell_softmax", "flashinfer.jit.cake_blackwell_softmax:gen_blackwell_softmax_module"
)
BLACKWELL = ((10, 0), (10, 3))  # for which FlashInfer has a softmax of its own


def needed(
    family: Family, options: EngineOptions, capabilities: Sequence[tuple[int, int]]
) -> tuple[KernelModule, ...]:
    """All that the engine will ask for, on cards of these compute capabilities.

    Of what a setting takes by `auto`, what it takes where everything is compiled.
    """
    text = {name: value for name, value in family.text_config().items() if value is not None}
    try:
        (heads, kv_heads, size), windows = head_sizes(text), layer_windows(text)
    except KeyError as error:
        raise ModelUnsupported(f"{family.folder}/config.json lacks {error.args[0]}") from error
    cap = text.get("attn_logit_softcapping")
    stored = options.kv_dtype or options.dtype
    paged = PagedAttention(options.dtype, stored)
    modules = [PAGE, SAMPLING]
    if any(capability in BLACKWELL for capability in capabilities):
        modules.append(BLACKWELL_SOFTMAX)
    gate = ACTIVATIONS.get(activation(text))
    if options.fuse and gate is not None:
        modules += [NORM, ROPE, gating(gate)]
    tensor_cores = decodes_by_tensor_cores(heads, kv_heads)
    for windowed in sorted({window is not None for window in windows or (None,)}):
        modules.append(paged.prefill(size, windowed, bool(cap)))
        if not tensor_cores:
            modules.append(paged.decode(size, windowed, bool(cap)))
    itemsize = 1 if options.kv_dtype else ITEMSIZE[options.dtype]
    if options.prefill_attention != "fa2" and any(
        hopper_lacks(capability, itemsize, cap, windows) is None for capability in capabilities
    ):
        modules.append(paged.hopper_prefill(size))
    if decodes_by_own(text, options, heads * size, size, capabilities):
        modules.append(decode_products())
    if set(family.both_ways) & set(options.modalities):
        modules.append(paged.both_ways(size))
    if options.vision_attention != "sdpa":
        sizes = {tower_head_dim(family, one) for one in options.modalities if one in PICTURES}
        modules += [tower(options.dtype, size) for size in sorted(sizes) if size]
    return tuple(modules)


def required(
    family: Family, options: EngineOptions, capabilities: Sequence[tuple[int, int]]
) -> tuple[KernelModule, ...]:
    """What a start does not do without: what a setting takes by `auto` it takes if it is there."""
    least: dict[str, Any] = {
        name: usual for name, usual in SPARED.items() if getattr(options, name) == "auto"
    }
    return needed(family, replace(options, **least), capabilities)


def decodes_by_own(
    text: dict[str, Any],
    options: EngineOptions,
    wide: int,
    size: int,
    capabilities: Sequence[tuple[int, int]],
) -> bool:
    """Whether a card of these has decoding by our products: what the engine looks for, too."""
    if options.decode_products == "library" or not options.fuse or options.tensor_parallel > 1:
        return False
    if str(text.get("model_type", "")).startswith("gemma") or text.get("mlp_bias"):
        return False  # it norms what it adds, or has a bias at the gate
    depths = (text["hidden_size"], wide, text["intermediate_size"])
    return any(
        unsupported(capability, options.dtype, size, depths) is None for capability in capabilities
    )


def activation(text: dict[str, object]) -> str:
    """What a decoder's config.json calls the function in its gates, or leaves to transformers."""
    kind = str(text.get("model_type", ""))
    gemma = kind.startswith("gemma")
    name = text.get("hidden_activation" if gemma else "hidden_act")
    return str(name or (GEMMA_ACTIVATION if gemma else ACTIVATION))


def tower_head_dim(family: Family, modality: str) -> int:
    """The size that a tower's heads are padded to; 0 if there is none so large."""
    size = family.tower_width(modality)[0] // family.tower_heads(modality)
    return next((known for known in HEAD_DIMS if known >= size), 0)


def gating(name: str) -> KernelModule:
    return KernelModule(
        f"{name}_and_mul", "flashinfer.jit.activation:gen_act_and_mul_module", (name,)
    )
