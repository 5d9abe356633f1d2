"""What a checkpoint folder says of itself without a weight being read."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ModelUnsupported
from engine.memory.stored_blocks import StoredBlocks, stored_blocks
from engine.models.documents import CheckpointBroken, open_regular, read_document
from engine.models.family import Family
from engine.models.registry import family_for
from engine.native.blocks import KINDS, kind_of

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
STORED = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
SPLIT = re.compile(  # what tensor parallelism divides, by rows, by columns or by vocabulary
    r"\b([qkv]_proj|gate_proj|up_proj)\.(weight|bias)$|\b(o_proj|down_proj|embed_tokens|lm_head)\.weight$"
)
PRODUCT = re.compile(r"\b([qkvo]|gate|up|down)_proj\.weight$")  # of a decoder's layers
STORED_BYTES = {  # types that somebody might load; those of less than a byte are not
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 2),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
PLAIN_NAME = re.compile(r"[^/\\\0]{1,240}\.safetensors")
MAX_DIMENSIONS = 8
MAX_HEADER = 100 * 1024 * 1024  # the limit of the safetensors format


@dataclass(slots=True, frozen=True)
class Checkpoint:
    """Sizes of a checkpoint. Parameters of media towers are counted apart from the decoder's.

    `whole_parameters` are those of the decoder that every rank of several holds: norms.
    `product_parameters` are those of its layers' matrices, which can be quantized.
    """

    architecture: str
    dtype: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    positions: int
    tied: bool
    decoder_parameters: int
    tower_parameters: int
    embedding_parameters: int
    modalities: tuple[str, ...]
    whole_parameters: int
    product_parameters: int
    blocks: StoredBlocks | None = None  # what is stored as integers


def read_checkpoint(folder: str | Path, family: Family | None = None) -> Checkpoint:
    """Read `config.json` and safetensors headers; the family is looked up unless it is given.

    Raises ModelUnsupported when a file is missing, unreadable, or lacks what is needed.
    """
    family = family_for(folder) if family is None else family
    folder, config = family.folder, family.config
    text = {name: value for name, value in family.text_config().items() if value is not None}
    if config.get("quantization_config") is not None:
        raise ModelUnsupported(
            f"{folder}/config.json has a quantization_config: weights that are stored quantized "
            "are not read; take the checkpoint they were made of and set model.quantization"
        )
    tensors = tensor_shapes(folder)
    tied = bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
    tower = decoder = whole = products = 0
    for name, (_, shape) in tensors.items():
        if name.removeprefix("model.").startswith(family.tower_prefixes):
            tower += 0 if family.unread(name) else math.prod(shape)
        elif not (tied and name.endswith("lm_head.weight")) and not family.unread(name):
            decoder += math.prod(shape)
            whole += 0 if SPLIT.search(name) else math.prod(shape)
            products += math.prod(shape) if PRODUCT.search(name) else 0
    embedding = next(
        (shape for name, (_, shape) in tensors.items() if name.endswith("embed_tokens.weight")), []
    )
    if min(len(embedding), 2) not in (0, 2):
        raise CheckpointBroken(f"{folder}: its embed_tokens.weight is no matrix")
    try:
        heads, kv_heads, head_dim = head_sizes(text)
        return Checkpoint(
            architecture=str(config["architectures"][0]),
            dtype=_dtype(config, text, tensors),
            layers=text["num_hidden_layers"],
            hidden=text["hidden_size"],
            intermediate=text["intermediate_size"],
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocabulary=embedding[0] if embedding else text["vocab_size"],
            positions=text["max_position_embeddings"],
            tied=tied,
            decoder_parameters=decoder,
            tower_parameters=tower,
            embedding_parameters=math.prod(embedding) if embedding else 0,
            modalities=family.available,
            whole_parameters=whole,
            product_parameters=products,
            blocks=stored_blocks(tensors, tied=tied),
        )
    except KeyError as error:
        raise ModelUnsupported(f"{folder}/config.json lacks {error.args[0]}") from error


def head_sizes(text: dict[str, Any]) -> tuple[int, int, int]:
    """Heads, key-value heads and their size. Raises KeyError for what config.json leaves out."""
    heads = text["num_attention_heads"]
    head_dim = text.get("head_dim") or text["hidden_size"] // heads
    return heads, text.get("num_key_value_heads") or heads, head_dim


def stored_dtype(folder: str | Path) -> str | None:
    """The type that all tensors are stored in; None if they are of several, or of an odd one."""
    kinds = {kind for kind, _ in tensor_shapes(Path(folder)).values()}
    kind = kinds.pop() if len(kinds) == 1 else ""
    return STORED[kind] if kind in ("F32", "BF16", "F16") else None


def tensor_shapes(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """Return stored type and shape of every tensor, from one file or the files of an index.

    Of one that is stored as blocks of integers it is their kind, and the shape of what they mean.

    Format: https://github.com/huggingface/safetensors#format
    """
    tensors = {}
    headers: dict[Path, dict[str, Any]] = {}
    for name, file in tensor_files(folder).items():
        if file not in headers:
            headers[file] = _header(file)
        entry = headers[file].get(name)
        if entry is None:
            raise ModelUnsupported(f"{file} lacks {name[:100]}, which the index lists")
        kind = kind_of(name)
        plain = name if kind is None else name.removesuffix(f".{kind}")
        if plain in tensors:
            raise CheckpointBroken(f"{file} has {plain[:100]} twice, as integers and otherwise")
        tensors[plain] = (
            (entry["dtype"], entry["shape"])
            if kind is None
            else (kind, _block_shape(file, name, kind, entry))
        )
    return tensors


def tensor_files(folder: Path) -> dict[str, Path]:
    """The file of every tensor: those of an index, or else of one file, or else of all there are.

    Raises ModelUnsupported when there are none.
    """
    index = folder / "model.safetensors.index.json"
    if os.path.lexists(index):
        weight_map = read_document(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointBroken(f"{index} has no object weight_map")
        for file in set(map(str, weight_map.values())):
            if not PLAIN_NAME.fullmatch(file):  # so that no path can lead out of the folder
                raise CheckpointBroken(
                    f"{index} names {file[:100]!r}, no safetensors file beside it"
                )
        return {name: folder / file for name, file in weight_map.items()}
    one = folder / "model.safetensors"
    files = [one] if os.path.lexists(one) else sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelUnsupported(f"{folder} holds no safetensors")
    return {name: file for file in files for name in _header(file) if name != "__metadata__"}


def _header(file: Path) -> dict[str, Any]:
    """What the file says of its tensors, all of it checked against its size.

    Weights may be links to wherever they lie: none of their content is shown to anybody.
    """
    with os.fdopen(open_regular(file), "rb") as stream:
        try:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise ValueError
            header = json.loads(stream.read(length))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointBroken(f"{file} is missing or not a safetensors file") from error
    if not isinstance(header, dict):
        raise CheckpointBroken(f"{file} is missing or not a safetensors file")
    spans = [_span(file, *entry) for entry in header.items() if entry[0] != "__metadata__"]
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            raise CheckpointBroken(f"{file}: the bytes of {name} do not follow those before them")
        end = stop
    if end != size - 8 - length:
        raise CheckpointBroken(
            f"{file} is cut short or too long: its tensors take {end} bytes, and "
            f"{size - 8 - length} are there"
        )
    return header


def _span(file: Path, name: str, entry: Any) -> tuple[int, int, str]:
    try:
        kind, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, stop]
        sound = isinstance(shape, list) and all(type(number) is int for number in numbers)
        sound = sound and min(numbers) >= 0 and max(numbers) < 1 << 62
        sound = sound and len(shape) <= MAX_DIMENSIONS and kind in STORED_BYTES
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise CheckpointBroken(
            f"{file}: what it says of {name[:100]} is not the safetensors format"
        )
    if stop - start != math.prod(shape) * STORED_BYTES[kind]:
        raise CheckpointBroken(f"{file}: {name[:100]} has another number of bytes than its shape")
    return start, stop, name[:100]


def _block_shape(file: Path, name: str, kind: str, entry: dict[str, Any]) -> list[int]:
    shape, size = entry["shape"], KINDS[kind]
    if entry["dtype"] != "U8" or len(shape) != 2 or not all(shape) or shape[1] % size.bytes:
        raise CheckpointBroken(f"{file}: {name[:100]} is no matrix of blocks of {kind}")
    return [shape[0], shape[1] // size.bytes * size.inputs]


def _dtype(config: dict[str, Any], text: dict[str, Any], tensors: dict[str, Any]) -> str:
    for source in (config, text):
        declared = source.get("dtype") or source.get("torch_dtype")
        if isinstance(declared, str) and declared in ITEMSIZE:
            return str(declared)
    stored = Counter(STORED[kind] for kind, _ in tensors.values() if kind in STORED)
    return stored.most_common(1)[0][0] if stored else "float32"
