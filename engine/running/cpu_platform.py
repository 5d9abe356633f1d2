"""The CPU: our library for the layers that it has kernels for, torch's operators for all others."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from engine.attention import native as native_attention
from engine.attention.backend import AttentionBackend, AttentionShape, CrossAttention, KVCache
from engine.attention.cpu import CpuAttention
from engine.attention.cross import TorchCrossAttention
from engine.attention.native import NativeAttention
from engine.device.device import Host
from engine.errors import ModelUnsupported
from engine.kernels.start import Progress
from engine.layers import native as native_layers
from engine.layers.decode_products import DecodeProducts
from engine.layers.decoder import Decoder
from engine.layers.fuse import fusible
from engine.layers.kernels import Kernels, TorchKernels
from engine.layers.linear import MakeLinear
from engine.layers.native import NativeDecoder, NativeKernels
from engine.layers.native_towers import compute_towers
from engine.memory.quantization import OFF, device_unsupported, settings_without_integers
from engine.models.loader import LoadedModel
from engine.native.block_weight import widen
from engine.native.choice import NativeUnusable, chosen, left_to_torch
from engine.native.library import Machine
from engine.native.loading import LibraryUnusable
from engine.options import EngineOptions
from engine.running.turns import Turns
from engine.sampling.native_sampler import NativeSampler
from engine.sampling.sampler import HostSampler, Sampler

logger = logging.getLogger(__name__)


class CpuPlatform(Host):
    """`Platform` of the CPU: one step after the other."""

    overlaps = False
    warms_up = False

    def __init__(self) -> None:
        super().__init__()
        self.machine: Machine | None = None  # what our library runs on; None: torch has it all
        self._turns: Turns[list[torch.Tensor]] | None = None  # of towers that it has all layers of
        self._quantization: str | None = None
        self._dtype = torch.float32

    def prepare_layers(self, loaded: LoadedModel, options: EngineOptions) -> None:
        """Torch computes what our library does not, unless a variant was asked for by name."""
        self._quantization, self._dtype = options.quantization, loaded.dtype
        reason = device_unsupported(options.quantization, "cpu")
        if reason is not None:
            raise ModelUnsupported(reason)
        self.machine = machine_for(loaded, options)
        if self.machine is None:
            widen(loaded.model)
        if self.machine is not None:
            torch.set_num_threads(1)  # what is left to torch in a step is small
            turns: Turns[list[torch.Tensor]] = Turns()
            if compute_towers(loaded.model, loaded.stack, self.machine, turns.give_way):
                self._turns = turns

    @contextlib.contextmanager
    def encoding(self) -> Iterator[None]:
        """A tower that is torch's is large enough for all threads; none of ours work meanwhile."""
        if self.machine is None or self._turns is not None:
            yield
            return
        torch.set_num_threads(self.machine.threads)
        try:
            yield
        finally:
            torch.set_num_threads(1)

    def tower_turns(self) -> Turns[list[torch.Tensor]] | None:
        return self._turns

    def attention(
        self, shape: AttentionShape, cache: KVCache, dtype: torch.dtype, prefill: str = "fa2"
    ) -> AttentionBackend:
        if self.machine is None:
            return CpuAttention(shape, cache)
        return NativeAttention(shape, cache, self.machine)

    def attention_across(self, shape: AttentionShape, cache: KVCache) -> CrossAttention:
        return TorchCrossAttention(shape, cache)

    def decoder(
        self, stack: Any, shape: AttentionShape, backend: AttentionBackend
    ) -> Decoder | None:
        if not isinstance(backend, NativeAttention):
            return None
        return NativeDecoder(stack, shape, backend, self._quantization)

    def kernels(self) -> Kernels:
        if self.machine is None:
            return TorchKernels()
        return NativeKernels(self.machine, self._dtype, self._quantization)

    def quantized(self, quantization: str) -> MakeLinear:
        raise ModelUnsupported(f"model.quantization={quantization} is by our kernels: {OFF}")

    def products(
        self, shape: AttentionShape, dtype: torch.dtype, depths: tuple[int, ...], wanted: str
    ) -> DecodeProducts | None:
        return None

    def sampler(self, eos_ids: frozenset[int], vocabulary: int) -> Sampler:
        if self.machine is None:
            return HostSampler(eos_ids, vocabulary)
        return NativeSampler(eos_ids, vocabulary, self.machine)

    def prepare_kernels(self, options: EngineOptions, progress: Progress) -> None:
        return None

    def seal_kernels(self, options: EngineOptions) -> None:
        return None

    def prepare_towers(self, model: nn.Module, least: int) -> None:
        return None


def machine_for(loaded: LoadedModel, options: EngineOptions) -> Machine | None:
    """What our library runs a model's layers on; None: it does not.

    Raises NativeUnusable or ModelUnsupported where a variant was asked for by name, and the latter
    for weights of integers, which torch does not multiply by.
    """
    named, wanted = options.native != "auto", options.quantization
    if wanted is not None:
        reason = settings_without_integers(options)
        if reason is not None:
            raise ModelUnsupported(f"model.quantization={wanted} {reason}")
    try:
        variant = chosen(options.native)
    except NativeUnusable as error:
        if named:
            raise
        logger.warning("torch's operators compute the layers, slower: %s", error)
        return None
    if variant is None:
        return None
    reason = unsuited(loaded, options)
    if reason is None:
        try:
            return Machine(variant, options.threads)
        except LibraryUnusable as error:
            reason = str(error)
    if wanted is not None:
        raise ModelUnsupported(f"model.quantization={wanted} is by our kernels: {reason}: {OFF}")
    if named:
        raise ModelUnsupported(f"engine.native={options.native}: {reason}: set it to auto")
    logger.info("torch's operators compute the layers: %s", reason)
    return None


def unsuited(loaded: LoadedModel, options: EngineOptions) -> str | None:
    """Why our library does not compute a model's layers; None if it does."""
    reason = left_to_torch(options)
    if reason is not None:
        return reason
    if not fusible(loaded.stack):
        return "they are of no pattern that is known"
    return native_attention.unsupported(loaded.shape) or native_layers.unsupported(
        loaded.stack, loaded.dtype, options.quantization
    )
