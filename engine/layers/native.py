"""A whole decoder stack, and single products, by our library for the CPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn
from transformers.activations import GELUTanh

from engine.attention.backend import AttentionShape
from engine.attention.native import NativeAttention
from engine.errors import ModelUnsupported
from engine.layers.decoder import DecoderInput
from engine.layers.fuse import norm_of, rotaries
from engine.layers.kernels import Norm, TorchKernels, cos_and_sin
from engine.layers.linear import Linear
from engine.memory.quantization import OFF
from engine.native import loading
from engine.native.block_weight import BlockWeight, tensor_of
from engine.native.library import ACTIVATIONS, BLOCK, UNITS, Machine, Packed, address
from engine.native.loading import GROUP


class NativeHead:
    """`Linear` by the library: logits in float32."""

    def __init__(
        self, machine: Machine, weight: torch.Tensor, dtype: torch.dtype, quantization: str | None
    ) -> None:
        self.out_features, left = len(weight), -len(weight) % BLOCK
        self._machine = machine
        if quantization is not None:  # int4 too: nothing comes behind that could make up for it
            quantization = "int8"
        if left and isinstance(weight, BlockWeight):
            weight = weight.padded(len(weight) + left)
        elif left:
            weight = torch.cat((weight, weight.new_zeros(left, weight.shape[1])))
        self._packed = packed([weight], None, quantization=quantization, dtype=dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x `[tokens, in_features]` to `[tokens, out_features]`."""
        logits = self._machine.multiply(self._packed, x.contiguous(), wide=True)
        if logits.shape[1] == self.out_features:
            return logits
        return logits[:, : self.out_features].contiguous()

    def likeliest(self, x: torch.Tensor) -> torch.Tensor:
        """Of each of x `[tokens, in_features]` the output `[tokens]` that is largest."""
        return self._machine.likeliest(self._packed, x.contiguous(), self.out_features)


class NativeKernels(TorchKernels):
    """`Kernels` beside a `NativeDecoder`: of what it does not do itself, the head."""

    def __init__(self, machine: Machine, dtype: torch.dtype, quantization: str | None) -> None:
        self._machine, self._dtype, self._quantization = machine, dtype, quantization

    def head(self, weight: torch.Tensor) -> Linear:
        depth = weight.shape[1]
        if self._quantization is None and depth % UNITS[weight.dtype]:
            return super().head(weight)
        return NativeHead(self._machine, weight, self._dtype, self._quantization)


