"""The Llama pattern with fewer, larger operations: SmolLM2, Llama, Qwen2, Qwen3, Qwen2-VL.

One product for query, key and value, one for gate and up, and one pass per norm and rotation. Every
replacement is equal to transformers' layer up to rounding; a stack that is not of the pattern is
left as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import rms_norm, silu
from transformers.activations import SiLUActivation

from engine.attention.backend import AttentionBackend, AttentionShape
from engine.linear import fuse_linears

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
QK_NORMS = {"q_norm", "k_norm"}
MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


class FusedDecoder:
    """A whole Llama-like stack; `Decoder`."""

    def __init__(self, stack: Any, shape: AttentionShape, backend: AttentionBackend) -> None:
        self._rotary = stack.rotary_emb
        self._layers = [
            FusedLayer(layer, i, shape, backend) for i, layer in enumerate(stack.layers)
        ]
        self._norm = stack.norm.weight.data
        self._epsilon: float = stack.norm.variance_epsilon

    def __call__(self, embeddings: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """embeddings `[tokens, hidden]`, positions `[rows, tokens]`; returns `[tokens, hidden]`."""
        cos, sin = self._rotary(
            embeddings, positions if len(positions) == 1 else positions[:, None]
        )
        cos, sin = cos.view(-1, 1, cos.shape[-1]), sin.view(-1, 1, sin.shape[-1])
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        hidden = embeddings
        for layer in self._layers:
            hidden = layer(hidden, cos, sin)
        return rms_norm(hidden, self._norm.shape, self._norm, self._epsilon)


class FusedLayer:
    """One decoder layer."""

    def __init__(
        self, layer: Any, index: int, shape: AttentionShape, backend: AttentionBackend
    ) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._index = index
        self._backend = backend
        self._heads, self._kv_heads, self._head_dim = shape.heads, shape.kv_heads, shape.head_dim
        self._qkv = fuse_linears(attention.q_proj, attention.k_proj, attention.v_proj)
        self._output = fuse_linears(attention.o_proj)
        self._gate_up = fuse_linears(mlp.gate_proj, mlp.up_proj)
        self._down = fuse_linears(mlp.down_proj)
        self._middle = self._gate_up.out_features // 2
        self._input_norm = layer.input_layernorm.weight.data
        self._post_norm = layer.post_attention_layernorm.weight.data
        self._epsilon: float = layer.input_layernorm.variance_epsilon
        self._qk_norms: tuple[torch.Tensor, torch.Tensor] | None = None
        if hasattr(attention, "q_norm"):
            self._qk_norms = attention.q_norm.weight.data, attention.k_norm.weight.data

    def __call__(self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """hidden `[tokens, hidden]`; cos and (half negated) sin `[tokens, 1, head_dim]`."""
        size, heads = hidden.shape[-1:], self._heads
        normed = rms_norm(hidden, size, self._input_norm, self._epsilon)
        qkv = self._qkv(normed).view(-1, heads + 2 * self._kv_heads, self._head_dim)
        rotated, value = qkv[:, : heads + self._kv_heads], qkv[:, heads + self._kv_heads :]
        if self._qk_norms is not None:
            dim = (self._head_dim,)
            rotated = torch.cat(
                (
                    rms_norm(rotated[:, :heads], dim, self._qk_norms[0], self._epsilon),
                    rms_norm(rotated[:, heads:], dim, self._qk_norms[1], self._epsilon),
                ),
                dim=1,
            )
        swapped = rotated.roll(self._head_dim // 2, dims=-1)
        rotated = torch.addcmul(rotated * cos, swapped, sin)
        attended = self._backend.run(self._index, rotated[:, :heads], rotated[:, heads:], value)
        hidden = hidden + self._output(attended)
        normed = rms_norm(hidden, size, self._post_norm, self._epsilon)
        gate_up = self._gate_up(normed)
        activated = silu(gate_up[:, : self._middle]).mul_(gate_up[:, self._middle :])
        return self._down(activated).add_(hidden)


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
