"""What comes to a decoder beside embeddings reaches the layer that it is meant for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from bench.reference import greedy
from engine.attention.backend import AttentionShape, KVCache
from engine.attention.cpu import CpuAttention
from engine.layers.decoder import Decoder, DecoderInput, LayerFeature, TransformersDecoder
from engine.layers.fuse import FusedDecoder
from engine.layers.kernels import TorchKernels
from engine.layers.linear import torch_linear
from engine.models.loader import load_model
from engine.request import Request
from engine.scheduling.batch import build_batch
from engine.scheduling.scheduler import Slice
from engine.scheduling.sequence import Sequence

Folder = Callable[[str], Path]
TOKENS = 11


def hidden_states(
    decoder: Callable[[CpuAttention], Decoder],
    shape: AttentionShape,
    features: Mapping[int, list[LayerFeature]] | None = None,
) -> torch.Tensor:
    cache = KVCache(shape, 4, 16, torch.float32, torch.device("cpu"))
    backend = CpuAttention(shape, cache)
    positions = torch.arange(TOKENS)[None]
    request = Request("r", [1] * TOKENS, greedy(1))
    sequence = Sequence(request, 0, 0, b"", positions, 0, [1] * TOKENS, pages=[1])
    backend.plan(build_batch([Slice(sequence, 0, TOKENS)], 16))
    embeddings = torch.randn(TOKENS, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return decoder(backend)(DecoderInput(embeddings, positions, features or {}))


@pytest.mark.parametrize("layer", [0, 2])
def test_features_are_added_behind_their_layer(checkpoint: Folder, layer: int) -> None:
    """Against transformers' own layers with the addition written between two of them."""
    folder = checkpoint("llama")
    values = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    features = {layer: [LayerFeature(slice(2, 5), values)]}

    def unfused(backend: CpuAttention) -> Decoder:
        return TransformersDecoder(plain.stack, backend)

    def fused(backend: CpuAttention) -> Decoder:  # takes the weights out of the stack
        stack = load_model(str(folder), "float32", "cpu").stack
        return FusedDecoder(stack, plain.shape, backend, TorchKernels(), torch_linear)

    plain = load_model(str(folder), "float32", "cpu")
    reference = load_model(str(folder), "float32", "cpu").stack
    reference.set_attn_implementation("eager")
    embeddings = torch.randn(TOKENS, 64, generator=torch.Generator().manual_seed(0))[None]
    with torch.inference_mode():
        places = torch.arange(TOKENS)[None]
        mask = torch.full((TOKENS, TOKENS), float("-inf")).triu(1)[None, None]
        states = embeddings
        for number, one in enumerate(reference.layers):
            angles = reference.rotary_emb(states, places)
            states = one(states, attention_mask=mask, position_embeddings=angles)
            if number == layer:
                states = states.clone()
                states[0, 2:5] += values
        expected = reference.norm(states)[0]

    for decoder in (unfused, fused):
        without = hidden_states(decoder, plain.shape)
        found = hidden_states(decoder, plain.shape, features)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[:2], without[:2])  # nobody before sees them
        reached = slice(2, 5 if layer == 2 else TOKENS)  # by attention those behind, too
        assert (found - without)[reached].abs().amax(dim=1).min() > 1e-3
