"""Embeddings that a client computed itself: arrays out of untrusted bytes, never by pickle."""

from __future__ import annotations

import binascii
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from appliance.errors import ApplianceError, bad_request, media_too_large
from appliance.media.limits import EmbeddingsPolicy
from appliance.media.prepare import PARAM, MediaSettings, Options, Prepared
from engine.models.family import Family

Array = NDArray[Any]

DTYPES = ("float32", "float16")  # and bfloat16, as float32
GRID_DTYPES = ("int64", "int32", "int16", "uint8")
BFLOAT16 = "BF16"
SIZES = (1, 2, 4, 8)  # bytes of whole numbers
SAFETENSORS_DTYPES = {  # as its header names them
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    BFLOAT16: "<u2",
    "BOOL": "?",
    **{f"I{8 * size}": f"<i{size}" for size in SIZES},
    **{f"U{8 * size}": f"<u{size}" for size in SIZES},
}
TYPES_SAID = "they must be of type float32, float16 or bfloat16"
NUMPY_MAGIC = b"\x93NUMPY"
# https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
NUMPY_HEADER = re.compile(
    r"\{'descr': '([<|=]?[a-z]\d)', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,12}, ?)*(?:\d{1,12})?),?\), \} *\n"
)
NUMPY_DTYPES = {"<f4", "<f2", "<i8", "<i4"}
LONGEST_HEADER = 1 << 12
ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # what torch.save writes, and wrote before
HOW = (
    "Send safetensors: base64 of safetensors.torch.save({'embeds': tensor}), with the grid as "
    "another tensor where the model needs one."
)


@dataclass(slots=True, frozen=True)
class Embeddings:
    """`[tokens, hidden]` of one item, and its grid where the family needs one."""

    embeds: Array
    grid: tuple[int, ...] | None


class EmbeddingsPreparer:
    """Embeddings of pictures, whose checks are all that there is to do."""

    def __init__(self, family: Family, settings: MediaSettings) -> None:
        self._family = family
        self._policy = settings.embeddings

    def probe(self, data: bytes, options: Options) -> int | None:
        return None

    def decode(self, data: bytes, options: Options) -> Embeddings:
        return load_embeddings(data, "image", self._family, self._policy, PARAM)

    def preprocess(self, decoded: Embeddings, options: Options) -> Prepared:
        return Prepared(len(decoded.embeds), arrays_of(decoded, "image", self._family))


def load_embeddings(
    payload: bytes, modality: str, family: Family, policy: EmbeddingsPolicy, param: str
) -> Embeddings:
    """One item, as `EmbeddingFields` are encoded: text for each tensor.

    The text is base64 of safetensors or of an .npy file; a grid may also be a list of numbers.
    Every number is checked before the item may be used. Raises ApplianceError with status 400.
    """
    parts: Mapping[str, Any] = json.loads(payload)
    tensors: dict[str, Array] = {}
    name, grid_name = f"{modality}_embeds", family.embedding_grid(modality)
    for field, value in parts.items():
        if field == grid_name and isinstance(value, list):
            tensors[field] = _numbers(value, param)
        else:
            tensors.update(_named(_decoded(value, policy, modality, param), field, param))
    embeds = tensors.pop(name, tensors.pop("embeds", None))
    grid = tensors.pop(grid_name, None) if grid_name else None
    if tensors:
        known = ", ".join(filter(None, (name, "embeds", grid_name)))
        raise _invalid(f"there are tensors of other names than {known}", param)
    if embeds is None:
        raise _invalid("there are no embeddings in it", param)
    shape = None if grid is None else _grid(grid, param)
    return Embeddings(_checked(embeds, shape, modality, family, param), shape)


def arrays_of(item: Embeddings, modality: str, family: Family) -> dict[str, Array]:
    """What the engine takes in place of an item's pixels."""
    arrays = {"embeds": item.embeds}
    name = family.embedding_grid(modality)
    if name is not None and item.grid is not None:
        arrays[name] = np.array([item.grid], np.int64)
    return arrays


