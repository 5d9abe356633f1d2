"""What a device offers to compute with: attention, kernels, choice of tokens."""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import nn

from engine.attention.backend import AttentionBackend, AttentionShape, CrossAttention, KVCache
from engine.attention.cross_flashinfer import FlashInferCrossAttention
from engine.attention.flashinfer import (
    FlashInferAttention,
    check_supported,
    hopper_unsupported,
)
from engine.device.cards import require_card
from engine.device.device import Cuda, Device
from engine.device.toolchain import environment
from engine.errors import ModelUnsupported
from engine.kernels.attention import PagedAttention
from engine.kernels.module import KernelModule
from engine.kernels.own import decode_products, unsupported
from engine.kernels.start import Progress, absent, compile_no_more, hand_over, provide
from engine.layers.decode_products import (
    AUTO_TOKENS,
    MOST_TOKENS,
    CompiledProducts,
    DecodeProducts,
)
from engine.layers.decoder import Decoder
from engine.layers.fp8 import Fp8Linear
from engine.layers.kernels import FlashInferKernels, Kernels
from engine.layers.linear import MakeLinear
from engine.layers.vision_attention import attend_with
from engine.memory.quantization import card_unsupported, device_unsupported
from engine.models.loader import LoadedModel
from engine.native.block_weight import widen
from engine.options import EngineOptions
from engine.running.cpu_platform import CpuPlatform
from engine.running.turns import Turns
from engine.sampling.device_sampler import DeviceSampler
from engine.sampling.sampler import Sampler

logger = logging.getLogger(__name__)


class Platform(Device, Protocol):
    """A device, and all that differs between devices in a step."""

    @property
    def overlaps(self) -> bool:
        """Whether a step is launched before the host knows the tokens of the one before."""

    @property
    def warms_up(self) -> bool:
        """Whether kernels are compiled or chosen when they first run.

        The engine then computes its largest steps before it takes requests.
        """

    def attention(
        self, shape: AttentionShape, cache: KVCache, dtype: torch.dtype, prefill: str = "fa2"
    ) -> AttentionBackend:
        """Attention over `cache`, for queries of `dtype`. Raises ModelUnsupported.

        `prefill` names the kernels for prompts, where a device has several.
        """

    def attention_across(self, shape: AttentionShape, cache: KVCache) -> CrossAttention:
        """Attention to states beside the sequences, whose keys and values are in `cache`."""

    def kernels(self) -> Kernels:
        """The operations of fused layers."""

    def prepare_layers(self, loaded: LoadedModel, options: EngineOptions) -> None:
        """Choose what computes the layers of this model. Raises ModelUnsupported."""

    def decoder(
        self, stack: Any, shape: AttentionShape, backend: AttentionBackend
    ) -> Decoder | None:
        """A whole stack by kernels that know all of it; None: layer by layer."""

    def encoding(self) -> AbstractContextManager[None]:
        """Around the work of media towers."""

    def tower_turns(self) -> Turns[list[torch.Tensor]] | None:
        """By what towers give way to steps between their layers; None: they do not."""

    def quantized(self, quantization: str) -> MakeLinear:
        """What makes products with weights of `model.quantization`. Raises ModelUnsupported."""

    def products(
        self, shape: AttentionShape, dtype: torch.dtype, depths: tuple[int, ...], wanted: str
    ) -> DecodeProducts | None:
        """Our kernels for decoding layers of these sizes; None: the others do it.

        `wanted` is `engine.decode_products`; of `own` ModelUnsupported is raised where there are
        none.
        """

    def sampler(self, eos_ids: frozenset[int], vocabulary: int) -> Sampler:
        """What chooses tokens; `eos_ids` end an answer."""

    def prepare_kernels(self, options: EngineOptions, progress: Progress) -> None:
        """Have all that is compiled for these options, before anything runs.

        Raises KernelsMissing or KernelsUnfit, in one line.
        """

    def seal_kernels(self, options: EngineOptions) -> None:
        """Compile nothing from now on: a request is about to come."""

    def prepare_towers(self, model: nn.Module, least: int) -> None:
        """Let towers attend by kernels of this device to pictures of `least` patches on.

        Only towers loaded with `VISION_ATTENTION` do so.
        """


