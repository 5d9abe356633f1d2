"""A model whose weights are mapped files, brought to a device as they are needed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from engine.memory.checkpoint import stored_dtype
from engine.memory.quantization import integers
from engine.models.loader import LoadedModel, Progress, load_model


def loader_for(quantization: str | None) -> Any:
    """What loads a model for `model.quantization`, with the arguments of `load_model`."""
    if quantization is None:
        return load_model
    return partial(load_for_quantization, head=not integers(quantization))


def load_for_quantization(
    folder: str,
    dtype: str,
    device: str,
    modalities: tuple[str, ...] = (),
    progress: Progress = lambda phase, fraction: None,
    vision_attention: str = "sdpa",
    *,
    head: bool = True,
) -> LoadedModel:
    """What `load_model` loads, but the matrices of the decoder's layers stay mapped, as stored.

    Who makes products of a layer brings it to the device, so that one layer at most is there whole.
    Without `head` that stays too, unless it is the embedding's table.
    """
    stored = stored_dtype(folder) or dtype
    loaded = load_model(folder, stored, "cpu", modalities, progress, vision_attention)
    return bring(loaded, dtype, device, products=False, head=head)


def bring(
    loaded: LoadedModel, dtype: str, device: str, *, products: bool = True, head: bool = True
) -> LoadedModel:
    """The model on a device in this type, a tensor at a time.

    Without `products` the matrices of the decoder's layers stay where and as they are, without
    `head` that of logits, if it is no table of embeddings.
    """
    wanted, model = getattr(torch, dtype), loaded.model
    layers = () if products else loaded.stack.layers
    left = {id(matrix) for layer in layers for matrix in layer.parameters() if matrix.ndim == 2}
    last = model.get_output_embeddings().weight
    if not head and last is not model.get_input_embeddings().weight:
        left.add(id(last))
    for parameter in model.parameters():
        if id(parameter) not in left:
            kind = wanted if parameter.dtype == loaded.dtype else parameter.dtype
            parameter.data = parameter.data.to(device, kind)
    buffers: Any = model.buffers()
    for buffer in buffers:
        buffer.data = buffer.data.to(device)
    return replace(loaded, dtype=wanted)
