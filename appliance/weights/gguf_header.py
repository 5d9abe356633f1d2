"""The beginning of a GGUF file, checked before anything that trusts it reads it.

Format: the GGUF specification (ggml-org/ggml, docs/gguf.md).
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from appliance.config.errors import WeightsError
from engine.errors import ModelUnsupported
from engine.models.documents import open_regular
from engine.native.blocks import KINDS

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY, UINT32 = 8, 9, 4
MOST_KEYS, MOST_TENSORS = 4096, 1 << 16
MOST_VALUES = 1 << 22  # of all arrays together: four times the largest vocabulary with its merges
MOST_DIMENSIONS = 4
MOST_ALIGNMENT = 1 << 16
WRITTEN_BYTES = 2  # of each weight in bfloat16, which those of a kind of `KINDS` do not become
BESIDE_WEIGHTS = 64 << 20  # tokenizer and configuration


class _Fault(Exception):
    """What is wrong, in our own words."""


def check_header(file: Path) -> int:
    """Bytes that the converted weights will take. Raises WeightsError for what is no GGUF file."""
    try:
        with os.fdopen(open_regular(file), "rb") as stream:
            if os.fstat(stream.fileno()).st_size < 24:
                raise _Fault("it is too short")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Header(content).weights()
    except _Fault as fault:
        raise WeightsError(f"'{file.name}' is not a GGUF file, or is damaged: {fault}") from None
    except (ModelUnsupported, OSError) as error:
        raise WeightsError(f"'{file}' is missing or no regular file") from error


class _Header:
    """Reads on from where it is, never beyond the end."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._place = 0
        self._values = 0

    def weights(self) -> int:
        if self._bytes(4) != MAGIC:
            raise _Fault("it does not begin with GGUF")
        version = self._number("I")
        if version not in VERSIONS:
            raise _Fault(f"version {version} is not known")
        tensors, keys = self._number("Q"), self._number("Q")
        if tensors > MOST_TENSORS or keys > MOST_KEYS:
            raise _Fault("it lists more keys or tensors than any model has")
        alignment = 32
        for _ in range(keys):
            key, kind = self._string(), self._number("I")
            if key == b"general.alignment":
                if kind != UINT32:
                    raise _Fault("its alignment has another type")
                alignment = struct.unpack_from("<I", self._content, self._place)[0]
                if not 1 <= alignment <= MOST_ALIGNMENT or alignment & (alignment - 1):
                    raise _Fault("its alignment is no power of two")
            self._value(kind)
        listed = [self._tensor() for _ in range(tensors)]
        start = -(-self._place // alignment) * alignment
        for offset, size, _ in listed:
            if start + offset + size > len(self._content):
                raise _Fault("it ends before its tensors do")
        return BESIDE_WEIGHTS + sum(written for _, _, written in listed)

    def _tensor(self) -> tuple[int, int, int]:
        """Offset, bytes here, and bytes once it is written."""
        self._string()
        dimensions = self._number("I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise _Fault("a tensor has no dimensions, or too many")
        shape = [self._number("Q") for _ in range(dimensions)]
        kind, offset = self._number("I"), self._number("Q")
        count = math.prod(shape)
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (KeyError, ValueError):
            raise _Fault(f"a tensor is of type {kind}, which is not known") from None
        if not 0 < count <= 1 << 50 or shape[0] % block:
            raise _Fault("a tensor has a shape that its type cannot have")
        stored = count // block * block_bytes
        stays = len(shape) == 2 and GGMLQuantizationType(kind).name in KINDS
        return offset, stored, stored if stays else count * WRITTEN_BYTES

    def _value(self, kind: int) -> None:
        if kind == STRING:
            self._string()
        elif kind == ARRAY:
            inner, count = self._number("I"), self._number("Q")
            self._values += count
            if inner == ARRAY:
                raise _Fault("it has arrays of arrays")
            if self._values > MOST_VALUES:
                raise _Fault("its arrays have more values than any model has")
            if inner == STRING:
                for _ in range(count):
                    self._string()
            else:
                self._skip(count * self._scalar(inner))
        else:
            self._skip(self._scalar(kind))

    def _scalar(self, kind: int) -> int:
        if kind not in SCALAR_BYTES:
            raise _Fault(f"it has a value of type {kind}, which is not known")
        return SCALAR_BYTES[kind]

    def _string(self) -> bytes:
        return self._bytes(self._number("Q"))

    def _number(self, kind: str) -> int:
        size = struct.calcsize(kind)
        number: int = struct.unpack(f"<{kind}", self._bytes(size))[0]
        return number

    def _bytes(self, count: int) -> bytes:
        start = self._place
        self._skip(count)
        return self._content[start : self._place]

    def _skip(self, count: int) -> None:
        self._place += count
        if self._place > len(self._content):
            raise _Fault("it ends in the middle of its header")
