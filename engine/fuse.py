"""The Llama pattern with fewer, larger operations: SmolLM2, Llama, Qwen2, Qwen3, Qwen2-VL.

One product for query, key and value, one for gate and up, and one pass per norm and rotation. Every
replacement is equal to transformers' layer up to rounding; a stack that is not of the pattern is
left as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.activations import SiLUActivation

from engine.attention.backend import AttentionBackend, AttentionShape
from engine.kernels import Angles, Kernels
from engine.linear import Linear, fuse_linears
from engine.parallel.ranks import Ranks, SummedLinear

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
QK_NORMS = {"q_norm", "k_norm"}
MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


class FusedDecoder:
    """A whole Llama-like stack; `Decoder`.

    The residual is added where the next norm reads it, so each layer ends with the norm of the next
    one.
    """

    def __init__(
        self,
        stack: Any,
        shape: AttentionShape,
        backend: AttentionBackend,
        kernels: Kernels,
        ranks: Ranks | None = None,
    ) -> None:
        """With `ranks`, `stack` holds this rank's share and `shape` is its own."""
        self._rotary = stack.rotary_emb
        self._kernels = kernels
        self._layers = [
            FusedLayer(layer, i, shape, backend, kernels, ranks)
            for i, layer in enumerate(stack.layers)
        ]
        norms = [layer.input_layernorm for layer in stack.layers] + [stack.norm]
        self._norms = [(norm.weight.data, float(norm.variance_epsilon)) for norm in norms]

    def __call__(self, embeddings: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """embeddings `[tokens, hidden]`, positions `[rows, tokens]`; returns `[tokens, hidden]`.

        The embeddings are overwritten.
        """
        kernels = self._kernels
        angles = kernels.angles(self._rotary, embeddings, positions)
        normed, residual = kernels.norm(embeddings, *self._norms[0]), embeddings
        for layer, norm in zip(self._layers, self._norms[1:], strict=True):
            added, residual = layer(normed, residual, angles)
            normed, residual = kernels.add_norm(added, residual, *norm)
        return normed


class FusedLayer:
    """One decoder layer, without its first norm and its last addition."""

    def __init__(
        self,
        layer: Any,
        index: int,
        shape: AttentionShape,
        backend: AttentionBackend,
        kernels: Kernels,
        ranks: Ranks | None = None,
    ) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._index = index
        self._backend = backend
        self._kernels = kernels
        self._heads, self._kv_heads, self._head_dim = shape.heads, shape.kv_heads, shape.head_dim
        self._qkv = fuse_linears(attention.q_proj, attention.k_proj, attention.v_proj)
        self._output = _summed(fuse_linears(attention.o_proj), ranks)
        self._gate_up = fuse_linears(mlp.gate_proj, mlp.up_proj)
        self._down = _summed(fuse_linears(mlp.down_proj), ranks)
        self._post_norm = layer.post_attention_layernorm.weight.data
        self._epsilon: float = layer.post_attention_layernorm.variance_epsilon
        self._qk_norms: tuple[torch.Tensor, torch.Tensor] | None = None
        if hasattr(attention, "q_norm"):
            self._qk_norms = attention.q_norm.weight.data, attention.k_norm.weight.data
            self._qk_epsilon: float = attention.q_norm.variance_epsilon

    def __call__(
        self, normed: torch.Tensor, residual: torch.Tensor, angles: Angles
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Two `[tokens, hidden]`, normed input and residual, to two whose sum is the output."""
        kernels, heads = self._kernels, self._heads
        qkv = self._qkv(normed).view(-1, heads + 2 * self._kv_heads, self._head_dim)
        rotated, value = qkv[:, : heads + self._kv_heads], qkv[:, heads + self._kv_heads :]
        if self._qk_norms is not None:
            rotated = kernels.norm_heads(rotated, heads, self._qk_norms, self._qk_epsilon)
        rotated = kernels.rotate(rotated, angles)
        attended = self._backend.run(self._index, rotated[:, :heads], rotated[:, heads:], value)
        normed, residual = kernels.add_norm(
            self._output(attended), residual, self._post_norm, self._epsilon
        )
        return self._down(kernels.gate(self._gate_up(normed))), residual


def _summed(linear: Linear, ranks: Ranks | None) -> Linear | SummedLinear:
    return linear if ranks is None else SummedLinear(linear, ranks)


def fusible(stack: Any) -> bool:
    """Whether every layer is of the pattern, to the last child."""
    layers = getattr(stack, "layers", None)
    if layers is None or not all(hasattr(stack, name) for name in ("norm", "rotary_emb")):
        return False
    config = stack.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if 2 * getattr(stack.rotary_emb, "inv_freq", torch.empty(0)).numel() != head_dim:
        return False
    return all(_fusible_layer(layer) for layer in layers)


def _fusible_layer(layer: Any) -> bool:
    if set(dict(layer.named_children())) != LAYER:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    children = set(dict(attention.named_children())) - {"rotary_emb"}
    if children not in (ATTENTION, ATTENTION | QK_NORMS):
        return False
    if not isinstance(getattr(mlp, "act_fn", None), nn.SiLU | SiLUActivation):
        return False
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    return set(dict(mlp.named_children())) == MLP and all(
        type(norm).__name__.endswith("RMSNorm") and hasattr(norm, "variance_epsilon")
        for norm in norms
    )
