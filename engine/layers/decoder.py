"""The decoder stack as the runner calls it, and transformers' own stack behind that call."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from engine.attention.backend import AttentionBackend

PAGED_ATTENTION = "appliance_paged"


class Decoder(Protocol):
    """Embeddings of a packed batch to final hidden states."""

    def __call__(self, embeddings: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """embeddings `[tokens, hidden]`, positions `[rows, tokens]`; returns `[tokens, hidden]`."""


class TransformersDecoder:
    """A stack of transformers as it is: packed as one row, no mask, keys and values in our pages.

    Works for every model whose attention goes through `AttentionInterface`.
    """

    def __init__(self, stack: Any, backend: AttentionBackend) -> None:
        self._stack = stack
        for module in stack.modules():
            if hasattr(module, "layer_idx") and hasattr(module, "scaling"):
                module.paged_attention = backend

    def __call__(self, embeddings: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        position_ids = positions if positions.shape[0] == 1 else positions[:, None]
        output = self._stack(
            inputs_embeds=embeddings[None], position_ids=position_ids, use_cache=False
        )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden


def _paged_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    backend: AttentionBackend = module.paged_attention
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # [tokens, heads, dim]
    output = backend.run(module.layer_idx, query, key, value)
    return output.view(1, query.shape[0], query.shape[1], query.shape[2]), None


AttentionInterface.register(PAGED_ATTENTION, _paged_attention)
