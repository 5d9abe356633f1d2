"""Stacks that are no decoders: each prompt of a packed batch attends to all of itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from engine.attention.backend import WHOLE_ATTENTION

# Tokens of prompts that attend in one call, beside each other. So few take no more time than by a
# call for each prompt, and each call makes all threads wait for each other. Longer ones are alone.
TOGETHER = 64


@dataclass(slots=True, frozen=True)
class Group:
    """Prompts that attend in one call; a mask keeps them apart if they are several."""

    tokens: int
    mask: torch.Tensor | None  # [tokens, tokens], true where a token sees another


def groups_of(lengths: Sequence[int], device: torch.device) -> list[Group]:
    """Prompts of these lengths, in their order."""
    groups = []
    for together in _runs(lengths):
        mask = None
        if len(together) > 1:
            owners = torch.arange(len(together)).repeat_interleave(torch.tensor(together))
            mask = (owners[:, None] == owners).to(device)
        groups.append(Group(sum(together), mask))
    return groups


def _runs(lengths: Sequence[int]) -> Iterator[list[int]]:
    run: list[int] = []
    for length in lengths:
        if run and sum(run) + length > TOGETHER:
            yield run
            run = []
        run.append(length)
    if run:
        yield run


class TransformersEncoder:
    """An encoder of transformers as it is: packed as one row, nothing padded or kept."""

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
            groups=groups_of(lengths, token_ids.device),
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
    groups: Sequence[Group],
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query, key, value `[1, heads, tokens, head_dim]`; returns tokens before heads."""
    sizes = [group.tokens for group in groups]
    queries, keys, values = (part.split(sizes, dim=2) for part in (query, key, value))
    attended = [
        scaled_dot_product_attention(q, k, v, attn_mask=group.mask, scale=scaling)
        for q, k, v, group in zip(queries, keys, values, groups, strict=True)
    ]
    return torch.cat(attended, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(WHOLE_ATTENTION, _attention)
