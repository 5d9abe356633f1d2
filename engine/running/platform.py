"""What a device offers to compute with: attention, kernels, choice of tokens."""

from __future__ import annotations

import logging
import os
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import nn

from engine.attention.backend import AttentionBackend, AttentionShape, KVCache
from engine.attention.cpu import CpuAttention
from engine.attention.flashinfer import (
    FlashInferAttention,
    check_supported,
    hopper_not_compiled,
    hopper_unsupported,
)
from engine.device.cards import require_card
from engine.device.device import Cuda, Device, Host
from engine.device.toolchain import environment
from engine.errors import ModelUnsupported
from engine.layers.kernels import FlashInferKernels, Kernels, TorchKernels
from engine.layers.vision_attention import attend_with
from engine.sampling.device_sampler import DeviceSampler
from engine.sampling.sampler import HostSampler, Sampler

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

    def kernels(self) -> Kernels:
        """The operations of fused layers."""

    def sampler(self, eos_ids: frozenset[int], vocabulary: int) -> Sampler:
        """What chooses tokens; `eos_ids` end an answer."""

    def prepare_towers(self, model: nn.Module, least: int) -> None:
        """Let towers attend by kernels of this device to pictures of `least` patches on.

        Only towers loaded with `VISION_ATTENTION` do so.
        """


class CpuPlatform(Host):
    """`Platform` of the CPU: torch's operators, one step after the other."""

    overlaps = False
    warms_up = False

    def attention(
        self, shape: AttentionShape, cache: KVCache, dtype: torch.dtype, prefill: str = "fa2"
    ) -> AttentionBackend:
        return CpuAttention(shape, cache)

    def kernels(self) -> Kernels:
        return TorchKernels()

    def sampler(self, eos_ids: frozenset[int], vocabulary: int) -> Sampler:
        return HostSampler(eos_ids, vocabulary)

    def prepare_towers(self, model: nn.Module, least: int) -> None:
        return None


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

    def kernels(self) -> Kernels:
        return FlashInferKernels(self.library)

    def sampler(self: FlashInferPlatform, eos_ids: frozenset[int], vocabulary: int) -> Sampler:
        return DeviceSampler(eos_ids, vocabulary, self, self.library.sampling)

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

    def _prefill(
        self, shape: AttentionShape, cache: KVCache, dtype: torch.dtype, *, required: bool
    ) -> str:
        """`fa3` where the card and its layers have it. Raises ModelUnsupported if it must."""
        capability = torch.cuda.get_device_capability(self.device)
        reason = hopper_unsupported(capability, shape, cache)
        if reason is not None and required:
            raise ModelUnsupported(f"{reason}: set engine.prefill_attention=auto")
        if reason is None and self._limited and not required:
            reason = hopper_not_compiled(self.library, shape, cache, dtype)
            if reason is not None:
                logger.info("prompts are attended to by fa2: %s", reason)
        return "fa3" if reason is None else "fa2"


def platform_for(device: str, index: int = 0) -> Platform:
    """The platform of a configured device. Raises DeviceMissing for a card that is not there."""
    if device == "cpu":
        return CpuPlatform()
    require_card()
    return CudaPlatform(index)
