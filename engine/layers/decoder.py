"""The decoder stack as the runner calls it, and transformers' own stack behind that call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AttentionInterface

from engine.attention.backend import (
    PAGED_ATTENTION,
    AttentionBackend,
    CrossAttention,
    CrossLayers,
)


@dataclass(slots=True, frozen=True)
class LayerFeature:
    """What is added to the hidden states of some tokens behind a layer: a tower's, as a rule."""

    rows: slice  # of the batch
    values: torch.Tensor  # [rows, hidden]


@dataclass(slots=True, frozen=True)
class DecoderInput:
    """A packed batch as the decoder sees it; `features` are by the layer that they come behind."""

    embeddings: torch.Tensor  # [tokens, hidden]
    positions: torch.Tensor  # [rows, tokens]; one row, or three for M-RoPE
    features: Mapping[int, Sequence[LayerFeature]] = field(default_factory=dict)
    states: torch.Tensor | None = None  # [new states, hidden], to be attended to across


class Decoder(Protocol):
    """A packed batch to final hidden states."""

    def __call__(self, batch: DecoderInput) -> torch.Tensor:
        """Final hidden states `[tokens, hidden]`."""


class TransformersDecoder:
    """A stack of transformers as it is: packed as one row, no mask, keys and values in our pages.

    Works for every model whose attention goes through `AttentionInterface`.
    """

    def __init__(
        self,
        stack: Any,
        backend: AttentionBackend,
        across: CrossAttention | None = None,
        cross_layers: CrossLayers | None = None,
    ) -> None:
        """`cross_layers` attend by `across` to the states that come with batches."""
        self._stack, self._cross_layers = stack, cross_layers
        layers = cross_layers.modules if cross_layers is not None else ()
        elsewhere = set(map(id, layers))
        own = [
            module
            for module in stack.modules()
            if hasattr(module, "layer_idx")
            and hasattr(module, "scaling")
            and id(module) not in elsewhere
        ]
        for modules, attention in ((own, backend), (layers, across)):
            for layer, module in enumerate(modules):
                module.paged_attention, module.paged_layer = attention, layer

    def __call__(self, batch: DecoderInput) -> torch.Tensor:
        positions = batch.positions
        hooks = [
            self._stack.layers[layer].register_forward_hook(partial(_add_features, features))
            for layer, features in batch.features.items()
        ]
        across: dict[str, torch.Tensor] = {}
        if self._cross_layers is not None:
            states = batch.states
            if states is None or not len(states):
                # the layers do their keys' shapes sums, for which there has to be one
                states = batch.embeddings.new_zeros(1, batch.embeddings.shape[1])
            across = {self._cross_layers.argument: states[None]}
        try:
            output = self._stack(
                inputs_embeds=batch.embeddings[None],
                position_ids=positions if positions.shape[0] == 1 else positions[:, None],
                use_cache=False,
                **across,
            )
        finally:
            for hook in hooks:
                hook.remove()
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden


def _add_features(
    features: Sequence[LayerFeature], module: nn.Module, inputs: Any, output: torch.Tensor
) -> torch.Tensor:
    for feature in features:
        output[0, feature.rows] += feature.values
    return output


def _paged_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    backend: AttentionBackend | CrossAttention = module.paged_attention
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # [tokens, heads, dim]
    output = backend.run(module.paged_layer, query, key, value)
    return output.view(1, query.shape[0], query.shape[1], query.shape[2]), None


AttentionInterface.register(PAGED_ATTENTION, _paged_attention)
