"""Stacks that are no decoders: each prompt of a packed batch attends to all of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from engine.attention.backend import WHOLE_ATTENTION


class TransformersEncoder:
    """An encoder of transformers as it is: packed as one row, no mask, nothing padded or kept."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        token_types: torch.Tensor,
        lengths: Sequence[int],
    ) -> torch.Tensor:
        """Final hidden states `[tokens, hidden]` of whole prompts of these lengths.

        `token_ids` and `token_types` are `[tokens]`, `positions` `[1, tokens]`.
        """
        output = self._model(
            input_ids=token_ids[None],
            position_ids=positions,
            token_type_ids=token_types[None],
            lengths=lengths,
        )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    *,
    lengths: Sequence[int],
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query, key, value `[1, heads, tokens, head_dim]`; returns tokens before heads."""
    queries, keys, values = (part.split(list(lengths), dim=2) for part in (query, key, value))
    attended = [
        scaled_dot_product_attention(q, k, v, scale=scaling)
        for q, k, v in zip(queries, keys, values, strict=True)
    ]
    return torch.cat(attended, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(WHOLE_ATTENTION, _attention)