class FlashInferOffers:
    """What FlashInfer has of `Platform`, or a library with its interface, on any device."""

    overlaps = True
    warms_up = True

    library: Any

    def attention(
        self: FlashInferPlatform,
        shape: AttentionShape,
        cache: KVCache,
        dtype: torch.dtype,
        prefill: str = "fa2",
    ) -> AttentionBackend:
        hopper = prefill == "fa3"
        return FlashInferAttention(shape, cache, self, dtype, self.library, hopper=hopper)

    def attention_across(
        self: FlashInferPlatform, shape: AttentionShape, cache: KVCache
    ) -> CrossAttention:
        return FlashInferCrossAttention(shape, cache, self, self.library)

    def kernels(self) -> Kernels:
        return FlashInferKernels(self.library)

    def quantized(self, quantization: str) -> MakeLinear:
        reason = device_unsupported(quantization, "cuda")
        if reason is not None:
            raise ModelUnsupported(reason)
        return Fp8Linear

    def prepare_layers(
        self: FlashInferPlatform, loaded: LoadedModel, options: EngineOptions
    ) -> None:
        """None of its kernels multiplies by a file's integers; a quantized layer widens its own."""
        later = loaded.stack.layers.parameters() if options.quantization is not None else ()
        widen(loaded.model, self.device, {id(parameter) for parameter in later})

    def decoder(
        self, stack: Any, shape: AttentionShape, backend: AttentionBackend
    ) -> Decoder | None:
        return None

    def encoding(self) -> AbstractContextManager[None]:
        return nullcontext()

    def tower_turns(self) -> None:
        return None

    def sampler(self: FlashInferPlatform, eos_ids: frozenset[int], vocabulary: int) -> Sampler:
        return DeviceSampler(eos_ids, vocabulary, self, self.library.sampling)

    def prepare_kernels(self, options: EngineOptions, progress: Progress) -> None:
        return None

    def seal_kernels(self, options: EngineOptions) -> None:
        return None

    def prepare_towers(self, model: nn.Module, least: int) -> None:
        attend_with(self.library, model, least)


class FlashInferPlatform(Device, Protocol):
    """A device with such a library."""

    library: Any


class CudaPlatform(FlashInferOffers, Cuda):
    """`Platform` of one CUDA device. Kernels are FlashInfer's unless a library is given."""

    def __init__(self, index: int = 0, library: Any | None = None) -> None:
        super().__init__(index)
        self._limited = library is None  # FlashInfer itself has kernels for some shapes only
        self._there: frozenset[str] | None = None  # compiled kernels, once they were looked for
        if library is None:  # which reads its environment when it is imported
            os.environ.update(environment(torch.cuda.get_device_capability(index)))
            library = import_module("flashinfer")
        self.library = library

    def attention(
        self, shape: AttentionShape, cache: KVCache, dtype: torch.dtype, prefill: str = "fa2"
    ) -> AttentionBackend:
        if self._limited:
            check_supported(shape, dtype)
        if prefill != "fa2":
            prefill = self._prefill(shape, cache, dtype, required=prefill == "fa3")
        return super().attention(shape, cache, dtype, prefill)

    def quantized(self, quantization: str) -> MakeLinear:
        reason = card_unsupported(quantization, torch.cuda.get_device_capability(self.device))
        if reason is not None:
            raise ModelUnsupported(reason)
        return super().quantized(quantization)

    def products(
        self, shape: AttentionShape, dtype: torch.dtype, depths: tuple[int, ...], wanted: str
    ) -> DecodeProducts | None:
        if wanted == "library" or not self._limited:
            return None
        properties = torch.cuda.get_device_properties(self.device)
        capability = (properties.major, properties.minor)
        reason = unsupported(capability, _name(dtype), shape.head_dim, depths)
        if reason is not None and wanted == "own":
            raise ModelUnsupported(f"{reason}: set engine.decode_products=library")
        if reason is None and wanted == "auto":
            reason = self._absent(decode_products())
        if reason is not None:
            logger.info("few tokens are decoded as many are: %s", reason)
            return None
        most = MOST_TOKENS if wanted == "own" else AUTO_TOKENS
        module = decode_products().spec().build_and_load()
        return CompiledProducts(module, properties.multi_processor_count, most)

    def prepare_kernels(self, options: EngineOptions, progress: Progress) -> None:
        if self._limited and options.kernels is not None:
            capability = torch.cuda.get_device_capability(self.device)
            stock = provide(options, capability, progress)
            hand_over(stock)
            self._there = stock.compiled | stock.packaged
            if not options.kernels.jit:
                compile_no_more()

    def seal_kernels(self, options: EngineOptions) -> None:
        if self._limited and options.kernels is not None:
            compile_no_more()

    def _prefill(
        self, shape: AttentionShape, cache: KVCache, dtype: torch.dtype, *, required: bool
    ) -> str:
        """`fa3` where the card and its layers have it. Raises ModelUnsupported if it must."""
        capability = torch.cuda.get_device_capability(self.device)
        reason = hopper_unsupported(capability, shape, cache)
        if reason is not None and required:
            raise ModelUnsupported(f"{reason}: set engine.prefill_attention=auto")
        if reason is None and not required:
            paged = PagedAttention(_name(dtype), _name(cache.dtype))
            reason = self._absent(paged.hopper_prefill(shape.head_dim))
            if reason is not None:
                logger.info("prompts are attended to by fa2: %s", reason)
        return "fa3" if reason is None else "fa2"

    def _absent(self, module: KernelModule) -> str | None:
        """Why a kernel that a start does without cannot be loaded; None if it can."""
        return absent(module, self._there) if self._limited else None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def platform_for(device: str, index: int = 0) -> Platform:
    """The platform of a configured device. Raises DeviceMissing for a card that is not there."""
    if device == "cpu":
        return CpuPlatform()
    require_card()
    return CudaPlatform(index)
