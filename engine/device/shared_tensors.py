"""Arrays in anonymous shared memory, which processes hand on without copying it, as tensors.

The memory is a Linux memfd: it has no name that could be left behind, is not bounded by the size of
/dev/shm, and is freed with its last holder, however that ends. It is sealed once written, so that
nobody can change or shrink it under a reader.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import mmap
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

ALIGNMENT = 64
MOST_TENSORS, MOST_DIMENSIONS = 16, 8  # of an item; families have two of five at most
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
ITEMSIZES = {"uint8": 1, "int32": 4, "int64": 8, "float16": 2, "float32": 4}
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


@dataclass(slots=True, frozen=True)
class Place:
    """Where a tensor lies: `offset` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape) * ITEMSIZES[self.dtype]


class SharedTensors(Mapping[str, "torch.Tensor"]):
    """Named arrays, mapped into this process as tensors when one is first looked at.

    Who stores them and who passes them on needs no torch.

    Pickling carries the layout alone; `send` and `receive` carry the memory beside it.
    """

    def __init__(self, places: Iterable[Place], size: int, handle: int = -1) -> None:
        self.places = {place.name: place for place in places}
        self.nbytes = size
        self._handle = handle
        self._memory: mmap.mmap | None = None

    @classmethod
    def store(cls, arrays: Mapping[str, NDArray[Any]]) -> SharedTensors:
        """A sealed copy. Raises ValueError for a type of number that is not carried."""
        places, end = [], 0
        for name, array in arrays.items():
            if array.dtype.name not in ITEMSIZES or not array.dtype.isnative:
                raise ValueError(f"arrays of {array.dtype} are not carried")
            offset = -(-end // ALIGNMENT) * ALIGNMENT
            places.append(Place(name, array.dtype.name, array.shape, offset))
            end = places[-1].end
        size = max(end, 1)
        handle = os.memfd_create("tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(handle, size)
            for place in places:
                flat = arrays[place.name].reshape(-1)  # copied unless it lies so
                if flat.size:
                    write(handle, flat.data.cast("B"), place.offset)
            fcntl.fcntl(handle, fcntl.F_ADD_SEALS, SEALS)
        except BaseException:
            os.close(handle)
            raise
        return cls(places, size, handle)

    def layout(self) -> dict[str, Any]:
        """What `laid_out` takes, as JSON."""
        places = [
            [place.name, place.dtype, place.shape, place.offset] for place in self.places.values()
        ]
        return {"size": self.nbytes, "places": places}

    @classmethod
    def laid_out(cls, layout: Any, most: int | None = None) -> SharedTensors:
        """Tensors whose memory, of at most `most` bytes, is still to be received.

        Raises ValueError for whatever `layout` does not give: it may come from a stranger.
        """
        if not isinstance(layout, dict) or layout.keys() != {"size", "places"}:
            raise ValueError("a layout has a size and places")
        size, listed = layout["size"], layout["places"]
        if not _whole(size, most) or not size:
            raise ValueError("no size that memory may have")
        if not isinstance(listed, list) or len(listed) > MOST_TENSORS:
            raise ValueError("no list of tensors, or too long a one")
        places = {place.name: place for place in (_place(one, size) for one in listed)}
        if len(places) != len(listed):
            raise ValueError("two tensors have one name")
        return cls(places.values(), size)

    def check(self) -> None:
        """Raise ValueError unless the memory is sealed and as large as the layout says."""
        try:
            seals = fcntl.fcntl(self._handle, fcntl.F_GET_SEALS)
        except OSError as none:
            raise ValueError("this is no shared memory") from none
        if seals & SEALS != SEALS or os.fstat(self._handle).st_size != self.nbytes:
            raise ValueError("shared memory is not sealed, or of another size")

    def __getitem__(self, name: str) -> torch.Tensor:
        place = self.places[name]
        import torch  # only where tensors are looked at

        dtype, count = getattr(torch, place.dtype), math.prod(place.shape)
        if not count:
            return torch.empty(place.shape, dtype=dtype)
        flat = torch.frombuffer(self._mapped(), dtype=dtype, count=count, offset=place.offset)
        return flat.view(place.shape)

    def array(self, name: str) -> NDArray[Any]:
        """One of them for who has no torch. Raises KeyError."""
        import numpy

        place = self.places[name]
        return numpy.ndarray(place.shape, place.dtype, self._mapped(), place.offset)

    def _mapped(self) -> mmap.mmap:
        if self._memory is None:  # a private mapping: a writer would write to a copy
            self._memory = mmap.mmap(self._handle, self.nbytes, access=mmap.ACCESS_COPY)
        return self._memory

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedTensors, (tuple(self.places.values()), self.nbytes)

    def __del__(self) -> None:
        if self._handle >= 0:
            with contextlib.suppress(OSError, TypeError):  # the interpreter may be ending
                os.close(self._handle)

    def send(self, connection: Connection, receiver: int) -> None:
        """Hand the memory to process `receiver`, after a message with the layout in it."""
        send_handle(connection, self._handle, receiver)

    def receive(self, connection: Connection) -> None:
        """Take the memory that `send` handed over.

        Raises EOFError at the end, and ValueError if something else was handed over.
        """
        with socket.socket(fileno=os.dup(connection.fileno())) as channel:
            # room for one more than there may be: what there is no room for never gets here
            message, handles, flags, _ = socket.recv_fds(channel, 1, 2, socket.MSG_CMSG_CLOEXEC)
        if not message:
            raise EOFError
        if len(handles) != 1 or flags & socket.MSG_CTRUNC:
            for handle in handles:
                os.close(handle)
            raise ValueError("not one descriptor, but another number of them")
        (self._handle,) = handles


def _place(listed: Any, size: int) -> Place:
    """One tensor of a layout, within memory of `size` bytes."""
    if not isinstance(listed, list) or len(listed) != 4:
        raise ValueError("a tensor has a name, a type, a shape and an offset")
    name, dtype, shape, offset = listed
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError("no name that a tensor has")
    if not isinstance(dtype, str) or dtype not in ITEMSIZES:
        raise ValueError("tensors of such a type are not carried")
    if not isinstance(shape, list | tuple) or len(shape) > MOST_DIMENSIONS:
        raise ValueError("no shape that a tensor has")
    if not all(_whole(length, size) for length in shape):
        raise ValueError("a tensor is longer than its memory")
    if not _whole(offset, size) or offset % ALIGNMENT:
        raise ValueError("a tensor has no valid place")
    place = Place(name, dtype, tuple(shape), offset)
    if place.end > size:
        raise ValueError("a tensor reaches beyond its memory")
    return place


def _whole(number: Any, most: int | None) -> bool:
    """Whether it is a whole number from 0 to `most`; True and False are none."""
    return type(number) is int and number >= 0 and (most is None or number <= most)


def write(handle: int, data: memoryview, offset: int = 0) -> None:
    """Write all of `data` into a file."""
    while data:
        count = os.pwrite(handle, data, offset)
        data, offset = data[count:], offset + count