def _checked(
    embeds: Array,
    grid: tuple[int, ...] | None,
    modality: str,
    family: Family,
    param: str,
) -> Array:
    if embeds.dtype.name not in DTYPES:
        raise _invalid(TYPES_SAID, param)
    if embeds.ndim == 3 and embeds.shape[0] == 1:
        embeds = embeds[0]
    shape = " x ".join(map(str, embeds.shape))
    if embeds.ndim != 2:
        raise _invalid(
            f"their shape {shape} is neither (tokens, hidden) nor (1, tokens, hidden); several "
            "items are a list",
            param,
        )
    hidden = int(family.text_config()["hidden_size"])
    if embeds.shape[1] != hidden:
        raise _invalid(f"their shape is {shape}, the model's hidden size {hidden}", param)
    if grid is None and family.embedding_grid(modality) is not None:
        raise _invalid(f"they come without their {family.embedding_grid(modality)}", param)
    try:
        tokens = family.embedding_tokens(modality, grid)
    except ValueError as wrong:
        raise _invalid(f"their grid is not possible: {wrong}", param) from None
    if embeds.shape[0] != tokens:
        raise _invalid(f"they are of {embeds.shape[0]} tokens, the {modality} has {tokens}", param)
    if not np.isfinite(embeds).all():
        raise _invalid("they hold values that are not finite", param)
    return embeds


def _decoded(value: Any, policy: EmbeddingsPolicy, modality: str, param: str) -> bytes:
    if not isinstance(value, str):
        raise _invalid("base64 text is needed", param)
    if len(value) // 4 * 3 - 2 > policy.max_bytes:
        raise media_too_large(f"{modality}'s embeddings", policy.max_bytes, param)
    try:
        return binascii.a2b_base64(value.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        raise _invalid("they are not valid base64", param) from None


def _named(data: bytes, field: str, param: str) -> dict[str, Array]:
    """Tensors of safetensors, or the one of an .npy file under the name of its field."""
    if data.startswith(NUMPY_MAGIC):
        return {field: _from_numpy(data, param)}
    if data.startswith((ZIP, PICKLE)):
        raise _invalid(f"torch.save and pickle are not read. {HOW}", param, end="")
    try:
        found = deserialize(data)
    except (SafetensorError, ValueError):
        raise _invalid(f"they are neither safetensors nor .npy. {HOW}", param, end="") from None
    tensors = {name: _from_safetensors(entry, param) for name, entry in found}
    if len(tensors) == 1 and not field.endswith("_embeds"):
        return {field: next(iter(tensors.values()))}
    return tensors


def _from_safetensors(entry: Mapping[str, Any], param: str) -> Array:
    """An array of what its header was checked to fit; bfloat16 as the same numbers in float32."""
    dtype = SAFETENSORS_DTYPES.get(entry["dtype"])
    if dtype is None:
        raise _invalid(TYPES_SAID, param)
    array: Array = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
    if entry["dtype"] == BFLOAT16:
        return np.left_shift(array, 16, dtype=np.uint32).view(np.float32)
    return array


def _from_numpy(data: bytes, param: str) -> Array:
    """An array whose header is read without being evaluated, and has to fit the data exactly."""
    wide = data[6:7] != b"\1"
    start = 12 if wide else 10
    length = int.from_bytes(data[8:start], "little")
    header = data[start : start + min(length, LONGEST_HEADER)].decode("latin-1")
    match = NUMPY_HEADER.fullmatch(header)
    if data[6:7] not in (b"\1", b"\2", b"\3") or len(header) != length or match is None:
        raise _invalid("the .npy header is not one that numpy.save writes", param)
    dtype, fortran, shape = match[1], match[2] == "True", _shape(match[3])
    if dtype not in NUMPY_DTYPES:
        raise _invalid("the .npy file must be of little-endian float32 or float16", param)
    content = memoryview(data)[start + length :]
    if math.prod(shape) * int(dtype[2:]) != len(content):
        raise _invalid("the .npy header's shape does not fit its data", param)
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return np.array(array, order="C")


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.replace(" ", "").split(",") if number)


def _numbers(value: list[Any], param: str) -> Array:
    """A grid written as JSON, in one list or a list of one."""
    flat = value[0] if len(value) == 1 and isinstance(value[0], list) else value
    if len(flat) > 3 or not all(type(one) is int and 0 <= one < 1 << 31 for one in flat):
        raise _invalid("a grid is a list of three whole numbers", param)
    return np.array(flat, np.int64)


def _grid(grid: Array, param: str) -> tuple[int, ...]:
    if grid.dtype.name not in GRID_DTYPES or grid.size != 3 or grid.ndim > 2:
        raise _invalid("a grid is three whole numbers of one item", param)
    return tuple(grid.flatten().tolist())


def _invalid(what: str, param: str, end: str = ".") -> ApplianceError:
    return bad_request(f"The embeddings cannot be used: {what}{end}", param, "embedding_invalid")
