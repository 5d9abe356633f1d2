"""Arrays of a CTranslate2 model, checked against the size of the file that they are in.

Format: OpenNMT/CTranslate2, python/ctranslate2/specs/model_spec.py, version 6.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.config.errors import ConfigurationError

VERSION = 6
DTYPES = ("float32", "int8", "int16", "int32", "float16")
MOST_DIMENSIONS = 4
MOST_ARRAYS = 1 << 16


class Ctranslate2File:
    """A mapped model: what it is (`WhisperSpec`), and its arrays by name.

    Raises ConfigurationError for another format, and for a file that is cut or says more than is
    in it.
    """

    def __init__(self, file: Path) -> None:
        self._name = file.name
        self._bytes: NDArray[np.uint8] = np.memmap(file, np.uint8, "r")
        self._at = 0
        try:
            if self._number("<I") != VERSION:
                raise ValueError
            self.kind = self._text()
            self._number("<I")  # revision of what is described
            self.arrays: dict[str, NDArray[Any]] = {}
            for _ in range(self._count()):
                name = self._text()
                self.arrays[name] = self._array()
            for _ in range(self._count()):
                name = self._text()
                self.arrays[name] = self.arrays[self._text()]
            if self._at != len(self._bytes):
                raise ValueError
        except (struct.error, KeyError, ValueError) as error:
            raise ConfigurationError(
                f"'{file.name}' is not a CTranslate2 model of version {VERSION}, or is damaged"
            ) from error

    def number(self, name: str) -> int:
        """A setting. Raises ConfigurationError if it is not there."""
        array = self.arrays.get(name)
        if array is None or array.ndim or array.dtype.kind != "i":
            raise ConfigurationError(f"'{self._name}' lacks the number {name}")
        return int(array)

    def _take(self, count: int) -> NDArray[np.uint8]:
        if not 0 <= count <= len(self._bytes) - self._at:
            raise ValueError
        self._at += count
        return self._bytes[self._at - count : self._at]

    def _number(self, kind: str) -> int:
        return int(struct.unpack(kind, self._take(struct.calcsize(kind)).tobytes())[0])

    def _count(self) -> int:
        count = self._number("<I")
        if count > MOST_ARRAYS:
            raise ValueError
        return count

    def _text(self) -> str:
        return self._take(self._number("<H")).tobytes().rstrip(b"\0").decode("utf-8")

    def _array(self) -> NDArray[Any]:
        rank = self._number("<B")
        if rank > MOST_DIMENSIONS:
            raise ValueError
        shape = [self._number("<I") for _ in range(rank)]
        code = self._number("<B")
        if code >= len(DTYPES):
            raise ValueError
        dtype = np.dtype(DTYPES[code])
        size = self._number("<I")
        if size != math.prod(shape) * dtype.itemsize:
            raise ValueError
        return self._take(size).view(dtype).reshape(shape)