class NativeDecoder:
    """`Decoder`: a stack that `fusible` has let pass, all of its layers in one call."""

    def __init__(
        self,
        stack: Any,
        shape: AttentionShape,
        backend: NativeAttention,
        quantization: str | None = None,
    ) -> None:
        """The weights of the stack's products are emptied: the library has its own order of them.

        Raises ValueError for sizes that it has no kernels for.
        """
        self._backend, self._quantization = backend, quantization
        self._rotaries = rotaries(stack.rotary_emb)
        kinds = list(self._rotaries)
        self._hidden, self._head_dim = stack.config.hidden_size, shape.head_dim
        self._dtype = backend.dtype
        self._held: list[Any] = []  # what the library has addresses of
        own, layers = backend.stack, stack.layers
        own.hidden = self._hidden
        own.intermediate = layers[0].mlp.gate_proj.weight.shape[0]
        gelu = isinstance(layers[0].mlp.act_fn, GELUTanh)
        own.activation = ACTIVATIONS["gelu_tanh" if gelu else "silu"]
        backend.machine.reserve(own)
        if kinds != [None]:
            for place, kind in zip(backend.layers, stack.config.layer_types, strict=True):
                place.rotary = kinds.index(kind)
        with ThreadPoolExecutor(backend.machine.threads) as pool:  # packing leaves Python alone
            list(pool.map(self._fill, layers, backend.layers))
        self._final = self._norm(stack.norm)

    def __call__(self, batch: DecoderInput) -> torch.Tensor:
        """Final hidden states `[tokens, hidden]`; the embeddings are overwritten."""
        embeddings = batch.embeddings
        tokens, dtype = len(embeddings), self._dtype
        normed = torch.empty_like(embeddings)
        step = self._backend.step()
        step.residual = address(embeddings, dtype, tokens, self._hidden)
        step.normed = address(normed, dtype, tokens, self._hidden)
        step.final = self._final
        like = embeddings.new_empty(0, dtype=torch.float32)
        angles = [
            [each.contiguous() for each in cos_and_sin(rotary, like, batch.positions)]
            for rotary in self._rotaries.values()
        ]
        for kind, (cosines, sines) in enumerate(angles):
            step.cosines[kind] = address(cosines, torch.float32, tokens, self._head_dim)
            step.sines[kind] = address(sines, torch.float32, tokens, self._head_dim)
        for layer in [*sorted(batch.features), self._backend.stack.count - 1]:
            step.last = layer + 1
            self._backend.machine.compute(self._backend.stack, step)
            step.first = layer + 1
            for feature in batch.features.get(layer, ()):
                embeddings[feature.rows] += feature.values
        return normed

    def _fill(self, layer: Any, place: loading.Layer) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        place.qkv = self._product(attention.q_proj, attention.k_proj, attention.v_proj)
        place.output = self._product(attention.o_proj)
        place.gate_up = self._product(mlp.gate_proj, mlp.up_proj, by_turns=True)
        place.down = self._product(mlp.down_proj)
        place.input = self._norm(layer.input_layernorm)
        place.mlp = self._norm(layer.post_attention_layernorm)
        if hasattr(layer, "pre_feedforward_layernorm"):
            place.attended = place.mlp
            place.mlp = self._norm(layer.pre_feedforward_layernorm)
            place.gated = self._norm(layer.post_feedforward_layernorm)
        if hasattr(attention, "q_norm"):
            place.queries = self._norm(attention.q_norm)
            place.keys = self._norm(attention.k_norm)

    def _product(self, *linears: nn.Linear, by_turns: bool = False) -> loading.Product:
        weights, biases = [tensor_of(linear.weight) for linear in linears], None
        if any(linear.bias is not None for linear in linears):
            biases = torch.cat(
                [
                    torch.zeros(len(linear.weight), dtype=self._dtype)
                    if linear.bias is None
                    else linear.bias.data
                    for linear in linears
                ]
            )
            if by_turns:
                biases = biases.view(len(linears), -1, BLOCK).transpose(0, 1).flatten()
        made = packed(
            weights, biases, by_turns=by_turns, quantization=self._quantization, dtype=self._dtype
        )
        for linear in linears:
            linear.weight = nn.Parameter(linear.weight.new_empty(0), requires_grad=False)
        self._held.append(made)
        return made.struct

    def _norm(self, module: Any) -> loading.Norm:
        norm: Norm = norm_of(module)
        weight = norm.weight.to(self._dtype).contiguous()
        self._held.append(weight)
        return loading.Norm(
            address(weight, self._dtype, len(weight)), None, norm.epsilon, int(norm.from_one)
        )


def packed(
    weights: list[torch.Tensor],
    bias: torch.Tensor | None,
    *,
    quantization: str | None,
    dtype: torch.dtype,
    by_turns: bool = False,
) -> Packed:
    """Weights for rows of `dtype`. Raises ModelUnsupported for those that cannot be integers."""
    try:
        return Packed(weights, bias, by_turns=by_turns, quantization=quantization, dtype=dtype)
    except ValueError as error:
        if quantization is None and any(isinstance(weight, BlockWeight) for weight in weights):
            raise ModelUnsupported(f"{error}: the GGUF file is damaged") from error
        if quantization is None:
            raise
        raise ModelUnsupported(f"model.quantization={quantization}: {error}: {OFF}") from error


def unsupported(stack: Any, dtype: torch.dtype, quantization: str | None = None) -> str | None:
    """Why the library cannot compute a fusible stack of a type that it has; None if it can."""
    unit = UNITS[dtype] if quantization is None else GROUP
    for layer in stack.layers:
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear) and (
                module.in_features % unit or module.out_features % BLOCK
            ):
                return f"{name} is not of whole blocks of {max(unit, BLOCK)}"
    if len(rotaries(stack.rotary_emb)) > 2:
        return "they are of more than two kinds"
    return None
