"""A model whose weights are mapped files, brought to a device as they are needed."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from engine.memory.checkpoint import PRODUCT, stored_dtype, tensor_files, tensor_shapes
from engine.memory.quantization import integers
from engine.models.loader import LoadedModel, Progress, load_model
from engine.models.registry import family_for
from engine.native.block_weight import BlockEmbedding, BlockWeight, widen
from engine.native.blocks import kind_of


def loader_for(quantization: str | None) -> Any:
    """What loads a model for `model.quantization`, with the arguments of `load_model`."""
    if quantization is None:
        return load_stored
    return partial(load_for_quantization, head=not integers(quantization))


def load_stored(
    folder: str,
    dtype: str,
    device: str,
    modalities: tuple[str, ...] = (),
    progress: Progress = lambda phase, fraction: None,
    vision_attention: str = "sdpa",
) -> LoadedModel:
    """What `load_model` loads, but on the CPU what is stored as blocks of integers stays such.

    Matrices of the decoder's layers, the embedding's table and the head are a mapped `BlockWeight`
    then: whoever cannot compute by them widens them.
    """
    family = family_for(folder)
    files = tensor_files(Path(folder))
    if not any(map(kind_of, files)):
        return load_model(folder, dtype, device, modalities, progress, vision_attention)
    tensor_shapes(Path(folder))  # raises where blocks are not whole
    wanted, mapped = getattr(torch, dtype), family.key_mapping() is not None
    opened = {file: safe_open(file, framework="pt") for file in {*files.values()}}
    tensors: dict[str, torch.Tensor] = {}
    blocks: dict[str, BlockWeight] = {}
    for stored, file in files.items():
        tensor, kind = opened[file].get_tensor(stored), kind_of(stored)
        name = stored if kind is None else stored.removesuffix(f".{kind}")
        if kind is None:
            tensors[name] = tensor
            continue
        weight = BlockWeight(kind, tensor, wanted)
        if mapped or not KEPT.search(name):
            tensors[name] = weight.whole()
        else:  # a shape without memory until its module has the blocks
            blocks[name] = weight
            tensors[name] = torch.zeros((), dtype=wanted).expand(weight.shape)
    loaded = load_model(folder, dtype, "cpu", modalities, progress, vision_attention, tensors)
    for name, weight in blocks.items():
        put_blocks(loaded.model, name, weight)
    return loaded if device == "cpu" else bring(loaded, dtype, device)


KEPT = re.compile(rf"{PRODUCT.pattern}|\b(embed_tokens|lm_head)\.weight$")


def put_blocks(model: Any, name: str, weight: BlockWeight) -> None:
    """Give a module its weight of blocks, or their elements if it is more than a plain one."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    module, tied = model.get_submodule(name.removesuffix(".weight")), head.weight is table.weight
    if module is table:
        if type(table) is nn.Embedding:
            table = BlockEmbedding(weight)
            model.set_input_embeddings(table)
        else:
            table.weight = nn.Parameter(weight.whole(), requires_grad=False)
        if tied:
            head.weight = table.weight
    elif not (tied and module is head):
        whole = type(module) is not nn.Linear
        module.weight = nn.Parameter(weight.whole(), requires_grad=False) if whole else weight


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
    loaded = load_stored(folder, stored, "cpu", modalities, progress, vision_attention)
    return bring(loaded, dtype, device, products=False, head=head)


def bring(
    loaded: LoadedModel, dtype: str, device: str, *, products: bool = True, head: bool = True
) -> LoadedModel:
    """The model on a device in this type, a tensor at a time.

    Without `products` the matrices of the decoder's layers stay where and as they are, without
    `head` that of logits, if it is no table of embeddings. So do weights of blocks on the CPU.
    """
    wanted, model = getattr(torch, dtype), loaded.model
    layers = () if products else loaded.stack.layers
    left = {id(matrix) for layer in layers for matrix in layer.parameters() if matrix.ndim == 2}
    last = model.get_output_embeddings().weight
    if not head and last is not model.get_input_embeddings().weight:
        left.add(id(last))
    if torch.device(device).type != "cpu":
        widen(model, device, left)
    for parameter in model.parameters():
        if id(parameter) not in left and not isinstance(parameter, BlockWeight):
            kind = wanted if parameter.dtype == loaded.dtype else parameter.dtype
            parameter.data = parameter.data.to(device, kind)
    buffers: Any = model.buffers()
    for buffer in buffers:
        buffer.data = buffer.data.to(device)
    return replace(loaded, dtype=wanted)
