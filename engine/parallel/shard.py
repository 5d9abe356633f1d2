"""A rank's share of a loaded decoder.

Queries, keys, values, gate and up are split by rows of the weight, so each rank has whole heads and
whole intermediate features; the output and down projections are split by columns, so that the sum
over the ranks is the product. Embeddings and head are split by vocabulary. Norms are everybody's.
Source of the scheme: Megatron-LM (Shoeybi et al. 2019), section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.functional import embedding, pad

from engine.attention.backend import AttentionShape
from engine.errors import ModelUnsupported
from engine.layers.fuse import fusible
from engine.memory.checkpoint import stored_dtype
from engine.memory.mapped import bring, load_stored
from engine.memory.shares import undivided
from engine.models.loader import LoadedModel, Progress
from engine.native.block_weight import BlockWeight, by_one_thread, widen

BY_ROWS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
)
BY_COLUMNS = ("self_attn.o_proj", "mlp.down_proj")


def load_share(
    folder: str,
    dtype: str,
    device: str,
    modalities: tuple[str, ...] = (),
    progress: Progress = lambda phase, fraction: None,
    vision_attention: str = "sdpa",
    *,
    rank: int,
    ranks: int,
    quantized: bool = False,
    load: Callable[..., LoadedModel] = load_stored,
) -> LoadedModel:
    """What `load` loads, but of the decoder only the share of `rank`.

    The files are mapped in the type they are stored in; only what is kept is read, converted and
    brought to the device, a tensor at a time; of a model to be `quantized` without the matrices of
    its layers. Raises ModelUnsupported for layers that cannot be
    split.
    """
    mapped = stored_dtype(folder) or dtype
    whole = load(folder, mapped, "cpu", modalities, progress, vision_attention)
    check_splits(whole.stack, whole.shape, ranks)
    shape = keep_share(whole.model, whole.stack, whole.shape, rank, ranks)
    return bring(replace(whole, shape=shape), dtype, device, products=not quantized)


def check_splits(stack: Any, shape: AttentionShape, ranks: int) -> None:
    """Raise ModelUnsupported for a stack that cannot be split among that many ranks."""
    # Gemma's layers are fused, but have not been tried in parts
    if not fusible(stack) or hasattr(stack.layers[0], "pre_feedforward_layernorm"):
        raise ModelUnsupported(
            f"parallelism.tensor={ranks}: the layers of {type(stack).__name__} are not of Llama's "
            "pattern, the one that can be split; set parallelism.tensor=1"
        )
    reason = undivided(shape.heads, shape.kv_heads, stack.config.intermediate_size, ranks)
    if reason is not None:
        raise ModelUnsupported(reason)


def keep_share(model: Any, stack: Any, shape: AttentionShape, rank: int, ranks: int) -> Any:
    """Replace the decoder's weights by the rank's views of them; returns the rank's shape.

    Nothing is copied: as long as the weights are a mapped file, only the share is ever read.
    """
    for layer in stack.layers:
        for name in BY_ROWS:
            _keep(layer.get_submodule(name), 0, rank, ranks)
        for name in BY_COLUMNS:
            _keep(layer.get_submodule(name), 1, rank, ranks)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    widen(model)
    tied = head.weight.data_ptr() == table.weight.data_ptr()
    table.weight = _parameter(part(table.weight.data, 0, rank, ranks))
    head.weight = table.weight if tied else _parameter(part(head.weight.data, 0, rank, ranks))
    return replace(shape, heads=shape.heads // ranks, kv_heads=shape.kv_heads // ranks)


def part(tensor: torch.Tensor, dim: int, rank: int, ranks: int) -> torch.Tensor:
    """The rank's piece of a dimension: a view; where it does not divide, the last are padded."""
    size = tensor.shape[dim]
    length = -(-size // ranks)
    start = min(rank * length, size)
    piece = tensor.narrow(dim, start, min(length, size - start))
    missing = length - piece.shape[dim]
    return piece if not missing else pad(piece, (0, 0) * (tensor.ndim - dim - 1) + (0, missing))


class VocabularyPart:
    """Embeddings of the tokens in a rank's part of the vocabulary, zeros for all others."""

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        self.weight = weight
        self._first = rank * len(weight)

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """token_ids `[tokens]`, of any value; returns `[tokens, hidden]`."""
        places = token_ids - self._first
        others = (places < 0) | (places >= len(self.weight))
        return embedding(places.masked_fill_(others, 0), self.weight).masked_fill_(
            others[:, None], 0
        )


def _keep(linear: nn.Linear, dim: int, rank: int, ranks: int) -> None:
    weight = linear.weight
    if isinstance(weight, BlockWeight):  # widened as a whole, and no more of it kept than the part
        with by_one_thread():
            linear.weight = _parameter(part(weight.whole(), dim, rank, ranks).clone())
    else:
        linear.weight = _parameter(part(weight.data, dim, rank, ranks))
    bias: nn.Parameter | None = linear.bias
    if bias is not None and dim == 0:
        linear.bias = _parameter(part(bias.data, 0, rank, ranks))
    elif bias is not None and rank > 0:
        linear.register_parameter("bias", None)  # the sum has it from rank 0


def _parameter(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
