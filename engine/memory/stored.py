"""Whether config.json describes the weights that are there.

A model is built from config.json before a weight is read: one that describes more than there is
would take memory that nobody planned, and what no file holds would be filled with random numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from engine.memory.checkpoint import Checkpoint
from engine.models.documents import CheckpointBroken

LAYER = re.compile(r"\blayers?\.(\d+)\.")
Shapes = Mapping[str, tuple[str, list[int]]]


def check_stored(checkpoint: Checkpoint, tensors: Shapes, towers: tuple[str, ...]) -> None:
    """Raise CheckpointBroken where layers or sizes of the decoder are not those of its weights."""
    decoder = {
        name: shape
        for name, (_, shape) in tensors.items()
        if not name.removeprefix("model.").startswith(towers)
    }
    layers = {found[1] for found in map(LAYER.search, decoder) if found}
    _compare("num_hidden_layers", checkpoint.layers, len(layers))
    queries = checkpoint.heads * checkpoint.head_dim
    keys = checkpoint.kv_heads * checkpoint.head_dim
    expected = {
        "embed_tokens.weight": ("hidden_size", 1, checkpoint.hidden),
        "word_embeddings.weight": ("hidden_size", 1, checkpoint.hidden),
        "gate_proj.weight": ("intermediate_size", 0, checkpoint.intermediate),
        "q_proj.weight": ("num_attention_heads times head_dim", 0, queries),
        "k_proj.weight": ("num_key_value_heads times head_dim", 0, keys),
        "query.weight": ("hidden_size", 0, queries),
    }
    for name, shape in decoder.items():
        field, dimension, value = expected.get(".".join(name.rsplit(".", 2)[-2:]), ("", 0, 0))
        if field and len(shape) == 2:
            _compare(field, value, shape[dimension])


def _compare(field: str, configured: int, stored: int) -> None:
    if configured != stored:
        raise CheckpointBroken(
            f"config.json says {field}={configured}, the weights beside it are of {stored}"
        )
