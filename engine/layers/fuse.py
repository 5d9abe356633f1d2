"""The Llama pattern with fewer, larger operations: SmolLM2, Llama, Qwen2, Qwen3, Qwen2-VL, Gemma 3.

One product for query, key and value, one for gate and up, and one pass per norm and rotation. Gemma
norms what attention and MLP give before it is added. Every replacement is equal to transformers'
layer up to rounding; a stack that is not of the pattern is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.activations import GELUTanh, SiLUActivation

from engine.attention.backend import AttentionBackend, AttentionShape, StoredAttention
from engine.attention.rows import DeviceRows
from engine.layers.decode_products import DecodeProducts
from engine.layers.decoder import DecoderInput, LayerFeature
from engine.layers.kernels import Activation, Angles, Kernels, Norm
from engine.layers.linear import MakeLinear, PlainLinear, fuse_linears
from engine.native.block_weight import widen

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
QK_NORMS = {"q_norm", "k_norm"}
MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
GEMMA_NORM = "Gemma3RMSNorm"
INNER_NORMS = {"pre_feedforward_layernorm", "post_feedforward_layernorm"}

Reduce = Callable[[torch.Tensor], torch.Tensor]


def whole(product: torch.Tensor) -> torch.Tensor:
    """What `Reduce` is where one process has all of a layer."""
    return product


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
        make: MakeLinear,
        reduce: Reduce = whole,
        products: DecodeProducts | None = None,
    ) -> None:
        """`make` makes the layers' products; a layer's weights are brought to its norms for it.

        `reduce` sums `[tokens, hidden]` over the processes that have a share of each layer.

        Then `stack` holds this one's, and `shape` is its own. By `products`, which know nothing of
        other processes, few tokens are decoded.
        """
        self._rotaries = rotaries(stack.rotary_emb)
        kinds = stack.config.layer_types if None not in self._rotaries else []
        self._kinds: list[str | None] = list(kinds) or [None] * len(stack.layers)
        self._kernels = kernels
        self._layers = [
            FusedLayer(layer, i, shape, backend, kernels, make, reduce)
            for i, layer in enumerate(stack.layers)
        ]
        norms = [layer.input_layernorm for layer in stack.layers] + [stack.norm]
        self._norms = [norm_of(norm) for norm in norms]
        # once: to ask a protocol takes longer than most kernels
        self._stored = backend if isinstance(backend, StoredAttention) else None
        self._products = products

    def __call__(self, batch: DecoderInput) -> torch.Tensor:
        """Final hidden states `[tokens, hidden]`; the embeddings are overwritten."""
        embeddings = batch.embeddings
        angles = self.angles(embeddings, batch.positions)
        products, stored = self._products, self._stored
        if products is not None and stored is not None and not batch.features:
            rows = stored.decoding() if len(embeddings) <= products.most_tokens else None
            if rows is not None:
                for i, layer in enumerate(self._layers):
                    turned = angles[self._kinds[i]]
                    layer.decode(embeddings, self._norms[i], turned, products, stored, rows)
                return self._kernels.norm(embeddings, self._norms[-1])
        normed, residual = self.enter(embeddings), embeddings
        for i, layer in enumerate(self._layers):
            attended = layer.attend(*self.before(i, normed, angles))
            normed, residual = self.behind(i, attended, residual, batch.features.get(i, ()))
        return normed

    # what a step is made of but attention: the same for every batch of so many tokens

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self._layers)

    def angles(self, like: torch.Tensor, positions: torch.Tensor) -> dict[str | None, Angles]:
        """Of positions `[rows, tokens]`, for each kind of layer."""
        return {
            kind: self._kernels.angles(rotary, like, positions)
            for kind, rotary in self._rotaries.items()
        }

    def enter(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The first layer's normed input; the embeddings stay as they are."""
        return self._kernels.norm(embeddings, self._norms[0])

    def before(
        self,
        index: int,
        normed: torch.Tensor,
        angles: Mapping[str | None, Angles],
        place: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer up to its attention: rotated queries and keys side by side, and values.

        The product of all three, `[tokens, heads + 2 * kv_heads, head_dim]`, is brought to `place`
        where one is given; kernels that work in place leave it there.
        """
        return self._layers[index].before(normed, angles[self._kinds[index]], place)

    def behind(
        self,
        index: int,
        attended: torch.Tensor,
        residual: torch.Tensor,
        features: Sequence[LayerFeature] = (),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer from its attention on: the next one's normed input, and the residual.

        Both are `[tokens, hidden]`. The residual may be overwritten; behind the last layer the
        first is what the decoder gives.
        """
        added, residual = self._layers[index].behind(attended, residual)
        for feature in features:
            residual[feature.rows] += feature.values
        return self._kernels.add_norm(added, residual, self._norms[index + 1])


class FusedLayer:
    """One decoder layer, without its first norm and its last addition."""

    def __init__(
        self,
        layer: Any,
        index: int,
        shape: AttentionShape,
        backend: AttentionBackend,
        kernels: Kernels,
        make: MakeLinear,
        reduce: Reduce = whole,
    ) -> None:
        widen(layer, layer.input_layernorm.weight.device)
        layer.to(layer.input_layernorm.weight)  # those that `load_mapped` has left where they are
        attention, mlp = layer.self_attn, layer.mlp
        self._index = index
        self._backend = backend
        self._kernels = kernels
        self._heads, self._kv_heads, self._head_dim = shape.heads, shape.kv_heads, shape.head_dim
        self._reduce = reduce
        self._qkv = fuse_linears(make, attention.q_proj, attention.k_proj, attention.v_proj)
        self._output = fuse_linears(make, attention.o_proj)
        self._gate_up = fuse_linears(make, mlp.gate_proj, mlp.up_proj)
        self._down = fuse_linears(make, mlp.down_proj)
        self._activation: Activation = "gelu_tanh" if isinstance(mlp.act_fn, GELUTanh) else "silu"
        self._qk_norms: tuple[Norm, Norm] | None = None
        if hasattr(attention, "q_norm"):
            self._qk_norms = norm_of(attention.q_norm), norm_of(attention.k_norm)
        self._attended_norm: Norm | None = None
        self._gated_norm: Norm | None = None
        self._mlp_norm = norm_of(layer.post_attention_layernorm)
        if hasattr(layer, "pre_feedforward_layernorm"):
            self._attended_norm = self._mlp_norm
            self._mlp_norm = norm_of(layer.pre_feedforward_layernorm)
            self._gated_norm = norm_of(layer.post_feedforward_layernorm)

    def decode(
        self,
        residual: torch.Tensor,
        norm: Norm,
        angles: Angles,
        products: DecodeProducts,
        backend: StoredAttention,
        rows: DeviceRows,
    ) -> None:
        """The whole layer for a token of each sequence: `residual` `[tokens, hidden]` changes."""
        qkv, output, gate_up, down = self._qkv, self._output, self._gate_up, self._down
        assert isinstance(qkv, PlainLinear)
        assert isinstance(output, PlainLinear)
        assert isinstance(gate_up, PlainLinear)
        assert isinstance(down, PlainLinear)
        if self._qk_norms is None:
            pages, following = backend.pages(self._index), (output, gate_up)
            heads = products.heads(qkv, residual, norm, angles[1], pages, rows, following)
            queries = heads.view(-1, self._heads, self._head_dim)
            attended = backend.attend(self._index, queries)
        else:
            attended = self.attend(*self._rotated(products.store(qkv, residual, norm), angles))
        products.add(output, attended, residual)
        gated = products.gate(gate_up, residual, self._mlp_norm, self._activation)
        products.add(down, gated, residual)

    def before(
        self, normed: torch.Tensor, angles: Angles, place: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `FusedDecoder.before` says."""
        product = self._qkv(normed)
        if place is not None:
            product = place.copy_(product.view(place.shape))
        return self._rotated(product, angles)

    def attend(self, rotated: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """From what `before` gives to what attention gives, `[tokens, wide]`."""
        query, key = rotated[:, : self._heads], rotated[:, self._heads :]
        return self._backend.run(self._index, query, key, value)

    def behind(
        self, attended: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Two `[tokens, wide]`, of attention and the residual, to two whose sum is the output."""
        kernels = self._kernels
        added = self._reduce(self._output(attended))
        if self._attended_norm is not None:
            added = kernels.norm(added, self._attended_norm)
        normed, residual = kernels.add_norm(added, residual, self._mlp_norm)
        added = self._reduce(self._down(kernels.gate(self._gate_up(normed), self._activation)))
        if self._gated_norm is not None:
            added = kernels.norm(added, self._gated_norm)
        return added, residual

    def _rotated(self, product: torch.Tensor, angles: Angles) -> tuple[torch.Tensor, torch.Tensor]:
        """Of queries, keys and values side by side the first two normed and rotated, and values."""
        kernels, turning = self._kernels, self._heads + self._kv_heads
        qkv = product.view(-1, turning + self._kv_heads, self._head_dim)
        rotated, value = qkv[:, :turning], qkv[:, turning:]
        if self._qk_norms is not None:
            rotated = kernels.norm_heads(rotated, self._heads, self._qk_norms)
        return kernels.rotate(rotated, angles), value


def norm_of(module: Any) -> Norm:
    """A norm of transformers', one that `fusible` has let pass."""
    if type(module).__name__ == GEMMA_NORM:
        return Norm(module.weight.data, float(module.eps), from_one=True)
    return Norm(module.weight.data, float(module.variance_epsilon))


def rotaries(module: Any) -> dict[str | None, Any]:
    """What gives a step's cosine and sine, for each kind of layer that has angles of its own."""
    kinds = getattr(module, "layer_types", None)
    if kinds is None:
        return {None: module}
    return {kind: partial(module, layer_type=kind) for kind in kinds}


def adds_plainly(stack: Any) -> bool:
    """Whether nothing is normed before it is added, nor is there a bias at the gate.

    Our products of a decoding step are for layers of a fusible stack that do so.
    """
    return all(
        not hasattr(layer, "pre_feedforward_layernorm")
        and layer.mlp.gate_proj.bias is None
        and layer.mlp.up_proj.bias is None
        for layer in stack.layers
    )


def fusible(stack: Any) -> bool:
    """Whether every layer is of the pattern, to the last child."""
    layers = getattr(stack, "layers", None)
    if layers is None or not all(hasattr(stack, name) for name in ("norm", "rotary_emb")):
        return False
    config = stack.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for kind in rotaries(stack.rotary_emb):
        name = "inv_freq" if kind is None else f"{kind}_inv_freq"
        if 2 * getattr(stack.rotary_emb, name, torch.empty(0)).numel() != head_dim:
            return False
    return all(_fusible_layer(layer) for layer in layers)


def _fusible_layer(layer: Any) -> bool:
    if set(dict(layer.named_children())) not in (LAYER, LAYER | INNER_NORMS):
        return False
    attention, mlp = layer.self_attn, layer.mlp
    children = set(dict(attention.named_children())) - {"rotary_emb"}
    if children not in (ATTENTION, ATTENTION | QK_NORMS):
        return False
    if not isinstance(getattr(mlp, "act_fn", None), nn.SiLU | SiLUActivation | GELUTanh):
        return False
    norms = [child for name, child in layer.named_children() if name.endswith("layernorm")]
    norms += [child for name, child in attention.named_children() if name in QK_NORMS]
    return set(dict(mlp.named_children())) == MLP and all(map(_fusible_norm, norms))


def _fusible_norm(norm: Any) -> bool:
    name = type(norm).__name__
    return name == "Gemma3RMSNorm" or (
        name.endswith("RMSNorm") and hasattr(norm, "variance_epsilon")
    )
